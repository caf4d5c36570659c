"""Settings of the jobs in which a batch system runs workers: a small YAML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ...bounded_yaml import load_yaml
from ...errors import ConfigError, detail
from ...suggestions import problem_text

# Time between the end of a worker and the walltime of its job, and the spread of the ends of workers: fractions of the
# walltime, and at most this many seconds. The time before the end covers the start of the worker, too, which on a
# shared file system may take a minute.
_MARGIN, _LONGEST_MARGIN_S = 0.25, 300.0
_STAGGER, _LONGEST_STAGGER_S = 0.125, 300.0
_SHORTEST_WALLTIME_S = 60
_HOURS = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)")
# Replacements for messages of pydantic, which name Python types.
_EXPECTED = {
    "missing": "is missing; add it",
    "string_type": "must be text; put it in quotes",
    "string_pattern_mismatch": "must be one line of text",
    "tuple_type": "must be text or a list of lines",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
}

_Line = Annotated[str, Field(min_length=1, pattern=r"^[^\r\n]+$")]


class BatchSystem(StrEnum):
    """A batch system, by its name in `--scheduler`."""

    SLURM = "slurm"
    PBS = "pbs"
    LSF = "lsf"
    SGE = "sge"


class BatchSettings(BaseModel):
    """The resources that each job requests, and what runs in it.

    Example:
        >>> from equiscreen.pipeline.runs.batch.settings import BatchSettings
        >>> settings = BatchSettings(jobs=4, cores=16, memory="32GB", walltime="08:00:00")
        >>> settings.processes, settings.lifetime_s, settings.stagger_s
        (16, 28200.0, 300.0)

    Attributes:
        jobs: Number of jobs.
        cores: Cores of each job.
        memory: Memory of each job, such as 32GB; its workers share it equally.
        walltime: Time limit of each job, as HH:MM:SS or D-HH:MM:SS. A job that ends is replaced until the run is done.
        workers: Worker processes in each job; None starts one per core or, with a GPU, one.
        gpus: GPUs of each job, 0 or 1. Only for Slurm; on other batch systems, request a GPU with `directives`.
        queue: Queue or partition; None leaves the choice to the batch system.
        account: Account or project that is charged.
        interface: Network interface of the scheduler and the workers, such as ib0; None uses the default one.
        prologue: Shell commands that a job runs before its workers start, such as ``module load`` or ``source``.
        directives: Further options of the batch system, as written after ``#SBATCH``.
        folder: Folder for the output of jobs and the certificates of the run, which all nodes must share.
        wait: How long the run waits without any worker before it ends, in the notation of `walltime`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs: int = Field(default=1, ge=1, le=1_000, strict=True)
    cores: int = Field(default=1, ge=1, le=4_096, strict=True)
    memory: str
    walltime: str
    workers: int | None = Field(default=None, ge=1, strict=True)
    gpus: int = Field(default=0, ge=0, le=1, strict=True)
    queue: _Line | None = None
    account: _Line | None = None
    interface: _Line | None = None
    prologue: tuple[_Line, ...] = ()
    directives: tuple[_Line, ...] = ()
    folder: _Line = "equiscreen-jobs"
    wait: str = "24:00:00"

    @field_validator("prologue", "directives", mode="before")
    @classmethod
    def _lines(cls, value: Any) -> Any:
        lines = value.splitlines() if isinstance(value, str) else value
        return tuple(line for line in lines if line != "") if isinstance(lines, list | tuple) else lines

    @field_validator("walltime", "wait", mode="before")
    @classmethod
    def _is_time(cls, value: Any) -> Any:
        if not isinstance(value, str) or _HOURS.fullmatch(value) is None:  # YAML reads 8:00:00 as a number
            raise ValueError('must be HH:MM:SS or D-HH:MM:SS, in quotes, such as "08:00:00"')
        return value

    @field_validator("memory")
    @classmethod
    def _is_memory(cls, value: str) -> str:
        from dask.utils import parse_bytes  # noqa: PLC0415 - reading a store does not need Dask

        try:
            enough = re.search(r"[A-Za-z]", value) is not None and parse_bytes(value) >= 1 << 20
        except ValueError:
            enough = False
        if not enough:
            raise ValueError("must be an amount with a unit, such as 16GB")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.processes > self.cores:
            raise ValueError(f"workers: {self.processes} workers need at least as many cores; there are {self.cores}")
        if self.walltime_s < _SHORTEST_WALLTIME_S:
            raise ValueError("walltime must be at least one minute")
        return self

    @property
    def processes(self) -> int:
        """Worker processes in each job."""
        return self.workers or (1 if self.gpus else self.cores)

    @property
    def walltime_s(self) -> int:
        """Time limit of each job, seconds."""
        return _seconds(self.walltime)

    @property
    def wait_s(self) -> int:
        """Time without workers after which the run ends, seconds."""
        return _seconds(self.wait)

    @property
    def stagger_s(self) -> float:
        """Half of the interval in which workers that started together end, seconds."""
        return min(_STAGGER * self.walltime_s, _LONGEST_STAGGER_S)

    @property
    def lifetime_s(self) -> float:
        """Mean time after which a worker ends, seconds; the last one ends a margin before the walltime."""
        return self.walltime_s - min(_MARGIN * self.walltime_s, _LONGEST_MARGIN_S) - self.stagger_s

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the settings from a YAML file.

        Raises:
            ConfigError: The file cannot be read, a key is unknown or missing, or a value is invalid.
        """
        try:
            content = load_yaml(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {detail(error)}; give the path of a cluster file") from error
        if not isinstance(content, Mapping):
            raise ConfigError(f"{path} is not a cluster file; it needs at least `memory:` and `walltime:`")
        try:
            return cls(**{str(name): value for name, value in content.items()})
        except ValidationError as error:
            told = (problem_text(problem, "key", cls.model_fields, _EXPECTED) for problem in error.errors())
            raise ConfigError(f"{path}: {'; '.join(told)}") from error


def batch_system_of(scheduler: str | None) -> tuple[BatchSystem, str] | None:
    """Return the batch system and the cluster file in ``SYSTEM:FILE``; None for anything else.

    Raises:
        ConfigError: A batch system is named without a file.
    """
    name, _, file = (scheduler or "").partition(":")
    if name not in list(BatchSystem):
        return None
    if not file:
        raise ConfigError(f"{name}: the cluster file is missing; use --scheduler {name}:cluster.yaml")
    return BatchSystem(name), file


def _seconds(text: str) -> int:
    found = _HOURS.fullmatch(text)
    assert found is not None  # noqa: S101 - validated
    days, hours, minutes, seconds = (int(found[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
    return ((24 * days + hours) * 60 + minutes) * 60 + seconds
