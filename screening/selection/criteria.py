"""Which rows of a scores dataset are chosen: conditions, rank, and at most so many of a kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ..chemistry.elements import chemical_system, elements_of, parse_elements
from ..dataset.reader import ScoresReader
from .derived_columns import OF_FORMULA, OF_KNOWN, OF_STRUCTURE, ROLE, DerivedColumns
from .filter_expression import parse_filter
from .filter_terms import Filter
from .novelty import KnownCrystals
from .ranking import Measure, Quota, best_first, fronts, pareto_measures
from .variables import variable_of, variables_of

_BATCH = 512
# With no more to do than to take the first N, so many rows more than N are kept before the worst are forgotten.
_SLACK = 1_000_000
OF_OTHER_COMPOSITIONS = (
    "ranked by energy_per_atom, which says little of structures of different compositions; `equiscreen hull` gives "
    "energies above the hull"
)


@dataclass(frozen=True)
class SelectionCriteria:
    """What was said.

    Attributes:
        early: Conditions on the columns of the scores.
        late: Conditions that need a column which a selection adds.
        measure: What rows are ranked by.
        pareto: Or what a front is of.
        top: How many rows.
        only, some, none: Atomic numbers that a structure consists of, has one of, has none of; empty if not asked for.
        per_system: At most so many of a chemical system.
        per_prototype: At most so many of a prototype.
        known: Path of the known crystals.
        statuses: Whether only rows of status ok take part.
        words: All of it as it was said.
        notes: What one should know of it.
    """

    early: Filter
    late: Filter
    measure: Measure
    pareto: tuple[Measure, ...]
    top: int | None
    only: frozenset[int]
    some: frozenset[int]
    none: frozenset[int]
    per_system: int | None
    per_prototype: int | None
    known: str | Path | None
    statuses: bool
    words: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, scores: ScoresReader, **words: Any) -> SelectionCriteria:
        """Understand what was said.

        Args:
            scores: The dataset.
            words: The arguments of `selection.select` that say what to choose.

        Raises:
            ConfigError: It cannot be meant.
        """
        for name in ("top", "per_system", "per_prototype"):
            if words[name] is not None and words[name] < 1:
                raise ConfigError(f"{name} of {words[name]}; it is 1 or more")
        added = (*OF_FORMULA, *OF_STRUCTURE, *(OF_KNOWN if words["known"] is not None else ()))
        late = {spec.name: variable_of(spec) for spec in added if _is_free(scores, spec.name)}
        text = words["where"]
        given = Filter("", ()) if text is None else parse_filter(text, {**variables_of(scores), **late})
        pareto = pareto_measures(scores, _sequence(words["pareto"]))
        weight = words["uncertainty_weight"]
        if pareto and weight:
            raise ConfigError("an uncertainty weight belongs to one ranking column; leave it or --pareto out")
        measure = pareto[0] if pareto and words["by"] is None else Measure.of(scores, words["by"], weight)
        early, other = given.divided(frozenset(late))
        unsaid = words["by"] is None and not pareto and measure.name == "energy_per_atom"
        return cls(
            early=early,
            late=other,
            measure=measure,
            pareto=pareto,
            top=words["top"],
            only=parse_elements(_sequence(words["allowed_elements"])),
            some=parse_elements(_sequence(words["required_elements"])),
            none=parse_elements(_sequence(words["excluded_elements"])),
            per_system=words["per_system"],
            per_prototype=words["per_prototype"],
            known=words["known"],
            statuses="status" not in given.names,
            words={name: str(value) if isinstance(value, Path) else value for name, value in words.items()},
            notes=(OF_OTHER_COMPOSITIONS,) if unsaid else (),
        )

    @property
    def text(self) -> str:
        """What is ranked by, in words."""
        if not self.pareto:
            return self.measure.text
        columns = ", ".join(f"{'-' if one.descending else ''}{one.name}" for one in self.pareto)
        return f"Pareto fronts of {columns}, then {self.measure.text}"

    @property
    def columns(self) -> frozenset[str]:
        """Of the scores, that are read of every row."""
        ranked = {name for one in (self.measure, *self.pareto) for name in one.columns}
        formula = {"formula"} if self.only or self.some or self.none else set()
        return frozenset({"status", *ranked, *formula, *self.early.names})

    @property
    def simple(self) -> bool:
        """Whether nothing but the rank decides what is taken of the rows that fulfil the early conditions."""
        return not (self.pareto or self.late.conjuncts or self.per_system or self.per_prototype)


@dataclass
class Chosen:
    """The rows that were chosen, in the order in which they are written.

    Attributes:
        rows: int64[n], of the scores.
        rank: int64[n], from 1.
        value: float64[n], lower is better.
        front: int32[n], of the Pareto front, if there is any.
        left_out: How many rows were left out, by the first reason that they met.
        derived: The columns that are added to them.
        known: Known crystals.
    """

    rows: NDArray[np.int64]
    rank: NDArray[np.int64]
    value: NDArray[np.float64]
    front: NDArray[np.int32] | None
    left_out: Mapping[str, int]
    derived: DerivedColumns
    known: KnownCrystals | None


@dataclass
class _Survivors:
    """Rows that fulfil the early conditions, ascending, and their numbers: float64[n, 1 + columns of a front]."""

    rows: NDArray[np.int64]
    points: NDArray[np.float64]
    left_out: Counter[str] = field(default_factory=Counter)

    def take(self, places: NDArray[Any], reason: str = "") -> None:
        """Keep some places; the others are left out for a reason."""
        kept = self.rows[places]
        if reason:
            self.left_out[reason] += len(self.rows) - len(kept)
        self.rows, self.points = kept, self.points[places]


def choose(scores: ScoresReader, criteria: SelectionCriteria) -> Chosen:
    """Choose rows.

    Raises:
        StoreError: The scores, their graph store or the known crystals cannot be read.
        ConfigError: A package that is needed is not installed.
    """
    known = None if criteria.known is None else KnownCrystals(criteria.known)
    derived = DerivedColumns(scores, known, criteria.late.names)
    found = _survey(scores, criteria)
    front = None
    if criteria.pareto:
        if criteria.late.conjuncts:  # what does not count cannot dominate
            found.take(_holding(found.rows, criteria, derived), "--where")
        enough = criteria.top if not (criteria.per_system or criteria.per_prototype) else len(found.rows)
        front = fronts(found.points[:, 1:], enough if criteria.top is not None else None)
        order = np.lexsort((found.points[:, 0], np.where(front == 0, np.iinfo(np.int32).max, front)))
        order = order[front[order] > 0]
        dominated = len(found.rows) - len(order)
        found.left_out[_beyond(criteria.top) if criteria.top else "dominated"] += dominated
    else:
        order = best_first(found.points[:, 0])
    taken = _walk(scores, criteria, derived, found, order)
    rank = np.arange(1, len(taken) + 1)
    if criteria.top is None:  # back in the order of the scores
        back = np.argsort(found.rows[taken], kind="stable")
        taken, rank = taken[back], rank[back]
    return Chosen(
        found.rows[taken],
        rank,
        found.points[taken, 0],
        None if front is None else front[taken],
        dict(found.left_out),
        derived,
        known,
    )


def _survey(scores: ScoresReader, criteria: SelectionCriteria) -> _Survivors:
    """All rows once, a chunk at a time, with no more than the columns that are asked for."""
    found = _Survivors(np.empty(0, dtype=np.int64), np.empty((0, 1 + len(criteria.pareto))))
    rows, points = [found.rows], [found.points]
    kept = 0
    for start, stop in scores.chunks():
        columns = {name: scores.column(name, start, stop) for name in sorted(criteria.columns)}
        places, values = _surviving(scores, criteria, columns, stop - start, found.left_out)
        rows.append(places + start)
        points.append(values)
        kept += len(places)
        if criteria.simple and criteria.top is not None and kept > criteria.top + _SLACK:
            found.rows, found.points = np.concatenate(rows), np.concatenate(points)
            best = np.sort(best_first(found.points[:, 0])[: criteria.top])
            found.take(best, _beyond(criteria.top))
            rows, points, kept = [found.rows], [found.points], len(best)
    found.rows, found.points = np.concatenate(rows), np.concatenate(points)
    return found


def _surviving(
    scores: ScoresReader,
    criteria: SelectionCriteria,
    columns: dict[str, NDArray[Any]],
    size: int,
    left_out: Counter[str],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Places among some rows that fulfil the early conditions, and their numbers; counts the others."""
    alive = np.ones(size, dtype=bool)

    def drop(good: NDArray[np.bool_], reason: str) -> None:
        left_out[reason] += int((alive & ~good).sum())
        np.logical_and(alive, good, out=alive)

    if criteria.statuses:
        for word, value in scores.meanings("status").items():
            if word != "ok":
                drop(columns["status"] != value, f"{word.replace('_', ' ')} (status)")
    if "formula" in columns and (criteria.only or criteria.some or criteria.none):
        drop(_of_elements(criteria, columns["formula"]), "of other elements")
    if criteria.early.conjuncts:
        drop(criteria.early.holds(columns, size), "--where")
    measures = (criteria.measure, *criteria.pareto)
    points = np.stack([one.values(columns) for one in measures], axis=1)
    for one, values in zip(measures, points.T, strict=True):
        drop(np.isfinite(values), f"without {one.name}")
    places = np.flatnonzero(alive)
    return places, points[places]


