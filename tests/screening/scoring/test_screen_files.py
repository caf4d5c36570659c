"""Screening of files: the same as featurizing with the model's cutoff and then screening; it can be resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr
from equiscreen.pipeline import GraphStore, featurize, merge
from equiscreen.pipeline.errors import ConfigError, ModelFileError, OutputExistsError, SourceError, StoreError
from equiscreen.pipeline.featurization import estimate as featurization_estimate
from equiscreen.pipeline.runs.options import RunOptions
from equiscreen.pipeline.runs.staging import Staging
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import candidate_graphs, open_scores, screen, screen_files
from equiscreen.screening.candidate_graphs import prepare_graphs
from equiscreen.screening.dataset.paths import graphs_path
from equiscreen.screening.scoring.screen_files import estimate

from ...conftest import CUTOFF, ELEMENTS, cif_text, write_extxyz
from ...pipeline.featurization.test_featurize import same_files

BAD_CIF = "data_x\n_cell_length_a 4\n"


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Four CIFs, the second of which is invalid, and an extended XYZ file with eight frames."""
    paths = []
    for place, structure in enumerate(probe_structures(ELEMENTS, 4, seed=80)):
        paths.append(tmp_path / f"c{place}.cif")
        paths[-1].write_text(BAD_CIF if place == 1 else cif_text(structure))
    return [*paths, write_extxyz(tmp_path / "more.extxyz", 8, seed=81)]


@pytest.fixture
def model(exported: Callable[[str], Path]) -> Path:
    return exported("float32")


def written(store: Path) -> int:
    """Modification time of the root of a store, which changes if the store is written again."""
    return (store / "zarr.json").stat().st_mtime_ns


def without_history(scores: xr.Dataset) -> xr.Dataset:
    """The scores without the attributes that differ between two runs: timing, and the path of the graph store."""
    return scores.load().assign_attrs(timing=None, graph_store=None, seal=None)


