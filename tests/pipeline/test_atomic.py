"""Files that are replaced as a whole keep everything but their content."""

from __future__ import annotations

from pathlib import Path

import pytest
from equiscreen.pipeline.atomic import atomic_path, write_text_atomically


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    file, link = tmp_path / "real" / "data", tmp_path / "link.txt"
    file.parent.mkdir()
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to(file)
    with atomic_path(link) as scratch:
        assert scratch.suffix == ".txt"  # by which some libraries choose a format
        assert scratch.parent == file.parent  # on the same file system
        scratch.write_text("new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "link.txt", "real"]


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(tmp_path / "a", "\udcff")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(
    "name", ["n" * 255, "n" * 251 + ".cif", "é" * 127 + "n", "日" * 85, "n." + "s" * 253, "." + "é" * 127]
)
def test_the_longest_names_have_room_for_the_scratch_file(name: str, tmp_path: Path) -> None:
    assert len(name.encode()) == 255
    for text in ("old", "new"):
        write_text_atomically(tmp_path / name, text)
        assert (tmp_path / name).read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == [name]
