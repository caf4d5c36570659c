"""The distributions: their content, and that the wheel works in an environment without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT
from .test_checkout import tracked_files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def test_the_source_distribution_holds_what_the_repository_holds(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    left_out = {".ci/run", ".gitignore"}
    assert {name for name in tracked_files() if name not in held} <= left_out


def test_the_wheel_holds_the_packages_and_their_data_and_no_tests(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("equiscreen/")}
    parts = ("campaigns", "cli", "conformance", "demo", "export", "model", "pipeline", "publishing", "screening")
    wanted = [name for name in tracked_files() if name.startswith(parts)]
    assert [name for name in wanted if f"equiscreen/{name}" not in held] == []
    assert not [name for name in held if name.split("/")[1] in {"tests", "docs", "tools", "notebooks", "examples"}]


def test_twine_accepts_them(dist: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_check_of_a_release_names_what_is_missing(dist: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/release/check.py"), str(dist)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "repo_url is not set; set it to the public https address of the repository" in done.stdout
    assert "twine rejects" not in done.stdout


@pytest.mark.parametrize(
    ("extra", "program"),
    [
        ("", "import equiscreen; print(equiscreen.featurize('Cu.vasp', 'g.zarr', scheduler='threads').stored)"),
        ("cpu", "from equiscreen.screening import screen, relax, hull, select, report; print(1)"),
    ],
)
@pytest.mark.timeout(1200)
def test_the_wheel_works_by_itself(dist: Path, extra: str, program: str, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    python = tmp_path / "env" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    what = f"equiscreen[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
    for command in (
        [sys.executable, "-m", "venv", str(tmp_path / "env")],
        [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), what],
    ):
        subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    (tmp_path / "Cu.vasp").write_text("Cu\n3.6\n0 .5 .5\n.5 0 .5\n.5 .5 0\nCu\n1\ndirect\n0 0 0\n")
    done = subprocess.run(
        [str(python), "-c", program], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    shown = subprocess.run(
        [str(python.with_name("equiscreen")), "--version"], capture_output=True, text=True, check=False, env=environment
    )
    assert shown.returncode == 0, shown.stderr
    listed = subprocess.run([str(python), "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "torch" not in listed
