"""Choice of rows of a scores dataset: the criteria, their check against a dataset, and the rows that meet them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.provenance import recorded_path
from ..chemistry.elements import chemical_system, elements_of, parse_elements
from ..dataset.reader import ScoresReader
from ..dataset.ties import best_first
from .derived_columns import OF_FORMULA, OF_KNOWN, OF_STRUCTURE, ROLE, DerivedColumns
from .filter_expression import parse_filter
from .filter_terms import Filter
from .novelty import KnownCrystals
from .ranking import Measure, Quota, fronts, pareto_measures
from .variables import variable_of, variables_of

_BATCH = 512
# If only the rank matters, this many rows beyond `top` are kept in memory before the worst ones are dropped.
_SLACK = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionCriteria:
    """Criteria of a selection, as the user gives them.

    Attributes:
        where: Filter expression.
        top: Number of rows; None for all.
        by: Column to rank by, preceded by a minus if higher is better; None uses `default_ranking`.
        allowed_elements: Symbols of the only elements that a structure may contain; if empty, all are allowed.
        any_elements: Symbols of elements, at least one of which a structure must contain; if empty, none is required.
        excluded_elements: Symbols of elements that a structure must not contain.
        pareto: Two or more columns of a Pareto front, each preceded by a minus if higher is better.
        per_system: Maximum number of rows per chemical system.
        per_prototype: Maximum number of rows per prototype.
        uncertainty_weight: Number of standard deviations by which a value is made worse before it is ranked.
        known: Path or URL of a graph store of known crystals; None without one.

    Raises:
        ConfigError: `top`, `per_system` or `per_prototype` is below 1.
    """

    where: str | None = None
    top: int | None = None
    by: str | None = None
    allowed_elements: Sequence[str] = ()
    any_elements: Sequence[str] = ()
    excluded_elements: Sequence[str] = ()
    pareto: Sequence[str] = ()
    per_system: int | None = None
    per_prototype: int | None = None
    uncertainty_weight: float = 0.0
    known: str | Path | None = None

    def __post_init__(self) -> None:
        numbers = {"top": self.top, "per_system": self.per_system, "per_prototype": self.per_prototype}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more")

    def record(self, file: Path) -> dict[str, Any]:
        """Return the criteria as they are written to `file`, which is recipe.json."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**values, "known": None if self.known is None else recorded_path(self.known, file)}


@dataclass(frozen=True, slots=True)
class SelectionPlan:
    """Criteria checked against a dataset.

    Attributes:
        criteria: The criteria.
        early: Conditions on columns of the scores.
        late: Conditions that need a derived column.
        measure: Column that rows are ranked by.
        pareto: Columns of the Pareto front, if one is requested.
        allowed: Atomic numbers of `allowed_elements`.
        required: Atomic numbers of `any_elements`.
        excluded: Atomic numbers of `excluded_elements`.
        only_ok: Whether rows need the status ok; false if the filter has a condition on the status.
    """

    criteria: SelectionCriteria
    early: Filter
    late: Filter
    measure: Measure
    pareto: tuple[Measure, ...]
    allowed: frozenset[int]
    required: frozenset[int]
    excluded: frozenset[int]
    only_ok: bool

    @classmethod
    def of(cls, scores: ScoresReader, criteria: SelectionCriteria) -> SelectionPlan:
        """Check criteria against a dataset.

        Raises:
            ConfigError: The filter or an element is invalid, the dataset lacks a column, or the criteria contradict
                each other.
        """
        added = (*OF_FORMULA, *OF_STRUCTURE, *(OF_KNOWN if criteria.known is not None else ()))
        derived = {spec.name: variable_of(spec) for spec in added if _is_free(scores, spec.name)}
        condition = Filter("", ())
        if criteria.where is not None:
            condition = parse_filter(criteria.where, {**variables_of(scores), **derived})
        early, late = condition.divided(frozenset(derived))
        pareto = pareto_measures(scores, _sequence(criteria.pareto))
        weight = criteria.uncertainty_weight
        if pareto and weight:
            raise ConfigError("an uncertainty weight needs a single ranking column; leave out the weight or --pareto")
        measure = pareto[0] if pareto and criteria.by is None else Measure.of(scores, criteria.by, weight)
        return cls(
            criteria=criteria,
            early=early,
            late=late,
            measure=measure,
            pareto=pareto,
            allowed=parse_elements(_sequence(criteria.allowed_elements)),
            required=parse_elements(_sequence(criteria.any_elements)),
            excluded=parse_elements(_sequence(criteria.excluded_elements)),
            only_ok="status" not in condition.names,
        )

    @property
    def text(self) -> str:
        """Description of the ranking."""
        if not self.pareto:
            return self.measure.text
        columns = ", ".join(f"{'-' if one.descending else ''}{one.name}" for one in self.pareto)
        return f"Pareto fronts of {columns}, then {self.measure.text}"

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the scores that are read for every row."""
        ranked = {name for one in (self.measure, *self.pareto) for name in one.columns}
        formula = {"formula"} if self.restricts_elements else set()
        return frozenset({"status", *ranked, *formula, *self.early.names})

    @property
    def restricts_elements(self) -> bool:
        """Whether there are criteria on the elements."""
        return bool(self.allowed or self.required or self.excluded)

    @property
    def has_quota(self) -> bool:
        """Whether the number of rows of one chemical system or prototype is limited."""
        return bool(self.criteria.per_system or self.criteria.per_prototype)

    @property
    def simple(self) -> bool:
        """Whether the rank alone decides which rows are chosen among those that meet the early conditions."""
        return not (self.pareto or self.late.conjuncts or self.has_quota)


@dataclass
class Chosen:
    """Chosen rows, in the order in which they are written.

    Attributes:
        rows: int64[n], rows of the scores.
        rank: int64[n], rank, from 1.
        value: float64[n], value that the rows are ranked by; lower is better.
        front: int32[n], number of the Pareto front; None if no front was requested.
        left_out: Number of rows that were not chosen, by the first reason that applied.
        derived: Columns that are added to the rows.
        known: Known crystals, if given.
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
    """Rows that meet the early conditions, ascending.

    Attributes:
        rows: int64[n], rows of the scores.
        points: float64[n, 1 + columns of the Pareto front], values that they are ranked by; lower is better.
        last: bool[n], whether a row comes last because its status marks its values as unreliable.
        left_out: Number of dropped rows by reason.
    """

    rows: NDArray[np.int64]
    points: NDArray[np.float64]
    last: NDArray[np.bool_]
    left_out: Counter[str] = field(default_factory=Counter)

    def keep(self, places: NDArray[Any], reason: str) -> None:
        """Keep the rows at some indices, and count the others as dropped for a reason."""
        kept = self.rows[places]
        self.left_out[reason] += len(self.rows) - len(kept)
        self.rows, self.points, self.last = kept, self.points[places], self.last[places]

    def best_first(self, scores: ScoresReader) -> NDArray[np.int64]:
        """Return the places in the order of their rank, which does not depend on the order of the rows."""
        return best_first(scores, self.rows, self.last, self.points[:, 0])


