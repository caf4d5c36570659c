"""One pass over many structures: runs of chunks are read, shuffled, and divided into blocks or batches.

Reading structures one by one decodes a whole chunk for each of them. Instead, runs of consecutive structures, a few
chunks long, are read in a random order. Several runs make a window, and the structures of a window are shuffled. The
result depends on the stores and on the seed, but not on how far the reader reads ahead.
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

# Largest number of edges in a run. In runs of this many chunks (1.6 million edges, 13 MB), the partly used chunks at
# both ends matter little.
RUN_EDGES = 24 * CHUNK_ROWS[EDGE]
# Largest number of structures in a run, which matters if structures have few edges.
RUN_STRUCTURES = 2 * CHUNK_ROWS[STRUCTURE]
# Runs that are shuffled together: 19,000 structures of 500 edges, from six places.
WINDOW_RUNS = 6
# Structures are sorted by size within stretches of this many batches, which keeps padding low and the order random.
SORTED_BATCHES = 8

T = TypeVar("T")
Cut = Callable[[GraphBlock, NDArray[np.int64]], Iterator[NDArray[np.int64]]]


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """Structures and their positions in the stores.

    Attributes:
        block: Graphs of the structures.
        store: int64[n_structures], index of the store that each structure comes from.
        row: int64[n_structures], row of each structure in that store.
    """

    block: GraphBlock
    store: NDArray[np.int64]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, indices: NDArray[np.int64]) -> PlacedBlock:
        """Select the structures at `indices`, in that order."""
        return PlacedBlock(self.block.take(indices), self.store[indices], self.row[indices])

    @staticmethod
    def concatenate(parts: Sequence[PlacedBlock]) -> PlacedBlock:
        """Join blocks, in order."""
        return PlacedBlock(
            GraphBlock.concatenate([part.block for part in parts]),
            np.concatenate([part.store for part in parts]),
            np.concatenate([part.row for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive structures of one store that are read at once.

    Attributes:
        store: Index of the store.
        start, stop: Range of structures.
        load: Size of the chosen structures (their edges or their number), as a fraction of the largest run.
    """

    store: int
    start: int
    stop: int
    load: float


