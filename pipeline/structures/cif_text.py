"""Conversion of a structure to CIF text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ase.data import chemical_symbols

from ..plain_text import one_line
from .structure import Structure

_NOT_IN_A_TAG = re.compile(r"[^A-Za-z0-9._+-]+")


def cif_text(structure: Structure, name: str, facts: Mapping[str, Any]) -> str:
    """Return a CIF with all atoms of the cell, without symmetry (P1) and with ten decimals.

    A CIF gives a cell by its lengths and angles, which do not record its handedness, so the cell of a left-handed basis
    is written as a right-handed one of the same lattice.

    Args:
        structure: Structure that is periodic in three directions.
        name: Name of the data block.
        facts: Further values, written as tags ``_equiscreen_...``.
    """
    import gemmi  # noqa: PLC0415 - takes 0.1 s, and most runs write no CIF
    from ase.geometry import cell_to_cellpar  # noqa: PLC0415 - as above

    structure = structure.right_handed()
    document = gemmi.cif.Document()
    block = document.add_new_block(name)
    for tag, value in facts.items():
        block.set_pair(f"_equiscreen_{_NOT_IN_A_TAG.sub('_', tag)}", gemmi.cif.quote(_plain(str(value))))
    tags = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    for tag, value in zip(tags, cell_to_cellpar(structure.cell), strict=True):
        block.set_pair(f"_cell_{tag}", f"{value:.10f}")
    block.set_pair("_space_group_name_H-M_alt", gemmi.cif.quote("P 1"))
    block.set_pair("_space_group_IT_number", "1")
    block.init_loop("_space_group_symop_", ["operation_xyz"]).add_row([gemmi.cif.quote("x,y,z")])
    sites = block.init_loop("_atom_site_", ["type_symbol", "label", "fract_x", "fract_y", "fract_z", "occupancy"])
    for place, (number, frac) in enumerate(zip(structure.atomic_number, structure.frac_coord, strict=True), start=1):
        symbol = chemical_symbols[number]
        sites.add_row([symbol, f"{symbol}{place}", *(f"{x:.10f}" for x in frac), "1"])
    return str(document.as_string())


def _plain(text: str) -> str:
    """Return the text on one line, in the characters that a CIF may contain."""
    return one_line(text).encode("ascii", "backslashreplace").decode()
