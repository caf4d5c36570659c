"""Structures of a selection as files: CIF, one for each, and extended XYZ, one for all."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ...pipeline.structures.structure import Structure

# Of the part of a file's name that comes from the structure's id.
MAX_NAME = 80
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
# Columns that a CIF or extended XYZ file says of each structure besides numbers and flags.
_TEXTS = ("structure_id", "formula", "prototype_label", "known_as", "decomposition", "source")


@dataclass(frozen=True)
class Batch:
    """Some structures of a selection, with all that is said of them.

    Attributes:
        names: Of files, without suffix; each is different.
        structures: In the same order.
        table: Columns; flags as words.
        flags: Names of those that were flags.
    """

    names: Sequence[str]
    structures: Sequence[Structure]
    table: Mapping[str, NDArray[Any]]
    flags: Collection[str]

    def facts(self, place: int) -> dict[str, Any]:
        """Numbers, flags and the most important texts of one structure, without what is not there."""
        found: dict[str, Any] = {}
        for name, values in self.table.items():
            value = values[place]
            told = name in _TEXTS or name in self.flags
            if values.ndim > 1 or (values.dtype.kind in "TUO" and not (told and value)):
                continue
            if values.dtype.kind == "f" and not np.isfinite(value):
                continue
            found[name] = value.item() if isinstance(value, np.generic) else value
        return found


def file_names(ids: Sequence[str], first: int, width: int) -> list[str]:
    """Names of files: a number, and what of the id no file system and no shell can misread.

    The number alone makes them different, whatever ids are, also where capitals and small letters are one.

    Args:
        ids: Of the structures.
        first: Number of the first.
        width: Digits of a number.
    """
    names = []
    for number, text in enumerate(ids, start=first):
        safe = _UNSAFE.sub("_", text).strip("._")[:MAX_NAME].rstrip("._")
        names.append(f"{number:0{width}d}-{safe}" if safe else f"{number:0{width}d}")
    return names


class CifFolder:
    """A folder of CIFs.

    Args:
        folder: To be made.

    Attributes:
        left_out: Names of structures that have none, and why.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left_out: list[tuple[str, str]] = []
        folder.mkdir()

    def write(self, batch: Batch) -> None:
        """Write those of a batch."""
        for place, (name, structure) in enumerate(zip(batch.names, batch.structures, strict=True)):
            if not structure.pbc.all():
                self.left_out.append((name, "not periodic in three directions"))
                continue
            (self.folder / f"{name}.cif").write_text(cif_text(structure, name, batch.facts(place)))

    def close(self) -> None:
        """Nothing is open."""


def cif_text(structure: Structure, name: str, facts: Mapping[str, Any]) -> str:
    """A CIF of all atoms of the cell, without symmetry (P1), coordinates to ten decimals.

    Args:
        structure: Periodic in three directions.
        name: Of the data block.
        facts: What else to say; becomes tags ``_equiscreen_...``.
    """
    import gemmi  # noqa: PLC0415 - takes 0.1 s, and most runs write no CIF
    from ase.geometry import cell_to_cellpar  # noqa: PLC0415 - likewise

    document = gemmi.cif.Document()
    block = document.add_new_block(name)
    for tag, value in facts.items():
        block.set_pair(f"_equiscreen_{_UNSAFE.sub('_', tag)}", gemmi.cif.quote(_plain(str(value))))
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
    """Text on one line, in the signs that a CIF may hold."""
    return " ".join(text.encode("ascii", "backslashreplace").decode().split())


class ExtxyzFile:
    """One file of extended XYZ.

    Args:
        path: To be made.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")
        self.left_out: list[tuple[str, str]] = []

    def write(self, batch: Batch) -> None:
        """Write those of a batch."""
        from ase.io.extxyz import write_extxyz  # noqa: PLC0415 - ASE takes 0.3 s to import

        images = []
        for place, structure in enumerate(batch.structures):
            atoms = structure.to_ase()
            atoms.info = {name: _word(value) for name, value in batch.facts(place).items()}
            images.append(atoms)
        # `stress` and `energy` in `info` would be taken for results of a calculator; they are numbers like others.
        write_extxyz(self._file, images, write_results=False)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _word(value: Any) -> Any:
    """Text without the signs that end a line or a quotation in extended XYZ."""
    return re.sub(r"[\"\\\s]+", " ", value) if isinstance(value, str) else value
