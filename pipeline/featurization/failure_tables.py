"""The failures and duplicates tables of a graph store, and the totals of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..runs.parts import PartManifest, read_part
from ..runs.staging import Staging
from ..store.graph_store import GraphStore
from ..store.row_sources import Rows
from ..store.tables import DUPLICATE_SCHEMA, DUPLICATES_FILE, FAILURE_SCHEMA, FAILURES_FILE
from .deduplication import Selection
from .task import FAILURE_ARRAYS


def totals(manifests: Iterable[PartManifest]) -> tuple[Counter[str], dict[str, int]]:
    """Return the numbers of records read and failed in all parts, and the number of failures by reason."""
    counts: Counter[str] = Counter(read=0, failed=0)
    reasons: Counter[str] = Counter()
    for manifest in manifests:
        counts.update({name: manifest.counts[name] for name in ("read", "failed")})
        reasons.update(manifest.notes["reasons"])
    return counts, dict(reasons)


def failures(staging: Staging, manifests: Iterable[PartManifest]) -> Iterator[pa.Table]:
    """Yield a table of failures (`FAILURE_SCHEMA`) for each part that has some."""
    for manifest in manifests:
        if manifest.counts["failed"]:
            part = read_part(staging.parts, manifest.key, FAILURE_ARRAYS)
            yield pa.table([part[name] for name in FAILURE_ARRAYS], schema=FAILURE_SCHEMA)


def write_tables(
    staging: Staging,
    manifests: Iterable[PartManifest],
    sources: Sequence[Rows],
    selection: Selection,
    base: Sequence[GraphStore],
) -> None:
    """Write the failures and duplicates tables of the store.

    Args:
        staging: Folders of the run.
        manifests: Manifests of the parts of the run.
        sources: Sources of the rows of the store.
        selection: Which of the rows are kept.
        base: Stores whose tables come first.
    """
    with pq.ParquetWriter(staging.store / FAILURES_FILE, FAILURE_SCHEMA) as writer:
        for store in base:
            writer.write_table(store.table(FAILURES_FILE))
        for table in failures(staging, manifests):
            writer.write_table(table)
    dropped = np.flatnonzero(~selection.keep)
    origins = _origins(sources, selection, dropped)
    originals = _origins(sources, selection, selection.first[dropped])
    columns = [list(column) for column in zip(*origins, strict=True)] or [[], [], []]
    with pq.ParquetWriter(staging.store / DUPLICATES_FILE, DUPLICATE_SCHEMA) as writer:
        for store in base:
            writer.write_table(store.table(DUPLICATES_FILE))
        writer.write_table(pa.table([*columns, [name for _, _, name in originals]], schema=DUPLICATE_SCHEMA))


def _origins(sources: Sequence[Rows], selection: Selection, rows: NDArray[np.int64]) -> list[tuple[str, int, str]]:
    """Return source, source_index and structure_id of structures, given their indices across all sources."""
    found: list[tuple[str, int, str]] = [("", 0, "")] * len(rows)
    places = np.searchsorted(selection.offsets, rows, side="right") - 1
    for place in np.unique(places):
        part = sources[int(place)].read(("source", "source_index", "structure_id"))
        for out in np.flatnonzero(places == place):
            row = int(rows[out] - selection.offsets[place])
            found[out] = (str(part["source"][row]), int(part["source_index"][row]), str(part["structure_id"][row]))
    return found
