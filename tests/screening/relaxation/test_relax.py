"""Relaxation of a store on workers: every structure has a row and a graph, even after interruptions."""

from __future__ import annotations

import csv
import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ase.io
import numpy as np
import pytest
import xarray as xr
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import EquiscreenError, ModelFileError, OutputExistsError
from equiscreen.pipeline.labels.mapping import LabelMapping
from equiscreen.pipeline.runs.parts import PartManifest
from equiscreen.pipeline.store.schema import ArraySpec
from equiscreen.pipeline.store.writer import StoreRun
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import RelaxSettings, open_scores, relax, relax_files, relax_structures, screen
from equiscreen.screening.relaxation import relax as relax_module
from equiscreen.screening.relaxation import worker
from equiscreen.screening.relaxation.batched import RELAX_STATUSES, TOO_LARGE, Relaxed
from equiscreen.screening.relaxation.relax import estimate, summary
from numpy.testing import assert_allclose

from ...conftest import write_extxyz
from ...export.runtime.altered_models import altered

CRYSTALS = 12
SOME, PART = 6, 2  # for a run of several parts
# The command line with such parts, and a moment between two of them.
SMALL_PARTS = f"""
import time
from equiscreen.pipeline.runs import failure_policy
from equiscreen.screening.relaxation import relax
relax.PART_STRUCTURES = {PART}
submit = failure_policy._TasksInFlight.submit
failure_policy._TasksInFlight.submit = lambda *arguments: time.sleep(0.5) or submit(*arguments)
from equiscreen.__main__ import main
main()
"""
ATOMS = 5


