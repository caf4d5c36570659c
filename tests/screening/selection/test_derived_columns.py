"""Derived columns of a selection, checked on well-known crystals."""

from __future__ import annotations

import csv
import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import pytest
from ase.spacegroup import crystal
from equiscreen.pipeline import GraphStore, Structure
from equiscreen.screening import select
from equiscreen.screening.chemistry.charge_balance import BALANCE, balance
from equiscreen.screening.chemistry.elements import has_f_electrons, has_magnetic_element
from equiscreen.screening.chemistry.prototype import PrototypeLabels
from equiscreen.screening.selection.novelty import (
    KNOWN,
    NEW_COMPOSITION,
    NEW_PHASE,
    NOT_COMPARED,
    NOVELTY,
    KnownCrystals,
)
from equiscreen.screening.selection.ranking import fronts, non_dominated
from equiscreen.screening.selection.vasp_inputs import input_set, vasp_files
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.transform import Rotation

from .selection_data import VALIDATION, featurized, graphs_of_mp, scored_columns, structures_of, write_dataset

pytest.importorskip("pymatgen")

LABELS = PrototypeLabels()


@pytest.fixture(scope="module")
def graphs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return graphs_of_mp(data, tmp_path_factory.mktemp("graphs"), 60)


@pytest.mark.parametrize(
    ("formula", "neutral", "electronegative"),
    [
        ("NaCl", "yes", "yes"),
        ("Al2O3", "yes", "yes"),
        ("LiFePO4", "yes", "yes"),
        ("NaCl2", "no", "no"),
        ("Na2Cl", "no", "no"),
        ("AlNi", "metals", "metals"),
        ("Fe", "metals", "metals"),
        ("Fe12O12", "yes", "yes"),
    ],
)
def test_balance_of_charges(formula: str, neutral: str, electronegative: str) -> None:
    assert BALANCE[balance(formula, electronegativity=False)] == neutral
    assert BALANCE[balance(formula, electronegativity=True)] == electronegative


def test_too_many_elements_are_not_tried() -> None:
    assert BALANCE[balance("LiNaKRbCsMgCaSrBaO9", electronegativity=False)] == "unknown"


def test_magnetism_and_f_electrons() -> None:
    assert [has_magnetic_element(text) for text in ("Fe2O3", "NaCl", "Eu", "La", "Zn")] == [
        True,
        False,
        True,
        *[False] * 2,
    ]
    assert [has_f_electrons(text) for text in ("Fe2O3", "LaB6", "UO2")] == [False, True, True]


def known_types() -> dict[str, Structure]:
    """Structure types by name."""
    perovskite = crystal(
        ["Ca", "Ti", "O"], [(0.5, 0.5, 0.5), (0, 0, 0), (0.5, 0, 0)], spacegroup=221, cellpar=[3.9] * 3 + [90] * 3
    )
    made = {
        "rocksalt": ase.build.bulk("NaCl", "rocksalt", a=5.6),
        "caesium chloride": ase.build.bulk("CsCl", "cesiumchloride", a=4.1),
        "zincblende": ase.build.bulk("ZnS", "zincblende", a=5.4),
        "fluorite": ase.build.bulk("CaF2", "fluorite", a=5.5),
        "fcc": ase.build.bulk("Cu", "fcc", a=3.6),
        "bcc": ase.build.bulk("Fe", "bcc", a=2.9),
        "perovskite": perovskite,
    }
    return {name: Structure.from_ase(atoms) for name, atoms in made.items()}


def test_labels_of_known_types() -> None:
    labels = {name: LABELS.label(structure) for name, structure in known_types().items()}
    assert labels["rocksalt"] == "AB_cF8_225_a_b"
    assert labels["fcc"] == "A_cF4_225_a"
    assert labels["perovskite"] == "ABC3_cP5_221_a_b_c"
    assert len(set(labels.values())) == len(labels)


def test_a_type_has_one_label_whatever_its_elements() -> None:
    labels = set()
    for name, a in (("NaCl", 5.6), ("MgO", 4.2), ("TiC", 4.3), ("OMg", 4.2)):
        labels.add(LABELS.label(Structure.from_ase(ase.build.bulk(name, "rocksalt", a=a))))
    assert len(labels) == 1


def disguised(structure: Structure, seed: int) -> Structure:
    """The same crystal, rotated, translated, with permuted sites and in a larger cell."""
    rng = np.random.default_rng(seed)
    atoms = structure.to_ase().repeat([1, 1, int(rng.integers(1, 3))])
    atoms = atoms[rng.permutation(len(atoms))]
    moved = atoms.get_scaled_positions(wrap=False) + rng.random(3)
    cell = atoms.cell.array @ Rotation.random(rng=rng).as_matrix()
    return Structure.from_fractional(atoms.numbers, cell, moved)


def test_the_label_is_of_the_crystal_not_of_its_cell(graphs: GraphStore) -> None:
    for seed, structure in enumerate([*known_types().values(), *structures_of(graphs)]):
        assert {LABELS.label(disguised(structure, seed + shift)) for shift in range(3)} == {LABELS.label(structure)}


def test_without_periodicity_there_is_no_label() -> None:
    assert LABELS.label(Structure.from_cartesian([29, 29], [[0, 0, 0], [0, 0, 2.2]])) == "none"


