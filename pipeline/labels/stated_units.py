"""Units that a record states beside its labels, such as ``energy_unit=Hartree`` in the comment line of a frame."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_KEY = re.compile(r"(?i)(?:(?P<before>\w+?)_?units?|units?_(?P<after>\w+))")
_SINGULAR = {"energies": "energy", "forces": "force", "stresses": "stress", "virials": "virial"}
_PREFIX = "ref_"
_WORD = re.compile(r"[A-Za-zÅ]+")
# Spellings of units in files, in lower case, that pint misreads or does not know.
_SPELLINGS = {
    "ev": "eV",
    "mev": "meV",
    **dict.fromkeys(("ha", "hartree", "hartrees"), "hartree"),
    **dict.fromkeys(("ry", "ryd", "rydberg", "rydbergs"), "rydberg"),
    **dict.fromkeys(("a", "å", "ang", "angstrom", "angstroms"), "angstrom"),
    "bohr": "bohr",
    "kcal": "kcal",
    "kj": "kJ",
    "gpa": "GPa",
    "kbar": "kbar",
    "mol": "avogadro_number",
}


def stated_units(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the units that a record states, by the name of the field.

    Names are in lower case and in the singular, without ``REF_``.

    Args:
        fields: Fields of the record.
    """
    found = {}
    for key, value in fields.items():
        match = _KEY.fullmatch(key) if isinstance(key, str) and "unit" in key.lower() else None
        if match is not None and isinstance(value, str) and value.strip():
            found[_base(match["before"] or match["after"])] = _spelled(value)
    return found


def unit_of(path: str, stated: Mapping[str, str]) -> str | None:
    """Return the unit that a record states for the field at a path; None if it states none."""
    return stated.get(_base(path)) if stated else None


def _base(name: str) -> str:
    bare = name.lower().removeprefix(_PREFIX)
    return _SINGULAR.get(bare, bare)


def _spelled(text: str) -> str:
    """Return a unit in a spelling that pint reads, apart from ``/atom`` at its end."""
    joined = re.sub(r"\s*(?:\bper\b|/)\s*", "/", text.strip())
    return _WORD.sub(lambda word: _SPELLINGS.get(word[0].lower(), word[0]), joined)
