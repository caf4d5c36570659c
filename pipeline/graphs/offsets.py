"""Offsets into ragged arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def starts(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the exclusive prefix sums of `counts`: int64[n]."""
    total = np.cumsum(counts, dtype=np.int64)
    return total - counts


def ragged_rows(start: NDArray[np.int64], count: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the concatenated ranges ``start[i], start[i] + 1, ...`` of length ``count[i]``: int64[sum of counts]."""
    within = np.arange(int(count.sum()), dtype=np.int64) - np.repeat(starts(count), count)
    return np.repeat(start, count) + within


def offsets_of(counts: Sequence[int]) -> NDArray[np.int64]:
    """Return the prefix sums of `counts` with a leading zero: int64[n + 1]."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
