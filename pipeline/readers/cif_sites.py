"""Atom sites of a CIF: which element is where. What is not certain raises an error; nothing is filled in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gemmi

from ..errors import InvalidStructureError
from ..structures.elements import atomic_number
from .pymatgen_dict import FULL_OCCUPANCY

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?:\(\d+\))?")
# An element with an optional charge: Fe, Fe3+, O2-, Na+, Fe+3.
_TYPE = re.compile(r"([A-Za-z]{1,2})(?:\d?[+-]|[+-]\d)?")
# A label: letters, then whatever numbers the site. Texts such as Cu0.6Al0.4, Cu/Al or Fe1Ni are mixed sites.
_LABEL = re.compile(r"([A-Za-z]+)((?:[\d()'\"_*#].*)?)")
_MIXED_REST = re.compile(r"[./,;|&:+]|\d[A-Z][a-z]|-\s*[A-Za-z]")
_WATER = frozenset({"Wat", "WAT", "Ow", "OW"})
_OXYGEN = 8
_UNKNOWN = frozenset({"", "?", "."})
_QUOTES = frozenset("'\";")
# How much an occupancy may exceed 1 by rounding.
_OVERFULL = 1.001


@dataclass(frozen=True, slots=True)
class CifSites:
    """The sites that a file lists.

    Attributes:
        labels: Name of each site, for messages.
        numbers: Atomic numbers.
        frac: Fractional coordinates.
        multiplicities: Number of atoms that the symmetry makes of each site, where the file states it.
    """

    labels: Sequence[str]
    numbers: Sequence[int]
    frac: Sequence[tuple[float, float, float]]
    multiplicities: Sequence[int | None]


class CifValues:
    """Values of a data block by their tags, in lower case.

    Args:
        block: The data block.
    """

    def __init__(self, block: gemmi.cif.Block) -> None:
        self._pairs: dict[str, str] = {}
        self._loops: dict[str, tuple[gemmi.cif.Loop, int]] = {}
        item: Any
        for item in block:
            if (pair := item.pair) is not None:
                self._pairs[pair[0].lower()] = pair[1]
            elif (loop := item.loop) is not None:
                self._loops.update({tag.lower(): (loop, place) for place, tag in enumerate(loop.tags)})

    def __contains__(self, tag: str) -> bool:
        return tag in self._pairs or tag in self._loops

    def texts(self, tags: Iterable[str]) -> Iterator[str]:
        """Values of single tags, without quotes; those that say nothing are skipped."""
        for tag in tags:
            if tag in self._pairs and (text := unquoted(self._pairs[tag]).strip()) not in _UNKNOWN:
                yield text

    def column(self, tag: str) -> list[str]:
        """Column of a loop, without quotes; of a single value, a column of one; empty if there is neither."""
        if tag in self._pairs:
            return [unquoted(self._pairs[tag])]
        if tag not in self._loops:
            return []
        loop, place = self._loops[tag]
        values: list[str] = loop.values[place :: loop.width()]
        return [unquoted(value) if value[:1] in _QUOTES else value for value in values]


def unquoted(value: str) -> str:
    """A value of a CIF without its quotes."""
    return str(gemmi.cif.as_string(value)) if value[:1] in _QUOTES else value


def read_sites(values: CifValues) -> CifSites:
    """Read the sites of a data block. Dummy sites (``_atom_site_calc_flag dum``) are left out.

    Raises:
        InvalidStructureError: A site is disordered, partly occupied, of no single element, or without coordinates, or
            the file says that hydrogen atoms have no coordinates.
    """
    axes = _coordinates(values)
    count = len(axes[0])

    def column(name: str) -> list[str]:
        return values.column(f"_atom_site_{name}") or [""] * count

    labels, kinds = column("label"), column("type_symbol")
    names = [
        label if label not in _UNKNOWN else kind if kind not in _UNKNOWN else str(place)
        for place, (label, kind) in enumerate(zip(labels, kinds, strict=False), start=1)
    ]
    real = [place for place, flag in enumerate(column("calc_flag")) if flag.lower() != "dum"]
    if not real:
        raise InvalidStructureError("no atoms")
    if min(len(labels), len(kinds)) < count or len(real) > count:
        raise InvalidStructureError("the columns of the sites have different lengths")
    occupancies = column("occupancy")
    if set(occupancies) != {"1"}:
        for place in real:
            _check_occupancy(occupancies[place], names[place])
    for name, hydrogens in zip(names, column("attached_hydrogens"), strict=False):
        if hydrogens not in _UNKNOWN and hydrogens != "0":
            raise InvalidStructureError(f"hydrogen atoms without coordinates ({hydrogens} attached to site {name})")
    _check_disorder(column("disorder_assembly"), column("disorder_group"))
    stated = values.column("_atom_site_symmetry_multiplicity") or column("site_symmetry_multiplicity")
    for place in real:
        if not math.isfinite(axes[0][place] + axes[1][place] + axes[2][place]):
            raise InvalidStructureError(f"coordinates not finite (site {names[place]})")
    return CifSites(
        [names[place] for place in real],
        [_element(kinds[place], labels[place]) for place in real],
        [(axes[0][place], axes[1][place], axes[2][place]) for place in real],
        [int(text) if text.isdecimal() and len(text) < 6 else None for text in map(stated.__getitem__, real)],
    )


def _coordinates(values: CifValues) -> list[list[float]]:
    """The three fractional coordinates of all sites; NaN where one is no number.

    Raises:
        InvalidStructureError: One of the three is missing.
    """
    axes = [values.column(f"_atom_site_fract_{axis}") for axis in "xyz"]
    for axis, column in zip("xyz", axes, strict=True):
        if len(column) != max(map(len, axes)):
            raise InvalidStructureError(f"coordinates missing (_atom_site_fract_{axis})")
    return [list(map(gemmi.cif.as_number, column)) for column in axes]


def _check_occupancy(text: str, name: str) -> None:
    """Check that a site is full. A missing occupancy, or a full stop, means 1 (CIF core dictionary)."""
    if text in {"", "."}:
        return
    if not _NUMBER.fullmatch(text):
        raise InvalidStructureError(f"occupancy is not a number (site {name}, {text!r})")
    value = gemmi.cif.as_number(text)
    if not FULL_OCCUPANCY <= value <= _OVERFULL:
        kind = "partial occupancy" if value < FULL_OCCUPANCY else "occupancy above 1"
        raise InvalidStructureError(f"{kind} (site {name}, {value:g})")


def _check_disorder(assemblies: Sequence[str], groups: Sequence[str]) -> None:
    """Refuse alternative positions: several groups of one assembly, or one about a symmetry element."""
    found: dict[str, str] = {}
    for assembly, group in zip(assemblies, groups, strict=False):
        if group in _UNKNOWN or group == "0":
            continue
        if group.startswith("-"):
            raise InvalidStructureError("disordered about a symmetry element (_atom_site_disorder_group is negative)")
        if found.setdefault(assembly, group) != group:
            raise InvalidStructureError(f"disordered (groups {found[assembly]} and {group} are alternatives)")


@lru_cache(maxsize=4096)
def _element(kind: str, label: str) -> int:
    """Atomic number of a site, by its type symbol or else by its label.

    Raises:
        InvalidStructureError: It is no element, or may be several.
    """
    by_label = kind in _UNKNOWN
    found = _LABEL.fullmatch(label) if by_label else _TYPE.fullmatch(kind)
    site = f"site {label if label not in _UNKNOWN else kind}"
    if found is None or (by_label and _MIXED_REST.search(found[2])):
        raise InvalidStructureError(f"unknown element ({site}, {label if by_label else kind!r})")
    letters = found[1]
    if by_label and letters in _WATER:
        return _OXYGEN
    if len(letters) == 2 and letters.isupper() and _both_elements(letters):
        raise InvalidStructureError(f"ambiguous element ({site}, {letters!r}: write {letters.title()}, or two sites)")
    return atomic_number(letters if letters[1:].isupper() and letters[0].islower() else letters.capitalize(), site)


def _both_elements(letters: str) -> bool:
    return all(letter != "D" and gemmi.Element(letter).atomic_number > 0 for letter in letters)
