"""Checksums of the rows of every array."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..atomic import write_text_atomically
from ..errors import StoreError

CHECKSUMS_FILE = "checksums.json"
# Root attribute with the checksum of the root file and the names of the attributes that it covers; other attributes may
# be added later.
SEAL = "seal"


def rows_digest(values: NDArray[Any]) -> str:
    """Return the SHA-256 of the values in some rows, which does not depend on their compression."""
    if values.dtype.kind == "T":
        return hashlib.sha256("\0".join(values.tolist()).encode()).hexdigest()
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def stored_digests(root: zarr.Group, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Compute the checksums of a store from its rows.

    Yields:
        ``name/shard`` and its SHA-256, for every shard of the arrays `names`.

    Raises:
        StoreError: A name does not belong to an array.
    """
    for name in names:
        array = root[name]
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{name} is not an array of this store; choose the name of an array")
        length = array.shape[0]
        rows = (array.shards or array.chunks)[0]
        for shard in range(-(-length // rows)):
            values = np.asarray(array[shard * rows : (shard + 1) * rows])
            yield f"{name}/{shard}", rows_digest(values)


class ShardChecks:
    """Checks of a local store's shards, each made when a row of the shard is read for the first time.

    Zarr detects flipped bits, but not that a whole shard has been replaced by a different one. Shards behind a URL are
    not checked, since each would have to be downloaded in full.

    Args:
        path: Local path or URL of the store.
        store_hash: Hash of the store.
    """

    def __init__(self, path: Path | str, store_hash: str) -> None:
        self._path, self._hash = path, store_hash
        self._passed: set[str] = set()

    @cached_property
    def _recorded(self) -> Mapping[str, str]:
        try:
            content = (Path(self._path) / CHECKSUMS_FILE).read_bytes()
        except OSError as error:
            raise self._error(f"{CHECKSUMS_FILE} cannot be read") from error
        if hashlib.sha256(content).hexdigest() != self._hash:
            raise self._error(f"{CHECKSUMS_FILE} does not belong to this store")
        found: dict[str, str] = json.loads(content)
        return found

    def check(self, name: str, array: zarr.Array[Any], start: int, stop: int) -> None:
        """Check the shards of some rows of an array.

        Raises:
            StoreError: A shard does not match its checksum, or the checksums are damaged.
            Exception: A shard cannot be read; its codecs raise many kinds of errors.
        """
        if not isinstance(self._path, Path) or not isinstance(array, zarr.Array) or not array.ndim:
            return
        rows = (array.shards or array.chunks)[0]
        for shard in range(start // rows, -(-min(stop, array.shape[0]) // rows)):
            key = f"{name}/{shard}"
            if key in self._passed:
                continue
            values = np.asarray(array[shard * rows : (shard + 1) * rows])
            if self._recorded.get(key) != rows_digest(values):
                raise self._error(f"shard {shard} of {name!r} does not match its checksum")
            self._passed.add(key)

    def _error(self, reason: str) -> StoreError:
        return StoreError(
            f"{self._path} has changed while it was being read, or is damaged: {reason}; run the command again and, "
            "if this error persists, write the store again"
        )


def check_content(path: Path | str, arrays: Mapping[str, zarr.Array[Any]], store_hash: str) -> None:
    """Check all rows of some arrays of a local store.

    Raises:
        StoreError: A shard is damaged, or the file of checksums is damaged or missing.
    """
    checks = ShardChecks(path, store_hash)
    for name, array in arrays.items():
        try:
            checks.check(name, array, 0, array.shape[0] if array.ndim else 0)
        except StoreError:
            raise
        except Exception as error:  # damaged chunks fail anywhere in the codecs
            raise StoreError(
                f"{path}: array {name!r} is damaged ({type(error).__name__}); copy the store from its source again, or "
                "write it again"
            ) from error


def write_root_attributes(file: Path, attrs: Mapping[str, Any]) -> None:
    """Add attributes to the root file of a store, ``zarr.json``, and seal the file with a checksum.

    Change the attributes of a store only through this function; otherwise `is_intact` returns False.
    """
    document = json.loads(file.read_bytes())
    attributes = document["attributes"]
    attributes.update(attrs)
    names = sorted(set(attributes) - {SEAL})
    attributes[SEAL] = {"attributes": names, "sha256": _metadata_digest(document, names)}
    write_text_atomically(file, json.dumps(document, indent=2))


def is_intact(content: bytes) -> bool:
    """Whether the content of a root file is what `write_root_attributes` wrote; a file without a seal passes."""
    try:
        document = json.loads(content)
        seal = document["attributes"].get(SEAL)
        return seal is None or seal["sha256"] == _metadata_digest(document, seal["attributes"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _metadata_digest(document: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return the SHA-256 of the attributes `names` and of the metadata of all arrays."""
    covered = {name: document["attributes"][name] for name in names}
    content = json.dumps([covered, document["consolidated_metadata"]], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()
