"""What is best: one number with its uncertainty, several numbers at once, and not too many of a kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ..dataset.reader import ScoresReader
from ..dataset.scores import UNRELAXED
from .variables import numeric_column

# What a selection is ranked by if nothing is said: the first of these that there is.
MEASURES = (
    "energy_above_hull",
    "energy_above_hull_unrelaxed",
    "energy_above_joint_hull",
    "energy_above_joint_hull_unrelaxed",
    "formation_energy_per_atom",
    "formation_energy_per_atom_unrelaxed",
    "energy_per_atom",
)
# Energies that differ from the total energy by what has no uncertainty.
_SHIFTED = ("energy_per_atom", "corrected_energy_per_atom", "formation_energy_per_atom")


@dataclass(frozen=True, slots=True)
class Measure:
    """A column to rank by; lower is better unless it is descending.

    Attributes:
        name: Of the column.
        descending: Whether higher is better.
        spread: Column of its standard deviation, or empty.
        per_atom: Whether that is one of the total energy.
        weight: How many standard deviations a value is made worse by.
    """

    name: str
    descending: bool
    spread: str = ""
    per_atom: bool = False
    weight: float = 0.0

    @classmethod
    def of(cls, scores: ScoresReader, said: str | None, weight: float = 0.0) -> Measure:
        """The measure that is meant.

        Args:
            scores: The dataset.
            said: A column, with a minus in front if higher is better; None for the first of `MEASURES`.
            weight: Standard deviations.

        Raises:
            ConfigError: No such column, or no standard deviation of it.
        """
        if said is None:
            said = next((name for name in MEASURES if name in scores.specs), None)
            if said is None:
                raise ConfigError(f"{scores.path}: has none of the usual columns to rank by; say one with --by")
        name, descending = said.strip().removeprefix("-"), said.strip().startswith("-")
        numeric_column(scores, name)
        if not np.isfinite(weight) or weight < 0.0:
            raise ConfigError(f"an uncertainty weight of {weight}; it is a finite number, 0 or more")
        if weight == 0.0:
            return cls(name, descending)
        bare = name.removesuffix(UNRELAXED)
        own = f"{bare}_std{UNRELAXED}" if bare != name else f"{name}_std"
        per_atom = bare in _SHIFTED and own not in scores.specs
        spread = "energy_std" if per_atom else own
        if spread not in scores.specs:
            raise ConfigError(
                f"{scores.path}: {name} has no standard deviation ({spread} is not there); screen with several models, "
                "or leave out the uncertainty weight"
            )
        numeric_column(scores, spread)
        return cls(name, descending, spread, per_atom, weight)

    @property
    def columns(self) -> tuple[str, ...]:
        """What `values` needs."""
        return (self.name, *((self.spread,) if self.spread else ()), *(("n_atoms",) if self.per_atom else ()))

    def values(self, columns: dict[str, NDArray[np.generic]]) -> NDArray[np.float64]:
        """Numbers of which lower ones are better: float64[n], NaN where there is none."""
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
        """In words."""
        sign = "-" if self.descending else "+"
        spread = f"{self.spread} / n_atoms" if self.per_atom else self.spread
        value = f"{self.name} {sign} {self.weight:g} * {spread}" if self.spread else self.name
        return f"{value}, {'highest' if self.descending else 'lowest'} first"


def best_first(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places in the order of their values, equal ones in the order of their rows."""
    return np.argsort(values, kind="stable")


def non_dominated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points have no other that is as good in every column and better in one; lower is better: bool[n].

    In two columns one pass over the sorted points; in more, the work grows with points times size of the front.

    Args:
        points: float64[n, k], finite.
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
        first = np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))  # equal points share their fate
        found[order] = better[first]
        return found
    while len(order):
        best = points[order[0]]  # none of what is left dominates the first in this order
        rest = points[order]
        found[order[(rest == best).all(axis=1)]] = True
        order = order[~(rest >= best).all(axis=1)]
    return found


def fronts(points: NDArray[np.float64], wanted: int | None) -> NDArray[np.int32]:
    """Numbers of Pareto fronts: 1 for what nothing dominates, 2 for what then is left undominated, and so on.

    Args:
        points: float64[n, k], lower is better.
        wanted: Go on until so many points are in a front; None for the first front alone.

    Returns:
        int32[n], 0 for points in none of them.
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
    """At most so many of a kind.

    Args:
        most: How many; None for any number.
    """

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._taken: Counter[str] = Counter()

    def full(self, kind: str) -> bool:
        """Whether there are as many of a kind as there may be."""
        return self.most is not None and self._taken[kind] >= self.most

    def take(self, kind: str) -> None:
        """Count one of a kind."""
        self._taken[kind] += 1


def pareto_measures(scores: ScoresReader, said: Sequence[str]) -> tuple[Measure, ...]:
    """The columns of a Pareto front, each of which may hold several: ["energy_above_hull,-band_gap"].

    Raises:
        ConfigError: Fewer than two, or no such column.
    """
    names = [name.strip() for text in said for name in text.split(",") if name.strip()]
    if names and (len(names) < 2 or len({name.removeprefix("-") for name in names}) < len(names)):
        raise ConfigError("a Pareto front is one of two or more different columns")
    return tuple(Measure.of(scores, name) for name in names)
