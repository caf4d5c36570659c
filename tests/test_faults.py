"""Killed processes: a run resumes from what is on disk, and its result equals that of an undisturbed run."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from dask import config as dask_config
from distributed import LocalCluster, WorkerPlugin
from equiscreen.__main__ import main
from equiscreen.pipeline import FeaturizeReport, GraphStore, featurize
from equiscreen.pipeline.errors import EquiscreenError, StoreError
from equiscreen.pipeline.featurization import partitions
from equiscreen.pipeline.runs.failure_policy import run_tasks
from equiscreen.pipeline.runs.parts import PartManifest
from equiscreen.pipeline.store.writer import StoreRun
from equiscreen.screening import open_scores
from equiscreen.screening.scoring import screen as screening

from .conftest import write_extxyz
from .pipeline.featurization.test_featurize import same_files

STRUCTURES = 1_200
FILES = 12
PART = 50
# The command line with parts of this size, and with a pause before each of them, in which a run can be disturbed.
SLOW = f"""
import time
from equiscreen.pipeline.featurization import partitions
from equiscreen.pipeline.runs import failure_policy
from equiscreen.screening.scoring import screen
partitions.PARTITION_RECORDS = screen.PART_STRUCTURES = {PART}
submit = failure_policy._TasksInFlight.submit
failure_policy._TasksInFlight.submit = lambda run, some: time.sleep(0.1) or submit(run, some)
from equiscreen.__main__ import main
main()
"""
ON_THREADS = ["--scheduler", "threads"]


@pytest.fixture(scope="module", autouse=True)
def _parts_of_this_size() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "PARTITION_RECORDS", PART)
        patch.setattr(screening, "PART_STRUCTURES", PART)
        yield


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-c", SLOW, *map(str, words)]


def finish(words: Sequence[str]) -> None:
    """Finish a run in this process, without workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["equiscreen", *words[3:], *ON_THREADS])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code


def start_until_parts(words: Sequence[str], out: Path, parts: int) -> subprocess.Popen[bytes]:
    """Start a run and wait until at least `parts` of its parts, but not all, are on disk."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    folder = out.with_name(f"{out.name}.partial")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(folder.glob("*/parts/[0-9]*.json"))) >= parts:
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
    marks = {p: p.stat().st_mtime_ns for p in out.with_name(f"{out.name}.partial").glob("*/parts/[0-9]*.json")}
    assert len(marks) >= parts
    make_parts = StoreRun.make_parts

    def make_and_look(*words: Any) -> list[PartManifest]:
        made = make_parts(*words)
        assert all(mark.stat().st_mtime_ns == when for mark, when in marks.items()), "a part was written again"
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreRun, "make_parts", make_and_look)
        finish(words)


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


def kill_the_client_and_resume(words: Sequence[str], out: Path, parts: int) -> None:
    process = start_until_parts(words, out, parts)
    os.kill(process.pid, signal.SIGKILL)  # its workers notice on their own
    process.wait()
    assert not out.exists()
    finish(words)


def kill_the_compaction_and_resume(words: Sequence[str], out: Path, parts: int) -> None:
    process = start_until_parts([*words, *ON_THREADS], out, parts)
    folder = out.with_name(f"{out.name}.partial")
    deadline = time.monotonic() + 120
    while not list(folder.glob("*/store/cell")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists(), "the run ended before it could be disturbed"
    with pytest.raises(StoreError, match="is unfinished; to resume it, repeat the command that writes it"):
        GraphStore(out)
    finish(words)


@pytest.mark.parametrize(
    "disturb",
    [
        kill_a_worker,
        # For `screen`, tests/screening/scoring/test_interrupted.py kills a worker and then the client, and is not slow.
        pytest.param(kill_everything_and_resume, marks=pytest.mark.slow),
        pytest.param(kill_the_client_and_resume, marks=pytest.mark.slow),
        kill_the_compaction_and_resume,
    ],
)
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


@pytest.mark.slow
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
    without_timing = [
        {k: v for k, v in x.attrs.items() if k not in {"timing", "seal", "command"}} for x in (found, expected)
    ]
    assert without_timing[0] == without_timing[1]
    commands = [x.attrs["command"].removesuffix(f" {shlex.join(ON_THREADS)}") for x in (found, expected)]
    assert commands[0] == commands[1]


def test_two_runs_on_one_output_the_second_refuses(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "g.zarr"
    words = command("featurize", *sources, "--out", out, *ON_THREADS)
    process = start_until_parts(words, out, 1)
    monkeypatch.setattr(sys, "argv", ["equiscreen", *words[3:]])
    try:
        with pytest.raises(SystemExit) as second:
            main()
        assert second.value.code == 1
        assert "another run is writing here" in capsys.readouterr().err
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_damaged_part_is_made_again(sources: list[Path], undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.zarr"
    words = command("featurize", *sources, "--out", out)
    process = start_until_parts([*words, *ON_THREADS], out, 1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    mark = min((tmp_path / "g.zarr.partial").glob("*/parts/[0-9]*.json"))
    part = mark.with_suffix(".npz")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    finish(words)
    assert same_files(out, undisturbed)


def crashing_parser() -> WorkerPlugin:
    """A plugin that makes the POSCAR parser abort its process on a certain comment line, as a bug in C would."""

    class CrashingParser(WorkerPlugin):  # defined in a function so that it is pickled by value
        def setup(self, worker: object) -> None:  # noqa: ARG002
            from equiscreen.pipeline.readers import records as readers  # noqa: PLC0415 - on the worker

            parse = readers.structure_from_poscar

            def parse_or_crash(text: str) -> object:
                if text.startswith("poison"):
                    os.abort()
                return parse(text)

            readers.structure_from_poscar = parse_or_crash

    return CrashingParser()


def poscar_folder(folder: Path, count: int, poison: int) -> Path:
    folder.mkdir()
    for i in range(count):
        lines = ["poison" if i == poison else f"crystal {i}", "1.0", "4 0 0", "0 4 0", f"0 0 {4 + i / 50}", "Cu", "1"]
        (folder / f"{i:03d}.vasp").write_text("\n".join([*lines, "Direct", "0 0 0", ""]))
    return folder


def on_fragile_workers(
    source: Path, out: Path, memory: str, plugin: WorkerPlugin | None, **settings: float
) -> FeaturizeReport:
    with (
        dask_config.set({"distributed.scheduler.allowed-failures": 0}),  # each death costs the start of a worker
        # A nanny occasionally gives up because its worker dies during start-up.
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=memory, dashboard_address=None) as cluster,
    ):
        if plugin is not None:
            with cluster.get_client() as client:
                client.register_plugin(plugin)
        return featurize(source, out, scheduler=cluster.scheduler_address, **settings)


def test_a_record_that_crashes_its_parser_costs_only_itself(tmp_path: Path) -> None:
    source = poscar_folder(tmp_path / "s", 4, poison=1)
    report = on_fragile_workers(source, tmp_path / "g.zarr", "auto", crashing_parser())
    assert (report.read, report.stored, report.failed) == (4, 3, 1)
    (row,) = pq.read_table(tmp_path / "g.zarr" / "failures.parquet").to_pylist()
    assert row["source"].endswith("001.vasp")
    assert row["structure_id"] == "001"
    assert "the process that read this record died" in row["reason"]
    names = GraphStore(tmp_path / "g.zarr").column("structure_id").tolist()
    assert names == [f"{i:03d}" for i in range(4) if i != 1]


def test_without_workers_a_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run does not wait for workers for ever, since a nanny may give up, and a cluster may lose its nodes."""
    monkeypatch.setattr("equiscreen.pipeline.runs.failure_policy.WITHOUT_WORKERS_S", 1)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        cluster.get_client() as client,
        pytest.raises(EquiscreenError, match="no worker has joined for 1 s"),
    ):
        list(run_tasks(client, abs, [-1]))


