"""The last stage of a featurization, which combines parts and existing stores into one store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..runs.parts import PartManifest
from ..store.dedup import Dedup
from ..store.graph_store import GraphStore
from ..store.row_sources import PartRows, Rows, rows_of_store
from ..store.schema import ATOM, CHUNK_ROWS, EDGE, STRUCTURE, ArraySpec
from ..store.writer import StoreRun
from .deduplication import plan_compaction, select_distinct
from .failure_tables import totals, write_tables

COUNTS = ("read", "stored", "failed", "duplicate")


def assemble(
    run: StoreRun,
    manifests: Sequence[PartManifest],
    base: Sequence[GraphStore],
    specs: tuple[ArraySpec, ...],
    dedup: Dedup,
    *,
    append: bool = False,
) -> tuple[dict[str, str], dict[str, int]]:
    """Write the arrays and tables of a store: the rows of `base`, then the rows of the parts.

    Args:
        run: The run in progress.
        manifests: Manifests of the parts of the run, in order.
        base: Finished stores whose rows come first.
        specs: Arrays of the parts.
        dedup: Which structures count as duplicates.
        append: Whether to keep every structure of `base`, duplicates included.

    Returns:
        SHA-256 of the rows of every shard, by ``name/shard``; and the numbers of records read, stored, failed and
        duplicate, including the records of `base`.

    Raises:
        StoreError: Two stores have arrays with the same name and different shapes or units.
    """
    sources: list[Rows] = []
    for store in base:
        sources.extend(rows_of_store(store, CHUNK_ROWS[STRUCTURE]))
    sources.extend(
        PartRows(run.staging.parts, manifest.key, {dim: manifest.counts[dim] for dim in (STRUCTURE, ATOM, EDGE)})
        for manifest in manifests
    )
    counts, _ = totals(manifests)
    for store in base:
        counts.update({name: store.attrs["counts"][name] for name in ("read", "failed", "duplicate")})
    settled = sum(map(len, base)) if append else 0
    selection = select_distinct(run.staging, sources, dedup, settled)
    counts["stored"] = int(selection.keep.sum())
    counts["duplicate"] += int((~selection.keep).sum())
    digests = run.compact(plan_compaction(run.staging, sources, joined_specs(specs, base), selection))
    write_tables(run.staging, manifests, sources, selection, base)
    return digests, {name: counts[name] for name in COUNTS}


def joined_specs(specs: Sequence[ArraySpec], base: Sequence[GraphStore]) -> tuple[ArraySpec, ...]:
    """Return the arrays of a store that combines parts and base stores.

    Raises:
        StoreError: Arrays with the same name differ in shape or unit.
    """
    joined = {spec.name: spec for spec in specs}
    for store in base:
        for name, spec in store.specs.items():
            known = joined.setdefault(name, spec)
            if (known.dims, known.inner, known.attrs.get("units")) != (spec.dims, spec.inner, spec.attrs.get("units")):
                raise StoreError(
                    f"{store.path}: {name!r} has {_shape_and_unit(spec)}, but {_shape_and_unit(known)} in the data "
                    "to be combined with it; featurize one of the two again, with the shape and unit of the other"
                )
    return tuple(joined.values())


def _shape_and_unit(spec: ArraySpec) -> str:
    return f"shape {list(spec.inner)} and unit {spec.attrs.get('units', 'none')}"


def described(store: GraphStore) -> dict[str, Any]:
    """Return the provenance of a store, as recorded in a store that includes its rows."""
    names = ("inputs_sha256", "inputs", "recipe", "counts", "appended_to", "merged_from")
    return {"store_hash": store.store_hash, **{name: store.attrs[name] for name in names if name in store.attrs}}


def bytes_of(folder: Path) -> int:
    """Return the total size of all files in a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
