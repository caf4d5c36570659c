"""Default paths of outputs beside a scores dataset."""

from __future__ import annotations

from pathlib import Path

from ...pipeline.redaction import redact_urls, without_query


def hull_path(scores: str | Path) -> str:
    """Default path of the hull of scores: ``S.hull.zarr`` for ``S.zarr``."""
    return f"{str(scores).rstrip('/').removesuffix('.zarr')}.hull.zarr"


def graphs_path(out: str | Path) -> str:
    """Path of the graph store of a screen's or relaxation's output: ``S.graphs.zarr`` for ``S.zarr``."""
    return f"{str(out).rstrip('/').removesuffix('.zarr')}.graphs.zarr"


def report_path(scores: str | Path) -> str:
    """Default path of a report: ``S.report.html`` for ``S.zarr``; in the current folder if the scores are at a URL."""
    path = without_query(redact_urls(str(scores))).rstrip("/").removesuffix(".zarr")
    return f"{path.rsplit('/', 1)[-1] if '://' in path else path}.report.html"
