"""Offsets into ragged arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def starts(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Exclusive prefix sums: int64[n] of the same length as `counts`."""
    total = np.cumsum(counts, dtype=np.int64)
    return total - counts


def ragged_rows(start: NDArray[np.int64], count: NDArray[np.integer]) -> NDArray[np.int64]:
    """``start[0], start[0] + 1, ...`` up to ``count[0]`` of them, then the same for the next: int64[sum of counts]."""
    within = np.arange(int(count.sum()), dtype=np.int64) - np.repeat(starts(count), count)
    return np.repeat(start, count) + within


def offsets_of(counts: Sequence[int]) -> NDArray[np.int64]:
    """Prefix sums with a leading zero: int64[n + 1]."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
