"""Connection to a Dask cluster: a running one, or one started on this machine or in jobs of a batch system."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
import types
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from ..errors import EquiscreenError, UnreachableError, detail
from ..redaction import redact_urls
from .batch.jobs import SETTINGS as SETTINGS_OF_JOBS
from .batch.jobs import BatchJobs
from .batch.settings import BatchSettings, BatchSystem, batch_system_of
from .target import ROOT_FILE
from .worker_versions import check_workers

IN_PROCESS = "threads"
LOOPBACK = "127.0.0.1"
# Number of workers that a task may lose before it is suspected. A larger number would only cost time, since the task is
# retried anyway.
ALLOWED_DEATHS = 1
# By default each worker samples its own stack a hundred times a second, and its event loop wakes up fifty times a
# second. With one worker per core this slows the work by 3 %.
SETTINGS = {
    "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
    "distributed.worker.profile.interval": "200ms",
    "distributed.admin.tick.interval": "500ms",
}
# Attempts to start the workers, and seconds that they may take together.
STARTS, START_S = 3, 120
# Resources that workers declare for tasks that need a kind of device: `dask worker --resources GPU=1`.
GPU_RESOURCE, CPU_RESOURCE = "GPU", "CPU"
_GPUS_SEEN = "CUDA_VISIBLE_DEVICES"
_POLL_S = 0.05
_SILENT = logging.CRITICAL + 1
# Seconds to wait for an answer from a scheduler and from its dashboard.
_ANSWER_S, _DASHBOARD_S = 5, 2
_TLS = "https://distributed.dask.org/en/stable/tls.html"


class _KeptJobs:
    """Jobs that outlive the run that started them, until a block ends.

    Attributes:
        stack: Exit stack that closes the jobs at the end of the block.
        jobs: The jobs by the text of `scheduler`.
    """

    def __init__(self, stack: ExitStack) -> None:
        self.stack, self.jobs = stack, dict[str, BatchJobs]()


_kept_jobs: ContextVar[_KeptJobs | None] = ContextVar("kept_jobs", default=None)


@contextmanager
def jobs_kept() -> Iterator[None]:
    """Keep the jobs of a batch system until the end of this block, so that several runs wait in the queue only once."""
    if _kept_jobs.get() is not None:
        yield
        return
    with ExitStack() as stack:
        before = _kept_jobs.set(_KeptJobs(stack))
        try:
            yield
        finally:
            _kept_jobs.reset(before)


def jobs_of(client: Any) -> BatchJobs | None:
    """Return the jobs of a batch system in which the client's workers run; None if they run elsewhere."""
    kept = _kept_jobs.get()
    return next((jobs for jobs in kept.jobs.values() if jobs.cluster is client.cluster), None) if kept else None


