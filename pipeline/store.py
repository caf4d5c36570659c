"""Reading a graph store: blocks of structures, checked as they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from .block import GraphBlock, starts
from .compaction import CHECKSUMS_FILE, stored_digests
from .errors import StoreError
from .schema import ATOM, EDGE, GRAPH_SCHEMA, STRUCTURE

_BLOCK_ARRAYS = {
    STRUCTURE: ("n_atoms", "n_edges", "cell", "pbc"),
    ATOM: ("atomic_number", "frac_coord", "n_neighbors"),
    EDGE: ("neighbor", "image"),
}


def open_root(path: Path, *schemas: str) -> zarr.Group:
    """Open the root of a finished store of one of some schemas.

    Raises:
        StoreError: Missing, unfinished, no store, or of another schema.
    """
    if not path.exists():
        if path.with_name(f"{path.name}.partial").exists():
            raise StoreError(f"{path}: unfinished; run the command that writes it again to resume it")
        raise StoreError(f"{path}: no such store")
    try:
        root = zarr.open_group(path, mode="r")
    except (OSError, ValueError, KeyError, zarr.errors.GroupNotFoundError) as error:
        raise StoreError(f"{path}: not a Zarr store ({type(error).__name__})") from error
    found = root.attrs.get("schema")
    if found not in schemas:
        raise StoreError(f"{path}: schema {found!r} where {' or '.join(map(repr, schemas))} is wanted")
    if root.attrs.get("complete") is not True:
        raise StoreError(f"{path}: unfinished; write it again")
    return root


class GraphStore:
    """A finished store of neighbour graphs.

    Example:
        >>> store = GraphStore("mp.zarr")  # doctest: +SKIP
        >>> for block in store.blocks(1024):  # doctest: +SKIP
        ...     print(len(block), block.n_edges.sum())

    Args:
        path: The store.

    Raises:
        StoreError: Missing, unfinished or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._root = open_root(self.path, GRAPH_SCHEMA)
        self.attrs: Mapping[str, Any] = dict(self._root.attrs)
        try:
            self.cutoff, self.store_hash = float(self.attrs["cutoff"]), str(self.attrs["store_hash"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{self.path}: its attributes lack {error}; featurize again") from error
        self._check_shards()

    def __len__(self) -> int:
        return self._array("n_atoms").shape[0]

    @cached_property
    def n_atoms(self) -> NDArray[np.int32]:
        """int32[n_structures], all of them."""
        return self.column("n_atoms").astype(np.int32, copy=False)

    @cached_property
    def n_edges(self) -> NDArray[np.int32]:
        """int32[n_structures], all of them."""
        return self.column("n_edges").astype(np.int32, copy=False)

    @cached_property
    def label_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the labels per structure, and per atom."""
        names: dict[str, list[str]] = {STRUCTURE: [], ATOM: []}
        for name, array in sorted(self._root.arrays()):
            if array.attrs.get("role") == "label":
                names[self._dim(array)].append(name)
        return tuple(names[STRUCTURE]), tuple(names[ATOM])

    @cached_property
    def elements(self) -> NDArray[np.uint8]:
        """uint8[n], the atomic numbers in the store, ascending."""
        seen: NDArray[np.bool_] = np.zeros(256, dtype=bool)
        numbers = self._array("atomic_number")
        for start in range(0, numbers.shape[0], 1 << 22):
            seen[np.asarray(numbers[start : start + (1 << 22)])] = True
        return np.flatnonzero(seen).astype(np.uint8)

    def column(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows of an array, as numpy.

        Raises:
            StoreError: No such array, or damaged.
        """
        return self._rows(name, start, self._array(name).shape[0] if stop is None else stop)

    def block(self, start: int, stop: int, labels: bool = True) -> GraphBlock:
        """Read the structures from `start` up to `stop`, with their labels if wanted.

        Raises:
            StoreError: Damaged data.
        """
        by_structure = {name: self._rows(name, start, stop) for name in _BLOCK_ARRAYS[STRUCTURE]}
        atoms = self._span("atom_start", by_structure["n_atoms"], start, stop)
        edges = self._span("edge_start", by_structure["n_edges"], start, stop)
        arrays = {
            **by_structure,
            **{name: self._rows(name, *atoms) for name in _BLOCK_ARRAYS[ATOM]},
            **{name: self._rows(name, *edges) for name in _BLOCK_ARRAYS[EDGE]},
        }
        per_structure, per_atom = self.label_names if labels else ((), ())
        block = GraphBlock(
            **arrays,
            structure_labels={name: self._rows(name, start, stop) for name in per_structure},
            atom_labels={name: self._rows(name, *atoms) for name in per_atom},
        )
        if int(block.n_neighbors.sum(dtype=np.int64)) != len(block.neighbor):
            raise StoreError(f"{self.path}: damaged: neighbour counts and edges of structures {start}-{stop} disagree")
        return block

    def blocks(self, size: int, start: int = 0, stop: int | None = None, labels: bool = True) -> Iterator[GraphBlock]:
        """Read blocks of `size` structures, in order."""
        end = len(self) if stop is None else min(stop, len(self))
        for begin in range(start, end, size):
            yield self.block(begin, min(begin + size, end), labels)

    def verify(self) -> list[str]:
        """Compute all checksums anew.

        Returns:
            The names of damaged shards; empty if all is well.
        """
        try:
            text = (self.path / CHECKSUMS_FILE).read_text()
            recorded: dict[str, str] = json.loads(text)
        except (OSError, ValueError):
            return [CHECKSUMS_FILE]
        if hashlib.sha256(text.encode()).hexdigest() != self.store_hash:
            return [CHECKSUMS_FILE]
        damaged = []
        for name, array in sorted(self._root.arrays()):
            try:
                for key, digest in stored_digests(self._root, {name: self._dim(array)}):
                    if recorded.get(key) != digest:
                        damaged.append(key)
            except Exception:  # noqa: BLE001 - a damaged chunk fails anywhere in its codecs
                damaged.append(name)
        return damaged

    def _dim(self, array: zarr.Array[Any]) -> str:
        names = getattr(array.metadata, "dimension_names", None)
        return str(names[0]) if names else STRUCTURE

    def _array(self, name: str) -> zarr.Array[Any]:
        try:
            array = self._root[name]
        except KeyError as error:
            raise StoreError(f"{self.path}: has no array {name!r}") from error
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{self.path}: {name!r} is no array")
        return array

    def _rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        try:
            return np.asarray(self._array(name)[start:stop])
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(
                f"{self.path}: array {name!r} is damaged ({type(error).__name__}); "
                "`equiscreen info --verify` lists what is; featurize again"
            ) from error

    def _span(self, name: str, counts: NDArray[np.int32], start: int, stop: int) -> tuple[int, int]:
        """First and last row of the atoms or edges of some structures, checked against their counts."""
        if start == stop:
            return 0, 0
        first = self._rows(name, start, stop)
        if not np.array_equal(first, first[0] + starts(counts)):
            raise StoreError(f"{self.path}: damaged: {name} and counts of structures {start}-{stop} disagree")
        return int(first[0]), int(first[-1]) + int(counts[-1])

    def _check_shards(self) -> None:
        """A missing shard would read as zeros, so look for the files of all of them."""
        for name, array in self._root.arrays():
            rows = (array.shards or array.chunks)[0]
            tail = "/0" * (array.ndim - 1)
            for shard in range(-(-array.shape[0] // rows)):
                if not (self.path / name / f"c/{shard}{tail}").is_file():
                    raise StoreError(f"{self.path}: damaged: shard {shard} of {name!r} is missing; featurize again")
