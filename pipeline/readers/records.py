"""Records: conversion of documents and rows of tables to structures, each with the other fields of its record."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidStructureError, detail
from ..field_path import lookup
from ..memory import MACHINE_ERRORS
from ..sources.formats import Format, detect, is_cif
from ..structures.elements import atomic_number
from ..structures.structure import Structure
from .cif import structure_from_cif
from .json_values import RepeatedKeyError, parse_json, parse_leniently
from .optimade import structure_from_optimade
from .pymatgen_dict import is_optimade, is_structure, structure_from_pymatgen, structure_keys
from .split_csv import separator_of
from .splitting import Document

csv.field_size_limit(1 << 27)  # a CIF of a large cell is one field; the default is 128 kB
# Columns of tables that hold structures as arrays: names used by OPTIMADE (LeMat-Bulk), ASE and similar formats.
_LATTICE = ("lattice_vectors", "cell", "lattice", "lattice_matrix")
_CARTESIAN = ("cartesian_site_positions", "positions", "pos", "cart_coords", "coords")
_FRACTIONAL = ("frac_coords", "fractional_site_positions", "fractional_coords", "scaled_positions")
_SPECIES = ("species_at_sites", "atomic_numbers", "numbers", "symbols", "atomic_symbols", "species")
_PBC = ("pbc", "dimension_types")
# Columns that may reveal disorder or missing atoms.
_CAVEATS = ("structure_features", "assemblies", "nsites", "nperiodic_dimensions")
STRUCTURE_COLUMNS = frozenset((*_LATTICE, *_CARTESIAN, *_FRACTIONAL, *_SPECIES, *_PBC, *_CAVEATS))
_SHORTEST_TEXT = 30  # no structure fits in fewer characters
_LONGEST_REASON = 500
# Documents up to this size (bytes) are parsed for their other fields even if parsing their structure killed the
# process.
_LARGEST_UNREAD = 1 << 20


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options for reading sources.

    Example:
        >>> from equiscreen.pipeline import ReadOptions, featurize
        >>> options = ReadOptions(format="extxyz")
        >>> featurize("crystals.extxyz", "crystals.zarr", options=options, scheduler="threads").stored
        4

    Attributes:
        format: Format of all sources; None detects it from the content of each file.
        structure_field: Column of a table, or dotted path in a JSON record, that holds the structure; None searches for
            it.
    """

    format: Format | None = None
    structure_field: str | None = None


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record of a source.

    Attributes:
        source: Name of the file.
        index: Position in the file, from 0.
        structure: The structure; None if it could not be read.
        fields: The other fields of the record.
        reason: Why there is no structure.
        format: Format of the file.
        name: Name of the record in the file, if it is not one of the fields.
    """

    source: str
    index: int
    structure: Structure | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    format: Format | None = None
    name: str | None = None


def read_document(document: Document, options: ReadOptions) -> RawRecord:
    """Read one document; an error becomes the record's reason.

    Raises:
        MemoryError: The memory is exhausted.
        ImportError: A library cannot be loaded.
    """
    origin = (document.source, document.index)
    if document.reason:
        return RawRecord(*origin, None, reason=document.reason, format=document.format, name=document.name)
    try:
        structure, fields, name = _READERS[document.format](document, options)
    except MACHINE_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001 - a bad record can make a reader raise anything
        fields = error.fields if isinstance(error, _UnreadableRecordError) else {}
        return RawRecord(*origin, None, fields, _reason(error), document.format, document.name)
    return RawRecord(*origin, structure, fields, format=document.format, name=document.name or name)


def unread_document(document: Document, reason: str) -> RawRecord:
    """Make a record of a document without parsing its structure, with the fields that identify it.

    Args:
        document: The document.
        reason: Why its structure is not parsed.
    """
    fields: Mapping[str, Any] = {}
    with suppress(Exception):  # the given reason is recorded, even if the document has other faults
        fields = _fields_alone(document)
    return RawRecord(document.source, document.index, None, fields, reason, document.format, document.name)


def _fields_alone(document: Document) -> Mapping[str, Any]:
    """Return the fields of a small document without parsing its structure; none for a large document."""
    if len(document.content) > _LARGEST_UNREAD:
        return {}
    match document.format:
        case Format.CSV:
            return _csv_row(document)
        case Format.JSON | Format.JSONL:
            return fields_beside(parse_leniently(document.content))
        case Format.EXTXYZ:
            return _comment_fields(_text(document.content).lstrip())
    return {}


def fields_beside(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of a record besides its structure, or all fields if the record does not separate the two."""
    if is_structure(record):
        return {"properties": record.get("properties") or {}}
    if is_optimade(record):
        return {**record.get("attributes", record), **({"id": record["id"]} if "id" in record else {})}
    return record


