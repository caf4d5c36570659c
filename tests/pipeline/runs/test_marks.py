"""A commit mark holds what was written, or it counts as absent and its part is made again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from equiscreen.pipeline import featurize
from equiscreen.pipeline.runs.marks import read_mark, write_mark
from equiscreen.pipeline.runs.parts import PartKey, committed, write_part
from equiscreen.pipeline.store.writer import StoreRun
from hypothesis import given
from hypothesis import strategies as st

from ...conftest import write_extxyz
from ..featurization.test_featurize import same_files

CONTENT = {"number": 3, "counts": {"read": 4096}, "labels": ["energy"], "lowest": -0.1, "none": None}


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("marks") / "mark.json"
    write_mark(path, CONTENT)
    return path


def test_a_mark_holds_what_was_written(mark: Path, tmp_path: Path) -> None:
    assert read_mark(mark) == CONTENT
    assert read_mark(tmp_path / "none.json") is None


@given(st.data())
def test_a_mark_with_any_damage_counts_as_none(mark: Path, data: st.DataObject) -> None:
    content = mark.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))])
    damaged = data.draw(
        st.sampled_from((content[:place], content[:place] + flipped + content[place + 1 :], b"[" * 10**5))
    )
    path = mark.with_name("damaged.json")
    path.write_bytes(damaged)
    assert read_mark(path) in (None, CONTENT)  # white space does not matter


@pytest.mark.parametrize("damage", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"content": 1, "sha256": 2}'])
def test_a_part_with_a_damaged_mark_is_not_committed(tmp_path: Path, damage: bytes) -> None:
    write_part(tmp_path, PartKey(0, 0, 2), {"x": np.arange(2)}, {"read": 2}, {"seconds": math.nan})
    second = write_part(tmp_path, PartKey(1, 0, 2), {"x": np.arange(2)}, {"read": 2}, {})
    assert len(committed(tmp_path)) == 2
    (tmp_path / f"{PartKey(0, 0, 2).stem}.json").write_bytes(damage)
    assert committed(tmp_path) == [second]


def test_a_run_makes_parts_with_damaged_marks_again(tmp_path: Path) -> None:
    source, out = write_extxyz(tmp_path / "s.extxyz", 3), tmp_path / "g.zarr"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreRun, "compact", interrupt)
        with pytest.raises(KeyboardInterrupt):
            featurize(source, out, scheduler="threads")
    (mark,) = (tmp_path / "g.zarr.partial").glob("*/parts/[0-9]*.json")
    mark.write_bytes(mark.read_bytes().replace(b'"read": 3', b'"read": 2'))
    assert featurize(source, out, scheduler="threads").read == 3
    featurize(source, tmp_path / "undisturbed.zarr", scheduler="threads")
    assert same_files(out, tmp_path / "undisturbed.zarr")
