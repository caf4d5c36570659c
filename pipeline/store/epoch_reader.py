"""One pass over many structures: whole runs of chunks are read, mixed, and cut into blocks or batches.

Reading single structures decodes a chunk for each. So runs of consecutive structures are read, a few chunks long, in an
order drawn from a seed. Several runs make a window, whose structures are mixed with one another. What comes out depends
on the stores and the seed, and not on how far ahead is read.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from threading import Event
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..graphs.graph_block import GraphBlock
from ..graphs.neighbor_table import groups_by_size
from .graph_store import GraphStore
from .schema import ATOM, CHUNK_ROWS, EDGE, STRUCTURE

# A run of so many chunks of edges (1.6 million edges, 13 MB) wastes little at its two ends, ...
RUN_EDGES = 24 * CHUNK_ROWS[EDGE]
# ... and is no longer than this where there are few edges.
RUN_STRUCTURES = 2 * CHUNK_ROWS[STRUCTURE]
# So much is mixed with one another: 19,000 structures of 500 edges, from six places.
WINDOW_RUNS = 6
# Batches are cut from stretches of so many batches ordered by size, which keeps padding low and order random.
SORTED_BATCHES = 8

T = TypeVar("T")
Cut = Callable[[GraphBlock, NDArray[np.int64]], Iterator[NDArray[np.int64]]]


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """Structures, and where they stand.

    Attributes:
        block: Their graphs.
        store: int64[n_structures], which of the stores each comes from.
        row: int64[n_structures], its place in that store.
    """

    block: GraphBlock
    store: NDArray[np.int64]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, indices: NDArray[np.int64]) -> PlacedBlock:
        """The structures at `indices`, in that order."""
        return PlacedBlock(self.block.take(indices), self.store[indices], self.row[indices])

    @staticmethod
    def concatenate(parts: Sequence[PlacedBlock]) -> PlacedBlock:
        """Structures one after the other."""
        return PlacedBlock(
            GraphBlock.concatenate([part.block for part in parts]),
            np.concatenate([part.store for part in parts]),
            np.concatenate([part.row for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive structures that are read in one go.

    Attributes:
        store: Which of the stores.
        start, stop: Structures.
        load: What is wanted of it, as a share of the largest run.
    """

    store: int
    start: int
    stop: int
    load: float


class EpochReader:
    """One pass over the chosen structures of one or several stores; each comes exactly once.

    Example:
        >>> reader = EpochReader([GraphStore("mp.zarr")], shuffle=(0, epoch))  # doctest: +SKIP
        >>> for rows in reader.batches(slots=100_000):  # doctest: +SKIP
        ...     table = neighbor_table(rows.block, cutoff=5.0)

    Args:
        stores: Where the structures are.
        chosen: bool[n_structures] for each store; None for all of them.
        shuffle: Seed and epoch, or None for the order of the stores.
        labels: All, none, or those of some names. What only some of the stores have is NaN for the others.
        ahead: Windows that a thread reads before they are asked for; 0 reads in the caller's thread.

    Raises:
        StoreError: Damaged stores, or a label that is in different units, or of different shape, in two of them.
    """

    def __init__(
        self,
        stores: Sequence[GraphStore],
        chosen: Sequence[NDArray[np.bool_]] | None = None,
        *,
        shuffle: tuple[int, int] | None = None,
        labels: bool | Collection[str] = True,
        ahead: int = 1,
    ) -> None:
        self.stores, self.shuffle, self.ahead = tuple(stores), shuffle, ahead
        self.chosen = [np.ones(len(store), dtype=bool) for store in stores] if chosen is None else list(chosen)
        self._labels = _known_labels(self.stores, labels)
        self._runs = [run for place in range(len(self.stores)) for run in self._runs_of(place)]

    def __len__(self) -> int:
        """Structures of the pass."""
        return sum(int(np.count_nonzero(chosen)) for chosen in self.chosen)

    def blocks(self, structures: int = 1024) -> Iterator[PlacedBlock]:
        """Blocks of `structures` structures, the last one smaller, in the order of the pass."""
        for rows, order in self._windows(structures):
            for part in _equal_parts(order, structures):
                yield rows.take(part)

    def batches(self, *, structures: int | None = None, slots: int | None = None) -> Iterator[PlacedBlock]:
        """Batches whose structures are of similar size, so that their tables hold little padding.

        Args:
            structures: So many in each batch, fewer in one of them.
            slots: Or as many as fit into so many neighbour slots; a structure with more stands alone.

        Raises:
            ValueError: Not one of the two is given.
        """
        if structures is not None and slots is None:
            return self._mixed(partial(_by_structures, structures), structures)
        if slots is not None and structures is None:
            return self._mixed(partial(_by_slots, slots), 1)
        raise ValueError("a batch is measured in structures or in slots")

    def _mixed(self, cut: Cut, multiple: int) -> Iterator[PlacedBlock]:
        """Cut all windows into batches, and put those of each window in random order."""
        for number, (rows, order) in enumerate(self._windows(multiple)):
            batches = list(cut(rows.block, order))
            for place in self._drawn(len(batches), 2, number).tolist():
                yield rows.take(batches[place])

    def _drawn(self, size: int, *stream: int) -> NDArray[np.int64]:
        """A random order, from a stream of random numbers of its own: what is read ahead takes nothing from others."""
        if self.shuffle is None:
            return np.arange(size)
        return np.random.default_rng((*self.shuffle, *stream)).permutation(size)

    def _windows(self, multiple: int) -> Iterator[tuple[PlacedBlock, NDArray[np.int64]]]:
        stop = Event()
        return read_ahead(self._loaded(multiple, stop), self.ahead, stop)

    def _loaded(self, multiple: int, stop: Event) -> Iterator[tuple[PlacedBlock, NDArray[np.int64]]]:
        """Windows with the order of their structures; all but the last hold a multiple of `multiple`."""
        rest: list[PlacedBlock] = []
        plan = self._plan()
        for number, runs in enumerate(plan):
            parts = []
            for run in runs:
                if stop.is_set():
                    return
                parts.append(self._read(run))
            window = PlacedBlock.concatenate(rest + parts)
            order = self._drawn(len(window), 1, number)
            keep = len(order) if number == len(plan) - 1 else len(order) - len(order) % multiple
            rest = [window.take(order[keep:])] if keep < len(order) else []
            if keep:
                yield window, order[:keep]

    def _plan(self) -> list[list[Run]]:
        """The runs of each window, in the order of the pass."""
        runs = [self._runs[place] for place in self._drawn(len(self._runs), 0).tolist()]
        if not runs:
            return []
        load = np.array([run.load for run in runs])
        load = load / load.sum() * math.ceil(load.sum() / WINDOW_RUNS)  # all windows about equally large
        window = (np.cumsum(load) - load / 2).astype(int)
        cuts = [0, *(np.flatnonzero(np.diff(window)) + 1).tolist(), len(runs)]
        return [runs[begin:end] for begin, end in pairwise(cuts)]

    def _runs_of(self, place: int) -> Iterator[Run]:
        """Runs of one store that hold chosen structures, cut where chunks of its edges begin."""
        store, chosen = self.stores[place], self.chosen[place]
        if len(chosen) != len(store):
            raise ValueError(f"{len(chosen)} choices for the {len(store)} structures of {store.path}")
        edge_start = store.offsets[1][:-1]
        key = edge_start // RUN_EDGES + np.arange(len(store)) // RUN_STRUCTURES
        cuts = [0, *(np.flatnonzero(np.diff(key)) + 1).tolist(), len(store)]
        edges = np.where(chosen, store.n_edges, 0)
        for start, stop in pairwise(cuts):
            rows = start + np.flatnonzero(chosen[start:stop])
            if len(rows):
                load = max(edges[start:stop].sum(dtype=np.int64) / RUN_EDGES, len(rows) / RUN_STRUCTURES)
                yield Run(place, int(rows[0]), int(rows[-1]) + 1, float(load))

    def _read(self, run: Run) -> PlacedBlock:
        store = self.stores[run.store]
        per_structure, per_atom = self._labels
        block = store.block(run.start, run.stop, labels={*per_structure, *per_atom})
        block = replace(
            block,
            structure_labels=_complete(block.structure_labels, per_structure, len(block)),
            atom_labels=_complete(block.atom_labels, per_atom, len(block.atomic_number)),
        )
        rows = np.arange(run.start, run.stop)
        whole = PlacedBlock(block, np.full(len(rows), run.store), rows)
        wanted = np.flatnonzero(self.chosen[run.store][run.start : run.stop])
        return whole if len(wanted) == len(whole) else whole.take(wanted)


