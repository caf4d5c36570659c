"""Labels beside predictions: which structures count, and where the graph store is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import ConfigError, StoreError
from equiscreen.screening import calibration, labels_and_predictions, open_scores

from ..conftest import CUTOFF, write_extxyz
from .selection.selection_data import scored_columns, write_dataset

SIZE = 12


@pytest.fixture
def graphs(tmp_path: Path) -> GraphStore:
    """A graph store with energies as labels."""
    (tmp_path / "a").mkdir()
    write_extxyz(tmp_path / "c.extxyz", SIZE, seed=3)
    featurize(tmp_path / "c.extxyz", tmp_path / "a" / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    return GraphStore(tmp_path / "a" / "g.zarr")


@pytest.fixture
def scores(graphs: GraphStore) -> Path:
    """Scores beside the store, each energy 0.5 eV above its label; the second structure has failed."""
    columns = scored_columns(graphs)
    columns["energy"] = graphs.column("energy") + 0.5
    columns["energy_per_atom"] = columns["energy"] / columns["n_atoms"]
    columns["status"] = (np.arange(SIZE) == 1).astype(np.uint8)
    return write_dataset(graphs.path.parent / "s.zarr", graphs, columns)


def check(scores: xr.Dataset, store: Path | None = None) -> None:
    label, prediction = labels_and_predictions(scores, store=store)
    n_atoms = np.delete(scores["n_atoms"].values, 1)
    assert np.allclose(prediction - label, 0.5 / n_atoms, rtol=0, atol=1e-12)
    error, spread = calibration(scores, store=store)
    assert np.array_equal(error, prediction - label)
    assert np.array_equal(spread, np.delete(scores["energy_std"].values / scores["n_atoms"].values, 1))


def test_dataset_and_store_may_be_moved_together(scores: Path, tmp_path: Path) -> None:
    check(open_scores(scores))
    shutil.move(tmp_path / "a", tmp_path / "b")
    check(open_scores(tmp_path / "b" / "s.zarr"))
    check(open_scores(str(tmp_path / "b" / "s.zarr")).load())


def test_the_source_of_a_relaxation_may_be_moved_too(scores: Path, graphs: GraphStore, tmp_path: Path) -> None:
    """Labels are those of the store that was relaxed, since the relaxed store holds energies of the model."""
    moved = open_scores(scores)
    moved.attrs["relaxed_from"] = moved.attrs["graph_store"]
    moved.attrs["graph_store"] = {"path": str(tmp_path / "relaxed.zarr"), "store_hash": "none"}
    check(moved)
    shutil.copytree(graphs.path, tmp_path / "b" / "g.zarr")
    shutil.rmtree(graphs.path)
    with pytest.raises(StoreError):
        labels_and_predictions(moved)
    moved.encoding["source"] = str(tmp_path / "b" / "s.zarr")
    check(moved)


def test_a_store_can_be_named_and_has_to_be_the_right_one(scores: Path, graphs: GraphStore, tmp_path: Path) -> None:
    shutil.move(graphs.path, tmp_path / "elsewhere.zarr")
    with pytest.raises(StoreError):
        labels_and_predictions(open_scores(scores))
    check(open_scores(scores), tmp_path / "elsewhere.zarr")
    write_extxyz(tmp_path / "d.extxyz", SIZE, seed=4)
    featurize(tmp_path / "d.extxyz", graphs.path, cutoff=CUTOFF, scheduler="threads")
    with pytest.raises(StoreError, match="not the store that"):
        labels_and_predictions(open_scores(scores))


def test_some_rows_of_a_dataset_are_refused(scores: Path) -> None:
    with pytest.raises(ConfigError, match="subset of a dataset"):
        labels_and_predictions(open_scores(scores).isel(structure=slice(2, None)))
