"""Featurization: every input format, every fault, and the counts read = stored + failed + duplicate."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import resource
from pathlib import Path

import ase.io
import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from distributed import LocalCluster
from equiscreen.pipeline import FeaturizeReport, GraphBlock, GraphStore, LabelMapping, ReadOptions, Structure, featurize
from equiscreen.pipeline.errors import LabelError, OutputExistsError, SourceError, StoreError
from equiscreen.pipeline.featurization.estimate import estimate
from equiscreen.pipeline.featurization.partitions import Plan
from equiscreen.pipeline.runs.marks import write_mark
from equiscreen.pipeline.sources.discovery import find_files
from equiscreen.pipeline.store import writer as module
from equiscreen.pipeline.store.schema import STATUS_ISOLATED_ATOMS
from equiscreen.pipeline.store.writer import StoreWriter
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ...conftest import ELEMENTS, cif_text, pymatgen_dict, write_extxyz, write_json

STRUCTURES = probe_structures(ELEMENTS, 9, seed=21)


def run(sources: object, out: Path, **settings: object) -> FeaturizeReport:
    report = featurize(sources, out, cutoff=4.0, scheduler="threads", **settings)
    assert report.read == report.stored + report.failed + report.duplicate
    return report


def failures(store: Path) -> list[dict[str, object]]:
    return pq.read_table(store / "failures.parquet").to_pylist()


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def cif_folder(path: Path) -> Path:
    (path / "deeper").mkdir(parents=True)
    for i, structure in enumerate(STRUCTURES):
        (path / ("deeper" if i % 2 else ".") / f"s{i}.cif").write_text(cif_text(structure))
    return path


def make_source(kind: str, folder: Path) -> Path:
    rows = [{"name": f"s{i}", "gap": f"{i / 2}", "cif": cif_text(s)} for i, s in enumerate(STRUCTURES)]
    dicts = [pymatgen_dict(s) for s in STRUCTURES]
    images = [s.to_ase() for s in STRUCTURES]
    if kind == "folder of CIFs":
        return cif_folder(folder / "cifs")
    if kind == "CSV":
        return write_csv(folder / "s.csv", rows)
    if kind == "CSV.gz":
        return write_csv(folder / "s.csv.gz", rows)
    if kind == "extxyz":
        ase.io.write(folder / "s.extxyz", images)
        return folder / "s.extxyz"
    if kind == "list of structures":
        return write_json(folder / "s.json", dicts)
    path = folder / "s.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump([{"id": i, "thing": d, "gap": i / 2} for i, d in enumerate(dicts)], file)
    return path


@pytest.mark.parametrize(
    "kind", ["folder of CIFs", "CSV", "CSV.gz", "extxyz", "list of structures", "records in JSON.gz"]
)
def test_every_format_gives_the_same_graphs(tmp_path: Path, kind: str) -> None:
    report = run(make_source(kind, tmp_path), tmp_path / "g.zarr")
    assert (report.read, report.stored) == (9, 9)
    store = GraphStore(tmp_path / "g.zarr")
    found = store.block(0, 9)
    expected = GraphBlock.from_structures(STRUCTURES, 4.0)
    order = np.argsort(store.column("source").tolist(), kind="stable")
    by_name = {str(s): i for i, s in enumerate(store.column("structure_id").tolist())}
    if kind == "folder of CIFs":
        order = np.array([by_name[f"s{i}"] for i in range(9)])
    found = found.take(order)
    assert np.array_equal(found.n_atoms, expected.n_atoms)
    assert np.array_equal(found.n_edges, expected.n_edges)
    # CIF keeps lengths and angles but not the orientation, so compare distances.
    mine = np.sort(np.linalg.norm(found.displacements(), axis=1))
    assert np.allclose(mine, np.sort(np.linalg.norm(expected.displacements(), axis=1)), rtol=0, atol=1e-6)


def test_a_single_cif_and_a_single_structure(tmp_path: Path) -> None:
    (tmp_path / "one.cif").write_text(cif_text(STRUCTURES[0]))
    write_json(tmp_path / "two.json", pymatgen_dict(STRUCTURES[1]))
    report = run([tmp_path / "one.cif", tmp_path / "two.json"], tmp_path / "g.zarr")
    assert report.stored == 2
    assert GraphStore(tmp_path / "g.zarr").column("structure_id").tolist() == ["one", "two:0"]


def test_labels_of_extended_xyz_arrive(tmp_path: Path) -> None:
    source = write_extxyz(tmp_path / "s.extxyz", 6)
    run(source, tmp_path / "g.zarr")
    images = ase.io.read(source, ":")
    block = GraphStore(tmp_path / "g.zarr").block(0, 6)
    assert np.allclose(block.structure_labels["energy"], [a.get_potential_energy() for a in images])
    assert np.allclose(block.atom_labels["forces"], np.concatenate([a.get_forces() for a in images]))
    assert np.allclose(block.structure_labels["stress"], [a.get_stress(voigt=False) for a in images], atol=1e-8)


def test_xarray_opens_the_store_with_units_and_columns(tmp_path: Path) -> None:
    mapping = LabelMapping().with_inline(["gap=gap[eV]"], ["name"])
    run(make_source("CSV", tmp_path), tmp_path / "g.zarr", labels=mapping, id_field="name")
    data = xr.open_zarr(tmp_path / "g.zarr")
    assert data["cell"].attrs["units"] == "angstrom"
    assert data["gap"].attrs["units"] == "eV"
    assert data["gap"].values.tolist() == [i / 2 for i in range(9)]
    assert data["structure_id"].values.tolist() == data["name"].values.tolist() == [f"s{i}" for i in range(9)]
    meanings = data["status"].attrs["flag_meanings"].split()
    assert dict(zip(meanings, data["status"].attrs["flag_masks"], strict=True))["isolated_atoms"] == 2
    assert data["image"].dims == ("edge", "cartesian")
    assert int(data["n_neighbors"].sum()) == data.sizes["edge"]
    assert data.attrs["counts"] == {"read": 9, "stored": 9, "failed": 0, "duplicate": 0}
    assert data.drop_dims(["atom", "edge"])[["n_atoms", "cell"]].to_dataframe().notna().all().all()


def test_molecules_and_mixed_periodicity(tmp_path: Path) -> None:
    water = ase.Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    slab = ase.Atoms("Cu2", positions=[[0, 0, 0], [1.3, 1.3, 1.8]], cell=[2.6, 2.6, 0], pbc=(True, True, False))
    for atoms in (water, slab):
        atoms.info["energy"] = -1.0
    ase.io.write(tmp_path / "m.xyz", [water, slab], format="extxyz")
    run(tmp_path / "m.xyz", tmp_path / "g.zarr")
    block = GraphStore(tmp_path / "g.zarr").block(0, 2)
    assert block.pbc.tolist() == [[False] * 3, [True, True, False]]
    assert np.array_equal(block.cell[0], np.eye(3))
    assert np.allclose(block.structure(0).positions, water.positions)
    assert block.n_edges[0] == 6
    assert set(block.structure_labels) == {"energy"}  # the files have no other labels


BAD_CIF = {
    "CIF does not parse": "data_x\nloop_\n_a\n_b\n1\n",
    "unknown element": cif_text(STRUCTURES[0]).replace("Au ", "Qq ").replace("Cu ", "Qq ").replace("Al ", "Qq "),
    "coordinates missing": cif_text(STRUCTURES[0]).replace(f"{STRUCTURES[0].frac_coord[0, 0]:.12f}", "?"),
    "invalid cell parameter": cif_text(STRUCTURES[0]).replace(
        next(x for x in cif_text(STRUCTURES[0]).splitlines() if "length_c" in x), "_cell_length_c 0.0"
    ),
    "CIF without a unit cell": "data_x\n_chemical_formula_sum 'Cu'\n",
    "overlapping atoms": cif_text(
        Structure.from_fractional([29, 29], np.eye(3) * 4, [[0.25, 0.25, 0.25], [0.25, 0.25, 0.25]])
    ),
}
# The last column of the last site is its occupancy.
BAD_CIF["partial occupancy"] = cif_text(STRUCTURES[0]).rstrip("1\n") + "0.5\n"


@pytest.mark.parametrize("reason", list(BAD_CIF))
def test_a_bad_cif_is_a_row_of_the_failures_and_costs_no_other(tmp_path: Path, reason: str) -> None:
    (tmp_path / "cifs").mkdir()
    for name, text in (("a", cif_text(STRUCTURES[1])), ("b", BAD_CIF[reason]), ("c", cif_text(STRUCTURES[2]))):
        (tmp_path / "cifs" / f"{name}.cif").write_text(text)
    report = run(tmp_path / "cifs", tmp_path / "g.zarr")
    assert (report.read, report.stored, report.failed) == (3, 2, 1)
    (row,) = failures(tmp_path / "g.zarr")
    assert reason in str(row["reason"])
    assert str(row["source"]).endswith("b.cif")
    assert (row["source_index"], row["structure_id"]) == (0, "b")


def bad_dict(**changes: object) -> dict[str, object]:
    return {**pymatgen_dict(STRUCTURES[0]), **changes}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (bad_dict(sites=[{"species": [{"element": "Cu", "occu": 0.5}], "abc": [0, 0, 0]}]), "partial occupancy"),
        (bad_dict(sites=[{"species": [{"element": "Qq"}], "abc": [0, 0, 0]}]), "unknown element"),
        (bad_dict(sites=[{"species": [{"element": "Cu"}], "abc": [0, float("nan"), 0]}]), "not finite"),
        (bad_dict(lattice={"matrix": [[1, 0, 0], [2, 0, 0], [0, 0, 1]]}), "zero volume"),
        (bad_dict(sites=[{"species": [{"element": "Cu"}], "xyz": [0, 0, 0]}]), "malformed pymatgen structure"),
        (bad_dict(sites=[]), "no atoms"),
        ({"energy": 3}, "no structure in any field"),
        (17, "not a record (int)"),
    ],
)
def test_a_bad_record_of_json(tmp_path: Path, record: object, reason: str) -> None:
    write_json(tmp_path / "s.json", [pymatgen_dict(STRUCTURES[1]), record])
    report = run(tmp_path / "s.json", tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (1, 1)
    (row,) = failures(tmp_path / "g.zarr")
    assert reason in str(row["reason"])
    assert row["source_index"] == 1


def test_bad_frames_and_bad_rows(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.extxyz", [s.to_ase() for s in STRUCTURES[:3]])
    lines = (tmp_path / "a.extxyz").read_text().splitlines(keepends=True)
    second = int(lines[0]) + 2
    number = lines[second + 2].split()[1]
    lines[second + 2] = lines[second + 2].replace(number, "nan", 1)
    (tmp_path / "a.extxyz").write_text("".join(lines) + "not a number\n")
    write_csv(tmp_path / "b.csv", [{"cif": cif_text(STRUCTURES[3])}, {"cif": "nothing"}])
    report = run([tmp_path / "a.extxyz", tmp_path / "b.csv"], tmp_path / "g.zarr")
    assert (report.read, report.stored, report.failed) == (6, 3, 3)
    found = {(Path(str(r["source"])).name, r["source_index"]): str(r["reason"]) for r in failures(tmp_path / "g.zarr")}
    assert "not finite" in found["a.extxyz", 1]
    assert "atom count" in found["a.extxyz", 3]
    assert "CIF" in found["b.csv", 1]


def test_a_file_that_is_not_json_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"lattice": ')
    write_json(tmp_path / "good.json", pymatgen_dict(STRUCTURES[0]))
    report = run([tmp_path / "broken.json", tmp_path / "good.json"], tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (1, 1)
    assert "not valid JSON" in str(failures(tmp_path / "g.zarr")[0]["reason"])


def test_duplicates_are_counted_listed_and_kept_where_labels_differ(tmp_path: Path) -> None:
    d = [pymatgen_dict(s) for s in STRUCTURES[:2]]
    shifted = json.loads(json.dumps(d[0]))
    for site in shifted["sites"]:
        site["abc"][0] += 1.0  # the same structure, with its sites in the next cell
    records = [
        {"id": "first", "s": d[0], "E": 1.0},
        {"id": "same", "s": shifted, "E": 1.0},
        {"id": "other label", "s": d[0], "E": 2.0},
        {"id": "same other label", "s": d[0], "E": 2.0},
        {"id": "unlabelled", "s": d[0]},
        {"id": "another", "s": d[1], "E": 1.0},
    ]
    source = write_json(tmp_path / "s.json", records)
    report = run(source, tmp_path / "g.zarr", labels=LabelMapping().with_inline(["energy=E[eV]"]))
    assert (report.read, report.stored, report.duplicate) == (6, 3, 3)
    store = GraphStore(tmp_path / "g.zarr")
    assert store.column("structure_id").tolist() == ["first", "other label", "another"]
    assert store.column("status").tolist() == [0, 1, 0]
    assert store.block(0, 3).structure_labels["energy"].tolist() == [1.0, 2.0, 1.0]
    rows = pq.read_table(tmp_path / "g.zarr" / "duplicates.parquet").to_pylist()
    assert [(r["structure_id"], r["duplicate_of"]) for r in rows] == [
        ("same", "first"),
        ("same other label", "first"),
        ("unlabelled", "first"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "empty"),
        ("a,b\n1,2\n", "no structure in any field .fields: a, b.; choose a field with `equiscreen featurize --struct"),
        ("cif\nnothing\n", "none of its structures could be stored; record 0"),
    ],
)
def test_a_source_that_gives_nothing_is_an_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "s.csv").write_text(content)
    with pytest.raises(SourceError, match=message):
        run(tmp_path / "s.csv", tmp_path / "g.zarr")
    assert not list(tmp_path.glob("g.zarr*"))


def test_unknown_formats_empty_folders_and_truncated_archives(tmp_path: Path) -> None:
    (tmp_path / "s.pdf").write_text("x")
    (tmp_path / "folder").mkdir()
    whole = make_source("CSV.gz", tmp_path).read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    for name, message in (
        ("s.pdf", "unknown format"),
        ("folder", "no structure files in this folder"),
        ("cut.csv.gz", "cannot be read"),
    ):
        with pytest.raises(SourceError, match=message):
            run(tmp_path / name, tmp_path / "g.zarr")


def test_a_label_key_that_is_absent_is_named_before_the_work(tmp_path: Path) -> None:
    source = make_source("records in JSON.gz", tmp_path)
    with pytest.raises(LabelError, match=r"'gaap'; keys found: id, gap"):
        run(source, tmp_path / "g.zarr", labels=LabelMapping().with_inline(["gap=gaap[eV]"]))
    with pytest.raises(LabelError, match="column 'colour'"):
        run(source, tmp_path / "g.zarr", labels=LabelMapping(columns=("colour",)))


def test_a_folder_may_hold_its_own_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cif_folder(tmp_path / "cifs")
    with monkeypatch.context() as patch:
        patch.setattr("equiscreen.pipeline.featurization.featurize.assemble", None)
        with pytest.raises(TypeError):
            run(tmp_path / "cifs", tmp_path / "cifs" / "g.zarr")
    assert run(tmp_path / "cifs", tmp_path / "cifs" / "g.zarr").read == 9
    assert run(tmp_path / "cifs", tmp_path / "h.zarr").read == 9
    assert run(tmp_path / "cifs", tmp_path / "cifs" / "g.zarr", overwrite=True).read == 9


def test_small_files_of_many_records_share_a_partition(tmp_path: Path) -> None:
    for i in range(5):
        ase.io.write(tmp_path / f"{i}.xyz", [s.to_ase() for s in STRUCTURES[i : i + 3]], format="extxyz")
    plan = Plan(find_files([tmp_path / f"{i}.xyz" for i in range(5)]), tmp_path)
    (partition,) = list(plan)
    records = list(partition.unread("no time"))
    assert [(one.source, one.index) for one in records] == [(f"{i}.xyz", k) for i in range(5) for k in range(3)]
    assert {(one.structure, one.reason) for one in records} == {(None, "no time")}
    first, second = partition.halves()
    halves = [*first.unread("no time"), *second.unread("no time")]
    assert [(one.source, one.index) for one in halves] == [(one.source, one.index) for one in records]


@pytest.mark.parametrize("cutoff", [0, -1, 1000, float("nan")])
def test_a_cutoff_that_makes_no_sense(tmp_path: Path, cutoff: float) -> None:
    with pytest.raises(SourceError, match="choose one between"):
        featurize(make_source("CSV", tmp_path), tmp_path / "g.zarr", cutoff=cutoff)


def test_an_output_that_exists_is_kept(tmp_path: Path) -> None:
    source = make_source("CSV", tmp_path)
    run(source, tmp_path / "g.zarr")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        run(source, tmp_path / "g.zarr")
    assert run(source, tmp_path / "g.zarr", overwrite=True, limit=4).stored == 4


def test_an_unfinished_run_is_not_mixed_with_another(tmp_path: Path) -> None:
    source = make_source("CSV", tmp_path)
    (tmp_path / "g.zarr.partial" / "other" / "parts").mkdir(parents=True)
    (tmp_path / "g.zarr.partial" / "other" / "parts" / "0000000-00000-00009.json").write_text("{}")
    plan = tmp_path / "g.zarr.partial" / "other" / "plan.json"
    write_mark(plan, {"cutoff": 9.0})
    with pytest.raises(OutputExistsError, match=r"different settings.*cutoff"):
        run(source, tmp_path / "g.zarr")
    plan.write_bytes(b"\xff" + plan.read_bytes())
    with pytest.raises(OutputExistsError, match=r"different settings \(unknown, because its plan\.json is damaged\)"):
        run(source, tmp_path / "g.zarr")
    with pytest.raises(StoreError, match="unfinished"):
        GraphStore(tmp_path / "g.zarr")


def test_partitions_cover_every_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equiscreen.pipeline.featurization.partitions.PARTITION_BYTES", 2000)
    source = make_source("CSV", tmp_path)
    plan = Plan(find_files([source]), tmp_path)
    partitions = list(plan)
    assert len(partitions) >= 3
    assert [partition.number for partition in partitions] == list(range(len(partitions)))
    assert plan.n_records == plan.expected() == 9
    report = run([source, write_extxyz(tmp_path / "x.extxyz", 5)], tmp_path / "g.zarr", limit=12)
    assert report.stored == 12
    names = GraphStore(tmp_path / "g.zarr").column("structure_id").tolist()
    assert names == [f"s:{i}" for i in range(9)] + [f"x:{i}" for i in range(3)]


def test_stores_are_equal_to_the_byte_whatever_the_number_of_workers(tmp_path: Path) -> None:
    sources = [write_extxyz(tmp_path / f"{i}.extxyz", 8, seed=i) for i in range(4)]
    featurize(sources, tmp_path / "a.zarr", cutoff=4.0, scheduler="threads")
    featurize(sources, tmp_path / "b.zarr", cutoff=4.0)
    assert same_files(tmp_path / "a.zarr", tmp_path / "b.zarr")


def same_files(a: Path, b: Path) -> bool:
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
    assert len(files) > 20
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in files)


def test_estimate_says_what_a_run_would_take(tmp_path: Path) -> None:
    found = estimate([make_source("CSV", tmp_path)], cutoff=4.0)
    assert found.records == 9
    assert found.seconds > 0
    assert not list(tmp_path.glob("*.zarr"))


def test_real_mp_crystals_are_all_accounted_for(tmp_path: Path, data: Path) -> None:
    report = featurize(data / "mp/mp_20_val.csv.gz", tmp_path / "mp.zarr")
    assert report.read == 7140 == report.stored + report.failed + report.duplicate
    assert report.stored == 7140
    opened = xr.open_zarr(tmp_path / "mp.zarr")
    assert {"n_atoms", "cell", "atomic_number", "frac_coord", "neighbor", "image"} <= set(opened.data_vars)
    assert opened["cell"].attrs["units"] == "angstrom"
    assert opened["structure_id"].values[0] == "mp-865981"


def test_atoms_with_nothing_but_space_between_them_are_isolated(tmp_path: Path) -> None:
    far = [
        ase.Atoms("H3", positions=[[0, 0, 0], [1e4, 0, 0], [0, 1e4, 1]]),
        ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 1e6]]),
        ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 1e6]], cell=[3, 3, 0], pbc=(1, 1, 0)),
    ]
    ase.io.write(tmp_path / "s.extxyz", [STRUCTURES[0].to_ase(), *far])
    assert run(tmp_path / "s.extxyz", tmp_path / "g.zarr").stored == 4
    store = GraphStore(tmp_path / "g.zarr")
    assert store.n_edges[1:].tolist() == [0, 0, 8]
    assert (store.column("status") & STATUS_ISOLATED_ATOMS).astype(bool).tolist() == [False, True, True, False]


def test_a_cell_with_images_without_number_costs_only_itself(tmp_path: Path) -> None:
    tiny = ase.Atoms("H", cell=np.eye(3) * 5e-4, pbc=True)
    ase.io.write(tmp_path / "s.extxyz", [STRUCTURES[0].to_ase(), tiny, STRUCTURES[1].to_ase()])
    report = run(tmp_path / "s.extxyz", tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (2, 1)
    assert "too many lattice images" in str(failures(tmp_path / "g.zarr")[0]["reason"])


def test_defaults_of_extended_xyz_stay_with_it(tmp_path: Path) -> None:
    xyz = write_extxyz(tmp_path / "s.extxyz", 2)
    table = write_csv(tmp_path / "t.csv", [{"energy": "-999", "mine": "a", "cif": cif_text(STRUCTURES[0])}])
    run([xyz, table], tmp_path / "g.zarr", labels=LabelMapping(columns=("mine",)))
    store = GraphStore(tmp_path / "g.zarr")
    energy = store.block(0, 3).structure_labels["energy"]
    assert np.isfinite(energy[:2]).all()
    assert np.isnan(energy[2])
    assert store.column("mine").tolist() == ["", "", "a"]


def test_json_that_is_a_dictionary_of_structures(tmp_path: Path) -> None:
    source = write_json(tmp_path / "s.json", {f"mp-{i}": pymatgen_dict(s) for i, s in enumerate(STRUCTURES[:3])})
    assert run(source, tmp_path / "g.zarr").stored == 3
    assert GraphStore(tmp_path / "g.zarr").column("structure_id").tolist() == ["mp-0", "mp-1", "mp-2"]
    two = [{"initial": pymatgen_dict(STRUCTURES[0]), "data": {"final": pymatgen_dict(STRUCTURES[1])}, "E": 1}]
    two[0]["final"] = pymatgen_dict(STRUCTURES[2])
    source = write_json(tmp_path / "two.json", two)
    with pytest.raises(SourceError, match="--structure-field"):
        run(source, tmp_path / "h.zarr")
    run(source, tmp_path / "h.zarr", options=ReadOptions(structure_field="data.final"))
    assert GraphStore(tmp_path / "h.zarr").column("n_atoms").tolist() == [len(STRUCTURES[1])]


def test_a_limit_holds_across_json_files(tmp_path: Path) -> None:
    sources = [write_json(tmp_path / f"{k}.json", [pymatgen_dict(s) for s in STRUCTURES[k : k + 4]]) for k in (0, 4)]
    assert run(sources, tmp_path / "g.zarr", limit=6).read == 6


def test_a_bad_first_row_costs_only_itself(tmp_path: Path) -> None:
    rows = [{"name": "a", "text": ""}, {"name": "b", "text": cif_text(STRUCTURES[0])}]
    report = run(write_csv(tmp_path / "s.csv", rows), tmp_path / "g.zarr")
    assert (report.read, report.stored, report.failed) == (2, 1, 1)


def test_junk_between_frames_costs_no_frame(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "s.extxyz", [s.to_ase() for s in STRUCTURES[:4]])
    lines = (tmp_path / "s.extxyz").read_text().splitlines(keepends=True)
    after = len(STRUCTURES[0]) + 2
    lines.insert(after, "junk\n-2\nmore\n\n")
    (tmp_path / "s.extxyz").write_text("".join(lines))
    report = run(tmp_path / "s.extxyz", tmp_path / "g.zarr")
    assert (report.read, report.stored, report.failed) == (5, 4, 1)
    assert failures(tmp_path / "g.zarr")[0]["source_index"] == 1


def test_one_bad_label_costs_only_its_structure(tmp_path: Path) -> None:
    records = [{"s": pymatgen_dict(s), "gap": "n/a" if i == 0 else i} for i, s in enumerate(STRUCTURES[:3])]
    source = write_json(tmp_path / "s.json", records)
    report = run(source, tmp_path / "g.zarr", labels=LabelMapping().with_inline(["gap=gap[eV]"]))
    assert (report.stored, report.failed) == (2, 1)


@pytest.mark.parametrize("name", ["n_atoms", "volume", "source", "energy", "structure", "a/b", "..", ""])
def test_names_that_are_taken_or_that_no_array_can_have_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LabelError, match=r"already in use|is empty, contains"):
        run(make_source("CSV", tmp_path), tmp_path / "g.zarr", labels=LabelMapping(columns=(name,)))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("_symmetry_Int_Tables_number 1", "_symmetry_space_group_name_H-M 'nonsense'", "symmetry not understood"),
        ("'x, y, z'", "'x, y, z'\n'x+q, y, z'", "symmetry not understood"),
        ("_cell_length_a", "_cell_length_a ?\n_old_a", "_cell_length_a is ?"),
    ],
)
def test_a_cif_that_gemmi_would_guess_at(tmp_path: Path, old: str, new: str, reason: str) -> None:
    text = cif_text(STRUCTURES[0]).replace(old, new, 1)
    if "operator" not in reason and "nonsense" in new:
        text = text.replace("loop_\n_symmetry_equiv_pos_as_xyz\n'x, y, z'\n", "", 1)
    (tmp_path / "s.cif").write_text(text)
    with pytest.raises(SourceError, match=re.escape(reason)):
        run(tmp_path / "s.cif", tmp_path / "g.zarr")


def test_a_cif_of_an_older_ase_whose_group_lacks_its_quotes(tmp_path: Path) -> None:
    text = cif_text(STRUCTURES[0]).replace("_symmetry_Int_Tables_number 1", "_symmetry_space_group_name_H-M    P 1", 1)
    (tmp_path / "s.cif").write_text(text)
    assert run(tmp_path / "s.cif", tmp_path / "g.zarr").stored == 1
    (tmp_path / "s.cif").write_text(text.replace("P 1", "F m -3 m").replace("'x, y, z'", "'x, y, z'\n'-x, y"))
    with pytest.raises(SourceError, match="CIF does not parse"):
        run(tmp_path / "s.cif", tmp_path / "h.zarr")


def test_overwriting_waits_for_the_new_store_and_spares_what_is_not_ours(tmp_path: Path) -> None:
    good, bad = make_source("CSV", tmp_path), tmp_path / "bad.cif"
    bad.write_text("data_x\n")
    run(good, tmp_path / "g.zarr")
    with pytest.raises(SourceError):
        run(bad, tmp_path / "g.zarr", overwrite=True)
    assert len(GraphStore(tmp_path / "g.zarr")) == 9
    (tmp_path / "thesis").mkdir()
    with pytest.raises(OutputExistsError, match="not an equiscreen store"):
        run(good, tmp_path / "thesis", overwrite=True)
    with pytest.raises(OutputExistsError, match="is read by this run"):
        run(good, tmp_path, overwrite=True)


def test_many_parts_do_not_need_many_open_files(tmp_path: Path) -> None:
    sources = [write_json(tmp_path / f"{i}.json", pymatgen_dict(s)) for i, s in enumerate(STRUCTURES * 12)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 60, before[1]))
    try:
        report = run(sources, tmp_path / "g.zarr")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (report.read, report.stored, report.duplicate) == (108, 9, 99)


def test_a_store_without_any_edge_and_a_part_of_duplicates_only(tmp_path: Path) -> None:
    for name, x in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
        ase.io.write(tmp_path / f"{name}.extxyz", [ase.Atoms("He", positions=[[x, 0, 0]])])
    report = run([tmp_path / f"{name}.extxyz" for name in "abc"], tmp_path / "g.zarr")
    assert (report.stored, report.duplicate) == (2, 1)
    block = GraphStore(tmp_path / "g.zarr").block(0, 2)
    assert block.n_edges.tolist() == [0, 0]


def test_a_running_cluster_whose_workers_stand_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_extxyz(tmp_path / "s.extxyz", 4)
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        monkeypatch.chdir(tmp_path)
        report = featurize("s.extxyz", "g.zarr", cutoff=4.0, scheduler=cluster.scheduler_address)
    assert report.stored == 4
    assert GraphStore("g.zarr").column("source").tolist() == ["s.extxyz"] * 4


@pytest.mark.parametrize("when", ["between its hash and the run", "during the run"])
def test_a_file_that_changes_meanwhile_is_noticed_whatever_its_times(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.cif"
    source.write_text(cif_text(STRUCTURES[0]))

    def rewrite() -> None:
        facts, text = source.stat(), source.read_text()
        source.write_text(text.replace("0", "1", 1))
        assert source.stat().st_size == facts.st_size
        os.utime(source, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    place, name = (module, "connect") if when == "during the run" else (StoreWriter, "run")
    original = getattr(place, name)

    def rewrite_first(*words: object, **settings: object) -> object:
        rewrite()
        return original(*words, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, rewrite_first)
        with pytest.raises(StoreError, match=r"a\.cif has changed during this run"):
            run(source, tmp_path / "g.zarr")
    assert not (tmp_path / "g.zarr").exists()

    def protect(*words: object, **settings: object) -> object:
        source.chmod(0o400)
        return original(*words, **settings)

    monkeypatch.setattr(place, name, protect)
    assert run(source, tmp_path / "g.zarr", overwrite=True).stored == 1