@contextmanager
def connect(scheduler: str | None = None, gpus: Sequence[str] = ()) -> Iterator[Any]:
    """Open a Dask client.

    A cluster on this machine listens on the loopback interface only. Its workers do not import the calling script, so
    that the script needs no ``if __name__ == "__main__":``, and they ignore Ctrl-C, which this process handles.

    Args:
        scheduler: None starts one worker process per core of this machine; ``threads`` runs tasks in this process
            (for debugging); ``slurm:FILE``, ``pbs:FILE``, ``lsf:FILE`` or ``sge:FILE`` submits jobs that run workers,
            with the settings in the cluster file (`pipeline.runs.batch.settings`); anything else is the address of a
            running cluster, such as ``tcp://host:8786``.
        gpus: GPUs of this machine. If there are any and `scheduler` is None, one worker is started for each instead of
            one per core; it sees only its GPU (CUDA_VISIBLE_DEVICES) and declares the resource GPU, as with dask-cuda.

    Yields:
        A `distributed.Client`.

    Raises:
        EquiscreenError: No cluster answers at the address, a worker has different versions, no cluster can be started
            on this machine, or jobs cannot be submitted.
        ConfigError: The cluster file is missing or invalid.
    """
    import dask  # noqa: PLC0415 - see below
    from distributed import Client  # noqa: PLC0415 - takes 0.7 s, and reading a store does not need it

    with ExitStack() as stack:
        batch = batch_system_of(scheduler)
        if batch is not None:
            yield stack.enter_context(_connected_to_jobs(Client, *batch))
            return
        stack.enter_context(_quiet())
        if scheduler not in (None, IN_PROCESS):
            yield stack.enter_context(_connected(Client, scheduler))
            return
        processes = scheduler is None
        stack.enter_context(dask.config.set(SETTINGS))
        try:
            with _interrupts_blocked():
                started = _local_cluster_class(gpus)(
                    n_workers=0 if processes else 1,
                    threads_per_worker=1,
                    processes=processes,
                    host=LOOPBACK if processes else None,
                    dashboard_address=f"{LOOPBACK}:0",
                    # By default, the dashboard of a worker in this process listens on the machine's address.
                    worker_dashboard_address=None if processes else f"{LOOPBACK}:0",
                    memory_limit="auto",
                    silence_logs=_SILENT,  # also silences the workers
                )
                cluster = stack.enter_context(_closed_at_last(started))
                client = stack.enter_context(Client(cluster))
        except Exception as error:  # Dask wraps the original error, such as a full disk
            reason = detail(error.__cause__ or error)
            raise EquiscreenError(
                f"Dask cannot start ({reason}); if its temporary folder is full or cannot be written, set TMPDIR to "
                "another folder"
            ) from error
        if processes:
            stack.enter_context(_main_module_hidden())
            _start_workers(client, len(gpus) or os.cpu_count() or 1)
        yield client


def _local_cluster_class(gpus: Sequence[str]) -> Any:
    """Return Dask's class of clusters on this machine or, if there are GPUs, a subclass with one for each worker."""
    from distributed import LocalCluster  # noqa: PLC0415 - see `connect`

    if not gpus:
        return LocalCluster

    class GpuCluster(LocalCluster):  # type: ignore[misc]
        """A cluster whose workers see one GPU each."""

        def new_worker_spec(self) -> dict[Any, Any]:
            """Describe the next worker, which gets the first GPU that no other worker has."""
            taken = {spec["options"]["env"][_GPUS_SEEN] for spec in self.worker_spec.values()}
            free = next(gpu for gpu in gpus if gpu not in taken)
            one = {"env": {_GPUS_SEEN: free}, "resources": {GPU_RESOURCE: 1}}
            return {
                name: {**spec, "options": {**spec["options"], **one}}
                for name, spec in super().new_worker_spec().items()
            }

    return GpuCluster


@contextmanager
def _connected_to_jobs(client_type: Any, system: BatchSystem, file: str) -> Iterator[Any]:
    """Open a client of workers in jobs; the jobs end with the outermost block of `jobs_kept`."""
    with jobs_kept():
        kept = _kept_jobs.get()
        assert kept is not None  # noqa: S101 - for the type checker
        key = f"{system}:{file}"
        if key not in kept.jobs:
            kept.jobs[key] = kept.stack.enter_context(_submitted(system, file))
        with client_type(kept.jobs[key].cluster) as client:
            yield client