def test_it_is_featurizing_with_the_models_cutoff_and_screening(
    sources: list[Path], model: Path, tmp_path: Path
) -> None:
    scores = screen_files(sources, model, tmp_path / "s.zarr", scheduler="threads")
    graphs = tmp_path / "s.graphs.zarr"
    assert GraphStore(graphs).cutoff == CUTOFF
    assert scores.attrs["graph_store"] == {"path": graphs.name, "store_hash": GraphStore(graphs).store_hash}
    featurize(sources, tmp_path / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    assert same_files(graphs, tmp_path / "g.zarr")
    expected = screen(tmp_path / "g.zarr", model, tmp_path / "expected.zarr", scheduler="threads")
    xr.testing.assert_identical(without_history(scores), without_history(expected))
    assert scores.sizes["structure"] == 11
    assert scores["source"].values.tolist()[:3] == [sources[place].name for place in (0, 2, 3)]


def test_a_bad_file_is_accounted_for(sources: list[Path], model: Path, tmp_path: Path) -> None:
    graphs = prepare_graphs(sources, model, tmp_path / "s.zarr", RunOptions(scheduler="threads"))
    assert "read 12 = stored 11 + failed 1 + duplicate 0" in graphs.summary
    assert f"`equiscreen info {graphs.path}` names some of those that failed" in graphs.summary
    (row,) = GraphStore(graphs.path).table("failures.parquet").to_pylist()
    assert row["source"] == sources[1].name
    again = prepare_graphs(sources, model, tmp_path / "s.zarr", RunOptions(scheduler="threads"))
    assert again.summary.startswith(
        f"{graphs.path}: the existing store is reused: read 12 = stored 11 + failed 1 + duplicate 0;"
    )
    with pytest.raises(SourceError, match="none of its structures could be stored"):
        screen_files(sources[1], model, tmp_path / "bad.zarr", scheduler="threads")
    assert not list(tmp_path.glob("bad.*"))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two graph stores, an unfinished one, and a CIF."""
    folder = tmp_path_factory.mktemp("stores")
    (folder / "c.cif").write_text(cif_text(probe_structures(ELEMENTS, 1, seed=80)[0]))
    for name in ("g.zarr", "plain"):
        featurize(folder / "c.cif", folder / name, cutoff=CUTOFF + 1, scheduler="threads")
    (folder / "unfinished.partial").mkdir()
    return folder


@pytest.mark.parametrize("source", ["{}/g.zarr", "{}/plain", "{}/plain/", "file://{}/plain"])
def test_one_store_is_screened_as_it_stands(stores: Path, model: Path, tmp_path: Path, source: str) -> None:
    scores = screen_files(source.format(stores), model, tmp_path / "s.zarr", scheduler="threads")
    assert scores.attrs["graph_store"]["path"] == f"../{stores.name}/{Path(source).name}"
    assert scores["source"].values.tolist() == ["c.cif"]
    assert not list(tmp_path.glob("*.graphs.zarr"))


def test_a_url_of_files_is_none_of_a_store(stores: Path, model: Path, tmp_path: Path) -> None:
    for source in (f"file://{stores}/c.cif", f"file://{stores}/*.cif", f"file://{stores}"):
        graphs = prepare_graphs(source, model, tmp_path / "s.zarr", RunOptions(scheduler="threads", overwrite=True))
        recorded = "c.cif" if source.endswith(".cif") else f"{stores.name}/c.cif"
        assert GraphStore(graphs.path).column("source").tolist() == [recorded]


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["g.zarr", "c.cif"], ConfigError, r"g\.zarr is a store among structure files"),
        (["c.cif", "plain"], ConfigError, r"plain is a store among structure files"),
        (["g.zarr", "plain"], ConfigError, "2 stores were given, but only one can be used; .* `equiscreen merge`"),
        (["none.zarr"], StoreError, r"none\.zarr: no such store"),
        (["none.cif"], SourceError, r"none\.cif: no such file"),
        (["unfinished"], StoreError, "unfinished is unfinished; to resume it, repeat the command that writes it"),
        ([], SourceError, "there are no sources"),
    ],
)
def test_what_cannot_be_screened_is_told(
    stores: Path, model: Path, tmp_path: Path, words: list[str], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        screen_files([stores / word for word in words], model, tmp_path / "s.zarr", scheduler="threads")
    assert not list(tmp_path.glob("*.zarr*"))


def test_existing_scores_and_a_bad_model_are_told_before_the_work(
    sources: list[Path], model: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.zarr").mkdir()
    with pytest.raises(OutputExistsError, match=r"s\.zarr already exists; .* --overwrite"):
        screen_files(sources, model, tmp_path / "s.zarr", scheduler="threads")
    with pytest.raises(ModelFileError):
        screen_files(sources, sources[0], tmp_path / "t.zarr", scheduler="threads")
    assert not list(tmp_path.glob("*.graphs.zarr"))


def test_a_finished_graph_store_is_taken_up_and_kept_when_the_scores_are_replaced(
    sources: list[Path], model: Path, tmp_path: Path
) -> None:
    out, graphs = tmp_path / "s.zarr", tmp_path / "s.graphs.zarr"
    prepare_graphs(
        sources, model, out, RunOptions(scheduler="threads")
    )  # as if the run was killed before the second step
    moment = written(graphs)
    first = without_history(screen_files(sources, model, out, scheduler="threads"))
    with pytest.raises(OutputExistsError, match=r"s\.zarr already exists"):
        screen_files(sources, model, out, scheduler="threads")
    scored = written(out)
    again = screen_files(sources, model, out, scheduler="threads", overwrite=True)
    assert written(graphs) == moment
    assert written(out) != scored
    xr.testing.assert_identical(without_history(again), first)


def test_a_damaged_graph_store_is_replaced_with_overwrite(sources: list[Path], model: Path, tmp_path: Path) -> None:
    out, graphs = tmp_path / "s.zarr", tmp_path / "s.graphs.zarr"
    prepare_graphs(sources, model, out, RunOptions(scheduler="threads"))
    shard = graphs / "cell" / "c" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    prepare_graphs(sources, model, out, RunOptions(scheduler="threads", overwrite=True))
    assert GraphStore(graphs).verify() == []
    shard.unlink()
    with pytest.raises(OutputExistsError, match="damaged: shard 0 of 'cell' is missing"):
        prepare_graphs(sources, model, out, RunOptions(scheduler="threads"))


def other_cutoff(sources: list[Path], graphs: Path) -> None:
    featurize(sources, graphs, cutoff=CUTOFF + 1, scheduler="threads")


def fewer_sources(sources: list[Path], graphs: Path) -> None:
    featurize(sources[1:], graphs, cutoff=CUTOFF, scheduler="threads")


def limited(sources: list[Path], graphs: Path) -> None:
    featurize(sources, graphs, cutoff=CUTOFF, scheduler="threads", limit=3)


def without_large_ones(sources: list[Path], graphs: Path) -> None:
    featurize(sources, graphs, cutoff=CUTOFF, scheduler="threads", max_atoms=99)


def changed_later(sources: list[Path], graphs: Path) -> None:
    featurize(sources, graphs, cutoff=CUTOFF, scheduler="threads")
    sources[0].write_text(sources[2].read_text())


def appended_to(sources: list[Path], graphs: Path) -> None:
    featurize(sources[0], graphs, cutoff=CUTOFF, scheduler="threads")
    featurize(sources, graphs, scheduler="threads", append=True)


def merged(sources: list[Path], graphs: Path) -> None:
    other = graphs.with_name("other.zarr")
    featurize(sources, other, cutoff=CUTOFF, scheduler="threads")
    merge([other], graphs, scheduler="threads")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_cutoff, r"its cutoff is 5\.5 angstrom, but the model's cutoff is 4\.5"),
        (fewer_sources, "different or changed sources"),
        (changed_later, "different or changed sources"),
        (limited, "different limit"),
        (without_large_ones, "different settings"),
        (appended_to, "different settings"),
        (merged, "different settings"),
    ],
)
def test_other_graphs_in_that_place_are_refused(
    sources: list[Path], model: Path, tmp_path: Path, make: Callable[[list[Path], Path], None], message: str
) -> None:
    graphs = tmp_path / "s.graphs.zarr"
    make(sources, graphs)
    moment = written(graphs)
    with pytest.raises(OutputExistsError, match=rf"s\.graphs\.zarr cannot be reused \(.*{message}.*--overwrite"):
        screen_files(sources, model, tmp_path / "s.zarr", scheduler="threads")
    assert written(graphs) == moment
    assert not (tmp_path / "s.zarr").exists()


def test_other_graphs_in_that_place_are_replaced_with_overwrite(
    sources: list[Path], model: Path, tmp_path: Path
) -> None:
    other_cutoff(sources, tmp_path / "s.graphs.zarr")
    prepare_graphs(sources, model, tmp_path / "s.zarr", RunOptions(scheduler="threads", overwrite=True))
    featurize(sources, tmp_path / "expected.zarr", cutoff=CUTOFF, scheduler="threads")
    assert same_files(tmp_path / "s.graphs.zarr", tmp_path / "expected.zarr")


def test_what_is_no_store_is_not_overwritten(sources: list[Path], model: Path, tmp_path: Path) -> None:
    (tmp_path / "s.graphs.zarr").mkdir()
    (tmp_path / "s.graphs.zarr" / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError):
            screen_files(sources, model, tmp_path / "s.zarr", scheduler="threads", overwrite=overwrite)
    assert (tmp_path / "s.graphs.zarr" / "thesis.txt").read_text() == "mine"


def test_a_limit_holds_for_both_halves(sources: list[Path], model: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second time, the graph store exists
        scores = screen_files(sources, model, tmp_path / "s.zarr", scheduler="threads", limit=5, overwrite=True)
        assert scores.sizes["structure"] == 4  # the second of five is invalid
        assert GraphStore(tmp_path / "s.graphs.zarr").attrs["counts"]["read"] == 5


def test_an_estimate_scales_both_halves_to_all_records(
    sources: list[Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (featurization_estimate, candidate_graphs):
        monkeypatch.setattr(module, "ESTIMATE_RECORDS", 4)
    records, structures = str(estimate(sources, model, tmp_path / "s.zarr")).splitlines()
    assert records.startswith("12 records: ")
    assert structures.startswith("9 structures: ")  # three of the four records of the sample could be stored
    assert not list(tmp_path.glob("s.*"))
    prepare_graphs(sources, model, tmp_path / "s.zarr", RunOptions(scheduler="threads"))
    reused, structures = str(estimate(sources, model, tmp_path / "s.zarr")).splitlines()
    assert "the existing store is reused: read 12" in reused
    assert structures.startswith("11 structures: ")
    assert str(estimate([tmp_path / "s.graphs.zarr"], model, tmp_path / "t.zarr", 3)).startswith("3 structures: ")


def test_a_run_killed_as_it_cleaned_up_leaves_nothing_behind(
    sources: list[Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, working = tmp_path / "s.zarr", tmp_path / "s.graphs.zarr.partial"
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "discard", lambda _: None)
        prepare_graphs(sources, model, out, RunOptions(scheduler="threads"))
    assert working.exists()
    moment = written(tmp_path / "s.graphs.zarr")
    screen_files(sources, model, out, scheduler="threads")
    assert not working.exists()
    assert written(tmp_path / "s.graphs.zarr") == moment


@pytest.mark.parametrize("out", ["s.zarr", "s.zarr/", "s", "a.b.zarr", "s3://bucket/folder/s.zarr"])
def test_graphs_stand_beside_the_scores_under_a_name_of_their_own(out: str) -> None:
    graphs = graphs_path(out)
    assert graphs.endswith(".graphs.zarr")
    assert graphs.rpartition("/")[0] == out.rstrip("/").rpartition("/")[0]
    assert graphs_path(graphs) != graphs


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "equiscreen", "screen", *map(str, words)]


def test_the_command_line_and_a_kill_between_the_halves(
    sources: list[Path], model: Path, tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    out, graphs = tmp_path / "s.zarr", tmp_path / "s.graphs.zarr"
    words = command(*sources, "--model", model, "--out", out, "--scheduler", "threads")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stderr is not None
    # Printed before the scoring begins.
    counts = next(line for line in map(bytes.decode, process.stderr) if line.startswith(str(graphs)))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert "read 12 = stored 11 + failed 1 + duplicate 0" in counts
    assert not out.exists()
    moment = written(graphs)

    done = command_line(*words[3:])
    assert done.returncode == 0, done.stderr
    first = next(line for line in done.stderr.splitlines() if line.startswith(str(graphs)))
    (second,) = done.stdout.splitlines()
    assert first.startswith(f"{graphs}: the existing store is reused: read 12 = stored 11 + failed 1 + duplicate 0")
    assert second.startswith(f"{out}: 11 structures (11 ok)")
    assert written(graphs) == moment
    assert open_scores(out).sizes["structure"] == 11


@pytest.mark.slow
def test_a_kill_in_the_middle_of_featurizing(model: Path, tmp_path: Path) -> None:
    sources = [write_extxyz(tmp_path / f"{number}.extxyz", 500, seed=number) for number in range(6)]
    out, parts = tmp_path / "s.zarr", tmp_path / "s.graphs.zarr.partial"
    words = command(*sources, "--model", model, "--out", out)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while not list(parts.glob("*/parts/[0-9]*.json")) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "s.graphs.zarr").exists(), "the run finished before it could be interrupted"
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not parts.exists()
    featurize(sources, tmp_path / "expected.zarr", cutoff=CUTOFF, scheduler="threads")
    assert same_files(tmp_path / "s.graphs.zarr", tmp_path / "expected.zarr")
    assert open_scores(out).sizes["structure"] == 3000
