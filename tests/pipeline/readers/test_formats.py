"""Formats: the stored structures are those that each format's own library reads from the same file."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import ase.db
import ase.io
import gemmi
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from equiscreen.pipeline import FeaturizeReport, GraphBlock, GraphStore, LabelMapping, Structure, featurize
from equiscreen.pipeline.structures.random_crystals import probe_structures
from monty.serialization import dumpfn
from pymatgen.core import Lattice, Molecule
from pymatgen.core import Structure as PymatgenStructure
from pymatgen.entries.computed_entries import ComputedStructureEntry
from pymatgen.io.cif import CifWriter
from pymatgen.io.vasp import Poscar

from ...conftest import ELEMENTS, cif_text

STRUCTURES = probe_structures(ELEMENTS, 6, seed=33)


def run(sources: object, out: Path, **settings: object) -> FeaturizeReport:
    report = featurize(sources, out, cutoff=4.0, scheduler="threads", **settings)
    assert report.read == report.stored + report.failed + report.duplicate
    return report


def structures(store: Path) -> list[Structure]:
    opened = GraphStore(store)
    block = opened.block(0, len(opened))
    return [block.structure(row) for row in range(len(opened))]


def ids(store: Path) -> list[str]:
    return [str(name) for name in GraphStore(store).column("structure_id").tolist()]


def assert_same(found: Sequence[Structure], expected: Sequence[Structure], atol: float = 1e-8) -> None:
    """Check that structures, including cell and orientation, agree to `atol` angstrom."""
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert mine.atomic_number.tolist() == other.atomic_number.tolist()
        assert mine.pbc.tolist() == other.pbc.tolist()
        assert np.allclose(mine.cell, other.cell, rtol=0, atol=atol)
        apart = mine.frac_coord - other.frac_coord
        apart -= np.where(mine.pbc, np.rint(apart), 0)  # 0 and 1 are equivalent
        assert np.allclose(apart @ mine.cell, 0, rtol=0, atol=atol)


def distances(structure: Structure) -> np.ndarray:
    return np.sort(np.linalg.norm(GraphBlock.from_structures([structure], 4.0).displacements(), axis=1))


def assert_same_distances(found: Sequence[Structure], expected: Sequence[Structure], atol: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert sorted(mine.atomic_number) == sorted(other.atomic_number)
        assert np.allclose(distances(mine), distances(other), rtol=0, atol=atol)


def to_pymatgen(structure: Structure) -> PymatgenStructure:
    return PymatgenStructure(structure.cell, structure.atomic_number.tolist(), structure.frac_coord)


def from_pymatgen(structure: PymatgenStructure) -> Structure:
    return Structure.from_fractional(structure.atomic_numbers, structure.lattice.matrix, structure.frac_coords)


ROCK_SALT = PymatgenStructure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
QUARTZ = PymatgenStructure.from_spacegroup(
    "P3_221", Lattice.hexagonal(4.913, 5.405), ["Si", "O"], [[0.4697, 0, 2 / 3], [0.4135, 0.2669, 0.7858]]
)


@pytest.mark.parametrize("crystal", [ROCK_SALT, QUARTZ], ids=["rock salt", "quartz"])
@pytest.mark.parametrize("symprec", [None, 1e-3])
def test_cif_by_pymatgen_with_and_without_symmetry(tmp_path: Path, crystal: PymatgenStructure, symprec: float) -> None:
    CifWriter(crystal, symprec=symprec, significant_figures=12).write_file(tmp_path / "s.cif")
    run(tmp_path / "s.cif", tmp_path / "g.zarr")
    assert_same_distances(structures(tmp_path / "g.zarr"), [from_pymatgen(crystal)])
    assert ids(tmp_path / "g.zarr") == ["s"]


def gemmi_cif(structure: Structure, name: str) -> str:
    small = gemmi.SmallStructure()
    small.name = name
    small.cell = gemmi.UnitCell(*structure.to_ase().cell.cellpar())
    small.spacegroup_hm = "P 1"
    for place, number in enumerate(structure.atomic_number):
        site = gemmi.SmallStructure.Site()
        site.element = gemmi.Element(int(number))
        site.type_symbol, site.label = site.element.name, f"{site.element.name}{place}"
        site.fract = gemmi.Fractional(*structure.frac_coord[place])
        small.add_site(site)
    return str(small.make_cif_block().as_string())


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", list(COMPRESSORS))
def test_cif_of_many_blocks_by_gemmi_compressed(tmp_path: Path, suffix: str) -> None:
    blocks = [gemmi_cif(s, f"s{i}") for i, s in enumerate(STRUCTURES)]
    blocks.insert(1, "data_global\n_publ_author_name 'A. Person'\n_note\n;\ndata_in_a_text is no block\n;\n")
    path = tmp_path / f"many.cif{suffix}"
    path.write_bytes(COMPRESSORS[suffix]("".join(blocks).encode()))
    mapping = LabelMapping(columns=("block",))
    assert run(path, tmp_path / "g.zarr", labels=mapping).read == len(STRUCTURES)
    assert_same_distances(structures(tmp_path / "g.zarr"), STRUCTURES)
    assert GraphStore(tmp_path / "g.zarr").column("block").tolist() == [f"s{i}" for i in range(len(STRUCTURES))]


@pytest.mark.parametrize(
    "writer", ["pymatgen", "pymatgen cartesian", "pymatgen selective", "ase", "ase direct", "fixed"]
)
def test_poscar(tmp_path: Path, writer: str) -> None:
    crystal = to_pymatgen(STRUCTURES[0]).get_sorted_structure()
    atoms = from_pymatgen(crystal).to_ase()
    path = tmp_path / "POSCAR"
    if writer.startswith("pymatgen"):
        selective = [[True, False, i % 2 == 0] for i in range(len(crystal))] if "selective" in writer else None
        poscar = Poscar(crystal, comment="[1] a comment", selective_dynamics=selective)
        poscar.write_file(path, direct="cartesian" not in writer, significant_figures=16)
    else:
        if writer == "fixed":
            atoms.set_constraint(FixAtoms([0]))
        ase.io.write(path, atoms, format="vasp", direct=writer == "ase direct")
    run(tmp_path, tmp_path / "g.zarr")
    expected = Structure.from_ase(ase.io.read(path, format="vasp"))
    assert_same(structures(tmp_path / "g.zarr"), [expected])
    assert_same_distances([expected], [STRUCTURES[0]])


def table_of_cifs() -> pd.DataFrame:
    rows = [{"name": f"s, {i}", "gap": i / 2, "cif": cif_text(s)} for i, s in enumerate(STRUCTURES)]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "kind", ["csv", "tsv", "semicolons.csv.gz", "crlf.csv", "parquet", "zstd.parquet", "one row a group"]
)
def test_tables_with_a_column_of_cifs(tmp_path: Path, kind: str) -> None:
    table, path = table_of_cifs(), tmp_path / f"s.{kind}"
    if "parquet" in kind or "group" in kind:
        table.to_parquet(
            path, compression="zstd" if "zstd" in kind else "snappy", row_group_size=1 if "group" in kind else 9
        )
    elif kind == "crlf.csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table.columns), quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(table.to_dict("records"))
    else:
        table.to_csv(path, sep={"csv": ",", "tsv": "\t"}.get(kind, ";"), index=kind == "csv")
    mapping = LabelMapping().with_inline(["gap=gap[eV]"])
    run(path, tmp_path / "g.zarr", labels=mapping, id_field="name")
    assert_same_distances(structures(tmp_path / "g.zarr"), STRUCTURES)
    assert ids(tmp_path / "g.zarr") == table["name"].tolist()
    block = GraphStore(tmp_path / "g.zarr").block(0, len(STRUCTURES))
    assert block.structure_labels["gap"].tolist() == table["gap"].tolist()


def optimade_rows() -> list[dict[str, object]]:
    """The columns of LeMat-Bulk."""
    return [
        {
            "immutable_id": f"agm{i}",
            "lattice_vectors": s.cell.tolist(),
            "cartesian_site_positions": s.positions.tolist(),
            "species_at_sites": s.to_ase().get_chemical_symbols(),
            "nsites": len(s),
            "nperiodic_dimensions": 3,
            "dimension_types": [1, 1, 1],
            "species": json.dumps(
                [
                    {"name": symbol, "chemical_symbols": [symbol], "concentration": [1.0]}
                    for symbol in sorted(set(s.to_ase().get_chemical_symbols()))
                ]
            ),
            "energy": -float(i),
        }
        for i, s in enumerate(STRUCTURES)
    ]


def atoms_rows() -> list[dict[str, object]]:
    """The columns of OMat24 and of ColabFit data sets."""
    rng = np.random.default_rng(5)
    return [
        {
            "configuration_id": f"CO_{i}",
            "cell": s.cell.tolist(),
            "positions": s.positions.tolist(),
            "atomic_numbers": s.atomic_number.tolist(),
            "pbc": [True, True, True],
            "energy": -float(i),
            "forces": rng.normal(size=(len(s), 3)).tolist(),
        }
        for i, s in enumerate(STRUCTURES)
    ]


def structure_rows(*, text: bool) -> list[dict[str, object]]:
    """The columns of MatPES."""
    dicts = [to_pymatgen(s).as_dict() for s in STRUCTURES]
    return [
        {
            "matpes_id": f"matpes-{i}",
            "structure": json.dumps(d) if text else {k: d[k] for k in ("@module", "@class", "lattice", "sites")},
            "energy": -float(i),
        }
        for i, d in enumerate(dicts)
    ]


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (optimade_rows(), "immutable_id"),
        (atoms_rows(), "configuration_id"),
        (structure_rows(text=True), "matpes_id"),
        (structure_rows(text=False), "matpes_id"),
    ],
    ids=["OPTIMADE names", "ASE names", "JSON text", "nested columns"],
)
def test_parquet_with_structures_in_columns(tmp_path: Path, rows: list[dict[str, object]], name: str) -> None:
    for row in rows:
        structure = row.get("structure")
        if isinstance(structure, dict):  # Arrow has no type for an empty dictionary
            structure["sites"] = [{k: v for k, v in site.items() if k != "properties"} for site in structure["sites"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "s.parquet")
    inline = ["energy=energy[eV]", *(["forces=forces"] if "forces" in rows[0] else [])]
    run(tmp_path / "s.parquet", tmp_path / "g.zarr", labels=LabelMapping().with_inline(inline), id_field=name)
    assert_same(structures(tmp_path / "g.zarr"), STRUCTURES)
    assert ids(tmp_path / "g.zarr") == [row[name] for row in rows]
    block = GraphStore(tmp_path / "g.zarr").block(0, len(rows))
    assert block.structure_labels["energy"].tolist() == [row["energy"] for row in rows]
    if "forces" in rows[0]:
        assert np.array_equal(block.atom_labels["forces"], np.concatenate([row["forces"] for row in rows]))


def test_csv_with_lists_as_json_text(tmp_path: Path) -> None:
    rows = [{key: json.dumps(value) for key, value in row.items()} for row in atoms_rows()]
    pd.DataFrame(rows).to_csv(tmp_path / "s.csv", index=False)
    run(
        tmp_path / "s.csv",
        tmp_path / "g.zarr",
        labels=LabelMapping().with_inline(["energy=energy[eV]", "forces=forces"]),
    )
    assert_same(structures(tmp_path / "g.zarr"), STRUCTURES)


def labelled(structure: Structure, seed: int) -> ase.Atoms:
    rng = np.random.default_rng(seed)
    atoms = structure.to_ase()
    stress = rng.normal(size=6) if structure.pbc.all() else None
    atoms.calc = SinglePointCalculator(
        atoms, energy=rng.normal(), forces=rng.normal(size=(len(atoms), 3)), stress=stress
    )
    return atoms


MOLECULE = Structure.from_cartesian([8, 1, 1], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
SLAB = Structure.from_cartesian([29, 29], [[0, 0, 0], [1.3, 1.3, 1.8]], np.diag([2.6, 2.6, 20]), (True, True, False))
IMAGES = [labelled(s, i) for i, s in enumerate([*STRUCTURES, MOLECULE, SLAB])]


def assert_labels(store: Path, images: Sequence[ase.Atoms], atol: float = 1e-8) -> None:
    block = GraphStore(store).block(0, len(images))
    energy = [atoms.get_potential_energy() for atoms in images]
    forces = np.concatenate([atoms.get_forces() for atoms in images])
    assert np.allclose(block.structure_labels["energy"], energy, rtol=0, atol=atol)
    assert np.allclose(block.atom_labels["forces"], forces, rtol=0, atol=atol)
    for row, atoms in enumerate(images):
        if atoms.pbc.all():
            expected = atoms.get_stress(voigt=False)
            assert np.allclose(block.structure_labels["stress"][row], expected, rtol=0, atol=atol)
        else:
            assert np.isnan(block.structure_labels["stress"][row]).all()


@pytest.mark.parametrize("kind", ["xyz", "extxyz.gz", "zip"])
def test_extended_xyz(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"s.{kind}"
    ase.io.write(path if kind != "zip" else tmp_path / "s.xyz", IMAGES, format="extxyz")
    expected = [Structure.from_ase(atoms) for atoms in ase.io.read(path if kind != "zip" else tmp_path / "s.xyz", ":")]
    images = ase.io.read(path if kind != "zip" else tmp_path / "s.xyz", ":")
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(tmp_path / "s.xyz", "deep/er/s.xyz")
            archive.writestr("README.txt", "not a structure")
    report = run(path, tmp_path / "g.zarr")
    assert_same(structures(tmp_path / "g.zarr"), expected)
    assert_labels(tmp_path / "g.zarr", images)
    assert [Path(name).name for name in report.aside] == ([] if kind != "zip" else ["s.zip::README.txt"])


def entries() -> list[ComputedStructureEntry]:
    return [
        ComputedStructureEntry(to_pymatgen(s), -float(i), entry_id=f"agm{i}", data={"mat_id": f"agm{i}", "spg": 1})
        for i, s in enumerate(STRUCTURES)
    ]


def summaries() -> list[dict[str, object]]:
    """Summary documents of the Materials Project API."""
    return [
        {
            "builder_meta": {"emmet_version": "0.86", "database_version": "2025"},
            "nsites": len(s),
            "elements": sorted(set(s.to_ase().get_chemical_symbols())),
            "material_id": f"mp-{i}",
            "origins": [{"name": "structure", "task_id": f"mp-{i}"}],
            "structure": to_pymatgen(s).as_dict(),
            "energy_per_atom": -float(i),
            "decomposes_to": None,
        }
        for i, s in enumerate(STRUCTURES)
    ]


def write_pymatgen_json(  # noqa: PLR0911 - one return per form
    kind: str, folder: Path
) -> tuple[Path, list[str] | None]:
    path, dicts = folder / "s.json", [to_pymatgen(s).as_dict() for s in STRUCTURES]
    names = [f"mp-{i}" for i in range(len(STRUCTURES))]
    if kind == "one structure each":
        for place, s in enumerate(STRUCTURES):
            (folder / f"{place}.json").write_text(to_pymatgen(s).to_json())
        return folder, None
    if kind == "list by monty":
        dumpfn([to_pymatgen(s) for s in STRUCTURES], path)
        return path, None
    if kind == "entries in bz2":
        path = folder / "alexandria_000.json.bz2"
        dumpfn({"entries": entries()}, path)
        return path, [f"agm{i}" for i in range(len(STRUCTURES))]
    if kind == "list of entries, indented":
        dumpfn(entries(), path, indent=2)
        return path, [f"agm{i}" for i in range(len(STRUCTURES))]
    if kind == "summary documents":
        dumpfn(summaries(), path)
        return path, names
    if kind == "answer of the Materials Project":
        path.write_text(json.dumps({"data": summaries(), "meta": {"total_doc": 6}, "links": [{"next": None}]}))
        return path, names
    if kind == "dictionary of records":
        path.write_text(json.dumps({name: {"structure": d, "E": 1.0} for name, d in zip(names, dicts, strict=True)}))
        return path, names
    assert kind.startswith("lines")
    text = "".join(f"{json.dumps(document)}\n" for document in summaries())
    path = folder / ("s.jsonl" if kind == "lines" else "s.jsonl.gz")
    path.write_bytes(text.encode() if kind == "lines" else gzip.compress(text.encode()))
    return path, names


@pytest.mark.parametrize(
    "kind",
    [
        "one structure each",
        "list by monty",
        "entries in bz2",
        "list of entries, indented",
        "summary documents",
        "answer of the Materials Project",
        "dictionary of records",
        "lines",
        "lines.gz",
    ],
)
def test_json_by_pymatgen(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    source, names = write_pymatgen_json(kind, tmp_path / "in")
    assert run(source, tmp_path / "g.zarr").stored == len(STRUCTURES)
    assert_same(structures(tmp_path / "g.zarr"), [from_pymatgen(to_pymatgen(s)) for s in STRUCTURES])
    assert names is None or ids(tmp_path / "g.zarr") == names


def test_molecules_slabs_and_oxidation_states_of_pymatgen(tmp_path: Path) -> None:
    water = Molecule(["O", "H", "H"], MOLECULE.positions, charge=0)
    slab = PymatgenStructure(Lattice(SLAB.cell, pbc=(True, True, False)), ["Cu", "Cu"], SLAB.frac_coord)
    salt = ROCK_SALT.copy().add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    dumpfn([water, slab, salt], tmp_path / "s.json")
    assert run(tmp_path / "s.json", tmp_path / "g.zarr").stored == 3
    assert_same(structures(tmp_path / "g.zarr"), [MOLECULE, SLAB, from_pymatgen(ROCK_SALT)])


@pytest.mark.parametrize("kind", ["db", "aselmdb"])
def test_databases_of_ase(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"s.{kind}"
    with ase.db.connect(path, type=kind) as database:
        for place, atoms in enumerate(IMAGES):
            database.write(
                atoms,
                key_value_pairs={"gap": place / 2, "name": f"n{place}"},
                data={"extra": {"dipole": [1, 2, place]}},
            )
        del database[2]  # leaves a gap in the ids
    images = [atoms for place, atoms in enumerate(IMAGES) if place != 1]
    mapping = LabelMapping().with_inline(["gap=gap[eV]", "dipole:3=extra.dipole[debye]"])
    before = path.read_bytes()
    report = run(path, tmp_path / "g.zarr", labels=mapping, id_field="name")
    assert path.read_bytes() == before
    assert report.stored == len(images)
    expected = [Structure.from_ase(atoms) for atoms in images]
    assert_same(structures(tmp_path / "g.zarr"), expected)
    assert_labels(tmp_path / "g.zarr", images, atol=1e-12)
    kept = [place for place in range(len(IMAGES)) if place != 1]
    block = GraphStore(tmp_path / "g.zarr").block(0, len(images))
    assert block.structure_labels["gap"].tolist() == [place / 2 for place in kept]
    assert block.structure_labels["dipole"].tolist() == [[1, 2, place] for place in kept]
    assert ids(tmp_path / "g.zarr") == [f"n{place}" for place in kept]


def test_a_response_of_an_optimade_server(tmp_path: Path) -> None:
    attributes = [{k: v for k, v in row.items() if k != "immutable_id"} for row in optimade_rows()]
    for item in attributes:
        item["species"] = json.loads(str(item["species"]))
    data = [{"id": f"o-{i}", "type": "structures", "attributes": item} for i, item in enumerate(attributes)]
    response = {
        "meta": {"api_version": "1.1.0", "data_returned": 6},
        "data": data,
        "links": {"next": None},
        "included": [],
    }
    (tmp_path / "s.json").write_text(json.dumps(response))
    assert run(tmp_path / "s.json", tmp_path / "g.zarr").stored == 6
    assert_same(structures(tmp_path / "g.zarr"), STRUCTURES)
    assert ids(tmp_path / "g.zarr") == [f"o-{i}" for i in range(6)]
    pd.DataFrame({"name": [row["id"] for row in data], "optimade": [json.dumps(row) for row in data]}).to_csv(
        tmp_path / "s.csv"
    )
    assert run(tmp_path / "s.csv", tmp_path / "h.zarr", id_field="name").stored == 6
    assert_same(structures(tmp_path / "h.zarr"), STRUCTURES)
