"""Order of rows by a value; the order of equal values is independent of the order of rows in the dataset."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import StoreError
from .reader import ScoresReader, read_structures

_HASH = "structure_hash"


def best_first(scores: ScoresReader, rows: NDArray[np.int64], *keys: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return indices that sort rows by ascending keys: int64[n]; ties are ordered by structure hash, then by id.

    The hash comes first, since ids are mere record numbers if a source does not name its structures. If the graph
    store, which holds the hashes, cannot be read, only the ids decide.

    Args:
        scores: The dataset.
        rows: int64[n], rows, in any order.
        keys: Values of the rows, the most important first; no NaN.
    """
    order = np.lexsort(keys[::-1])
    equal = np.ones(max(len(order) - 1, 0), dtype=bool)
    for key in keys:
        ordered = key[order]
        equal &= ordered[1:] == ordered[:-1]
    tied = order[np.concatenate([equal, [False]]) | np.concatenate([[False], equal])] if equal.any() else order[:0]
    if len(tied) == 0:
        return order
    names = np.zeros(len(order), dtype=np.int64)
    names[tied] = _places_by_name(scores, rows[tied])
    return np.lexsort((names, *keys[::-1]))


def _places_by_name(scores: ScoresReader, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of each row in the order of structure hashes, then of ids: int64[n]."""
    ids = scores.rows("structure_id", rows).tolist()
    try:
        hashes = [one.tobytes() for one in read_structures(scores.graphs, rows, [_HASH])[_HASH]]
    except StoreError:
        hashes = [b""] * len(ids)
    out = np.empty(len(rows), dtype=np.int64)
    out[sorted(range(len(rows)), key=lambda place: (hashes[place], ids[place]))] = np.arange(len(rows))
    return out
