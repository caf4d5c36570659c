"""Tags of a data block, and whether they describe more than a plain crystal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gemmi

from ...errors import InvalidStructureError

SITE = "_atom_site_"
UNKNOWN = frozenset({"", "?", "."})
FRACTIONAL = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")
OPERATIONS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
SYMBOLS = (
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_symmetry_space_group_name_h-m_full",
    "_space_group_name_h-m_ref",
)
HALL_SYMBOLS = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
GROUP_NUMBERS = ("_space_group_it_number", "_symmetry_int_tables_number")
SYSTEMS = ("_space_group_crystal_system", "_symmetry_cell_setting")
SETTING_CODE = "_space_group_it_coordinate_system_code"
MAGNETIC_OPERATIONS = ("_space_group_symop_magn_operation_xyz", "_space_group_symop_magn_centering_xyz")
_GIVING_SYMMETRY = frozenset({*OPERATIONS, *SYMBOLS, *HALL_SYMBOLS, *GROUP_NUMBERS, *MAGNETIC_OPERATIONS})
# Columns that change which atoms a list of sites stands for.
_SITE_COLUMNS = frozenset(
    {
        *FRACTIONAL,
        "_atom_site_label",
        "_atom_site_type_symbol",
        "_atom_site_occupancy",
        "_atom_site_calc_flag",
        "_atom_site_disorder_assembly",
        "_atom_site_disorder_group",
        "_atom_site_attached_hydrogens",
        "_atom_site_symmetry_multiplicity",
        "_atom_site_site_symmetry_multiplicity",
    }
)
_MAGNETIC = ("_space_group_magn", "_space_group_symop_magn")
_MODULATED = (
    "_cell_wave_vector",
    "_cell_modulation",
    "_cell_subsystem",
    "_space_group_ssg",
    "_space_group_symop_ssg",
    "_space_group_magn_ssg",
    "_space_group_symop_magn_ssg",
    "_atom_site_fourier",
    "_atom_site_displace",
    "_atom_site_occ_fourier",
    "_atom_site_occ_special",
)


@dataclass(frozen=True, slots=True)
class Tags:
    """Tags of a data block.

    DDLm names, such as ``_atom_site.label``, are treated like the older names with underscores.

    Attributes:
        names: Tag as written, by its name in lower case with ``_`` for ``.``.
        magnetic: Names of tags of a magnetic group.
        modulated: Names of tags of a modulated structure.
        symmetry: Names of tags that name the space group.
        sites: Names of the columns of sites, each with its position in the loop, or -1 outside a loop.
    """

    names: Mapping[str, str]
    magnetic: tuple[str, ...]
    modulated: tuple[str, ...]
    symmetry: tuple[str, ...]
    sites: tuple[tuple[str, int], ...]

    def text(self, block: gemmi.cif.Block, name: str) -> str:
        """Return the value of a tag that is not in a loop; an empty string if it is absent or unknown."""
        tag = self.names.get(name)
        value = block.find_value(tag) if tag is not None else None
        if value is None:
            return ""
        text: str = gemmi.cif.as_string(value).strip()
        return "" if text in UNKNOWN else text

    def number(self, block: gemmi.cif.Block, name: str) -> float:
        """Return a numeric value, without its standard uncertainty; NaN if it is absent or not a number."""
        tag = self.names.get(name)
        value = block.find_value(tag) if tag is not None else None
        return number(value) if value is not None else float("nan")

    def column(self, block: gemmi.cif.Block, name: str) -> list[str] | None:
        """Return the values of a tag, in a loop or alone; None if it is absent."""
        tag = self.names.get(name)
        return None if tag is None else list(block.find_values(tag))

    def site_columns(self, block: gemmi.cif.Block) -> dict[str, list[str]]:
        """Return the columns of the list of sites, by name without ``_atom_site_``, all of the same length."""
        if not self.sites:
            return {}
        name, at = self.sites[0]
        if at < 0:
            return {name.removeprefix(SITE): [block.find_value(self.names[name])] for name, _ in self.sites}
        loop = block.find_loop(self.names[name]).get_loop()
        values, width = loop.values, loop.width()
        return {name.removeprefix(SITE): values[at::width] for name, at in self.sites}


def gives_symmetry(block: gemmi.cif.Block) -> bool:
    """Whether a block gives a space group or its operations."""
    for item in block:
        pair: Any = item.pair  # untyped in gemmi: two strings, or None
        tags = [pair[0]] if pair is not None else item.loop.tags if item.loop is not None else []
        for tag in tags:
            if tag.lower().replace(".", "_") in _GIVING_SYMMETRY:
                values = (gemmi.cif.as_string(value).strip() for value in block.find_values(tag))
                if any(value not in UNKNOWN for value in values):
                    return True
    return False


def number(value: str) -> float:
    """Return a CIF number, quoted or not, without its standard uncertainty; NaN if it is not a number."""
    found: float = gemmi.cif.as_number(value)
    return found if found == found else float(gemmi.cif.as_number(gemmi.cif.as_string(value).strip() or "?"))  # noqa: PLR0124


def tags_of(block: gemmi.cif.Block) -> Tags:
    """Return the tags of a block.

    Raises:
        InvalidStructureError: A tag is given twice, the sites are spread over several loops, the block has a save
            frame, the structure is modulated, or its magnetic group is given without its operations.
    """
    groups: list[str | tuple[str, ...]] = []
    items: Iterable[Any] = block  # gemmi's types do not say that two of pair, loop and frame are None
    for item in items:
        if item.pair is not None:
            groups.append(item.pair[0])
        elif item.loop is not None:
            groups.append(tuple(item.loop.tags))
        elif item.frame is not None:
            raise InvalidStructureError(
                f"the data block contains a save frame (save_{item.frame.name}), which only CIF dictionaries may "
                "contain; move its items out of the frame"
            )
    found = _tags(tuple(groups))
    if isinstance(found, str):
        raise InvalidStructureError(found)
    if found.magnetic or found.modulated:
        _check_kind(block, found)
    return found


@lru_cache(maxsize=4096)  # the files of one program have the same tags
def _tags(groups: tuple[str | tuple[str, ...], ...]) -> Tags | str:
    """Return the tags of a block in their order, or the reason why the block is rejected."""
    names: dict[str, str] = {}
    homes, sites = set(), []
    for place, group in enumerate(groups):
        loop = isinstance(group, tuple)
        for at, tag in enumerate(group if isinstance(group, tuple) else (group,)):
            name = tag.lower().replace(".", "_")
            if name in names:
                return f"{name} is given twice (as {names[name]} and {tag})"
            names[name] = tag
            if name in _SITE_COLUMNS:
                homes.add(place if loop else -1)
                sites.append((name, at if loop else -1))
    if len(homes) > 1:
        return "the columns of the sites (_atom_site_...) are spread over several loops"
    modulated = tuple(name for name in names if name.startswith(_MODULATED))
    magnetic = tuple(name for name in names if name.startswith(_MAGNETIC) and name not in modulated)
    symmetry = tuple(name for name in (*SYMBOLS, *GROUP_NUMBERS, *HALL_SYMBOLS, SETTING_CODE) if name in names)
    return Tags(names, magnetic, modulated, symmetry, tuple(sites))


def _check_kind(block: gemmi.cif.Block, tags: Tags) -> None:
    def given(names: tuple[str, ...]) -> list[str]:
        return [
            name
            for name in names
            if any(gemmi.cif.as_string(value).strip() not in UNKNOWN for value in tags.column(block, name) or ())
        ]

    modulated = [name for name in given(tags.modulated) if tags.text(block, name) != "0"]
    if modulated:
        raise InvalidStructureError(
            f"the structure is modulated ({tags.names[modulated[0]]}), so its cell is only an average"
        )
    magnetic = given(tags.magnetic)
    if magnetic and not tags.names.keys() >= {MAGNETIC_OPERATIONS[0]}:
        raise InvalidStructureError(
            f"the magnetic space group ({tags.names[magnetic[0]]}) is given without its operations "
            "(_space_group_symop_magn_operation.xyz)"
        )
