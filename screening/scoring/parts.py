"""What all runs of a model over a graph store have in common: how it is divided, what is said of store and model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.schema import STRUCTURE


def cut(n_edges: NDArray[np.int32], part_edges: int, part_structures: int) -> list[tuple[int, int]]:
    """Divide structures into parts: (start, stop) of each. Workers play no role in it.

    Args:
        n_edges: int32[n_structures].
        part_edges: A part ends when it has so many edges,
        part_structures: or so many structures.
    """
    ends = np.cumsum(n_edges, dtype=np.int64)
    spans: list[tuple[int, int]] = []
    start = before = 0
    while start < len(ends):
        full = int(np.searchsorted(ends, before + part_edges)) + 1
        stop = min(full, start + part_structures, len(ends))
        spans.append((start, stop))
        start, before = stop, int(ends[stop - 1])
    return spans


def column_names(graphs: GraphStore) -> tuple[str, ...]:
    """Input columns that the store carries along."""
    return tuple(
        name for name, spec in graphs.specs.items() if spec.attrs.get("role") == "column" and spec.dims[0] == STRUCTURE
    )


def listed(statuses: Mapping[str, int]) -> str:
    """Statuses that there are, in words."""
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in statuses.items() if count)
