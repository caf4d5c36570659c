"""Checksums of the rows of every array."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import StoreError

CHECKSUMS_FILE = "checksums.json"


def rows_digest(values: NDArray[Any]) -> str:
    """sha256 of the values of rows, independent of their compression."""
    if values.dtype.kind == "T":
        return hashlib.sha256("\0".join(values.tolist()).encode()).hexdigest()
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def stored_digests(root: zarr.Group, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Compute the checksums of a store from its rows.

    Yields:
        ``name/shard`` and its sha256, for every shard of the arrays `names`.

    Raises:
        StoreError: A name does not belong to an array.
    """
    for name in names:
        array = root[name]
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{name} is not an array")
        length = array.shape[0]
        rows = (array.shards or array.chunks)[0]
        for shard in range(-(-length // rows)):
            values = np.asarray(array[shard * rows : (shard + 1) * rows])
            yield f"{name}/{shard}", rows_digest(values)
