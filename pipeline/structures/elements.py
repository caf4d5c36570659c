"""Chemical symbols to atomic numbers."""

from __future__ import annotations

import gemmi

from ..errors import InvalidStructureError


def atomic_number(symbol: str, where: str) -> int:
    """The atomic number of a symbol.

    gemmi looks at the first letters only and finds iron in "Fe1" and fluorine in " Fe": the whole symbol must come
    back.

    Args:
        symbol: Of an element, as the periodic table writes it.
        where: For the message: "atom 3".

    Raises:
        InvalidStructureError: No element; a dummy atom (X); deuterium and tritium, which a graph could only hold as
            hydrogen.
    """
    element = gemmi.Element(symbol)
    if element.name == "D" or symbol == "T":
        raise InvalidStructureError(f"isotope ({where}, {symbol!r}: write H for it)")
    number: int = element.atomic_number
    if number == 0 or element.name != symbol:
        raise InvalidStructureError(f"unknown element ({where}, {symbol!r})")
    return number
