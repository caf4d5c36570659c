"""Random test structures for a network: its elements at plausible distances, in cells of several sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii

from .structure import Structure

# Neighbours are placed at this multiple of the mean sum of covalent radii, plus or minus the jitter (angstrom).
SPACING = 1.15
JITTER = 0.08


def probe_structures(
    elements: Sequence[int], count: int, seed: int, max_atoms: int = 14, cutoff: float = math.inf
) -> list[Structure]:
    """Make random crystals: a jittered cubic grid of sites in a slightly sheared cell.

    Args:
        elements: Atomic numbers to draw from.
        count: Number of structures.
        seed: Random seed.
        max_atoms: Largest number of atoms in a structure; there are never more than 27.
        cutoff: Cutoff in angstrom; nearest neighbours are placed well within it.
    """
    rng = np.random.default_rng(seed)
    boxes = [box for box in itertools.product((1, 2, 3), repeat=3) if 2 <= math.prod(box) <= max_atoms]
    structures = []
    for _ in range(count):
        box = np.array(boxes[int(rng.integers(len(boxes)))])
        sites = np.array(list(itertools.product(*map(range, box))), dtype=float) / box
        numbers = rng.choice(np.asarray(elements), len(sites))
        spacing = min(2 * SPACING * float(np.mean(covalent_radii[numbers])), 0.75 * cutoff)
        cell = np.diag(box * spacing) + rng.normal(0, JITTER, (3, 3))
        frac = sites + rng.normal(0, JITTER, sites.shape) / (box * spacing)
        structures.append(Structure.from_fractional(numbers, cell, frac))
    return structures
