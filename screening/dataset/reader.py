"""Reader of a scores dataset: columns, chunks of rows, scattered rows, and structures of the graph store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import StoreError
from ...pipeline.provenance import recorded_path, resolved_path
from ...pipeline.store.checksums import ShardChecks
from ...pipeline.store.graph_store import GraphStore, check_unchanged, location, open_root
from ...pipeline.store.schema import ATOM, CHUNK_ROWS, EDGE, STRUCTURE, TEXT, ArraySpec
from ...pipeline.store.shards import check_shards
from ...pipeline.structures.structure import Structure
from .scores import RANKED_STATUSES, RELAXATION_STATUS, SCORES_SCHEMA

# Maximum number of rows of a column that are in memory at once.
ROWS_AT_ONCE = 8 * CHUNK_ROWS[STRUCTURE]
# Chunks this close are read together, up to this many at once.
_NEARBY, _CHUNKS_AT_ONCE = 2, 32
_STRUCTURES = ("cell", "pbc", "n_atoms", "atom_start")
_ATOMS = ("atomic_number", "frac_coord")

Read = Callable[[int, int], NDArray[Any]]


class ScoresReader:
    """Reader of the scores dataset of a screen, relaxation, hull or selection.

    Args:
        path: Path or URL of the dataset.
        store: Path of the graph store, if it is not at the path recorded in the dataset.

    Attributes:
        path: Path or URL of the dataset, as given.
        attrs: Attributes of the dataset.
        specs: Arrays of the dataset along dim ``structure``, by name.

    Raises:
        StoreError: The dataset is missing, unfinished, damaged, or not a scores dataset.
    """

    _schema = SCORES_SCHEMA

    def __init__(self, path: str | Path, store: str | Path | None = None) -> None:
        self.path = path
        self._given_store = store
        self._last: tuple[NDArray[np.int64], list[Structure]] | None = None
        self.attrs, self._arrays, self.specs = self._open()
        self._checks = ShardChecks(location(path), self.hash)
        absent = [name for name in ("structure_id", "formula", "n_atoms", "status") if name not in self.specs]
        if absent:
            raise StoreError(f"{path} has no {', '.join(absent)}; repeat the screen")

    def _open(self) -> tuple[Mapping[str, Any], dict[str, Any], dict[str, ArraySpec]]:
        """Return the attributes of the dataset, its arrays along dim ``structure``, and their definitions."""
        root = open_root(self.path, SCORES_SCHEMA)
        arrays, specs = {}, {}
        for name, array in sorted(root.arrays()):
            dims = tuple(str(dim) for dim in getattr(array.metadata, "dimension_names", None) or ())
            if not dims or dims[0] != STRUCTURE:
                continue
            dtype = TEXT if array.dtype.kind in "TO" else str(array.dtype)
            arrays[name] = array
            specs[name] = ArraySpec(name, dims, dtype, dict(array.attrs), tuple(array.shape[1:]))
        check_shards(location(self.path), arrays)
        return dict(root.attrs), arrays, specs

    def __len__(self) -> int:
        return int(self._arrays["status"].shape[0])

    @property
    def hash(self) -> str:
        """Hash of the dataset's content."""
        return str(self.attrs.get("store_hash", ""))

    def meanings(self, name: str) -> dict[str, int]:
        """Return the value of each word of a flag column."""
        return flag_meanings(self.specs[name].attrs)

    @property
    def energy_status(self) -> str:
        """Name of the status column for energies; in datasets of properties, the status of the relaxation."""
        return RELAXATION_STATUS if RELAXATION_STATUS in self.specs else "status"

    def is_ranked(self, statuses: NDArray[Any]) -> NDArray[np.bool_]:
        """Return whether rows are ranked by their values: bool[n]; false for statuses that mark values as unreliable.

        Args:
            statuses: Rows of the column ``status``.
        """
        ranked = [value for word, value in self.meanings("status").items() if word in RANKED_STATUSES]
        return np.isin(statuses, ranked)

    def column(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return the rows of an array from `start` up to, but not including, `stop`.

        Raises:
            StoreError: The array is damaged or cannot be reached.
        """
        try:
            self._checks.check(name, self._arrays[name], start, stop)
            return np.asarray(self._arrays[name][start:stop])
        except StoreError:
            raise
        except Exception as error:  # damaged chunks and failing URLs raise errors of many kinds
            raise StoreError(
                f"{self.path}: array {name!r} cannot be read ({type(error).__name__}); check the disk or connection, "
                "or write the dataset again"
            ) from error

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield the (start, stop) of each chunk of rows."""
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield start, min(start + ROWS_AT_ONCE, len(self))

    def rows(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return scattered rows of an array, in the order of `rows`.

        Raises:
            StoreError: The array is damaged or cannot be reached.
        """
        size = self._arrays[name].chunks[0]
        return picked(lambda start, stop: self.column(name, start, stop), rows, size, len(self))

    @cached_property
    def graphs(self) -> GraphStore:
        """The graph store of the structures.

        Raises:
            StoreError: The store is missing, or not the one that the scores were computed from.
        """
        place = place_of_graphs(self.path, self.attrs, self._given_store)
        try:
            graphs = GraphStore(place)
        except StoreError as error:
            raise StoreError(
                f"{self.path}: cannot open the graph store of these scores ({error}); use --store to give its path"
            ) from error
        if graphs.store_hash != self.attrs.get("graph_store", {}).get("store_hash") or len(graphs) < len(self):
            raise StoreError(
                f"{place} is not the graph store that {self.path} was computed from, or has changed; use --store to "
                "give the right store, or write the scores again"
            )
        return graphs

    def check_unchanged(self) -> None:
        """Check that the dataset and, if it was read, its graph store have not changed since they were opened.

        Raises:
            StoreError: The dataset or the store was replaced, appended to or removed.
        """
        check_unchanged(self.path, self._schema, self.hash)
        if "graphs" in vars(self):  # it has been opened
            self.graphs.check_unchanged()

    def attrs_for(self, other: str | Path) -> dict[str, Any]:
        """Return attributes for a dataset made from this one, with paths of stores relative to the new dataset.

        Args:
            other: Path or URL of the new dataset.
        """
        places = {"graph_store": place_of_graphs(self.path, self.attrs, self._given_store)}
        if "relaxed_from" in self.attrs:
            places["relaxed_from"] = resolved_path(str(self.attrs["relaxed_from"]["path"]), self.path)
        moved = {
            name: {**self.attrs[name], "path": recorded_path(place, other)}
            for name, place in places.items()
            if name in self.attrs
        }
        return {**self.attrs, **moved}

    def check_atoms(self, stored: NDArray[np.int32], scored: NDArray[np.int32]) -> None:
        """Check that structures of the graph store have the numbers of atoms that the scores record.

        Raises:
            StoreError: The numbers differ, so the store holds different structures.
        """
        if not np.array_equal(stored, scored):
            raise StoreError(
                f"{self.graphs.path}: the structures in this store are not the structures of {self.path}; use --store "
                "to give the right store"
            )

    def structures(self, rows: NDArray[np.int64]) -> list[Structure]:
        """Return the structures of scattered rows.

        Raises:
            StoreError: The structures cannot be read, or differ from the structures of the scores.
        """
        if len(rows) == 0:
            return []
        if self._last is not None and np.array_equal(self._last[0], rows):
            return self._last[1]  # derived columns and output files read the same structures one after the other
        arrays = read_structures(self.graphs, rows, (*_STRUCTURES, *_ATOMS))
        self.check_atoms(arrays["n_atoms"], self.rows("n_atoms", rows))
        ends = np.cumsum(arrays["n_atoms"], dtype=np.int64)
        out = []
        for place, (end, count) in enumerate(zip(ends.tolist(), arrays["n_atoms"].tolist(), strict=True)):
            atoms = slice(end - count, end)
            out.append(
                Structure(
                    arrays["atomic_number"][atoms],
                    arrays["cell"][place],
                    arrays["frac_coord"][atoms],
                    arrays["pbc"][place],
                )
            )
        self._last = rows, out
        return out


def place_of_graphs(path: str | Path, attrs: Mapping[str, Any], given: str | Path | None) -> str:
    """Return the path of a dataset's graph store: as recorded, or beside the dataset if the store was moved with it.

    Args:
        path: Path or URL of the dataset.
        attrs: Attributes of the dataset.
        given: Path of the store, which takes precedence; None if it was not given.
    """
    if given is not None:
        return str(given)
    place = resolved_path(str(attrs.get("graph_store", {}).get("path", "")), path)
    beside = Path(str(path)).parent / Path(place).name
    moved = "://" not in place and not Path(place).exists() and beside.exists()
    return str(beside) if moved else place


def flag_meanings(attrs: Mapping[str, Any]) -> dict[str, int]:
    """Return the value of each word of a flag variable, from its CF attributes; empty for other variables."""
    words = str(attrs.get("flag_meanings", "")).split()
    values = attrs.get("flag_values")
    return {} if values is None else {word: int(value) for word, value in zip(words, values, strict=True)}


def picked(read: Read, rows: NDArray[np.int64], size: int, length: int) -> NDArray[Any]:
    """Return scattered rows of a chunked array; chunks far from all wanted rows are not read.

    Args:
        read: Function that returns the rows from a start up to, but not including, a stop.
        rows: int64[n], rows in any order.
        size: Number of rows of a chunk.
        length: Number of rows of the array.
    """
    if len(rows) == 0:
        return read(0, 0)
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    pieces = []
    for group in np.split(ordered, _cuts(ordered // size)):
        start = int(group[0]) // size * size
        stop = (int(group[-1]) // size + 1) * size
        pieces.append(read(start, min(stop, length))[group - start])
    out = np.empty((len(rows), *pieces[0].shape[1:]), dtype=pieces[0].dtype)
    out[order] = np.concatenate(pieces)
    return out


def picked_ranges(read: Read, starts: NDArray[np.int64], counts: NDArray[np.integer[Any]], size: int) -> NDArray[Any]:
    """Return concatenated ranges of rows of an array; ranges that begin close to each other are read together.

    Args:
        read: Function that returns the rows from a start up to, but not including, a stop.
        starts: int64[n], first row of each range, in any order.
        counts: int[n], number of rows of each range.
        size: Number of rows of a chunk.
    """
    if len(starts) == 0:
        return read(0, 0)
    order = np.argsort(starts, kind="stable")
    found: list[NDArray[Any]] = [read(0, 0)] * len(starts)
    for group in np.split(order, _cuts(starts[order] // size)):
        first, last = int(starts[group[0]]), int((starts[group] + counts[group]).max())
        values = read(first, last)
        for place in group.tolist():
            begin = int(starts[place]) - first
            found[place] = values[begin : begin + int(counts[place])]
    return np.concatenate(found)


def _cuts(chunks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places at which to split wanted rows into separate reads.

    Starting a read takes longer than reading one or two chunks without wanted rows.

    Args:
        chunks: int64[n], chunk of each wanted row, ascending.
    """
    far = np.diff(chunks) > _NEARBY
    far |= np.diff(chunks // _CHUNKS_AT_ONCE) > 0  # to bound memory
    return np.flatnonzero(far) + 1


def read_structures(graphs: GraphStore, rows: NDArray[np.int64], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return arrays of scattered structures of a graph store, with their atoms and edges concatenated.

    Args:
        graphs: The graph store.
        rows: int64[n], rows of the structures, in any order.
        names: Names of the arrays.
    """

    def reader(name: str) -> Read:
        return lambda start, stop: graphs.column(name, start, stop)

    def of_structures(name: str) -> NDArray[Any]:
        return picked(reader(name), rows, CHUNK_ROWS[STRUCTURE], len(graphs))

    out = {}
    spans: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    for name in names:
        dim = graphs.specs[name].dims[0]
        if dim == STRUCTURE:
            out[name] = of_structures(name)
            continue
        if dim not in spans:
            first, count = {ATOM: ("atom_start", "n_atoms"), EDGE: ("edge_start", "n_edges")}[dim]
            spans[dim] = of_structures(first), of_structures(count)
        out[name] = picked_ranges(reader(name), *spans[dim], CHUNK_ROWS[dim])
    return out
