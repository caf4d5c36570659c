"""The check that workers have the same versions as the process that starts a run: results could otherwise differ."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..errors import EquiscreenError

PACKAGE, RUNTIME = "equiscreen", "onnxruntime"
_PYTHON = "Python"
# The packages that install each module; only one of them may be installed.
_DISTRIBUTIONS = {PACKAGE: (PACKAGE,), RUNTIME: (RUNTIME, "onnxruntime-gpu")}

Versions = tuple[tuple[str, str], ...]


@lru_cache(maxsize=1)
def versions() -> Versions:
    """Return the names and versions of Python, equiscreen and, if installed, ONNX Runtime in this process."""
    found = {_PYTHON: platform.python_version()}
    for module, distributions in _DISTRIBUTIONS.items():
        for distribution in distributions:
            try:
                found[module] = version(distribution)
            except PackageNotFoundError:
                continue
    return tuple(found.items())


@lru_cache(maxsize=8)
def check_versions(wanted: Versions, worker: str) -> None:
    """Check, on a worker, that it has the versions of the process that started the run.

    Args:
        wanted: Result of `versions` in the process that started the run.
        worker: Name of the worker, for the message.

    Raises:
        EquiscreenError: Some version differs.
    """
    _compare(dict(wanted), dict(versions()), worker)


def check_workers(client: Any) -> None:
    """Check the versions of all connected workers before any of equiscreen's functions are sent to them.

    The check runs only functions of the standard library on the workers, since a worker may lack equiscreen.

    Raises:
        EquiscreenError: Equiscreen is not installed on a worker, or some version differs.
    """
    here = dict(versions())
    there: dict[str, dict[str, str]] = {}
    for worker, found in client.run(platform.python_version).items():
        there.setdefault(worker, {})[_PYTHON] = found
    for module, distributions in _DISTRIBUTIONS.items():
        missing = [*there]
        for distribution in distributions:
            # Only workers that lack the first package are asked for the next: a worker logs each failure.
            answers = client.run(version, distribution, workers=missing, on_error="return") if missing else {}
            for worker, found in answers.items():
                if isinstance(found, str):
                    there[worker][module] = found
            missing = [worker for worker in missing if module not in there[worker]]
    for worker, found in there.items():
        if PACKAGE not in found:
            raise EquiscreenError(
                f"worker {worker}: equiscreen is not installed there; start the workers in an environment with "
                f"equiscreen {here[PACKAGE]}"
            )
        _compare(here, found, f"worker {worker}")


def _compare(wanted: Mapping[str, str], found: Mapping[str, str], worker: str) -> None:
    """Compare a worker's versions with the wanted versions; for Python, only the first two numbers matter."""
    for name, expected in wanted.items():
        other = found.get(name, expected)  # a worker without ONNX Runtime can do everything but evaluate models
        if _significant(name, other) != _significant(name, expected):
            raise EquiscreenError(
                f"{worker} has {name} {other}, but this run was started with {name} {expected}; start all workers in "
                "the same environment"
            )


def _significant(name: str, text: str) -> str:
    return ".".join(text.split(".")[:2]) if name == _PYTHON else text
