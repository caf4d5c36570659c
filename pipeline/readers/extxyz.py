"""Reading of frames of extended XYZ with ASE; comment lines are adapted first, because codes spell keys differently."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import ase
import numpy as np
from ase.io.extxyz import key_val_str_to_dict, read_extxyz
from numpy.typing import NDArray

from ..errors import InvalidStructureError

# Keys and columns as ASE spells them.
_KEYS = {"lattice": "Lattice", "properties": "Properties", "pbc": "pbc"}
_COLUMNS = frozenset({"species", "pos"})
_MAX_COLUMNS, _DIGITS = 10_000, 9
# ASE rejects a frame if one of these does not have nine numbers, so these values are passed to ASE under another name.
_TENSORS = ("stress", "virial")
_HIDDEN = "equiscreen:"
# A quoted or bracketed value, a matrix as nested lists, or a key.
_TOKEN = re.compile(
    r'"(?:\\.|[^"\\])*"|' + r"'(?:\\.|[^'\\])*'|\{[^}]*\}|(?P<rows>\[\s*\[.*?\]\s*\])|\[[^\]]*\]"
    r"|(?<!\S)(?P<key>[^\s=\"'{}\[\]]+)(?=\s*=)"
)
# Keys that may appear only once, since two values cannot both be right.
_ONCE = re.compile(r"lattice|properties|pbc|(\w+_)?(energy|stress|virials?)", re.IGNORECASE)
# Names that other programs give the cell.
_CELL = re.compile(r"(unit_?)?cell(_vectors)?|lattice_?vectors|box", re.IGNORECASE)
# Keys that state the units of all values or of lengths, and the units that they may state.
_UNITS = re.compile(r"units?", re.IGNORECASE)
_LENGTH_UNIT = re.compile(
    r"(length|distance|position|pos|coordinate|coord|lattice|cell|box)s?_?units?"
    r"|units?_(length|distance|position|pos|coordinate|coord|lattice|cell|box)s?",
    re.IGNORECASE,
)
_OF_LENGTHS = frozenset({"a", "å", "ang", "angstrom", "angstroms", "ångström"})
_OF_ALL = _OF_LENGTHS | {"ev", "ase", "metal", "atom", "energy", "length", "force", "forces"}
_AXIS = {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}


def atoms_of_frame(text: str) -> ase.Atoms:
    """Read a frame of extended XYZ.

    ``Lattice``, ``Properties`` and ``pbc`` may have any case. A stress or virial may have nine components, which may be
    a matrix of nested lists, or six in ASE's order (xx, yy, zz, yz, xz, xy). A stress of nine components stays a
    matrix, symmetric or not.

    Raises:
        InvalidStructureError: The comment line gives a value twice, a periodicity that is neither true nor false,
            malformed columns, a cell only under a name other than ``Lattice``, or units (of lengths or of all values)
            other than ASE's.
        Exception: ASE cannot parse the frame; it raises many kinds of errors.
    """
    matrices: dict[str, NDArray[np.float64]] = {}

    def parsed(line: str) -> dict[str, Any]:
        info = _comment(line)
        matrices.update({name: info[name] for name in _TENSORS[:1] if name in info and info[name].shape == (3, 3)})
        return info

    atoms = next(iter(read_extxyz(io.StringIO(text), index=slice(0, 1), properties_parser=parsed)))
    if atoms.calc is not None:
        atoms.calc.results |= matrices  # ASE keeps only one triangle of a matrix
    return atoms


def _comment(line: str) -> dict[str, Any]:
    seen: set[str] = set()

    def spelled(found: re.Match[str]) -> str:
        if found["rows"] is not None:
            return f"[{re.sub(r'[][]', ' ', found['rows'])}]"
        key = found["key"]
        if key is None:
            return found[0]
        key = _KEYS.get(key.lower(), key)
        if key in seen and _ONCE.fullmatch(key):
            raise InvalidStructureError(f"the comment line has two values for {key}; keep only one")
        seen.add(key)
        return f"{_HIDDEN}{key}" if key in _TENSORS else key

    info: dict[str, Any] = key_val_str_to_dict(_TOKEN.sub(spelled, line))
    for name in _TENSORS:
        if (value := info.pop(f"{_HIDDEN}{name}", None)) is not None:
            info[name] = value.reshape((3, 3), order="F") if np.shape(value) == (9,) else np.asarray(value)
    if "pbc" in info:
        info["pbc"] = _axes(info["pbc"])
    if "Properties" in info:
        info["Properties"] = _columns(str(info["Properties"]))
    _check_units(info)
    cells = [key for key, value in info.items() if _CELL.fullmatch(key) and np.size(value) in {3, 6, 9}]
    if cells and "Lattice" not in info:
        raise InvalidStructureError(f"the comment line has {cells[0]}, but no Lattice; rename it to Lattice")
    return info


def _check_units(info: Mapping[str, Any]) -> None:
    """Reject units of lengths, or of all values, that are not ASE's."""
    for key, value in info.items():
        known = _OF_ALL if _UNITS.fullmatch(key) else _OF_LENGTHS if _LENGTH_UNIT.fullmatch(key) else None
        if known is not None and not known.issuperset(re.findall(r"[^\W\d_]+", str(value).lower())):
            raise InvalidStructureError(f"{key} is {value!s:.40}; convert the values to eV and angstrom")


def _axes(value: Any) -> NDArray[np.bool_]:
    """Return the periodic axes, bool[3]; ASE would read the text "f f f" as true."""
    words = re.findall(r"[^\s,]+", value) if isinstance(value, str) else np.ravel(value).tolist()
    axes = [_AXIS.get(str(word).lower()) for word in words]
    if len(axes) not in {1, 3} or None in axes:
        raise InvalidStructureError(f"pbc must have one or three values, each T or F ({value})")
    return np.broadcast_to(np.array(axes, dtype=bool), 3).copy()


def _columns(text: str) -> str:
    """Return names, types and widths of columns, with the names of species and positions in ASE's spelling.

    Raises:
        InvalidStructureError: There are so many columns that ASE could exhaust the memory, or their numbers are
            malformed.
    """
    words = text.split(":")
    widths = [int(word) for word in words[2::3] if word.strip().isdecimal() and len(word) <= _DIGITS]
    if len(widths) < len(words[2::3]) or sum(widths) > _MAX_COLUMNS:
        raise InvalidStructureError(
            "Properties in the comment line must give a whole number of columns for each quantity, "
            f"{_MAX_COLUMNS:,} in total at most"
        )
    for place in range(0, len(words), 3):
        if words[place].lower() in _COLUMNS:
            words[place] = words[place].lower()
    return ":".join(words)
