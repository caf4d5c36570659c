"""Compaction of parts into the sharded arrays of a Zarr store. One task owns a whole shard of every array it writes."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from ..atomic import write_text_atomically
from ..runs.failure_policy import run_tasks
from ..runs.parts import PartArray
from ..runs.target import ROOT_FILE
from .checksums import CHECKSUMS_FILE, rows_digest, write_root_attributes
from .row_sources import Rows
from .schema import ATOM, CHUNK_ROWS, EDGE, OTHER_CHUNK_ROWS, STRUCTURE, TEXT, ArraySpec, empty_rows

SHARD_CHUNKS = 64
# A task holds a whole shard in memory, so arrays with rows wider than this have fewer rows per chunk.
NARROW_ROW_BYTES = 512
COUNT_ARRAYS = {ATOM: "n_atoms", EDGE: "n_edges"}
START_ARRAYS = {"atom_start": ATOM, "edge_start": EDGE}


@dataclass(frozen=True, slots=True)
class Compaction:
    """Input of the compaction tasks. Everything as large as the data is kept in files.

    Attributes:
        store: Folder of the store that is written, on a local or shared file system.
        specs: Arrays of the store.
        sources: Sources of the rows, in order.
        source_rows: For every sharded dim, int64[n_sources + 1], offsets of the kept rows of each source in the output.
        keep: Path of a .npy file, bool[structures in all sources]; None keeps everything.
        status: Path of a .npy file, `status` of every structure in all sources; None takes it from the sources.
        structure_offsets: int64[n_sources + 1], offsets of each source into `keep` and `status`.

    A shard needs few of many sources: `shard_tasks` gives each task its own, so that tasks stay small.
    """

    store: Path
    specs: tuple[ArraySpec, ...]
    sources: tuple[Rows, ...]
    source_rows: Mapping[str, NDArray[np.int64]]
    keep: Path | None
    status: Path | None
    structure_offsets: NDArray[np.int64]

    def of_rows(self, specs: Sequence[ArraySpec], dim: str, begin: int, end: int) -> Compaction:
        """Return the part of the compaction that rows `begin` up to `end` along a dim of some arrays need."""
        offsets = self.source_rows[dim]
        first = int(np.searchsorted(offsets, begin, side="right")) - 1
        last = int(np.searchsorted(offsets, end, side="left"))
        places = slice(first, last + 1)
        return replace(
            self,
            specs=tuple(specs),
            sources=self.sources[first:last],
            source_rows={name: rows[places] for name, rows in self.source_rows.items()},
            structure_offsets=self.structure_offsets[places],
        )


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard of all arrays that have the same dim and the same shards.

    Attributes:
        compaction: The arrays, and the sources of the rows.
        dim: Dim along which the arrays are sharded.
        shard: Number of the shard.
        begin, end: Range of its rows.
    """

    compaction: Compaction
    dim: str
    shard: int
    begin: int
    end: int


