"""Imports: packages import only what they may, and public names on first use; tested in new interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from .conftest import ROOT, write_extxyz

HEAVY = ("torch", "e3nn", "onnx", "lightning")
FORBID = f"""
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"{{name}} is not to be imported here", name=name)

sys.meta_path.insert(0, Forbidden())
"""
SCRIPT = """
from equiscreen.export import OnnxPotential
from equiscreen.screening import open_scores, screen
from equiscreen.pipeline import GraphStore, featurize

featurize({source!r}, {graphs!r}, cutoff=5.0, scheduler="threads")
scores = screen({graphs!r}, {model!r}, {out!r}, scheduler="threads")
assert int((scores["status"] == 0).sum()) == 4
assert not set({heavy!r}) & set(sys.modules), set({heavy!r}) & set(sys.modules)
print("clean")
"""
PACKAGES = ("pipeline", "model", "export", "screening", "publishing", "campaigns")


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_featurizing_and_screening_import_no_framework(exported: Callable[[str], Path], tmp_path: Path) -> None:
    script = FORBID + SCRIPT.format(
        heavy=HEAVY,
        source=str(write_extxyz(tmp_path / "s.extxyz", 4)),
        graphs=str(tmp_path / "g.zarr"),
        model=str(exported("float32")),
        out=str(tmp_path / "s.zarr"),
    )
    done = run(script)
    assert done.stdout.strip() == "clean", done.stderr


def test_screening_and_pipeline_import_no_framework() -> None:
    script = f"""{FORBID}
from equiscreen.screening import screen, relax, hull, select, report
from equiscreen.screening import *
from equiscreen.publishing import *
from equiscreen.pipeline import *
from equiscreen.export import OnnxCalculator, OnnxPotential
import equiscreen.screening.relaxation.worker, equiscreen.screening.scoring.worker

assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)
print("clean")
"""
    done = run(script)
    assert done.stdout.strip() == "clean", done.stderr


def test_pipeline_imports_neither_model_nor_export() -> None:
    script = (
        "import sys; from equiscreen.pipeline import *; "
        "print([m for m in sys.modules if m.startswith(('equiscreen.model', 'equiscreen.export', 'onnxruntime'))])"
    )
    done = run(script)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_none_of_its_modules(package: str) -> None:
    """Public names are imported on first use."""
    script = (
        f"import sys, equiscreen.{package}; "
        "print(sorted(m for m in sys.modules if m.startswith('equiscreen.') or m in ('numpy', 'zarr')))"
    )
    allowed = {"equiscreen.pipeline", "equiscreen.pipeline.lazy_names", f"equiscreen.{package}"}
    done = run(script)
    assert set(ast.literal_eval(done.stdout)) == allowed, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_the_same_for_type_checkers_and_at_run_time(package: str) -> None:
    """The imports under TYPE_CHECKING, the table of `lazy_names` and `__all__` name the same things."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    checked = {
        alias.name: f".{node.module}"
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (table,) = (ast.literal_eval(node) for node in ast.walk(tree) if isinstance(node, ast.Dict))
    module = import_module(f"equiscreen.{package}")
    assert checked == table
    assert sorted(module.__all__) == sorted(table)
    assert set(table) - {"OnnxModel"} <= set(dir(module))  # which needs TorchSim
    with pytest.raises(AttributeError, match=f"module 'equiscreen.{package}' has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018 - looking it up is the test
    for name in table:
        if name != "OnnxModel":
            assert getattr(module, name) is getattr(module, name)


@pytest.mark.parametrize(
    "package",
    ["equiscreen", *(pytest.param(f"equiscreen.{part}", marks=pytest.mark.slow) for part in ("model", "export"))],
)
def test_help_works_where_an_extra_is_not_installed(package: str) -> None:
    """`pip install '.[rank]'` has no Lightning, and the README tells its users to call ``help(equiscreen)``."""
    script = (
        "import importlib.util, pydoc, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'lightning' else found(name)\n"
        "sys.modules['lightning'] = None\n"
        f"import {package}\n"
        f"print(pydoc.render_doc({package}, renderer=pydoc.plaintext))"
    )
    done = run(script)
    assert "PACKAGE CONTENTS" in done.stdout, done.stderr
