"""Where the rows of a store come from when it is written: parts of a run, or stores that are there already."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import StoreError
from ..runs.parts import PartArray, PartKey, read_part
from .schema import ATOM, EDGE, STRUCTURE

if TYPE_CHECKING:
    from .graph_store import GraphStore


@dataclass(frozen=True, slots=True)
class PartRows:
    """The rows of a part.

    Attributes:
        folder: Of the parts.
        key: Of the part.
        counts: Its rows along each dim.
    """

    folder: Path
    key: PartKey
    counts: dict[str, int] = field(hash=False)

    def read(self, names: Iterable[str]) -> dict[str, PartArray]:
        """Some of its arrays, all of which it has.

        Raises:
            StoreError: The part is missing or damaged.
        """
        return read_part(self.folder, self.key, names)


@dataclass(frozen=True, slots=True)
class StoreRows:
    """Some structures of a finished store, with their atoms and edges.

    Attributes:
        path: Of the store.
        store_hash: Of its content: another store may come to stand in its place.
        start, stop: Structures.
        counts: Rows along each dim.
    """

    path: str
    store_hash: str
    start: int
    stop: int
    counts: dict[str, int] = field(hash=False)

    def read(self, names: Iterable[str]) -> dict[str, PartArray]:
        """Some of its arrays, as far as the store has them.

        Raises:
            StoreError: Damaged data.
        """
        store = opened(self.path, self.store_hash)
        spans = {STRUCTURE: (self.start, self.stop)}
        for dim, first, count in ((ATOM, "atom_start", "n_atoms"), (EDGE, "edge_start", "n_edges")):
            begin = store.column(first, self.start, self.start + 1)
            end = store.column(first, self.stop - 1, self.stop) + store.column(count, self.stop - 1, self.stop)
            spans[dim] = (int(begin[0]), int(end[0]))
        found: dict[str, PartArray] = {}
        for name in names:
            spec = store.specs.get(name)
            if spec is not None:
                values = store.column(name, *spans[spec.dims[0]])
                found[name] = values.tolist() if values.dtype.kind in "TUO" else values
        return found


Rows = PartRows | StoreRows


@lru_cache(maxsize=8)
def opened(path: str, store_hash: str) -> GraphStore:
    """A store, opened once.

    Raises:
        StoreError: It cannot be read, or is another one by now.
    """
    from .graph_store import GraphStore  # noqa: PLC0415 - the store's module needs those that write it

    store = GraphStore(path)
    if store.store_hash != store_hash:
        raise StoreError(f"{path}: has changed during this run; run the command again")
    return store


def absolute(path: Path | str) -> Path | str:
    """For workers whose working directory is another; a URL as it is."""
    return path.resolve() if isinstance(path, Path) else path


def rows_of_store(store: GraphStore, size: int) -> list[StoreRows]:
    """All structures of a store, `size` at a time."""
    path = str(absolute(store.path))
    spans = [(start, min(start + size, len(store))) for start in range(0, len(store), size)]
    return [
        StoreRows(
            path,
            store.store_hash,
            start,
            stop,
            {
                STRUCTURE: stop - start,
                ATOM: int(store.n_atoms[start:stop].sum(dtype=np.int64)),
                EDGE: int(store.n_edges[start:stop].sum(dtype=np.int64)),
            },
        )
        for start, stop in spans
    ]
