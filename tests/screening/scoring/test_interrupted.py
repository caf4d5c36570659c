"""Interrupted screens end with the scores of an uninterrupted one, bit for bit, or with a one-line error."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from dask import config as dask_config
from distributed import LocalCluster, WorkerPlugin
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import OutputExistsError, StoreError
from equiscreen.pipeline.store.writer import StoreRun
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import open_scores, screen
from equiscreen.screening.dataset.scores import NOT_FINITE, OK, TOO_LARGE
from equiscreen.screening.scoring import screen as screening

from ...conftest import CUTOFF, ELEMENTS, write_extxyz
from ...export.runtime.altered_models import altered

STRUCTURES = 300
PART = 12
INTERRUPTIONS = 5
# The command line with smaller parts, so that a run over a few hundred structures has many of them.
SMALL_PARTS = (
    "import sys; from equiscreen.screening.scoring import screen; screen.PART_STRUCTURES = int(sys.argv.pop(1)); "
)
# A moment between two parts, so that the run takes a few seconds.
PAUSES = (
    "import time; from equiscreen.pipeline.runs import failure_policy; submit = failure_policy._TasksInFlight.submit; "
    "failure_policy._TasksInFlight.submit = lambda *arguments: time.sleep(0.2) or submit(*arguments); "
)
RUN = "from equiscreen.__main__ import main; main()"


def command(part: int, *words: str | Path) -> list[str]:
    return [sys.executable, "-c", SMALL_PARTS + RUN, str(part), "screen", *map(str, words)]


def parts_of(out: Path) -> int:
    return len(list(out.with_name(f"{out.name}.partial").glob("*/parts/[0-9]*.json")))


def start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def wait_for_parts(process: subprocess.Popen[bytes], out: Path, parts: int) -> None:
    deadline = time.monotonic() + 200
    while parts_of(out) < parts and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def finish(words: Sequence[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same_bits(found: Path, expected: Path, seed: int = 0) -> None:
    first, second = open_scores(found), open_scores(expected)
    assert first.attrs["store_hash"] == second.attrs["store_hash"], f"seed {seed}"  # covers the bytes of all rows
    assert set(first.variables) == set(second.variables)
    for name in second.variables:
        a, b = first[name].values, second[name].values
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), f"{name}, seed {seed}"
    ignored = {"timing", "seal", "command"}  # one of the two may come from the Python API, which records no command
    attrs = [{k: v for k, v in x.attrs.items() if k not in ignored} for x in (first, second)]
    assert attrs[0] == attrs[1]


def interrupt_at_random(
    words: Sequence[str], out: Path, total: int, seed: int, interrupt: Callable[[subprocess.Popen[bytes], int], None]
) -> int:
    """Start a run `INTERRUPTIONS` times, and interrupt it each time after a random number of further parts.

    Args:
        words: Command line of the run.
        out: Output of the run.
        total: Number of parts of the run.
        seed: Random seed.
        interrupt: Interrupts the process; its second argument is the number of the interruption.

    Returns:
        Number of interruptions before the run ended.
    """
    rng = np.random.default_rng(seed)
    for number in range(INTERRUPTIONS):
        process = start(words)
        left = max(1, (total - parts_of(out)) // (INTERRUPTIONS - number + 1))
        wait_for_parts(process, out, parts_of(out) + int(rng.integers(0, left + 1)))
        time.sleep(rng.uniform(0, 0.03))  # in the middle of a part
        interrupt(process, number)
        process.wait(timeout=200)
        if out.exists():
            return number
    return INTERRUPTIONS


def kill_all(process: subprocess.Popen[bytes], _: int) -> None:
    os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def model(exported: Callable[[str], Path]) -> Path:
    return exported("float32")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    source = write_extxyz(folder / "c.extxyz", STRUCTURES, seed=240)
    featurize(source, folder / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    return folder / "g.zarr"


@pytest.fixture(scope="module")
def uninterrupted(store: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "s.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "PART_STRUCTURES", PART)
        screen(store, model, out, scheduler="threads")
    return out


@pytest.mark.slow
def test_a_screen_killed_five_times_at_random_equals_the_undisturbed_one(
    store: Path, model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out, seed = tmp_path / "s.zarr", secrets.randbits(32)
    words = command(PART, store, "--model", model, "--out", out, "--scheduler", "threads")
    stopped = interrupt_at_random(words, out, STRUCTURES // PART, seed, kill_all)
    assert stopped >= 3, f"seed {seed}: the run ended before it was interrupted often enough"
    if not out.exists():
        finish(words)
    assert_same_bits(out, uninterrupted, seed)
    assert not list(tmp_path.glob("*.partial"))


def kill_client_worker_or_all(process: subprocess.Popen[bytes], number: int) -> None:
    """Kill, in turn: the client alone; a worker and then the client; all processes."""
    if number % 3 == 1:
        workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in str(p.cmdline())]
        if workers:
            workers[0].kill()
            time.sleep(2)
    (os.kill if number % 3 < 2 else os.killpg)(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_screen_of_20000_interrupted_five_times_on_workers_equals_the_undisturbed_one(
    model: Path, tmp_path: Path
) -> None:
    sources = [write_extxyz(tmp_path / f"{number}.extxyz", 1000, seed=250 + number) for number in range(20)]
    featurize(sources, tmp_path / "g.zarr", cutoff=CUTOFF)
    seed, expected, out = secrets.randbits(32), tmp_path / "expected.zarr", tmp_path / "s.zarr"
    finish(command(250, tmp_path / "g.zarr", "--model", model, "--out", expected))
    words = command(250, tmp_path / "g.zarr", "--model", model, "--out", out)
    stopped = interrupt_at_random(words, out, 80, seed, kill_client_worker_or_all)
    assert stopped == INTERRUPTIONS, f"seed {seed}: the run ended before the last interruption"
    finish(words)
    assert open_scores(out).sizes["structure"] == 20_000
    assert_same_bits(out, expected, seed)
    assert not list(tmp_path.glob("*.partial"))


def test_a_worker_and_the_client_killed(
    store: Path,
    model: Path,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command_line: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    out = tmp_path / "s.zarr"
    interpreter, option, program, *words = command(PART, store, "--model", model, "--out", out)
    process = start([interpreter, option, PAUSES + program, *words])
    wait_for_parts(process, out, 3)
    kill_client_worker_or_all(process, 1)
    process.wait()
    assert not out.exists(), "the run ended before it could be interrupted"
    monkeypatch.setattr(screening, "PART_STRUCTURES", PART)
    done = command_line(*words[1:], "--scheduler", "threads")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: {STRUCTURES} structures ({STRUCTURES} ok)")
    recorded = shlex.join(["equiscreen", "screen", store.name, "--model", model.name, "--scheduler", "threads"])
    assert open_scores(out).attrs["command"] == recorded
    assert_same_bits(out, uninterrupted)


def begun(store: Path, model: Path, out: Path) -> None:
    """Leave a run that was interrupted when all its parts were finished."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreRun, "compact", interrupt)
        with pytest.raises(KeyboardInterrupt):
            screen(store, model, out, scheduler="threads")
    assert parts_of(out) > 0


