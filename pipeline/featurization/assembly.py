"""The last stage of a run: parts, and stores that are there already, become one store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..runs.parts import PartManifest
from ..runs.staging import Staging
from ..store.compaction import compact, finish_store
from ..store.graph_store import GraphStore
from ..store.row_sources import PartRows, Rows, rows_of_store
from ..store.schema import ATOM, CHUNK_ROWS, EDGE, STRUCTURE, ArraySpec, Dedup
from .deduplication import plan_compaction, select_distinct
from .failures import totals, write_tables

COUNTS = ("read", "stored", "failed", "duplicate")


def assemble(
    client: Any,
    staging: Staging,
    manifests: Sequence[PartManifest],
    base: Sequence[GraphStore],
    specs: tuple[ArraySpec, ...],
    dedup: Dedup,
    attrs: Mapping[str, Any],
    *,
    append: bool = False,
) -> Counter[str]:
    """Write the store in the run's folder: the rows of `base`, then those of the parts.

    Args:
        client: Dask client.
        staging: The run.
        manifests: Of its parts, in order.
        base: Finished stores.
        specs: Arrays of the parts.
        dedup: What counts as the same structure.
        attrs: Of the root, besides the counts.
        append: Whether all of `base` stays as it is.

    Returns:
        How many were read, stored, failed and duplicate, with those of `base`.

    Raises:
        StoreError: Arrays of one name that are not the same thing.
    """
    sources: list[Rows] = []
    for store in base:
        sources.extend(rows_of_store(store, CHUNK_ROWS[STRUCTURE]))
    sources.extend(
        PartRows(staging.parts, manifest.key, {dim: manifest.counts[dim] for dim in (STRUCTURE, ATOM, EDGE)})
        for manifest in manifests
    )
    counts, _ = totals(manifests)
    for store in base:
        counts.update({name: store.attrs["counts"][name] for name in ("read", "failed", "duplicate")})
    settled = sum(map(len, base)) if append else 0
    selection = select_distinct(staging, sources, dedup, settled)
    counts["stored"] = int(selection.keep.sum())
    counts["duplicate"] += int((~selection.keep).sum())
    compaction = plan_compaction(staging, sources, joined_specs(specs, base), selection)
    digests = compact(client, compaction)
    write_tables(staging, manifests, sources, selection, base)
    finish_store(staging.store, digests, {**attrs, "counts": {name: counts[name] for name in COUNTS}})
    return counts


def joined_specs(specs: Sequence[ArraySpec], base: Sequence[GraphStore]) -> tuple[ArraySpec, ...]:
    """The arrays of a store that holds all of these.

    Raises:
        StoreError: Arrays of one name that differ in shape or unit.
    """
    joined = {spec.name: spec for spec in specs}
    for store in base:
        for name, spec in store.specs.items():
            known = joined.setdefault(name, spec)
            if (known.dims, known.inner, known.attrs.get("units")) != (spec.dims, spec.inner, spec.attrs.get("units")):
                raise StoreError(f"{store.path}: its {name!r} is {_kind(spec)}, elsewhere it is {_kind(known)}")
    return tuple(joined.values())


def _kind(spec: ArraySpec) -> str:
    return f"{list(spec.inner)} in {spec.attrs.get('units', 'no unit')}"


def described(store: GraphStore) -> dict[str, Any]:
    """Where the rows of a store that was taken over come from."""
    names = ("inputs_sha256", "inputs", "recipe", "counts", "appended_to", "merged_from")
    return {"store_hash": store.store_hash, **{name: store.attrs[name] for name in names if name in store.attrs}}


def bytes_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
