"""Screens on a real Slurm of two nodes: they survive walltimes, lost nodes and killed workers, and leave no jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ase.io
import psutil
import pytest
from equiscreen.pipeline import featurize
from equiscreen.screening import open_scores, screen
from equiscreen.screening.scoring import screen as screening

from ....conftest import CUTOFF, without_progress, write_extxyz
from . import two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STRUCTURES, PART = 240, 4
# The command line with smaller parts, and with a moment before each of them: a run over a few hundred structures then
# has many parts, and takes as long as a test needs. Certificates must not be left to the garbage collector.
RUN = (
    "import gc, sys, time; gc.disable(); "
    f"from equiscreen.screening.scoring import screen; screen.PART_STRUCTURES = {PART}; "
    "from equiscreen.pipeline.runs import failure_policy; submit = failure_policy._TasksInFlight.submit; "
    "from equiscreen.screening.relaxation import relax; relax.PART_EDGES = 10**9; "
    "pause = float(sys.argv.pop(1)); "
    "failure_policy._TasksInFlight.submit = lambda *arguments: time.sleep(pause) or submit(*arguments); "
    "from equiscreen.__main__ import main; main()"
)
# Slurm counts whole minutes; on a busy machine, the start of a worker takes most of one.
WALLTIME, WALLTIME_S, PAUSE_S = '"00:02:00"', 120, 0.4


@pytest.fixture(scope="module", autouse=True)
def _slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    pytest.importorskip("dask_jobqueue", reason="the extra `cluster` is not installed")
    if reason := two_nodes.why_not():
        pytest.skip(reason)
    with two_nodes.two_nodes(tmp_path_factory.mktemp("slurm")):
        yield


@dataclass(frozen=True, slots=True)
class Case:
    """A screen and its undisturbed result.

    Attributes:
        store: Graph store.
        model: ONNX file.
        expected: Scores of an undisturbed run.
    """

    store: Path
    model: Path
    expected: Path


@pytest.fixture(scope="module")
def case(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder, model = tmp_path_factory.mktemp("case"), exported("float32")
    write_extxyz(folder / "c.extxyz", STRUCTURES, seed=23)
    featurize(folder / "c.extxyz", folder / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "PART_STRUCTURES", PART)
        screen(folder / "g.zarr", model, folder / "s.zarr", scheduler="threads")
    return Case(folder / "g.zarr", model, folder / "s.zarr")


@dataclass(frozen=True, slots=True)
class Run:
    """A screen in a folder of its own, which holds its cluster file.

    Attributes:
        case: What is screened.
        folder: Current folder of the command.
        processes: Commands that were started.
    """

    case: Case
    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """Scores of the run."""
        return self.folder / "s.zarr"

    def start(
        self, pause: float = PAUSE_S, words: Sequence[str] = ("screen",), **settings: object
    ) -> subprocess.Popen[str]:
        """Start a command (a verb and its options) with a job of one worker on each node."""
        cores = os.cpu_count() or 1
        chosen = {"jobs": 2, "cores": cores, "workers": 1, "memory": "2GB", "walltime": '"00:10:00"', **settings}
        (self.folder / "cluster.yaml").write_text("".join(f"{key}: {value}\n" for key, value in chosen.items()))
        files = [self.case.store, "--model", self.case.model, "--out", self.out]
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(pause), *words, *map(str, files), "--scheduler", "slurm:cluster.yaml"],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def wait_for_parts(self, process: subprocess.Popen[str], count: int) -> None:
        """Wait until `count` parts are done."""
        deadline = time.monotonic() + 500  # on a busy machine, workers start slowly
        while time.monotonic() < deadline and process.poll() is None:
            if len(list(self.folder.glob("s.zarr.partial/*/parts/[0-9]*.json"))) >= count:
                return
            time.sleep(0.05)
        raise AssertionError(f"the run ended, or made fewer than {count} parts: {process.communicate(timeout=1)}")

    def started_jobs(self) -> int:
        """Number of jobs that have started so far."""
        return len(list(self.folder.glob("equiscreen-jobs/*.err")))

    def check_equal(self) -> None:
        """The scores are those of the undisturbed run, and no job or certificate is left."""
        found, expected = open_scores(self.out), open_scores(self.case.expected)
        assert found.sizes["structure"] == STRUCTURES
        assert found.attrs["store_hash"] == expected.attrs["store_hash"]  # covers the bytes of all rows
        self.check_nothing_left()

    def check_nothing_left(self) -> None:
        """No job is left, and no certificate."""
        deadline = time.monotonic() + 60
        while two_nodes.jobs() and time.monotonic() < deadline:
            time.sleep(0.5)  # Slurm ends jobs with a delay
        assert two_nodes.jobs() == []
        assert not list(self.folder.glob("equiscreen-jobs/.*"))


@pytest.fixture
def run(case: Case, tmp_path: Path) -> Iterator[Run]:
    made = Run(case, tmp_path)
    yield made
    for process in made.processes:
        process.kill()


def end(process: subprocess.Popen[str]) -> str:
    """Wait for a run that succeeds; returns its output."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def worker_processes(folder: Path) -> Sequence[psutil.Process]:
    """The processes of this run's jobs that evaluate, youngest last."""
    nannies = [one for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or ())]
    children = [child for nanny in nannies for child in nanny.children() if "spawn_main" in " ".join(child.cmdline())]
    return sorted(children, key=lambda child: child.create_time())


