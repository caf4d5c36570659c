"""Runs whose workers and clients are killed end with the properties of an undisturbed run, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import psutil
import pytest
from ase.build import bulk
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.screening import open_scores

pytest.importorskip("phonopy", reason="phonopy is not installed")
pytest.importorskip("seekpath", reason="seekpath is not installed")

# The command line with one crystal per part and small supercells, which an untrained network makes unstable.
SMALL = (
    "from dataclasses import replace; from equiscreen.screening.properties import compute, presets; "
    "compute.PART_STRUCTURES = 1; one = presets.PRESETS['default'].altered('phonons', min_length=6.0, mesh=15.0); "
    "one = replace(one, relaxation=replace(one.relaxation, max_steps=5)); presets.PRESETS['default'] = one; "
)
# A moment before each part, so that the run can be killed between two of them.
PAUSES = (
    "import time; from equiscreen.pipeline.runs import failure_policy; submit = failure_policy._TasksInFlight.submit; "
    "failure_policy._TasksInFlight.submit = lambda *arguments: time.sleep(1) or submit(*arguments); "
)
RUN = "from equiscreen.__main__ import main; main()"
CRYSTALS = 8


def parts_of(out: Path) -> int:
    return len(list(out.with_name(f"{out.name}.partial").glob("*/parts/[0-9]*.json")))


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [one for one in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in str(one.cmdline())]


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    assert condition()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_whose_worker_and_clients_are_killed_equals_the_undisturbed_one(
    exported: Callable[[str], Path], tmp_path: Path
) -> None:
    """First a worker, whose part is computed again, and the client; then all processes at once."""
    crystals = [bulk("CuAl", "cesiumchloride", a=a) for a in np.linspace(2.9, 3.2, CRYSTALS - 2)]
    crystals += [bulk("Cu"), bulk("Al")]
    ase.io.write(tmp_path / "c.extxyz", crystals, format="extxyz")
    featurize(tmp_path / "c.extxyz", tmp_path / "g.zarr", cutoff=4.5, scheduler="threads")
    options = ["--what", "phonons,eos", "--follow-modes", "--no-relax", "--model", str(exported("float64"))]
    words = ["properties", str(tmp_path / "g.zarr"), *options]
    out, undisturbed = tmp_path / "p.zarr", tmp_path / "undisturbed.zarr"

    def run(target: Path, *more: str) -> None:
        line = [sys.executable, "-c", SMALL + RUN, *words, "--out", str(target), *more]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def start() -> subprocess.Popen[bytes]:
        line = [sys.executable, "-c", SMALL + PAUSES + RUN, *words, "--out", str(out)]
        return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    first = start()
    wait_for(first, lambda: parts_of(out) >= 1)
    victim = workers_of(first)[0]
    victim.kill()
    before = parts_of(out)
    wait_for(first, lambda: parts_of(out) > before)  # the run goes on with another worker
    os.kill(first.pid, signal.SIGKILL)  # the client alone; its workers notice
    first.wait()
    assert not out.exists()
    second = start()
    kept = parts_of(out)
    wait_for(second, lambda: parts_of(out) > kept)
    os.killpg(second.pid, signal.SIGKILL)
    second.wait()
    assert not out.exists()
    assert 2 <= parts_of(out) < CRYSTALS
    run(out)
    run(undisturbed, "--scheduler", "threads")

    found, expected = open_scores(out), open_scores(undisturbed)
    assert set(found.variables) == set(expected.variables)
    for name in expected.variables:
        a, b = found[name].values, expected[name].values
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), name
    assert found.attrs["store_hash"] == expected.attrs["store_hash"]
    assert found.sizes["structure"] == CRYSTALS
    assert (found["followed_status"].values > 0).any()  # otherwise the next lines compare nothing
    for name in ("graphs", "followed.graphs"):
        stores = [GraphStore(one.with_name(f"{one.stem}.{name}.zarr")) for one in (out, undisturbed)]
        assert stores[0].verify() == []
        assert stores[0].store_hash == stores[1].store_hash
    assert not list(tmp_path.glob("*.partial"))
