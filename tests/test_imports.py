"""Featurizing and screening import none of PyTorch, e3nn, onnx and lightning, checked in new interpreters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .conftest import write_extxyz

HEAVY = ("torch", "e3nn", "onnx", "lightning")
SCRIPT = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy!r}:
            raise ModuleNotFoundError(f"{{name}} must not be imported here", name=name)

sys.meta_path.insert(0, Forbidden())
from equiscreen.export import OnnxPotential
from equiscreen.screening import open_scores, screen
from equiscreen.pipeline import GraphStore, featurize

featurize({source!r}, {graphs!r}, cutoff=5.0, scheduler="threads")
scores = screen({graphs!r}, {model!r}, {out!r}, scheduler="threads")
assert int((scores["status"] == 0).sum()) == 4
assert not set({heavy!r}) & set(sys.modules), set({heavy!r}) & set(sys.modules)
print("clean")
"""


def test_featurizing_and_screening_import_no_framework(exported: Callable[[str], Path], tmp_path: Path) -> None:
    script = SCRIPT.format(
        heavy=HEAVY,
        source=str(write_extxyz(tmp_path / "s.extxyz", 4)),
        graphs=str(tmp_path / "g.zarr"),
        model=str(exported("float32")),
        out=str(tmp_path / "s.zarr"),
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "clean", done.stderr


def test_pipeline_imports_neither_model_nor_export() -> None:
    script = (
        "import sys, equiscreen.pipeline; "
        "print([m for m in sys.modules if m.startswith(('equiscreen.model', 'equiscreen.export', 'onnxruntime'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