@pytest.mark.parametrize("time_", [1, 2, 3])
def test_a_screen_survives_a_walltime_shorter_than_itself(run: Run, time_: int) -> None:
    begin, pause = time.monotonic(), 1.5 * WALLTIME_S / (STRUCTURES / PART)
    end(run.start(pause, walltime=WALLTIME))
    assert time.monotonic() - begin > 1.5 * WALLTIME_S, f"run {time_} was shorter than its jobs"
    assert run.started_jobs() > 2
    run.check_equal()


def test_a_screen_survives_a_lost_node_and_uses_it_again(run: Run) -> None:
    process = run.start()
    run.wait_for_parts(process, 10)
    two_nodes.set_state("n1", "down")
    try:
        run.wait_for_parts(process, 30)
    finally:
        two_nodes.set_state("n1", "resume")
    end(process)
    assert run.started_jobs() > 2
    run.check_equal()


def test_a_screen_survives_killed_workers_and_jobs(run: Run) -> None:
    process = run.start()
    run.wait_for_parts(process, 10)
    worker_processes(run.folder)[0].kill()  # its nanny starts another one
    run.wait_for_parts(process, 20)
    worker_processes(run.folder)[0].parent().kill()  # its job ends
    end(process)
    assert run.started_jobs() > 2
    run.check_equal()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_screen_leaves_no_jobs_and_resumes(run: Run, number: signal.Signals) -> None:
    process = run.start()
    run.wait_for_parts(process, 10)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=100)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert without_progress(err) == ["equiscreen: interrupted; run the same command again to resume"]
        run.check_nothing_left()
    done = len(list(run.folder.glob("s.zarr.partial/*/parts/[0-9]*.json")))
    assert done >= 10
    end(run.start())
    for left in run.folder.glob("equiscreen-jobs/.*"):  # a killed process cannot remove its certificates
        assert number == signal.SIGKILL
        left.unlink()
    run.check_equal()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"queue": "nonsense"}, "sbatch does not accept the job: sbatch: error: invalid partition specified: nonsense"),
        ({"prologue": "'echo no such module >&2; exit 3'"}, "ends with 'no such module'; check the prologue"),
        (
            {"directives": "--begin=now+1hour", "wait": '"00:00:15"'},
            "no worker has joined for 15 s (waiting for workers: jobs ",
        ),
    ],
)
def test_jobs_that_do_not_start_end_the_run_with_one_line(run: Run, settings: dict[str, str], told: str) -> None:
    process = run.start(**settings)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    *waiting, line = without_progress(err)
    assert told in line
    assert all(one.startswith("waiting for workers: jobs ") for one in waiting)
    run.check_nothing_left()


def test_jobs_that_end_before_their_tasks_end_the_run_with_one_line(run: Run) -> None:
    """Relaxations without an end, all in one task."""
    endless = ("relax", "--fmax", "1e-9", "--smax", "1e-9", "--max-steps", "1000000", "--allow-extrapolation")
    process = run.start(words=endless, jobs=1, walltime='"00:01:00"')
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert without_progress(err)[-1] == (
        "equiscreen: cluster.yaml: 3 jobs in a row ended before any of their tasks did; raise `walltime` "
        "(now 00:01:00), and run the same command again to resume"
    )
    assert run.started_jobs() >= 3
    run.check_nothing_left()


def test_two_runs_of_one_command_use_the_same_jobs(run: Run, case: Case, tmp_path: Path) -> None:
    """`screen` featurizes files first; its jobs wait in the queue only once."""
    ase.io.write(tmp_path / "few.extxyz", ase.io.read(case.store.with_name("c.extxyz"), ":4"))
    few = Run(Case(tmp_path / "few.extxyz", case.model, case.expected), tmp_path, run.processes)
    end(few.start(jobs=1))
    assert open_scores(few.out).sizes["structure"] == 4
    assert few.started_jobs() == 1
    run.check_nothing_left()
