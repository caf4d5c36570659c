"""Bounds on distances, forces and energies beyond which a model only extrapolates.

Far from its training data, a network may predict anything. For overlapping atoms, it may predict -21,000 eV/atom, an
energy that would top every ranking and distort every hull. Real crystals are well within these bounds: among 7,140
crystals of the Materials Project (mp_20_val.csv.gz), the shortest distance is 0.65 times the sum of the covalent radii.
With 7net-0, their energies are between 8.4 eV/atom below and 0.01 eV/atom above the energy of isolated atoms, and no
force is above 2.2 eV/angstrom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

from ..pipeline.graphs.graph_block import GraphBlock
from ..pipeline.graphs.neighbor_list import MIN_DISTANCE
from ..pipeline.graphs.potential import Evaluation, Potential
from ..pipeline.structures.structure import Structure

# Shortest plausible distance of two atoms, relative to the shortest distance in the training data if the model records
# it, otherwise to the sum of the covalent radii (Cordero et al., Dalton Trans. 2832 (2008)).
SHORTEST_OF_TRAINING, SHORTEST_OF_RADII = 0.9, 0.55
LARGEST_FORCE = 50.0  # eV/angstrom
# Bounds of the energy relative to isolated atoms, eV/atom. The most strongly bound solids (W, C, TaC) are at -9.
LOWEST_ENERGY, HIGHEST_ENERGY = -12.0, 50.0
# Energy relative to isolated atoms (eV/atom) below which a relaxation cannot recover.
BOTTOMLESS = -1000.0
_BOX = 30.0  # smallest edge of the cell of an isolated atom, angstrom; it grows with the cutoff


@dataclass(frozen=True)
class Plausibility:
    """Bounds outside of which the results of a model are meaningless.

    Attributes:
        minimum_distances: Shortest distance of each pair of elements in the training data, by atomic numbers in
            ascending order, angstrom; empty if unknown.
        isolated_energies: The model's energy of an isolated atom, by atomic number, eV; empty for a model that
            predicts no energy.
    """

    minimum_distances: Mapping[tuple[int, int], float]
    isolated_energies: Mapping[int, float]

    @classmethod
    def of(cls, potential: Potential) -> Self:
        """Compute the bounds of a potential; this evaluates an isolated atom of each of its elements."""
        known: Mapping[tuple[int, int], float] = getattr(potential, "minimum_distances", None) or {}
        if not any(spec.name == "energy" for spec in potential.outputs):
            return cls(known, {})
        elements = sorted(potential.elements)
        box = np.eye(3) * max(_BOX, 2.5 * potential.cutoff)
        atoms = [Structure.from_fractional([number], box, np.zeros((1, 3))) for number in elements]
        energies = potential.evaluate(GraphBlock.from_structures(atoms, potential.cutoff)).energy.tolist()
        return cls(known, {number: x for number, x in zip(elements, energies, strict=True) if np.isfinite(x)})

    @cached_property
    def shortest(self) -> NDArray[np.float64]:
        """Shortest plausible distances by atomic numbers: float64[119, 119], angstrom."""
        bounds = SHORTEST_OF_RADII * (covalent_radii[:, None] + covalent_radii[None])
        for (one, other), distance in self.minimum_distances.items():
            bounds[one, other] = bounds[other, one] = max(SHORTEST_OF_TRAINING * distance, MIN_DISTANCE)
        return np.asarray(bounds, dtype=np.float64)

    @cached_property
    def _isolated(self) -> NDArray[np.float64]:
        """Energy of an isolated atom by atomic number: float64[119], eV; NaN if unknown."""
        out = np.full(len(chemical_symbols), np.nan)
        out[list(self.isolated_energies)] = list(self.isolated_energies.values())
        return out

    def are_implausible(
        self, block: GraphBlock, energy: NDArray[np.float64], largest_force: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Return which structures are implausible, for the same reasons as `doubts`: bool[n_structures].

        Args:
            block: The structures.
            energy: float64[n_structures], total energies, eV; NaN raises no doubt.
            largest_force: float64[n_structures], largest norm of the force on an atom, eV/angstrom; NaN raises no
                doubt.
        """
        relative = self.relative_energies(block, energy)
        out = (relative < LOWEST_ENERGY) | (relative > HIGHEST_ENERGY) | (largest_force > LARGEST_FORCE)
        _, close = self._close(block)
        out[close] = True
        return out

    def doubts(self, block: GraphBlock, found: Evaluation | None = None) -> list[str]:
        """Return what makes each structure implausible, as text; empty for plausible structures.

        Args:
            block: The structures.
            found: Evaluation of the structures; None checks only distances.
        """
        out = self._of_distances(block)
        if found is None:
            return out
        relative, force = self.relative_energies(block, found.energy), _largest_forces(block, found.forces)
        for row, (energy, largest) in enumerate(zip(relative.tolist(), force.tolist(), strict=True)):
            if out[row]:
                continue
            if energy < LOWEST_ENERGY or energy > HIGHEST_ENERGY:
                out[row] = f"an energy of {energy:+.6g} eV/atom relative to isolated atoms"
            elif largest > LARGEST_FORCE:
                out[row] = f"a force of {largest:.3g} eV/angstrom"
        return out

    def relative_energies(self, block: GraphBlock, energy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return energies relative to isolated atoms: float64[n_structures], eV/atom; NaN for unknown isolated atoms.

        Args:
            block: The structures.
            energy: float64[n_structures], total energies, eV.
        """
        base = np.bincount(block.atom_structure, weights=self._isolated[block.atomic_number], minlength=len(block))
        return np.asarray((energy - base) / block.n_atoms)

    def _of_distances(self, block: GraphBlock) -> list[str]:
        out = [""] * len(block)
        shares, close = self._close(block)
        for row in close.tolist():
            edges = slice(int(block.edge_start[row]), int(block.edge_start[row] + block.n_edges[row]))
            edge = edges.start + int(shares[edges].argmin())
            one, other = block.atomic_number[block.receiver[edge]], block.atomic_number[block.sender[edge]]
            bound = self.shortest[one, other]
            pair = f"{chemical_symbols[one]} and {chemical_symbols[other]}"
            out[row] = f"{pair} {shares[edge] * bound:.2f} angstrom apart, closer than {bound:.2f}"
        return out

    def _close(self, block: GraphBlock) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Find atoms that are too close.

        Returns:
            float64[n_edges], distances relative to the shortest plausible ones; and the structures in which one is
            below 1: int64[n].
        """
        one, other = block.atomic_number[block.receiver], block.atomic_number[block.sender]
        shares = np.linalg.norm(block.displacements(), axis=1) / self.shortest[one, other]
        some = np.flatnonzero(block.n_edges)
        if len(some) == 0:
            return shares, some
        return shares, some[np.minimum.reduceat(shares, block.edge_start[some]) < 1.0]


def atomic_volume(atomic_number: NDArray[np.integer]) -> float:
    """Return the total volume of spheres with the covalent radii of some atoms, angstrom^3.

    The crystals of the Materials Project have 0.7 to 36 times this volume; half of them have less than 1.5 times.

    Args:
        atomic_number: int[n_atoms], atomic numbers.
    """
    return float(4.0 / 3.0 * np.pi * (covalent_radii[atomic_number] ** 3).sum())


def _largest_forces(block: GraphBlock, forces: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest norm of the force on an atom of each structure: float64[n_structures], eV/angstrom."""
    return np.asarray(np.maximum.reduceat(np.linalg.norm(forces, axis=1), block.atom_start))
