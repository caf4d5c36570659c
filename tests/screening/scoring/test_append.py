"""Appending: after a store has grown, only its new structures are scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from equiscreen.pipeline import GraphStore, LabelMapping, featurize
from equiscreen.pipeline.errors import ConfigError, StoreError
from equiscreen.pipeline.runs.options import RunOptions
from equiscreen.pipeline.runs.staging import Staging
from equiscreen.screening import open_scores, screen
from equiscreen.screening.candidate_graphs import prepare_graphs
from equiscreen.screening.scoring import worker

from ...conftest import CUTOFF, write_extxyz
from ...export.runtime.altered_models import altered


@pytest.fixture
def model(exported: Callable[[str], Path]) -> Path:
    return exported("float32")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Graph store of nine crystals."""
    grow(tmp_path / "g.zarr", 9, seed=220)
    return tmp_path / "g.zarr"


def grow(store: Path, count: int, seed: int) -> None:
    """Append random crystals to a graph store, or create it."""
    source = write_extxyz(store.with_name(f"{seed}.extxyz"), count, seed)
    mapping = LabelMapping(columns=())
    featurize(source, store, cutoff=CUTOFF, labels=mapping, append=store.exists(), scheduler="threads")


def same(found: xr.Dataset, expected: xr.Dataset) -> None:
    """Check that two datasets are equal, apart from float32 rounding."""
    assert set(found.variables) == set(expected.variables)
    for name in expected.variables:
        a, b = found[name].values, expected[name].values
        if a.dtype.kind == "f":  # other structures in the batch: float32 rounding
            assert np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True), name
        else:
            assert np.array_equal(a, b), name


def test_old_rows_are_kept_and_new_ones_scored(
    store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.zarr"
    old = screen(store, model, out, scheduler="threads").load()
    grow(store, 5, seed=221)
    grow(store, 4, seed=222)  # two appends: the second store records the hash of the first
    scored = []
    score = worker.score_block
    monkeypatch.setattr(worker, "score_block", lambda block, *rest: scored.append(len(block)) or score(block, *rest))
    found = screen(store, model, out, append=True, scheduler="threads").load()
    assert sum(scored) == 9
    assert found.sizes["structure"] == 18
    for name in old.variables:
        a, b = found[name].values[:9], old[name].values
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), name
    assert found.attrs["graph_store"]["store_hash"] == GraphStore(store).store_hash
    assert found.attrs["appended_to"] == {"store_hash": old.attrs["store_hash"], "structures": 9}
    assert found.attrs["status_counts"]["ok"] == 18
    assert found.attrs["timing"]["structures"] == 9
    assert found.attrs["timing"]["core_hours"] >= old.attrs["timing"]["core_hours"]
    same(found, screen(store, model, tmp_path / "t.zarr", scheduler="threads"))
    again = screen(store, model, out, append=True, scheduler="threads")  # nothing left to score
    assert again.attrs == found.attrs
    assert sum(scored) == 9 + 18


def test_the_rest_behind_a_limit_is_appended(store: Path, model: Path, tmp_path: Path) -> None:
    screen(store, model, tmp_path / "s.zarr", limit=4, scheduler="threads")
    found = screen(store, model, tmp_path / "s.zarr", limit=6, append=True, scheduler="threads")
    assert found.sizes["structure"] == 6
    same(screen(store, model, tmp_path / "s.zarr", append=True, scheduler="threads"), screen_of(store, model, tmp_path))
    with pytest.raises(StoreError, match="9 rows, but only 6 structures"):
        screen(store, model, tmp_path / "s.zarr", limit=6, append=True, scheduler="threads")


def screen_of(store: Path, model: Path, folder: Path) -> xr.Dataset:
    return screen(store, model, folder / "whole.zarr", scheduler="threads")


def test_an_append_that_is_killed_as_it_is_published_is_taken_up(
    store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.zarr"
    old = screen(store, model, out, scheduler="threads").load()
    grow(store, 5, seed=223)

    def killed(staging: Staging) -> None:
        assert staging.out.path is not None
        staging.out.path.rename(staging.folder / "replaced")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "put_in_place", killed)
        with pytest.raises(KeyboardInterrupt):
            screen(store, model, out, append=True, scheduler="threads")
    assert not out.exists()
    found = screen(store, model, out, append=True, scheduler="threads")
    assert found.sizes["structure"] == 14
    assert np.array_equal(found["energy"].values[:9], old["energy"].values)
    assert not list(tmp_path.glob("*.partial"))


def test_what_cannot_be_appended_to_is_told_and_kept(store: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    before = screen(store, model, out, scheduler="threads").load()
    grow(store, 3, seed=224)
    grow(tmp_path / "other.zarr", 12, seed=225)
    another = altered(model, tmp_path / "m.onnx", 1.1)
    words = {"append": True, "scheduler": "threads"}
    with pytest.raises(StoreError, match=r"s\.zarr: .* cannot be appended to \(different graphs\)"):
        screen(tmp_path / "other.zarr", model, out, **words)
    with pytest.raises(StoreError, match="different model"):
        screen(store, another, out, **words)
    with pytest.raises(StoreError, match="different settings"):
        screen(store, model, out, min_distance=1.0, **words)
    with pytest.raises(StoreError, match="no such store"):
        screen(store, model, tmp_path / "none.zarr", **words)
    with pytest.raises(ConfigError, match="use only one of them"):
        screen(store, model, out, overwrite=True, **words)
    with pytest.raises(ConfigError, match="--append works only with a graph store"):
        prepare_graphs(tmp_path / "220.extxyz", model, out, RunOptions(scheduler="threads"), append=True)
    assert open_scores(out).load().identical(before)
