"""pymatgen's JSON, read without pymatgen: structures, molecules, and the records that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gemmi
import numpy as np

from .errors import InvalidStructureError
from .structure import Structure

FULL_OCCUPANCY = 0.999


def json_records(content: Any) -> Iterator[tuple[str | None, Any]]:
    """The records of a JSON file, each with its key where the file is a dictionary of them.

    A list holds a record in each element. A dictionary is one structure or one record, unless it holds several values
    that all are structures or hold one: then these are its records.
    """
    if isinstance(content, list):
        yield from ((None, record) for record in content)
    elif (
        isinstance(content, Mapping)
        and len(content) > 1
        and not is_structure(content)
        and all(is_structure(value) or structure_keys(value) for value in content.values())
    ):
        yield from content.items()
    else:
        yield None, content


def is_structure(value: Any) -> bool:
    """Whether a value looks like the dictionary form of a Structure or Molecule."""
    return isinstance(value, Mapping) and "sites" in value and ("lattice" in value or value.get("@class") == "Molecule")


def structure_keys(record: Any) -> list[str]:
    """The keys of a record under which a structure stands."""
    return [key for key, value in record.items() if is_structure(value)] if isinstance(record, Mapping) else []


def structure_from_pymatgen(data: Mapping[str, Any]) -> Structure:
    """Read the dictionary form of a pymatgen `Structure` or `Molecule`.

    Raises:
        InvalidStructureError: It is disordered, or lacks what it should have.
    """
    try:
        numbers = [_atomic_number(site["species"], index) for index, site in enumerate(data["sites"])]
        if "lattice" not in data:
            return Structure.from_cartesian(numbers, [site["xyz"] for site in data["sites"]])
        lattice = data["lattice"]
        frac = [site["abc"] for site in data["sites"]]
        pbc = lattice.get("pbc", (True, True, True))
        if all(pbc):
            return Structure.from_fractional(numbers, lattice["matrix"], frac)
        return Structure.from_cartesian(numbers, np.array(frac) @ np.array(lattice["matrix"]), lattice["matrix"], pbc)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidStructureError(f"not a pymatgen structure: {type(error).__name__} {error}") from error


def _atomic_number(species: Sequence[Mapping[str, Any]], index: int) -> int:
    if len(species) != 1 or species[0].get("occu", 1) < FULL_OCCUPANCY:
        raise InvalidStructureError(f"partial occupancy (atom {index})")
    symbol = species[0]["element"]
    number: int = gemmi.Element(symbol).atomic_number
    if number == 0:
        raise InvalidStructureError(f"unknown element (atom {index}, {symbol!r})")
    return number
