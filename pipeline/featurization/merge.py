"""Merging several graph stores into one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..provenance import recorded_path
from ..runs.options import RunOptions
from ..sources.discovery import inputs_digest
from ..store.dedup import Dedup
from ..store.graph_store import GraphStore
from ..store.schema import GRAPH_SCHEMA
from ..store.writer import InputStore, StoreWriter
from .assembly import assemble, bytes_of, described
from .report import LISTED_INPUTS, SOFTWARE, FeaturizeReport


def merge(
    stores: Sequence[str | Path],
    out: str | Path,
    *,
    dedup: Dedup | str = Dedup.EXACT,
    scheduler: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> FeaturizeReport:
    """Merge graph stores, in the given order.

    Example:
        >>> from equiscreen.pipeline import merge
        >>> merge(["candidates.zarr", "training.zarr"], "all.zarr", scheduler="threads").stored
        44

    Args:
        stores: Finished graph stores with the same cutoff.
        out: Path or URL of the store to write.
        dedup: Which structures count as duplicates, ``exact`` or ``crystal``, as for `featurize`; the first is kept.
        scheduler: Dask cluster to work on; see `pipeline.runs.cluster.connect`.
        overwrite: Replace an existing store, and discard an unfinished run with different settings.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.

    Returns:
        Report in which the numbers of records read, failed and duplicate include the runs that made the stores.

    Raises:
        StoreError: No stores are given, a store cannot be read or changes during the run, or the stores differ in
            cutoff or in the shape or unit of a label.
        OutputExistsError: The output exists, cannot be written or is an input; another run is writing it; or an
            unfinished run has different settings.
        EquiscreenError: No Dask cluster answers or can be started, or its workers are lost or have different versions.
        ValueError: `dedup` is neither ``exact`` nor ``crystal``.
    """
    begin = time.monotonic()
    base = _open_compatible(stores)
    dedup = Dedup(dedup)
    hashes = [store.store_hash for store in base]
    identity = {"schema": GRAPH_SCHEMA, "merged": hashes, "dedup": dedup, "equiscreen": version("equiscreen")}
    options = RunOptions(scheduler=scheduler, overwrite=overwrite, progress=progress)
    writer = StoreWriter("merge", out, identity, options, inputs=[InputStore.of(store) for store in base])
    finished = writer.resume_publication()
    if finished is not None:
        return FeaturizeReport(**finished)
    size = sum(map(len, base))
    with writer.run(size) as run:
        digests, counts = assemble(run, [], base, (), dedup)
        run.bar.advance(size)
        report = FeaturizeReport(
            path=str(run.staging.out),
            read=counts["read"],
            stored=counts["stored"],
            failed=counts["failed"],
            duplicate=counts["duplicate"],
            reasons={},
            seconds=time.monotonic() - begin,
            bytes_on_disk=bytes_of(run.staging.store),
            in_store=counts["stored"],
        )
        run.publish(digests, {**_root_attrs(base, out, dedup), "counts": counts}, asdict(report))
    return report


def _open_compatible(paths: Sequence[str | Path]) -> list[GraphStore]:
    """Open stores that can be merged.

    Raises:
        StoreError: No stores are given, a store cannot be read, or their cutoffs differ.
    """
    stores = [GraphStore(path) for path in paths]
    if not stores:
        raise StoreError("there are no stores to merge; give the path of at least one")
    for store in stores[1:]:
        if store.cutoff != stores[0].cutoff:
            raise StoreError(
                f"{store.path} has a cutoff of {store.cutoff} angstrom, but {stores[0].path} has {stores[0].cutoff}; "
                "featurize one of the two again with the cutoff of the other"
            )
    return stores


def _root_attrs(base: Sequence[GraphStore], out: str | Path, dedup: Dedup) -> dict[str, Any]:
    """Return the root attributes of the merged store at `out`, without the counts."""
    inputs = [(recorded_path(store.path, out), len(store), store.store_hash) for store in base]
    return {
        "schema": GRAPH_SCHEMA,
        "cutoff": base[0].cutoff,
        "cutoff_units": "angstrom",
        "recipe": {"dedup": dedup, "limit": None},
        "merged_from": [described(store) for store in base],
        "inputs_sha256": inputs_digest(inputs),
        "inputs": [list(item) for item in inputs[:LISTED_INPUTS]],
        "software": {name: version(name) for name in SOFTWARE},
    }
