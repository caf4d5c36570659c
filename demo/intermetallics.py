"""Candidate intermetallics: every assignment of metals to the sites of the prototypes, at several volumes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols, reference_states
from ase.io import write

from .alloys import prototypes, with_elements

# Volumes in units of the sum of the elemental volumes. Strong bonds contract a crystal: AlNi needs 0.88.
RELATIVE_VOLUMES = tuple(round(0.80 + 0.04 * step, 2) for step in range(9))


def write_intermetallics(path: Path, metals: Sequence[str]) -> int:
    """Write all candidates as extended XYZ.

    Each frame has the keys structure_id, strukturbericht and relative_volume.

    Args:
        path: File to write.
        metals: Symbols of fcc, bcc or hcp elements; the pure elements become candidates too.

    Returns:
        Number of candidates.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ASE warns about keys that might clash with its own
        images = list(intermetallics(metals))
        write(path, images, format="extxyz")
    return len(images)


def intermetallics(metals: Sequence[str]) -> Iterator[Atoms]:
    """Put metals on the sites of every prototype in every order, and scale each result to every volume.

    Cell shape and fractional coordinates are those of the prototype. Orders that give the same crystal are all
    included; `featurize` recognises them as duplicates.
    """
    numbers = [atomic_numbers[metal] for metal in metals]
    for label, prototype in sorted(prototypes().items()):
        for order in permutations(numbers, len(np.unique(prototype.numbers))):
            atoms = with_elements(prototype, order)
            own = sum(elemental_volume(number) for number in atoms.numbers)
            name = "-".join((label, *(chemical_symbols[number] for number in order)))
            for ratio in RELATIVE_VOLUMES:
                scaled = atoms.copy()
                scaled.set_cell(atoms.cell.array * math.cbrt(ratio * own / atoms.get_volume()), scale_atoms=True)
                scaled.info.update(structure_id=f"{name}-{ratio:.2f}", relative_volume=ratio)
                yield scaled


def elemental_volume(number: int) -> float:
    """Volume per atom of an element in its natural structure, angstrom^3, from the lattice constants in `ase.data`.

    The volume of a compound is close to the sum of these volumes (Zen, Am. Mineral. 41, 523 (1956)).
    """
    reference = reference_states[number]
    a = float(reference["a"])
    match reference["symmetry"]:
        case "fcc":
            return a**3 / 4
        case "bcc":
            return a**3 / 2
        case "hcp":
            return math.sqrt(3) / 4 * a**3 * float(reference["c/a"])
        case other:
            raise ValueError(f"{chemical_symbols[number]} is {other}; only fcc, bcc and hcp elements are supported")