def choose(scores: ScoresReader, plan: SelectionPlan) -> Chosen:
    """Choose the rows of a dataset that meet the criteria.

    Raises:
        StoreError: The scores, their graph store or the known crystals cannot be read.
        ConfigError: A required package is not installed.
    """
    top = plan.criteria.top
    known = None if plan.criteria.known is None else KnownCrystals(plan.criteria.known)
    derived = DerivedColumns(scores, known, plan.late.names)
    found = _survey(scores, plan)
    front = None
    if plan.pareto:
        front, order = _by_front(scores, found, plan, derived)
    else:
        order = found.best_first(scores)
    taken = _walk(scores, plan, derived, found, order)
    rank = np.arange(1, len(taken) + 1)
    if top is None:  # restore the order of the scores
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


def _by_front(
    scores: ScoresReader, found: _Survivors, plan: SelectionPlan, derived: DerivedColumns
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the Pareto front of each row, 0 for none, and the indices of rows in fronts in the order of their rank."""
    top = plan.criteria.top
    if plan.late.conjuncts:  # a row that does not qualify must not dominate others
        found.keep(_holding(found.rows, plan, derived), "--where")
    enough = len(found.rows) if plan.has_quota else top
    sound = ~found.last  # unreliable values must not dominate others
    front = np.zeros(len(sound), dtype=np.int32)
    front[sound] = fronts(found.points[sound, 1:], None if top is None else enough)
    within = np.flatnonzero(front)
    order = within[best_first(scores, found.rows[within], front[within], found.points[within, 0])]
    found.left_out["dominated" if top is None else _beyond(top)] += len(found.rows) - len(order)
    return front, order


def _survey(scores: ScoresReader, plan: SelectionPlan) -> _Survivors:
    """Read every row once, chunk by chunk and only in the columns that are needed."""
    found = _Survivors(np.empty(0, dtype=np.int64), np.empty((0, 1 + len(plan.pareto))), np.empty(0, dtype=np.bool_))
    rows, points, last = [found.rows], [found.points], [found.last]
    kept = 0
    for start, stop in scores.chunks():
        columns = {name: scores.column(name, start, stop) for name in sorted(plan.columns)}
        places, values = _surviving(scores, plan, columns, stop - start, found.left_out)
        rows.append(places + start)
        points.append(values)
        last.append(~scores.is_ranked(columns["status"][places]))
        kept += len(places)
        if plan.simple and plan.criteria.top is not None and kept > plan.criteria.top + _SLACK:
            found.rows, found.points, found.last = np.concatenate(rows), np.concatenate(points), np.concatenate(last)
            best = np.sort(found.best_first(scores)[: plan.criteria.top])
            found.keep(best, _beyond(plan.criteria.top))
            rows, points, last, kept = [found.rows], [found.points], [found.last], len(best)
    found.rows, found.points, found.last = np.concatenate(rows), np.concatenate(points), np.concatenate(last)
    return found


def _surviving(
    scores: ScoresReader,
    plan: SelectionPlan,
    columns: dict[str, NDArray[Any]],
    size: int,
    left_out: Counter[str],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the indices of rows in a chunk that meet the early conditions, and their points; count the others."""
    alive = np.ones(size, dtype=bool)

    def drop(good: NDArray[np.bool_], reason: str) -> None:
        left_out[reason] += int((alive & ~good).sum())
        np.logical_and(alive, good, out=alive)

    if plan.only_ok:
        for word, value in scores.meanings("status").items():
            if word != "ok":
                drop(columns["status"] != value, f"{word.replace('_', ' ')} (status)")
    if "formula" in columns and plan.restricts_elements:
        drop(_of_elements(plan, columns["formula"]), "with other elements")
    if plan.early.conjuncts:
        drop(plan.early.holds(columns, size), "--where")
    measures = (plan.measure, *plan.pareto)
    points = np.stack([one.values(columns) for one in measures], axis=1)
    for one, values in zip(measures, points.T, strict=True):
        drop(np.isfinite(values), f"without {one.name}")
    places = np.flatnonzero(alive)
    return places, points[places]


def _of_elements(plan: SelectionPlan, formulas: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which formulas meet the criteria on the elements: bool[n]."""
    known: dict[str, bool] = {}
    out = np.empty(len(formulas), dtype=bool)
    for place, formula in enumerate(formulas.tolist()):
        good = known.get(formula)
        if good is None:
            elements = elements_of(formula)
            good = not (elements & plan.excluded) and (not plan.allowed or elements <= plan.allowed)
            good = known[formula] = good and (not plan.required or bool(elements & plan.required))
        out[place] = good
    return out


def _holding(rows: NDArray[np.int64], plan: SelectionPlan, derived: DerivedColumns) -> NDArray[np.bool_]:
    """Return the rows for which the late conditions hold: bool[n]."""
    out = [np.empty(0, dtype=bool)]
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        out.append(plan.late.holds(derived.columns(plan.late.names, some), len(some)))
    return np.concatenate(out)


def _walk(
    scores: ScoresReader,
    plan: SelectionPlan,
    derived: DerivedColumns,
    found: _Survivors,
    order: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the indices of the chosen rows in the order of their rank, at most `top`; count the others."""
    wanted = len(order) if plan.criteria.top is None else min(plan.criteria.top, len(order))
    if not (plan.has_quota or (plan.late.conjuncts and not plan.pareto)):
        found.left_out[_beyond(plan.criteria.top)] += len(order) - wanted
        return order[:wanted]
    systems, prototypes = Quota(plan.criteria.per_system), Quota(plan.criteria.per_prototype)
    taken: list[int] = []
    at = 0
    while at < len(order) and len(taken) < wanted:
        some = order[at : at + _BATCH]
        rows = found.rows[some]
        good = np.ones(len(some), dtype=bool) if plan.pareto else _holding(rows, plan, derived)
        kinds = _kinds(scores, plan, derived, rows)
        for place, holds, system, label in zip(some.tolist(), good.tolist(), *kinds, strict=True):
            if len(taken) == wanted:
                break
            at += 1
            if not holds:
                found.left_out["--where"] += 1
            elif systems.full(system):
                found.left_out[f"more than {plan.criteria.per_system} per chemical system"] += 1
            elif prototypes.full(label):
                found.left_out[f"more than {plan.criteria.per_prototype} per prototype"] += 1
            else:
                systems.take(system)
                prototypes.take(label)
                taken.append(place)
    found.left_out[_beyond(plan.criteria.top)] += len(order) - at
    return np.array(taken, dtype=np.int64)


def _kinds(
    scores: ScoresReader, plan: SelectionPlan, derived: DerivedColumns, rows: NDArray[np.int64]
) -> tuple[list[str], list[str]]:
    """Return the chemical system and the prototype of each row; empty strings where there is no limit on them."""
    nothing = [""] * len(rows)
    systems, labels = nothing, nothing
    if plan.criteria.per_system:
        systems = [chemical_system(formula) for formula in scores.rows("formula", rows).tolist()]
    if plan.criteria.per_prototype:
        labels = derived.columns(["prototype_label"], rows)["prototype_label"].tolist()
    return systems, labels


def _beyond(top: int | None) -> str:
    return f"beyond the first {top:,}" if top is not None else "beyond"


def _is_free(scores: ScoresReader, name: str) -> bool:
    """Return whether a selection may add a column of this name."""
    spec = scores.specs.get(name)
    return spec is None or spec.attrs.get("role") == ROLE


def _sequence(given: Sequence[str] | str) -> Sequence[str]:
    return [given] if isinstance(given, str) else given
