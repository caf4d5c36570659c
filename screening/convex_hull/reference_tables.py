"""Reference phases from tables of energies (CSV, parquet)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ...pipeline.energy_schemes import CORRECTED, OWN, R2SCAN, SCHEMES, UNCORRECTED
from ...pipeline.errors import ConfigError, InvalidStructureError, SourceError, detail
from ...pipeline.readers.optimade import structure_from_optimade
from ...pipeline.sources.discovery import find_files
from ...pipeline.structures.structure import Structure
from ..chemistry.composition import Compositions
from ..chemistry.functionals import OF_SCHEME, R2SCAN_FUNCTIONAL, StatementError, of_row, stating_field
from ..dataset.repeated_columns import check_columns
from .energies import basis
from .references import (
    MAX_ENERGY,
    EntryLeftOutError,
    Gathered,
    LeftOut,
    Phase,
    ReadSettings,
    check_one_functional,
    quoted,
)

TABLES = (".csv", ".csv.gz", ".parquet", ".parquet.gz")
_FORMATION, _TOTAL = "formation_energy_per_atom", "energy_per_atom"
_ID_COLUMNS = ("id", "material_id", "entry_id", "structure_id")
_FORMULAS = ("formula", "pretty_formula")
_NO_ENERGY = "no finite energy"
# Columns that are read in addition to columns that state a functional.
_CORRECTION = "mp2020_correction_per_atom"
_READ = frozenset({*_FORMULAS, _TOTAL, _FORMATION, _CORRECTION, "scheme", *_ID_COLUMNS})
# Columns of the structure in parquet tables, with the names that OPTIMADE gives them.
_STRUCTURE = ("lattice_vectors", "cartesian_site_positions", "species_at_sites", "dimension_types")


@dataclass(frozen=True, slots=True)
class FormationEnergy:
    """An entry that is given by its formation energy, which needs the energies of the elements.

    Attributes:
        composition: Number of the composition.
        energy: Formation energy (eV/atom).
        name: Id of the entry.
        left_out: Counts of the entries of the file that are left out.
        structure: Function that reads the structure; None if there is none, or if none was requested.
    """

    composition: int
    energy: float
    name: str
    left_out: LeftOut
    structure: Callable[[], Structure] | None = None


def read_table(
    path: str, settings: ReadSettings, found: Gathered, waiting: list[FormationEnergy], left_out: LeftOut
) -> dict[str, Any]:
    """Read reference phases from a table.

    A row that cannot be used, for example because of a different functional or energy scheme, is left out and counted.

    Args:
        path: File or URL of the table.
        settings: Settings of the reader, including the energy scheme of the candidates.
        found: Updated with the rows that have total energies.
        waiting: Updated with the rows that have formation energies.
        left_out: Counts of the rows that are left out.

    Returns:
        Summary of the file.

    Raises:
        ConfigError: A column is missing, the table states no energy scheme or gives formation energies without
            corrections, or the candidates follow a scheme of their own and the rows follow more than one functional.
        SourceError: The table cannot be read, or a column appears twice; or every row needs a structure, but one has
            none, or one that cannot be read.
    """
    schemes: set[str] = set()
    functionals: set[str] = set()
    for phase in table_phases(path, settings, left_out):
        schemes.add(phase.scheme)
        functionals.add(phase.functional or "not stated")
        if phase.formation:
            waiting.append(FormationEnergy(phase.composition, phase.energy, phase.name, left_out, phase.structure))
        else:
            found.add(phase.composition, phase.energy + phase.correction, phase.name, structure=phase.structure)
    return {"kind": "table", "scheme": ", ".join(sorted(schemes)), "functionals": sorted(functionals)}


def table_phases(path: str, settings: ReadSettings, left_out: LeftOut) -> Iterator[Phase]:
    """Turn the rows of a table into reference phases; a row that cannot be used is left out and counted.

    For a row without a total energy, its formation energy is used.

    Args:
        path: File or URL of the table.
        settings: Settings of the reader, including the energy scheme of the candidates.
        left_out: Counts of the rows that are left out.

    Raises:
        ConfigError: A column is missing, the table states no energy scheme or gives formation energies without
            corrections, or the candidates follow a scheme of their own and the rows follow more than one functional.
        SourceError: The table cannot be read, or a column appears twice; or every row needs a structure, but one has
            none, or one that cannot be read.
    """
    functionals: set[str] = set()
    number = 0
    for batch in _batches(path, settings):
        for row in _rows(path, batch, settings):
            number += 1
            try:
                composition = _composition(row.formula, settings.compositions)
                settings.check_wanted(composition)
                energy = _energy(row.energy)
                functional = _functional(row.statements) or ""
                scheme = _scheme(path, row.scheme, functional or None, settings, formation=row.formation)
                correction = 0.0 if row.formation else _correction(composition, scheme, row.correction, settings)
            except EntryLeftOutError as error:
                left_out.add(row.name or f"row {number}", error)
                continue
            functionals |= {functional} - {""}
            structure = _structure(path, row.name or f"row {number}", row.structure, settings)
            yield Phase(composition, energy, row.name, scheme, functional, correction, row.formation, structure)
    check_one_functional(path, settings.scheme, functionals)


def add_formation_energies(waiting: list[FormationEnergy], compositions: Compositions, found: Gathered) -> None:
    """Add entries that are given by formation energies, relative to the elements among the other entries.

    Raises:
        ConfigError: No entry has references for all of its elements.
    """
    elements: dict[int, float] = {}
    for number, energy in zip(found.composition, found.energy, strict=True):
        system = compositions.system(number)
        if len(system) == 1:
            elements[system[0]] = min(energy, elements.get(system[0], np.inf))
    added, lacking = 0, ""
    for entry in waiting:
        system, counts = compositions.system(entry.composition), compositions.counts(entry.composition)
        symbols = compositions.symbols(entry.composition)
        missing = [symbol for symbol, element in zip(symbols, system, strict=True) if element not in elements]
        if missing:
            lacking = lacking or f"{', '.join(missing)} (of {compositions.formula(entry.composition)})"
            error = EntryLeftOutError("formation energy without references of its elements", ", ".join(missing))
            entry.left_out.add(entry.name or compositions.formula(entry.composition), error)
            continue
        elemental = sum(elements[z] * count for z, count in zip(system, counts, strict=True)) / sum(counts)
        found.add(entry.composition, entry.energy + elemental, entry.name, structure=entry.structure)
        added += 1
    if waiting and not added:
        raise ConfigError(
            f"formation energies also need references for the elements, but there are none for {lacking}; add "
            "references for these elements"
        )


@dataclass(frozen=True, slots=True)
class _Row:
    """Fields of a row that are read.

    Attributes:
        formula: Chemical formula.
        energy: Total energy or, if the row has none, formation energy (eV/atom).
        formation: Whether `energy` is a formation energy.
        scheme: Energy scheme; None if the row states none.
        name: Id of the row; empty if it has none.
        statements: What the row states about the functional, by column.
        correction: MP2020 correction (eV/atom); None if the row has none.
        structure: Fields of the structure, with the names that OPTIMADE gives them.
    """

    formula: object
    energy: object
    formation: bool
    scheme: object
    name: str
    statements: Mapping[str, object]
    correction: object
    structure: Mapping[str, Any]


def _rows(path: str, batch: pa.RecordBatch, settings: ReadSettings) -> Iterator[_Row]:
    """Yield the rows of a table.

    Raises:
        ConfigError: A column is missing, or nothing states an energy scheme.
        SourceError: The table has no structures, which every row needs.
    """
    names = batch.schema.names
    if not any(name in names for name in _FORMULAS) or not {_TOTAL, _FORMATION} & {*names}:
        raise ConfigError(f"{path}: a table of references needs the columns formula and {_TOTAL} (or {_FORMATION})")
    stating = [name for name in names if stating_field(name) is not None]
    if "scheme" not in names and not stating and settings.assumed is None:
        raise ConfigError(f"{path} states no energy scheme; use --scheme with one of {', '.join(SCHEMES)}")
    if settings.with_structures and _STRUCTURE[0] not in names:
        raise SourceError(
            f"{path}: the table has no structures, by which --exclude-self recognises phases; use references "
            "with structures, or leave out --exclude-self"
        )
    formula = next(name for name in _FORMULAS if name in names)
    identity = next((name for name in _ID_COLUMNS if name in names), "")
    for row in batch.to_pylist():
        formation = _TOTAL not in row or (_is_absent(row[_TOTAL]) and not _is_absent(row.get(_FORMATION)))
        name = row.get(identity)
        yield _Row(
            formula=row[formula],
            energy=row[_FORMATION] if formation else row[_TOTAL],
            formation=formation,
            scheme=row.get("scheme"),
            name="" if name is None else str(name),
            statements={column: row[column] for column in stating},
            correction=row.get(_CORRECTION),
            structure={column: row[column] for column in _STRUCTURE if row.get(column) is not None},
        )


def _is_absent(value: object) -> bool:
    """Return whether a field is empty: None or NaN in parquet files, an empty text in CSV files."""
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))


def _functional(row: Mapping[str, object]) -> str | None:
    """Return the functional that a row states; None if it states none.

    Raises:
        EntryLeftOutError: The row states two functionals, or a statement is not text.
    """
    try:
        stated = of_row(row)
    except StatementError as error:
        raise EntryLeftOutError(error.reason, str(error)) from error
    return None if stated is None else str(stated)


def _composition(formula: object, compositions: Compositions) -> int:
    try:
        return compositions.of_formula(str(formula or ""))
    except ConfigError as error:
        raise EntryLeftOutError("no composition with whole numbers of atoms", quoted(formula)) from error


def _energy(value: object) -> float:
    """Convert an energy in a table to a number (eV/atom).

    Raises:
        EntryLeftOutError: The value is not a number, or not a plausible energy.
    """
    try:
        # `float` also accepts bool, which is not an energy, and "1_000", which no program writes.
        energy = np.nan if isinstance(value, bool) or "_" in str(value) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        energy = np.nan
    if not np.isfinite(energy):
        raise EntryLeftOutError(_NO_ENERGY, quoted(value))
    if abs(energy) > MAX_ENERGY:
        raise EntryLeftOutError("no plausible energy", f"{energy:g} eV/atom")
    return energy


def _scheme(path: str, given: object, functional: str | None, settings: ReadSettings, *, formation: bool) -> str:
    """Return the energy scheme of a row. What the row states takes precedence over what the user assumes.

    Raises:
        EntryLeftOutError: The energy cannot be compared with the candidates' energies, or its scheme is unknown.
        ConfigError: The formation energies come from uncorrected energies.
    """
    if functional is not None and functional not in OF_SCHEME.get(settings.scheme, {functional}):
        raise EntryLeftOutError(f"functional {functional}", f"the candidates follow {settings.scheme}")
    certain = R2SCAN if functional == R2SCAN_FUNCTIONAL and settings.scheme != OWN else None
    scheme = given or certain or settings.assumed
    if scheme is None:
        raise EntryLeftOutError("no energy scheme", "use --scheme to state the energy scheme of such rows")
    if not isinstance(scheme, str):
        raise EntryLeftOutError("malformed energy scheme", quoted(scheme))
    if scheme not in SCHEMES or basis(scheme) != basis(settings.scheme):
        raise EntryLeftOutError(f"energy scheme {scheme[:40]}", f"the candidates follow {settings.scheme}")
    if formation and scheme == UNCORRECTED:
        raise ConfigError(
            f"{path}: formation energies of {scheme!r} cannot be used; if they include the MP2020 corrections, state "
            f"{CORRECTED}, in the column scheme if there is one, otherwise with --scheme"
        )
    return scheme


def _correction(number: int, scheme: str, given: object, settings: ReadSettings) -> float:
    """Return the MP2020 correction of a row (eV/atom): the value in the row or, without one, by its composition.

    Raises:
        EntryLeftOutError: The value in the row is not a plausible energy.
    """
    if scheme != UNCORRECTED or settings.corrections is None:
        return 0.0
    if not _is_absent(given):
        return _energy(given)
    symbols, counts = settings.compositions.symbols(number), settings.compositions.counts(number)
    return settings.corrections.per_atom(symbols, counts, *settings.corrections.from_formula(symbols, counts))


def _structure(
    path: str, name: str, fields: Mapping[str, Any], settings: ReadSettings
) -> Callable[[], Structure] | None:
    """Return a function that reads the structure of a row; None if no structure is wanted, or none can be read.

    Raises:
        SourceError: Every row needs a structure, but this one has none, or one that cannot be read.
    """
    if not settings.with_structures and not (settings.keep_structures and fields):
        return None
    try:
        structure = structure_from_optimade(fields)
    except InvalidStructureError as error:
        if not settings.with_structures:  # the energy can still be used
            return None
        reason = f"has a structure that cannot be read ({error})" if fields else "has no structure"
        raise SourceError(
            f"{path}: --exclude-self recognises a phase by its structure, but {name} {reason}; use references "
            "with structures, or leave out --exclude-self"
        ) from error
    return lambda: structure


def _batches(path: str, settings: ReadSettings) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table in batches, with the columns that are read.

    Raises:
        SourceError: The table cannot be read, or a column appears twice.
    """
    try:
        source = find_files([path])[0] if "://" in path else None
        if ".parquet" in path:
            if path.endswith(".gz"):
                raise SourceError(f"{path}: gzipped parquet files are not supported; decompress the file first")
            with pq.ParquetFile(path if source is None else source.fs.open(source.path)) as table:
                yield from table.iter_batches(columns=_wanted(path, table.schema_arrow.names, settings))
            return

        def opened(options: pacsv.ConvertOptions) -> pacsv.CSVStreamingReader:
            compression = "gzip" if path.endswith(".gz") else None
            stream = pa.input_stream(path, compression=compression) if source is None else source.open()
            return pacsv.open_csv(
                stream, parse_options=pacsv.ParseOptions(newlines_in_values=True), convert_options=options
            )

        with opened(pacsv.ConvertOptions()) as reader:
            names = _wanted(path, reader.schema.names, settings)
        # Energies are read as text too, so that a value that is not a number affects only its own row.
        options = pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), include_columns=names, strings_can_be_null=False
        )
        with opened(options) as reader:
            yield from reader
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as a table ({detail(error)}); give a CSV or parquet file") from error


def _wanted(path: str, names: Sequence[str], settings: ReadSettings) -> list[str]:
    """Return the columns of a table that are read.

    Raises:
        SourceError: One of these columns appears twice.
    """
    structures = settings.with_structures or settings.keep_structures
    read = _READ | (frozenset(_STRUCTURE) if structures and ".parquet" in path else frozenset())
    found = [name for name in names if name in read or stating_field(name) is not None]
    check_columns(path, found, names)
    return found