def read_row(source: str, index: int, row: Mapping[str, Any], form: Format, options: ReadOptions) -> RawRecord:
    """Read one row of a table; an error becomes the record's reason.

    Raises:
        MemoryError: The memory is exhausted.
        ImportError: A library cannot be loaded.
    """
    try:
        structure, fields = _from_mapping(row, options)
    except _UnreadableRecordError as error:
        return RawRecord(source, index, None, error.fields, _reason(error), form)
    return RawRecord(source, index, structure, fields, format=form)


def has_structure_columns(names: Collection[str]) -> bool:
    """Whether a table has columns for the lattice, the positions and the species of structures."""
    kinds = (_LATTICE, (*_CARTESIAN, *_FRACTIONAL), _SPECIES)
    return all(any(name in names for name in kind) for kind in kinds)


class _UnreadableRecordError(InvalidStructureError):
    """A record whose structure could not be read, with its other fields."""

    def __init__(self, reason: str, fields: Mapping[str, Any]) -> None:
        super().__init__(reason)
        self.fields = fields


def _reason(error: Exception) -> str:
    """Return the reason for a failure, on one line that can be written as UTF-8."""
    text = str(error) if isinstance(error, InvalidStructureError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:_LONGEST_REASON].encode(errors="backslashreplace").decode()


ReadResult = tuple[Structure, Mapping[str, Any], str | None]


def _read_cif(document: Document, options: ReadOptions) -> ReadResult:  # noqa: ARG001 - all readers share one signature
    structure, block = structure_from_cif(_text(document.content))
    return structure, {"block": block}, None


def _read_poscar(document: Document, options: ReadOptions) -> ReadResult:  # noqa: ARG001
    text = _text(document.content)
    return structure_from_poscar(text), {"comment": text.split("\n", 1)[0].strip()}, None


def _read_extxyz(document: Document, options: ReadOptions) -> ReadResult:  # noqa: ARG001
    from .extxyz import atoms_of_frame  # noqa: PLC0415 - ASE takes 0.3 s to import

    text = _text(document.content).lstrip()
    try:
        with _parsing("frame does not parse"):
            atoms = atoms_of_frame(text)
        return Structure.from_ase(atoms), fields_of_atoms(atoms), None
    except InvalidStructureError as error:
        raise _UnreadableRecordError(str(error), _comment_fields(text)) from error


def _comment_fields(frame: str) -> dict[str, Any]:
    """Return the fields in the comment line of a frame of extended XYZ; none if the line does not parse."""
    from ase.io.extxyz import key_val_str_to_dict  # noqa: PLC0415 - ASE takes 0.3 s to import

    with suppress(Exception):  # a bad comment can make ASE raise anything
        found: dict[str, Any] = key_val_str_to_dict(frame.partition("\n")[2].partition("\n")[0])
        return found
    return {}


def _read_csv(document: Document, options: ReadOptions) -> ReadResult:
    names, separator = _columns(document.header)
    values = _csv_values(document, separator)
    row: dict[str, Any] = dict(zip(names, values, strict=False))
    if len(set(names)) < len(names):
        row |= _repeated(names, values)
    if len(values) != len(names) and (len(values) < len(names) or any(values[len(names) :])):
        raise _UnreadableRecordError(
            f"the row has {len(values)} fields, but the table has {len(names)} columns ({', '.join(names[:20])})", row
        )
    return (*_from_mapping(row, options), None)


def _repeated(names: Sequence[str], values: Sequence[str]) -> dict[str, list[str]]:
    """Return columns that appear several times with different values, as lists; readers of a single value reject them.

    Args:
        names: Names of the columns of a table.
        values: Fields of a row.
    """
    found: dict[str, list[str]] = {}
    for name, value in zip(names, values, strict=False):
        found.setdefault(name, []).append(value)
    return {name: several for name, several in found.items() if len(set(several)) > 1}


def _csv_values(document: Document, separator: str) -> list[str]:
    with _parsing("row does not parse"):
        return next(csv.reader([_text(document.content)], delimiter=separator))


def _csv_row(document: Document) -> dict[str, str]:
    names, separator = _columns(document.header)
    return dict(zip(names, _csv_values(document, separator), strict=False))