@pytest.fixture(scope="module")
def graphs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graph store of small crystals of the Materials Project, with a column."""
    return store_of(data, tmp_path_factory.mktemp("graphs"), CRYSTALS)


def store_of(data: Path, folder: Path, count: int) -> Path:
    with gzip.open(data / "mp/mp_20_val.csv.gz", "rt", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["cif"].count("\n") < 27 + ATOMS]
    with (folder / "mp.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["material_id", "cif", "band_gap"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[:count])
    featurize(folder / "mp.csv", folder / "g.zarr", labels=LabelMapping(columns=("band_gap",)), scheduler="threads")
    assert len(GraphStore(folder / "g.zarr")) == count
    return folder / "g.zarr"


@pytest.fixture(scope="module")
def relaxed(graphs: Path, sevennet_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("relaxed") / "r.zarr"
    relax(graphs, sevennet_model, out, scheduler="threads")
    return out


def values(scores: xr.Dataset) -> xr.Dataset:
    """The scores without attributes, which differ between two runs."""
    return scores.load().drop_attrs()


def test_each_structure_has_a_row_and_a_graph(graphs: Path, relaxed: Path, sevennet_model: Path) -> None:
    scores, given, made = open_scores(relaxed), GraphStore(graphs), GraphStore(relaxed.with_name("r.graphs.zarr"))
    assert scores.attrs["status_counts"]["ok"] == len(made) == CRYSTALS
    assert scores.attrs["graph_store"] == {"path": "r.graphs.zarr", "store_hash": made.store_hash}
    assert scores.attrs["relaxed_from"]["store_hash"] == given.store_hash
    assert made.verify() == []
    for store in (given, made):
        assert scores["structure_id"].to_numpy().tolist() == store.column("structure_id").tolist()
        assert scores["band_gap"].to_numpy().tolist() == store.column("band_gap").tolist()
    block = made.block(0, CRYSTALS)
    assert_allclose(block.structure_labels["energy"], scores["energy"])
    assert_allclose(block.structure_labels["stress"], scores["stress"])
    forces = np.linalg.norm(block.atom_labels["forces"], axis=1)
    assert_allclose(np.maximum.reduceat(forces, block.atom_start), scores["max_force"])
    assert (scores["energy"] <= scores["initial_energy"]).all()
    assert (scores["max_force"] <= 0.05).all()
    assert_allclose(scores["volume_change"], block.volume / given.block(0, CRYSTALS).volume - 1, atol=1e-12)
    assert (scores["space_group"] == scores["space_group_initial"]).mean() > 0.9
    again = screen(made.path, sevennet_model, relaxed.with_name("s.zarr"), scheduler="threads")
    assert_allclose(again["energy_per_atom"], scores["energy_per_atom"], atol=1e-5)
    assert_allclose(again["stress"], scores["stress"], atol=1e-5)


def test_it_is_what_one_process_finds(graphs: Path, relaxed: Path, sevennet_model: Path) -> None:
    store, scores = GraphStore(graphs), open_scores(relaxed)
    structures = [(row, store.block(row, row + 1).structure(0)) for row in range(4)]
    potential = OnnxPotential.load(sevennet_model, threads=1)
    for row, found in relax_structures(structures, potential):
        assert found.last is not None
        assert found.last.energy / len(found.last.structure) == pytest.approx(
            float(scores["energy_per_atom"][row]), abs=1e-4
        )


def test_a_run_that_is_killed_is_taken_up(
    graphs: Path,
    sevennet_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command_line: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """The result of a run that was killed and resumed equals that of an uninterrupted run, bit for bit."""
    words = ["relax", str(graphs), "--model", str(sevennet_model), "--rattle", "0.05", "--scheduler", "threads"]
    words += ["--limit", str(SOME), "--out"]
    process = subprocess.Popen(
        [sys.executable, "-c", SMALL_PARTS, *words, tmp_path / "r.zarr"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    folder, deadline = tmp_path / "r.zarr.partial", time.monotonic() + 100
    while not list(folder.glob("*/parts/[0-9]*.json")) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "r.zarr").exists()
    monkeypatch.setattr(relax_module, "PART_STRUCTURES", PART)
    for name in ("r.zarr", "q.zarr"):
        done = command_line(*words, tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert f"{SOME} structures ({SOME} ok)" in done.stdout
    xr.testing.assert_identical(values(open_scores(tmp_path / "r.zarr")), values(open_scores(tmp_path / "q.zarr")))
    assert "rattle_energy_change" in open_scores(tmp_path / "r.zarr")
    hashes = [GraphStore(tmp_path / f"{name}.graphs.zarr").store_hash for name in "rq"]
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_a_run_that_was_killed_between_its_two_outputs(graphs: Path, relaxed: Path, sevennet_model: Path) -> None:
    """The graph store exists but the scores do not: the same run writes both, and the graph store equals the first."""
    out = relaxed.with_name("t.zarr")
    relax(graphs, sevennet_model, out, scheduler="threads", limit=6)
    stored = relaxed.with_name("t.graphs.zarr")
    written = GraphStore(stored).store_hash
    shutil.rmtree(out)
    assert relax(graphs, sevennet_model, out, scheduler="threads", limit=6).sizes["structure"] == 6
    assert GraphStore(stored).store_hash == written == open_scores(out).attrs["graph_store"]["store_hash"]
    shutil.rmtree(out)
    with pytest.raises(OutputExistsError, match=r"t\.graphs\.zarr already exists"):
        relax(graphs, sevennet_model, out, scheduler="threads", limit=5)
    relax(graphs, sevennet_model, out, scheduler="threads", limit=5, overwrite=True)
    assert len(GraphStore(stored)) == 5


def test_a_budget_ends_a_run_and_the_next_one_goes_on(graphs: Path, sevennet_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.zarr"
    with pytest.raises(EquiscreenError, match=f"0 of {SOME} structures are relaxed, and the budget of 0 h"):
        relax(graphs, sevennet_model, out, scheduler="threads", limit=SOME, budget=0.0)
    assert not out.exists()
    assert relax(graphs, sevennet_model, out, scheduler="threads", limit=SOME).sizes["structure"] == SOME


def test_what_does_not_fit_is_refused(
    graphs: Path, sevennet_model: Path, tmp_path: Path, exported: Callable[[str], Path]
) -> None:
    out = tmp_path / "r.zarr"
    energy_alone = [{"name": "energy", "per": "structure", "shape": []}]
    altered(exported("float32"), tmp_path / "energy.onnx", outputs=energy_alone)
    with pytest.raises(ModelFileError, match=r"forces, stress.*--outputs energy,forces,stress"):
        relax(graphs, tmp_path / "energy.onnx", out)
    with pytest.raises(OutputExistsError):
        relax(graphs, sevennet_model, graphs, scheduler="threads")
    with pytest.raises(EquiscreenError):
        relax(graphs, sevennet_model, out, scheduler="threads", budget=0.0)
    shutil.copytree(graphs, tmp_path / "g.zarr")
    relax(graphs, sevennet_model, out, scheduler="threads", limit=3)
    with pytest.raises(OutputExistsError, match=r"r\.zarr already exists"):
        relax(graphs, sevennet_model, out, RelaxSettings(fmax=0.1), scheduler="threads", limit=3)


def test_a_relaxation_without_success_is_published_with_its_statuses(
    graphs: Path, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    found = relax(graphs, exported("float32"), tmp_path / "r.zarr", scheduler="threads", limit=3)
    assert found["status"].values.tolist() == [RELAX_STATUSES.index("unknown_element")] * 3
    assert "3 unknown element" in summary(found, tmp_path / "r.zarr")
    assert "warning: no structure was relaxed" in summary(found, tmp_path / "r.zarr")
    assert len(GraphStore(tmp_path / "r.graphs.zarr")) == 3


def test_trajectories_begin_and_end_where_the_relaxation_does(
    graphs: Path, sevennet_model: Path, tmp_path: Path
) -> None:
    scores = relax(
        graphs, sevennet_model, tmp_path / "r.zarr", RelaxSettings(trajectory=True), scheduler="threads", limit=4
    )
    (file,) = (tmp_path / "r.trajectories").iterdir()
    images = ase.io.read(file, ":")
    assert len(images) == scores["n_steps"].sum()
    names = [atoms.info["structure_id"] for atoms in images]
    for row, name in enumerate(scores["structure_id"].to_numpy().tolist()):
        own = [atoms for atoms, other in zip(images, names, strict=True) if other == name]
        assert own[0].get_potential_energy() == pytest.approx(float(scores["initial_energy"][row]), abs=1e-6)
        assert own[-1].get_potential_energy() == pytest.approx(float(scores["energy"][row]), abs=1e-6)


def test_what_a_run_says(graphs: Path, relaxed: Path, sevennet_model: Path) -> None:
    line = summary(open_scores(relaxed), relaxed)
    assert f"{CRYSTALS} structures ({CRYSTALS} ok)" in line
    assert "r.graphs.zarr" in line
    text = str(estimate(graphs, sevennet_model))
    assert "evaluations per structure" in text
    assert re.search(r"[\d,]+ MB of memory per worker$", text)


def test_workers_find_what_this_process_finds(
    graphs: Path, relaxed: Path, sevennet_model: Path, tmp_path: Path
) -> None:
    scores = relax(graphs, sevennet_model, tmp_path / "r.zarr")
    xr.testing.assert_identical(values(scores), values(open_scores(relaxed)))
    hashes = [GraphStore(folder / "r.graphs.zarr").store_hash for folder in (tmp_path, relaxed.parent)]
    assert hashes[0] == hashes[1]


# Settings with which every structure has converged at once.
EASY = RelaxSettings(fmax=1e4, smax=1e7, max_steps=3)


@pytest.fixture
def metals(tmp_path: Path) -> Path:
    """Graph store of a few random crystals."""
    featurize(write_extxyz(tmp_path / "m.extxyz", 4), tmp_path / "m.zarr", scheduler="threads")
    return tmp_path / "m.zarr"


def test_rows_have_the_same_bits_in_a_shuffled_store_and_with_a_limit(
    exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts, batches and tables hold other structures; the seed of a rattle belongs to the structure."""
    images = [structure.to_ase() for structure in probe_structures((13, 29, 79), 6, seed=7)]
    for number, image in enumerate(images):
        image.info["name"] = str(number)
    settings = RelaxSettings(fmax=1.0, smax=10.0, max_steps=4, rattle=0.05)
    found = []
    for name, order, slots, part_edges, limit in (
        ("a", range(6), 2048, 5_000, None),
        ("b", (3, 0, 5, 1, 2, 4), 500, 1_500, 4),
    ):
        monkeypatch.setattr(relax_module, "PART_EDGES", part_edges)
        ase.io.write(tmp_path / f"{name}.extxyz", [images[place] for place in order])
        featurize(tmp_path / f"{name}.extxyz", tmp_path / f"{name}.g.zarr", scheduler="threads", id_field="name")
        out = tmp_path / f"{name}.zarr"
        relax(
            tmp_path / f"{name}.g.zarr",
            exported("float32"),
            out,
            settings,
            scheduler="threads",
            slots=slots,
            limit=limit,
        )
        found.append(open_scores(out).set_index(structure="structure_id").drop_vars(["source", "source_index"]).load())
    whole, some = found
    assert some.sizes["structure"] == 4
    xr.testing.assert_identical(whole.sel(structure=some["structure"].values).drop_attrs(), some.drop_attrs())


