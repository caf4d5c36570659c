"""Jobs of a batch system that run workers; dask-jobqueue submits them, replaces jobs that end, and cancels them."""

from __future__ import annotations

import asyncio
import importlib
import logging
import shutil
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import ConfigError, EquiscreenError, detail
from .settings import BatchSettings, BatchSystem

# Seconds between two checks of the jobs. A worker that died is restarted by its nanny; if a job has had no worker for
# this many seconds, the job is replaced.
LOOK_EVERY_S, WITHOUT_WORKER_S = 5.0, 20.0
# Jobs in a row that may end before their workers have joined. Further ones are submitted after a pause: on a broken
# node, or with a broken prologue, each ends at once.
FAILED_STARTS, PAUSE_S = 3, 300.0
# A run ends after this many times its number of jobs have ended in a row without a single result.
FRUITLESS = 3
# Losses of workers after which a task is suspected. Jobs end for many reasons that have nothing to do with the task.
ALLOWED_DEATHS = 3
# After `lost-worker-timeout`, Dask itself gives up on jobs whose workers are gone, and might then cancel their
# replacements.
SETTINGS = {
    "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
    "distributed.deploy.lost-worker-timeout": "365 days",
}
# Seconds within which a worker must start and find the scheduler; on a slow file system, Dask's default of 60 s is too
# short.
_START_S = 180
# Seconds that the batch system may take to accept the first jobs.
SUBMIT_S = 120
_POLL_S = 0.05
_SILENT = logging.CRITICAL + 1
_LONGEST_OUTPUT = 4_096  # bytes of a job's output that are searched for its last line
# Temporary files that a cluster of dask-jobqueue 0.9 leaves to the garbage collector, which may never come to them.
_CERTIFICATES = ("_job_ca_file", "_job_cert", "_job_key")
_CLASSES = {
    BatchSystem.SLURM: "SLURMCluster",
    BatchSystem.PBS: "PBSCluster",
    BatchSystem.LSF: "LSFCluster",
    BatchSystem.SGE: "SGECluster",
}


