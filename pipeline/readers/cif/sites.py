"""Reading of the sites that a CIF lists, without dummy atoms; disordered sites are rejected."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import gemmi

from ...errors import InvalidStructureError
from ..pymatgen_dict import FULL_OCCUPANCY, MOST_OCCUPANCY
from .elements import SUSPECT, mixed_elements, plain_type, site_element
from .tags import FRACTIONAL, SITE, UNKNOWN, Tags, number

_NONE = frozenset({*UNKNOWN, "0"})


@dataclass(frozen=True, slots=True)
class Sites:
    """The sites that a CIF lists.

    Attributes:
        numbers: Atomic numbers.
        frac_coord: Fractional coordinates.
        multiplicities: Stated numbers of equivalent sites, as written; None if not stated.
        hydrogens: Number of hydrogen atoms that the CIF attaches to sites without listing their coordinates.
    """

    numbers: Sequence[int]
    frac_coord: Sequence[Sequence[float]]
    multiplicities: Sequence[str] | None
    hydrogens: float


def read_sites(block: gemmi.cif.Block, tags: Tags, known: Collection[int]) -> Sites:
    """Read the sites that a CIF lists.

    Args:
        block: Data block.
        tags: Tags of the block.
        known: Elements of the chemical formula; empty if it is not given.

    Raises:
        InvalidStructureError: There are no sites, or a site is disordered, has several elements or an unknown one, or
            has no coordinates.
    """
    columns = _atoms_only(tags.site_columns(block))
    if columns and not any(columns.values()):
        raise InvalidStructureError("no atoms (the list of sites is empty)")
    _check_columns(tags, columns)
    types, labels = columns.get("type_symbol"), columns.get("label")
    names = labels or types or []
    xyz = [_coordinates(columns[name], names) for name in ("fract_x", "fract_y", "fract_z")]
    numbers = [plain_type(value) for value in types] if types is not None else [0] * len(names)
    if not all(numbers):
        numbers = _elements(numbers, types, labels, known)
    if labels is not None and SUSPECT.search(" ".join(labels)):
        for label in map(gemmi.cif.as_string, labels):
            if mixed_elements(label):
                raise InvalidStructureError(f"several elements on one site (site {label})")
    occupancies = columns.get("occupancy")
    if occupancies is not None:
        _check_occupancies(occupancies, names)
    if "disorder_group" in columns or "disorder_assembly" in columns:
        _check_disorder(columns, names)
    stated = columns.get("symmetry_multiplicity", columns.get("site_symmetry_multiplicity"))
    attached = columns.get("attached_hydrogens")
    hydrogens = 0.0 if attached is None else sum(h for text in attached if (h := number(text)) > 0)
    return Sites(
        numbers,
        list(zip(*xyz, strict=True)),
        None if stated is None or not {*stated} - {*UNKNOWN} else stated,
        hydrogens,
    )


def _atoms_only(columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the columns without dummy atoms, which mark positions such as the centre of a ring."""
    flags = [flag.lower() for flag in columns.get("calc_flag", ())]
    if "dum" not in flags:
        return columns
    return {
        name: [value for value, flag in zip(values, flags, strict=True) if flag != "dum"]
        for name, values in columns.items()
    }


def _check_columns(tags: Tags, columns: Mapping[str, Sequence[str]]) -> None:
    """Reject a list without coordinates or without elements."""
    absent = [name for name in FRACTIONAL if name.removeprefix(SITE) not in columns]
    if len(absent) == len(FRACTIONAL):
        if any(name.startswith("_atom_site_cartn_") for name in tags.names):
            raise InvalidStructureError("the sites have only Cartesian coordinates; write fractional coordinates")
        raise InvalidStructureError("no atoms (no _atom_site_fract_x)")
    if absent:
        raise InvalidStructureError(f"coordinates are missing (no {absent[0]})")
    if "type_symbol" not in columns and "label" not in columns:
        raise InvalidStructureError("sites have neither labels nor type symbols")


def _coordinates(texts: Sequence[str], names: Sequence[str]) -> list[float]:
    values: list[float] = [gemmi.cif.as_number(text) for text in texts]
    if math.isfinite(sum(values)):
        return values
    values = [number(text) for text in texts]  # numbers in quotes are accepted too
    for value, text, name in zip(values, texts, names, strict=True):
        if not math.isfinite(value):
            state = "missing" if text in UNKNOWN else f"not finite: {text}"
            raise InvalidStructureError(f"coordinates {state} (site {gemmi.cif.as_string(name)})")
    return values


def _elements(
    numbers: Sequence[int], types: Sequence[str] | None, labels: Sequence[str] | None, known: Collection[int]
) -> list[int]:
    """Return the elements of sites, including sites whose type symbol alone does not determine the element."""
    kinds, names = _texts(types, len(numbers)), _texts(labels, len(numbers))
    listed = {*numbers, *(plain_type(name.rstrip("0123456789")) for name in names)}
    out = []
    for found, kind, name in zip(numbers, kinds, names, strict=True):
        if not (kind or name):
            raise InvalidStructureError("unknown element (a site with neither type symbol nor label)")
        out.append(found or site_element(kind, name, known, listed))
    return out


def _texts(values: Sequence[str] | None, count: int) -> list[str]:
    """Return values without quotes; unknown values become empty."""
    if values is None:
        return [""] * count
    return ["" if text in UNKNOWN else text for text in (gemmi.cif.as_string(value).strip() for value in values)]


@lru_cache(maxsize=4096)
def _occupancy(value: str) -> float:
    """Return an occupancy: 1 for the default ``.``, NaN if it is unknown or not a number."""
    return 1.0 if value == "." else number(value)


def _check_occupancies(texts: Sequence[str], names: Sequence[str]) -> None:
    """Reject partial, impossible and unknown occupancies."""
    if all(FULL_OCCUPANCY <= _occupancy(text) <= MOST_OCCUPANCY for text in {*texts}):
        return
    for text, name in zip(texts, names, strict=True):
        value, where = _occupancy(text), f"site {gemmi.cif.as_string(name)}"
        if math.isnan(value):
            raise InvalidStructureError(f"occupancy is not a number ({where}, {text})")
        if value > MOST_OCCUPANCY:
            raise InvalidStructureError(f"occupancy above 1 ({where}, {text})")
        if value < FULL_OCCUPANCY:
            raise InvalidStructureError(f"partial occupancy ({where}, {value:g})")


def _check_disorder(columns: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
    """Reject alternative sites; a single alternative with stated full occupancies is accepted as an ordered crystal."""
    absent = ["."] * len(names)
    groups = map(gemmi.cif.as_string, columns.get("disorder_group", absent))
    assemblies = map(gemmi.cif.as_string, columns.get("disorder_assembly", absent))
    alternatives = defaultdict(set)
    for group, assembly, name in zip(groups, assemblies, names, strict=True):
        if group in _NONE and assembly in _NONE:
            continue
        alternatives[assembly].add(group)
        several = len(alternatives[assembly]) > 1 or group in _NONE or group.startswith("-")
        if several or "occupancy" not in columns:
            where = f"site {gemmi.cif.as_string(name)}"
            raise InvalidStructureError(f"disordered ({where}, assembly {assembly or '.'}, group {group or '.'})")
