"""What becomes of every record: stored, left out as a duplicate, or failed; nothing is lost on the way."""

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
from ..store.row_sources import PartRows, Rows, StoreRows, opened
from ..store.schema import ATOM, EDGE, STATUS_OTHER_LABELS, STATUS_REPEATED_ID, STRUCTURE, ArraySpec, Dedup
from ..structures.matching import composition_key, crystal_vector, first_same_crystal
from ..structures.structure import Structure
from .task import id_digests, label_digests


@dataclass(frozen=True, slots=True)
class Selection:
    """Which structures of all sources go into the store.

    Attributes:
        keep: bool[n_structures in sources].
        first: int64[n_structures in sources], the first structure that is the same.
        offsets: int64[n_sources + 1], offsets of the sources into these.
    """

    keep: NDArray[np.bool_]
    first: NDArray[np.int64]
    offsets: NDArray[np.int64]


def select_distinct(
    staging: Staging, sources: Sequence[Rows], dedup: Dedup = Dedup.EXACT, settled: int = 0
) -> Selection:
    """Keep the first of equal structures, in the order of sources.

    Structures that are equal to the last digit but for their labels are kept too, and flagged. Where crystals are
    compared, labels are not: those of another cell in another orientation are other numbers.

    Which ones are kept, and their status, is left in ``keep.npy`` and ``status.npy`` for the compaction.

    Args:
        staging: The run.
        sources: Of rows.
        dedup: What counts as the same.
        settled: The first so many structures stay in any case: they are in the store that is appended to.
    """
    offsets = offsets_of([source.counts[STRUCTURE] for source in sources])
    found = [_identities(source, dedup) for source in sources]
    hashes = np.concatenate([item["structure_hash"] for item in found])
    ids = np.concatenate([item["id_digest"] for item in found])
    status = np.concatenate([item["status"] for item in found])
    here = np.arange(len(hashes))
    if dedup is Dedup.CRYSTAL:
        keys = np.concatenate([item["crystal_key"] for item in found])
        vectors = np.concatenate([item["crystal_vector"] for item in found])
        first = first_same_crystal(keys, vectors, _structure_reader(sources, offsets))
        keep = first == here
    else:
        labels = np.concatenate([item["label_digest"] for item in found])
        first = first_equal(hashes)
        first_with_labels = first_equal(np.concatenate([hashes, labels], axis=1))
        # A repetition without any label adds nothing, also where the first has one.
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
    """What tells the structures of a source from others."""
    names = ["structure_hash", "status"]
    if isinstance(source, PartRows):
        names += ["id_digest", "label_digest", *(["crystal_key", "crystal_vector"] if dedup is Dedup.CRYSTAL else [])]
        found = source.read(names)
    else:
        found = {**source.read(names), **_identities_of_store(source, dedup)}
    found["structure_hash"] = np.ascontiguousarray(found["structure_hash"]).view(np.uint64)
    return {name: np.asarray(values) for name, values in found.items()}


def _identities_of_store(source: StoreRows, dedup: Dedup) -> dict[str, NDArray[Any]]:
    """A store does not keep what only comparing needs, so it is computed anew."""
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
    """Reads structures by their place, counted through all sources; some sources are kept in memory."""

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
    """For each row the index of the first row equal to it: int64[n] from uint64[n, k]."""
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
    """Where the kept rows of every source go in the store."""
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
