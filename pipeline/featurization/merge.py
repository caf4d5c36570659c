"""Stores put together into one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from ..errors import StoreError
from ..runs.cluster import connect, dashboard
from ..runs.progress import ProgressReport
from ..runs.staging import resume_publication, staged_run
from ..sources.discovery import inputs_digest
from ..store.graph_store import GraphStore
from ..store.schema import GRAPH_SCHEMA, Dedup
from .assembly import assemble, bytes_of, described
from .report import LISTED_INPUTS, SOFTWARE, FeaturizeReport


def merge(
    stores: Sequence[str | Path],
    out: str | Path,
    *,
    dedup: Dedup | str = Dedup.EXACT,
    scheduler: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> FeaturizeReport:
    """Put graph stores together, in their order.

    Args:
        stores: Finished graph stores, of one cutoff.
        out: The store to write.
        dedup: What counts as the same structure; the first one stays.
        scheduler: See `cluster.connect`.
        overwrite: Replace an existing store.
        progress: Show progress on standard error.

    Raises:
        StoreError: One of them cannot be read, or they do not fit together.
        OutputExistsError: The output exists, or is being written by another run.
    """
    begin = time.monotonic()
    base = [GraphStore(store) for store in stores]
    if not base:
        raise StoreError("no stores given")
    for store in base[1:]:
        if store.cutoff != base[0].cutoff:
            raise StoreError(
                f"{store.path}: its graphs end at {store.cutoff} angstrom, those of {base[0].path} at "
                f"{base[0].cutoff}; featurize one of them again"
            )
    dedup = Dedup(dedup)
    hashes = [store.store_hash for store in base]
    identity = {"schema": GRAPH_SCHEMA, "merged": hashes, "dedup": dedup, "equiscreen": version("equiscreen")}
    attrs = {
        "schema": GRAPH_SCHEMA,
        "cutoff": base[0].cutoff,
        "cutoff_units": "angstrom",
        "recipe": {"dedup": dedup, "limit": None},
        "merged_from": [described(store) for store in base],
        "inputs_sha256": inputs_digest([(str(store.path), len(store), store.store_hash) for store in base]),
        "inputs": [[str(store.path), len(store), store.store_hash] for store in base[:LISTED_INPUTS]],
        "software": {name: version(name) for name in SOFTWARE},
    }
    local = [store.path for store in base if isinstance(store.path, Path)]
    finished = resume_publication(out, identity)
    if finished is not None:
        return FeaturizeReport(**finished)
    with staged_run(out, identity, local, overwrite=overwrite) as staging, connect(scheduler) as client:
        with ProgressReport("merge", sum(map(len, base)), enabled=progress) as bar:
            bar.note(f"Dask dashboard: {dashboard(client)}")
            counts = assemble(client, staging, [], base, (), dedup, attrs)
            bar.advance(sum(map(len, base)))
        report = FeaturizeReport(
            path=str(out),
            read=counts["read"],
            stored=counts["stored"],
            failed=counts["failed"],
            duplicate=counts["duplicate"],
            reasons={},
            seconds=time.monotonic() - begin,
            bytes_on_disk=bytes_of(staging.store),
            in_store=counts["stored"],
        )
        staging.publish(asdict(report))
    return report