def _read_json(document: Document, options: ReadOptions) -> ReadResult:
    try:
        with _parsing("not valid JSON"):
            record = parse_json(document.content)
    except RepeatedKeyError as error:
        raise _UnreadableRecordError(str(error), fields_beside(parse_leniently(document.content))) from error
    if not isinstance(record, Mapping):
        raise InvalidStructureError(f"not a record ({type(record).__name__})")
    named = {} if document.name is None else {"id": document.name}
    structure, fields = _from_mapping(record, options)
    return structure, {**named, **fields}, None


def _from_mapping(record: Mapping[str, Any], options: ReadOptions) -> tuple[Structure, Mapping[str, Any]]:
    """Read the structure of a record, and return it with the other fields.

    Raises:
        _UnreadableRecordError: The record has no structure, several, or one that cannot be read.
    """
    fields = record
    try:
        if options.structure_field is not None:
            found = lookup(record, options.structure_field)
            fields = {key: value for key, value in record.items() if key != options.structure_field}
            if found is None:
                raise _UnreadableRecordError(  # noqa: TRY301 - re-raised unchanged
                    f"no value in field {options.structure_field!r}", fields
                )
            return structure_from_value(found), fields
        if is_structure(record):
            return structure_from_pymatgen(record), fields_beside(record)
        if is_optimade(record):
            fields = fields_beside(record)
            return structure_from_optimade(record.get("attributes", record)), fields
        names = _structure_fields(record)
        if names:
            fields = {key: value for key, value in record.items() if key not in names}
            if len(names) > 1:
                raise _UnreadableRecordError(  # noqa: TRY301 - re-raised unchanged
                    f"several structures: {', '.join(names)}; choose one with `equiscreen featurize --structure-field`",
                    fields,
                )
            return structure_from_value(record[names[0]]), fields
        return _structure_from_columns(record), fields
    except (_UnreadableRecordError, *MACHINE_ERRORS):
        raise
    except Exception as error:  # including errors of NumPy, for numbers of 400 digits or deeply nested lists
        raise _UnreadableRecordError(_reason(error), fields) from error


def _structure_fields(record: Mapping[str, Any]) -> list[str]:
    """List the fields that hold a structure; among text fields, a column `cif` takes precedence."""
    structured = structure_keys(record)
    if structured:
        return structured
    texts = [key for key, value in record.items() if isinstance(value, str | bytes) and value]
    named = [key for key in texts if key.lower() == "cif"]
    return named[:1] or [
        key for key in texts if len(record[key]) >= _SHORTEST_TEXT and _text_format(record[key]) is not None
    ]


def _text_format(value: str | bytes) -> Format | None:
    """Return the format of a text that holds one structure; None if it holds none."""
    head = value[:4096]
    # JSON may contain a lone surrogate.
    found = detect(head.encode(errors="replace") if isinstance(head, str) else head)
    if found is Format.JSON:
        return found if any(f'"{key}"' in str(value) for key in ("sites", "cartesian_site_positions")) else None
    return found if found in (Format.CIF, Format.POSCAR) else None


def structure_from_value(value: Any) -> Structure:
    """Read a structure from the value of a field.

    The value is CIF or POSCAR text, or a pymatgen or OPTIMADE structure as a dictionary or JSON text.

    Raises:
        InvalidStructureError: The value is none of these, or cannot be read.
    """
    if isinstance(value, str | bytes):
        text = _text(value)
        form = Format.CIF if is_cif(text) else _text_format(text)
        if form is Format.POSCAR:
            return structure_from_poscar(text)
        if form is not Format.JSON:
            return structure_from_cif(text)[0]
        with _parsing("not valid JSON"):
            value = parse_json(text.encode(errors="replace"))
    if is_structure(value):
        return structure_from_pymatgen(value)
    if is_optimade(value):
        return structure_from_optimade(value.get("attributes", value))
    raise InvalidStructureError(f"not a structure ({type(value).__name__})")


def _structure_from_columns(row: Mapping[str, Any]) -> Structure:
    lattice, cartesian, fractional, species, pbc = (
        next((row[name] for name in names if row.get(name) is not None), None)
        for names in (_LATTICE, _CARTESIAN, _FRACTIONAL, _SPECIES, _PBC)
    )
    if species is None or (cartesian is None and fractional is None):
        keys = ", ".join(str(key) or "(no name)" for key in list(row)[:20])
        raise InvalidStructureError(
            f"no structure in any field (fields: {keys}); choose a field with `equiscreen featurize --structure-field`"
        )
    with _parsing("structure does not parse"):
        numbers = _numbers(_listed(species))
        lattice = _listed(lattice)
        if isinstance(lattice, Mapping):  # pymatgen's dictionary form
            lattice = lattice["matrix"]
        axes = _axes(pbc)
        if cartesian is not None:
            return Structure.from_cartesian(numbers, _array(cartesian), _array(lattice), axes & (lattice is not None))
        if lattice is None:
            raise InvalidStructureError("fractional coordinates without a cell")
        cell = _array(lattice)
        return Structure.from_cartesian(numbers, _array(fractional) @ cell, cell, axes)


