"""Clusters: what listens, where it can be reached, and how a run ends when processes die."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest
from dask.utils import key_split
from distributed import LocalCluster
from equiscreen.pipeline.errors import EquiscreenError
from equiscreen.pipeline.runs.cluster import connect, dashboard
from equiscreen.pipeline.runs.failure_policy import run_tasks

from ...conftest import write_extxyz

RUN = [sys.executable, "-m", "equiscreen", "featurize"]


def listening() -> set[tuple[str, int]]:
    """Addresses on which this process and its children listen."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = [connection for process in processes for connection in process.net_connections("inet")]
    return {tuple(connection.laddr) for connection in found if connection.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize("scheduler", ["threads", pytest.param(None, marks=pytest.mark.slow)])
def test_a_cluster_on_this_machine_listens_on_the_loopback_interface_only(scheduler: str | None) -> None:
    before = listening()
    with connect(scheduler) as client:
        opened = listening() - before
        assert opened
        assert {address for address, _ in opened} == {"127.0.0.1"}
        link = dashboard(client)
        assert link is None or link.startswith("http://127.0.0.1:")
        assert client.submit(abs, -1).result() == 1
    assert not listening() - before


def test_the_dashboard_of_a_running_cluster_is_named_only_if_a_page_answers() -> None:
    """The tests' environment has no bokeh, which makes the pages."""
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        connect(cluster.scheduler_address) as client,
    ):
        assert dashboard(client) is None


@pytest.fixture
def web_server() -> Iterator[str]:
    """Address of a server that is no Dask scheduler."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tls://127.0.0.1:1", "names no TLS certificates on this machine"),
        ("http://127.0.0.1:1", "unknown address scheme"),
        ("tcp://", "missing port number"),
        pytest.param("tcp://WEB", "TimeoutError", marks=pytest.mark.slow),  # its answer is waited for
    ],
)
def test_an_address_without_a_scheduler_is_one_line(web_server: str, address: str, reason: str) -> None:
    address = address.replace("WEB", web_server)
    with pytest.raises(EquiscreenError) as told, connect(address):
        pass
    assert len(str(told.value).splitlines()) == 1
    assert address in str(told.value)
    assert reason in str(told.value)


def test_the_loggers_are_left_as_they_were() -> None:
    before = logging.getLogger("distributed").level, logging.getLogger("tornado").level
    with connect("threads"):
        pass
    assert (logging.getLogger("distributed").level, logging.getLogger("tornado").level) == before


@pytest.mark.slow
def test_a_lost_scheduler_is_one_line() -> None:
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=None, protocol="tcp://", host="127.0.0.1") as lost,
        connect(lost.scheduler_address) as client,
    ):
        results = run_tasks(client, time.sleep, [0, 0, 60, 60])
        assert next(results) is None
        lost.close()
        with pytest.raises(EquiscreenError, match=r"connection to the Dask scheduler was lost.*resume"):
            list(results)


def test_a_worker_that_does_not_see_a_folder_is_named(tmp_path: Path) -> None:
    with connect("threads") as client, pytest.raises(EquiscreenError) as told:
        list(run_tasks(client, abs, [-1], shared=[tmp_path, tmp_path / "elsewhere"]))
    assert str(told.value).startswith(f"{tmp_path}/elsewhere was not found on ")
    assert "by worker inproc://" in str(told.value)


def test_tasks_are_named_for_their_function() -> None:
    """Dask's dashboard and its task stream show these names."""
    with connect("threads") as client:
        client.get_task_stream()  # the scheduler records its tasks from now on
        assert list(run_tasks(client, abs, [-1])) == [1]
        assert list(run_tasks(client, partial(pow, 2), [3])) == [8]
        assert [key_split(task["key"]) for task in client.get_task_stream()] == ["abs", "pow"]


@pytest.mark.slow
def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    write_extxyz(tmp_path / "s.extxyz", 3)
    script = tmp_path / "script.py"
    script.write_text('from equiscreen.pipeline import featurize\nprint(featurize("s.extxyz", "g.zarr").stored)\n')
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [4, 100])
def test_workers_killed_while_they_start(tmp_path: Path, kills: int) -> None:
    """A few dead workers are replaced; if all die, the run ends with a one-line error."""
    write_extxyz(tmp_path / "s.extxyz", 3)
    words = [*RUN, tmp_path / "s.extxyz", "--out", tmp_path / "g.zarr"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed: set[int] = set()
    while process.poll() is None and len(killed) < kills:
        for worker in workers(process):
            if worker.pid not in killed and len(killed) < kills:
                worker.kill()
                killed.add(worker.pid)
        time.sleep(0.05)
    _, err = process.communicate(timeout=200)
    if process.returncode:
        assert err.splitlines() == [
            "equiscreen: no worker process started in 3 attempts; free some memory, or use --scheduler threads"
        ]
    assert process.returncode == int(kills > 4)


@pytest.mark.slow
@pytest.mark.parametrize("moments", [(0.1,), (1.0,), (2.0, 2.1, 2.2, 2.3), (4.0,), (6.0, 6.01), (6.0, 6.5, 7.0, 7.5)])
def test_ctrl_c_is_one_line_at_any_moment_and_however_often(tmp_path: Path, moments: tuple[float, ...]) -> None:
    write_extxyz(tmp_path / "s.extxyz", 400)
    words = [*RUN, tmp_path / "s.extxyz", "--out", tmp_path / "g.zarr"]
    begin = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for moment in moments:
        time.sleep(max(0.0, begin + moment - time.monotonic()))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, err = process.communicate(timeout=60)
    if process.returncode:  # otherwise, the run had already ended
        assert (process.returncode, len(err.splitlines())) == (130, 1), err
        assert err.startswith("equiscreen: interrupted")
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]
