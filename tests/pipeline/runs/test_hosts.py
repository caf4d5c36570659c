"""Several hosts: network namespaces with addresses of their own, no folder in common, and an S3 server between them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import ase.io
import pytest
import s3fs
from ase.db import connect as database
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.screening import open_scores, screen
from equiscreen.screening.scoring import screen as screening

from ...conftest import CUTOFF, without_progress, write_extxyz
from ...local_servers import s3_environment, s3_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NETWORK, BRIDGE = "10.231.47", "eqbridge"
HOSTS = {"eqhost1": f"{NETWORK}.11", "eqhost2": f"{NETWORK}.12", "eqhost3": f"{NETWORK}.13", "eqhost4": f"{NETWORK}.14"}
SCHEDULER, *WORKERS = HOSTS
ADDRESS = f"tcp://{HOSTS[SCHEDULER]}:8786"
STRUCTURES, PART = 240, 4
# The command line with smaller parts and a moment between two of them, so that the run takes a while.
RUN = (
    f"from equiscreen.screening.scoring import screen; screen.PART_STRUCTURES = {PART}; "
    "import time; from equiscreen.pipeline.runs import failure_policy; submit = failure_policy._TasksInFlight.submit; "
    "failure_policy._TasksInFlight.submit = lambda *arguments: time.sleep(0.3) or submit(*arguments); "
    "from equiscreen.__main__ import main; main()"
)


def run_ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module", autouse=True)
def _hosts() -> Iterator[None]:
    """Hosts on one bridge, whose own address is that of this process."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip")
    with ExitStack() as stack:
        try:
            run_ip("link", "add", BRIDGE, "type", "bridge")
        except subprocess.CalledProcessError:
            pytest.skip("this machine cannot make network bridges")
        stack.callback(run_ip, "link", "del", BRIDGE)
        run_ip("addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        run_ip("link", "set", BRIDGE, "up")
        for name, address in HOSTS.items():
            run_ip("netns", "add", name)
            stack.callback(run_ip, "netns", "del", name)
            run_ip("link", "add", f"{name}-b", "type", "veth", "peer", "name", "eth0", "netns", name)
            run_ip("link", "set", f"{name}-b", "master", BRIDGE, "up")
            run_ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            run_ip("-n", name, "link", "set", "eth0", "up")
            run_ip("-n", name, "link", "set", "lo", "up")
        yield


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3fs.S3FileSystem]:
    """A bucket on a server that all hosts reach."""
    with s3_server(f"{NETWORK}.1") as url, pytest.MonkeyPatch.context() as patch, s3_environment(url, patch) as fs:
        fs.mkdir("hosts")
        yield fs


@dataclass(frozen=True, slots=True)
class Case:
    """A screen and its undisturbed result.

    Attributes:
        folder: Folder of the files, which the other hosts do not see.
        model: ONNX file.
        expected: Scores of an undisturbed run on this host.
    """

    folder: Path
    model: Path
    expected: Path


