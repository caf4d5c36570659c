"""CIF, read with gemmi; what gemmi would quietly replace by a default is an error here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import gemmi
import numpy as np

from ..errors import InvalidStructureError, detail
from ..structures.elements import atomic_number
from ..structures.structure import Structure
from .pymatgen_dict import FULL_OCCUPANCY

CELL_TAG = "_cell_length_a"
_CELL_TAGS = (
    *(f"_cell_length_{edge}" for edge in "abc"),
    *(f"_cell_angle_{angle}" for angle in ("alpha", "beta", "gamma")),
)
_GROUP_TAGS = (
    "_space_group_IT_number",
    "_symmetry_Int_Tables_number",
    "_space_group_name_H-M_alt",
    "_symmetry_space_group_name_H-M",
    "_space_group_name_Hall",
    "_symmetry_space_group_name_Hall",
)
# Older versions of ASE wrote `P 1` without the quotes that a value with a blank needs.
_UNQUOTED_GROUP = re.compile(
    r"^(_(?:symmetry_)?space_group_name_\S+[ \t]+)([^\s'\";#][^'\"\n]*[ \t][^'\"\n]*?)[ \t\r]*$",
    re.IGNORECASE | re.MULTILINE,
)
_TRIVIAL_GROUPS = frozenset({"", "?", ".", "1", "P1", "P 1"})


def structure_from_cif(text: str) -> tuple[Structure, str]:
    """Read the first crystal of a CIF text, and the name of its data block.

    Raises:
        InvalidStructureError: It does not parse, is disordered, or lacks cell or sites.
    """
    for block in parse_cif(text):
        if block.find_values(CELL_TAG):
            return structure_from_block(block), block.name
    raise InvalidStructureError("CIF without a unit cell")


def parse_cif(text: str) -> gemmi.cif.Document:
    """Parse CIF text.

    Raises:
        InvalidStructureError: It does not parse.
    """
    try:
        return gemmi.cif.read_string(text)
    except (ValueError, RuntimeError) as error:
        repaired = _UNQUOTED_GROUP.sub(r"\1'\2'", text)
        if repaired != text:
            return parse_cif(repaired)
        raise InvalidStructureError(f"CIF does not parse ({detail(error)})") from error


def structure_from_block(block: gemmi.cif.Block) -> Structure:
    """Read the crystal of a data block, with all sites that its symmetry makes.

    Raises:
        InvalidStructureError: It is disordered, lacks cell or sites, or its symmetry is not understood.
    """
    for tag in _CELL_TAGS:
        value = gemmi.cif.as_number(block.find_value(tag) or "?")
        if not 0 <= value < math.inf:
            raise InvalidStructureError(f"{tag} is {block.find_value(tag)}, no number of a cell")
    small = gemmi.make_small_structure_from_block(block)
    _check_symmetry(block, small)
    numbers, frac = _checked_sites(small.sites)
    if small.cell.images:  # symmetry is applied to what has been checked: a coordinate that is not finite has none
        sites = small.get_all_unit_cell_sites()
        numbers, frac = [site.element.atomic_number for site in sites], [site.fract.tolist() for site in sites]
    # The columns of gemmi's orthogonalisation matrix are the lattice vectors.
    return Structure.from_fractional(numbers, np.array(small.cell.orth.mat.tolist()).T, frac)


def _checked_sites(sites: Iterable[gemmi.SmallStructure.Site]) -> tuple[list[int], list[list[float]]]:
    numbers, coordinates = [], []
    for site in sites:
        element, fract = site.element, site.fract.tolist()
        number = element.atomic_number
        if not site.occ >= FULL_OCCUPANCY:
            raise InvalidStructureError(f"partial occupancy (site {site.label}, {site.occ:g})")
        if number <= 1:
            atomic_number(element.name if number else site.type_symbol, f"site {site.label}")
        if not math.isfinite(fract[0] + fract[1] + fract[2]):
            raise InvalidStructureError(f"coordinates that are not finite (site {site.label})")
        numbers.append(number)
        coordinates.append(fract)
    return numbers, coordinates


def _check_symmetry(block: gemmi.cif.Block, small: gemmi.SmallStructure) -> None:
    """Without a group that it knows gemmi takes the listed sites for all of them."""
    n_operators = len(small.symops)
    if n_operators == 1:  # the identity: all sites are listed, whatever the group is called
        return
    if len(small.cell.images) + 1 >= max(2, n_operators):
        return
    named = [str(gemmi.cif.as_string(block.find_value(tag) or "?")).strip() for tag in _GROUP_TAGS]
    foreign = [name for name in named if name not in _TRIVIAL_GROUPS]
    if n_operators or foreign:
        raise InvalidStructureError(
            f"symmetry not understood ({foreign[0] if foreign else f'{n_operators} operators'})"
        )
