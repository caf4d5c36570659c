"""Readers: the records of a partition, each a structure with the other fields of its record, or the reason why not."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import gemmi
import numpy as np

from .errors import InvalidStructureError, SourceError
from .sources import Format, Partition, SourceFile
from .structure import Structure

csv.field_size_limit(1 << 27)  # a CIF of a large cell is one field; the default is 128 kB

CIF_CELL_TAG = "_cell_length_a"
FULL_OCCUPANCY = 0.999


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
        SourceError: The file as a whole is not what it was taken for.
    """
    records = _READERS[partition.files[0].format](partition, options)
    return islice(records, partition.limit)


def _read_cif_files(partition: Partition, options: ReadOptions) -> Iterator[RawRecord]:  # noqa: ARG001
    for file in partition.files:
        yield from _cif_records(file)


def _cif_records(file: SourceFile) -> Iterator[RawRecord]:
    try:
        with file.open() as stream:
            document = gemmi.cif.read_string(stream.read())
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        yield RawRecord(file.name, 0, None, reason=_one_line("CIF does not parse", error))
        return
    blocks = [block for block in document if block.find_values(CIF_CELL_TAG)] or list(document)[:1]
    if not blocks:
        yield RawRecord(file.name, 0, None, reason="CIF without a data block")
    for index, block in enumerate(blocks):
        yield _record(file.name, index, _from_cif_block, block, {"block": block.name})


def structure_from_cif(text: str | bytes) -> Structure:
    """Read the first crystal of a CIF text.

    Raises:
        InvalidStructureError: It does not parse, is disordered, or lacks cell or sites.
    """
    try:
        document = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError) as error:
        raise InvalidStructureError(_one_line("CIF does not parse", error)) from error
    for block in document:
        if block.find_values(CIF_CELL_TAG):
            return _from_cif_block(block)
    raise InvalidStructureError("CIF without a unit cell")


def _from_cif_block(block: gemmi.cif.Block) -> Structure:
    if not block.find_values(CIF_CELL_TAG):
        raise InvalidStructureError("CIF without a unit cell")
    small = gemmi.make_small_structure_from_block(block)
    for site in small.sites:
        if not np.isfinite(site.occ) or site.occ < FULL_OCCUPANCY:
            raise InvalidStructureError(f"partial occupancy (site {site.label}, {site.occ:g})")
        if site.element.atomic_number == 0:
            raise InvalidStructureError(f"unknown element (site {site.label}, {site.type_symbol!r})")
        if not np.isfinite(site.fract.tolist()).all():  # before symmetry is applied: NaN has no images
            raise InvalidStructureError(f"coordinates that are not finite (site {site.label})")
    sites = small.get_all_unit_cell_sites()
    # The columns of gemmi's orthogonalisation matrix are the lattice vectors.
    cell = np.array(small.cell.orth.mat.tolist()).T
    return Structure.from_fractional(
        [site.element.atomic_number for site in sites], cell, [site.fract.tolist() for site in sites]
    )


def _read_csv(partition: Partition, options: ReadOptions) -> Iterator[RawRecord]:
    source = partition.files[0]
    header = csv_header(source)
    text = io.StringIO(partition.read().decode("utf-8", errors="replace"), newline="")
    column = options.cif_column
    rows = (values for values in csv.reader(text) if values)
    for index, values in enumerate(rows, start=partition.first):
        row = dict(zip(header, values, strict=False))
        column = column or _cif_column(source, row)
        if column not in row:
            reason = f"row of {len(values)} fields, without column {column!r}"
            yield RawRecord(source.name, index, None, row, reason)
            continue
        cif = row.pop(column)
        yield _record(source.name, index, structure_from_cif, cif, row)


def csv_header(source: SourceFile) -> list[str]:
    """Column names of a CSV file.

    Raises:
        SourceError: The file cannot be read.
    """
    try:
        with source.open() as stream, io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="") as text:
            return next(csv.reader(text), [])
    except (OSError, EOFError) as error:
        raise SourceError(f"{source.name}: cannot be read ({error})") from error


def _cif_column(source: SourceFile, row: Mapping[str, str]) -> str:
    named = [name for name in row if name.lower() == "cif"]
    holding = [name for name, value in row.items() if CIF_CELL_TAG in value]
    if not named and not holding:
        columns = ", ".join(name or "(no name)" for name in row)
        raise SourceError(f"{source.name}: no column holds CIF text (columns: {columns}); name it with --cif-column")
    return (named or holding)[0]


def _read_extxyz(partition: Partition, options: ReadOptions) -> Iterator[RawRecord]:  # noqa: ARG001
    source = partition.files[0]
    text = partition.read().decode("utf-8", errors="replace")
    lines = text.splitlines(keepends=True)
    start, index = 0, partition.first
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        try:
            stop = start + int(lines[start]) + 2
        except ValueError:
            reason = f"no number of atoms where a frame should begin: {lines[start].strip()[:40]!r}; the rest is lost"
            yield RawRecord(source.name, index, None, reason=reason)
            return
        yield _extxyz_record(source.name, index, "".join(lines[start:stop]))
        start, index = stop, index + 1


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
        raise SourceError(f"{source.name}: {_one_line('not valid JSON', error)}") from error
    records: Sequence[Any] = content if isinstance(content, list) else [content]
    for index, record in enumerate(records):
        yield _json_record(source.name, index, record, options.structure_key)


def _json_record(source: str, index: int, record: Any, key: str | None) -> RawRecord:
    if not isinstance(record, Mapping):
        return RawRecord(source, index, None, reason=f"no record but {type(record).__name__}")
    if key is None and _is_structure(record):
        return _record(source, index, structure_from_pymatgen, record, {})
    found = [key] if key is not None else [name for name, value in record.items() if _is_structure(value)]
    if not found or not _is_structure(record.get(found[0])):
        return RawRecord(source, index, None, record, f"no pymatgen structure under {key or 'any key'}")
    fields = {name: value for name, value in record.items() if name != found[0]}
    return _record(source, index, structure_from_pymatgen, record[found[0]], fields)


def _is_structure(value: Any) -> bool:
    return isinstance(value, Mapping) and "sites" in value and ("lattice" in value or value.get("@class") == "Molecule")


def structure_from_pymatgen(data: Mapping[str, Any]) -> Structure:
    """Read the dictionary form of a pymatgen `Structure` or `Molecule`, without pymatgen.

    Raises:
        InvalidStructureError: It is disordered, or lacks what it should have.
    """
    try:
        numbers = [_pymatgen_element(site["species"], index) for index, site in enumerate(data["sites"])]
        if "lattice" not in data:
            return Structure.from_cartesian(numbers, [site["xyz"] for site in data["sites"]])
        lattice = data["lattice"]
        frac = [site["abc"] for site in data["sites"]]
        pbc = lattice.get("pbc", (True, True, True))
        if all(pbc):
            return Structure.from_fractional(numbers, lattice["matrix"], frac)
        return Structure.from_cartesian(numbers, np.array(frac) @ np.array(lattice["matrix"]), lattice["matrix"], pbc)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidStructureError(_one_line("not a pymatgen structure", error)) from error


def _pymatgen_element(species: Sequence[Mapping[str, Any]], index: int) -> int:
    if len(species) != 1 or species[0].get("occu", 1) < FULL_OCCUPANCY:
        raise InvalidStructureError(f"partial occupancy (atom {index})")
    symbol = species[0]["element"]
    number: int = gemmi.Element(symbol).atomic_number
    if number == 0:
        raise InvalidStructureError(f"unknown element (atom {index}, {symbol!r})")
    return number


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
