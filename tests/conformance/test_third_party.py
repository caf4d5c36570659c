"""`pytest --pyargs equiscreen.conformance`, as somebody else runs it: in a folder of their own, in a new process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import equiscreen
import pytest

from ..conftest import ROOT
from ..test_imports import FORBID

PLUGIN = "equiscreen.conformance.plugin"
EMT = ("--calculator", "ase.calculators.emt:EMT")
BROKEN = """
import numpy as np
from ase.calculators.emt import EMT


class WrongSign(EMT):
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results["forces"] = -self.results["forces"]


class DependsOnPlace(EMT):
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results["energy"] += 0.01 * np.sin(self.atoms.positions).sum()


class CrystalsOnly(EMT):
    def calculate(self, atoms=None, *args, **kwargs):
        if not atoms.pbc.all():
            raise ValueError("periodic structures only")
        super().calculate(atoms, *args, **kwargs)
"""


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the laws; the plugin is named since an editable install may be older than its entry point."""
    command = [sys.executable, "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider", "-q", "-rs"]
    environment = {**os.environ, "PYTHONPATH": str(Path(str(equiscreen.__file__)).parents[1])}
    return subprocess.run(
        [*command, "--pyargs", "equiscreen.conformance", *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def failed(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Names of the laws that failed."""
    return set(re.findall(r"^_+ TestPotential\.test_(\w+)", done.stdout, re.MULTILINE))


def test_a_model_obeys_the_laws_without_pytorch(exported: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "forbid.py").write_text(FORBID + 'print("forbidden")\n')
    done = run(tmp_path, "-p", "forbid", "--model", exported("float32"))
    assert "forbidden" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "differences of forces need float64" in done.stdout


@pytest.mark.slow
def test_emt_obeys_the_laws(tmp_path: Path) -> None:
    done = run(tmp_path, *EMT, "--elements", "Al,Cu,Au")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b21 passed, 1 skipped", done.stdout), done.stdout


def test_a_wrong_sign_of_the_forces_is_found(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    done = run(tmp_path, "--calculator", "broken:WrongSign", "--elements", "Al,Cu")
    assert failed(done) == {"forces_are_the_gradient_of_the_energy"}, done.stdout + done.stderr


@pytest.mark.slow
def test_an_energy_that_depends_on_the_place_is_found(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    done = run(tmp_path, "--calculator", "broken:DependsOnPlace", "--elements", "Al,Cu")
    assert failed(done) >= {"translation", "rotation", "supercell"}, done.stdout + done.stderr
    assert not failed(done) & {"permutation", "batch_equals_single", "repeated_runs_agree", "forces_sum_to_zero"}


def test_a_calculator_that_fails_for_molecules_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    done = run(tmp_path, "--calculator", "broken:CrystalsOnly", "--elements", "Al,Cu")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.strip().splitlines()[-1] == (  # a newer NumPy warns about ASE before it
        "ERROR: the calculator fails for two atoms in vacuum: periodic structures only (the laws need a "
        "calculator that supports molecules)"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "equiscreen.conformance needs either --model MODEL or --calculator MODULE:NAME"),
        pytest.param(EMT, "--calculator needs --elements", marks=pytest.mark.slow),
        pytest.param(("--model", "missing.onnx"), "missing.onnx: cannot read the model file", marks=pytest.mark.slow),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run(tmp_path, *words)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.strip().startswith(f"ERROR: {message}")
    assert len(done.stderr.strip().splitlines()) == 1


def test_pytest_finds_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}
