"""Ranking of rows: by one column with its uncertainty, by Pareto fronts, and with quotas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ..dataset.default_ranking import ENERGY_PER_ATOM, NOT_COMPARABLE, default_ranking
from ..dataset.reader import ScoresReader
from ..dataset.scores import STRUCTURE_ARRAYS, UNRELAXED
from .variables import numeric_column

# Energies that differ from the total energy per atom only by a term without uncertainty.
_SHIFTED = ("energy_per_atom", "corrected_energy_per_atom", "formation_energy_per_atom")
# Maximum number of columns that a message names.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Measure:
    """A column to rank by.

    Attributes:
        name: Name of the column.
        descending: Whether higher values are better.
        spread: Column of its standard deviation; empty if no uncertainty is used.
        per_atom: Whether `spread` belongs to the total energy and must be divided by the number of atoms.
        weight: Number of standard deviations by which values are made worse.
    """

    name: str
    descending: bool
    spread: str = ""
    per_atom: bool = False
    weight: float = 0.0

    @classmethod
    def of(cls, scores: ScoresReader, column: str | None, weight: float = 0.0) -> Measure:
        """Return the measure for a column.

        Args:
            scores: The dataset.
            column: Name of the column, preceded by a minus if higher is better; None uses `default_ranking`.
            weight: Number of standard deviations by which values are made worse.

        Raises:
            ConfigError: The dataset has no such column, no standard deviation of the column, or no column to rank by
                default; or the weight is negative or not finite.
        """
        if column is None:
            column = default_ranking(scores)
            if column is None:
                raise ConfigError(_nothing_to_rank_by(scores))
        name, descending = column.strip().removeprefix("-"), column.strip().startswith("-")
        numeric_column(scores, name)
        if not np.isfinite(weight) or weight < 0.0:
            raise ConfigError(f"the uncertainty weight is {weight}; it must be a finite number, 0 or more")
        if weight == 0.0:
            return cls(name, descending)
        bare = name.removesuffix(UNRELAXED)
        own = f"{bare}_std{UNRELAXED}" if bare != name else f"{name}_std"
        per_atom = bare in _SHIFTED and own not in scores.specs
        spread = "energy_std" if per_atom else own
        if spread not in scores.specs:
            raise ConfigError(
                f"{scores.path}: {name} has no standard deviation ({spread} is missing); screen with several models, "
                "or leave out the uncertainty weight"
            )
        numeric_column(scores, spread)
        return cls(name, descending, spread, per_atom, weight)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that `values` needs."""
        return (self.name, *((self.spread,) if self.spread else ()), *(("n_atoms",) if self.per_atom else ()))

    def values(self, columns: dict[str, NDArray[np.generic]]) -> NDArray[np.float64]:
        """Return the values to rank by, lower is better: float64[n], NaN where a value is missing."""
        values = columns[self.name].astype(np.float64)
        values = -values if self.descending else values
        if self.spread:
            spread = columns[self.spread].astype(np.float64)
            values = values + self.weight * (
                spread / columns["n_atoms"].astype(np.float64) if self.per_atom else spread
            )
        values[~np.isfinite(values)] = np.nan
        return values

    @property
    def text(self) -> str:
        """Description of the ranking."""
        sign = "-" if self.descending else "+"
        spread = f"{self.spread} / n_atoms" if self.per_atom else self.spread
        value = f"{self.name} {sign} {self.weight:g} * {spread}" if self.spread else self.name
        return f"{value}, {'highest' if self.descending else 'lowest'} first"


def non_dominated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which points are not dominated: bool[n].

    A point is dominated if another one is as good in every column and better in at least one. With two columns this
    takes one pass over the sorted points; with more, the work grows with the number of points times the size of the
    front.

    Args:
        points: float64[n, k], finite; lower is better.
    """
    order = np.lexsort(points.T[::-1])  # by the first column, then by the second
    found = np.zeros(len(points), dtype=bool)
    if points.shape[1] <= 2:
        sorted_points = points[order]
        last = sorted_points[:, -1]
        before = np.concatenate([[np.inf], np.minimum.accumulate(last)[:-1]]) if len(last) else last
        better = last < before
        if points.shape[1] == 1:
            better = last == last.min(initial=np.inf)
        new = np.concatenate([[True], (sorted_points[1:] != sorted_points[:-1]).any(axis=1)])[: len(points)]
        first = np.maximum.accumulate(
            np.where(new, np.arange(len(new)), 0)
        )  # equal points share the result of the first
        found[order] = better[first]
        return found
    while len(order):
        best = points[order[0]]  # no remaining point dominates the first in this order
        rest = points[order]
        found[order[(rest == best).all(axis=1)]] = True
        order = order[~(rest >= best).all(axis=1)]
    return found


def fronts(points: NDArray[np.float64], wanted: int | None) -> NDArray[np.int32]:
    """Return the number of the Pareto front of each point.

    Front 1 holds the points that are not dominated, front 2 those that are not dominated once front 1 is removed, and
    so on.

    Args:
        points: float64[n, k], lower is better.
        wanted: Add fronts until they hold this many points; None for the first front only.

    Returns:
        int32[n], 0 for points beyond these fronts.
    """
    found = np.zeros(len(points), dtype=np.int32)
    left = np.arange(len(points))
    number = 0
    while len(left) and (number == 0 or (wanted is not None and len(points) - len(left) < wanted)):
        number += 1
        front = non_dominated(points[left])
        found[left[front]] = number
        left = left[~front]
    return found


class Quota:
    """Maximum number of rows of one kind, such as a chemical system.

    Args:
        most: The maximum number; None for no limit.
    """

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._taken: Counter[str] = Counter()

    def full(self, kind: str) -> bool:
        """Return whether no more rows of this kind may be taken."""
        return self.most is not None and self._taken[kind] >= self.most

    def take(self, kind: str) -> None:
        """Count a row of this kind."""
        self._taken[kind] += 1


def pareto_measures(scores: ScoresReader, columns: Sequence[str]) -> tuple[Measure, ...]:
    """Return the measures of a Pareto front.

    Args:
        scores: The dataset.
        columns: Names of columns, each preceded by a minus if higher is better. An item may hold several names:
            ``["energy_above_hull,-band_gap"]``.

    Raises:
        ConfigError: There is only one column, a column is named twice, or the dataset lacks a column.
    """
    names = [name.strip() for text in columns for name in text.split(",") if name.strip()]
    if names and (len(names) < 2 or len({name.removeprefix("-") for name in names}) < len(names)):
        raise ConfigError("a Pareto front needs two or more columns, each named only once")
    return tuple(Measure.of(scores, name) for name in names)


def _nothing_to_rank_by(scores: ScoresReader) -> str:
    """Return why a dataset has no column to rank by, with the columns that `--by` accepts."""
    usual = {*(spec.name for spec in STRUCTURE_ARRAYS), "energy", ENERGY_PER_ATOM}
    names = [
        name
        for name, spec in scores.specs.items()
        if name not in usual and spec.dtype.startswith("float") and len(spec.dims) == 1
    ]
    reason = NOT_COMPARABLE if ENERGY_PER_ATOM in scores.specs else "it has no energies"
    listed = f", for example {', '.join(names[:_NAMED])}" if names else ""
    return f"{scores.path} has no column to rank by: {reason}; or choose one with `--by`{listed}"