@contextmanager
def _submitted(system: BatchSystem, file: str) -> Iterator[BatchJobs]:
    """Submit jobs that run workers, and cancel them at the end of the block."""
    import dask  # noqa: PLC0415 - see `connect`

    settings = BatchSettings.load(Path(file))
    with _quiet(), _ended_like_ctrl_c(), dask.config.set({**SETTINGS, **SETTINGS_OF_JOBS}):
        with _interrupts_blocked():
            jobs = BatchJobs(system, file, settings)
        try:
            yield jobs
        finally:
            jobs.close()


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C in this block, so that jobs are cancelled.

    A batch system sends SIGTERM to a command that runs in a job, some seconds before it kills the job.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is not signal.SIG_DFL:
        yield  # whoever set the handler knows better
        return

    def end(number: int, _frame: types.FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may be sent more than once; Ctrl-C again ends at once
        if not callable(signal.getsignal(signal.SIGINT)):  # Ctrl-C is ignored, as in the background
            raise SystemExit(128 + number)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _closed_at_last(cluster: Any) -> Iterator[Any]:
    """Close a cluster at the end of the block.

    On a busy machine, workers may take longer to end than Dask waits for them. The run is finished nevertheless; the
    workers end when they notice that their scheduler is gone.
    """
    with ExitStack() as closing:
        opened = closing.enter_context(cluster)
        try:
            yield opened
        finally:
            with suppress(TimeoutError):
                closing.close()


def dashboard(client: Any) -> str | None:
    """Return the address of the client's dashboard; None if bokeh is not installed or the dashboard does not answer."""
    if client.cluster is not None:  # started by `connect`
        services = client.cluster.scheduler_info.get("services", {})
        here = importlib.util.find_spec("bokeh") is not None and "dashboard" in services
        return f"http://{LOOPBACK}:{services['dashboard']}/status" if here else None
    try:
        link = str(client.dashboard_link)
        with urllib.request.urlopen(link, timeout=_DASHBOARD_S) as page:  # noqa: S310 - the scheduler named it
            return None if b"Dask needs bokeh" in page.read(1 << 16) else link
    except Exception:  # noqa: BLE001 - the scheduler may name an address that only its own machine reaches
        return None


def works_elsewhere(client: Any) -> bool:
    """Whether the workers may be on other machines: in a running cluster, or in jobs of a batch system."""
    return client.cluster is None or jobs_of(client) is not None


def declares(client: Any, resource: str) -> bool:
    """Whether some worker declares a resource, or the jobs in which workers will run do."""
    jobs = jobs_of(client)
    if jobs is not None and jobs.settings.gpus:
        return resource == GPU_RESOURCE
    return workers_with(client, resource) > 0


def workers_with(client: Any, resource: str | None) -> int:
    """Return the number of workers that declare a resource; the number of all workers if it is None."""
    if resource is None:
        return len(client.nthreads())
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return sum(resource in worker["resources"] for worker in workers)


def restore_workers(client: Any) -> None:
    """Replace workers that are gone for good, if `connect` started the cluster.

    Dask's nanny process gives up if the worker that it restarts dies immediately. Jobs of a batch system are replaced
    by `BatchJobs`.
    """
    if client.cluster is not None and jobs_of(client) is None:
        client.cluster.scale(len(client.cluster.worker_spec))


def check_seen(path: str | Path) -> None:
    """Check, on a worker, that a file or folder of the run exists.

    Raises:
        UnreachableError: The path does not exist on the worker's machine, which may have a different file system.
    """
    if not Path(path).exists():
        raise UnreachableError(
            f"{path} was not found on {socket.gethostname()} by {this_worker()}; inputs and outputs must be in folders "
            "that all workers share, under the same paths, until the run ends"
        )


@lru_cache(maxsize=8)
def check_reached(url: str) -> None:
    """Check, on a worker, that the store at a URL can be read: workers may lack the network access or the credentials.

    Raises:
        UnreachableError: The store cannot be read.
    """
    try:
        files, path = url_to_fs(url)
        files.info(f"{path}/{ROOT_FILE}")
    except Exception as error:  # noqa: BLE001 - every file system raises its own errors
        reason = detail(error, url)
    else:
        return
    # Raised without a cause: errors of clients of object stores cannot always be sent to the main process.
    raise UnreachableError(
        f"{redact_urls(url)} cannot be read on {socket.gethostname()} by {this_worker()} ({reason}); give the workers "
        "the same access as this machine, and run the same command again"
    )


def this_worker() -> str:
    """Name the worker that runs this task by its address; outside a worker, name this process."""
    from distributed import get_worker  # noqa: PLC0415 - see `connect`

    try:
        return f"worker {get_worker().address}"
    except ValueError:
        return f"process {os.getpid()}"


@contextmanager
def _connected(client_type: Any, address: str | None) -> Iterator[Any]:
    """Open a client of a running cluster.

    Raises:
        EquiscreenError: No cluster answers, or a worker has different versions.
    """
    try:
        with ThreadPoolExecutor(1) as pool:  # this thread may have an event loop already, as in a notebook
            pool.submit(asyncio.run, _check_answers(str(address))).result()
        client = client_type(address, timeout=f"{_ANSWER_S}s")
    except Exception as error:  # a server that is not a scheduler can cause any error
        if str(address).startswith("tls://") and isinstance(error, TypeError):
            raise EquiscreenError(
                f"{address}: Dask's configuration names no TLS certificates on this machine; see {_TLS}"
            ) from error
        if (reason := _certificate_problem(error)) is not None:
            raise EquiscreenError(
                f"{address}: the certificate of the scheduler is not accepted ({reason}); give the scheduler, the "
                f"workers and this machine the same valid certificates, see {_TLS}"
            ) from error
        raise EquiscreenError(
            f"no Dask scheduler answers at {address}: {detail(error)}; check the address and that the scheduler runs"
        ) from error
    with client:
        check_workers(client)
        yield client


def _certificate_problem(error: BaseException) -> str | None:
    """Return why a server's certificate was rejected, which Dask leaves out; None if an error has another cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        cause = cause.__cause__
    return None


async def _check_answers(address: str) -> None:
    """Check that a scheduler answers at an address; a client would wait forever for any other server."""
    from distributed import Security  # noqa: PLC0415 - see `connect`
    from distributed.comm import connect as open_comm  # noqa: PLC0415

    opened = open_comm(address, timeout=_ANSWER_S, **Security().get_connection_args("client"))
    comm = await asyncio.wait_for(opened, 2 * _ANSWER_S)
    await comm.close()


def _start_workers(client: Any, count: int) -> None:
    """Start `count` workers, and wait until they are ready.

    Raises:
        EquiscreenError: No worker started.
    """
    from distributed import Status  # noqa: PLC0415 - see `connect`

    deadline = time.monotonic() + START_S
    for attempt in range(STARTS):
        if attempt:
            client.cluster.scale(0)
            while client.cluster.workers and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        client.cluster.scale(count)
        while time.monotonic() < deadline:
            if len(client.nthreads()) >= count:
                return
            nannies = list(client.cluster.workers.values())
            if any(nanny.status in (Status.failed, Status.closed) for nanny in nannies):
                break
            time.sleep(_POLL_S)
    if not client.nthreads():
        raise EquiscreenError(
            f"no worker process started in {STARTS} attempts; free some memory, or use --scheduler threads"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the loggers of Dask and of its event loop: errors are raised to the caller."""
    loggers = [logging.getLogger(name) for name in ("distributed", "bokeh", "tornado", "asyncio")]
    # Child loggers have their own levels.
    loggers += [
        logger
        for name, logger in list(logging.root.manager.loggerDict.items())
        if name.startswith("distributed.") and isinstance(logger, logging.Logger)
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(_SILENT)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT for threads that are started in this block, and for the processes that those threads start.

    On a terminal Ctrl-C goes to all processes. The main process decides what it means, since workers would print
    tracebacks, and a nanny that is interrupted leaves its worker behind.
    """
    _start_resource_tracker()  # here, because it leaves SIGINT unblocked in the thread that starts it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_resource_tracker() -> None:
    """Start the process in which `multiprocessing` cleans up after this one, with its warnings switched off.

    That process warns about every semaphore that a killed run leaves behind, although its job is to remove them.
    """
    filters = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (filters, "ignore:resource_tracker")))
    try:
        resource_tracker.ensure_running()
    finally:
        if filters is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = filters


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep worker processes from importing the main module.

    `multiprocessing.spawn` imports the file of ``__main__`` in each new process, where a script without
    ``if __name__ == "__main__":`` would run again. Tasks use nothing from that file. A module without a file is not
    imported.
    """
    before = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = before
