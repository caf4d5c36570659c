"""Paths of scores datasets, and default paths of the outputs beside them."""

from __future__ import annotations

import json
from pathlib import Path

from ...pipeline.errors import StoreError
from ...pipeline.redaction import redact_urls, without_query
from .scores import SCORES_SCHEMA

# Names of the last dataset in a folder of results, the most complete first.
_LAST = ("result.zarr", "hull.zarr", "relaxed.hull.zarr", "scores.hull.zarr", "relaxed.zarr", "scores.zarr")
_ROOT = "zarr.json"


def dataset_in(path: str | Path) -> str | Path:
    """Return the scores dataset at a path: the path itself, or the last dataset in a folder of results.

    A results folder is the output of `select`, `cascade` or `rank`, or any folder with a single scores dataset.

    Args:
        path: Path of a dataset or a folder, or the URL of a dataset, which is returned unchanged.

    Raises:
        StoreError: The folder holds no scores dataset, or several, none of which has a usual name.
    """
    folder = Path(path)
    if "://" in str(path) or not folder.is_dir() or (folder / _ROOT).exists():
        return path
    found = [one for one in sorted(folder.iterdir()) if _is_scores(one)]
    names = [one.name for one in found]
    usual = next((folder / name for name in _LAST if name in names), None)
    if usual is not None:
        return usual
    found = [one for one in found if Path(hull_path(one)) not in found]  # a hull holds all columns of its scores
    if len(found) > 1:
        raise StoreError(f"{path} holds several scores datasets; choose one: {', '.join(map(str, found))}")
    if not found:
        raise StoreError(
            f"{path} holds no scores dataset from `equiscreen screen`, `relax`, `hull` or `select`; give the path of "
            "the dataset itself, or, for a selection, repeat `select` with `zarr` among its formats"
        )
    return found[0]


def _is_scores(path: Path) -> bool:
    """Return whether a path looks like a scores dataset, even a damaged one, so that opening it reports the damage."""
    try:
        attrs = json.loads((path / _ROOT).read_bytes())["attributes"]
        return attrs.get("schema") == SCORES_SCHEMA and attrs.get("complete") is True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return path.name in _LAST and path.is_dir()


def hull_path(scores: str | Path) -> str:
    """Return the default path of the hull of scores: ``S.hull.zarr`` for ``S.zarr``."""
    return f"{str(scores).rstrip('/').removesuffix('.zarr')}.hull.zarr"


def graphs_path(out: str | Path) -> str:
    """Return the path of the graph store of a screen's or relaxation's output: ``S.graphs.zarr`` for ``S.zarr``."""
    return f"{str(out).rstrip('/').removesuffix('.zarr')}.graphs.zarr"


def report_path(scores: str | Path) -> str:
    """Return a report's default path, ``S.report.html`` for ``S.zarr``; for a URL, it is in the current folder."""
    path = without_query(redact_urls(str(scores))).rstrip("/").removesuffix(".zarr")
    return f"{path.rsplit('/', 1)[-1] if '://' in path else path}.report.html"
