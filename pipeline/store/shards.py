"""The check that all files of a store's arrays exist: zarr would silently read a missing file as zeros or NaN."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zarr
from fsspec.core import url_to_fs

from ..errors import StoreError, detail

# Number of simultaneous requests to a web server.
_REQUESTS = 16


def check_shards(path: Path | str, arrays: Mapping[str, zarr.Array[Any]]) -> None:
    """Check that every shard of some arrays is a file that is not empty.

    Args:
        path: Local path or URL of the store.
        arrays: Arrays by name.

    Raises:
        StoreError: A shard is missing or empty, or the files cannot be listed.
    """
    missing = _missing(path, arrays)
    if missing:
        name, _, shard = missing[0].partition("/c/")
        raise StoreError(
            f"{path} is damaged: shard {shard.split('/')[0]} of {name!r} is missing or empty; copy the store from its "
            "source again, or write it again"
        )


def _missing(path: Path | str, arrays: Mapping[str, zarr.Array[Any]]) -> list[str]:
    """Find the shards whose files are missing or empty, from one listing of the store."""
    expected: list[str] = []
    for name, array in arrays.items():
        shape = array.shards or array.chunks
        if array.ndim and 0 not in array.shape:
            tail = "/0" * (array.ndim - 1)
            expected.extend(f"{name}/c/{shard}{tail}" for shard in range(-(-array.shape[0] // shape[0])))
    try:
        files, root = url_to_fs(str(path))
        files.invalidate_cache()  # the listing may be older than the end of the run that wrote the store
        found = _listing(files, root)
        missing = [file for file in expected if file not in found]
        if isinstance(path, Path) or not missing:
            return missing
        # A plain web server has no listing, or one in its own format.
        with ThreadPoolExecutor(_REQUESTS) as pool:
            exist = pool.map(files.exists, [f"{root}/{file}" for file in missing])
            return [file for file, there in zip(missing, exist, strict=True) if not there]
    except Exception as error:
        raise StoreError(
            f"{path}: its files cannot be listed ({detail(error, str(path))}); check the path and your permissions"
        ) from error


def _listing(files: Any, root: str) -> set[str]:
    """Return all files below a folder that are not known to be empty; none if the folder does not exist."""
    try:
        found: Mapping[str, Mapping[str, Any]] = files.find(root, detail=True)
    except FileNotFoundError:
        return set()
    return {str(name)[len(root) :].lstrip("/") for name, facts in found.items() if facts.get("size") != 0}