def _axes(pbc: Any) -> NDArray[np.bool_]:
    """Return the periodic axes, bool[3]; all are periodic if `pbc` is None."""
    values = np.array(True if pbc is None else _listed(pbc))
    if values.dtype.kind not in "biu":  # Python treats the text "False" as true
        raise InvalidStructureError(f"pbc is neither true nor false ({pbc})")
    if values.shape not in ((), (3,)):
        raise InvalidStructureError(f"pbc has {values.size} values instead of 3")
    return np.broadcast_to(values.astype(bool), 3).copy()


def _listed(value: Any) -> Any:
    """Parse a value that is JSON text, as lists in CSV tables are."""
    return parse_json(value.encode()) if isinstance(value, str) else value


def _numbers(species: Any) -> list[int]:
    numbers = [atomic_number(item, f"atom {at}") if isinstance(item, str) else item for at, item in enumerate(species)]
    for atom, number in enumerate(numbers):
        if number != int(number):
            raise InvalidStructureError(f"unknown element (atom {atom}, atomic number {number})")
    return [int(number) for number in numbers]


def _array(value: Any) -> Any:
    return None if value is None else np.array([list(row) for row in _listed(value)], dtype=np.float64)


def structure_from_poscar(text: str) -> Structure:
    """Read a VASP POSCAR with ASE.

    Raises:
        InvalidStructureError: The text does not parse, or has no line of element symbols. VASP 4 keeps the symbols in
            another file, and ASE would read symbols from the comment ("POSCAR" contains phosphorus and oxygen).
    """
    sixth = text.split("\n", 6)[5:6]
    if sixth and _is_integer((sixth[0].split() or [""])[0]):
        raise InvalidStructureError(
            "no element symbols (line 6 has atom counts, as written by VASP 4; insert a line of symbols before it)"
        )
    from ase.io.vasp import read_vasp  # noqa: PLC0415 - ASE takes 0.3 s to import

    with _parsing("POSCAR does not parse"):
        atoms = read_vasp(io.StringIO(_without_grid(text)))
    return Structure.from_ase(atoms)


def _without_grid(text: str) -> str:
    """Return the POSCAR at the beginning of a CHGCAR or LOCPOT, without the grid that follows its atoms."""
    lines = text.splitlines(keepends=True)
    if len(lines) < 8:
        return text
    n_atoms = sum(int(word) for word in lines[6].split() if word.isdecimal())
    selective = lines[7].strip()[:1] in {"S", "s"}
    return "".join(lines[: 8 + selective + n_atoms])


def _is_integer(word: str) -> bool:
    """Whether ASE would read a line that begins with this word as atom counts."""
    try:
        int(word)
    except ValueError:
        return False
    return True


def fields_of_atoms(atoms: Any) -> dict[str, Any]:
    """Return `info`, `arrays` and calculator results of an `ase.Atoms` together; calculator results take precedence."""
    results = atoms.calc.results if atoms.calc is not None else {}
    return {**atoms.info, **atoms.arrays, **results}


class _parsing:  # noqa: N801 - lower case like contextlib's context managers
    """Convert any error of a parser into an `InvalidStructureError` with one reason."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, (InvalidStructureError, *MACHINE_ERRORS)):
            raise InvalidStructureError(f"{self.what}: {detail(error)}") from error


@lru_cache(maxsize=1024)
def _columns(header: bytes) -> tuple[tuple[str, ...], str]:
    """Return the column names of a table, and the column separator."""
    text = _text(header).strip("\r\n")
    separator = separator_of(text)
    return tuple(next(csv.reader([text], delimiter=separator), ())), separator


def _text(content: str | bytes) -> str:
    """Decode UTF-8 or, if that fails, Latin-1, which old files use for people's names."""
    if isinstance(content, str):
        return content
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


_READERS: dict[Format, Callable[[Document, ReadOptions], ReadResult]] = {
    Format.CIF: _read_cif,
    Format.POSCAR: _read_poscar,
    Format.EXTXYZ: _read_extxyz,
    Format.CSV: _read_csv,
    Format.JSON: _read_json,
    Format.JSONL: _read_json,
}
