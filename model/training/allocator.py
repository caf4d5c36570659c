"""Memory that training frees is kept for the next step, as long as there is enough."""

from __future__ import annotations

import ctypes
import platform

import torch

# Parameters of mallopt(3) in glibc's malloc.h, and a limit beyond every tensor of a step.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LIMIT = 1 << 30
_DEFAULT = 128 << 10


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, where the C library is glibc; whether it does.

    Otherwise every tensor above 128 kB comes fresh from the system and goes back to it, and each of its pages is
    cleared again in each step: a seventh of a training's time on a CPU (tests/benchmarks/training_rate.py).
    """
    return _set_thresholds(_LIMIT)


def give_back_memory() -> None:
    """The opposite, where memory is short: what is free goes back to the system, now and from now on."""
    if _set_thresholds(_DEFAULT):
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _set_thresholds(size: int) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, size) and mallopt(_TRIM_THRESHOLD, size))
