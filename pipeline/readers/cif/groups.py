"""Space groups by the names that files give them: old and full Hermann-Mauguin symbols, numbers, origins and axes."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache, lru_cache

import gemmi

LARGEST_NUMBER = 230
# ICSD marks origin choice 1 with S and origin choice 2 with Z.
_CHOICES = {"s": "1", "z": "2", "h": "H", "r": "R", "1": "1", "2": "2"}
_QUALIFIED = re.compile(
    r"(.+?)(?::(?P<plain>1|2|h|r|-?[abc][1-3]?)|\(?(?:o|origin|originchoice|choice)(?P<origin>1|2)\)?|(?P<icsd>[szhr]))"
)
_CUBIC = range(195, 231)
_MONOCLINIC = range(3, 16)
_AXIS_OF_PLANE = re.compile(r"(?:21?|4[1-3]?|6[1-5]?)/")


def groups_by_name(name: str) -> tuple[gemmi.SpaceGroup, ...]:
    """Return the settings of a space group that a Hermann-Mauguin symbol may stand for, the most common first.

    A short monoclinic symbol does not determine the unique axis, and the symbol of a group with two origin choices
    often does not determine the origin. The tuple is empty for an unknown symbol.
    """
    return _by_name(" ".join(name.split()))


@lru_cache(maxsize=4096)
def _by_name(name: str) -> tuple[gemmi.SpaceGroup, ...]:
    compact = _compact(name)
    index = _index()
    for symbol in (compact, _shortened(compact, 1), _shortened(compact, 0)):
        if symbol in index:
            return index[symbol]
    qualified = _QUALIFIED.fullmatch(compact)
    if qualified is not None:
        settings = _by_name(qualified[1])
        choice = qualified["plain"] or qualified["origin"] or qualified["icsd"]
        wanted = _CHOICES.get(choice, choice)
        # Axes contradicted by the cell are corrected later: both settings stay, the stated one first.
        if wanted in ("H", "R"):
            return tuple(sorted(settings, key=lambda group: group.ext != wanted))
        stated = tuple(group for group in settings if wanted in (group.ext, group.qualifier))
        return stated or (settings if qualified["icsd"] else ())
    found = gemmi.find_spacegroup_by_name(name)
    return () if found is None else _settings(found)


def groups_by_number(number: int) -> tuple[gemmi.SpaceGroup, ...]:
    """Return the standard setting of a space group, with all its origins or axes; empty for a wrong number."""
    return _settings(gemmi.find_spacegroup_by_number(number)) if 1 <= number <= LARGEST_NUMBER else ()


@cache
def other_settings(number: int) -> tuple[gemmi.SpaceGroup, ...]:
    """Return all tabulated settings of a space group."""
    return tuple(group for group in gemmi.spacegroup_table() if group.number == number)


def _settings(group: gemmi.SpaceGroup) -> tuple[gemmi.SpaceGroup, ...]:
    """Return a setting of a space group, and the settings that differ from it only in origin or axes."""
    return tuple(other for other in other_settings(group.number) if other.hm == group.hm)


@cache
def _index() -> dict[str, tuple[gemmi.SpaceGroup, ...]]:
    """Return the settings by compact symbol: as tabulated, short, and without bars, as in older cubic symbols."""
    exact, derived = defaultdict(list), defaultdict(list)
    for group in gemmi.spacegroup_table():
        exact[_compact(group.hm)].append(group)
        lattice, *places = group.hm.split()
        if group.number in _MONOCLINIC:
            derived[_compact(lattice + "".join(place for place in places if place != "1"))].append(group)
        if group.number in _CUBIC:
            derived[_compact(lattice + "".join("3" if place == "-3" else place for place in places))].append(group)
    usual = {"b": 0, "c": 1, "a": 2, "": 3}
    for name, groups in derived.items():
        if name not in exact:
            exact[name] = sorted(groups, key=lambda group: usual[group.qualifier.strip("-")[:1]])
    return {name: tuple(groups) for name, groups in exact.items()}


def _shortened(symbol: str, kept: int) -> str:
    """Shorten a full symbol: drop the axes that have a mirror or glide plane, except the first `kept` of them.

    With `kept` = 1, ``p63/m2/m2/c`` becomes ``p63/mmc``.
    """
    axes = list(_AXIS_OF_PLANE.finditer(symbol))[kept:]
    for axis in reversed(axes):
        symbol = symbol[: axis.start()] + symbol[axis.end() :]
    return symbol


def _compact(name: str) -> str:
    """Return a symbol in lower case, without spaces, underscores or the parentheses of screw axes."""
    return re.sub(r"\(([1-5])\)", r"\1", re.sub(r"[\s_]+", "", name.lower()))
