"""A shard that was replaced by a sound one, or that says that its chunks do not exist, is damaged for every reader."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import pytest
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import StoreError
from equiscreen.screening import compare, open_scores, select
from equiscreen.screening.dataset.reader import ScoresReader

from ..conftest import write_extxyz
from .selection.selection_data import scored_columns, write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sound")
    write_extxyz(made / "s.extxyz", 12)
    featurize(made / "s.extxyz", made / "g.zarr", scheduler="threads")
    graphs = GraphStore(made / "g.zarr")
    write_dataset(made / "s.zarr", graphs, scored_columns(graphs))
    return made


def shard(store: Path, name: str) -> Path:
    return next(path for path in (store / name / "c").rglob("*") if path.is_file())


def replaced(store: Path, name: str, other: str) -> None:
    shutil.copyfile(shard(store, other), shard(store, name))


def emptied(store: Path, name: str, _other: str) -> None:
    """A shard without chunks, whose index has the right checksum: zarr reads zeros."""
    index = b"\xff" * 16
    shard(store, name).write_bytes(index + google_crc32c.value(index).to_bytes(4, "little"))


@pytest.mark.parametrize("damage", [replaced, emptied])
@pytest.mark.parametrize(
    ("name", "other"), [("energy_above_hull", "energy_per_atom"), ("energy_per_atom", "max_force")]
)
def test_scores(folder: Path, damage: Callable[..., None], name: str, other: str, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "x")
    scores = tmp_path / "x" / "s.zarr"
    damage(scores, name, other)
    for read in (
        lambda: open_scores(scores),
        lambda: ScoresReader(scores).column(name, 0, 3),
        lambda: select(scores, tmp_path / "best", top=3, by="energy_per_atom"),
        lambda: compare(scores, folder / "s.zarr"),
    ):
        with pytest.raises(StoreError, match="does not match its checksum"):
            read()


@pytest.mark.parametrize("damage", [replaced, emptied])
@pytest.mark.parametrize(("name", "other"), [("n_edges", "n_atoms"), ("neighbor", "neighbor"), ("energy", "energy")])
def test_graphs(folder: Path, damage: Callable[..., None], name: str, other: str, tmp_path: Path) -> None:
    shutil.copytree(folder / "g.zarr", tmp_path / "g.zarr")
    if name == other and damage is replaced:
        write_extxyz(tmp_path / "s.extxyz", 12, seed=1)
        featurize(tmp_path / "s.extxyz", tmp_path / "other.zarr", scheduler="threads")
        shutil.copyfile(shard(tmp_path / "other.zarr", name), shard(tmp_path / "g.zarr", name))
    else:
        damage(tmp_path / "g.zarr", name, other)
    with pytest.raises(StoreError, match="does not match its checksum"):
        GraphStore(tmp_path / "g.zarr").block(2, 3)


def test_checksums_of_another_store_are_damage(folder: Path, tmp_path: Path) -> None:
    for store in ("g.zarr", "s.zarr"):
        shutil.copytree(folder / store, tmp_path / store)
    shutil.copyfile(tmp_path / "s.zarr" / "checksums.json", tmp_path / "g.zarr" / "checksums.json")
    (tmp_path / "s.zarr" / "checksums.json").unlink()
    with pytest.raises(StoreError, match=r"checksums.json does not belong to this store"):
        GraphStore(tmp_path / "g.zarr").block(0, 1)
    with pytest.raises(StoreError, match=r"checksums.json cannot be read"):
        open_scores(tmp_path / "s.zarr")