@pytest.mark.slow
def test_a_structure_too_large_for_the_memory_of_a_worker_costs_only_itself(tmp_path: Path) -> None:
    dense = ase.Atoms("H", cell=np.eye(3) * 1.2, pbc=True).repeat(26)
    crystals = [ase.Atoms("Cu", cell=np.eye(3) * a, pbc=True) for a in (3.0, 3.1)]
    ase.io.write(tmp_path / "s.extxyz", [dense, *crystals])
    report = on_fragile_workers(
        tmp_path / "s.extxyz", tmp_path / "g.zarr", "500MB", None, cutoff=9.0, max_edges=200_000_000
    )
    assert (report.read, report.stored, report.failed) == (3, 2, 1)
    (row,) = pq.read_table(tmp_path / "g.zarr" / "failures.parquet").to_pylist()
    assert (row["source_index"], "died (out of memory" in row["reason"]) == (0, True)


@pytest.mark.slow  # tests/screening/scoring/test_interrupted.py, which is not slow, fills the disk of a screen
def test_a_full_disk_ends_the_run_with_one_line_and_the_run_goes_on_when_there_is_room(
    sources: list[Path], undisturbed: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*inside, f"mount -t tmpfs none {disk}"], capture_output=True, check=False).returncode:
        pytest.skip("tests may not mount a file system on this machine")
    words = shlex.join(command("featurize", *sources, "--out", disk / "g.zarr", *ON_THREADS))
    script = (
        f"mount -t tmpfs -o size=1m none {disk}; {words}; echo exit $?; ls {disk}/g.zarr; "
        f"mount -o remount,size=500m {disk}; {words} && cp -r {disk}/g.zarr {tmp_path}"
    )
    done = subprocess.run([*inside, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exit 1" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("equiscreen:")]
    assert "disk is full" in line
    assert "run the same command again" in line
    assert same_files(tmp_path / "g.zarr", undisturbed)
