"""Structures for which the oracles hold results: crystals, a slab, a chain, molecules and an isolated atom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Hydrogen, carbon, oxygen, silicon and copper.
NUMBERS = (1, 6, 8, 14, 29)
SYMBOLS = ("H", "C", "O", "Si", "Cu")
CRYSTAL, SLAB, CHAIN, MOLECULE = (True, True, True), (True, True, False), (True, False, False), (False, False, False)


@dataclass(frozen=True)
class Case:
    """One structure.

    Attributes:
        name: Description of the structure.
        numbers: int64[n], atomic numbers.
        positions: float64[n, 3], angstrom.
        cell: float64[3, 3], lattice vectors as rows, angstrom; zero for a molecule.
        pbc: Whether the structure is periodic along each lattice vector.
    """

    name: str
    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: tuple[bool, bool, bool]


def structures() -> list[Case]:
    """All structures; the atoms of crystals are displaced at random, with a standard deviation of 0.05 angstrom."""
    h, c, o, si, cu = NUMBERS
    fcc = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    skew = np.array([[3.1, 0.2, 0.0], [1.9, 2.6, 0.1], [-1.2, 0.9, 3.3]])
    triclinic = np.array([[4.6, 0.3, -0.2], [0.9, 4.2, 0.4], [-0.5, 1.1, 4.9]])
    flat = np.array([[2.46, 0.0, 0.0], [-1.23, 2.13, 0.0], [0.0, 0.0, 9.0]])
    corners = np.array([[0, 0, 0], [0.25, 0.25, 0.25]])
    perovskite = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    spread = np.array(
        [[0.05, 0.1, 0.02], [0.55, 0.48, 0.07], [0.12, 0.61, 0.52], [0.63, 0.05, 0.49], [0.42, 0.83, 0.8]]
    )
    none = np.zeros((3, 3))
    water = np.array([[0, 0, 0], [0.76, 0.59, 0.02], [-0.74, 0.6, 0.05]])
    methane = 0.63 * np.array([[0, 0, 0], [1, 1, 1.05], [-1, -1.1, 1], [-1.02, 1, -1], [1, -0.95, -1]])
    zigzag = np.array([[0, 0, 0], [1.25, 0.45, 0.1], [1.4, 1.5, 0.3]])
    cases = (
        ("one-atom cell, smaller than the cutoff", (cu,), corners[:1], 3.61 * fcc, CRYSTAL),
        ("diamond structure", (si, si), corners, 5.43 * fcc, CRYSTAL),
        ("zinc blende structure, strained", (si, c), corners, 4.36 * fcc + 0.1 * skew / 3, CRYSTAL),
        ("skewed cell", (cu, o), np.array([[0, 0, 0], [0.52, 0.47, 0.55]]), skew, CRYSTAL),
        ("perovskite structure", (cu, si, o, o, o), perovskite, 3.7 * np.eye(3), CRYSTAL),
        ("every element once", NUMBERS, spread, triclinic, CRYSTAL),
        ("slab", (c, c, h), np.array([[0, 0, 0.5], [0.33, 0.67, 0.51], [0.3, 0.6, 0.63]]), flat, SLAB),
        ("chain", (c, o, h), zigzag, np.diag([2.6, 9, 9]), CHAIN),
        ("water", (o, h, h), water, none, MOLECULE),
        ("methane", (c, h, h, h, h), methane, none, MOLECULE),
        ("isolated atom", (o,), water[:1], none, MOLECULE),
        ("close pair", (si, o), np.array([[0, 0, 0], [0.4, 0.7, 0.3]]), none, MOLECULE),
    )
    rng = np.random.default_rng(17)
    made = []
    for name, numbers, places, cell, pbc in cases:
        positions = places @ cell if pbc in {CRYSTAL, SLAB} else places
        noise = rng.normal(0, 0.05, positions.shape) if pbc == CRYSTAL else 0
        rounded = (np.round(x, 6).astype(np.float64) for x in (positions + noise, cell))
        made.append(Case(name, np.array(numbers, dtype=np.int64), *rounded, pbc))
    return made
