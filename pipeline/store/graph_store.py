"""Reading of a graph store in blocks of structures, which are checked as they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from fsspec.core import url_to_fs
from numpy.typing import NDArray
from zarr.storage import FsspecStore

from ..errors import StoreError, detail, input_changed
from ..graphs.graph_block import GraphBlock
from ..graphs.offsets import offsets_of, starts
from ..provenance import resolved_path
from ..redaction import redact_text, redact_urls
from ..runs.target import ROOT_FILE
from .checksums import CHECKSUMS_FILE, ShardChecks, is_intact, stored_digests
from .schema import ATOM, EDGE, GRAPH_SCHEMA, STRUCTURE, TEXT, ArraySpec
from .shards import check_shards

_BLOCK_ARRAYS = {
    ATOM: ("atomic_number", "frac_coord", "n_neighbors"),
    EDGE: ("neighbor", "image"),
}


def location(path: str | Path) -> Path | str:
    """Return a URL (``s3://...``) unchanged, since `Path` would drop a slash, and anything else as a path."""
    return path if isinstance(path, str) and "://" in path else Path(path)


def open_root(path: str | Path, *schemas: str) -> zarr.Group:
    """Open the root group of a finished store.

    Args:
        path: Local path, or a URL that fsspec supports. The file system looks up credentials itself: for ``s3://`` in
            the AWS configuration, with AWS_ENDPOINT_URL for other servers.
        schemas: Accepted schemas.

    Raises:
        StoreError: The store is missing, unreachable, unfinished or damaged, is not a Zarr store, or has an unsupported
            schema.
    """
    place = location(path)
    root, content = _open_local(place, schemas) if isinstance(place, Path) else _open_url(place)
    found = root.attrs.get("schema")
    if found not in schemas:
        raise StoreError(f"{path} {_other_kind(path, root.attrs, schemas)}")
    if root.attrs.get("complete") is not True:
        raise StoreError(f"{path} is unfinished; write the store again")
    if not is_intact(content):
        raise StoreError(_damaged(path, "its content has changed"))
    return root


def check_unchanged(path: str | Path, schema: str, store_hash: str) -> None:
    """Check that the content of a store still has the hash `store_hash`.

    Raises:
        StoreError: The store was replaced, appended to or removed, or cannot be opened.
    """
    if open_root(path, schema).attrs.get("store_hash") != store_hash:
        raise input_changed(path)


def _other_kind(path: str | Path, attrs: Mapping[str, Any], schemas: tuple[str, ...]) -> str:
    """Describe a store that has none of the expected schemas, and how to get a store of the expected kind."""
    graphs = attrs.get("graph_store")
    if attrs.get("schema") == GRAPH_SCHEMA:
        return f"is a graph store, which holds no scores; to compute them, run {_screening(path)}"
    if schemas == (GRAPH_SCHEMA,) and isinstance(graphs, Mapping) and graphs.get("path"):
        return f"holds scores; the graph store of its structures is {resolved_path(str(graphs['path']), path)}"
    return (
        f"has schema {attrs.get('schema')!r} instead of {' or '.join(map(repr, schemas))}; use a store of the expected "
        "kind or, if a different version of equiscreen wrote this store, write it again"
    )


def _screening(source: str | Path) -> str:
    return f"`equiscreen screen {source} --model NAME --out S.zarr`"


def _open_local(path: Path, schemas: tuple[str, ...]) -> tuple[zarr.Group, bytes]:
    """Return the root group of a store, and the content of its root file."""
    if not path.exists():
        if path.with_name(f"{path.name}.partial").exists():
            raise StoreError(f"{path} is unfinished; to resume it, repeat the command that writes it")
        raise StoreError(f"{path}: no such store")
    try:
        return zarr.open_group(path, mode="r"), (path / ROOT_FILE).read_bytes()
    except Exception as error:  # a damaged root file can make zarr raise anything
        if (path / ROOT_FILE).is_file():
            raise StoreError(_damaged(path, _first_line(error, path))) from error
        make = f"`equiscreen featurize {path} --out G.zarr`" if GRAPH_SCHEMA in schemas else _screening(path)
        raise StoreError(f"{path} is not a Zarr store; to make one from structure files, run {make}") from error


def _damaged(path: str | Path, reason: str) -> str:
    return f"{path}: its {ROOT_FILE} is damaged ({reason}); copy the store from its source again, or write it again"


def _open_url(url: str) -> tuple[zarr.Group, bytes]:
    """Return the root group of a store, and the content of its root file."""
    try:
        root = zarr.open_group(FsspecStore.from_url(url, read_only=True), mode="r")
        files, path = url_to_fs(url)
        return root, files.cat_file(f"{path}/{ROOT_FILE}")
    except (FileNotFoundError, zarr.errors.GroupNotFoundError) as error:
        raise StoreError(f"{redact_urls(url)}: no such store; check the URL") from error
    except Exception as error:  # every file system raises its own errors
        raise StoreError(
            f"{redact_urls(url)} cannot be opened ({_first_line(error, url)}); check the URL and your permissions"
        ) from error


def _first_line(error: Exception, path: str | Path) -> str:
    """Return the type of an error and the first line of its message, with any secrets in the URL hidden."""
    lines = redact_text(str(error), str(path)).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])[:200]


