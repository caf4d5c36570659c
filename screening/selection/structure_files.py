"""Structure files of a selection: one CIF per structure, or one extended XYZ file for all."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.plain_text import extxyz_text
from ...pipeline.structures.cif_text import cif_text
from ...pipeline.structures.structure import Structure

# Maximum number of characters of a structure's id in a file name.
MAX_NAME = 80
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
# Text columns that are written to CIF and extended XYZ files besides numbers and flags.
_TEXTS = ("structure_id", "formula", "prototype_label", "known_as", "decomposition", "source")


@dataclass(frozen=True)
class Batch:
    """Structures of a selection with their columns.

    Attributes:
        names: File names without suffix, all different.
        structures: Structures in the same order.
        table: Columns by name; flags are words.
        flags: Names of the columns that are flags.
    """

    names: Sequence[str]
    structures: Sequence[Structure]
    table: Mapping[str, NDArray[Any]]
    flags: Collection[str]

    def facts(self, place: int) -> dict[str, Any]:
        """Return the numbers, flags and main text columns of one structure, without missing values."""
        found: dict[str, Any] = {}
        for name, values in self.table.items():
            value = values[place]
            included = name in _TEXTS or name in self.flags
            if values.ndim > 1 or (values.dtype.kind in "TUO" and not (included and value)):
                continue
            if values.dtype.kind == "f" and not np.isfinite(value):
                continue
            found[name] = value.item() if isinstance(value, np.generic) else value
        return found


def file_names(ids: Sequence[str], first: int, width: int) -> list[str]:
    """Return file names: a number, then the characters of the id that are safe in any file system and shell.

    The number alone makes the names unique, even in file systems that ignore case.

    Args:
        ids: Ids of the structures.
        first: Number of the first structure.
        width: Number of digits.
    """
    names = []
    for number, text in enumerate(ids, start=first):
        safe = _UNSAFE.sub("_", text).strip("._")[:MAX_NAME].rstrip("._")
        names.append(f"{number:0{width}d}-{safe}" if safe else f"{number:0{width}d}")
    return names


class CifFolder:
    """A folder of CIFs.

    Args:
        folder: Folder to create.

    Attributes:
        left_out: Names of structures without a CIF, each with the reason.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left_out: list[tuple[str, str]] = []
        folder.mkdir()

    def write(self, batch: Batch) -> None:
        """Write the structures of a batch."""
        for place, (name, structure) in enumerate(zip(batch.names, batch.structures, strict=True)):
            if not structure.pbc.all():
                self.left_out.append((name, "not periodic in three directions"))
                continue
            (self.folder / f"{name}.cif").write_text(cif_text(structure, name, batch.facts(place)))

    def close(self) -> None:
        """Do nothing: no file is open."""


class ExtxyzFile:
    """An extended XYZ file.

    Args:
        path: File to create.

    Attributes:
        left_out: Always empty: every structure can be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self.left_out: list[tuple[str, str]] = []

    def write(self, batch: Batch) -> None:
        """Write the structures of a batch."""
        from ase.io.extxyz import write_extxyz  # noqa: PLC0415 - ASE takes 0.3 s to import

        images = []
        for place, structure in enumerate(batch.structures):
            atoms = structure.to_ase()
            facts = batch.facts(place).items()
            atoms.info = {name: extxyz_text(value) if isinstance(value, str) else value for name, value in facts}
            images.append(atoms)
        # Otherwise ASE would treat `stress` and `energy` in `info` as results of a calculator.
        write_extxyz(self._file, images, write_results=False)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
