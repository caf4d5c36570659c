"""The hull at every composition of the candidates, computed once per composition for any number of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..chemistry.composition import Compositions
from .geometry import HullPoints, Hulls
from .references import References

# A candidate changes the hull only if its energy is more than this below the hull (eV/atom).
_LOWER = 1e-12


@dataclass
class Products:
    """Decomposition products of compositions, concatenated.

    Attributes:
        place: int64[n compositions], position of each composition in the order in which they were added; -1 for
            compositions without products.
    """

    place: NDArray[np.int64]
    _numbers: list[NDArray[np.int64]] = field(default_factory=list)
    _amounts: list[NDArray[np.float64]] = field(default_factory=list)
    _begin: list[int] = field(default_factory=lambda: [0])

    def add(self, compositions: NDArray[np.int64], points: HullPoints) -> None:
        """Add the products at some compositions."""
        taken = points.amounts > 0
        self.place[compositions] = np.arange(len(compositions)) + len(self._begin) - 1
        ends = self._begin[-1] + np.cumsum(taken.sum(axis=1))
        self._begin.extend(ends.tolist())
        self._numbers.append(points.products[taken])
        self._amounts.append(points.amounts[taken])

    def finish(self) -> None:
        """Concatenate all added products; `of` can be called only afterwards."""
        if self._numbers:
            self._numbers = [np.concatenate(self._numbers)]
            self._amounts = [np.concatenate(self._amounts)]

    def of(self, composition: int) -> list[tuple[int, float]]:
        """Return the products of a composition and the fraction of its atoms in each."""
        place = int(self.place[composition])
        if place < 0:
            return []
        span = slice(self._begin[place], self._begin[place + 1])
        return list(zip(self._numbers[0][span].tolist(), self._amounts[0][span].tolist(), strict=True))


@dataclass
class Levels:
    """Energies of hulls by composition (eV/atom); NaN where there is none.

    Attributes:
        hull: float64[n], hull of the references.
        alone: float64[n], hull of the references of all other compositions where it was requested; otherwise equal to
            `hull`.
        joint: float64[n], hull of references and candidates.
        elemental: float64[n], energy of the elements.
        formation_only: bool[n], compounds whose chemical system contains no compound among the references: their energy
            above hull is a formation energy.
        products: Decomposition products at `hull`.
        products_alone: Decomposition products at `alone`, where it differs from `hull`.
        members: float64[n, members], `hull` for each member of an ensemble; None if it is the same for all.
        members_alone: float64[n, members], `alone` for each member of an ensemble; None if it is the same for all.
    """

    hull: NDArray[np.float64]
    alone: NDArray[np.float64]
    joint: NDArray[np.float64]
    elemental: NDArray[np.float64]
    formation_only: NDArray[np.bool_]
    products: Products
    products_alone: Products
    members: NDArray[np.float64] | None = None
    members_alone: NDArray[np.float64] | None = None


def lowest_of(references: References, n_compositions: int) -> NDArray[np.float64]:
    """Return the lowest energy of a reference by composition: float64[n_compositions], eV/atom; else NaN."""
    lowest = np.full(n_compositions, np.nan)
    np.fmin.at(lowest, references.composition, references.energy)
    return lowest


def levels_of(
    compositions: Compositions,
    asked: NDArray[np.int64],
    references: References,
    candidates: NDArray[np.float64],
    needs_alone: NDArray[np.bool_],
    advance: Callable[[int], None],
) -> Levels:
    """Compute the hulls at the compositions of candidates.

    Args:
        compositions: All n compositions.
        asked: int64[m], numbers of the compositions of candidates.
        references: Phases that span the hull.
        candidates: float64[n], lowest energy of a candidate of each composition (eV/atom); NaN where there is none.
        needs_alone: bool[n], compositions for which the hull of all other compositions is needed.
        advance: Called with the number of compositions that have been completed.

    Raises:
        ConfigError: scipy is needed and not installed, or a linear program failed.
    """
    n = len(compositions)
    blank = np.full(n, np.nan)
    found = Levels(
        blank.copy(),
        blank.copy(),
        blank.copy(),
        blank.copy(),
        np.zeros(n, dtype=bool),
        Products(np.full(n, -1, dtype=np.int64)),
        Products(np.full(n, -1, dtype=np.int64)),
    )
    hulls = Hulls(compositions, lowest_of(references, n))
    groups = compositions.by_system(asked.tolist())
    for system, numbers in groups.items():
        points = hulls.at(system, numbers)
        found.hull[numbers] = points.energy
        found.elemental[numbers] = hulls.elemental(system, compositions.fractions(numbers))
        found.formation_only[numbers] = len(system) > 1 and all(len(other) == 1 for other in hulls.subsystems(system))
        found.products.add(numbers, points)
        found.alone[numbers] = points.energy
        for number in _corners(numbers, points, needs_alone):
            other = hulls.without(system, number)
            found.alone[number] = other.energy[0]
            found.products_alone.add(np.array([number]), other)
        advance(len(numbers))
    found.products.finish()
    found.products_alone.finish()
    _join(found, hulls, compositions, groups, candidates)
    if references.members is not None:
        _add_members(found, compositions, groups, references, needs_alone)
    return found


def _corners(numbers: NDArray[np.int64], points: HullPoints, wanted: NDArray[np.bool_]) -> list[int]:
    """Return the wanted compositions that are corners of the hull; entries of other compositions do not affect it."""
    own = ((points.products == numbers[:, None]) & (points.amounts > 0)).any(axis=1)
    corners: list[int] = numbers[own & wanted[numbers]].tolist()
    return corners


def _join(
    found: Levels,
    hulls: Hulls,
    compositions: Compositions,
    groups: dict[tuple[int, ...], NDArray[np.int64]],
    candidates: NDArray[np.float64],
) -> None:
    """Find the joint hull; it differs from the hull of the references only where candidates lie below that hull."""
    lower = np.isfinite(candidates) & ~(candidates >= found.hull - _LOWER)
    changed = frozenset(compositions.system(number) for number in np.flatnonzero(lower).tolist())
    together = Hulls(compositions, np.fmin(hulls.energy, np.where(lower, candidates, np.nan)))
    for system, numbers in groups.items():
        if changed and together.touched(system, changed):
            found.joint[numbers] = together.at(system, numbers).energy
        else:
            found.joint[numbers] = found.hull[numbers]


def _add_members(
    found: Levels,
    compositions: Compositions,
    groups: dict[tuple[int, ...], NDArray[np.int64]],
    references: References,
    needs_alone: NDArray[np.bool_],
) -> None:
    """Find the hull of each ensemble member, from the energies that this member predicts for the references."""
    if references.members is None:
        return
    shape = (len(compositions), references.members.shape[1])
    found.members, found.members_alone = np.full(shape, np.nan), np.full(shape, np.nan)
    for member in range(shape[1]):
        lowest = np.full(shape[0], np.nan)
        np.fmin.at(lowest, references.composition, references.members[:, member])
        hulls = Hulls(compositions, lowest)
        for system, numbers in groups.items():
            points = hulls.at(system, numbers)
            found.members[numbers, member] = found.members_alone[numbers, member] = points.energy
            for number in _corners(numbers, points, needs_alone):
                found.members_alone[number, member] = hulls.without(system, number).energy[0]
