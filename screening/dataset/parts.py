"""Division of a graph store into parts, and helpers shared by all runs of a model over a store."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.schema import STRUCTURE, TEXT, ArraySpec


def cut(n_edges: NDArray[np.integer], part_edges: int, part_structures: int) -> list[tuple[int, int]]:
    """Divide structures into parts, independently of the number of workers.

    Args:
        n_edges: int[n_structures], edges of each structure, or of all its evaluations.
        part_edges: Number of edges after which a part ends.
        part_structures: Number of structures after which a part ends.

    Returns:
        (start, stop) of each part.
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


def structures_within(graphs: GraphStore, limit: int | None) -> int:
    """Return the number of structures that a run processes.

    Args:
        graphs: The graph store.
        limit: Process only the first `limit` structures; None processes all.

    Raises:
        ConfigError: The limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"the limit is {limit} structures; it must be at least 1")
    return len(graphs) if limit is None else min(limit, len(graphs))


def carried_columns(graphs: GraphStore, arrays: Iterable[ArraySpec]) -> tuple[str, ...]:
    """Return the names of the input columns of a graph store that are copied to its scores.

    Args:
        graphs: The graph store.
        arrays: Arrays of the scores; columns with the same name as one of these are not copied.
    """
    taken = {spec.name for spec in arrays}
    return tuple(
        name
        for name, spec in graphs.specs.items()
        if spec.attrs.get("role") == "column" and spec.dims[0] == STRUCTURE and name not in taken
    )


def uncompressed_bytes(specs: Iterable[ArraySpec], counts: Mapping[str, int]) -> float:
    """Return the uncompressed size of the arrays of a store in bytes, not counting text columns.

    Args:
        specs: The arrays.
        counts: Number of rows by first dim of the arrays.
    """
    return float(
        sum(
            np.dtype(spec.dtype).itemsize * math.prod(spec.shape(counts[spec.dims[0]]))
            for spec in specs
            if spec.dtype != TEXT
        )
    )


def listed(statuses: Mapping[str, int]) -> str:
    """Return the counts of the statuses that occur, as text such as "31 ok, 1 unknown element"."""
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in statuses.items() if count)