def test_neither_an_input_nor_what_is_no_output_is_overwritten(
    metals: Path, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    metals.rename(tmp_path / "s.graphs.zarr")
    (tmp_path / "t.graphs.zarr").mkdir()
    (tmp_path / "u.trajectories").mkdir()
    (tmp_path / "u.trajectories" / "mine.txt").write_text("mine")
    trajectories = RelaxSettings(fmax=1e4, smax=1e7, trajectory=True)
    for name, settings, says in (
        ("s", EASY, "is read by this run"),
        ("t", EASY, "not an equiscreen store"),
        ("u", trajectories, "holds other files"),
    ):
        with pytest.raises(OutputExistsError, match=says):
            relax(
                tmp_path / "s.graphs.zarr",
                exported("float32"),
                tmp_path / f"{name}.zarr",
                settings,
                overwrite=True,
                scheduler="threads",
            )
        assert not list(tmp_path.glob("*.partial"))
    assert GraphStore(tmp_path / "s.graphs.zarr").verify() == []


def test_the_graph_store_is_that_of_the_scores(
    metals: Path, exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated run may end differently: a structure that was too large may fit into the memory of another machine."""
    words = {"scheduler": "threads", "overwrite": True}
    with monkeypatch.context() as patch:
        patch.setattr(
            worker,
            "relax_structures",
            lambda given, *_, **__: ((row, Relaxed(TOO_LARGE, None, None, 0)) for row, _ in given),
        )
        relax(metals, exported("float32"), tmp_path / "r.zarr", EASY, **words)
    scores = relax(metals, exported("float32"), tmp_path / "r.zarr", EASY, **words)
    made = GraphStore(tmp_path / "r.graphs.zarr")
    assert scores.attrs["graph_store"]["store_hash"] == made.store_hash
    assert_allclose(made.column("energy"), scores["energy"])


def test_without_scores_no_graph_store_is_published(
    metals: Path, exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = StoreRun.concatenate

    def full(
        run: StoreRun, specs: Sequence[ArraySpec], manifests: Sequence[PartManifest], **folders: Path
    ) -> dict[str, str]:
        if not folders:
            raise OSError("the disk is full")
        return write(run, specs, manifests, **folders)

    with monkeypatch.context() as patch:
        patch.setattr(StoreRun, "concatenate", full)
        with pytest.raises(OSError, match="full"):
            relax(metals, exported("float32"), tmp_path / "r.zarr", EASY, scheduler="threads")
    assert not (tmp_path / "r.graphs.zarr").exists()
    relax(metals, exported("float32"), tmp_path / "r.zarr", EASY, scheduler="threads")
    assert len(GraphStore(tmp_path / "r.graphs.zarr")) == 4


@pytest.mark.parametrize("published", [False, True])
def test_each_trajectory_is_published_once(
    metals: Path, exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    """Whether a run is killed while it writes them, or between them and the scores."""
    settings = RelaxSettings(fmax=1e4, smax=1e7, trajectory=True)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if published:
            patch.setattr(relax_module.Staging, "publish", killed)
        else:
            patch.setattr(relax_module.RelaxedGraphs, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            relax(metals, exported("float32"), tmp_path / "r.zarr", settings, scheduler="threads")
    if not published:
        (folder,) = tmp_path.glob("r.zarr.partial/*/trajectories")
        for name in ("part-0000000-00000.extxyz", ".0.part-0000000.extxyz"):  # of tasks that were killed
            shutil.copy(folder / "part-0000000.extxyz", folder / name)
    relax(metals, exported("float32"), tmp_path / "r.zarr", settings, scheduler="threads")
    assert [file.name for file in (tmp_path / "r.trajectories").iterdir()] == ["part-0000000.extxyz"]


def test_files_are_relaxed_as_the_store_that_they_make(data: Path, sevennet_model: Path, tmp_path: Path) -> None:
    graphs = store_of(data, tmp_path, 2)
    settings = RelaxSettings(max_steps=2)
    expected = relax(graphs, sevennet_model, tmp_path / "a.zarr", settings, scheduler="threads")
    found = relax_files(tmp_path / "mp.csv", sevennet_model, tmp_path / "b.zarr", settings, scheduler="threads")
    xr.testing.assert_identical(values(found).drop_vars("source"), values(expected).drop_vars(["source", "band_gap"]))
    assert len(GraphStore(tmp_path / "b.candidates.graphs.zarr")) == 2
    with pytest.raises(OutputExistsError, match=r"b\.zarr already exists"):
        relax_files(tmp_path / "mp.csv", sevennet_model, tmp_path / "b.zarr", settings, scheduler="threads")