@pytest.fixture(scope="module")
def case(bucket: s3fs.S3FileSystem, exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder, model = tmp_path_factory.mktemp("case"), exported("float32")
    source = write_extxyz(folder / "c.extxyz", STRUCTURES, seed=47)
    featurize(source, folder / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    bucket.put(str(folder / "g.zarr"), "hosts/g.zarr", recursive=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "PART_STRUCTURES", PART)
        screen("s3://hosts/g.zarr", model, folder / "s.zarr", scheduler="threads")
    return Case(folder, model, folder / "s.zarr")


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Function that starts a program of Dask on a host, where the folders of the tests are hidden."""
    hidden = tmp_path_factory.getbasetemp()
    with ExitStack() as stack:

        def started(host: str, program: str, *words: str, before: str = "") -> subprocess.Popen[bytes]:
            hide = f'{before} mount -t tmpfs none "{hidden}" && cd / && exec "$@"'
            inside = ["ip", "netns", "exec", host, "unshare", "--mount", "sh", "-c", hide, "sh"]
            command = [*inside, sys.executable, "-m", f"distributed.cli.{program}", *words]
            return stack.enter_context(running(command))

        yield started


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/"
    )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def start_scheduler(start: Callable[..., subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    return start(SCHEDULER, "dask_scheduler", "--host", HOSTS[SCHEDULER], "--port", "8786", "--no-dashboard")


def start_worker(start: Callable[..., subprocess.Popen[bytes]], host: str, before: str = "") -> subprocess.Popen[bytes]:
    words = (ADDRESS, "--nthreads", "1", "--no-dashboard", "--host", HOSTS[host])
    return start(host, "dask_worker", *words, before=before)


def command(case: Case, source: str, out: str) -> subprocess.Popen[str]:
    words = ["screen", source, "--model", str(case.model), "--out", out, "--scheduler", ADDRESS]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *words],
        cwd=case.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_parts(case: Case, process: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + 400  # on a busy machine, workers start slowly
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(case.folder.glob("*.partial/*/parts/[0-9]*.json"))) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"the run ended, or made fewer than {count} parts: {process.communicate(timeout=1)}")


def chain(case: Case, folder: str, scheduler: str) -> Iterator[tuple[str, ...]]:
    """Commands from the files in the bucket to properties, with the outputs in a folder."""
    graphs, relaxed, ranked, computed = (f"{folder}/{name}.zarr" for name in "grhp")
    model, where = ("--model", str(case.model)), ("--scheduler", scheduler)
    yield ("featurize", "s3://hosts/crystals", "--out", graphs, "--cutoff", str(CUTOFF), *where)
    few_steps = ("--fmax", "1", "--smax", "10", "--max-steps", "5", "--trajectory")
    yield ("relax", graphs, *model, "--out", relaxed, *few_steps, *where)
    yield ("hull", relaxed, "--out", ranked)
    yield ("properties", ranked, *model, "--out", computed, "--what", "eos", "--limit", "4", *where)


def hashes(folder: str) -> list[str]:
    """Hashes of all stores that `chain` writes."""
    graphs = [GraphStore(f"{folder}/{name}.zarr").store_hash for name in ("g", "r.graphs", "p.graphs")]
    return graphs + [str(open_scores(f"{folder}/{name}.zarr").attrs["store_hash"]) for name in "rhp"]


def check_equal(case: Case, out: str) -> None:
    found, expected = open_scores(out), open_scores(case.expected)
    assert found.sizes["structure"] == STRUCTURES
    assert found.attrs["store_hash"] == expected.attrs["store_hash"]  # covers the bytes of all rows
    assert not list(case.folder.glob("*.partial"))


def test_a_worker_is_lost_and_one_joins_late(case: Case, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    start_scheduler(start)
    first, _ = start_worker(start, WORKERS[0]), start_worker(start, WORKERS[1])
    process = command(case, "s3://hosts/g.zarr", "s3://hosts/lost.zarr")
    wait_for_parts(case, process, 5)
    kill(first)
    start_worker(start, WORKERS[2])
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    check_equal(case, "s3://hosts/lost.zarr")


def test_the_scheduler_is_restarted(case: Case, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    scheduler = start_scheduler(start)
    worker = start_worker(start, WORKERS[0])
    process = command(case, "s3://hosts/g.zarr", "s3://hosts/restarted.zarr")
    wait_for_parts(case, process, 5)
    kill(scheduler)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    (line,) = without_progress(err)
    assert line.startswith("equiscreen: the connection to the Dask scheduler was lost; restart the scheduler")
    kill(worker)
    start_scheduler(start)
    start_worker(start, WORKERS[0])
    time.sleep(5)
    done = len(list(case.folder.glob("*.partial/*/parts/[0-9]*.json")))
    assert done >= 5
    process = command(case, "s3://hosts/g.zarr", "s3://hosts/restarted.zarr")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    check_equal(case, "s3://hosts/restarted.zarr")


def test_every_step_runs_without_a_common_folder(
    case: Case, bucket: s3fs.S3FileSystem, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Workers read files and stores themselves, or get them with their task, and send back what they write."""
    images = ase.io.read(write_extxyz(case.folder / "images.extxyz", 12, seed=48), ":")
    ase.io.write(case.folder / "one.cif", images[0])  # which a worker opens
    ase.io.write(case.folder / "some.extxyz", images[1:9])  # which this host divides
    with database(case.folder / "rows.db") as rows:  # which a worker downloads
        for image in images[9:]:
            rows.write(image)
    for name in ("one.cif", "some.extxyz", "rows.db"):
        bucket.put(str(case.folder / name), f"hosts/crystals/{name}")
    start_scheduler(start)
    for host in WORKERS[:2]:
        start_worker(start, host)
    (case.folder / "here").mkdir()
    for folder, scheduler in (("here", "threads"), ("s3://hosts/there", ADDRESS)):
        for words in chain(case, folder, scheduler):
            done = subprocess.run(
                [sys.executable, "-m", "equiscreen", *words],
                cwd=case.folder,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
    assert hashes("s3://hosts/there") == hashes(str(case.folder / "here"))
    trajectories = sorted((case.folder / "here" / "r.trajectories").iterdir())
    assert [bucket.cat_file(f"hosts/there/r.trajectories/{file.name}") for file in trajectories] == [
        file.read_bytes() for file in trajectories
    ]
    assert not list(case.folder.glob("*.partial"))


def test_a_worker_without_credentials_is_named(case: Case, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    start_scheduler(start)
    start_worker(start, WORKERS[0], before="unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY;")
    process = command(case, "s3://hosts/g.zarr", "s3://hosts/none.zarr")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    (line,) = without_progress(err)
    assert line.startswith("equiscreen: s3://hosts/g.zarr cannot be read on ")
    assert f"by worker tcp://{HOSTS[WORKERS[0]]}:" in line
    assert "credentials" in line
    for left in case.folder.glob("*.partial"):
        shutil.rmtree(left)


@pytest.mark.parametrize(
    ("source", "out", "told"),
    [("g.zarr", "s3://hosts/local.zarr", "g.zarr"), ("s3://hosts/g.zarr", "l.zarr", "l.zarr.partial/")],
)
def test_a_folder_that_only_the_client_sees_is_named_with_the_worker(
    case: Case, start: Callable[..., subprocess.Popen[bytes]], source: str, out: str, told: str
) -> None:
    start_scheduler(start)
    start_worker(start, WORKERS[0])
    process = command(case, source, out)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    (line,) = without_progress(err)
    assert line.startswith(f"equiscreen: {case.folder / told}")
    assert " was not found on " in line
    assert f"by worker tcp://{HOSTS[WORKERS[0]]}:" in line
    for left in case.folder.glob("*.partial"):
        shutil.rmtree(left)
