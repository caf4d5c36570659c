"""Sources of the rows of a new store: parts of a run, or existing stores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import input_changed
from ..runs.parts import PartArray, PartKey, read_part
from .graph_store import GraphStore
from .schema import ATOM, EDGE, STRUCTURE


@dataclass(frozen=True, slots=True)
class PartRows:
    """The rows of a part.

    Attributes:
        folder: Folder of the parts.
        key: Key of the part.
        counts: Number of rows along each dim.
    """

    folder: Path
    key: PartKey
    counts: dict[str, int] = field(hash=False)

    def read(self, names: Iterable[str]) -> dict[str, PartArray]:
        """Read some arrays of the part; names that it does not have are skipped.

        Raises:
            StoreError: The part is missing or damaged.
        """
        return read_part(self.folder, self.key, names)


@dataclass(frozen=True, slots=True)
class StoreRows:
    """A range of structures of a finished store, with their atoms and edges.

    Attributes:
        path: Path or URL of the store.
        store_hash: Hash of its content, to detect that another store has replaced it.
        start, stop: Range of structures.
        counts: Number of rows along each dim.
    """

    path: str
    store_hash: str
    start: int
    stop: int
    counts: dict[str, int] = field(hash=False)

    def read(self, names: Iterable[str]) -> dict[str, PartArray]:
        """Read some arrays of the structures; names that the store does not have are skipped.

        Raises:
            StoreError: The data is damaged, or the store has changed.
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
    """Open a store, once per process.

    Raises:
        StoreError: The store cannot be read, or its content has changed.
    """
    store = GraphStore(path)
    if store.store_hash != store_hash:
        raise input_changed(path)
    return store


def absolute(path: Path | str) -> Path | str:
    """Return an absolute path, for workers with another working directory; a URL is returned unchanged."""
    return path.resolve() if isinstance(path, Path) else path


def rows_of_store(store: GraphStore, size: int) -> list[StoreRows]:
    """Divide a store into row sources of `size` structures each; the last one may be smaller."""
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
