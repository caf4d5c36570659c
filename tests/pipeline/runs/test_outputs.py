"""Outputs: no verb overwrites its inputs, or files that it did not make, even with --overwrite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from equiscreen.export.exporter import export_onnx
from equiscreen.model.pretrained.load import import_weights
from equiscreen.pipeline import GraphStore, featurize, merge
from equiscreen.pipeline.errors import EquiscreenError, OutputExistsError, StoreError
from equiscreen.pipeline.generation.generate import generate
from equiscreen.pipeline.store.writer import StoreRun
from equiscreen.screening import hull, relax, report, screen, select

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
    source, scores = tmp_path / "in.extxyz", tmp_path / "s.zarr"
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
        lambda: export_onnx(weights, weights, overwrite=True),
        lambda: import_weights(str(weights), weights, overwrite=True),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises(EquiscreenError) as caught:
            attempt()
        assert "\n" not in str(caught.value), number
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
    with pytest.raises(StoreError, match=r"in\.extxyz: has changed during this run"):
        featurize(source, tmp_path / "g.zarr", scheduler="threads")
    assert not (tmp_path / "g.zarr").exists()
    monkeypatch.undo()
    featurize(source, tmp_path / "g.zarr", overwrite=True, scheduler="threads")
    assert len(GraphStore(tmp_path / "g.zarr")) == 4
