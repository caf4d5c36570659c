"""What a report says: counts, distributions and the best rows of a dataset, read chunk by chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.formula import Formula
from numpy.typing import NDArray

from ...pipeline.errors import StoreError
from ..dataset.reader import ScoresReader

# Distances from the hull, eV/atom, that a screen is judged by.
NEAR, CLOSE = 0.1, 0.05
_BINS = 60
# A histogram spans these quantiles of a sample of so many rows; what lies beyond is counted in its first and last bin.
# A few nonsense structures would squeeze all others into one bin.
_SPAN, _SAMPLE = (0.002, 0.998), 100_000
_HULL = ("energy_above_hull", "energy_above_hull_unrelaxed")
_SHOWN = (
    "energy_above_hull",
    "energy_above_hull_std",
    "probability_below_hull",
    "energy_above_joint_hull",
    "formation_energy_per_atom",
    "energy_per_atom",
)
_SHOWN_LAST = ("max_force", "volume_change", "space_group", "decomposition", "novelty", "known_as", "charge_neutral")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram.

    Attributes:
        name: Of the column.
        units: Of its values.
        edges: float64[n + 1].
        counts: int64[n]; values beyond an end are in the bin there.
    """

    name: str
    units: str
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ReportContent:
    """All numbers of a report.

    Attributes:
        value: Column that candidates are ranked by, lowest first.
        has_hull: Whether that is a distance from the hull.
        lower_bound: Whether candidates alone make the hull.
        scored: Rows that have a value.
        near: Rows within `NEAR` of the hull.
        below: Rows below it.
        funnel: Steps and what is left after each.
        distributions: Of energies and uncertainties.
        element_hits: How many formulas' structures near the hull have each element.
        best: int64[at most top], rows of the best candidates.
        shown: Columns of the table of candidates.
        recall: A sentence on what a cascade has found of what it would have, or nothing.
    """

    value: str
    has_hull: bool
    lower_bound: bool
    scored: int
    near: int
    below: int
    funnel: tuple[tuple[str, int], ...]
    distributions: tuple[Distribution, ...]
    element_hits: Mapping[str, int]
    best: NDArray[np.int64]
    shown: tuple[str, ...]
    recall: str


@dataclass
class _Tally:
    """What is added up over the chunks."""

    scored: int = 0
    near: int = 0
    close: int = 0
    below: int = 0
    new: int = 0


def read_content(rows: ScoresReader, top: int) -> ReportContent:
    """Read what a report says.

    Args:
        rows: Of the dataset.
        top: Candidates to show.

    Raises:
        StoreError: The dataset is damaged, or has no energies.
    """
    value = next((name for name in (*_HULL, "energy_per_atom") if name in rows.specs), None)
    if value is None:
        raise StoreError(f"{rows.path}: has neither distances from a hull nor energies; there is nothing to report")
    has_hull = value in _HULL
    tally, formulas = _Tally(), Counter[str]()
    best, best_values = np.zeros(0, dtype=np.int64), np.zeros(0)
    for start, stop, values in _values(rows, value):
        usable = np.isfinite(values)
        tally.scored += int(usable.sum())
        hits = usable & (values <= NEAR) if has_hull else usable
        formulas.update(rows.column("formula", start, stop)[hits].tolist())
        if has_hull:
            _count_distances(rows, start, stop, np.where(usable, values, np.inf), tally)
        taken = np.flatnonzero(usable)
        best = np.concatenate([best, taken + start])
        best_values = np.concatenate([best_values, values[taken]])
        order = np.argsort(best_values, kind="stable")[:top]
        best, best_values = best[order], best_values[order]
    suffix = "_unrelaxed" if value.endswith("_unrelaxed") else ""
    shown = [name + (suffix if name + suffix in rows.specs else "") for name in _SHOWN]
    spread = f"energy_above_hull_std{suffix}" if f"energy_above_hull_std{suffix}" in rows.specs else "energy_std"
    return ReportContent(
        value=value,
        has_hull=has_hull,
        lower_bound=bool((rows.attrs.get("hull") or {}).get("lower_bound")),
        scored=tally.scored,
        near=tally.near,
        below=tally.below,
        funnel=tuple(_funnel(rows, tally, has_hull=has_hull)),
        distributions=tuple(_distribution(rows, name) for name in (value, spread) if name in rows.specs),
        element_hits=_elements(formulas),
        best=best,
        shown=(*shown, *_SHOWN_LAST),
        recall=_recall(rows.attrs),
    )


def _values(rows: ScoresReader, name: str) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
    """Chunks of a column; NaN where the row has no score that counts."""
    ok = rows.meanings("status")["ok"]
    for start, stop in rows.chunks():
        values = np.asarray(rows.column(name, start, stop), dtype=np.float64)
        yield start, stop, np.where(rows.column("status", start, stop) == ok, values, np.nan)


def _count_distances(rows: ScoresReader, start: int, stop: int, above: NDArray[np.float64], tally: _Tally) -> None:
    tally.near += int((above <= NEAR).sum())
    tally.close += int((above <= CLOSE).sum())
    tally.below += int((above < 0).sum())
    if "novelty" in rows.specs:
        known = rows.meanings("novelty")["known"]
        tally.new += int(((above <= CLOSE) & (rows.column("novelty", start, stop) != known)).sum())


def _funnel(rows: ScoresReader, tally: _Tally, *, has_hull: bool) -> Iterator[tuple[str, int]]:
    """Steps from the source to the best."""
    cascade = rows.attrs.get("cascade")
    if cascade:
        yield "screened by the fast model", int(cascade["screened"])
        yield "kept by it, and audited", int(cascade["kept"]) + int(cascade["recall"]["audited"])
    else:
        yield from _stored(rows)
    yield "rows of this dataset", len(rows)
    yield "scored", tally.scored
    if has_hull:
        yield f"within {NEAR} eV/atom of the hull", tally.near
        yield f"within {CLOSE} eV/atom of the hull", tally.close
        if "novelty" in rows.specs:
            yield f"not known, within {CLOSE} eV/atom", tally.new


def _stored(rows: ScoresReader) -> Iterator[tuple[str, int]]:
    """What became of the source, if the graph store is within reach."""
    try:
        counts = rows.graphs.attrs.get("counts", {})
    except StoreError:
        return
    if "read" in counts:
        yield "read", int(counts["read"])
        yield "stored as graphs", int(counts["stored"])


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
        f"The cascade found an estimated {found['value']:.1%} of what the accurate model alone would have "
        f"({found['confidence']:.0%} interval {found['low']:.1%} to {found['high']:.1%}, from {found['audited']:,} "
        "rejected structures that were checked)."
    )
