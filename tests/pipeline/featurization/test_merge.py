"""Appending to a store and merging stores give the same result as featurizing everything at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pyarrow.parquet as pq
import pytest
from equiscreen.pipeline import FeaturizeReport, GraphStore, LabelMapping, Structure, featurize, merge
from equiscreen.pipeline.errors import OutputExistsError, StoreError
from equiscreen.pipeline.featurization.task import FeaturizeTask, featurize_partition
from equiscreen.pipeline.runs.staging import Staging
from equiscreen.pipeline.store.schema import STATUS_OTHER_LABELS, STATUS_REPEATED_ID
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ...conftest import ELEMENTS, pymatgen_dict, write_extxyz, write_json

STRUCTURES = probe_structures(ELEMENTS, 8, seed=5)


def run(sources: object, out: Path, **settings: object) -> FeaturizeReport:
    report = featurize(sources, out, scheduler="threads", **{"cutoff": 4.0, **settings})
    assert report.read == report.stored + report.failed + report.duplicate
    return report


def assert_same_rows(a: Path, b: Path) -> None:
    """Check that two stores are equal, except for the provenance, which records how each was made."""
    found, expected = GraphStore(a), GraphStore(b)
    assert found.specs.keys() == expected.specs.keys()
    for name in expected.specs:
        x, y = found.column(name), expected.column(name)
        assert np.array_equal(x, y, equal_nan=y.dtype.kind == "f"), name
    for table in ("failures.parquet", "duplicates.parquet"):
        assert pq.read_table(a / table).equals(pq.read_table(b / table)), table
    assert found.attrs["counts"] == expected.attrs["counts"]
    assert found.verify() == []


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    first, second = write_extxyz(tmp_path / "a.extxyz", 6, seed=1), write_extxyz(tmp_path / "b.extxyz", 5, seed=2)
    with second.open("a") as file:  # a structure of the first file again, and one that fails
        ase.io.write(file, ase.io.read(first, 3), format="extxyz")
        file.write("junk\n")
    return [first, second]


def test_appending_is_featurizing_all_at_once(sources: list[Path], tmp_path: Path) -> None:
    run(sources, tmp_path / "whole.zarr")
    run(sources[0], tmp_path / "g.zarr")
    report = run(sources[1], tmp_path / "g.zarr", append=True, cutoff=None)
    assert (report.read, report.stored, report.failed, report.duplicate, report.in_store) == (7, 5, 1, 1, 11)
    assert_same_rows(tmp_path / "g.zarr", tmp_path / "whole.zarr")
    assert GraphStore(tmp_path / "g.zarr").attrs["appended_to"][0]["counts"]["stored"] == 6


def test_merging_is_featurizing_all_at_once(sources: list[Path], tmp_path: Path) -> None:
    run(sources, tmp_path / "whole.zarr")
    for name, source in zip("ab", sources, strict=True):
        run(source, tmp_path / f"{name}.zarr")
    report = merge([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "g.zarr", scheduler="threads")
    assert (report.read, report.stored, report.failed, report.duplicate) == (13, 11, 1, 1)
    assert_same_rows(tmp_path / "g.zarr", tmp_path / "whole.zarr")


def test_many_spans_of_a_store(sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("equiscreen.pipeline.store.schema", fromlist=["x"]).CHUNK_ROWS, "structure", 4)
    run(sources, tmp_path / "whole.zarr")
    run(sources[0], tmp_path / "g.zarr")
    run(sources[1], tmp_path / "g.zarr", append=True)
    assert_same_rows(tmp_path / "g.zarr", tmp_path / "whole.zarr")


def test_an_appended_structure_with_another_label_stays_and_is_flagged(tmp_path: Path) -> None:
    mapping = LabelMapping().with_inline(["energy=E[eV]"])
    same = pymatgen_dict(STRUCTURES[0])
    write_json(tmp_path / "a.json", [{"id": "x", "s": same, "E": 1.0}, {"id": "y", "s": pymatgen_dict(STRUCTURES[1])}])
    write_json(tmp_path / "b.json", [{"id": "x", "s": same, "E": 2.0}, {"id": "z", "s": same, "E": 1.0}])
    run(tmp_path / "a.json", tmp_path / "g.zarr", labels=mapping)
    report = run(tmp_path / "b.json", tmp_path / "g.zarr", labels=mapping, append=True)
    assert (report.stored, report.duplicate, report.in_store) == (1, 1, 3)
    status = GraphStore(tmp_path / "g.zarr").column("status")
    assert (status & STATUS_OTHER_LABELS).astype(bool).tolist() == [False, False, True]
    assert (status & STATUS_REPEATED_ID).astype(bool).tolist() == [True, False, True]


def test_appending_leaves_what_is_there_as_it_is(tmp_path: Path) -> None:
    same = pymatgen_dict(STRUCTURES[0])
    write_json(tmp_path / "a.json", [{"id": i, "s": same, "E": float(i)} for i in range(2)])
    write_json(tmp_path / "b.json", [{"id": "new", "s": pymatgen_dict(STRUCTURES[1])}, {"id": "again", "s": same}])
    run(tmp_path / "a.json", tmp_path / "g.zarr", labels=LabelMapping().with_inline(["energy=E[eV]"]))
    before = {name: GraphStore(tmp_path / "g.zarr").column(name) for name in GraphStore(tmp_path / "g.zarr").specs}
    report = run(tmp_path / "b.json", tmp_path / "g.zarr", append=True)
    assert (report.stored, report.duplicate, report.in_store) == (1, 1, 3)
    after = GraphStore(tmp_path / "g.zarr")
    for name, values in before.items():
        assert np.array_equal(after.column(name)[: len(values)], values), name


def test_labels_and_columns_that_only_one_store_has_are_empty_elsewhere(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [{"s": pymatgen_dict(STRUCTURES[0]), "gap": 1.5, "name": "first"}])
    write_extxyz(tmp_path / "b.extxyz", 2, seed=8)
    run(tmp_path / "a.json", tmp_path / "a.zarr", labels=LabelMapping().with_inline(["gap=gap[eV]"], ["name"]))
    run(tmp_path / "b.extxyz", tmp_path / "b.zarr")
    merge([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "g.zarr", scheduler="threads")
    store = GraphStore(tmp_path / "g.zarr")
    assert np.array_equal(store.column("gap"), [1.5, np.nan, np.nan], equal_nan=True)
    assert np.isnan(store.column("energy")).tolist() == [True, False, False]
    assert store.column("name").tolist() == ["first", "", ""]
    assert len(store.column("forces")) == store.n_atoms.sum()


def test_stores_that_do_not_fit_are_refused(sources: list[Path], tmp_path: Path) -> None:
    run(sources[0], tmp_path / "a.zarr")
    run(sources[1], tmp_path / "b.zarr", cutoff=5.0)
    with pytest.raises(StoreError, match=r"has a cutoff of 5.0 angstrom, but .*a.zarr has 4.0"):
        merge([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "g.zarr", scheduler="threads")
    with pytest.raises(StoreError, match="append without --cutoff"):
        run(sources[1], tmp_path / "a.zarr", append=True, cutoff=5.0)
    for name, unit in (("c", "eV"), ("d", "GPa")):
        write_json(tmp_path / f"{name}.json", [{"s": pymatgen_dict(STRUCTURES[3]), "x": 1.5}])
        run(tmp_path / f"{name}.json", tmp_path / f"{name}.zarr", labels=LabelMapping().with_inline([f"x=x[{unit}]"]))
    with pytest.raises(StoreError, match=r"'x' has shape \[\] and unit GPa, but shape \[\] and unit eV in the data"):
        merge([tmp_path / "c.zarr", tmp_path / "d.zarr"], tmp_path / "g.zarr", scheduler="threads")
    with pytest.raises(StoreError, match="no such store"):
        run(sources[1], tmp_path / "nothing.zarr", append=True)
    with pytest.raises(OutputExistsError, match="is read by this run"):
        merge([tmp_path / "a.zarr"], tmp_path / "a.zarr", overwrite=True, scheduler="threads")


def test_a_store_being_replaced_when_the_run_was_killed_comes_back(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(sources, tmp_path / "whole.zarr")
    run(sources[0], tmp_path / "g.zarr")

    def killed(staging: Staging) -> None:
        (tmp_path / "g.zarr").rename(staging.folder / "replaced")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "put_in_place", killed)
        with pytest.raises(KeyboardInterrupt):
            run(sources[1], tmp_path / "g.zarr", append=True)
    assert not (tmp_path / "g.zarr").exists()
    report = run(sources[1], tmp_path / "g.zarr", append=True)
    assert (report.stored, report.in_store) == (5, 11)
    assert_same_rows(tmp_path / "g.zarr", tmp_path / "whole.zarr")


@pytest.mark.parametrize("again", ["the same", "other words"])
def test_a_kill_during_the_last_clean_up_costs_nothing(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    run(sources, tmp_path / "whole.zarr")
    run(sources[0], tmp_path / "g.zarr")

    def killed(staging: Staging) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "discard", killed)
        with pytest.raises(KeyboardInterrupt):
            run(sources[1], tmp_path / "g.zarr", append=True)
    if again == "the same":
        assert run(sources[1], tmp_path / "g.zarr", append=True).in_store == 11
    else:
        assert run(sources[1], tmp_path / "g.zarr", append=True, limit=1).duplicate == 1
    assert GraphStore(tmp_path / "g.zarr").column("structure_id").tolist() == (
        GraphStore(tmp_path / "whole.zarr").column("structure_id").tolist()
    )
    assert not (tmp_path / "g.zarr.partial").exists()


def test_parts_of_workers_whose_client_is_dead_stay_out_of_a_run_with_other_settings(tmp_path: Path) -> None:
    """On an external cluster, a worker finishes its task after the client was killed, and writes its part late."""
    write_json(tmp_path / "s.json", [{"s": pymatgen_dict(s), "a": 1.0, "b": 2.0} for s in STRUCTURES])
    paths = (tmp_path / "s.json", tmp_path / "g.zarr")
    late: list[FeaturizeTask] = []

    def capture_tasks(*arguments: Any) -> None:
        late.extend(arguments[2])
        raise ConnectionError("the client is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("equiscreen.pipeline.store.writer.StoreRun.make_parts", capture_tasks)
        with pytest.raises(ConnectionError):
            run(*paths, labels=LabelMapping().with_inline(["energy=a[eV]"]))
    featurize_partition(late[0])
    with pytest.raises(OutputExistsError, match=r"different settings \(labels\)"):
        run(*paths, labels=LabelMapping().with_inline(["energy=b[eV]"]))
    run(*paths, labels=LabelMapping().with_inline(["energy=b[eV]"]), overwrite=True)
    assert set(GraphStore(tmp_path / "g.zarr").column("energy").tolist()) == {2.0}


def test_labels_that_are_not_a_number_are_no_labels(tmp_path: Path) -> None:
    records = [
        {"s": pymatgen_dict(s), "E": x} for s, x in zip(STRUCTURES, (float("nan"), 1.0, float("inf")), strict=False)
    ]
    write_json(tmp_path / "s.json", records)
    mapping = LabelMapping().with_inline(["energy=E[eV]"])
    report = run(tmp_path / "s.json", tmp_path / "g.zarr", labels=mapping)
    assert (report.stored, report.failed) == (2, 1)
    assert "infinite" in pq.read_table(tmp_path / "g.zarr" / "failures.parquet").to_pylist()[0]["reason"]
    again = run(tmp_path / "s.json", tmp_path / "g.zarr", labels=mapping, append=True)
    assert (again.stored, again.duplicate) == (0, 2)


def in_another_setting(structure: Structure, seed: int) -> Structure:
    """The same crystal in a cell of twice the size, rotated, shifted, and with its sites in another order."""
    rng = np.random.default_rng(seed)
    atoms = structure.to_ase().repeat((1, 2, 1))
    atoms.rotate(rng.uniform(0, 180), rng.normal(size=3), rotate_cell=True)
    atoms.translate(rng.normal(size=3))
    return Structure.from_ase(atoms[rng.permutation(len(atoms))])


def test_the_same_crystal_in_another_guise_counts_as_one_if_wanted(tmp_path: Path) -> None:
    copies = [in_another_setting(structure, seed) for seed, structure in enumerate(STRUCTURES[:4])]
    source = tmp_path / "s.extxyz"
    ase.io.write(source, [s.to_ase() for s in (*STRUCTURES, *copies)], format="extxyz")
    exact = run(source, tmp_path / "exact.zarr")
    assert (exact.stored, exact.duplicate) == (12, 0)
    crystal = run(source, tmp_path / "crystal.zarr", dedup="crystal")
    assert (crystal.stored, crystal.duplicate) == (8, 4)
    rows = pq.read_table(tmp_path / "crystal.zarr" / "duplicates.parquet").to_pylist()
    assert [(r["structure_id"], r["duplicate_of"]) for r in rows] == [(f"s:{8 + i}", f"s:{i}") for i in range(4)]
    merged = merge([tmp_path / "exact.zarr"], tmp_path / "m.zarr", dedup="crystal", scheduler="threads")
    assert (merged.stored, merged.duplicate) == (8, 4)
