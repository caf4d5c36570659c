"""Reference phases from tables of energies (CSV, parquet)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ...pipeline.energy_schemes import CORRECTED, SCHEMES, UNCORRECTED
from ...pipeline.errors import ConfigError, SourceError, detail
from ...pipeline.sources.discovery import find_files
from ..chemistry.composition import Compositions
from .energies import basis
from .references import MAX_ENERGY, EntryLeftOutError, Gathered, LeftOut, ReadSettings, quoted

TABLES = (".csv", ".csv.gz", ".parquet", ".parquet.gz")
_FORMATION, _TOTAL = "formation_energy_per_atom", "energy_per_atom"
_ID_COLUMNS = ("id", "material_id", "entry_id", "structure_id")
_FORMULAS = ("formula", "pretty_formula")
_NO_ENERGY = "no finite energy"


@dataclass(frozen=True, slots=True)
class FormationEnergy:
    """An entry that is given by its formation energy, which needs the energies of the elements.

    Attributes:
        composition: Number of its composition.
        energy: Formation energy (eV/atom).
        name: Its id.
        left_out: Account of its file.
    """

    composition: int
    energy: float
    name: str
    left_out: LeftOut


def read_table(
    path: str, settings: ReadSettings, found: Gathered, waiting: list[FormationEnergy], left_out: LeftOut
) -> dict[str, Any]:
    """Read a table.

    A row that cannot be used, such as one with a different energy scheme, is left out and counted.

    Args:
        path: File or URL of the table.
        settings: What the rows are compared with.
        found: Rows with energies are added to it.
        waiting: Rows with formation energies are added to it.
        left_out: Account of the rows that are left out.

    Returns:
        Summary of the file.

    Raises:
        ConfigError: A column is missing, or the table states no energy scheme.
        SourceError: The table cannot be read.
    """
    if settings.with_structures:
        raise SourceError(
            f"{path}: a table has no structures, which --exclude-self needs to recognise phases; use entries with "
            "structures, or leave out --exclude-self"
        )
    schemes: set[str] = set()
    number = 0
    for batch in _batches(path):
        columns = _columns(path, batch, settings)
        formation = _TOTAL not in batch.schema.names
        for formula, value, scheme, name in zip(*columns, strict=True):
            number += 1
            try:
                composition = _composition(formula, settings.compositions)
                energy = _energy(value)
                _check_scheme(path, scheme, settings.scheme, formation=formation)
            except EntryLeftOutError as error:
                left_out.add(name or f"row {number}", error)
                continue
            schemes.add(scheme)
            if formation:
                waiting.append(FormationEnergy(composition, energy, name, left_out))
            else:
                found.add(composition, energy + _correction(composition, scheme, settings), name)
    return {"kind": "table", "scheme": ", ".join(sorted(schemes))}


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
        found.add(entry.composition, entry.energy + elemental, entry.name)
        added += 1
    if waiting and not added:
        raise ConfigError(
            f"formation energies also need references of the elements, and {lacking} have none; add --references "
            "with the elements"
        )


def _columns(path: str, batch: pa.RecordBatch, settings: ReadSettings) -> tuple[list[Any], list[Any], list[Any], Any]:
    """Formula, energy, energy scheme and id of each row.

    Raises:
        ConfigError: A column is missing, or there is no energy scheme.
    """
    columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
    values = columns.get(_TOTAL, columns.get(_FORMATION))
    formulas = next((columns[name] for name in _FORMULAS if name in columns), None)
    if formulas is None or values is None:
        raise ConfigError(f"{path}: a table of references needs the columns formula and {_TOTAL} (or {_FORMATION})")
    if "scheme" not in columns and settings.assumed is None:
        raise ConfigError(f"{path}: gives no energy scheme; use --scheme with one of {', '.join(SCHEMES)}")
    # An empty field of the column `scheme` states nothing.
    schemes = [given or settings.assumed for given in columns.get("scheme", [None] * len(values))]
    ids = next((columns[name] for name in _ID_COLUMNS if name in columns), [""] * len(values))
    return formulas, values, schemes, ["" if name is None else str(name) for name in ids]


def _composition(formula: object, compositions: Compositions) -> int:
    try:
        return compositions.of_formula(str(formula or ""))
    except ConfigError as error:
        raise EntryLeftOutError("no composition of whole numbers of atoms", quoted(formula)) from error


def _energy(value: object) -> float:
    """An energy of a table as a number.

    Raises:
        EntryLeftOutError: The value is not a number, or not a plausible energy.
    """
    try:
        # `float` also takes bool, which is not an energy, and "1_000", which no program writes.
        energy = np.nan if isinstance(value, bool) or "_" in str(value) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        energy = np.nan
    if not np.isfinite(energy):
        raise EntryLeftOutError(_NO_ENERGY, quoted(value))
    if abs(energy) > MAX_ENERGY:
        raise EntryLeftOutError("no plausible energy", f"{energy:g} eV/atom")
    return energy


def _check_scheme(path: str, scheme: object, candidates: str, *, formation: bool) -> None:
    """Check that an energy of a table can be used.

    Raises:
        EntryLeftOutError: The energy scheme is different, or not stated.
        ConfigError: The value is a formation energy computed from uncorrected energies.
    """
    if scheme is None:
        raise EntryLeftOutError("no energy scheme", "use --scheme to state that of such rows")
    if not isinstance(scheme, str):
        raise EntryLeftOutError("energy scheme is not text", quoted(scheme))
    if scheme not in SCHEMES or basis(scheme) != basis(candidates):
        raise EntryLeftOutError(f"energy scheme {scheme[:40]}", f"the candidates follow {candidates}")
    if formation and scheme == UNCORRECTED:
        raise ConfigError(f"{path}: formation energies of {scheme!r} cannot be used; use --scheme {CORRECTED}")


def _correction(number: int, scheme: str, settings: ReadSettings) -> float:
    """Correction of a composition without a structure (eV/atom)."""
    if scheme != UNCORRECTED or settings.corrections is None:
        return 0.0
    symbols, counts = settings.compositions.symbols(number), settings.compositions.counts(number)
    return settings.corrections.per_atom(symbols, counts, *settings.corrections.from_formula(symbols, counts))


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    """Batches of the rows of a table.

    Raises:
        SourceError: The table cannot be read.
    """
    text = {*_FORMULAS, "scheme", *_ID_COLUMNS}
    wanted = {*text, _TOTAL, _FORMATION}
    try:
        source = find_files([path])[0] if "://" in path else None
        if ".parquet" in path:
            if path.endswith(".gz"):
                raise SourceError(f"{path}: gzipped parquet files are not supported; decompress the file first")
            with pq.ParquetFile(path if source is None else source.fs.open(source.path)) as table:
                names = [name for name in table.schema_arrow.names if name in wanted]
                yield from table.iter_batches(columns=names)
            return
        # Energies are read as text too: one that is not a number leaves out its row, not the file.
        options = pacsv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False)
        parsing = pacsv.ParseOptions(newlines_in_values=True)
        compression = "gzip" if path.endswith(".gz") else None
        stream = pa.input_stream(path, compression=compression) if source is None else source.open()
        with pacsv.open_csv(stream, parse_options=parsing, convert_options=options) as reader:
            for batch in reader:
                yield batch.select([name for name in batch.schema.names if name in wanted])
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as a table ({detail(error)})") from error
