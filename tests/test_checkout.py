"""A checkout has no stray files at its root, and passes the linter whatever its folder is called."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

FILES_AT_THE_ROOT = {
    ".containerignore",
    ".gitignore",
    "CHANGELOG.md",
    "CITATION.cff",
    "Containerfile",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "__init__.py",
    "__main__.py",
    "constraints.txt",
    "mkdocs.yml",
    "py.typed",
    "pyproject.toml",
}


def tracked_files() -> list[str]:
    """Paths of the tracked files that exist in the working tree, relative to its root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


def test_no_stray_file_lies_at_the_root() -> None:
    assert {name for name in tracked_files() if "/" not in name} == FILES_AT_THE_ROOT


@pytest.mark.parametrize("folder", ["equiscreen", "Another-name.2"])
def test_lint_passes_in_a_folder_of_any_name(folder: str, tmp_path: Path) -> None:
    pytest.importorskip("ruff", reason="the linter comes with the dev extra")
    for name in tracked_files():
        target = tmp_path / folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    for command in (("check",), ("format", "--check")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
            cwd=tmp_path / folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
