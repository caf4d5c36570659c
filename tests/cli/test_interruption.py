"""Ctrl-C in the middle of a verb: one line that says how to resume and exit code 130, at once if pressed twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from equiscreen.screening import screen_files

from ..conftest import write_extxyz

CRYSTALS = 300
HINT = "equiscreen: interrupted; run the same command again to resume"
# Words of each verb, and the file or the beginning of the line on standard error that shows that its work has begun.
VERBS = {
    "featurize": ("featurize c.extxyz --out g.zarr", "g.zarr.partial"),
    "relax": ("relax c.extxyz --model m.onnx --out r.zarr", "r.candidates.graphs.zarr"),
    "hull": ("hull s.zarr --out h.zarr", "h.zarr.partial"),
    "rank": ("rank c.extxyz --model m.onnx --out results", "results/candidates.graphs.zarr"),
    "import": ("import 7net-0 --out w.ckpt", "import: "),
}


def processes_in(folder: Path) -> set[psutil.Process]:
    """Processes whose current folder this is."""
    return {process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_tells_how_to_resume(
    verb: str, presses: int, exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if verb == "import":
        pytest.importorskip("sevenn", reason="the sevenn package contains the weights")
    write_extxyz(Path("c.extxyz"), CRYSTALS)
    Path("m.onnx").write_bytes(exported("float32").read_bytes())
    if verb == "hull":
        screen_files("c.extxyz", "m.onnx", "s.zarr", scheduler="threads")
    words, sign = VERBS[verb]
    before = processes_in(tmp_path)
    log = tmp_path / "stderr.txt"
    with log.open("w") as errors:
        run = [sys.executable, "-m", "equiscreen", *words.split()]
        process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
        while process.poll() is None and not Path(sign).exists() and sign not in log.read_text():
            time.sleep(0.01)
        for _ in range(presses):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
            time.sleep(0.01)
        code = process.wait(timeout=60)
    lines = [line for line in log.read_text().splitlines() if line.startswith("equiscreen: ")]
    assert "Traceback" not in log.read_text()
    if code:  # otherwise, the run had already ended
        assert (code, lines) == (130, [HINT])
    _, left = psutil.wait_procs(
        processes_in(tmp_path) - before, timeout=60
    )  # workers notice that their scheduler ended
    assert not left