def _of_elements(criteria: SelectionCriteria, formulas: NDArray[Any]) -> NDArray[np.bool_]:
    """Which formulas consist of the elements that are asked for."""
    known: dict[str, bool] = {}
    out = np.empty(len(formulas), dtype=bool)
    for place, formula in enumerate(formulas.tolist()):
        good = known.get(formula)
        if good is None:
            elements = elements_of(formula)
            good = not (elements & criteria.none) and (not criteria.only or elements <= criteria.only)
            good = known[formula] = good and (not criteria.some or bool(elements & criteria.some))
        out[place] = good
    return out


def _holding(rows: NDArray[np.int64], criteria: SelectionCriteria, derived: DerivedColumns) -> NDArray[np.bool_]:
    """For which rows the late conditions hold."""
    out = [np.empty(0, dtype=bool)]
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        out.append(criteria.late.holds(derived.columns(criteria.late.names, some), len(some)))
    return np.concatenate(out)


def _walk(
    scores: ScoresReader,
    criteria: SelectionCriteria,
    derived: DerivedColumns,
    found: _Survivors,
    order: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Places in the order of rank that are taken, until there are enough; the rest is counted as left out."""
    wanted = len(order) if criteria.top is None else min(criteria.top, len(order))
    if not (criteria.per_system or criteria.per_prototype or (criteria.late.conjuncts and not criteria.pareto)):
        found.left_out[_beyond(criteria.top)] += len(order) - wanted
        return order[:wanted]
    systems, prototypes = Quota(criteria.per_system), Quota(criteria.per_prototype)
    taken: list[int] = []
    at = 0
    while at < len(order) and len(taken) < wanted:
        some = order[at : at + _BATCH]
        rows = found.rows[some]
        good = np.ones(len(some), dtype=bool) if criteria.pareto else _holding(rows, criteria, derived)
        kinds = _kinds(scores, criteria, derived, rows)
        for place, holds, system, label in zip(some.tolist(), good.tolist(), *kinds, strict=True):
            if len(taken) == wanted:
                break
            at += 1
            if not holds:
                found.left_out["--where"] += 1
            elif systems.full(system):
                found.left_out[f"more than {criteria.per_system} of a chemical system"] += 1
            elif prototypes.full(label):
                found.left_out[f"more than {criteria.per_prototype} of a prototype"] += 1
            else:
                systems.take(system)
                prototypes.take(label)
                taken.append(place)
    found.left_out[_beyond(criteria.top)] += len(order) - at
    return np.array(taken, dtype=np.int64)


def _kinds(
    scores: ScoresReader, criteria: SelectionCriteria, derived: DerivedColumns, rows: NDArray[np.int64]
) -> tuple[list[str], list[str]]:
    """Chemical system and prototype of rows, where there is a limit on them."""
    nothing = [""] * len(rows)
    systems, labels = nothing, nothing
    if criteria.per_system:
        systems = [chemical_system(formula) for formula in scores.rows("formula", rows).tolist()]
    if criteria.per_prototype:
        labels = derived.columns(["prototype_label"], rows)["prototype_label"].tolist()
    return systems, labels


def _beyond(top: int | None) -> str:
    return f"beyond the first {top:,}" if top is not None else "beyond"


def _is_free(scores: ScoresReader, name: str) -> bool:
    """Whether a column of the name is for a selection to make."""
    spec = scores.specs.get(name)
    return spec is None or spec.attrs.get("role") == ROLE


def _sequence(given: Sequence[str] | str) -> Sequence[str]:
    return [given] if isinstance(given, str) else given
