"""Deduplication: which structures are stored, and which are dropped as duplicates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graphs.offsets import offsets_of
from ..runs.staging import Staging
from ..store.compaction import Compaction
from ..store.dedup import Dedup
from ..store.row_sources import PartRows, Rows, StoreRows, opened
from ..store.schema import ATOM, EDGE, STATUS_OTHER_LABELS, STATUS_REPEATED_ID, STRUCTURE, ArraySpec
from ..structures.matching import composition_key, crystal_vector, first_same_crystal
from ..structures.structure import Structure
from .task import id_digests, label_digests


@dataclass(frozen=True, slots=True)
class Selection:
    """Which structures of all sources go into the store.

    Structures are numbered consecutively across all sources.

    Attributes:
        keep: bool[n_structures], whether each structure is stored.
        first: int64[n_structures], index of the first equal structure.
        offsets: int64[n_sources + 1], index of the first structure of each source.
    """

    keep: NDArray[np.bool_]
    first: NDArray[np.int64]
    offsets: NDArray[np.int64]


def select_distinct(
    staging: Staging, sources: Sequence[Rows], dedup: Dedup = Dedup.EXACT, settled: int = 0
) -> Selection:
    """Keep the first of each set of equal structures, in the order of the sources.

    With ``exact``, identical structures with different labels are kept too, and flagged. With ``crystal``, labels are
    not compared, because their values depend on the cell and the orientation of the crystal.

    The compaction reads which structures are kept, and their status, from ``keep.npy`` and ``status.npy``.

    Args:
        staging: Folders of the run.
        sources: Sources of rows, in order.
        dedup: Which structures count as duplicates.
        settled: Number of leading structures that are always kept, because they are already in the store that is being
            extended.
    """
    offsets = offsets_of([source.counts[STRUCTURE] for source in sources])
    identities = [_identities(source, dedup) for source in sources]
    hashes = np.concatenate([item["structure_hash"] for item in identities])
    ids = np.concatenate([item["id_digest"] for item in identities])
    status = np.concatenate([item["status"] for item in identities])
    here = np.arange(len(hashes))
    if dedup is Dedup.CRYSTAL:
        keys = np.concatenate([item["crystal_key"] for item in identities])
        vectors = np.concatenate([item["crystal_vector"] for item in identities])
        first = first_same_crystal(keys, vectors, _structure_reader(sources, offsets))
        keep = first == here
    else:
        labels = np.concatenate([item["label_digest"] for item in identities])
        first = first_equal(hashes)
        first_with_labels = first_equal(np.concatenate([hashes, labels], axis=1))
        # A duplicate without labels adds nothing, even if the first structure has labels.
        other_labels = (first != here) & (first_with_labels == here) & labels.any(axis=1)
        keep = (first == here) | other_labels
        status[other_labels] |= STATUS_OTHER_LABELS
    keep[:settled] = True
    _, place, times = np.unique(ids[keep], return_inverse=True, return_counts=True)
    status[np.flatnonzero(keep)[times[place] > 1]] |= STATUS_REPEATED_ID
    np.save(staging.work / "keep.npy", keep)
    np.save(staging.work / "status.npy", status)
    return Selection(keep, first, offsets)


def _identities(source: Rows, dedup: Dedup) -> dict[str, NDArray[Any]]:
    """Return the arrays by which the structures of a source are compared with others."""
    names = ["structure_hash", "status"]
    if isinstance(source, PartRows):
        names += ["id_digest", "label_digest", *(["crystal_key", "crystal_vector"] if dedup is Dedup.CRYSTAL else [])]
        found = source.read(names)
    else:
        found = {**source.read(names), **_identities_of_store(source, dedup)}
    found["structure_hash"] = np.ascontiguousarray(found["structure_hash"]).view(np.uint64)
    return {name: np.asarray(values) for name, values in found.items()}


def _identities_of_store(source: StoreRows, dedup: Dedup) -> dict[str, NDArray[Any]]:
    """Recompute the digests and keys of a store, which does not hold them because only comparisons need them."""
    store = opened(source.path, source.store_hash)
    block = store.block(source.start, source.stop, labels=True)
    per_atom = {name: np.split(values, block.atom_start[1:]) for name, values in block.atom_labels.items()}
    labels = []
    for row in range(len(block)):
        found = {name: np.asarray(values[row]) for name, values in (block.structure_labels | per_atom).items()}
        labels.append({name: values for name, values in found.items() if not np.isnan(values).all()})
    out: dict[str, NDArray[Any]] = {
        "label_digest": label_digests(labels),
        "id_digest": id_digests(list(source.read(["structure_id"])["structure_id"])),
    }
    if dedup is Dedup.CRYSTAL:
        structures = [block.structure(row) for row in range(len(block))]
        out["crystal_key"] = np.array([composition_key(s) for s in structures], dtype=np.uint64)
        out["crystal_vector"] = np.array([crystal_vector(s) for s in structures])
    return out


def _structure_reader(sources: Sequence[Rows], offsets: NDArray[np.int64]) -> Callable[[int], Structure]:
    """Return a function that reads a structure by its index across all sources; up to 32 sources stay in memory."""

    @lru_cache(maxsize=32)
    def geometry(place: int) -> tuple[dict[str, Any], NDArray[np.int64]]:
        found = sources[place].read(("n_atoms", "cell", "pbc", "atomic_number", "frac_coord"))
        return found, offsets_of(np.asarray(found["n_atoms"]).tolist())

    def read(row: int) -> Structure:
        place = int(np.searchsorted(offsets, row, side="right")) - 1
        found, atoms = geometry(place)
        here = row - int(offsets[place])
        span = slice(int(atoms[here]), int(atoms[here + 1]))
        return Structure(
            found["atomic_number"][span], found["cell"][here], found["frac_coord"][span], found["pbc"][here]
        )

    return read


def first_equal(rows: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the index of the first row equal to each row: int64[n] from uint64[n, k]."""
    order = np.lexsort((np.arange(len(rows)), *rows.T))
    ordered = rows[order]
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    out = np.empty(len(rows), dtype=np.int64)
    out[order] = order[new][np.cumsum(new) - 1]
    return out


def plan_compaction(
    staging: Staging, sources: Sequence[Rows], specs: tuple[ArraySpec, ...], selection: Selection
) -> Compaction:
    """Plan where the kept rows of every source go in the store."""
    rows: dict[str, list[int]] = {STRUCTURE: [], ATOM: [], EDGE: []}
    for place, source in enumerate(sources):
        kept = selection.keep[selection.offsets[place] : selection.offsets[place + 1]]
        rows[STRUCTURE].append(int(kept.sum()))
        if kept.all():
            rows[ATOM].append(source.counts[ATOM])
            rows[EDGE].append(source.counts[EDGE])
        else:
            counts = source.read(("n_atoms", "n_edges"))
            rows[ATOM].append(int(np.asarray(counts["n_atoms"])[kept].sum()))
            rows[EDGE].append(int(np.asarray(counts["n_edges"])[kept].sum()))
    return Compaction(
        store=staging.store,
        specs=specs,
        sources=tuple(sources),
        source_rows={dim: offsets_of(counts) for dim, counts in rows.items()},
        keep=staging.work / "keep.npy",
        status=staging.work / "status.npy",
        structure_offsets=selection.offsets,
    )
