"""Estimates of the time, disk space and memory of a featurization, extrapolated from a sample."""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..readers.records import ReadOptions
from ..runs.cluster import IN_PROCESS
from ..sources.discovery import find_files, is_server
from .featurize import featurize
from .partitions import count_records

ESTIMATE_RECORDS = 500


@dataclass(frozen=True, slots=True)
class FeaturizeEstimate:
    """Estimated cost of a run, from a sample of its first records.

    Attributes:
        records: Number of records in all sources.
        seconds: Time on one core, without the time to start workers.
        bytes_on_disk: Size of the store.
        bytes_in_memory: Memory that one worker needs.
    """

    records: int
    seconds: float
    bytes_on_disk: int
    bytes_in_memory: int

    def __str__(self) -> str:
        return (
            f"{self.records:,} records: about {self.seconds:,.0f} s on one core, "
            f"{self.bytes_on_disk / 1e6:,.1f} MB on disk, {self.bytes_in_memory / 1e6:,.0f} MB of memory per worker"
        )


def estimate(sources: Sequence[str | Path], **settings: Any) -> FeaturizeEstimate:
    """Estimate the cost of a featurization by featurizing the first records into a scratch store.

    Args:
        sources: Sources, as for `featurize`.
        **settings: Settings, as for `featurize`; with `limit`, the estimate is for at most that many records.

    Raises:
        SourceError: As for `featurize`; or a source is a server, which does not report its number of records.
        LabelError: As for `featurize`.
    """
    form = (settings.get("options") or ReadOptions()).format
    live = [str(source) for source in sources if is_server(str(source))]
    if live:
        raise SourceError(
            f"{live[0]}: the number of structures on a server is unknown before the download, so there is no estimate; "
            "run without --estimate, and with --limit to download only some"
        )
    n_records = count_records(find_files(sources, form), settings.pop("limit", None) or sys.maxsize)
    with tempfile.TemporaryDirectory() as scratch:
        report = featurize(
            sources,
            Path(scratch) / "sample.zarr",
            limit=min(ESTIMATE_RECORDS, n_records),
            scheduler=IN_PROCESS,
            **settings,
        )
    scale = max(n_records, report.read) / report.read
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return FeaturizeEstimate(
        max(n_records, report.read), report.seconds * scale, round(report.bytes_on_disk * scale), memory
    )
