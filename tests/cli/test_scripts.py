"""Campaigns, screens and relaxations in scripts without a guard, from standard input and in notebooks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import write_extxyz

SCRIPT = """
from equiscreen.campaigns import rank
from equiscreen.screening import RelaxSettings, relax_files, screen_files

best = rank("crystals.extxyz", "results", model="model.onnx", relax=False)
screen_files("crystals.extxyz", "model.onnx", "scores.zarr")
relax_files("crystals.extxyz", "model.onnx", "relaxed.zarr", RelaxSettings(max_steps=2))
print("ranked", best.sizes["structure"])
"""


@pytest.fixture
def folder(exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with crystals and a model, which is the current one."""
    write_extxyz(tmp_path / "crystals.extxyz", 4)
    shutil.copyfile(exported("float32"), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("is_file", [True, False], ids=["file", "standard input"])
def test_a_script_needs_no_guard(folder: Path, is_file: bool) -> None:
    (folder / "script.py").write_text(SCRIPT)
    words = [sys.executable, "script.py" if is_file else "-"]
    done = subprocess.run(words, input=None if is_file else SCRIPT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ranked 4\n"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_notebook_needs_no_guard() -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs notebooks")
    pytest.importorskip("ipykernel", reason="the kernel that runs the notebook")
    nbformat = pytest.importorskip("nbformat", reason="comes with nbclient")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SCRIPT)])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    printed = "".join(one["text"] for one in notebook.cells[0].outputs if one.get("name") == "stdout")
    assert printed == "ranked 4\n"
