"""Lower convex hulls of chemical systems, evaluated at many compositions at once.

All energies are per atom. Within a system, they are relative to the elements, whose energies are zero. The hull is the
largest convex function that lies nowhere above the entries. Its facets are computed once per system. At a given
composition, the hull is the maximum of the affine functions that the facets define, so that one matrix product serves
all compositions. The facet that attains the maximum gives the decomposition products, and proves the result: no entry
lies below its plane, and the composition lies between its corners. Where this proof fails (because facets are nearly
degenerate), and in systems with so many elements that the hull has too many facets, a linear program is solved for each
composition.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ..chemistry.composition import Compositions, System

# Entries whose formation energy is above minus this value (eV/atom) do not change the hull (pymatgen's tolerance).
_FORMATION_TOLERANCE = 1e-11
# Facets with a smaller determinant count as having no volume (also pymatgen's tolerance).
_FLAT = 1e-14
# Tolerances: how far an entry may lie below a facet (relative to 1 eV/atom plus the largest chemical potential), and
# how far a composition may lie outside the facet (atomic fraction).
_BELOW, _OUTSIDE = 1e-11, 1e-10
# The number of facets of n points in d elements grows as n^(d/2); beyond these limits, linear programs are solved.
_MAX_ELEMENTS = 6
_MAX_POINTS = {5: 1_000, 6: 150}
# Up to this many simplices, all are tried, which takes less time than running qhull.
_FEW_SIMPLICES = 160
# Largest number of values in a temporary array of compositions by facets, or of facets by entries.
_TABLE = 1 << 22


@dataclass(frozen=True)
class HullPoints:
    """The hull at compositions of one system.

    Attributes:
        energy: float64[n], energy of the hull (eV/atom); NaN where the system has no hull.
        products: int64[n, elements], compositions at the corners of the facet; may be -1 where the amount is 0.
        amounts: float64[n, elements], fraction of the atoms in each product; 0 for corners that take no part.
    """

    energy: NDArray[np.float64]
    products: NDArray[np.int64]
    amounts: NDArray[np.float64]


@dataclass(frozen=True)
class _Entries:
    """Entries of a system, its elements first.

    Attributes:
        numbers: int64[n], numbers of their compositions.
        fractions: float64[n, elements], atomic fractions.
        energy: float64[n], energies relative to the elements (eV/atom).
    """

    numbers: NDArray[np.int64]
    fractions: NDArray[np.float64]
    energy: NDArray[np.float64]

    def without(self, number: int) -> _Entries:
        keep = self.numbers != number
        return _Entries(self.numbers[keep], self.fractions[keep], self.energy[keep])


class Hulls:
    """The hulls of all chemical systems of one set of entries.

    Args:
        compositions: All n compositions.
        energy: float64[n], lowest energy of an entry of each composition (eV/atom); NaN where there is none.
    """

    def __init__(self, compositions: Compositions, energy: NDArray[np.float64]) -> None:
        self._compositions, self.energy = compositions, energy
        self._own = compositions.by_system(np.flatnonzero(np.isfinite(energy)).tolist())
        self._elements = {system[0]: float(energy[own[0]]) for system, own in self._own.items() if len(system) == 1}
        self._element_numbers = {system[0]: int(own[0]) for system, own in self._own.items() if len(system) == 1}
        self._stable: dict[System, _Entries] = {}

    def __contains__(self, system: System) -> bool:
        return system in self._own

    def missing(self, system: System) -> list[int]:
        """Return the atomic numbers of the elements of a system that have no entry."""
        return [element for element in system if element not in self._elements]

    def elemental(self, system: System, fractions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return energies of mixtures of the elements: float64[n], eV/atom; NaN where an element has no entry."""
        return np.asarray(fractions @ np.array([self._elements.get(element, np.nan) for element in system]))

    def subsystems(self, system: System) -> Iterator[System]:
        """Yield the chemical systems with entries among the subsets of a system, including the system itself."""
        if 1 << len(system) > len(self._own):
            members = set(system)
            yield from (other for other in self._own if members.issuperset(other))
            return
        for size in range(1, len(system) + 1):
            yield from (other for other in combinations(system, size) if other in self._own)

    def touched(self, system: System, changed: AbstractSet[System]) -> bool:
        """Return whether any of the changed systems can take part in the hull of a system."""
        return any(other in changed for other in self.subsystems(system))

    def at(self, system: System, numbers: NDArray[np.int64]) -> HullPoints:
        """Return the hull at compositions of a system.

        Args:
            system: Elements of all these compositions.
            numbers: int64[n], numbers of the compositions.

        Raises:
            ConfigError: scipy is needed and not installed, or a linear program failed.
        """
        fractions = self._compositions.fractions(numbers)
        if self.missing(system):
            return _no_hull(len(numbers), len(system))
        entries = self._entries(system)
        if len(entries.numbers) == len(system):  # only the elements
            products = np.broadcast_to(entries.numbers, fractions.shape)
            return HullPoints(self.elemental(system, fractions), products, fractions)
        facets = _facets(entries)
        if facets is not None:
            self._remember(system, entries, facets)
        return self._points(system, entries, facets, fractions)

    def without(self, system: System, number: int) -> HullPoints:
        """Return the hull at a composition, spanned by the entries of all other compositions.

        Args:
            system: Elements of the composition, at least two.
            number: Number of the composition.

        Raises:
            ConfigError: scipy is needed and not installed, or a linear program failed.
        """
        if self.missing(system):
            return _no_hull(1, len(system))
        entries = self._entries(system).without(number)
        # For a single composition a linear program costs less than many facets.
        facets = _facets(entries) if len(system) < 5 else None
        return self._points(system, entries, facets, self._compositions.fractions([number]))

    def _points(
        self, system: System, entries: _Entries, facets: _Facets | None, fractions: NDArray[np.float64]
    ) -> HullPoints:
        """Return the hull at compositions; its energies are absolute, not relative to the elements."""
        found = _solved(entries, fractions) if facets is None else _largest(entries, facets, fractions)
        return HullPoints(found.energy + self.elemental(system, fractions), found.products, found.amounts)

    def _entries(self, system: System) -> _Entries:
        """Return the possible corners of a system's hull: elements, stable entries of subsystems, own entries."""
        size = len(system)
        numbers = [np.array([self._element_numbers[element] for element in system], dtype=np.int64)]
        fractions, energy = [np.eye(size)], [np.zeros(size)]
        for other in self.subsystems(system):
            if len(other) == 1:
                continue
            part = self._own_entries(other) if other == system else self._stable_of(other)
            if len(part.numbers):
                wide = np.zeros((len(part.numbers), size))
                wide[:, np.searchsorted(system, other)] = part.fractions
                numbers.append(part.numbers)
                fractions.append(wide)
                energy.append(part.energy)
        return _Entries(np.concatenate(numbers), np.concatenate(fractions), np.concatenate(energy))

    def _own_entries(self, system: System) -> _Entries:
        """Return the entries with all elements of a system and a negative formation energy."""
        numbers = self._own[system]
        fractions = self._compositions.fractions(numbers)
        energy = self.energy[numbers] - self.elemental(system, fractions)
        low = energy < -_FORMATION_TOLERANCE
        return _Entries(numbers[low], fractions[low], energy[low])

    def _stable_of(self, system: System) -> _Entries:
        """Return a system's stable entries with all of its elements; only these can be on hulls of larger systems."""
        if system not in self._stable:
            entries = self._entries(system)
            facets = _facets(entries)
            if facets is None:
                self._stable[system] = self._own_entries(system)
            else:
                self._remember(system, entries, facets)
        return self._stable[system]

    def _remember(self, system: System, entries: _Entries, facets: _Facets) -> None:
        """Keep a system's stable entries with all of its elements, the only ones that hulls of larger systems need."""
        if system not in self:  # most systems of candidates have no entry of their own
            return
        inside = np.zeros(len(entries.numbers), dtype=bool)
        inside[facets.corners] = True
        inside &= (entries.fractions > 0).all(axis=1)
        if len(system) > 1:
            self._stable[system] = _Entries(entries.numbers[inside], entries.fractions[inside], entries.energy[inside])


