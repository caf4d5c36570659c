"""The README's command from a folder of crystals to a ranked list, run as printed there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ..conftest import ELEMENTS, ROOT, cif_text


def lines() -> list[str]:
    found = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1].strip().splitlines()


def test_the_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = re.search(r"\.\[(.*)\]", lines()[0])
    assert wanted is not None
    assert set(wanted[1].split(",")) <= set(extras)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    install, *rest = lines()
    assert install.startswith("pip install")
    assert len(rest) == 1
    (tmp_path / "my_crystals").mkdir()
    for number, structure in enumerate(probe_structures(ELEMENTS, 6, seed=71)):
        (tmp_path / "my_crystals" / f"c{number}.cif").write_text(cif_text(structure))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "EQUISCREEN_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        ["bash", "-c", rest[0]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ranked = [float(energy) for energy in re.findall(r"^ *\d+  \w+ +(-?\d+\.\d+) ", done.stdout, re.MULTILINE)]
    assert 1 <= len(ranked) <= 6
    assert ranked == sorted(ranked)
    assert (tmp_path / "results/report.html").is_file()
