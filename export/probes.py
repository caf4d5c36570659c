"""Structures to try a network on: made from its elements at plausible distances, of several sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii

from ..pipeline.structure import Structure

# Neighbours stand at this many times the sum of their covalent radii, on a jittered grid.
SPACING = 1.15
JITTER = 0.08


def probe_structures(elements: Sequence[int], count: int, seed: int, max_atoms: int = 14) -> list[Structure]:
    """Random crystals: sites of a jittered grid in a slightly sheared cell.

    Args:
        elements: Atomic numbers to draw from.
        count: How many.
        seed: Of all random numbers.
        max_atoms: The largest has at most so many.
    """
    rng = np.random.default_rng(seed)
    structures = []
    for _ in range(count):
        n_atoms = int(rng.integers(2, max_atoms + 1))
        side = math.ceil(n_atoms ** (1 / 3))
        numbers = rng.choice(np.asarray(elements), n_atoms)
        spacing = 2 * SPACING * float(np.mean(covalent_radii[numbers]))
        sites = np.array(list(itertools.product(range(side), repeat=3)), dtype=float)
        sites = sites[rng.permutation(side**3)[:n_atoms]] / side
        cell = np.eye(3) * spacing * side + rng.normal(0, JITTER, (3, 3))
        frac = sites + rng.normal(0, JITTER / (spacing * side), sites.shape)
        structures.append(Structure.from_fractional(numbers, cell, frac))
    return structures
