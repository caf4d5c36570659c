"""Readers: the records of a partition, each a structure with the other fields of its record, or the reason why not."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from .cif import CELL_TAG, parse_cif, structure_from_block, structure_from_cif
from .errors import InvalidStructureError, SourceError
from .labels import lookup
from .pymatgen_json import is_structure, json_records, structure_from_pymatgen, structure_keys
from .sources import Format, Partition, SourceFile, extxyz_pieces
from .structure import Structure

csv.field_size_limit(1 << 27)  # a CIF of a large cell is one field; the default is 128 kB


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a reader is told about its files.

    Attributes:
        cif_column: Column of a CSV that holds CIF text; None finds it.
        structure_key: Dotted path of the structure in a JSON record; None finds it.
    """

    cif_column: str | None = None
    structure_key: str | None = None


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record of a source.

    Attributes:
        source: Name of the file.
        index: Place in the file, from 0.
        structure: None where it could not be read.
        fields: Everything else in the record.
        reason: Why there is no structure.
    """

    source: str
    index: int
    structure: Structure | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def read_partition(partition: Partition, options: ReadOptions) -> Iterator[RawRecord]:
    """Read all records of a partition; a record that cannot be read does not stop the others.

    Raises:
        SourceError: The file cannot be read at all; no record is made up for what it holds.
    """
    records = _READERS[partition.files[0].format](partition, options)
    return islice(records, partition.limit)


def _read_cif_files(partition: Partition, options: ReadOptions) -> Iterator[RawRecord]:  # noqa: ARG001
    for file in partition.files:
        yield from _cif_records(file)


def _cif_records(file: SourceFile) -> Iterator[RawRecord]:
    try:
        document = parse_cif(file.read())
    except InvalidStructureError as error:
        yield RawRecord(file.name, 0, None, reason=str(error))
        return
    blocks = [block for block in document if block.find_values(CELL_TAG)] or list(document)[:1]
    if not blocks:
        yield RawRecord(file.name, 0, None, reason="CIF without a data block")
    for index, block in enumerate(blocks):
        yield _record(file.name, index, structure_from_block, block, {"block": block.name})


def _read_csv(partition: Partition, options: ReadOptions) -> Iterator[RawRecord]:
    source = partition.files[0]
    header = csv_header(source)
    text = io.StringIO(partition.read().decode("utf-8", errors="replace"), newline="")
    column = options.cif_column or next((name for name in header if name.lower() == "cif"), None)
    rows = (values for values in csv.reader(text) if values)
    for index, values in enumerate(rows, start=partition.first):
        row = dict(zip(header, values, strict=False))
        column = column or next((name for name, value in row.items() if CELL_TAG in value), None)
        if column is None:
            names = ", ".join(name or "(no name)" for name in header)
            reason = f"no column holds CIF text (columns: {names}); name it with --cif-column"
            yield RawRecord(source.name, index, None, row, reason)
        elif column not in row:
            yield RawRecord(source.name, index, None, row, f"row of {len(values)} fields, without column {column!r}")
        else:
            yield _record(source.name, index, structure_from_cif, row.pop(column), row)


def csv_header(source: SourceFile) -> list[str]:
    """Column names of a CSV file.

    Raises:
        SourceError: The file cannot be read.
    """
    try:
        with source.open() as stream, io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="") as text:
            return next((row for row in csv.reader(text) if row), [])
    except (OSError, EOFError) as error:
        raise SourceError(f"{source.name}: cannot be read ({error})") from error


def _read_extxyz(partition: Partition, options: ReadOptions) -> Iterator[RawRecord]:  # noqa: ARG001
    source = partition.files[0]
    stream = io.BytesIO(partition.read())
    for index, (length, is_frame) in enumerate(extxyz_pieces(stream), start=partition.first):
        end = stream.tell()
        text = stream.getbuffer()[end - length : end].tobytes().decode("utf-8", errors="replace")
        if is_frame:
            yield _extxyz_record(source.name, index, text.lstrip())
        else:
            reason = f"no number of atoms where a frame should begin: {text.strip()[:40]!r}"
            yield RawRecord(source.name, index, None, reason=reason)


def _extxyz_record(source: str, index: int, frame: str) -> RawRecord:
    from ase.io.extxyz import read_extxyz  # noqa: PLC0415 - ASE takes 0.3 s to import

    try:
        atoms = next(iter(read_extxyz(io.StringIO(frame), index=slice(0, 1))))
    except Exception as error:  # noqa: BLE001 - ASE's parser raises whatever the text makes it stumble on
        return RawRecord(source, index, None, reason=_one_line("frame does not parse", error))
    fields: dict[str, Any] = {**atoms.info, **atoms.arrays}
    if atoms.calc is not None:
        fields.update(atoms.calc.results)
    return _record(source, index, Structure.from_ase, atoms, fields)


def _read_json(partition: Partition, options: ReadOptions) -> Iterator[RawRecord]:
    source = partition.files[0]
    try:
        content = json.loads(partition.read())
    except ValueError as error:
        yield RawRecord(source.name, 0, None, reason=_one_line("not valid JSON", error))
        return
    for index, (key, record) in enumerate(json_records(content)):
        yield _json_record(source.name, index, key, record, options.structure_key)


def _json_record(source: str, index: int, name: str | None, record: Any, key: str | None) -> RawRecord:
    if not isinstance(record, Mapping):
        return RawRecord(source, index, None, reason=f"no record but {type(record).__name__}")
    named = {} if name is None else {"id": name}
    if key is None and is_structure(record):
        return _record(source, index, structure_from_pymatgen, record, named)
    keys = structure_keys(record) if key is None else [key]
    fields = {**named, **{field: value for field, value in record.items() if field not in keys}}
    if len(keys) > 1:
        reason = f"structures under {', '.join(keys)}; say which with --structure-key"
        return RawRecord(source, index, None, fields, reason)
    found = lookup(record, keys[0]) if keys else None
    if not is_structure(found):
        return RawRecord(source, index, None, fields, f"no pymatgen structure under {key or 'any key'}")
    return _record(source, index, structure_from_pymatgen, found, fields)


def _record(source: str, index: int, build: Any, content: Any, fields: Mapping[str, Any]) -> RawRecord:
    """Build the structure of a record; a failure becomes its reason."""
    try:
        return RawRecord(source, index, build(content), fields)
    except InvalidStructureError as error:
        return RawRecord(source, index, None, fields, str(error))
    except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        return RawRecord(source, index, None, fields, _one_line("structure does not parse", error))


def _one_line(what: str, error: Exception) -> str:
    return f"{what}: {' '.join(str(error).split())[:200] or type(error).__name__}"


_READERS = {
    Format.CIF: _read_cif_files,
    Format.CSV: _read_csv,
    Format.EXTXYZ: _read_extxyz,
    Format.JSON: _read_json,
}