class GraphStore:
    """A finished store of neighbour graphs.

    Example:
        >>> from equiscreen.pipeline import GraphStore
        >>> store = GraphStore("candidates.zarr")
        >>> len(store), store.cutoff
        (4, 5.0)
        >>> [len(block) for block in store.blocks(3)]
        [3, 1]

    Args:
        path: Local path or URL of the store; see `open_root`.

    Attributes:
        path: Local path, or the URL as it was given.
        attrs: Root attributes.
        cutoff: Cutoff of the graphs (angstrom).
        store_hash: Hash of the content.

    Raises:
        StoreError: The store is missing, unreachable, unfinished or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path: Path | str = location(path)
        self._root = open_root(path, GRAPH_SCHEMA)
        self._arrays: dict[str, zarr.Array[Any]] = dict(self._root.arrays())
        self.attrs: Mapping[str, Any] = dict(self._root.attrs)
        try:
            self.cutoff, self.store_hash = float(self.attrs["cutoff"]), str(self.attrs["store_hash"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{self.path}: root attributes are missing or invalid ({error}); write the store again"
            ) from error
        check_shards(self.path, self._arrays)
        self._checks = ShardChecks(self.path, self.store_hash)

    def __len__(self) -> int:
        return self._array("n_atoms").shape[0]

    def check_unchanged(self) -> None:
        """Check that the store still has the content that it was opened with.

        Raises:
            StoreError: The store was replaced, appended to or removed.
        """
        check_unchanged(self.path, GRAPH_SCHEMA, self.store_hash)

    @cached_property
    def specs(self) -> dict[str, ArraySpec]:
        """Arrays of the store by name."""
        found = {}
        for name, array in sorted(self._arrays.items()):
            dims = tuple(str(dim) for dim in getattr(array.metadata, "dimension_names", None) or ())
            dtype = TEXT if array.dtype.kind in "TO" else str(array.dtype)
            found[name] = ArraySpec(name, dims, dtype, dict(array.attrs), tuple(array.shape[1:]))
        return found

    def table(self, name: str) -> pa.Table:
        """Read a table of the store: failures.parquet or duplicates.parquet.

        Raises:
            StoreError: The table is missing or damaged.
        """
        fs, path = url_to_fs(str(self.path))
        try:
            with fs.open(f"{path}/{name}", "rb") as file:
                return pq.read_table(file)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(
                f"{self.path}: {name} cannot be read ({detail(error, str(self.path))}); copy the store from its source "
                "again, or write it again"
            ) from error

    @cached_property
    def n_atoms(self) -> NDArray[np.int32]:
        """int32[n_structures], number of atoms of every structure."""
        return self.column("n_atoms").astype(np.int32, copy=False)

    @cached_property
    def n_edges(self) -> NDArray[np.int32]:
        """int32[n_structures], number of edges of every structure."""
        return self.column("n_edges").astype(np.int32, copy=False)

    @cached_property
    def label_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the labels with one row per structure, and of the labels with one row per atom."""
        names: dict[str, list[str]] = {STRUCTURE: [], ATOM: []}
        for name, array in sorted(self._arrays.items()):
            if array.attrs.get("role") == "label":
                names[self._dim(array)].append(name)
        return tuple(names[STRUCTURE]), tuple(names[ATOM])

    def label_shape(self, name: str) -> tuple[tuple[int, ...], str]:
        """Return the shape of one row of a label, and the unit of the label (empty if it has none).

        Raises:
            StoreError: The store has no array of this name.
        """
        array = self._array(name)
        return array.shape[1:], str(array.attrs.get("units", ""))

    @cached_property
    def offsets(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First atom and first edge of every structure, and the totals: int64[n_structures + 1] each.

        Once these offsets are loaded, `block` no longer reads the counts of its structures.

        Raises:
            StoreError: The data is damaged.
        """
        atoms, edges = offsets_of(self.n_atoms), offsets_of(self.n_edges)  # type: ignore[arg-type]
        for name, found in (("atom_start", atoms), ("edge_start", edges)):
            if not np.array_equal(self.column(name), found[:-1]):
                raise StoreError(f"{self.path} is damaged: {name} and the counts disagree; write the store again")
        return atoms, edges

    @cached_property
    def elements(self) -> NDArray[np.uint8]:
        """uint8[n_elements], atomic numbers of the elements in the store, ascending."""
        seen: NDArray[np.bool_] = np.zeros(256, dtype=bool)
        length = self._array("atomic_number").shape[0]
        for start in range(0, length, 1 << 22):
            seen[self.column("atomic_number", start, min(start + (1 << 22), length))] = True
        return np.flatnonzero(seen).astype(np.uint8)

    def column(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read the rows of an array from `start` up to `stop`; by default, read all rows.

        Raises:
            StoreError: The array does not exist or is damaged.
        """
        return self._rows(name, start, self._array(name).shape[0] if stop is None else stop)

    def block(self, start: int, stop: int, labels: bool | Collection[str] = True) -> GraphBlock:
        """Read the structures from `start` up to `stop`.

        Args:
            start: First structure.
            stop: One past the last structure.
            labels: Whether to read all labels or none, or the names of some; names that the store lacks are ignored.

        Raises:
            StoreError: The data is damaged.
        """
        counts, atoms, edges = self._counts_and_spans(start, stop)
        arrays = {
            **counts,
            **{name: self._rows(name, start, stop) for name in ("cell", "pbc")},
            **{name: self._rows(name, *atoms) for name in _BLOCK_ARRAYS[ATOM]},
            **{name: self._rows(name, *edges) for name in _BLOCK_ARRAYS[EDGE]},
        }
        per_structure, per_atom = (
            [name for name in names if (labels if isinstance(labels, bool) else name in labels)]
            for names in self.label_names
        )
        block = GraphBlock(
            **arrays,
            structure_labels={name: self._rows(name, start, stop) for name in per_structure},
            atom_labels={name: self._rows(name, *atoms) for name in per_atom},
        )
        if int(block.n_neighbors.sum(dtype=np.int64)) != len(block.neighbor):
            raise StoreError(
                f"{self.path} is damaged: neighbour counts and edges of structures {start} to {stop - 1} disagree; "
                "write the store again"
            )
        return block

    def blocks(
        self, size: int, start: int = 0, stop: int | None = None, labels: bool | Collection[str] = True
    ) -> Iterator[GraphBlock]:
        """Read blocks of `size` structures, in order; the last one may be smaller.

        Args:
            size: Number of structures in a block.
            start: First structure.
            stop: One past the last structure; None reads to the end.
            labels: As for `block`.

        Raises:
            StoreError: The data is damaged.
        """
        end = len(self) if stop is None else min(stop, len(self))
        for begin in range(start, end, size):
            yield self.block(begin, min(begin + size, end), labels)

    def verify(self) -> list[str]:
        """Compare the checksums of all rows with the checksums recorded in the store.

        Returns:
            Names of damaged shards, as ``name/shard``, of arrays that cannot be read, or of the checksum file; empty
            if the store is intact.
        """
        try:
            files, root = url_to_fs(str(self.path))
            text = files.cat_file(f"{root}/{CHECKSUMS_FILE}").decode()
            recorded: dict[str, str] = json.loads(text)
        except (OSError, ValueError):
            return [CHECKSUMS_FILE]
        if hashlib.sha256(text.encode()).hexdigest() != self.store_hash:
            return [CHECKSUMS_FILE]
        damaged = []
        for name in sorted(self._arrays):
            try:
                for key, digest in stored_digests(self._root, [name]):
                    if recorded.get(key) != digest:
                        damaged.append(key)
            except Exception:  # noqa: BLE001 - a damaged chunk can fail anywhere in its codecs
                damaged.append(name)
        return damaged

    def _dim(self, array: zarr.Array[Any]) -> str:
        """Return the first dim of an array."""
        names = getattr(array.metadata, "dimension_names", None)
        return str(names[0]) if names else STRUCTURE

    def _array(self, name: str) -> zarr.Array[Any]:
        try:
            return self._arrays[name]
        except KeyError as error:
            raise StoreError(
                f"{self.path} has no array {name!r}; `equiscreen info PATH --json` lists its arrays"
            ) from error

    def _rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        array = self._array(name)
        try:
            self._checks.check(name, array, start, stop)
            return np.asarray(array[start:stop])
        except StoreError:
            raise
        except Exception as error:
            if isinstance(self.path, str):  # the network may have failed
                raise StoreError(
                    f"{self.path}: array {name!r} cannot be read ({_first_line(error, self.path)}); check the "
                    "connection, and run the command again"
                ) from error
            raise StoreError(
                f"{self.path}: array {name!r} is damaged ({type(error).__name__}); "
                "`equiscreen info PATH --verify` lists all damage; write the store again"
            ) from error

    def _counts_and_spans(
        self, start: int, stop: int
    ) -> tuple[dict[str, NDArray[np.int32]], tuple[int, int], tuple[int, int]]:
        """Return the counts of a range of structures, and the ranges of rows of their atoms and edges."""
        if "offsets" in vars(self):
            counts = {"n_atoms": self.n_atoms[start:stop], "n_edges": self.n_edges[start:stop]}
            atoms, edges = ((int(offsets[start]), int(offsets[stop])) for offsets in self.offsets)
            return counts, atoms, edges
        counts = {name: self._rows(name, start, stop) for name in ("n_atoms", "n_edges")}
        atoms = self._span("atom_start", counts["n_atoms"], start, stop)
        edges = self._span("edge_start", counts["n_edges"], start, stop)
        return counts, atoms, edges

    def _span(self, name: str, counts: NDArray[np.int32], start: int, stop: int) -> tuple[int, int]:
        """Return the range of rows of the atoms or edges of some structures, checked against their counts."""
        if start == stop:
            return 0, 0
        first = self._rows(name, start, stop)
        if not np.array_equal(first, first[0] + starts(counts)):
            raise StoreError(
                f"{self.path} is damaged: {name} and the counts of structures {start} to {stop - 1} disagree; "
                "write the store again"
            )
        return int(first[0]), int(first[-1]) + int(counts[-1])
