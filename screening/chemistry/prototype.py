"""Prototype labels: short keys that crystals of one structure type share."""

from __future__ import annotations

from collections import Counter
from math import gcd
from string import ascii_uppercase
from typing import Any

from ...pipeline.structures.structure import Structure
from ...pipeline.structures.symmetry import find_symmetry

# Tolerance of the symmetry search (angstrom), the same as in a relaxation.
SYMPREC = 0.05
NO_PROTOTYPE = "none"
FIRST_TETRAGONAL = 75


class PrototypeLabels:
    """Short keys that crystals of one structure type share: ``ABC3_cP5_221_a_b_c`` for perovskites.

    A key consists of the amounts of the elements, the Pearson symbol, the space group, and the letters of each
    element's Wyckoff positions. The letters depend on the choice of origin. Of all choices that the Euclidean
    normalizer of the group allows, the alphabetically first is used, so that a shift of the origin changes nothing.
    Coordinates do not matter: two types with the same Wyckoff positions but different free parameters share one key.

    In the triclinic, monoclinic and orthorhombic systems, the normalizer depends on the lattice parameters, and so may
    the key. In the other systems, the action of the normalizer on the letters is cached, since moyopy takes
    milliseconds to find it.

    Args:
        symprec: Largest distance of a site from its symmetric position (angstrom).
    """

    def __init__(self, symprec: float = SYMPREC) -> None:
        self.symprec = symprec
        self._choices: dict[tuple[int, str], tuple[dict[str, str], ...]] = {}

    def label(self, structure: Structure) -> str:
        """Return the prototype label of a structure.

        Returns:
            The label; "none" for a structure that is not periodic in three directions, or if no symmetry is found.
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
        """Return the letter of each Wyckoff position after each allowed change of origin."""
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
    """Return the Wyckoff positions of one element, such as ``a2c`` for one orbit on a and two on c."""
    amounts = sorted((choice[letter], amount) for (element, letter), amount in orbits.items() if element == number)
    return "".join(f"{amount if amount > 1 else ''}{letter}" for letter, amount in amounts)


def _name(place: int) -> str:
    """Return the letter that stands for an element in the amounts: A, B, ..., Z, AA, BB, ..."""
    cycle, letter = divmod(place, len(ascii_uppercase))
    return ascii_uppercase[letter] * (cycle + 1)