def create_arrays(compaction: Compaction) -> None:
    """Create the arrays of the store, without data."""
    root = zarr.open_group(compaction.store, mode="w", zarr_format=3)
    for spec in compaction.specs:
        length = int(compaction.source_rows[spec.dims[0]][-1])
        shard = _shard_rows(spec, length)
        inner = spec.inner
        # Because of the checksum, reading a damaged chunk raises an error and never yields a wrong number.
        compressors = (BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"), Crc32cCodec())
        root.create_array(
            spec.name,
            shape=(length, *inner),
            dtype="string" if spec.dtype == TEXT else spec.dtype,
            chunks=(_chunk_rows(spec), *inner),
            shards=(shard, *inner),
            dimension_names=spec.dims,
            compressors=compressors,
            fill_value=np.nan if spec.dtype.startswith("float") else None,
            attributes=dict(spec.attrs),
        )


def shard_tasks(compaction: Compaction) -> Iterator[ShardTask]:
    """Yield one task for every shard of each group of arrays that share their dim and their shard size."""
    groups: dict[tuple[str, int], list[ArraySpec]] = {}
    for spec in compaction.specs:
        groups.setdefault(_shard_layout(compaction, spec), []).append(spec)
    for (dim, rows), specs in groups.items():
        length = int(compaction.source_rows[dim][-1])
        for shard, begin in enumerate(range(0, length, rows)):
            end = min(begin + rows, length)
            yield ShardTask(compaction.of_rows(specs, dim, begin, end), dim, shard, begin, end)


def write_shard(task: ShardTask) -> dict[str, str]:
    """Gather the rows of one shard from their sources and write them.

    Returns:
        SHA-256 of the rows of each array, by ``name/shard``.
    """
    compaction = task.compaction
    pieces: dict[str, list[PartArray]] = {spec.name: [] for spec in compaction.specs}
    for place, offset in enumerate(compaction.source_rows[task.dim][:-1].tolist()):
        window = slice(max(0, task.begin - offset), task.end - offset)
        for name, values in _kept_rows(compaction, place):
            pieces[name].append(values[window])
    digests = {}
    for spec in compaction.specs:
        values = _concatenated(spec, pieces.pop(spec.name))
        # A shard of zeros has to be written too: a missing shard counts as damage.
        with zarr.config.set({"array.write_empty_chunks": True}):
            zarr.open_array(compaction.store / spec.name, mode="r+")[task.begin : task.end] = values
        digests[f"{spec.name}/{task.shard}"] = rows_digest(values)
    return digests


def _concatenated(spec: ArraySpec, pieces: list[PartArray]) -> NDArray[Any]:
    if spec.dtype == TEXT:
        return np.array([value for piece in pieces for value in piece], dtype=np.dtypes.StringDType())
    return np.concatenate(pieces).astype(spec.dtype, copy=False)


def finish_store(store: Path, digests: Mapping[str, str], attrs: Mapping[str, Any]) -> str:
    """Finish a store: write the checksums, then the root attributes, among them `complete`.

    Returns:
        Hash of the store: the SHA-256 of its file of checksums.
    """
    for scratch in store.rglob("*.partial"):  # left by a worker that was killed while zarr was writing
        scratch.unlink()
    text = json.dumps(dict(sorted(digests.items())), indent=0)
    write_text_atomically(store / CHECKSUMS_FILE, text)
    store_hash = hashlib.sha256(text.encode()).hexdigest()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        warnings.filterwarnings("ignore", message="Object at .* is not recognized as a component")  # the tables
        zarr.consolidate_metadata(store)
    write_root_attributes(store / ROOT_FILE, {**attrs, "store_hash": store_hash, "complete": True})
    return store_hash


def _chunk_rows(spec: ArraySpec) -> int:
    """Return the rows per chunk: the default of the dim, divided by a power of two if rows are wide."""
    width = 0 if spec.dtype == TEXT else np.dtype(spec.dtype).itemsize * math.prod(spec.inner)
    divisor = 1
    while width > divisor * NARROW_ROW_BYTES:
        divisor *= 2
    return max(1, CHUNK_ROWS.get(spec.dims[0], OTHER_CHUNK_ROWS) // divisor)


def write_shards(compaction: Compaction) -> dict[str, str]:
    """Write all shards of the store in this process, in order; `compact` writes them on workers.

    Returns:
        SHA-256 of the rows of every shard, by ``name/shard``.
    """
    create_arrays(compaction)
    digests: dict[str, str] = {}
    for task in shard_tasks(compaction):
        digests.update(write_shard(task))
    return digests


def _shard_rows(spec: ArraySpec, length: int) -> int:
    """Return the rows per shard: whole chunks, and no more of them than the array has."""
    chunk = _chunk_rows(spec)
    return chunk * max(1, min(SHARD_CHUNKS, -(-length // chunk)))


def _shard_layout(compaction: Compaction, spec: ArraySpec) -> tuple[str, int]:
    """Return the dim along which an array is sharded, and the number of rows per shard."""
    dim = spec.dims[0]
    return dim, _shard_rows(spec, int(compaction.source_rows[dim][-1]))


def _kept_rows(compaction: Compaction, place: int) -> Iterator[tuple[str, PartArray]]:
    """Yield, for each array, the rows of one source that go into the store; all arrays have the same dim."""
    specs = compaction.specs
    wanted = {spec.name for spec in specs}
    if compaction.status is not None:
        wanted.discard("status")
    counts = {COUNT_ARRAYS[START_ARRAYS[name]] for name in wanted & START_ARRAYS.keys()}
    dim = specs[0].dims[0]
    if dim != STRUCTURE and compaction.keep is not None:
        counts.add(COUNT_ARRAYS[dim])
    source = compaction.sources[place]
    found = source.read((wanted - START_ARRAYS.keys()) | counts)
    structures = slice(int(compaction.structure_offsets[place]), int(compaction.structure_offsets[place + 1]))
    keep = None if compaction.keep is None else np.load(compaction.keep, mmap_mode="r")[structures]
    mask = _mask(found, dim, keep)
    for spec in specs:
        if spec.name in START_ARRAYS:
            start_dim = START_ARRAYS[spec.name]
            kept = np.asarray(_selected(found[COUNT_ARRAYS[start_dim]], mask))
            yield spec.name, np.cumsum(kept, dtype=np.int64) - kept + compaction.source_rows[start_dim][place]
        elif spec.name == "status" and compaction.status is not None:
            yield spec.name, _selected(np.array(np.load(compaction.status, mmap_mode="r")[structures]), mask)
        elif spec.name in found:
            yield spec.name, _selected(found[spec.name], mask)
        else:  # a label or column that only other sources have
            yield spec.name, _selected(empty_rows(spec, source.counts[dim]), mask)


def _mask(found: Mapping[str, PartArray], dim: str, keep: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return which rows along a dim are kept, bool[n_rows]; None if all are kept."""
    if keep is None or keep.all():
        return None
    return keep if dim == STRUCTURE else np.repeat(keep, np.asarray(found[COUNT_ARRAYS[dim]]))


def _selected(values: PartArray, mask: NDArray[np.bool_] | None) -> PartArray:
    if mask is None:
        return values
    return list(compress(values, mask)) if isinstance(values, list) else values[mask]


def compact(client: Any, compaction: Compaction) -> dict[str, str]:
    """Write all shards of the store on Dask workers.

    Returns:
        SHA-256 of the rows of every shard, by ``name/shard``.

    Raises:
        EquiscreenError: As for `run_tasks`.
    """
    create_arrays(compaction)
    digests: dict[str, str] = {}
    for part in run_tasks(client, write_shard, shard_tasks(compaction), shared=[compaction.store]):
        digests.update(part)
    return digests
