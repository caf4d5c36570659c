"""Elements of a formula: chemical system, magnetic elements, f electrons."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ase.data import atomic_numbers, chemical_symbols

from ...pipeline.errors import ConfigError
from .composition import parsed

# Elements whose ions commonly have unpaired electrons: 3d from V to Cu, 4f from Ce to Yb, 5f from Pa to Es.
MAGNETIC = frozenset({*range(23, 30), *range(58, 71), *range(91, 100)})
F_ELECTRONS = frozenset({*range(57, 72), *range(89, 104)})


@lru_cache(maxsize=1 << 16)
def elements_of(formula: str) -> frozenset[int]:
    """Return the atomic numbers of the elements of a formula.

    Raises:
        ConfigError: The text is not a chemical formula.
    """
    return frozenset(parsed(formula))


def chemical_system(formula: str) -> str:
    """Return the symbols of the elements of a formula in alphabetical order, such as ``Al-Ni-O``.

    Raises:
        ConfigError: The text is not a chemical formula.
    """
    return "-".join(sorted(chemical_symbols[number] for number in elements_of(formula)))


def parse_elements(given: Sequence[str]) -> frozenset[int]:
    """Return the atomic numbers of chemical symbols; a text may list several: ``["Li,Na", "O"]``.

    Raises:
        ConfigError: A text is not the symbol of an element.
    """
    symbols = [symbol.strip() for text in given for symbol in text.split(",") if symbol.strip()]
    unknown = [symbol for symbol in symbols if atomic_numbers.get(symbol, 0) < 1]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is not the symbol of an element; write elements as Li,Fe,O")
    return frozenset(atomic_numbers[symbol] for symbol in symbols)


def has_magnetic_element(formula: str) -> bool:
    """Return whether a formula has an element in `MAGNETIC`.

    Raises:
        ConfigError: The text is not a chemical formula.
    """
    return bool(elements_of(formula) & MAGNETIC)


def has_f_electrons(formula: str) -> bool:
    """Return whether a formula has a lanthanide or an actinide.

    Raises:
        ConfigError: The text is not a chemical formula.
    """
    return bool(elements_of(formula) & F_ELECTRONS)
