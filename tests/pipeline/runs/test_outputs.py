"""Outputs: no verb overwrites its inputs, or files that it did not make, even with --overwrite."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from equiscreen.campaigns import rank
from equiscreen.campaigns.references import fetch_references
from equiscreen.export.exporter import export_onnx
from equiscreen.model.pretrained.load import import_weights
from equiscreen.model.training.references import refit_references
from equiscreen.pipeline import GraphStore, featurize, merge
from equiscreen.pipeline.errors import EquiscreenError, OutputExistsError, StoreError
from equiscreen.pipeline.generation.generate import generate
from equiscreen.pipeline.store.writer import StoreRun
from equiscreen.publishing import crate
from equiscreen.screening import cascade, hull, relax, report, screen, select, to_parquet

from ...conftest import write_extxyz


@pytest.fixture
def store(tmp_path: Path) -> Path:
    featurize(write_extxyz(tmp_path / "in.extxyz", 4), tmp_path / "g.zarr", scheduler="threads")
    return tmp_path / "g.zarr"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_input_is_never_replaced(
    store: Path, tmp_path: Path, exported: Callable[[str], Path], checkpoint: Path
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(exported("float64").read_bytes())
    weights = tmp_path / "model.ckpt"
    weights.write_bytes(checkpoint.read_bytes())
    screen(store, model, tmp_path / "s.zarr", scheduler="threads")
    source, scores, table = tmp_path / "in.extxyz", tmp_path / "s.zarr", tmp_path / "refs.parquet"
    columns = {"formula": ["Cu"], "energy_per_atom": [-4.1], "scheme": ["mp-uncorrected"]}
    pq.write_table(pa.table(columns), table)
    before = content(tmp_path)
    attempts: list[Callable[[], object]] = [
        lambda: featurize(source, source, overwrite=True, scheduler="threads"),
        lambda: merge([store], store, overwrite=True, scheduler="threads"),
        lambda: screen(store, model, store, overwrite=True, scheduler="threads"),
        lambda: screen(store, model, model, overwrite=True, scheduler="threads"),
        lambda: relax(store, model, store, overwrite=True, scheduler="threads"),
        lambda: hull(scores, [source], scores, overwrite=True),
        lambda: hull(scores, [source], source, overwrite=True),
        lambda: select(scores, tmp_path, overwrite=True),
        lambda: select(scores, store, overwrite=True),
        lambda: report(scores, scores / "zarr.json", overwrite=True),
        lambda: report(scores, store / "page.html", store=store, overwrite=True),
        lambda: generate([store], store, 3, overwrite=True),
        lambda: generate([store], store / "candidates.parquet", 3, overwrite=True),
        lambda: to_parquet(scores, scores / "zarr.json", overwrite=True),
        lambda: to_parquet(scores, scores / "table.parquet"),
        lambda: fetch_references([table], None, table, overwrite=True),
        lambda: cascade(store, model, model, store / "cascade", references=[table]),
        lambda: rank([store], store / "results", model=model),
        lambda: export_onnx(weights, weights, overwrite=True),
        lambda: import_weights(str(weights), weights, overwrite=True),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises(EquiscreenError) as caught:
            attempt()
        assert "\n" not in str(caught.value), number
        assert content(tmp_path) == before, number


def test_what_another_verb_wrote_is_not_replaced(
    store: Path, tmp_path: Path, exported: Callable[[str], Path], checkpoint: Path
) -> None:
    model, scores = exported("float64"), tmp_path / "s.zarr"
    screen(store, model, scores, scheduler="threads")
    featurize(tmp_path / "in.extxyz", tmp_path / "other.zarr", scheduler="threads")
    recipe = tmp_path / "recipe.json"
    recipe.write_text("{}\n")
    before = content(tmp_path)
    attempts: list[Callable[[], object]] = [
        lambda: screen(store, model, tmp_path / "other.zarr", overwrite=True, scheduler="threads"),
        lambda: merge([store], scores, overwrite=True, scheduler="threads"),
        lambda: report(scores, recipe, overwrite=True),
        lambda: to_parquet(scores, recipe, overwrite=True),
        lambda: generate([store], recipe, 3, overwrite=True),
        lambda: crate(scores, recipe, overwrite=True),
        lambda: export_onnx(checkpoint, recipe, overwrite=True),
        lambda: import_weights(str(checkpoint), recipe, overwrite=True),
        lambda: refit_references(checkpoint, store, recipe, overwrite=True),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises(OutputExistsError, match="so it is not overwritten; choose another"):
            attempt()
        assert content(tmp_path) == before, number


def test_the_graphs_of_a_relaxation_replace_no_input(
    tmp_path: Path, store: Path, exported: Callable[[str], Path]
) -> None:
    store.rename(tmp_path / "r.graphs.zarr")
    before = content(tmp_path)
    with pytest.raises(OutputExistsError, match="is read by this run"):
        relax(tmp_path / "r.graphs.zarr", exported("float64"), tmp_path / "r.zarr", overwrite=True, scheduler="threads")
    assert content(tmp_path) == before


def test_a_source_that_changes_during_the_run_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_extxyz(tmp_path / "in.extxyz", 4)
    check = StoreRun.check_inputs

    def changed(run: StoreRun) -> None:
        source.write_text(source.read_text() + "\n")
        check(run)

    monkeypatch.setattr(StoreRun, "check_inputs", changed)
    with pytest.raises(StoreError, match=r"in\.extxyz has changed during this run"):
        featurize(source, tmp_path / "g.zarr", scheduler="threads")
    assert not (tmp_path / "g.zarr").exists()
    monkeypatch.undo()
    featurize(source, tmp_path / "g.zarr", overwrite=True, scheduler="threads")
    assert len(GraphStore(tmp_path / "g.zarr")) == 4


def test_a_foreign_folder_in_place_of_the_unfinished_work_stays(
    store: Path, tmp_path: Path, exported: Callable[[str], Path]
) -> None:
    """``OUT.partial`` is removed at the end of a run, but not if somebody else made it."""
    scores = Path(str(screen(store, exported("float64"), tmp_path / "s.zarr", scheduler="threads").encoding["source"]))
    table = tmp_path / "refs.csv"
    table.write_text("formula,energy_per_atom,scheme\nCu,-4.1,mp-uncorrected\n")
    verbs: dict[str, Callable[[Path], object]] = {
        "a.zarr": lambda out: featurize(tmp_path / "in.extxyz", out, overwrite=True, scheduler="threads"),
        "b.zarr": lambda out: screen(store, exported("float64"), out, overwrite=True, scheduler="threads"),
        "c": lambda out: select(scores, out, by="energy_per_atom", overwrite=True),
        "d.parquet": lambda out: fetch_references([table], None, out, overwrite=True),
    }
    for name, verb in verbs.items():
        foreign = tmp_path / f"{name}.partial"
        foreign.mkdir()
        (foreign / "thesis.tex").write_text("years of work")
        with pytest.raises(OutputExistsError, match="not made by equiscreen"):
            verb(tmp_path / name)
        assert content(foreign) == {"thesis.tex": b"years of work"}
        (foreign / "thesis.tex").unlink()
        verb(tmp_path / name)
        assert not foreign.exists()


def test_a_configuration_in_the_run_folder_stays(
    store: Path, tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "model.ckpt").write_bytes(b"")
    (run / "config.yaml").write_text("training: {max_epochs: 1}")
    done = command_line("train", store, "--config", run / "config.yaml", "--out", run, "--overwrite")
    assert done.returncode == 1
    assert "config.yaml is read by this run" in done.stderr
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "model.ckpt", "run.json"]
