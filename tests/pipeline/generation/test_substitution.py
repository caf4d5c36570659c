"""Candidates by ion substitution: neutral, likely, plausible in volume, distinct and reproducible."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import ase.io
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from ase.build import bulk, molecule
from ase.data import chemical_symbols
from equiscreen.__main__ import main
from equiscreen.pipeline import GraphStore, Structure, featurize
from equiscreen.pipeline.errors import ConfigError, EquiscreenError, OutputExistsError, SourceError
from equiscreen.pipeline.generation.generate import CANDIDATE_SCHEMA, generate, write_candidates
from equiscreen.pipeline.generation.ions import ion_table
from equiscreen.pipeline.generation.prototypes import load_prototypes
from equiscreen.pipeline.generation.substitution import Candidate, substitute
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_prediction.substitution_probability import SubstitutionProbability
from pymatgen.core import Species
from scipy.spatial.transform import Rotation

Prototypes = list[tuple[str, Structure]]
SALT = [("salt", Structure.from_ase(bulk("NaCl", "rocksalt", a=5.64)))]
# Lattice constants of rocksalt crystals at room temperature, angstrom (CRC Handbook of Chemistry and Physics).
ROCKSALT = {"LiF": 4.02, "LiCl": 5.13, "NaF": 4.62, "NaBr": 5.97, "KF": 5.34, "KCl": 6.29, "KBr": 6.60, "RbCl": 6.58}


@pytest.fixture(scope="module")
def aflow() -> Prototypes:
    return load_prototypes()


@pytest.fixture(scope="module")
def model() -> SubstitutionProbability:
    return SubstitutionProbability()  # takes a second


def first(prototypes: Prototypes, count: int, **options: object) -> list[Candidate]:
    return list(substitute(prototypes, count, **options))  # type: ignore[arg-type]


def hashes(candidates: Sequence[Candidate]) -> list[bytes]:
    return [candidate.structure.content_hash() for candidate in candidates]


@given(seed=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_candidates_are_neutral_and_as_likely_as_pymatgen_says(
    aflow: Prototypes, model: SubstitutionProbability, seed: int
) -> None:
    parents = dict(aflow)
    for candidate in first(aflow, 100, seed=seed):
        structure, parent = candidate.structure, parents[candidate.prototype]
        old, new = zip(*[(Species.from_str(a), Species.from_str(b)) for a, b in candidate.substitutions], strict=True)
        becomes = {a.Z: b for a, b in zip(old, new, strict=True)}
        assert len({ion.Z for ion in new}) == len(new)
        assert structure.atomic_number.tolist() == [becomes[z].Z for z in parent.atomic_number.tolist()]
        assert sum(becomes[z].oxi_state for z in parent.atomic_number.tolist()) == 0
        assert old != new
        assert candidate.probability == pytest.approx(model.cond_prob_list(new, old))


def test_the_matrix_is_pymatgens(model: SubstitutionProbability) -> None:
    table = ion_table()
    assert len(table.name) == len(model.species)
    for old, new in np.random.default_rng(0).integers(len(table.name), size=(300, 2)):
        expected = model.cond_prob(table.name[new], table.name[old])
        assert table.probability[old, new] == pytest.approx(expected, rel=1e-9)
    assert np.allclose(table.probability.sum(axis=1), 1)
    assert (table.radius > 0.2).all()
    assert (table.radius < 2.5).all()


def test_the_first_draw_follows_the_probabilities() -> None:
    pool = {c.substitutions: c.probability for c in first(SALT, 400)}
    likeliest = max(pool, key=pool.__getitem__)
    trials = 1000
    hits = sum(next(substitute(SALT, 1, seed=seed)).substitutions == likeliest for seed in range(trials))
    expected = pool[likeliest] / sum(pool.values())
    assert abs(hits / trials - expected) < 5 * math.sqrt(expected * (1 - expected) / trials)


@given(turn=st.integers(0, 2**16))
@settings(max_examples=5, deadline=None)
def test_candidates_turn_and_permute_with_the_prototype(aflow: Prototypes, turn: int) -> None:
    rotation = Rotation.random(rng=turn).as_matrix()
    name, crystal = next((n, s) for n, s in aflow[turn % 200 :] if usable(s))
    order = np.random.default_rng(turn).permutation(len(crystal))
    turned = Structure.from_fractional(
        crystal.atomic_number[order], crystal.cell @ rotation.T, crystal.frac_coord[order], crystal.pbc
    )
    plain, moved = first([(name, crystal)], 5), first([(name, turned)], 5)
    for a, b in zip(plain, moved, strict=True):
        assert a.substitutions == b.substitutions
        assert (a.structure.atomic_number[order] == b.structure.atomic_number).all()
        assert np.allclose(a.structure.cell @ rotation.T, b.structure.cell, rtol=0, atol=1e-12)
        assert np.array_equal(a.structure.frac_coord[order], b.structure.frac_coord)


def usable(structure: Structure) -> bool:
    try:
        substitute([("x", structure)], 1)
    except SourceError:
        return False
    return True


def test_equal_seeds_give_equal_bytes(aflow: Prototypes, tmp_path: Path) -> None:
    files = {}
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        files[name] = tmp_path / f"{name}.parquet"
        assert write_candidates(substitute(aflow, 300, seed=seed), files[name]) == 300
    assert files["a"].read_bytes() == files["b"].read_bytes()
    assert files["a"].read_bytes() != files["c"].read_bytes()


@given(few=st.integers(0, 120))
@settings(max_examples=10, deadline=None)
def test_fewer_candidates_are_the_first_of_more(few: int) -> None:
    more = first(SALT, 120, seed=3)
    assert hashes(first(SALT, few, seed=3)) == hashes(more)[:few]


def test_candidates_come_as_they_are_asked_for() -> None:
    assert len(list(islice(substitute(SALT, 10**9), 3))) == 3


def test_no_two_are_equal_and_none_is_a_prototype(aflow: Prototypes) -> None:
    twice = [*aflow, *((f"{name} again", structure) for name, structure in aflow)]
    found = first(twice, 3000)
    assert len(set(hashes(found))) == 3000
    assert len({candidate.name for candidate in found}) == 3000
    assert not set(hashes(found)) & {structure.content_hash() for _, structure in aflow}


def test_when_substitutions_are_used_up_copies_follow() -> None:
    found = first(SALT, 1000, min_probability=1e-3)
    assert len(set(hashes(found))) == 1000
    originals = {c.substitutions: c.structure for c in found if c.copy == 0}
    assert 10 < len(originals) < 200
    assert [c.copy for c in found] == sorted(c.copy for c in found)
    for candidate in found[len(originals) :]:
        original = originals[candidate.substitutions]
        linear = (candidate.structure.volume / original.volume) ** (1 / 3)
        assert abs(linear - 1) <= 0.03 + 1e-12
        shift = candidate.structure.frac_coord - original.frac_coord
        moved = (shift - np.rint(shift)) @ candidate.structure.cell
        assert 0 < np.linalg.norm(moved, axis=1).max() < 8 * 0.05  # standard deviation 0.05 angstrom along each axis


def test_without_strain_and_rattle_the_end_is_said() -> None:
    stream = substitute(SALT, 10**6, min_probability=1e-3, max_strain=0.0, rattle=0.0)
    found: list[Candidate] = []
    with pytest.raises(SourceError, match="distinct candidates"):
        found.extend(stream)
    assert len(found) == sum(c.copy == 0 for c in first(SALT, 1000, min_probability=1e-3))


@pytest.mark.filterwarnings("ignore:No .*ionic radius")
def test_volumes_follow_the_ionic_radii(aflow: Prototypes) -> None:
    parents = dict(aflow)
    for candidate in first(aflow, 2000):
        parent, structure = parents[candidate.prototype], candidate.structure
        assert 2 < structure.volume / len(structure) < 250  # diamond has 5.7, caesium 118
        old, new = zip(*[map(Species.from_str, pair) for pair in candidate.substitutions], strict=True)
        if candidate.copy or None in [ion.ionic_radius for ion in (*old, *new)]:
            continue
        count = [int((parent.atomic_number == ion.Z).sum()) for ion in old]
        radii = [sum(n * float(ion.ionic_radius) for n, ion in zip(count, ions, strict=True)) for ions in (old, new)]
        assert structure.volume / parent.volume == pytest.approx((radii[1] / radii[0]) ** 3, rel=1e-9)
        assert np.array_equal(structure.frac_coord, parent.frac_coord)


def test_volumes_of_real_salts_are_met() -> None:
    found = first(SALT, 200, elements=("Li", "Na", "K", "Rb", "F", "Cl", "Br"), min_probability=1e-5)
    edges = {formula(c.structure): (4 * c.structure.volume) ** (1 / 3) for c in found if c.copy == 0}
    for name, edge in ROCKSALT.items():
        assert edges[name] == pytest.approx(edge, rel=0.04), name


def formula(structure: Structure) -> str:
    return "".join(chemical_symbols[z] for z in structure.atomic_number)


def test_only_the_elements_wanted(aflow: Prototypes) -> None:
    wanted = {"Li", "Na", "Ti", "Zr", "O", "S"}
    found = first(aflow, 400, elements=wanted)
    assert {chemical_symbols[z] for c in found for z in c.structure.atomic_number} <= wanted
    assert len({c.prototype for c in found}) > 5


@pytest.mark.parametrize("size", [2, 5, 10])
def test_only_so_many_atoms(aflow: Prototypes, size: int) -> None:
    found = first(aflow, 300, max_atoms=size)
    assert max(len(c.structure) for c in found) <= size
    assert {c.prototype for c in found} <= {name for name, structure in aflow if len(structure) <= size}


@pytest.mark.parametrize(
    ("prototypes", "options", "message"),
    [
        ([("Cu", Structure.from_ase(bulk("Cu")))], {}, r"no prototype \(of 1\) can be assigned oxidation states"),
        ([("B2", Structure.from_ase(bulk("CuZn", "cesiumchloride", a=2.95)))], {}, "oxidation states"),
        ([("water", Structure.from_ase(molecule("H2O")))], {}, "oxidation states"),
        ([], {}, r"no prototype \(of 0\)"),
        (SALT, {"max_atoms": 1}, "crystals of at most 1 atoms"),
        (SALT, {"elements": ["He"]}, r"no prototype \(of 1\) has a neutral substitution using only He"),
        (SALT, {"min_probability": 0.9}, "probability of 0.9 or more"),
    ],
)
def test_useless_prototypes_say_why(prototypes: Prototypes, options: dict[str, object], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        first(prototypes, 1, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"elements": ["Xx"]},
        {"elements": []},
        {"seed": -1},
        {"min_probability": 0.0},
        {"max_strain": -0.1},
        {"rattle": -1.0},
    ],
)
def test_settings_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        first(SALT, 1, **options)


def test_mixed_valence_and_huge_formulas_are_left_out() -> None:
    magnetite = Structure.from_fractional([26] * 3 + [8] * 4, np.eye(3) * 6, np.random.default_rng(0).random((7, 3)))
    carbon = [6] * 53 + [1] * 40 + [8] * 11 + [25] * 17
    huge = Structure.from_fractional(carbon, np.eye(3) * 12, np.random.default_rng(0).random((len(carbon), 3)))
    found = first([("magnetite", magnetite), ("huge", huge), *SALT], 50)
    assert {c.prototype for c in found} == {"salt"}


def test_parquet_holds_the_candidates(aflow: Prototypes, tmp_path: Path) -> None:
    candidates = first(aflow, 250, seed=5)
    path = tmp_path / "deep" / "c.parquet"
    assert write_candidates(candidates, path, rows_per_group=100) == 250
    file = pq.ParquetFile(path)
    assert file.schema_arrow.equals(CANDIDATE_SCHEMA)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [100, 100, 50]
    for row, candidate in zip(file.read().to_pylist(), candidates, strict=True):
        structure = candidate.structure
        assert row["id"] == candidate.name
        assert row["id"].startswith(f"{candidate.prototype}-")
        assert row["prototype"] == candidate.prototype
        assert row["substitution_probability"] == candidate.probability
        assert row["species_at_sites"] == [chemical_symbols[z] for z in structure.atomic_number]
        assert row["lattice_vectors"] == structure.cell.tolist()
        assert row["cartesian_site_positions"] == structure.positions.tolist()


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    def stops() -> Iterator[Candidate]:
        yield from first(SALT, 30)
        raise KeyboardInterrupt

    path = tmp_path / "c.parquet"
    with pytest.raises(KeyboardInterrupt):
        write_candidates(stops(), path, rows_per_group=10)
    assert not list(tmp_path.iterdir())
    path.write_text("PAR1 mine")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_candidates(first(SALT, 3), path)
    with pytest.raises(KeyboardInterrupt):
        write_candidates(stops(), path, rows_per_group=10, overwrite=True)
    assert path.read_text() == "PAR1 mine"
    write_candidates(first(SALT, 3), path, overwrite=True)
    assert pq.read_table(path).num_rows == 3
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputExistsError, match="folder"):
        write_candidates(first(SALT, 3), tmp_path, overwrite=True)


def test_a_graph_store_gives_prototypes(tmp_path: Path) -> None:
    crystals = [bulk("NaCl", "rocksalt", a=5.64), bulk("ZnS", "zincblende", a=5.41), bulk("Cu")]
    ase.io.write(tmp_path / "s.extxyz", crystals, format="extxyz")
    featurize(tmp_path / "s.extxyz", tmp_path / "g.zarr", scheduler="threads")
    found = load_prototypes([tmp_path / "g.zarr"])
    assert [name for name, _ in found] == GraphStore(tmp_path / "g.zarr").column("structure_id").tolist()
    assert [formula(structure) for _, structure in found] == ["NaCl", "ZnS", "Cu"]
    fsspec.filesystem("memory").put(str(tmp_path / "g.zarr"), "/prototypes.zarr", recursive=True)
    assert [name for name, _ in load_prototypes(["memory://prototypes.zarr"])] == [name for name, _ in found]
    report = generate([tmp_path / "g.zarr"], tmp_path / "c.parquet", 100)
    assert (report.read, report.usable, report.written) == (3, 2, 100)
    for words in ("100 candidates", "2 of 3 prototypes", "candidates/s"):
        assert words in str(report)


def test_other_sources_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "s.cif").write_text("data_x\n")
    with pytest.raises(SourceError, match=r"equiscreen featurize .*s\.cif"):
        load_prototypes([tmp_path / "s.cif"])
    with pytest.raises(EquiscreenError, match="no such store"):
        load_prototypes([tmp_path / "none.zarr"])


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["equiscreen", "generate", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    path = tmp_path / "c.parquet"
    words = ("--out", str(path), "--count", "200", "--seed", "4", "--elements", "Li, Na,O,F", "--max-atoms", "20")
    code, out, _ = run(*words)
    assert code == 0
    assert out.count("\n") == 1
    assert "200 candidates" in out
    table = pq.read_table(path).to_pydict()
    assert {symbol for row in table["species_at_sites"] for symbol in row} <= {"Li", "Na", "O", "F"}
    assert max(map(len, table["species_at_sites"])) <= 20
    code, _, err = run(*words)
    assert code == 1
    assert err.count("\n") == 1
    assert "--overwrite" in err
    assert run(*words, "--overwrite")[0] == 0
    assert "featurize" in run("--help")[1]
