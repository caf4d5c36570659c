"""Processes that are killed: what is left is taken up, and the result is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from equiscreen.export import open_scores
from equiscreen.pipeline import GraphStore

from .conftest import write_extxyz
from .pipeline.test_featurize import same_files

STRUCTURES = 6_000
FILES = 12


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "equiscreen", *map(str, words)]


def finish(words: Sequence[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def start_until_parts(words: Sequence[str], out: Path, parts: int) -> subprocess.Popen[bytes]:
    """Start a run and wait until some parts, not all, are on disk."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    folder = out.with_name(f"{out.name}.partial") / "parts"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(folder.glob("[0-9]*.json"))) >= parts:
            break
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be disturbed"
    return process


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [p for p in children if "spawn_main" in " ".join(p.cmdline())]


def kill_a_worker(words: Sequence[str], out: Path, parts: int) -> None:
    process = start_until_parts(words, out, parts)
    victims = workers(process)
    assert len(victims) >= 1
    victims[0].kill()
    assert process.wait(timeout=200) == 0


def kill_everything_and_resume(words: Sequence[str], out: Path, parts: int) -> None:
    process = start_until_parts(words, out, parts)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    marks = {p: p.stat().st_mtime_ns for p in out.with_name(f"{out.name}.partial").glob("parts/[0-9]*.json")}
    finish(words)
    assert len(marks) >= parts


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    return [write_extxyz(folder / f"{i:02d}.extxyz", STRUCTURES // FILES, seed=100 + i) for i in range(FILES)]


@pytest.fixture(scope="module")
def undisturbed(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "g.zarr"
    finish(command("featurize", *sources, "--out", out))
    assert len(GraphStore(out)) == STRUCTURES
    return out


@pytest.mark.parametrize("disturb", [kill_a_worker, kill_everything_and_resume])
def test_featurize_survives(
    sources: list[Path], undisturbed: Path, tmp_path: Path, disturb: Callable[[Sequence[str], Path, int], None]
) -> None:
    out = tmp_path / "g.zarr"
    disturb(command("featurize", *sources, "--out", out), out, 2)
    assert same_files(out, undisturbed)
    assert not list(tmp_path.glob("*.partial"))


@pytest.fixture(scope="module")
def model(exported: Callable[[str], Path]) -> Path:
    return exported("float32")


@pytest.fixture(scope="module")
def scores(undisturbed: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scores") / "s.zarr"
    finish(command("screen", undisturbed, "--model", model, "--out", out))
    return out


@pytest.mark.parametrize("disturb", [kill_a_worker, kill_everything_and_resume])
def test_screen_survives(
    undisturbed: Path,
    model: Path,
    scores: Path,
    tmp_path: Path,
    disturb: Callable[[Sequence[str], Path, int], None],
) -> None:
    out = tmp_path / "s.zarr"
    disturb(command("screen", undisturbed, "--model", model, "--out", out), out, 1)
    found, expected = open_scores(out), open_scores(scores)
    assert set(found.variables) == set(expected.variables)
    for name in expected.variables:
        a, b = found[name].values, expected[name].values
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), name
    without_timing = [{k: v for k, v in x.attrs.items() if k != "timing"} for x in (found, expected)]
    assert without_timing[0] == without_timing[1]


def test_two_runs_on_one_output_the_second_refuses(sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "g.zarr"
    words = command("featurize", *sources, "--out", out)
    process = start_until_parts(words, out, 1)
    try:
        second = subprocess.run(words, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert "another run is writing here" in second.stderr
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_damaged_part_is_made_again(sources: list[Path], undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.zarr"
    words = command("featurize", *sources, "--out", out)
    process = start_until_parts(words, out, 1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    mark = min((tmp_path / "g.zarr.partial" / "parts").glob("[0-9]*.json"))
    number = json.loads(mark.read_text())["number"]
    part = mark.with_name(f"{number:07d}.npz")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    finish(words)
    assert same_files(out, undisturbed)
