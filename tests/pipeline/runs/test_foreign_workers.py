"""Running clusters: certificates, schedulers without workers, and workers with other versions."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Event, Thread

import dask
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distributed import LocalCluster, Scheduler, Security
from equiscreen.pipeline.errors import EquiscreenError
from equiscreen.pipeline.runs.cluster import connect
from equiscreen.pipeline.runs.failure_policy import run_tasks
from equiscreen.pipeline.runs.worker_versions import versions

HERE = dict(versions())


def write_certificate(path: Path, days: float) -> Path:
    """Write a self-signed certificate and its key in one file; it is valid until so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "workers")])
    now = dt.datetime.now(tz=dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - dt.timedelta(30))
    made = builder.not_valid_after(now + dt.timedelta(days)).sign(key, hashes.SHA256())
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@contextmanager
def tls_scheduler(folder: Path, days: float) -> Iterator[str]:
    """The address of a scheduler with certificates, which Dask's configuration names in this block."""
    file = str(write_certificate(folder / "cert.pem", days))
    role = {"cert": file, "key": file}
    settings = {"ca-file": file, "client": role, "scheduler": role, "worker": role}
    addresses: Queue[str] = Queue()
    ended = Event()

    async def serve() -> None:
        async with Scheduler(protocol="tls://", host="127.0.0.1", port=0, dashboard=False, security=Security()) as made:
            addresses.put(made.address)
            await asyncio.to_thread(ended.wait)

    with dask.config.set({"distributed.comm.tls": {**dask.config.get("distributed.comm.tls"), **settings}}):
        thread = Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        yield addresses.get(timeout=60)
        ended.set()
        thread.join()


def test_certificates_are_those_of_dasks_configuration(tmp_path: Path) -> None:
    with tls_scheduler(tmp_path, 1) as address, connect(address) as client:
        assert address.startswith("tls://")
        assert client.nthreads() == {}


def test_an_expired_certificate_is_one_line(tmp_path: Path) -> None:
    with tls_scheduler(tmp_path, -1) as address, pytest.raises(EquiscreenError) as told, connect(address):
        pass
    assert len(str(told.value).splitlines()) == 1
    assert str(told.value).startswith(f"{address}: the certificate of the scheduler is not accepted (certificate has ")
    assert "has expired" in str(told.value)


def test_a_scheduler_without_workers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equiscreen.pipeline.runs.failure_policy.WITHOUT_WORKERS_S", 1)
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        with connect(address) as client, pytest.raises(EquiscreenError) as told:
            list(run_tasks(client, abs, [-1]))
    assert str(told.value) == (
        f"no worker has joined for 1 s; check that workers run and reach {address}; run the same command again to "
        "resume"
    )


@contextmanager
def other_worker(folder: Path, address: str, package: str) -> Iterator[None]:
    """A worker whose Python finds another version of a package."""
    described = folder / f"{package}-0.0.1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.1\n")
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    words = ["-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"]
    # Elsewhere than in the checkout, where an editable installation leaves the metadata of this version.
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def run_on_another_version(folder: Path, cluster: LocalCluster, package: str, *, late: bool) -> None:
    """Run a task on a worker that is there when the run begins, or joins later."""
    address = cluster.scheduler_address
    if late:
        with connect(address) as client, other_worker(folder, address, package):
            list(run_tasks(client, abs, [-1]))
    else:
        with other_worker(folder, address, package), cluster.get_client() as watching:
            watching.wait_for_workers(1, timeout=60)
            with connect(address) as client:
                list(run_tasks(client, abs, [-1]))


@pytest.mark.parametrize(
    ("package", "late"), [("equiscreen", False), pytest.param("onnxruntime", True, marks=pytest.mark.slow)]
)
def test_a_worker_with_another_version_is_named(tmp_path: Path, package: str, late: bool) -> None:
    """Workers are checked when a run begins and, if they join later, with their first task."""
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None, host="127.0.0.1", protocol="tcp") as cluster,
        pytest.raises(EquiscreenError) as told,
    ):
        run_on_another_version(tmp_path, cluster, package, late=late)
    assert str(told.value).startswith("worker tcp://127.0.0.1:")
    assert f" has {package} 0.0.1, but this run was started with {package} {HERE[package]}; " in str(told.value)