def read_ahead(items: Iterator[T], ahead: int, stop: Event) -> Iterator[T]:
    """Go through `items` with a thread that is up to `ahead` of them in advance.

    An error of the items is raised here. When the caller stops early, or fails, `stop` is set for the items to see,
    and the thread has ended before this returns.
    """
    if ahead < 1:
        yield from items
        return
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="equiscreen-reading")
    try:
        waiting: deque[Future[T | object]] = deque(pool.submit(next, items, end) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _by_structures(structures: int, block: GraphBlock, order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for some in _equal_parts(order, structures * SORTED_BATCHES):
        yield from _equal_parts(some[np.argsort(block.max_neighbors[some], kind="stable")], structures)


def _by_slots(slots: int, block: GraphBlock, order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    filled = np.cumsum(block.n_atoms[order] * np.maximum(1, block.max_neighbors[order]))
    stretch = filled // (slots * SORTED_BATCHES)
    for some in np.split(order, np.flatnonzero(np.diff(stretch)) + 1):
        for group in groups_by_size(block.n_atoms[some], block.max_neighbors[some], slots):
            yield some[group]


def _equal_parts(order: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    return (order[begin : begin + size] for begin in range(0, len(order), size))


def _known_labels(
    stores: Sequence[GraphStore], labels: bool | Collection[str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Shapes of one row of all wanted labels that any of the stores has, per structure and per atom.

    Raises:
        StoreError: One is of different units or shape in two stores.
    """
    shapes: tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]] = ({}, {})
    kinds: dict[str, str] = {}
    for store in stores:
        for names, known, dim in zip(store.label_names, shapes, (STRUCTURE, ATOM), strict=True):
            for name in names:
                if not (labels if isinstance(labels, bool) else name in labels):
                    continue
                known[name], unit = store.label_shape(name)
                kind = f"per {dim}, of shape {known[name]}, in {unit!r}"
                first = kinds.setdefault(name, kind)
                if kind != first:
                    raise StoreError(
                        f"{store.path}: label {name!r} is not the same as in other stores: {kind}; {first}"
                    )
    return shapes


def _complete(
    labels: dict[str, NDArray[np.float64]], shapes: dict[str, tuple[int, ...]], length: int
) -> dict[str, NDArray[np.float64]]:
    """Labels with NaN for those that are absent, in the same order for all stores."""
    return {
        name: labels[name] if name in labels else np.full((length, *shape), np.nan) for name, shape in shapes.items()
    }
