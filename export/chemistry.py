"""What a formula and a structure say of themselves: balance of charges, magnetism, f electrons, prototype."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import gcd
from string import ascii_uppercase
from typing import Any

from ase.data import atomic_numbers, chemical_symbols

from ..pipeline.errors import ConfigError
from ..pipeline.structure import Structure
from ..pipeline.symmetry import find_symmetry
from .compositions import parsed

# `metals`: all elements are metals, which need no ions; SMACT calls them valid. `unknown`: an element without data, or
# too many elements to try all oxidation states.
BALANCE = ("no", "yes", "metals", "unknown")
NO, YES, METALS, UNKNOWN = range(len(BALANCE))
MAX_ELEMENTS = 7
# Elements whose ions commonly have unpaired electrons: 3d from V to Cu, 4f from Ce to Yb, 5f from Pa to Es.
MAGNETIC = frozenset({*range(23, 30), *range(58, 71), *range(91, 100)})
F_ELECTRONS = frozenset({*range(57, 72), *range(89, 104)})
# Angstrom; what a relaxation takes as well.
SYMPREC = 0.05
NO_PROTOTYPE = "none"
FIRST_TETRAGONAL = 75


@lru_cache(maxsize=1 << 16)
def elements_of(formula: str) -> frozenset[int]:
    """Atomic numbers of a formula."""
    return frozenset(parsed(formula))


def chemical_system(formula: str) -> str:
    """Its elements in alphabetical order: ``Al-Ni-O``."""
    return "-".join(sorted(chemical_symbols[number] for number in elements_of(formula)))


def parse_elements(given: Sequence[str]) -> frozenset[int]:
    """Atomic numbers of symbols, each of which may hold several: ["Li,Na", "O"].

    Raises:
        ConfigError: No symbol of an element.
    """
    symbols = [symbol.strip() for text in given for symbol in text.split(",") if symbol.strip()]
    unknown = [symbol for symbol in symbols if atomic_numbers.get(symbol, 0) < 1]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no symbol of an element")
    return frozenset(atomic_numbers[symbol] for symbol in symbols)


def has_magnetic_element(formula: str) -> bool:
    """Whether an element is among `MAGNETIC`."""
    return bool(elements_of(formula) & MAGNETIC)


def has_f_electrons(formula: str) -> bool:
    """Whether there is a lanthanide or an actinide."""
    return bool(elements_of(formula) & F_ELECTRONS)


def balance(formula: str, *, electronegativity: bool) -> int:
    """Whether known oxidation states can make a formula neutral: a place in `BALANCE`.

    By SMACT's rules (Davies et al., Chem 1, 617 (2016); J. Open Source Softw. 4, 1361 (2019)) with its oxidation states
    of the ICSD. Each element has one oxidation state, so that mixed valence, as in Fe3O4, is not seen.

    Args:
        formula: Of whole numbers.
        electronegativity: Want the anions of such a solution to be more electronegative than its cations, too.

    Raises:
        ConfigError: The package smact is not installed.
    """
    return _balance(tuple(sorted(parsed(formula).items())), electronegativity)


@lru_cache(maxsize=1 << 16)
def _balance(amounts: tuple[tuple[int, int], ...], electronegativity: bool) -> int:
    screening = load_smact()
    import smact  # noqa: PLC0415 - takes 0.4 s

    symbols = [chemical_symbols[number] for number, _ in amounts]
    if len(amounts) > MAX_ELEMENTS:
        return UNKNOWN
    if all(symbol in smact.metals for symbol in symbols):
        return METALS
    divisor = gcd(*(count for _, count in amounts))
    formula = "".join(f"{chemical_symbols[number]}{count // divisor}" for number, count in amounts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of elements without a Pauling electronegativity
        try:
            valid = screening.smact_validity(formula, use_pauling_test=electronegativity, include_alloys=False)
        except (KeyError, NameError, TypeError, ValueError):  # elements that SMACT has no data of
            return UNKNOWN
    return YES if valid else NO


@lru_cache(maxsize=1)
def load_smact() -> Any:
    """SMACT's module of rules.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import smact.screening as screening  # noqa: PLC0415, PLR0402 - takes 0.4 s
    except ImportError as error:
        raise ConfigError(
            f"charge_neutral and electronegativity_ok need {error.name}: pip install 'equiscreen[select]'"
        ) from error
    return screening


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
