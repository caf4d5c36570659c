"""Checksums of the rows of every array."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..atomic import write_text_atomically
from ..errors import StoreError

CHECKSUMS_FILE = "checksums.json"
# Root attribute with the checksum of the root file and the names of the attributes that it covers. Others may be added.
SEAL = "seal"


def rows_digest(values: NDArray[Any]) -> str:
    """SHA-256 of the values in some rows, independent of how the rows are compressed."""
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
            raise StoreError(f"{name} is not an array")
        length = array.shape[0]
        rows = (array.shards or array.chunks)[0]
        for shard in range(-(-length // rows)):
            values = np.asarray(array[shard * rows : (shard + 1) * rows])
            yield f"{name}/{shard}", rows_digest(values)


def write_root_attributes(file: Path, attrs: Mapping[str, Any]) -> None:
    """Add attributes to the root file of a store, ``zarr.json``, and seal it: change it only through this function."""
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
    """SHA-256 of the attributes `names` and of the metadata of all arrays."""
    covered = {name: document["attributes"][name] for name in names}
    content = json.dumps([covered, document["consolidated_metadata"]], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()
