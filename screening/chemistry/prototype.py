"""Prototype labels: short keys shared by crystals of one structure type."""

from __future__ import annotations

from collections import Counter
from math import gcd
from string import ascii_uppercase
from typing import Any

from ...pipeline.structures.structure import Structure
from ...pipeline.structures.symmetry import find_symmetry

# Angstrom; what a relaxation takes as well.
SYMPREC = 0.05
NO_PROTOTYPE = "none"
FIRST_TETRAGONAL = 75


class PrototypeLabels:
    """Short keys that crystals of one structure type share: ``ABC3_cP5_221_a_b_c`` for perovskites.

    Amounts of the elements, Pearson symbol, space group, and the letters of the Wyckoff positions of each element. The
    letters depend on the choice of the origin; of all choices that the Euclidean normalizer of the group allows, the
    one that comes first in the alphabet is taken, so that a shift of the origin changes nothing. Coordinates play no
    role: two types with equal positions but other free parameters have one key.

    In the three systems whose axes are not fixed by symmetry the normalizer depends on the lattice, and so may the key.

    What the normalizer does to letters is kept where it does not depend on the lattice, since moyopy takes milliseconds
    to find it.

    Args:
        symprec: How far sites may be from where symmetry wants them, angstrom.
    """

    def __init__(self, symprec: float = SYMPREC) -> None:
        self.symprec = symprec
        self._choices: dict[tuple[int, str], tuple[dict[str, str], ...]] = {}

    def label(self, structure: Structure) -> str:
        """The key of a structure.

        Returns:
            "none" without periodicity in three directions or where no symmetry is found.
        """
        found = find_symmetry(structure, self.symprec) if structure.pbc.all() else None
        if found is None:
            return NO_PROTOTYPE
        numbers = structure.atomic_number.tolist()
        counts = Counter(numbers)
        divisor = gcd(*counts.values())
        orbits = Counter(
            (number, letter) for number, letter, _ in set(zip(numbers, found.wyckoffs, found.orbits, strict=True))
        )
        best = min(
            sorted((counts[number] // divisor, _positions(number, orbits, choice)) for number in counts)
            for choice in self._origins(found)
        )
        amounts = "".join(f"{_name(place)}{amount if amount > 1 else ''}" for place, (amount, _) in enumerate(best))
        return "_".join([amounts, str(found.pearson_symbol), str(found.number), *(text for _, text in best)])

    def _origins(self, found: Any) -> tuple[dict[str, str], ...]:
        """What each choice of the origin calls the Wyckoff positions that are taken."""
        key = found.hall_number, "".join(sorted(set(found.wyckoffs)))
        if key in self._choices:
            return self._choices[key]
        cosets = [positions for _, positions in found.normalizer_wyckoff_positions().coset_representatives]
        own = [position.letter for position in cosets[0]]
        choices = tuple(dict(zip(own, (position.letter for position in one), strict=True)) for one in cosets)
        if found.number >= FIRST_TETRAGONAL:
            self._choices[key] = choices
        return choices


def _positions(number: int, orbits: Counter[tuple[int, str]], choice: dict[str, str]) -> str:
    """The positions of one element, ``a2c`` for one orbit on a and two on c."""
    amounts = sorted((choice[letter], amount) for (element, letter), amount in orbits.items() if element == number)
    return "".join(f"{amount if amount > 1 else ''}{letter}" for letter, amount in amounts)


def _name(place: int) -> str:
    """A, B, ... of the elements in the order of their amounts."""
    cycle, letter = divmod(place, len(ascii_uppercase))
    return ascii_uppercase[letter] * (cycle + 1)
