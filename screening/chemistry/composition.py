"""Numbered compositions and chemical formulas."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import gcd

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from ase.formula import Formula
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.graphs.graph_block import GraphBlock

_NUMBERS = 256  # atomic numbers are bytes
_QUOTED = 80
# Maximum number of atoms of an element in a formula.
MAX_COUNT = 10**9

# A chemical system: atomic numbers, ascending.
System = tuple[int, ...]
_PLAIN = re.compile(r"(?:[A-Z][a-z]?\d*)+")
_TERM = re.compile(r"([A-Z][a-z]?)(\d*)")
# A species as pymatgen writes it: an element with its charge (Na1+, Fe3+, O2-, Cl-), before the number of atoms.
_CHARGED = re.compile(r"([A-Z][a-z]?)\d?[+-](\d*)")
_SPECIES = re.compile(r"([A-Z][a-z]?)(?:\d?(?:\.\d+)?[+-])?")


class Compositions:
    """Reduced compositions, numbered in the order in which they are added."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[System, tuple[int, ...]], int] = {}
        self._of_text: dict[str, int] = {}
        self._items: list[tuple[System, tuple[int, ...]]] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, amounts: Iterable[tuple[int, int]]) -> int:
        """Add a composition if it is new, and return its number.

        Args:
            amounts: Atomic number and count of each element, with or without a common divisor.
        """
        elements, counts = zip(*sorted(amounts), strict=True)
        divisor = gcd(*counts)
        key = (elements, tuple(count // divisor for count in counts))
        number = self._numbers.setdefault(key, len(self._items))
        if number == len(self._items):
            self._items.append(key)
        return number

    def of_formula(self, text: str) -> int:
        """Add the composition of a formula if it is new, and return its number.

        Raises:
            ConfigError: The text is not a chemical formula with whole numbers of atoms.
        """
        number = self._of_text.get(text)
        if number is None:
            number = self._of_text[text] = self.add(parsed(text).items())
        return number

    def system(self, number: int) -> System:
        """Return the chemical system of a composition."""
        return self._items[number][0]

    def counts(self, number: int) -> tuple[int, ...]:
        """Return the number of atoms of each element in the reduced formula, ordered as in `system`."""
        return self._items[number][1]

    def symbols(self, number: int) -> tuple[str, ...]:
        """Return the symbols of the elements of a composition, ordered as in `system`."""
        return tuple(chemical_symbols[element] for element in self.system(number))

    def fractions(self, numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the atomic fractions of compositions of one chemical system: float64[n, elements]."""
        counts = np.array([self._items[number][1] for number in np.asarray(numbers).tolist()], dtype=np.float64)
        return np.asarray(counts / counts.sum(axis=1, keepdims=True))

    def formula(self, number: int) -> str:
        """Return the reduced formula of a composition, metals first."""
        return formula_text(*self._items[number])

    def by_system(self, numbers: Iterable[int]) -> dict[System, NDArray[np.int64]]:
        """Group compositions by chemical system, small systems first; each group is sorted by counts."""
        found: dict[System, list[int]] = {}
        for number in numbers:
            found.setdefault(self._items[number][0], []).append(number)
        ordered = sorted(found.items(), key=lambda item: (len(item[0]), item[0]))
        # Sort by content: numbers follow the order of the input files, and rounding must not depend on that order.
        return {system: np.array(sorted(members, key=self.counts), dtype=np.int64) for system, members in ordered}


def element_of_species(text: str) -> str | None:
    """Return the symbol of the element of a species such as ``Na`` or ``Na1+``; None for anything else."""
    found = _SPECIES.fullmatch(text.strip())
    return found[1] if found and found[1] in atomic_numbers and found[1] != "X" else None


def parsed(text: str) -> dict[int, int]:
    """Parse a chemical formula into counts by atomic number.

    Species may have charges, as pymatgen writes them: ``Na1+ Cl1-``, or ``Fe3+2 O2-3`` for Fe2O3.

    Raises:
        ConfigError: The text is not a formula with whole numbers of atoms of known elements.
    """
    counts: dict[int, int] = {}
    try:
        if term := _term_of(text):
            for symbol, count in term.findall(text):
                counts[atomic_numbers[symbol]] = counts.get(atomic_numbers[symbol], 0) + int(count or 1)
        else:  # brackets
            counts = {atomic_numbers[symbol]: count for symbol, count in Formula(text.strip()).count().items()}
    except (KeyError, ValueError, TypeError):
        counts = {}
    if not counts or min(counts) < 1 or not 1 <= min(counts.values()) <= max(counts.values()) <= MAX_COUNT:
        raise ConfigError(f"{text[:_QUOTED]!r} is not a chemical formula with whole numbers of atoms, such as Fe2O3")
    return counts


def _term_of(text: str) -> re.Pattern[str] | None:
    """Return the pattern of the terms of a formula without brackets; None for other texts."""
    if _PLAIN.fullmatch(text):
        return _TERM
    words = text.split()
    if words and all(_CHARGED.sub("", word) == "" for word in words):
        return _CHARGED
    return None


@lru_cache(maxsize=1 << 16)
def formula_text(elements: System, counts: tuple[int, ...]) -> str:
    """Return the chemical formula, metals first.

    Args:
        elements: Atomic numbers, in any order.
        counts: Number of atoms of each element.
    """
    places = _metals_first()
    ordered = sorted(zip(elements, counts, strict=True), key=lambda item: places[item[0]])
    return "".join(f"{chemical_symbols[number]}{'' if count == 1 else count}" for number, count in ordered)


@lru_cache(maxsize=1)
def _metals_first() -> dict[int, int]:
    """Return each atomic number's position in ASE's order, metals first; ASE itself takes 20 us per formula."""
    everything = Formula.from_dict(dict.fromkeys(chemical_symbols[1:], 1))
    return {atomic_numbers[symbol]: place for place, symbol in enumerate(Formula(f"{everything:metal}"))}


def formulas(block: GraphBlock) -> NDArray[np.str_]:
    """Return the reduced formulas of the structures of a block, metals first: str[n]."""
    # One number per element of a structure, so that sorting is by structure, then by element.
    found, counts = np.unique(block.atom_structure * _NUMBERS + block.atomic_number, return_counts=True)
    owner, numbers = np.divmod(found, _NUMBERS)
    begin = np.searchsorted(owner, np.arange(len(block)))
    counts = counts // np.gcd.reduceat(counts, begin)[owner] if len(block) else counts
    ends = [*begin[1:].tolist(), len(found)]
    every, of_each = numbers.tolist(), counts.tolist()
    pieces = zip(begin.tolist(), ends, strict=False)
    return np.array([formula_text(tuple(every[i:j]), tuple(of_each[i:j])) for i, j in pieces], dtype=np.str_)
