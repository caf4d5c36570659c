"""Content of a report: counts, distributions and the best rows of a dataset, read chunk by chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.formula import Formula
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError, StoreError
from ...pipeline.plain_text import one_line
from ...pipeline.provenance import resolved_path
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.tables import FAILURES_FILE
from ...pipeline.suggestions import unknown_name
from ..dataset.default_ranking import ENERGY_PER_ATOM, default_ranking
from ..dataset.reader import ScoresReader
from ..dataset.scores import UNRELAXED
from ..dataset.ties import best_first

# Energies above hull (eV/atom) that define a hit and a close hit.
NEAR, CLOSE = 0.1, 0.05
_BINS = 60
# A histogram spans these quantiles of a sample of this many rows; values beyond them are counted in the first and last
# bin. Otherwise, a few extreme values would squeeze all others into one bin.
_SPAN, _SAMPLE = (0.002, 0.998), 100_000
# Number of reasons for failures that are listed one by one; all others are counted together.
_REASONS = 6


@dataclass(frozen=True, slots=True)
class Distribution:
    """Histogram of a column.

    Attributes:
        name: Name of the column.
        units: Units of its values.
        edges: float64[n + 1], edges of the bins.
        counts: int64[n], values per bin; values beyond an end are in the bin at that end.
    """

    name: str
    units: str
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ReportContent:
    """Numbers of a report.

    Attributes:
        value: Column of the energies that are shown; candidates are ranked by it, lowest first, if `is_ranking`.
        is_ranking: Whether the candidates can be compared by that column.
        by_default: Whether that column is the default, not one that the user named.
        has_hull: Whether that column is an energy above hull.
        lower_bound: Whether the hull is built from candidates and elements only, without references.
        scored: Number of rows with a value.
        near: Number of rows within `NEAR` of the hull.
        below: Number of rows below the hull.
        funnel: Steps of the screen, each with the number of structures left after it.
        distributions: Histograms of energies and uncertainties.
        element_hits: Number of structures near the hull that contain each element.
        best: int64[at most top], rows of the best candidates.
        losses: Reasons why structures of the source are not ranked, each with the number of structures.
        recall: Sentence about the recall of a cascade; empty for other datasets.
    """

    value: str
    is_ranking: bool
    by_default: bool
    has_hull: bool
    lower_bound: bool
    scored: int
    near: int
    below: int
    funnel: tuple[tuple[str, int], ...]
    distributions: tuple[Distribution, ...]
    element_hits: Mapping[str, int]
    best: NDArray[np.int64]
    losses: tuple[tuple[str, int], ...]
    recall: str


@dataclass
class _Tally:
    """Counts that are summed over the chunks."""

    scored: int = 0
    near: int = 0
    close: int = 0
    below: int = 0
    new: int = 0


def read_content(rows: ScoresReader, top: int, by: str | None = None) -> ReportContent:
    """Read the content of a report.

    Args:
        rows: Reader of the dataset.
        top: Largest number of candidates in the table.
        by: Column to rank by, lowest first; None uses `default_ranking`.

    Raises:
        ConfigError: The dataset has no such numeric column.
        StoreError: The dataset is damaged, or has no energies.
    """
    numbers = [name for name, spec in rows.specs.items() if spec.dtype.startswith("float") and len(spec.dims) == 1]
    if by is not None and by not in numbers:
        raise ConfigError(f"{rows.path}: {unknown_name('numeric column', by, numbers)}")
    ranking = by or default_ranking(rows)
    value = ranking or ENERGY_PER_ATOM
    if value not in rows.specs:
        raise StoreError(f"{rows.path} has no energies to report; use the scores of a model that predicts energies")
    has_hull = value.startswith("energy_above_")
    tally, formulas = _Tally(), Counter[str]()
    best, best_values = np.zeros(0, dtype=np.int64), np.zeros(0)
    for start, stop, values in _values(rows, value):
        usable = np.isfinite(values)
        tally.scored += int(usable.sum())
        hits = usable & (values <= NEAR) if has_hull else usable
        formulas.update(rows.column("formula", start, stop)[hits].tolist())
        if has_hull:
            _count_distances(rows, start, stop, np.where(usable, values, np.inf), tally)
        taken = np.flatnonzero(usable if ranking else np.zeros_like(usable))
        best = np.concatenate([best, taken + start])
        best_values = np.concatenate([best_values, values[taken]])
        order = best_first(rows, best, best_values)[:top]
        best, best_values = best[order], best_values[order]
    suffix = UNRELAXED if value.endswith(UNRELAXED) else ""
    source = _source(rows)
    spread = f"energy_above_hull_std{suffix}" if f"energy_above_hull_std{suffix}" in rows.specs else "energy_std"
    return ReportContent(
        value=value,
        is_ranking=ranking is not None,
        by_default=by is None,
        has_hull=has_hull,
        lower_bound=bool((rows.attrs.get("hull") or {}).get("lower_bound")),
        scored=tally.scored,
        near=tally.near,
        below=tally.below,
        funnel=tuple(_funnel(rows, tally, source, has_hull=has_hull)),
        distributions=tuple(_distribution(rows, name) for name in (value, spread) if name in rows.specs),
        element_hits=_elements(formulas),
        best=best,
        losses=(*_not_stored(source), *_not_ok(rows)),
        recall=_recall(rows.attrs),
    )


def _values(rows: ScoresReader, name: str) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
    """Yield the chunks of a column, with NaN for rows whose status is not ok."""
    status = rows.energy_status
    ok = rows.meanings(status)["ok"]
    for start, stop in rows.chunks():
        values = np.asarray(rows.column(name, start, stop), dtype=np.float64)
        yield start, stop, np.where(rows.column(status, start, stop) == ok, values, np.nan)


def _count_distances(rows: ScoresReader, start: int, stop: int, above: NDArray[np.float64], tally: _Tally) -> None:
    tally.near += int((above <= NEAR).sum())
    tally.close += int((above <= CLOSE).sum())
    tally.below += int((above < 0).sum())
    if "novelty" in rows.specs:
        known = rows.meanings("novelty")["known"]
        tally.new += int(((above <= CLOSE) & (rows.column("novelty", start, stop) != known)).sum())


def _funnel(
    rows: ScoresReader, tally: _Tally, source: GraphStore | None, *, has_hull: bool
) -> Iterator[tuple[str, int]]:
    """Yield the steps from the source to the best candidates."""
    cascade = rows.attrs.get("cascade")
    if cascade:
        yield "screened by the fast model", int(cascade["screened"])
        yield "kept by the fast model, plus audited", int(cascade["kept"]) + int(cascade["recall"]["audited"])
    elif source is not None and "read" in source.attrs.get("counts", {}):
        yield "read", int(source.attrs["counts"]["read"])
        yield "stored as graphs", int(source.attrs["counts"]["stored"])
    yield "rows of this dataset", len(rows)
    yield "scored", tally.scored
    if has_hull:
        yield f"within {NEAR} eV/atom of the hull", tally.near
        yield f"within {CLOSE} eV/atom of the hull", tally.close
        if "novelty" in rows.specs:
            yield f"within {CLOSE} eV/atom and not known", tally.new


def _source(rows: ScoresReader) -> GraphStore | None:
    """Return the graph store that structures were read into; None if it cannot be found."""
    try:
        if "relaxed_from" not in rows.attrs:
            return rows.graphs
        origin = rows.attrs["relaxed_from"]
        store = GraphStore(resolved_path(str(origin["path"]), rows.path))
        return store if store.store_hash == origin["store_hash"] else None
    except StoreError:
        return None


def _not_stored(source: GraphStore | None) -> Iterator[tuple[str, int]]:
    """Yield why structures of the source are not stored as graphs, the most frequent reasons first."""
    counts = {} if source is None else source.attrs.get("counts", {})
    if source is not None and counts.get("failed"):
        reasons = Counter(source.table(FAILURES_FILE)["reason"].to_pylist())
        named = reasons.most_common(_REASONS)
        yield from ((f"not read: {one_line(reason)}", count) for reason, count in named)
        rest = int(counts["failed"]) - sum(count for _, count in named)
        if rest > 0:
            yield "not read: other reasons, listed in the store's failures.parquet", rest
    if counts.get("duplicate"):
        yield "duplicates of other structures", int(counts["duplicate"])


def _not_ok(rows: ScoresReader) -> Iterator[tuple[str, int]]:
    """Yield the outcomes other than ok, of scoring or relaxation and then of the hull, with their counts."""
    for name in (rows.energy_status, "hull_status"):
        if name not in rows.specs:
            continue
        words = {value: word.replace("_", " ") for word, value in rows.meanings(name).items()}
        found = Counter[str]()
        for start, stop in rows.chunks():
            found.update(words.get(value, "?") for value in rows.column(name, start, stop).tolist())
        yield from (one for one in found.most_common() if one[0] != "ok")


def _distribution(rows: ScoresReader, name: str) -> Distribution:
    units = str(rows.specs[name].attrs.get("units", ""))
    stride = max(1, len(rows) // _SAMPLE)
    sample = np.concatenate([values[::stride][np.isfinite(values[::stride])] for _, _, values in _values(rows, name)])
    low, high = np.quantile(sample, _SPAN).tolist() if len(sample) else (0.0, 0.0)
    if not low < high:
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    counts = np.zeros(_BINS, dtype=np.int64)
    for _, _, values in _values(rows, name):
        counts += np.histogram(np.clip(values[np.isfinite(values)], low, high), edges)[0]
    return Distribution(name, units, edges, counts)


def _elements(formulas: Mapping[str, int]) -> dict[str, int]:
    found = Counter[str]()
    for formula, count in formulas.items():
        for symbol in Formula(formula).count():
            found[symbol] += count
    return dict(found)


def _recall(attrs: Mapping[str, Any]) -> str:
    found = (attrs.get("cascade") or {}).get("recall")
    if not found or found["value"] is None:
        return ""
    return (
        f"The cascade found an estimated {found['value']:.1%} of the hits that the accurate model alone would have "
        f"found ({found['confidence']:.0%} interval {found['low']:.1%} to {found['high']:.1%}, from an audit of "
        f"{found['audited']:,} rejected structures)."
    )
