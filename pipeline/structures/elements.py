"""Chemical symbols to atomic numbers."""

from __future__ import annotations

import gemmi

from ..errors import InvalidStructureError


def atomic_number(symbol: str, where: str) -> int:
    """Return the atomic number of a chemical symbol.

    gemmi parses only the first letters and reads iron from "Fe1" and fluorine from " Fe", so its element must have
    exactly the given symbol.

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
