"""Settings of the memory allocator: training keeps freed memory for the next step as long as memory is sufficient."""

from __future__ import annotations

import ctypes
import platform

import torch

# Parameters of mallopt(3) from glibc's malloc.h, and a limit larger than every tensor of a step.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LIMIT = 1 << 30
_DEFAULT = 128 << 10


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; return whether the C library (glibc) supports this.

    By default, glibc requests memory for each tensor above 128 kB from the system and returns it in every step.
    Clearing the pages of this memory takes a seventh of the training time on a CPU (tests/benchmarks/training_rate.py).
    """
    return _set_thresholds(_LIMIT)


def give_back_memory() -> None:
    """Undo `keep_freed_memory` when memory is short: return free memory to the system now and in later steps."""
    if _set_thresholds(_DEFAULT):
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _set_thresholds(size: int) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, size) and mallopt(_TRIM_THRESHOLD, size))