class EpochReader:
    """One pass over the chosen structures of one or several stores; each structure appears exactly once.

    Example:
        >>> from equiscreen.pipeline import EpochReader, GraphStore
        >>> reader = EpochReader([GraphStore("training.zarr")], shuffle=(0, 1))
        >>> [len(rows) for rows in reader.batches(structures=16)]
        [16, 16, 8]

    Args:
        stores: Stores that hold the structures.
        chosen: bool[n_structures] for each store; None chooses all structures.
        shuffle: Seed and epoch; None keeps the order of the stores.
        labels: Whether to read all labels or none, or the names of some. A label that only some of the stores have is
            NaN for the others.
        ahead: Number of windows that a thread reads ahead; 0 reads in the caller's thread.

    Raises:
        StoreError: A store is damaged, or a label differs between two stores in its unit or shape, or in being per
            structure or per atom.
        ValueError: `chosen` does not match the number of structures of a store.
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
        self._labels = _label_shapes(self.stores, labels)
        self._runs = [run for place in range(len(self.stores)) for run in self._runs_of(place)]

    def __len__(self) -> int:
        """Number of structures in the pass."""
        return sum(int(np.count_nonzero(chosen)) for chosen in self.chosen)

    def blocks(self, structures: int = 1024) -> Iterator[PlacedBlock]:
        """Yield blocks of `structures` structures in the order of the pass; the last one may be smaller."""
        for rows, order in self._windows(structures):
            for part in _equal_parts(order, structures):
                yield rows.take(part)

    def batches(self, *, structures: int | None = None, slots: int | None = None) -> Iterator[PlacedBlock]:
        """Iterate over batches of structures of similar size, so that their neighbour tables need little padding.

        Args:
            structures: Structures per batch; one batch may hold fewer.
            slots: Neighbour slots per batch; a structure that needs more is a batch on its own.

        Raises:
            ValueError: Neither or both of `structures` and `slots` are given.
        """
        if structures is not None and slots is None:
            return self._shuffled_batches(partial(_by_structures, structures), structures)
        if slots is not None and structures is None:
            return self._shuffled_batches(partial(_by_slots, slots), 1)
        raise ValueError("set exactly one of `structures` and `slots` to give the size of a batch")

    def _shuffled_batches(self, cut: Cut, multiple: int) -> Iterator[PlacedBlock]:
        """Divide all windows into batches, and yield the batches of each window in random order."""
        for number, (rows, order) in enumerate(self._windows(multiple)):
            batches = list(cut(rows.block, order))
            for place in self._permutation(len(batches), 2, number).tolist():
                yield rows.take(batches[place])

    def _permutation(self, size: int, *stream: int) -> NDArray[np.int64]:
        """Return an order of `size` items, int64[size]: random, or unchanged without `shuffle`.

        Every `stream` is independent, so that reading ahead does not change other orders.
        """
        if self.shuffle is None:
            return np.arange(size)
        return np.random.default_rng((*self.shuffle, *stream)).permutation(size)

    def _windows(self, multiple: int) -> Iterator[tuple[PlacedBlock, NDArray[np.int64]]]:
        stop = Event()
        return read_ahead(self._load_windows(multiple, stop), self.ahead, stop)

    def _load_windows(self, multiple: int, stop: Event) -> Iterator[tuple[PlacedBlock, NDArray[np.int64]]]:
        """Read windows and order their structures; all windows but the last hold a multiple of `multiple`."""
        rest: list[PlacedBlock] = []
        plan = self._plan()
        for number, runs in enumerate(plan):
            parts = []
            for run in runs:
                if stop.is_set():
                    return
                parts.append(self._read(run))
            window = PlacedBlock.concatenate(rest + parts)
            order = self._permutation(len(window), 1, number)
            keep = len(order) if number == len(plan) - 1 else len(order) - len(order) % multiple
            rest = [window.take(order[keep:])] if keep < len(order) else []
            if keep:
                yield window, order[:keep]

    def _plan(self) -> list[list[Run]]:
        """Return the runs of each window, in the order of the pass."""
        runs = [self._runs[place] for place in self._permutation(len(self._runs), 0).tolist()]
        if not runs:
            return []
        load = np.array([run.load for run in runs])
        load = load / load.sum() * math.ceil(load.sum() / WINDOW_RUNS)  # all windows have about the same size
        window = (np.cumsum(load) - load / 2).astype(int)
        cuts = [0, *(np.flatnonzero(np.diff(window)) + 1).tolist(), len(runs)]
        return [runs[begin:end] for begin, end in pairwise(cuts)]

    def _runs_of(self, place: int) -> Iterator[Run]:
        """Yield the runs of one store that hold chosen structures, each of at most about `RUN_EDGES` edges."""
        store, chosen = self.stores[place], self.chosen[place]
        if len(chosen) != len(store):
            raise ValueError(
                f"{store.path}: `chosen` has length {len(chosen)}, but the store has {len(store)} structures"
            )
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
        """Read the chosen structures of a run."""
        store = self.stores[run.store]
        per_structure, per_atom = self._labels
        block = store.block(run.start, run.stop, labels={*per_structure, *per_atom})
        block = replace(
            block,
            structure_labels=_with_absent(block.structure_labels, per_structure, len(block)),
            atom_labels=_with_absent(block.atom_labels, per_atom, len(block.atomic_number)),
        )
        rows = np.arange(run.start, run.stop)
        whole = PlacedBlock(block, np.full(len(rows), run.store), rows)
        wanted = np.flatnonzero(self.chosen[run.store][run.start : run.stop])
        return whole if len(wanted) == len(whole) else whole.take(wanted)


def read_ahead(items: Iterator[T], ahead: int, stop: Event) -> Iterator[T]:
    """Iterate over `items` in a thread that reads up to `ahead` items ahead.

    An error raised by `items` is raised here. If the caller stops early or fails, `stop` is set so that `items` can
    end, and the thread has ended before this generator returns.
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
    """Divide a window into batches of `structures` structures of similar size."""
    for some in _equal_parts(order, structures * SORTED_BATCHES):
        yield from _equal_parts(some[np.argsort(block.max_neighbors[some], kind="stable")], structures)


def _by_slots(slots: int, block: GraphBlock, order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Divide a window into batches of structures of similar size that fit into `slots` neighbour slots."""
    filled = np.cumsum(block.n_atoms[order] * np.maximum(1, block.max_neighbors[order]))
    stretch = filled // (slots * SORTED_BATCHES)
    for some in np.split(order, np.flatnonzero(np.diff(stretch)) + 1):
        for group in groups_by_size(block.n_atoms[some], block.max_neighbors[some], slots):
            yield some[group]


def _equal_parts(order: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    return (order[begin : begin + size] for begin in range(0, len(order), size))


def _label_shapes(
    stores: Sequence[GraphStore], labels: bool | Collection[str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return the row shapes of the requested labels that any store has, for labels per structure and per atom.

    Raises:
        StoreError: A label differs between two stores in its unit or shape, or in being per structure or per atom.
    """
    shapes: tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]] = ({}, {})
    kinds: dict[str, str] = {}
    for store in stores:
        for names, known, dim in zip(store.label_names, shapes, (STRUCTURE, ATOM), strict=True):
            for name in names:
                if not (labels if isinstance(labels, bool) else name in labels):
                    continue
                known[name], unit = store.label_shape(name)
                kind = f"per {dim}, shape {known[name]}, units {unit!r}"
                first = kinds.setdefault(name, kind)
                if kind != first:
                    raise StoreError(
                        f"{store.path}: the label {name!r} differs between the stores: {kind} instead of {first}; "
                        "featurize one of the stores again"
                    )
    return shapes


def _with_absent(
    labels: dict[str, NDArray[np.float64]], shapes: dict[str, tuple[int, ...]], length: int
) -> dict[str, NDArray[np.float64]]:
    """Add absent labels as NaN, so that the blocks of all stores have the same labels in the same order."""
    return {
        name: labels[name] if name in labels else np.full((length, *shape), np.nan) for name, shape in shapes.items()
    }