@dataclass(frozen=True)
class _Facets:
    """Facets of a lower hull.

    Attributes:
        corners: int64[facets, elements], indices of the corners among the entries.
        inverse: float64[facets, elements, elements], inverse of the matrix whose rows are the fractions of the corners.
        potentials: float64[facets, elements], chemical potentials: the energy of the facet's plane at the elements.
    """

    corners: NDArray[np.int64]
    inverse: NDArray[np.float64]
    potentials: NDArray[np.float64]


def _facets(entries: _Entries) -> _Facets | None:
    """Return the facets of the lower hull of entries; None if there would be too many, or if none can be found."""
    size = entries.fractions.shape[1]
    if comb(len(entries.numbers), size) <= _FEW_SIMPLICES:
        corners = _all_simplices(len(entries.numbers), size)
    elif size == 2:
        corners = _chain(entries)
    elif size > _MAX_ELEMENTS or len(entries.numbers) > _MAX_POINTS.get(size, 1 << 30):
        return None
    else:
        found = _lower_simplices(entries)
        if found is None:
            return None
        corners = found
    matrices = entries.fractions[corners]
    sound = np.abs(np.linalg.det(matrices)) > _FLAT
    corners, matrices = corners[sound], matrices[sound]
    if len(corners) == 0:
        return None
    inverse = np.linalg.inv(matrices)
    potentials = np.einsum("fij,fj->fi", inverse, entries.energy[corners])
    step = max(1, _TABLE // len(entries.numbers))
    above = np.concatenate(
        [
            (entries.energy - potentials[begin : begin + step] @ entries.fractions.T).min(axis=1)
            for begin in range(0, len(corners), step)
        ]
    )
    kept = above > -_BELOW * (1 + np.abs(potentials).max(axis=1))
    return _Facets(corners[kept], inverse[kept], potentials[kept]) if kept.any() else None


@lru_cache(maxsize=256)
def _all_simplices(count: int, size: int) -> NDArray[np.int64]:
    """Return all choices of `size` out of `count` entries: int64[simplices, size]."""
    return np.array(list(combinations(range(count), size)), dtype=np.int64)


def _chain(entries: _Entries) -> NDArray[np.int64]:
    """Return the edges of a binary system's lower hull, by Andrew's monotone chain: int64[facets, 2]."""
    x, y = entries.fractions[:, 1].tolist(), entries.energy.tolist()
    chain: list[int] = []
    for point in np.lexsort((entries.energy, entries.fractions[:, 1])).tolist():
        while len(chain) > 1:
            a, b = chain[-2], chain[-1]
            if (x[b] - x[a]) * (y[point] - y[a]) - (y[b] - y[a]) * (x[point] - x[a]) > 0:
                break
            chain.pop()
        chain.append(point)
    return np.array([chain[:-1], chain[1:]], dtype=np.int64).T


def _lower_simplices(entries: _Entries) -> NDArray[np.int64] | None:
    """Return the corners of the facets that face down: int64[facets, elements]; None if qhull fails."""
    spatial = _scipy("spatial")
    # Scale energies to the range of the fractions.
    scaled = entries.energy / max(1e-300, -float(entries.energy.min()))
    try:
        hull = spatial.ConvexHull(np.column_stack([entries.fractions[:, 1:], scaled]))
    except spatial.QhullError:
        return None
    return np.asarray(hull.simplices[hull.equations[:, -2] < 0], dtype=np.int64)


def _largest(entries: _Entries, facets: _Facets, fractions: NDArray[np.float64]) -> HullPoints:
    """Return the hull at compositions, as the maximum over the facets; energies are relative to the elements."""
    step = max(1, _TABLE // len(facets.potentials))
    best = np.concatenate(
        [
            np.argmax(fractions[begin : begin + step] @ facets.potentials.T, axis=1)
            for begin in range(0, len(fractions), step)
        ]
    )
    amounts = np.einsum("ni,nij->nj", fractions, facets.inverse[best])
    inside = amounts.min(axis=1) >= -_OUTSIDE
    amounts = np.where(amounts > _OUTSIDE, amounts, 0.0)
    corners = facets.corners[best]
    products, energy = entries.numbers[corners], np.einsum("ni,ni->n", amounts, entries.energy[corners])
    if not inside.all():
        again = _solved(entries, fractions[~inside])
        products[~inside], amounts[~inside], energy[~inside] = again.products, again.amounts, again.energy
    return HullPoints(energy, products, amounts)


def _solved(entries: _Entries, fractions: NDArray[np.float64]) -> HullPoints:
    """Return the hull at compositions; a linear program finds each mixture of entries with the lowest energy."""
    optimize = _scipy("optimize")
    count, size = fractions.shape
    found = _no_hull(count, size)
    for row, wanted in enumerate(fractions):
        present = wanted > 0
        usable = np.flatnonzero((entries.fractions[:, ~present] == 0).all(axis=1))
        matrix = entries.fractions[usable][:, present].T
        result = optimize.linprog(
            entries.energy[usable],
            A_eq=matrix,
            b_eq=wanted[present],
            method="highs-ds",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        if result.x is None:
            raise ConfigError(f"the linear program for the convex hull failed ({result.message}); please report this")
        support = np.argsort(-result.x, kind="stable")[: present.sum()]
        support = support[result.x[support] > _OUTSIDE]
        # The result of the solver is only as exact as its tolerance; since the corners are now known, solve for their
        # amounts.
        amounts = np.linalg.lstsq(matrix[:, support], wanted[present], rcond=None)[0]
        found.energy[row] = amounts @ entries.energy[usable[support]]
        found.products[row, : len(support)] = entries.numbers[usable[support]]
        found.amounts[row, : len(support)] = amounts
    return found


def _no_hull(count: int, size: int) -> HullPoints:
    """Return hull points for a system without a hull: all energies are NaN."""
    return HullPoints(np.full(count, np.nan), np.full((count, size), -1, dtype=np.int64), np.zeros((count, size)))


def _scipy(name: str) -> Any:
    try:
        from scipy import optimize, spatial  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ConfigError("convex hulls need scipy, which is not installed: pip install 'equiscreen[hull]'") from error
    return {"optimize": optimize, "spatial": spatial}[name]
