"""Reading of OPTIMADE structures, in responses of servers and in tables that use the same field names.

The fields follow the OPTIMADE specification, v1.1 and v1.2 (https://github.com/Materials-Consortia/OPTIMADE).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidStructureError
from ..structures.elements import atomic_number
from ..structures.structure import Structure
from .json_values import parse_json
from .pymatgen_dict import FULL_OCCUPANCY, MOST_OCCUPANCY


def structure_from_optimade(attributes: Mapping[str, Any]) -> Structure:
    """Read the attributes of one resource of type `structures`.

    Rows of tables with OPTIMADE field names are read too. There, `species` may be absent (site names are then element
    symbols) or JSON text.

    Args:
        attributes: `lattice_vectors` [3, 3] in angstrom, null along axes that are not periodic; `dimension_types` [3];
            `cartesian_site_positions` [n_atoms, 3] in angstrom; `species_at_sites` [n_atoms]; `species`.

    Raises:
        InvalidStructureError: The structure is disordered, has atoms without positions, or is invalid; or a required
            field is missing or malformed.
    """
    try:
        numbers = _atomic_numbers(attributes)
        positions = _positions(attributes)
        lattice = _lattice(attributes.get("lattice_vectors"))
        axes = _periodic_axes(attributes, lattice)
        if lattice is not None:
            missing = np.isnan(lattice).any(axis=1)
            if (missing & axes).any():
                axis = int(np.flatnonzero(missing & axes)[0])
                raise InvalidStructureError(f"the structure is periodic, but lacks a lattice vector (axis {axis})")
            lattice[missing] = 0.0
        return Structure.from_cartesian(numbers, positions, lattice, axes)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise InvalidStructureError(f"malformed OPTIMADE structure ({type(error).__name__}: {error})") from error


def _atomic_numbers(attributes: Mapping[str, Any]) -> list[int]:
    names = attributes.get("species_at_sites")
    species = attributes.get("species")
    if names is None:
        raise InvalidStructureError("no species_at_sites; request them with response_fields")
    if isinstance(species, str):
        species = parse_json(species.encode())
    _check_features(attributes, species_known=species is not None)
    described: dict[str, Any] = {}
    for entry in () if species is None else species:
        if entry["name"] in described:
            raise InvalidStructureError(f"duplicate species ({entry['name']!r})")
        described[entry["name"]] = entry
    numbers: dict[str, int] = {}
    for atom, name in enumerate(names):
        if name in numbers:
            continue
        if species is not None and name not in described:
            raise InvalidStructureError(f"unknown species (atom {atom}, {name!r})")
        symbol = name if species is None else _only_symbol(described[name], atom)
        numbers[name] = atomic_number(symbol, f"atom {atom}")
    return [numbers[name] for name in names]


def _only_symbol(species: Mapping[str, Any], atom: int) -> str:
    """Return the symbol of the only element of an ordered species."""
    if species.get("attached"):
        raise InvalidStructureError(f"atoms without positions (attached to atom {atom}, {species['name']!r})")
    pairs = zip(species["chemical_symbols"], species["concentration"], strict=True)
    # A concentration that is not a number is neither absent nor full.
    present = [(symbol, share) for symbol, share in pairs if not abs(share) <= 1 - FULL_OCCUPANCY]
    if len(present) != 1 or not FULL_OCCUPANCY <= present[0][1] <= MOST_OCCUPANCY:
        raise InvalidStructureError(f"partial occupancy (atom {atom}, {species['name']!r})")
    symbol = present[0][0]
    if symbol == "vacancy":
        raise InvalidStructureError(f"vacant site (atom {atom})")
    return str(symbol)


def _check_features(attributes: Mapping[str, Any], *, species_known: bool) -> None:
    """Reject features that the sites do not describe; if species are known, they describe disorder and attachments."""
    listed, assemblies = attributes.get("structure_features"), attributes.get("assemblies")
    features = set() if listed is None else set(listed)
    if "assemblies" in features or (assemblies is not None and len(assemblies) > 0):
        raise InvalidStructureError("partial occupancy (assemblies)")
    if "implicit_atoms" in features:
        raise InvalidStructureError("atoms without positions (implicit_atoms)")
    if not species_known and "site_attachments" in features:
        raise InvalidStructureError("atoms without positions (site_attachments)")
    if not species_known and "disorder" in features:
        raise InvalidStructureError("partial occupancy (disorder)")


def _positions(attributes: Mapping[str, Any]) -> NDArray[np.float64]:
    given, n_sites = attributes.get("cartesian_site_positions"), attributes.get("nsites")
    if given is None:
        raise InvalidStructureError("no cartesian_site_positions; request them with response_fields")
    positions = np.array([list(row) for row in given], dtype=np.float64)
    if len(positions) and positions.shape[1:] != (3,):
        raise InvalidStructureError(f"positions have shape {positions.shape} instead of (n_atoms, 3)")
    if n_sites is not None and n_sites != len(positions):
        raise InvalidStructureError(f"cartesian_site_positions has length {len(positions)}, but nsites is {n_sites}")
    return positions


def _lattice(given: Any) -> NDArray[np.float64] | None:
    """Return the lattice vectors, float64[3, 3], with NaN for null; None if there are none."""
    if given is None:
        return None
    lattice = np.array([[None] * 3 if row is None else list(row) for row in given], dtype=np.float64)
    if lattice.shape != (3, 3):
        raise InvalidStructureError(f"lattice vectors have shape {lattice.shape} instead of (3, 3)")
    return lattice


def _periodic_axes(attributes: Mapping[str, Any], lattice: NDArray[np.float64] | None) -> NDArray[np.bool_]:
    """Return the periodic axes: bool[3].

    They are given by `dimension_types`, `nperiodic_dimensions` or null lattice vectors, whichever are available.
    """
    given, count = attributes.get("dimension_types"), attributes.get("nperiodic_dimensions")
    axes: NDArray[np.bool_] = np.ones(3, dtype=bool)
    if given is not None:
        types = list(given)
        if len(types) != 3 or any(kind not in {0, 1} for kind in types):
            raise InvalidStructureError(f"dimension_types must hold three values, each 0 or 1; found {types}")
        axes = np.array(types, dtype=bool)
    elif count == 0:
        axes = np.zeros(3, dtype=bool)
    elif lattice is not None:
        axes = np.isfinite(lattice.sum(axis=1))
    if count is not None and count != axes.sum():
        raise InvalidStructureError(f"nperiodic_dimensions is {count}, but {axes.sum()} axes are periodic")
    return axes
