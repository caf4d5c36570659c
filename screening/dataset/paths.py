"""Default paths of what stands beside a scores dataset."""

from __future__ import annotations

from pathlib import Path


def hull_path(scores: str | Path) -> str:
    """Where the hull of scores goes if nothing is said: ``S.hull.zarr`` for ``S.zarr``."""
    return f"{str(scores).rstrip('/').removesuffix('.zarr')}.hull.zarr"


def graphs_path(out: str | Path) -> str:
    """Where the graphs of files stand whose scores go to `out`: ``S.graphs.zarr`` for ``S.zarr``."""
    return f"{str(out).rstrip('/').removesuffix('.zarr')}.graphs.zarr"


def report_path(scores: str | Path) -> str:
    """Where a report goes if nothing is said: ``S.report.html`` for ``S.zarr``, of a URL into the current folder."""
    path = str(scores).rstrip("/").removesuffix(".zarr")
    return f"{path.rsplit('/', 1)[-1] if '://' in path else path}.report.html"