def test_another_model_or_store_is_refused_when_a_run_is_taken_up(model: Path, tmp_path: Path) -> None:
    source = write_extxyz(tmp_path / "c.extxyz", 5, seed=241)
    featurize(source, tmp_path / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    used, out = tmp_path / "m.onnx", tmp_path / "s.zarr"
    shutil.copy(model, used)
    begun(tmp_path / "g.zarr", used, out)
    altered(model, used, 1.1)
    with pytest.raises(
        OutputExistsError, match=r"s\.zarr\.partial holds an unfinished run .*different settings \(.*model_sha256.*\)"
    ):
        screen(tmp_path / "g.zarr", used, out, scheduler="threads")
    shutil.copy(model, used)
    write_extxyz(source, 6, seed=242)
    featurize(source, tmp_path / "g.zarr", cutoff=CUTOFF, overwrite=True, scheduler="threads")
    with pytest.raises(OutputExistsError, match=r"\(base, store_hash\).*--overwrite"):
        screen(tmp_path / "g.zarr", used, out, scheduler="threads")
    found = screen(tmp_path / "g.zarr", used, out, overwrite=True, scheduler="threads")
    assert found.sizes["structure"] == 6


def test_a_store_that_changes_while_it_is_screened_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, source = tmp_path / "g.zarr", write_extxyz(tmp_path / "c.extxyz", 5, seed=243)
    featurize(source, store, cutoff=CUTOFF, scheduler="threads")
    concatenate = StoreRun.concatenate

    def change_and_concatenate(*arguments: Any) -> dict[str, str]:
        write_extxyz(source, 5, seed=244)
        featurize(source, store, cutoff=CUTOFF, overwrite=True, scheduler="threads")
        return concatenate(*arguments)

    monkeypatch.setattr(StoreRun, "concatenate", change_and_concatenate)
    with pytest.raises(StoreError, match=r"g\.zarr has changed during this run"):
        screen(store, model, tmp_path / "s.zarr", scheduler="threads")
    assert not (tmp_path / "s.zarr").exists()


def test_what_an_earlier_run_has_done_counts_for_the_cost_and_not_for_the_rate(
    store: Path, model: Path, tmp_path: Path
) -> None:
    begun(store, model, tmp_path / "s.zarr")
    timing = screen(store, model, tmp_path / "s.zarr", scheduler="threads").attrs["timing"]
    assert timing["structures"] == 0
    assert timing["structures_per_second"] == 0
    assert timing["core_hours"] > 0
    assert 0 <= timing["input_stall"] < 1


def test_structures_whose_energy_is_no_number_have_a_status_and_spread_to_no_other(model: Path, tmp_path: Path) -> None:
    broken = altered(model, tmp_path / "m.onnx", references=(-1.5, -3.25, float("nan")))
    source = write_extxyz(tmp_path / "c.extxyz", 30, seed=245)
    featurize(source, tmp_path / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    gold = np.array([79 in crystal.atomic_number for crystal in probe_structures(ELEMENTS, 30, seed=245)])
    scores = screen(tmp_path / "g.zarr", broken, tmp_path / "s.zarr", scheduler="threads")
    plain = screen(tmp_path / "g.zarr", model, tmp_path / "t.zarr", scheduler="threads")
    assert 0 < gold.sum() < 30
    assert scores["status"].values.tolist() == np.where(gold, NOT_FINITE, OK).tolist()
    assert np.isnan(scores["energy"].values).tolist() == gold.tolist()
    assert np.allclose(scores["energy"].values[~gold], plain["energy"].values[~gold], rtol=0, atol=1e-4)
    assert scores.attrs["status_counts"]["not_finite"] == gold.sum()


def poisoned_runtime() -> WorkerPlugin:
    """A plugin that kills the worker when it evaluates a structure with gold, as a lack of memory would."""

    class PoisonedRuntime(WorkerPlugin):  # defined in a function, so that it is pickled by value
        def setup(self, worker: object) -> None:  # noqa: ARG002
            from equiscreen.export.runtime.onnx_potential import OnnxPotential  # noqa: PLC0415 - on the worker

            evaluate = OnnxPotential.evaluate

            def evaluate_or_die(potential: object, block: object) -> object:
                if 79 in block.atomic_number:  # type: ignore[attr-defined]
                    os.abort()
                return evaluate(potential, block)  # type: ignore[arg-type]

            OnnxPotential.evaluate = evaluate_or_die  # type: ignore[assignment,method-assign]

    return PoisonedRuntime()


@pytest.mark.slow
@pytest.mark.timeout(900)  # some ten workers start, one at a time
def test_a_structure_that_workers_die_of_costs_only_itself(model: Path, tmp_path: Path) -> None:
    source = write_extxyz(tmp_path / "c.extxyz", 6, seed=246, elements=(13, 29))
    text = source.read_text().splitlines(keepends=True)
    place = next(number for number, line in enumerate(text) if line.startswith(("Al ", "Cu ")))
    text[place] = "Au " + text[place][3:]
    source.write_text("".join(text))
    featurize(source, tmp_path / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    assert GraphStore(tmp_path / "g.zarr").block(0, 1).atomic_number.max() == 79
    with (
        dask_config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
    ):
        with cluster.get_client() as client:
            client.register_plugin(poisoned_runtime())
        scores = screen(tmp_path / "g.zarr", model, tmp_path / "s.zarr", scheduler=cluster.scheduler_address)
    assert scores["status"].values.tolist() == [TOO_LARGE, OK, OK, OK, OK, OK]
    assert np.isfinite(scores["energy"].values).tolist() == [False, True, True, True, True, True]


def test_a_full_disk_ends_the_run_with_one_line_and_the_run_goes_on_when_there_is_room(
    store: Path, model: Path, uninterrupted: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk, kept = tmp_path, tmp_path_factory.mktemp("kept")
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*inside, f"mount -t tmpfs none {disk}"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow tests to mount a file system")
    words = command(PART, store, "--model", model, "--out", disk / "s.zarr", "--scheduler", "threads")
    script = (
        f"mount -t tmpfs -o size=200k none {disk}; {shlex.join(words)}; echo exit $?; ls {disk}; "
        f"mount -o remount,size=500m {disk}; {shlex.join(words)} && cp -r {disk}/s.zarr {kept}"
    )
    done = subprocess.run([*inside, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exit 1\ns.zarr.partial\n" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("equiscreen:")]
    assert "disk is full" in line
    assert_same_bits(kept / "s.zarr", uninterrupted)
