"""The files of a finished store that is to be published, on this machine or behind a URL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import zarr
from fsspec.core import url_to_fs

from ..pipeline.errors import StoreError, detail
from ..pipeline.redaction import redact_urls
from ..pipeline.runs.target import ROOT_FILE
from ..pipeline.store.checksums import CHECKSUMS_FILE
from ..pipeline.store.graph_store import location
from ..pipeline.store.tables import DUPLICATES_FILE, FAILURES_FILE
from .public_attributes import public_root

_ARRAY_FILE = "zarr.json"
# Files that only some stores have.
_OPTIONAL = (FAILURES_FILE, DUPLICATES_FILE)


class StoreFiles:
    """The files of a store.

    A plain web server lists no files, so the names behind a URL are derived from the metadata of the arrays.

    Args:
        path: Path or URL of the store.

    Attributes:
        path: The local path; the URL as it was given.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = location(path)
        self._files: Any = None
        self._root = ""
        if not isinstance(self.path, Path):
            with self._reading():
                self._files, self._root = url_to_fs(self.path)

    def __str__(self) -> str:
        return redact_urls(str(self.path))

    def names(self, arrays: Mapping[str, Any]) -> list[str]:
        """Return the names of all files but the root file, relative to the store.

        Args:
            arrays: All arrays of the store, as Zarr has opened them.

        Raises:
            StoreError: The store cannot be read.
        """
        if isinstance(self.path, Path):
            found = (path for path in sorted(self.path.rglob("*")) if path.is_file() and not path.is_symlink())
            names = [path.relative_to(self.path).as_posix() for path in found]
            return [name for name in names if name != ROOT_FILE]
        for name in arrays:  # it becomes a path, and whoever wrote the store chose it
            if name in ("", ".", "..") or set(name) & {"/", "\\"}:
                raise StoreError(f"{self} has an array {name[:80]!r}, which equiscreen did not write; check the URL")
        with self._reading():
            optional = [name for name in _OPTIONAL if self._files.exists(f"{self._root}/{name}")]
        return [CHECKSUMS_FILE, *optional, *(name for array in arrays.items() for name in _names_of(*array))]

    def root(self, changes: Mapping[str, Any]) -> bytes:
        """Return the content of the root file with public attributes.

        Args:
            changes: Attributes to set.

        Raises:
            StoreError: The root file cannot be read.
        """
        with self.file(ROOT_FILE) as path:
            return public_root(path.read_bytes(), changes)

    def written(self) -> float | None:
        """Return when the root file was written, in seconds since 1970; None if the server does not say."""
        if isinstance(self.path, Path):
            return (self.path / ROOT_FILE).stat().st_mtime
        try:
            return float(self._files.modified(f"{self._root}/{ROOT_FILE}").timestamp())
        except Exception:  # noqa: BLE001 - few file systems implement it, and each fails in its own way
            return None

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Yield a file of the store on this machine; a copy from a URL is removed at the end of the block.

        Raises:
            StoreError: The file cannot be read.
        """
        if isinstance(self.path, Path):
            yield self.path / name
            return
        with NamedTemporaryFile(prefix="equiscreen-publish-") as scratch:
            with self._reading(f"/{name}"):
                self._files.get_file(f"{self._root}/{name}", scratch.name)
            yield Path(scratch.name)

    @contextmanager
    def _reading(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every file system raises its own errors
            raise StoreError(
                f"{self}{name} cannot be read ({detail(error, str(self.path))}); check the URL, the connection and "
                "your permissions, and run the command again"
            ) from error


def _names_of(name: str, array: zarr.Array[Any]) -> Iterator[str]:
    """Yield the files of an array, all of which exist: its metadata, and its shards along axis 0."""
    yield f"{name}/{_ARRAY_FILE}"
    if not array.ndim:
        yield f"{name}/c"
    elif 0 not in array.shape:
        rows = (array.shards or array.chunks)[0]
        yield from (f"{name}/c/{shard}{'/0' * (array.ndim - 1)}" for shard in range(-(-array.shape[0] // rows)))
