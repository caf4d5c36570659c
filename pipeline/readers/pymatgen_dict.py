"""Reading of pymatgen's JSON without pymatgen: structures, molecules, and records that contain them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InvalidStructureError
from ..structures.elements import atomic_number
from ..structures.structure import Structure

# Occupancies between these limits count as 1, because files round them.
FULL_OCCUPANCY, MOST_OCCUPANCY = 0.999, 1.001


def is_structure(value: Any) -> bool:
    """Whether a value looks like the dictionary form of a Structure or Molecule."""
    return isinstance(value, dict) and "sites" in value and ("lattice" in value or value.get("@class") == "Molecule")


def is_optimade(value: Any) -> bool:
    """Whether a value looks like an OPTIMADE structure resource, or the attributes of one."""
    if not isinstance(value, dict):
        return False
    attributes = value.get("attributes", value)
    return isinstance(attributes, dict) and "cartesian_site_positions" in attributes


def structure_keys(record: Any) -> list[str]:
    """List those keys of a record whose values are structures."""
    if not isinstance(record, dict):
        return []
    return [
        key for key, value in record.items() if isinstance(value, dict) and (is_structure(value) or is_optimade(value))
    ]


def holds_structure(value: Any) -> bool:
    """Whether a value is a structure, or a record that contains one."""
    return is_structure(value) or is_optimade(value) or bool(structure_keys(value))


def structure_from_pymatgen(data: Mapping[str, Any]) -> Structure:
    """Read the dictionary form of a pymatgen `Structure` or `Molecule`.

    Raises:
        InvalidStructureError: The structure is disordered or invalid, or a required field is missing or malformed.
    """
    try:
        numbers = [_site_number(site["species"], index) for index, site in enumerate(data["sites"])]
        if "lattice" not in data:
            return Structure.from_cartesian(numbers, [site["xyz"] for site in data["sites"]])
        lattice = data["lattice"]
        frac = [site["abc"] for site in data["sites"]]
        pbc = lattice.get("pbc") or (True, True, True)  # null in tables if unknown
        if all(pbc):
            return Structure.from_fractional(numbers, lattice["matrix"], frac)
        return Structure.from_cartesian(numbers, np.array(frac) @ np.array(lattice["matrix"]), lattice["matrix"], pbc)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidStructureError(f"malformed pymatgen structure ({type(error).__name__}: {error})") from error


def _site_number(species: Sequence[Mapping[str, Any]], index: int) -> int:
    occupancy = species[0].get("occu") if len(species) == 1 else 0
    if occupancy is not None and not FULL_OCCUPANCY <= occupancy <= MOST_OCCUPANCY:
        kind = "partial occupancy" if occupancy < FULL_OCCUPANCY else f"impossible occupancy {occupancy}"
        raise InvalidStructureError(f"{kind} (atom {index})")
    return atomic_number(species[0]["element"], f"atom {index}")