class BatchJobs:
    """The jobs of a run, and the Dask scheduler that their workers connect to.

    The scheduler runs in this process. Scheduler and workers accept only connections with a certificate made for this
    run: on a cluster, other users could otherwise send tasks to the workers.

    Args:
        system: The batch system.
        file: Cluster file, named in messages.
        settings: Content of the cluster file.

    Attributes:
        cluster: The cluster of dask-jobqueue.
        failure: Why jobs do not start; empty while they do.

    Raises:
        EquiscreenError: A package is not installed, this machine cannot submit jobs, the scheduler cannot start, or the
            batch system accepts none of the first jobs.
        ConfigError: The job folder cannot be made, or GPUs are requested from a batch system other than Slurm.
    """

    def __init__(self, system: BatchSystem, file: str, settings: BatchSettings) -> None:
        self.system, self.file, self.settings = system, file, settings
        self.failure = ""
        self._joined: set[str] = set()  # IDs of jobs whose workers have joined
        self._without: dict[str, float] = {}  # jobs that lost their workers, and when
        self._failed_starts, self._last_start, self._fruitless = 0, 0.0, 0
        self._states: Mapping[str, str] | None = None
        self._asked: set[str] = set()  # IDs of the jobs that existed before the batch system was asked for the states
        self.cluster = new_cluster(system, settings)
        self._watching: asyncio.Task[None] | None = None
        self._end = asyncio.Event()
        try:
            self._submit_first()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel the jobs, stop the scheduler and remove the certificates."""
        try:
            with suppress(TimeoutError):
                self.cluster.sync(self._stop_watching)
                self.cluster.close()
        finally:
            for name in _CERTIFICATES:
                if (file := getattr(self.cluster, name, None)) is not None:
                    file.close()

    def note_result(self) -> None:
        """Reset the count of jobs without a result, because a task has ended or there was none to run."""
        self._fruitless = 0

    def check_progress(self) -> None:
        """Check that tasks end before the jobs in which they run.

        Raises:
            EquiscreenError: Many jobs in a row have ended without a result.
        """
        if self._fruitless >= FRUITLESS * self.settings.jobs:
            raise EquiscreenError(
                f"{self.file}: {self._fruitless} jobs in a row ended before any of their tasks did; raise `walltime` "
                f"(now {self.settings.walltime}), and run the same command again to resume"
            )

    def waiting(self) -> str:
        """List the jobs, with their states if the batch system reports them: ``jobs 12 (PENDING, Resources), 13``."""
        states, jobs = self._states or {}, list(self.cluster.workers.values())
        known = [job.job_id for job in jobs if job.job_id]
        named = [f"{one} ({states[one]})" if one in states else one for one in known[:3]]
        rejected = next((job.error for job in jobs if job.error), "")
        return f"jobs {', '.join(named)}{', ...' if len(known) > len(named) else ''}" + (rejected and f"; {rejected}")

    def _submit_first(self) -> None:
        self.cluster.scale(jobs=self.settings.jobs)
        deadline = time.monotonic() + SUBMIT_S
        jobs: list[Any] = []
        while len(jobs) < self.settings.jobs and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            jobs = list(self.cluster.workers.values())
        if not any(job.job_id for job in jobs):
            told = next((job.error for job in jobs if job.error), f"no answer in {SUBMIT_S} s")
            raise EquiscreenError(
                f"{self.file}: {self.cluster.job_cls.submit_command} does not accept the job: {told}; correct the "
                "cluster file"
            )
        self.cluster.sync(self._start_watching)

    async def _start_watching(self) -> None:
        self._watching = asyncio.ensure_future(self._watch())

    async def _stop_watching(self) -> None:
        """Stop watching the jobs, but not in the middle of a submission: the ID of that job would be lost."""
        self._end.set()
        if self._watching is not None:
            await self._watching

    async def _watch(self) -> None:
        while not self._end.is_set():
            with suppress(OSError, RuntimeError, ValueError):  # the batch system may be restarting; look again later
                self._asked = {job.job_id for job in self.cluster.workers.values()}
                self._states = await _states(self.system)
                await self._replace(self._ended())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), LOOK_EVERY_S)

    def _ended(self) -> list[str]:
        """Return the names of the jobs to be replaced."""
        present = {str(worker.name) for worker in self.cluster.scheduler.workers.values()}
        now, ended = time.monotonic(), list[str]()
        for name, job in self.cluster.workers.items():
            group = self.cluster.worker_spec.get(name, {}).get("group", [""])
            if present & {f"{name}{suffix}" for suffix in group}:
                self._joined.add(job.job_id)
                self._without.pop(job.job_id, None)
                self._failed_starts, self.failure = 0, ""
            elif job.job_id in self._joined:
                since = self._without.setdefault(job.job_id, now)
                if self._has_ended(job) or now - since >= WITHOUT_WORKER_S:
                    self._fruitless += 1
                    ended.append(name)
            elif self._has_ended(job) and (self._failed_starts < FAILED_STARTS or now - self._last_start >= PAUSE_S):
                self._failed_starts, self._last_start = self._failed_starts + 1, now
                ended.append(name)
                if self._failed_starts >= FAILED_STARTS:
                    self.failure = self._failure(job)
        return ended

    def _has_ended(self, job: Any) -> bool:
        """Whether a job was rejected, or is known to have ended."""
        if job.job_id is None:
            return True
        return self._states is not None and job.job_id in self._asked and job.job_id not in self._states

    def _failure(self, job: Any) -> str:
        if job.error:
            return f"{self.file}: {self.cluster.job_cls.submit_command} does not accept the job: {job.error}"
        folder = Path(self.settings.folder)
        return (
            f"{self.file}: {self._failed_starts} jobs in a row ended before their workers joined the run; the output "
            f"of job {job.job_id} in {folder} ends with {_last_line(folder, job.job_id)!r}; check the prologue, that "
            "the nodes can use this Python environment, and that they can connect to this machine"
        )

    async def _replace(self, names: list[str]) -> None:
        """Cancel jobs, and submit others in their place."""
        if names:
            await self.cluster.scale_down(names)
        if len(self.cluster.workers) < self.settings.jobs:
            self.cluster.scale(jobs=self.settings.jobs)


def new_cluster(system: BatchSystem, settings: BatchSettings) -> Any:
    """Start a cluster of dask-jobqueue without jobs; its scheduler runs in this process.

    Raises:
        EquiscreenError: A package is not installed, this machine cannot submit jobs, or the scheduler cannot start.
        ConfigError: The job folder cannot be made, or GPUs are requested from a batch system other than Slurm.
    """
    jobqueue = _required("dask_jobqueue", "dask-jobqueue")
    _required("cryptography", "cryptography")
    from distributed import Security  # noqa: PLC0415 - see `pipeline.runs.cluster.connect`

    cluster_class = getattr(jobqueue, _CLASSES[system])
    command = cluster_class.job_cls.submit_command
    if shutil.which(command) is None:
        raise EquiscreenError(
            f"{command} was not found on this machine; run equiscreen where jobs of {system} can be submitted, such as "
            "a login node"
        )
    folder = Path(settings.folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot create the job folder ({detail(error)}); set another `folder` in the cluster file"
        ) from error
    try:
        return cluster_class(
            job_cls=_recorded(cluster_class.job_cls),
            name="equiscreen",
            job_name="equiscreen",
            security=Security.temporary(),
            shared_temp_directory=str(folder.resolve()),
            log_directory=str(folder.resolve()),
            silence_logs=_SILENT,
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
            **job_options(system, settings),
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise EquiscreenError(
            f"the Dask scheduler cannot start ({detail(error.__cause__ or error)}); check `interface` in the "
            "cluster file"
        ) from error


def job_options(system: BatchSystem, settings: BatchSettings) -> dict[str, Any]:
    """Convert settings to the arguments of a cluster of dask-jobqueue.

    Raises:
        ConfigError: GPUs are requested from a batch system other than Slurm.
    """
    directives = list(settings.directives)
    if settings.gpus and system != BatchSystem.SLURM:
        raise ConfigError(
            f"gpus: {system} has no standard option for GPUs; request a GPU with `directives` and set `workers: 1`"
        )
    if settings.gpus:
        directives.insert(0, f"--gres=gpu:{settings.gpus}")
    arguments = [f"--lifetime={settings.lifetime_s:.0f}s", f"--lifetime-stagger={settings.stagger_s:.0f}s"]
    if settings.gpus:
        arguments.append("--resources=GPU=1")
    return {
        "cores": settings.cores,
        "processes": settings.processes,
        "memory": settings.memory,
        "walltime": _walltime(system, settings.walltime_s),
        "queue": settings.queue,
        "project" if system in (BatchSystem.LSF, BatchSystem.SGE) else "account": settings.account,
        "interface": settings.interface,
        "death_timeout": _START_S,
        "job_script_prologue": list(settings.prologue),
        "job_extra_directives": directives,
        "worker_extra_args": [*arguments, "--dashboard-address=127.0.0.1:0"],
    }


def _walltime(system: BatchSystem, seconds: int) -> str:
    """Format a time limit in the notation of a batch system; LSF counts whole minutes."""
    minutes, rest = divmod(seconds, 60)
    if system == BatchSystem.LSF:
        minutes += rest > 0
        return f"{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def _recorded(base: Any) -> Any:
    """Make a subclass of a class of jobs that remembers why a job could not be submitted."""
    from distributed import Status  # noqa: PLC0415 - see `pipeline.runs.cluster.connect`

    class RecordedJob(base):  # type: ignore[misc]
        """A job of a batch system."""

        error = ""

        async def start(self) -> None:
            """Submit the job."""
            try:
                await super().start()
            except (OSError, RuntimeError, ValueError) as error:
                self.error = detail(RuntimeError(str(error).rpartition("stderr:")[2]))
                raise

        async def close(self) -> None:
            """Cancel the job and set its status, which dask-jobqueue omits; otherwise, closing the cluster fails."""
            await super().close()
            self.status = Status.closed

    return RecordedJob


async def _states(system: BatchSystem) -> Mapping[str, str] | None:
    """Return the state of each waiting or running job of the user, and its reason, by job ID; None if unknown."""
    if system != BatchSystem.SLURM:
        return None
    words = ("squeue", "--me", "--noheader", "--format=%A|%T|%r")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
    printed, _ = await process.communicate()
    if process.returncode:
        return None
    rows = [line.split("|") for line in printed.decode(errors="replace").splitlines()]
    return {row[0]: ", ".join(text for text in row[1:] if text != "None") for row in rows}


def _last_line(folder: Path, job_id: str) -> str:
    """Return the last line of the output of a job; empty if there is none."""
    for path in sorted(folder.glob(f"*{job_id}.err")):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LONGEST_OUTPUT))
            lines = file.read(_LONGEST_OUTPUT).decode(errors="replace").split("\n")
        for line in reversed(lines):
            if line.strip():
                return line.strip()[:200]
    return ""


def _required(module: str, package: str) -> Any:
    """Import a module that an extra installs.

    Importing dask-jobqueue 0.9 makes Ctrl-C end the process with exit code 0 (in its module `runner`); the previous
    signal handler is restored.

    Raises:
        EquiscreenError: The module is not installed.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EquiscreenError(f"{package} is not installed: pip install 'equiscreen[cluster]'") from error
    finally:
        if signal.getsignal(signal.SIGINT) is not before:
            signal.signal(signal.SIGINT, before)