def test_what_is_known(graphs: GraphStore) -> None:
    known = KnownCrystals(graphs.path)
    names = graphs.column("structure_id").tolist()
    rng = np.random.default_rng(0)
    for row, structure in enumerate(structures_of(graphs)[:20]):
        found, name = known.find(disguised(structure, row))
        assert (found, name) == (KNOWN, names[row])
        scaled = Structure.from_fractional(structure.atomic_number, structure.cell * 1.05, structure.frac_coord)
        shaken = scaled.frac_coord + rng.normal(0, 0.01, scaled.frac_coord.shape) @ np.linalg.inv(scaled.cell)
        assert known.find(Structure.from_fractional(scaled.atomic_number, scaled.cell, shaken))[0] == KNOWN


def test_what_is_new(tmp_path: Path) -> None:
    types = known_types()
    rows = [("salt", types["rocksalt"]), ("iron", types["bcc"])]
    with (tmp_path / "k.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "cif"])
        from ...conftest import cif_text  # noqa: PLC0415 - beside its use

        table.writerows((name, cif_text(structure)) for name, structure in rows)
    known = KnownCrystals(featurized(tmp_path / "k.csv", tmp_path / "k.zarr").path)
    assert known.find(types["rocksalt"]) == (KNOWN, "salt")
    other = Structure.from_ase(ase.build.bulk("NaCl", "cesiumchloride", a=3.5))
    assert known.find(other) == (NEW_PHASE, "")
    assert known.find(types["zincblende"]) == (NEW_COMPOSITION, "")
    molecule = Structure.from_cartesian([11, 17], [[0, 0, 0], [0, 0, 2.2]])
    assert known.find(molecule) == (NOT_COMPARED, "")


def test_novelty_of_a_selection(data: Path, graphs: GraphStore, tmp_path: Path) -> None:
    """Half of the candidates are known; the others are new compositions or phases."""
    half = graphs_of_mp(data, tmp_path, 30)
    columns = scored_columns(graphs)
    columns["status"] = np.zeros(60, dtype=np.uint8)
    columns["energy_above_hull"] = np.arange(60.0)
    scores = write_dataset(tmp_path / "s.zarr", graphs, columns)
    found = select(scores, tmp_path / "out", known=half.path, formats="zarr")
    words = np.array(NOVELTY)[found["novelty"].values]
    assert (words[:30] == "known").all()
    assert found["known_as"].values.tolist()[:30] == columns["structure_id"][:30]
    again = select(scores, tmp_path / "new", 'novelty != "known"', known=half.path, top=5, formats="parquet")
    assert again["scores_row"].values.tolist() == np.flatnonzero(words != "known")[:5].tolist()
    assert again.attrs["selection"]["known"]["store_hash"] == half.store_hash


points = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 40), st.integers(1, 4)),
    elements=st.integers(-3, 3).map(float),
)


@settings(deadline=None)
@given(points)
def test_a_front_is_what_nothing_dominates(given_points: np.ndarray[Any, Any]) -> None:
    less = (given_points[:, None] <= given_points[None]).all(axis=2) & (given_points[:, None] < given_points[None]).any(
        2
    )
    assert np.array_equal(non_dominated(given_points), ~less.any(axis=0))
    numbers = fronts(given_points, len(given_points))
    assert numbers.min() == 1
    for number in range(2, numbers.max() + 1):  # each point is dominated by one in the front before
        assert less[numbers == number - 1][:, numbers == number].any(axis=0).all()


def test_a_large_front_takes_no_square_of_time() -> None:
    x = np.random.default_rng(0).random(200_000)
    assert non_dominated(np.stack([x, -x], axis=1)).all()


@pytest.mark.parametrize("static", [False, True])
def test_vasp_input_is_read_back_as_it_was_meant(graphs: GraphStore, static: bool, monkeypatch: Any) -> None:
    from pymatgen.io.vasp import Incar, Kpoints, Poscar  # noqa: PLC0415 - an extra

    monkeypatch.delenv("PMG_VASP_PSP_DIR", raising=False)
    for structure in structures_of(graphs)[:5]:
        files = vasp_files(structure, "0001-x", input_set(static=static))
        poscar = Poscar.from_str(files["POSCAR"])
        incar = Incar.from_str(files["INCAR"])
        assert len(incar["MAGMOM"]) == len(structure) == len(poscar.structure)
        assert Kpoints.from_str(files["KPOINTS"]).num_kpts >= 0
        assert incar["ENCUT"] == 520
        assert incar.get("NSW", 0) == (0 if static else 99)
        potcars = [name.split("_")[0] for name in files["POTCAR.spec"].split()]
        assert potcars == poscar.site_symbols  # one per element, in the order of POSCAR
        assert set(files) == {"INCAR", "KPOINTS", "POSCAR", "POTCAR.spec"}
        numbers = np.sort([site.specie.Z for site in poscar.structure])
        assert np.array_equal(numbers, np.sort(structure.atomic_number))
        assert np.isclose(poscar.structure.volume, structure.volume, rtol=1e-10, atol=0)


def test_vasp_folders_and_what_has_no_settings(data: Path, tmp_path: Path) -> None:
    with gzip.open(data / VALIDATION, "rt", newline="") as file:
        assert next(csv.DictReader(file))
    store = graphs_of_mp(data, tmp_path, 3)
    columns = scored_columns(store)
    columns |= {"status": np.zeros(3, dtype=np.uint8), "energy_above_hull": np.arange(3.0)}
    found = select(write_dataset(tmp_path / "s.zarr", store, columns), tmp_path / "out", formats="vasp")
    folders = sorted(path.name for path in (tmp_path / "out" / "vasp").iterdir())
    assert folders == found["file_name"].values.tolist()
    einsteinium = replace(structures_of(store)[0], atomic_number=np.full(len(structures_of(store)[0]), 99, np.uint8))
    with pytest.raises(Exception, match=r".+"):
        vasp_files(einsteinium, "x", input_set(static=False))
