"""The shell lines, the Python script and the configuration in the README work on real files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from equiscreen.model import Config
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import open_scores

from .conftest import ELEMENTS, ROOT, cif_text, write_emt_labelled

README = (ROOT / "README.md").read_text()
QUICK = {"network": {"hidden_irreps": "4x0e + 2x1o", "correlation": 2}, "training": {"max_epochs": 2}}


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_emt_labelled(tmp_path / "training.extxyz", probe_structures(ELEMENTS, 20, seed=70))
    (tmp_path / "candidates").mkdir()
    for number, structure in enumerate(probe_structures(ELEMENTS, 12, seed=71)):
        (tmp_path / "candidates" / f"c{number}.cif").write_text(cif_text(structure))
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(QUICK))
    return tmp_path


def test_the_configuration_is_the_default() -> None:
    config = Config.parse(yaml.safe_load(block("yaml")), "README")
    assert config.network.heads.keys() == {"dielectric"}
    assert config.training.split.by == "composition"


@pytest.mark.slow
def test_the_shell_lines(folder: Path) -> None:
    lines = block("sh").strip().splitlines()
    assert len(lines) == 5
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in lines:
        quick = f"{line} --config quick.yaml" if " train " in line else line  # two epochs instead of two hundred
        done = subprocess.run(quick.split(), cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert open_scores(folder / "scores.zarr").sizes["structure"] == 12


@pytest.mark.slow
def test_the_python(folder: Path) -> None:
    script = block("python")
    assert len([line for line in script.splitlines() if line.strip()]) == 10
    (folder / "job.py").write_text(script)
    done = subprocess.run([sys.executable, "job.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^c\d+ +-?\d", done.stdout, re.MULTILINE)) == 10
