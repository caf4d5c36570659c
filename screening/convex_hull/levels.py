"""What the hull is at every composition of the candidates: computed once for each, whatever the number of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..chemistry.composition import Compositions
from .geometry import HullPoints, Hulls
from .references import References

# An entry is the same as a structure of its composition if it has its id, or its energy within this, eV/atom.
SAME_ENERGY = 1e-6
# Candidates no lower than this below the hull, eV/atom, leave it as it is.
_LOWER = 1e-12


@dataclass
class Products:
    """Products of decomposition of some compositions, one after the other.

    Attributes:
        place: int64[n compositions], where in `begin` a composition is; -1 for none.
    """

    place: NDArray[np.int64]
    _numbers: list[NDArray[np.int64]] = field(default_factory=list)
    _amounts: list[NDArray[np.float64]] = field(default_factory=list)
    _begin: list[int] = field(default_factory=lambda: [0])

    def add(self, compositions: NDArray[np.int64], points: HullPoints) -> None:
        """The products at some compositions."""
        taken = points.amounts > 0
        self.place[compositions] = np.arange(len(compositions)) + len(self._begin) - 1
        ends = self._begin[-1] + np.cumsum(taken.sum(axis=1))
        self._begin.extend(ends.tolist())
        self._numbers.append(points.products[taken])
        self._amounts.append(points.amounts[taken])

    def finish(self) -> None:
        """Put the pieces together, when all are there."""
        if self._numbers:
            self._numbers = [np.concatenate(self._numbers)]
            self._amounts = [np.concatenate(self._amounts)]

    def of(self, composition: int) -> list[tuple[int, float]]:
        """Products of a composition, and the fraction of its atoms in each, the largest first."""
        place = int(self.place[composition])
        if place < 0:
            return []
        span = slice(self._begin[place], self._begin[place + 1])
        pairs = zip(self._numbers[0][span].tolist(), self._amounts[0][span].tolist(), strict=True)
        return sorted(pairs, key=lambda pair: (-round(pair[1], 9), pair[0]))


@dataclass
class Levels:
    """Energies by composition, eV/atom, NaN where there are none.

    Attributes:
        hull: float64[n], of the references.
        alone: float64[n], of the references of all other compositions, where that was asked for; else as `hull`.
        joint: float64[n], of references and candidates.
        elemental: float64[n], of the elements.
        products: At `hull`.
        products_alone: At `alone`, where it differs from `hull`.
        members: float64[n, members], the hull of each member of an ensemble, or None if it is the same for all.
        members_alone: float64[n, members], likewise.
    """

    hull: NDArray[np.float64]
    alone: NDArray[np.float64]
    joint: NDArray[np.float64]
    elemental: NDArray[np.float64]
    products: Products
    products_alone: Products
    members: NDArray[np.float64] | None = None
    members_alone: NDArray[np.float64] | None = None


def lowest_of(references: References, n_compositions: int) -> NDArray[np.float64]:
    """float64[n_compositions], the lowest energy of a reference of each; NaN where there is none."""
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
    """The hull at compositions.

    Args:
        compositions: All there are, n.
        asked: Those of candidates.
        references: What candidates are measured against.
        candidates: float64[n], the lowest energy of a candidate of each, eV/atom; NaN where there is none.
        needs_alone: bool[n], whether a hull without the references of that composition is asked for.
        advance: Told how many compositions are done.
    """
    n = len(compositions)
    blank = np.full(n, np.nan)
    found = Levels(
        blank.copy(),
        blank.copy(),
        blank.copy(),
        blank.copy(),
        Products(np.full(n, -1, dtype=np.int64)),
        Products(np.full(n, -1, dtype=np.int64)),
    )
    hulls = Hulls(compositions, lowest_of(references, n))
    groups = compositions.by_system(asked.tolist())
    for system, numbers in groups.items():
        points = hulls.at(system, numbers)
        found.hull[numbers] = points.energy
        found.elemental[numbers] = hulls.elemental(system, compositions.fractions(numbers))
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
    """Compositions that are corners of the hull themselves; without the others it is the same."""
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
    """The hull of references and candidates: another one only where candidates are below that of the references."""
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
    """The hull of each member, made of its own energies of the references."""
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


class CompetingPhases:
    """Which references a structure competes with: all but those that are itself.

    Elements are measured against their own references: they are the zero of the scale.

    Args:
        references: All of them.
        compositions: That they are of.
    """

    def __init__(self, references: References, compositions: Compositions) -> None:
        self.references = references
        self._starts = references.starts(len(compositions))
        self._compound = np.array([len(compositions.system(number)) > 1 for number in range(len(compositions))])
        self._names = np.array(references.names, dtype=object)
        self._other_names = np.array(references.other_names, dtype=object)

    def name(self, composition: int) -> str:
        """Id of the lowest reference of a composition."""
        start = int(self._starts[composition])
        return self.references.names[start] if start < int(self._starts[composition + 1]) else ""

    def of(
        self, composition: NDArray[np.int64], energy: NDArray[np.float64], ids: NDArray[np.object_]
    ) -> tuple[NDArray[np.bool_], dict[int, list[int]]]:
        """Where the lowest reference of the composition is the structure itself, and what is left then.

        Args:
            composition: int64[n].
            energy: float64[n], eV/atom.
            ids: object[n].

        Returns:
            bool[n], and for those rows the other references of their composition, by energy, if there are any.
        """
        own = self._compound[composition] & (self._starts[composition + 1] > self._starts[composition])
        rows = np.flatnonzero(own)
        if len(rows) == 0:
            return own, {}
        first = self._starts[composition[rows]]
        own[rows] = self._same(first, energy[rows], ids[rows])
        others = {}
        several = self._starts[composition + 1] - self._starts[composition] > 1
        for row in np.flatnonzero(own & several).tolist():
            span = np.arange(self._starts[composition[row]], self._starts[composition[row] + 1])
            same = self._same(span, np.full(len(span), energy[row]), np.full(len(span), ids[row], dtype=object))
            others[row] = span[~same].tolist()
        return own, others

    def _same(
        self, references: NDArray[np.int64], energy: NDArray[np.float64], ids: NDArray[np.object_]
    ) -> NDArray[np.bool_]:
        named = np.asarray((self._names[references] == ids) | (self._other_names[references] == ids), dtype=bool)
        named &= np.asarray(ids != "", dtype=bool)
        same: NDArray[np.bool_] = named | (np.abs(self.references.energy[references] - energy) <= SAME_ENERGY)
        return same
