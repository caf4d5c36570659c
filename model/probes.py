"""Structures on which a network is tested: random, but with the distances, density and size of its training data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from ase.data import covalent_radii, vdw_radii
from numpy.typing import NDArray

from ..pipeline.graphs.graph_block import GraphBlock
from ..pipeline.graphs.potential import Potential
from ..pipeline.structures.elements import pair_numbers
from ..pipeline.structures.structure import Structure
from .statistics import GeometryStatistics

# Neighbours are placed at this multiple of the smallest distance in the training data or, if that is unknown, of the
# sum of covalent radii. At this distance forces nearly vanish, whether the training data come from thermal motion or
# from relaxed crystals.
_SPACING = 1.15
# Noble gases form no bonds, and an atom of hydrogen, nitrogen, oxygen or a halogen bonds to at most one other atom of
# its element. Neighbours of the same element are therefore placed at the sum of van der Waals radii.
_NOBLE, _DIATOMIC = [2, 10, 18, 36, 54, 86], [1, 7, 8, 9, 17, 35, 53]
# Smallest tabulated spacing (angstrom): with six neighbours, bonds to small atoms are longer than the sum of radii.
_SHORTEST = 1.5
# Positions are displaced by this fraction of the spacing, which leaves no symmetry and forces of the order of
# 1 eV/angstrom.
_JITTER = 0.04
_SHEAR = 0.04
# Number of random arrangements of the elements, of which the densest is used, because it keeps like ions apart.
_TRIES = 12
# Structures with larger forces (eV/angstrom) are unlike any training data, and rounding errors grow with the forces.
TAME = 10.0


@dataclass(frozen=True, slots=True)
class ProbeSource:
    """The properties that random structures share with the training data of a network.

    Attributes:
        elements: Atomic numbers of the elements to draw from.
        cutoff: Cutoff radius, angstrom.
        spacing: Distance at which neighbours are placed, by atomic numbers: float64[119, 119], angstrom. Pairs that are
            not neighbours in the training data are placed beyond the cutoff.
        atom_volume: Volume per atom of crystals, angstrom^3; 0 if it is unknown.
        crystals: Fraction of the structures that are periodic.
        atoms: Largest number of atoms in a molecule.
    """

    elements: tuple[int, ...]
    cutoff: float
    spacing: NDArray[np.float64]
    atom_volume: float = 0.0
    crystals: float = 1.0
    atoms: float = math.inf

    @classmethod
    def of(cls, elements: Sequence[int], cutoff: float, geometry: GeometryStatistics | None) -> Self:
        """Build a source from the statistics of the training data or, if they are unknown, from tabulated radii.

        Args:
            elements: Atomic numbers of the elements to draw from.
            cutoff: Cutoff radius, angstrom.
            geometry: Statistics of the training data; None if they are unknown.
        """
        if geometry is None or not geometry.minimum_distances:
            return cls(tuple(elements), cutoff, np.minimum(_tabulated(), 0.75 * cutoff))
        spacing = np.full((len(covalent_radii),) * 2, 1.01 * cutoff)
        for pair, distance in geometry.minimum_distances.items():
            one, other = pair_numbers(pair)
            spacing[one, other] = spacing[other, one] = min(_SPACING * distance, (distance + cutoff) / 2)
        return cls(
            tuple(elements), cutoff, spacing, geometry.atom_volume or 0.0, geometry.crystals, max(2.0, geometry.atoms)
        )

    def structures(self, count: int, seed: int, max_atoms: int = 14) -> list[Structure]:
        """Make random structures, periodic or not in the proportion of the training data.

        Args:
            count: Number of structures.
            seed: Random seed.
            max_atoms: Maximum number of atoms in a structure, at least 2; crystals never have more than 27.
        """
        rng = np.random.default_rng(seed)
        whole = [math.floor(place * self.crystals) for place in range(count + 1)]  # number of crystals so far
        return [
            self.crystal(rng, max_atoms) if after > before else self.molecule(rng, max_atoms)
            for before, after in itertools.pairwise(whole)
        ]

    def crystal(self, rng: np.random.Generator, max_atoms: int) -> Structure:
        """Make a crystal: a jittered cubic grid of atoms of at most three elements, in a slightly sheared cell."""
        boxes = [box for box in itertools.product((1, 2, 3), repeat=3) if 2 <= math.prod(box) <= max_atoms]
        box = np.array(boxes[int(rng.integers(len(boxes)))])
        places = np.array(list(itertools.product(*map(range, box))))
        # Distances between sites and to the images in adjacent cells, in units of the spacing.
        shifts = np.array(list(itertools.product((-1, 0, 1), repeat=3))) * box
        apart = np.linalg.norm(places[:, None, None] - places[:, None] + shifts, axis=3)
        apart = np.where(apart < 0.5, np.inf, apart).min(axis=2)  # an atom is not its own neighbour
        chosen, spacing = np.repeat(self.elements[0], len(places)), math.inf
        for _ in range(_TRIES):
            some = rng.choice(self.elements, min(len(self.elements), int(rng.integers(1, 4))), replace=False)
            numbers = rng.choice(some, len(places))
            needed = float((self.spacing[numbers[:, None], numbers] / apart).max())
            if needed < spacing:
                chosen, spacing = numbers, needed
        spacing = max(spacing, self.atom_volume ** (1 / 3))
        spacing = min(spacing, 0.9 * self.cutoff)
        cell = np.diag(box * spacing) + rng.normal(0, _SHEAR * spacing, (3, 3))
        frac = (places + rng.normal(0, _JITTER, places.shape)) / box
        return Structure.from_fractional(chosen, cell, frac)

    def molecule(self, rng: np.random.Generator, max_atoms: int) -> Structure:
        """Make a molecule: each atom is placed next to another, and no pair is much closer than its spacing."""
        size = int(rng.integers(2, max(3, int(min(max_atoms, self.atoms)) + 1)))
        numbers, positions = [int(rng.choice(self.elements))], np.zeros((1, 3))
        for _ in range(40 * size):
            if len(numbers) == size:
                break
            number, anchor = int(rng.choice(self.elements)), int(rng.integers(len(numbers)))
            direction = rng.normal(size=3)
            distance = self.spacing[number, numbers[anchor]] * rng.uniform(0.97, 1.03)
            place = positions[anchor] + distance * direction / np.linalg.norm(direction)
            apart = np.linalg.norm(positions - place, axis=1)
            if distance < self.cutoff and (apart >= 0.96 * self.spacing[number, numbers]).all():
                numbers.append(number)
                positions = np.concatenate([positions, place[None]])
        return Structure.from_cartesian(numbers, positions)

    def boxed_molecule(self, rng: np.random.Generator, max_atoms: int) -> Structure:
        """Make a crystal of molecules that are farther apart than the cutoff."""
        molecule = self.molecule(rng, max_atoms)
        edges = np.ptp(molecule.positions, axis=0) + 1.5 * self.cutoff
        return Structure.from_cartesian(molecule.atomic_number, molecule.positions, np.diag(edges), (True,) * 3)


def _tabulated() -> NDArray[np.float64]:
    """Return distances of neighbours from tabulated radii, by atomic numbers: float64[119, 119] (angstrom)."""
    radii = _SPACING * covalent_radii
    radii[_NOBLE] = vdw_radii[_NOBLE]
    spacing = np.maximum(radii[:, None] + radii, _SHORTEST)
    spacing[_DIATOMIC, _DIATOMIC] = 2 * vdw_radii[_DIATOMIC]
    return np.asarray(spacing)


def tame(potential: Potential, structures: Sequence[Structure], count: int) -> tuple[list[Structure], float]:
    """Choose the structures that are most like training data: with neighbours, and with forces of at most `TAME`.

    Args:
        potential: The network; if it has no forces, the first structures with neighbours are taken.
        structures: More structures than needed.
        count: Number of structures to choose.

    Returns:
        The first structures that meet both conditions and, if there are too few, also structures with larger forces
        (the smallest first), then without neighbours; and the largest force on an atom of any of them (eV/angstrom).
    """
    block = GraphBlock.from_structures(structures, potential.cutoff)
    forces = potential.evaluate(block).forces
    sizes = np.linalg.norm(forces, axis=1)
    largest = np.maximum.reduceat(np.where(np.isnan(sizes), 0.0, sizes), block.atom_start)
    # Structures without neighbours, or with forces that are not finite, would test nothing.
    cost = np.where(np.isfinite(largest) & (block.n_edges > 0), np.maximum(largest, TAME), math.inf)
    chosen = np.sort(np.argsort(cost, kind="stable")[:count])
    return [structures[place] for place in chosen.tolist()], float(largest[chosen].max(initial=0.0))
