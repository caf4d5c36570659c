"""Chemical symbols and atomic numbers, of elements and of pairs of elements."""

from __future__ import annotations

import gemmi

from ..errors import InvalidStructureError


def atomic_number(symbol: str, where: str) -> int:
    """Return the atomic number of a chemical symbol.

    gemmi reads only the first letters: iron from "Fe1", and fluorine from " Fe". Therefore the symbol of the element
    that gemmi finds must equal the given symbol.

    Args:
        symbol: Chemical symbol, as in the periodic table.
        where: Position for the error message: "atom 3".

    Raises:
        InvalidStructureError: The symbol is not an element, is a dummy atom (X), or is deuterium or tritium, which a
            graph could only represent as hydrogen.
    """
    element = gemmi.Element(symbol)
    if element.name == "D" or symbol == "T":
        raise InvalidStructureError(f"isotope ({where}, {symbol!r}: write H instead)")
    number: int = element.atomic_number
    if number == 0 or element.name != symbol:
        raise InvalidStructureError(f"unknown element ({where}, {symbol!r})")
    return number


def pair_name(one: int, other: int) -> str:
    """Return the symbols of two elements in the order of their atomic numbers, such as ``Na-Cl``."""
    return f"{gemmi.Element(min(one, other)).name}-{gemmi.Element(max(one, other)).name}"


def pair_numbers(name: str) -> tuple[int, int]:
    """Return the atomic numbers of a pair of elements, in ascending order.

    Args:
        name: Two chemical symbols, such as ``Na-Cl``.

    Raises:
        InvalidStructureError: One of the symbols is not an element, or there are not exactly two.
    """
    one, _, other = name.partition("-")
    first, second = sorted(atomic_number(symbol, name) for symbol in (one, other))
    return first, second
