"""Reading a store, and what happens when it is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from equiscreen.pipeline import GraphBlock, GraphStore, featurize
from equiscreen.pipeline.errors import StoreError

from ..conftest import write_extxyz


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    featurize(write_extxyz(folder / "s.extxyz", 30), folder / "g.zarr", cutoff=4.0, scheduler="threads")
    return folder / "g.zarr"


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "g.zarr")
    return tmp_path / "g.zarr"


def test_blocks_put_together_are_the_store(store: Path) -> None:
    graphs = GraphStore(store)
    joined = GraphBlock.concatenate(list(graphs.blocks(7)))
    at_once = graphs.block(0, len(graphs))
    for name in ("n_atoms", "cell", "atomic_number", "frac_coord", "n_neighbors", "neighbor", "image"):
        assert np.array_equal(getattr(joined, name), getattr(at_once, name)), name
    assert np.array_equal(joined.structure_labels["energy"], at_once.structure_labels["energy"])
    assert np.array_equal(joined.atom_labels["forces"], at_once.atom_labels["forces"])


def test_take_agrees_with_reading(store: Path) -> None:
    graphs = GraphStore(store)
    taken = graphs.block(0, 30).take([11, 3, 29])
    for place, index in enumerate((11, 3, 29)):
        alone = graphs.block(index, index + 1)
        assert np.array_equal(taken.take([place]).displacements(), alone.displacements())
        assert np.array_equal(taken.take([place]).atom_labels["forces"], alone.atom_labels["forces"])


def shard_of(store: Path, name: str) -> Path:
    return next(p for p in sorted((store / name / "c").rglob("*")) if p.is_file())


@pytest.mark.parametrize("name", ["neighbor", "cell", "atom_start", "status"])
def test_a_missing_shard_is_noticed_at_once(store: Path, name: str) -> None:
    shard_of(store, name).unlink()
    with pytest.raises(StoreError, match=f"damaged: shard 0 of '{name}' is missing"):
        GraphStore(store)


@pytest.mark.parametrize("name", ["neighbor", "frac_coord", "n_atoms"])
def test_a_changed_byte_is_an_error_and_never_a_wrong_number(store: Path, name: str) -> None:
    path = shard_of(store, name)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        GraphStore(store).block(0, 30)
    assert GraphStore(store).verify() == [name]


def test_verify_finds_nothing_in_a_whole_store(store: Path) -> None:
    assert GraphStore(store).verify() == []


def test_what_is_no_store_says_so(tmp_path: Path, store: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="not a Zarr store"):
        GraphStore(tmp_path / "folder")
    with pytest.raises(StoreError, match="no such store"):
        GraphStore(tmp_path / "nothing.zarr")
    text = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(text.replace("equiscreen-graphs/1", "equiscreen-graphs/99"))
    with pytest.raises(StoreError, match="equiscreen-graphs/99"):
        GraphStore(store)
    (store / "zarr.json").write_text(text.replace('"complete": true', '"complete": false'))
    with pytest.raises(StoreError, match="unfinished"):
        GraphStore(store)
