"""Structures of a selection as an OPTIMADE database, which `optimade-maker` serves.

The file of structures is in OPTIMADE JSON Lines: a header, a description of the entries, and one structure per line
(https://github.com/Materials-Consortia/OPTIMADE, v1.2; https://github.com/materialscloud-org/optimade-maker).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from ase.data import chemical_symbols

from ...pipeline.store.schema import TEXT, ArraySpec
from ...pipeline.structures.structure import Structure
from ..dataset.reader import flag_meanings
from .structure_files import Batch

STRUCTURES_FILE, SETTINGS_FILE = "optimade.jsonl", "optimade.yaml"
# Prefix of the columns of the scores. `optimade-maker` replaces it with the prefix of the provider.
PREFIX = "_equiscreen_"
_API_VERSION = "1.2.0"
_SETTINGS = f"""config_version: 0.1.0
database_description: >-
  Crystal structures selected with equiscreen, with predicted properties.
entries:
  jsonl_path: {STRUCTURES_FILE}
"""
# Where this machine read a structure from is of no use to others.
_NOT_SERVED = frozenset({"source", "source_index"})
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9_]")
_LETTERS = 26


class OptimadeFolder:
    """A folder with the structures in OPTIMADE JSON Lines and the settings of `optimade-maker`.

    Args:
        folder: Folder to create.
        specs: Columns of the selection by name; those with one value per structure become properties.

    Attributes:
        left_out: Always empty: every structure can be written.
    """

    def __init__(self, folder: Path, specs: Mapping[str, ArraySpec]) -> None:
        self.left_out: list[tuple[str, str]] = []
        self._columns = {name: spec for name, spec in specs.items() if len(spec.dims) == 1 and name not in _NOT_SERVED}
        self._properties = property_names(self._columns)
        folder.mkdir()
        (folder / SETTINGS_FILE).write_text(_SETTINGS)
        self._file = (folder / STRUCTURES_FILE).open("wb")
        self._write({"x-optimade": {"meta": {"api_version": _API_VERSION}}})
        self._write(self._info())

    def write(self, batch: Batch) -> None:
        """Write the structures of a batch."""
        columns = {name: batch.table[name].tolist() for name in self._columns}
        for place, (name, structure) in enumerate(zip(batch.names, batch.structures, strict=True)):
            values = {self._properties[column]: found[place] for column, found in columns.items()}
            self._write({"id": name, "type": "structures", "attributes": structure_attributes(structure) | values})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(orjson.dumps(line) + b"\n")  # missing numbers become null

    def _info(self) -> dict[str, Any]:
        """Return the description of the columns, as of the endpoint ``/info/structures``."""
        properties = {
            self._properties[name]: {
                "description": str(spec.attrs.get("description") or name),
                "unit": "dimensionless" if spec.attrs.get("units") == "1" else spec.attrs.get("units"),
                "type": _type(spec),
            }
            for name, spec in self._columns.items()
        }
        return {
            "id": "structures",
            "type": "info",
            "description": "structures selected with equiscreen",
            "formats": ["json"],
            "properties": properties,
            "output_fields_by_format": {"json": list(properties)},
        }


def property_names(columns: Iterable[str]) -> dict[str, str]:
    """Return distinct OPTIMADE names of columns, made of lower-case letters, digits and underscores."""
    names: dict[str, str] = {}
    used: set[str] = set()
    for column in columns:
        plain = found = PREFIX + _NOT_IN_A_NAME.sub("_", column.lower())
        number = 2
        while found in used:
            found, number = f"{plain}_{number}", number + 1
        names[column] = found
        used.add(found)
    return names


def _type(spec: ArraySpec) -> str:
    """Return the OPTIMADE type of a column."""
    if spec.dtype == TEXT or flag_meanings(spec.attrs):
        return "string"
    return {"f": "float", "b": "boolean"}.get(np.dtype(spec.dtype).kind, "integer")


def structure_attributes(structure: Structure) -> dict[str, Any]:
    """Return the OPTIMADE attributes of a structure; lattice vectors along directions without periodicity are null."""
    numbers, amounts = np.unique(structure.atomic_number, return_counts=True)
    counts = dict(
        sorted((chemical_symbols[number], amount) for number, amount in zip(numbers, amounts.tolist(), strict=True))
    )
    divisor = gcd(*counts.values())
    reduced = {symbol: count // divisor for symbol, count in counts.items()}
    # Letters are given to the most frequent element first.
    anonymous = {_letters(place): count for place, count in enumerate(sorted(reduced.values(), reverse=True))}
    axes = structure.pbc.tolist()
    return {
        "elements": list(counts),
        "nelements": len(counts),
        "elements_ratios": [count / len(structure) for count in counts.values()],
        "chemical_formula_descriptive": _formula(counts),
        "chemical_formula_reduced": _formula(reduced),
        "chemical_formula_anonymous": _formula(anonymous),
        "dimension_types": [int(axis) for axis in axes],
        "nperiodic_dimensions": sum(axes),
        "lattice_vectors": [
            vector if axis else [None] * 3 for vector, axis in zip(structure.cell.tolist(), axes, strict=True)
        ],
        "cartesian_site_positions": structure.positions.tolist(),
        "nsites": len(structure),
        "species_at_sites": [chemical_symbols[number] for number in structure.atomic_number],
        "species": [{"name": symbol, "chemical_symbols": [symbol], "concentration": [1.0]} for symbol in counts],
        "structure_features": [],
        # optimade-maker 1.0.0 keeps dates as text, so that no filter would find them.
        "last_modified": None,
    }


def _formula(counts: Mapping[str, int]) -> str:
    return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in counts.items())


def _letters(place: int) -> str:
    """Return the symbol of an element in an anonymous formula: A to Z, then Aa, Ba to Za, then Ab and so on."""
    tail, head = divmod(place, _LETTERS)
    return chr(ord("A") + head) + (chr(ord("a") + tail - 1) if tail else "")
