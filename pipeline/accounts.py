"""What becomes of every record: stored, left out as a duplicate, or failed; nothing is lost on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .compaction import Compaction, offsets_of
from .partition import FAILURE_ARRAYS
from .parts import Receipt, read_part
from .schema import ATOM, EDGE, STATUS_OTHER_LABELS, STRUCTURE, ArraySpec
from .staging import Staging

FAILURES_FILE, DUPLICATES_FILE = "failures.parquet", "duplicates.parquet"
_ORIGIN = [("source", pa.string()), ("source_index", pa.int64()), ("structure_id", pa.string())]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which structures of all parts go into the store.

    Attributes:
        keep: bool[n_structures in parts].
        first: int64[n_structures in parts], the first structure with the same content.
        part_offsets: int64[n_parts + 1], offsets of the parts into these.
    """

    keep: NDArray[np.bool_]
    first: NDArray[np.int64]
    part_offsets: NDArray[np.int64]


def select_distinct(staging: Staging, receipts: Mapping[int, Receipt]) -> Selection:
    """Keep the first of equal structures, in the order of sources, and those whose labels differ from its labels.

    Which ones are kept, and their status, is left in ``keep.npy`` and ``status.npy`` for the compaction.
    """
    parts = [read_part(staging.parts, number, ("structure_hash", "label_digest")) for number in receipts]
    hashes = np.concatenate([np.ascontiguousarray(part["structure_hash"]).view(np.uint64) for part in parts])
    labels = np.concatenate([part["label_digest"] for part in parts])
    first = first_equal(hashes)
    first_with_labels = first_equal(np.concatenate([hashes, labels], axis=1))
    here = np.arange(len(hashes))
    # A repetition without any label adds nothing, also where the first has one.
    other_labels = (first != here) & (first_with_labels == here) & labels.any(axis=1)
    keep = (first == here) | other_labels
    np.save(staging.folder / "keep.npy", keep)
    np.save(staging.folder / "status.npy", np.where(other_labels, STATUS_OTHER_LABELS, 0).astype(np.uint8))
    return Selection(keep, first, offsets_of([receipt.counts["stored"] for receipt in receipts.values()]))


def first_equal(rows: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each row the index of the first row equal to it: int64[n] from uint64[n, k]."""
    order = np.lexsort((np.arange(len(rows)), *rows.T))
    ordered = rows[order]
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    out = np.empty(len(rows), dtype=np.int64)
    out[order] = order[new][np.cumsum(new) - 1]
    return out


def plan_compaction(
    staging: Staging, receipts: Mapping[int, Receipt], specs: tuple[ArraySpec, ...], selection: Selection
) -> Compaction:
    """Where the kept rows of every part go in the store."""
    offsets = selection.part_offsets
    rows: dict[str, list[int]] = {STRUCTURE: [], ATOM: [], EDGE: []}
    for place, receipt in enumerate(receipts.values()):
        kept = selection.keep[offsets[place] : offsets[place + 1]]
        rows[STRUCTURE].append(int(kept.sum()))
        if kept.all():
            rows[ATOM].append(receipt.counts[ATOM])
            rows[EDGE].append(receipt.counts[EDGE])
        else:
            part = read_part(staging.parts, receipt.number, ("n_atoms", "n_edges"))
            rows[ATOM].append(int(part["n_atoms"][kept].sum()))
            rows[EDGE].append(int(part["n_edges"][kept].sum()))
    return Compaction(
        parts=staging.parts,
        store=staging.store,
        specs=specs,
        numbers=tuple(receipts),
        part_rows={dim: offsets_of(counts) for dim, counts in rows.items()},
        keep=staging.folder / "keep.npy",
        status=staging.folder / "status.npy",
        structure_offsets=offsets,
    )


def totals(receipts: Mapping[int, Receipt]) -> tuple[Counter[str], dict[str, int]]:
    """Sums of read, stored and failed over all parts, and the failures by reason."""
    counts: Counter[str] = Counter(read=0, stored=0, failed=0)
    reasons: Counter[str] = Counter()
    for receipt in receipts.values():
        counts.update({name: receipt.counts[name] for name in ("read", "stored", "failed")})
        reasons.update(receipt.notes["reasons"])
    return counts, dict(reasons)


def failures(staging: Staging, receipts: Mapping[int, Receipt]) -> Iterator[pa.Table]:
    """A table of failures for each part: source, source_index, structure_id, reason."""
    schema = pa.schema([*_ORIGIN, ("reason", pa.string())])
    for number in receipts:
        part = read_part(staging.parts, number, FAILURE_ARRAYS)
        yield pa.table([part[name].tolist() for name in FAILURE_ARRAYS], schema=schema)


def write_tables(staging: Staging, receipts: Mapping[int, Receipt], selection: Selection) -> None:
    """Write the tables of failures and of duplicates into the store."""
    with pq.ParquetWriter(staging.store / FAILURES_FILE, pa.schema([*_ORIGIN, ("reason", pa.string())])) as writer:
        for table in failures(staging, receipts):
            writer.write_table(table)
    dropped = np.flatnonzero(~selection.keep)
    origins = _origins(staging, receipts, selection, dropped)
    originals = _origins(staging, receipts, selection, selection.first[dropped])
    columns = [list(column) for column in zip(*origins, strict=True)] or [[], [], []]
    table = pa.table(
        [*columns, [name for _, _, name in originals]], schema=pa.schema([*_ORIGIN, ("duplicate_of", pa.string())])
    )
    pq.write_table(table, staging.store / DUPLICATES_FILE)


def _origins(
    staging: Staging, receipts: Mapping[int, Receipt], selection: Selection, rows: NDArray[np.int64]
) -> list[tuple[str, int, str]]:
    """source, source_index and structure_id of structures, counted through all parts."""
    numbers = list(receipts)
    found: list[tuple[str, int, str]] = [("", 0, "")] * len(rows)
    place = np.searchsorted(selection.part_offsets, rows, side="right") - 1
    for here in np.unique(place):
        part = read_part(staging.parts, numbers[int(here)], ("source", "source_index", "structure_id"))
        sources, indices, names = part["source"], part["source_index"], part["structure_id"]
        for out in np.flatnonzero(place == here):
            row = int(rows[out] - selection.part_offsets[here])
            found[out] = (str(sources[row]), int(indices[row]), str(names[row]))
    return found
