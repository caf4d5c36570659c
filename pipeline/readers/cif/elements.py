"""Elements of sites, from their type symbols or labels; a symbol that has another possible meaning is rejected."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

import gemmi

from ...errors import InvalidStructureError
from ...structures.elements import atomic_number

_TYPE = re.compile(r"([A-Za-z]{1,2})(?:[0-9.]*[+-]|[+-][0-9.]*)?")
_LABEL = re.compile(r"([A-Za-z]+)")
_WATER = frozenset({"WAT", "OW", "WA"})
_HYDROGEN, _OXYGEN = 1, 8
# Letters that mark the position of an atom in a molecule: CA is the alpha carbon of an amino acid, or calcium.
_PLACES = frozenset("ABDEGHXTZ")
_OF_MOLECULES = frozenset("CNOHS")
_SYMBOL = r"(?:[A-Z][a-z]?)"
# Two elements on one site: Cu/Al, Fe,Ni, Fe0.5Ni0.5, Fe1Ni1 (but not C1A).
_MIXED = re.compile(
    rf"({_SYMBOL})[0-9.+-]*\s*[/,&|;:]\s*({_SYMBOL})|({_SYMBOL})[0-9]*\.[0-9]+({_SYMBOL})|([A-Z][a-z])[0-9]+([A-Z][a-z])"
)
# Two elements with any separator between them, unless a type symbol decides otherwise: Fe-Ni, O-H, Ga.In.
_JOINED = re.compile(rf"({_SYMBOL})[0-9.]*[^A-Za-z0-9]+({_SYMBOL})")
# A label that counts two elements: Na1K1, H2O1; H2O is the second hydrogen atom of an oxygen atom, or water.
_COUNTED = re.compile(rf"({_SYMBOL})[0-9]+({_SYMBOL})[0-9]+$|(H)2(O)$")
_RARE_EARTH = "RE"  # any rare earth, or rhenium
SUSPECT = re.compile(r"[/,&|;:.]|[0-9][A-Z][a-z]")


def is_element(symbol: str) -> bool:
    """Whether a text is the symbol of an element, in its usual case."""
    element = gemmi.Element(symbol)
    return bool(element.atomic_number > 0 and element.name == symbol)


def mixed_elements(text: str) -> bool:
    """Whether a symbol or label names two elements, as on a mixed site."""
    found = _MIXED.match(text)
    return found is not None and all(is_element(part) for part in found.groups() if part is not None)


@lru_cache(maxsize=1 << 14)
def plain_type(value: str) -> int:
    """Return the atomic number of a type symbol as written in a CIF; 0 if it is ambiguous on its own."""
    found = _TYPE.fullmatch(gemmi.cif.as_string(value).strip())
    if found is None:
        return 0
    symbol = found[1]
    if is_element(symbol) and symbol not in ("D", "T"):
        return int(gemmi.Element(symbol).atomic_number)
    return 0


def site_element(kind: str, label: str, known: Collection[int], listed: Collection[int]) -> int:
    """Return the atomic number of a site.

    Args:
        kind: Type symbol; empty if there is none.
        label: Label of the site.
        known: Elements of the chemical formula; empty if it is not given.
        listed: Elements of other sites.

    Raises:
        InvalidStructureError: The site has several elements, or its element cannot be determined.
    """
    where = f"site {label or '(no label)'}"
    text = kind or label
    if mixed_elements(text) or (not kind and _joined_elements(label, known)):
        raise InvalidStructureError(f"several elements on one site ({where}, {text!r})")
    found = (_TYPE.fullmatch(kind) if kind else _LABEL.match(label)) or [text, text]
    letters = found[1]
    if is_element(letters) or letters in ("D", "T"):
        return atomic_number(letters, where)
    if letters.upper() in _WATER:
        if _HYDROGEN in listed:
            return _OXYGEN
        raise InvalidStructureError(f"water without its hydrogen atoms ({where}, {text!r})")
    wanted = letters.capitalize()
    if len(letters) > 2 or not is_element(wanted) or wanted == "D":
        raise InvalidStructureError(f"unknown element, or several on one site ({where}, {text!r})")
    number = int(gemmi.Element(wanted).atomic_number)
    if letters == _RARE_EARTH and number not in known:
        raise InvalidStructureError(f"{text!r} may mean rhenium or any rare earth ({where}); write rhenium as Re")
    if len(letters) == 1 or _certain(letters.upper(), number, known, of_label=not kind):
        return number
    hint = _LABEL.match(label) if kind else None
    if hint is not None and hint[1] == wanted:
        return number
    first = letters[0].upper()
    if is_element(first):
        raise InvalidStructureError(f"{text!r} is ambiguous ({where}); write the element as {wanted} or {first}")
    raise InvalidStructureError(
        f"{text!r} may mean {wanted} ({where}), which is not in the chemical formula; write the element as {wanted}, "
        "or correct the formula"
    )


def _joined_elements(label: str, known: Collection[int]) -> bool:
    """Whether a label, without a type symbol beside it, may name two elements of the formula."""
    joined, counted = _JOINED.match(label), _COUNTED.match(label)
    if joined is not None and is_element(joined[1]) and is_element(joined[2]):
        return True
    names = [part for part in (counted.groups() if counted is not None else ()) if part is not None]
    return bool(names) and all(is_element(name) and (not known or _number(name) in known) for name in names)


def _number(symbol: str) -> int:
    return int(gemmi.Element(symbol).atomic_number)


def _certain(letters: str, number: int, known: Collection[int], *, of_label: bool) -> bool:
    """Whether two letters in the wrong case can only mean the element with that symbol."""
    first, second = letters[0], letters[1]
    if known:
        single = gemmi.Element(first).atomic_number if is_element(first) else 0
        return number in known and single not in known
    if of_label:
        return not (first in _OF_MOLECULES and (second in _PLACES or is_element(second)))
    return not (is_element(first) and is_element(second))
