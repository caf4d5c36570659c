"""Reference phases of a hull: entries of the Materials Project, scores datasets, or tables of energies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from ase.data import atomic_numbers
from numpy.typing import NDArray

from ...pipeline.energy_schemes import CORRECTED, OWN, R2SCAN, SCHEMES, UNCORRECTED
from ...pipeline.errors import ConfigError, SourceError, detail
from ...pipeline.runs.target import ROOT_FILE
from ...pipeline.sources.discovery import find_files
from ..chemistry.composition import Compositions
from .energies import ScoredEnergies, check_same_basis
from .mp2020 import MP2020, OXIDE_TYPES, SULFIDE_TYPES

# Size limit of a file of entries, which needs several times as much memory; tables and datasets are read in chunks.
MAX_JSON_BYTES = 4 << 30
_TABLES = (".csv", ".csv.gz", ".parquet", ".parquet.gz")
_GGA = frozenset({"GGA", "GGA+U"})
_R2SCAN = frozenset({"R2SCAN", "r2SCAN"})
_FORMATION, _TOTAL = "formation_energy_per_atom", "energy_per_atom"
_ID_COLUMNS = ("id", "material_id", "entry_id", "structure_id")
_NAMED_AT_MOST = 20


@dataclass
class Gathered:
    """Reference entries, collected while files are read."""

    composition: list[int] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    other_names: list[str] = field(default_factory=list)
    members: list[NDArray[np.float64] | None] = field(default_factory=list)

    def add(
        self, composition: int, energy: float, name: str, other: str = "", members: NDArray[np.float64] | None = None
    ) -> None:
        """Add an entry with its corrected energy (eV/atom)."""
        self.composition.append(composition)
        self.energy.append(energy)
        self.names.append(name)
        self.other_names.append(other)
        self.members.append(members)


@dataclass(frozen=True)
class References:
    """Reference entries, sorted by composition and energy.

    Attributes:
        composition: int64[n], numbers of the compositions.
        energy: float64[n], energies (eV/atom), corrected where their scheme requires it.
        names: Ids of the entries; of the material, where an entry names one.
        other_names: Second ids; empty where there is none.
        members: float64[n, members], energies of each member of an ensemble (eV/atom), or None.
        account: Summary of each file, for the attributes of the hull.
    """

    composition: NDArray[np.int64]
    energy: NDArray[np.float64]
    names: Sequence[str]
    other_names: Sequence[str]
    members: NDArray[np.float64] | None
    account: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, found: Gathered, n_members: int, account: Sequence[Mapping[str, Any]]) -> References:
        """Sort collected entries.

        Args:
            found: The entries.
            n_members: Number of ensemble members of the candidates. If any entry has the energies of this many members,
                they are kept; an entry without them has the same energy for all members.
            account: Summary of each file.
        """
        composition, energy = np.array(found.composition, dtype=np.int64), np.array(found.energy, dtype=np.float64)
        order = np.lexsort((energy, composition))
        members = None
        if n_members and any(values is not None for values in found.members):
            rows = [np.full(n_members, e) if m is None else m for m, e in zip(found.members, found.energy, strict=True)]
            members = np.array(rows)[order]
        return cls(
            composition[order],
            energy[order],
            [found.names[place] for place in order.tolist()],
            [found.other_names[place] for place in order.tolist()],
            members,
            tuple(account),
        )

    def starts(self, n_compositions: int) -> NDArray[np.int64]:
        """int64[n_compositions + 1], first entry of each composition."""
        return np.searchsorted(self.composition, np.arange(n_compositions + 1)).astype(np.int64)


def read_references(
    paths: Sequence[str | Path],
    candidates: ScoredEnergies,
    compositions: Compositions,
    corrections: MP2020 | None,
    *,
    scheme: str | None = None,
    allow_unrelaxed: bool = False,
) -> References:
    """Read reference phases.

    Args:
        paths: Files of pymatgen entries (JSON), scores datasets, or tables (CSV, parquet) with the columns ``formula``
            and ``energy_per_atom`` or ``formation_energy_per_atom``, and optionally an id and ``scheme``.
        candidates: Scores that the references are for.
        compositions: The compositions of the references are added to it.
        corrections: MP2020 corrections, for energies that need them.
        scheme: Energy scheme of tables without a column ``scheme``, and of entries without a run type.
        allow_unrelaxed: Accept datasets of unrelaxed structures for relaxed candidates.

    Raises:
        ConfigError: An energy scheme is unknown or incompatible, or a file has no usable entry.
        SourceError: A file cannot be read.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise ConfigError(f"unknown energy scheme {scheme!r}; choose one of {', '.join(SCHEMES)}")
    found = Gathered()
    account: list[dict[str, Any]] = []
    waiting: list[tuple[int, float, str]] = []
    for path in paths:
        before = len(found.energy)
        name = str(path).rstrip("/")
        if name.endswith(_TABLES):
            notes = _read_table(name, candidates.scheme, scheme, compositions, corrections, found, waiting)
        elif name.endswith(".zarr") or (Path(name) / ROOT_FILE).exists():
            notes = _read_dataset(name, candidates, scheme, compositions, corrections, found, allow=allow_unrelaxed)
        else:
            notes = _read_entries(name, candidates.scheme, scheme, compositions, corrections, found)
        if len(found.energy) == before and not waiting:
            raise ConfigError(f"{path}: none of its entries can be used ({notes})")
        account.append({"path": name, "entries": len(found.energy) - before, **notes})
    _add_formation_energies(waiting, compositions, found)
    return References.of(found, candidates.n_members, account)


def _read_dataset(
    path: str,
    candidates: ScoredEnergies,
    scheme: str | None,
    compositions: Compositions,
    corrections: MP2020 | None,
    found: Gathered,
    *,
    allow: bool,
) -> dict[str, Any]:
    """Read a scores dataset."""
    rows = ScoredEnergies(path)
    if not rows.relaxed and not allow and candidates.relaxed:
        raise ConfigError(
            f"{path}: its structures are not relaxed, but the candidates are; use --unrelaxed-references to accept them"
        )
    check_same_basis(candidates.scheme, rows.scheme, path)
    if rows.scheme == OWN and rows.model != candidates.model and scheme != OWN:
        raise ConfigError(
            f"{path}: its energies come from another model, and their energy scheme has no name; use --scheme own if "
            "both models were trained on the same energies"
        )
    with_members = rows.n_members and rows.n_members == candidates.n_members
    for chunk in rows.energies(compositions, corrections):
        ids = rows.ids(chunk)
        own = rows.member_energies(chunk) if with_members else None
        for row in np.flatnonzero(chunk.competes).tolist():
            members = None if own is None else own[row]
            found.add(int(chunk.composition[row]), float(chunk.energy[row]), ids[row], "", members)
    return {"kind": "dataset", "scheme": rows.scheme, "relaxed": rows.relaxed, "store_hash": rows.attrs["store_hash"]}


def _read_table(
    path: str,
    candidates: str,
    scheme: str | None,
    compositions: Compositions,
    corrections: MP2020 | None,
    found: Gathered,
    waiting: list[tuple[int, float, str]],
) -> dict[str, Any]:
    """Read a table; its formation energies are added to `waiting`."""
    skipped = 0
    schemes: set[str] = set()
    for batch in _batches(path):
        formation = _TOTAL not in batch.schema.names
        for formula, value, own, name in _table_rows(path, batch, scheme):
            if own not in schemes:
                _check_table_scheme(path, own, candidates, formation=formation)
                schemes.add(str(own))
            if value is None or not np.isfinite(value) or not formula:
                skipped += 1
                continue
            number = compositions.of_formula(formula)
            if formation:
                waiting.append((number, float(value), name))
            else:
                added = _by_formula(number, compositions, corrections) if own == UNCORRECTED else 0.0
                found.add(number, float(value) + added, name)
    return {"kind": "table", "scheme": ", ".join(sorted(schemes)), "without_energy": skipped}


def _table_rows(
    path: str, batch: pa.RecordBatch, scheme: str | None
) -> Iterator[tuple[str, float | None, str | None, str]]:
    """Formula, energy (eV/atom), energy scheme and id of each row of a table.

    Raises:
        ConfigError: A column is missing, or an energy is not a number.
    """
    columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
    values = columns.get(_TOTAL, columns.get(_FORMATION))
    formulas = columns.get("formula", columns.get("pretty_formula"))
    if formulas is None or values is None:
        raise ConfigError(f"{path}: a table of references needs the columns formula and {_TOTAL} (or {_FORMATION})")
    if any(isinstance(value, str) for value in values):
        raise ConfigError(f"{path}: some of its energies are not numbers")
    schemes = columns.get("scheme", [scheme] * len(values))
    ids = next((columns[name] for name in _ID_COLUMNS if name in columns), [""] * len(values))
    names = ["" if name is None else str(name) for name in ids]
    yield from zip(formulas, values, schemes, names, strict=True)


def _check_table_scheme(path: str, scheme: str | None, candidates: str, *, formation: bool) -> None:
    """Check that energies of a table can be used.

    Raises:
        ConfigError: Their energy scheme is unknown, incompatible, or has no formation energies.
    """
    if scheme is None:
        raise ConfigError(f"{path}: gives no energy scheme; use --scheme with one of {', '.join(SCHEMES)}")
    if scheme not in SCHEMES:
        raise ConfigError(f"{path}: unknown energy scheme {scheme!r}; choose one of {', '.join(SCHEMES)}")
    check_same_basis(candidates, scheme, path)
    if formation and scheme == UNCORRECTED:
        raise ConfigError(f"{path}: formation energies of {scheme!r} cannot be used; use --scheme {CORRECTED}")


def _by_formula(number: int, compositions: Compositions, corrections: MP2020 | None) -> float:
    """Correction of a composition without a structure (eV/atom)."""
    if corrections is None:
        return 0.0
    symbols, counts = compositions.symbols(number), compositions.counts(number)
    return corrections.per_atom(symbols, counts, *corrections.from_formula(symbols, counts))


def _add_formation_energies(
    waiting: Sequence[tuple[int, float, str]], compositions: Compositions, found: Gathered
) -> None:
    """Add entries that are given by formation energies, relative to the elements among the other entries.

    Raises:
        ConfigError: An element has no entry.
    """
    elements: dict[int, float] = {}
    for number, energy in zip(found.composition, found.energy, strict=True):
        system = compositions.system(number)
        if len(system) == 1:
            elements[system[0]] = min(energy, elements.get(system[0], np.inf))
    for number, value, name in waiting:
        system, counts = compositions.system(number), compositions.counts(number)
        missing = [symbol for symbol, z in zip(compositions.symbols(number), system, strict=True) if z not in elements]
        if missing:
            raise ConfigError(
                f"formation energies (of {compositions.formula(number)}, {name}) also need references of the elements; "
                f"{', '.join(missing)} has none; add --references with the elements"
            )
        elemental = sum(elements[z] * count for z, count in zip(system, counts, strict=True)) / sum(counts)
        found.add(number, value + elemental, name)


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    """Batches of the rows of a table.

    Raises:
        SourceError: The table cannot be read.
    """
    wanted = {"formula", "pretty_formula", _TOTAL, _FORMATION, "scheme", *_ID_COLUMNS}
    text = {"formula", "pretty_formula", "scheme", *_ID_COLUMNS}
    try:
        source = find_files([path])[0] if "://" in path else None
        if ".parquet" in path:
            if path.endswith(".gz"):
                raise SourceError(f"{path}: gzipped parquet files are not supported; decompress the file first")
            with pq.ParquetFile(path if source is None else source.fs.open(source.path)) as table:
                names = [name for name in table.schema_arrow.names if name in wanted]
                yield from table.iter_batches(columns=names)
            return
        options = pacsv.ConvertOptions(column_types=dict.fromkeys(text, pa.string()), strings_can_be_null=False)
        parsing = pacsv.ParseOptions(newlines_in_values=True)
        stream = pa.input_stream(path, compression="gzip" if path.endswith(".gz") else None)
        with pacsv.open_csv(stream, parse_options=parsing, convert_options=options) as reader:
            for batch in reader:
                yield batch.select([name for name in batch.schema.names if name in wanted])
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path}: cannot be read as a table ({detail(error)})") from error


def _read_entries(
    path: str,
    candidates: str,
    scheme: str | None,
    compositions: Compositions,
    corrections: MP2020 | None,
    found: Gathered,
) -> dict[str, Any]:
    """Read pymatgen entries; their own corrections are ignored, since their energies are uncorrected."""
    left_out: dict[str, str] = {}
    schemes: set[str] = set()
    for number, record in enumerate(_records(path)):
        name = str(record.get("entry_id") or number)
        try:
            amounts = _amounts(record["composition"])
            energy = float(record["energy"]) / sum(count for _, count in amounts)
        except (KeyError, TypeError, ValueError):
            left_out[name] = "no composition of whole numbers, or no energy"
            continue
        parameters, data = record.get("parameters") or {}, record.get("data") or {}
        own = _scheme_of(parameters, scheme)
        if own is None:
            raise ConfigError(f"{path}: entry {name} has no run_type; use --scheme with one of {', '.join(SCHEMES)}")
        if own not in schemes:
            check_same_basis(candidates, own, path)
            schemes.add(own)
        composition = compositions.add(amounts)
        if own == UNCORRECTED and corrections is not None:
            symbols = compositions.symbols(composition)
            wrong = _incompatible(symbols, parameters, corrections)
            if wrong:
                left_out[name] = wrong
                continue
            energy += _correction(record, composition, compositions, corrections)
        found.add(composition, energy, str(data.get("material_id") or name), name)
    return {
        "kind": "entries",
        "scheme": ", ".join(sorted(schemes)),
        "left_out": len(left_out),
        "left_out_because": dict(list(left_out.items())[:_NAMED_AT_MOST]),
    }


def _scheme_of(parameters: Mapping[str, Any], default: str | None) -> str | None:
    """Energy scheme of an entry's run type."""
    run = parameters.get("run_type")
    if run in _R2SCAN:
        return R2SCAN
    if run in _GGA:
        return UNCORRECTED
    return default


def _amounts(composition: Mapping[str, float]) -> list[tuple[int, int]]:
    """Atomic numbers and counts of a composition.

    Raises:
        ValueError: A count is not a whole number.
        KeyError: An element is unknown.
    """
    amounts = [(atomic_numbers[symbol], round(count)) for symbol, count in composition.items() if count]
    if not amounts or any(abs(count - round(count)) > 1e-8 or count < 0 for count in composition.values()):
        raise ValueError
    return amounts


def _incompatible(symbols: tuple[str, ...], parameters: Mapping[str, Any], corrections: MP2020) -> str:
    """Why the MP2020 scheme does not apply to an entry; empty if it does."""
    given = {symbol: float(value) for symbol, value in (parameters.get("hubbards") or {}).items() if value}
    expected = corrections.hubbards(symbols) if len(symbols) > 1 else given
    if given != expected:
        return f"Hubbard U {given}, but the scheme has {expected}"
    titles = [item["titel"].split()[1] for item in parameters.get("potcar_spec") or () if item and item.get("titel")]
    titles += [title.split()[1] for title in parameters.get("potcar_symbols") or () if title]
    wanted = {corrections.potcars.get(symbol) for symbol in symbols}
    return f"POTCAR {sorted(titles)}, but the scheme has others" if titles and set(titles) != wanted else ""


def _correction(record: Mapping[str, Any], composition: int, compositions: Compositions, corrections: MP2020) -> float:
    """Correction of an entry (eV/atom), by its own data on anions, else by its structure, else by its formula."""
    symbols, counts = compositions.symbols(composition), compositions.counts(composition)
    if len(symbols) == 1:
        return 0.0
    data = record.get("data") or {}
    oxide, sulfide = data.get("oxide_type"), data.get("sulfide_type")
    structure = record.get("structure")
    if structure and (("O" in symbols and not oxide) or ("S" in symbols and not sulfide)):
        from pymatgen.analysis.structure_analyzer import oxide_type, sulfide_type  # noqa: PLC0415 - an extra
        from pymatgen.core import Structure  # noqa: PLC0415 - an extra

        crystal = Structure.from_dict(structure)
        oxide = oxide or oxide_type(crystal, 1.05)
        sulfide = sulfide or sulfide_type(crystal) or "sulfate"
    by_formula = corrections.from_formula(symbols, counts)
    oxide = oxide or by_formula[0]
    sulfide = {"polysulfide": "sulfide", "sulfide": "sulfide", None: "sulfide"}.get(sulfide, SULFIDE_TYPES[1])
    oxide = oxide if oxide in OXIDE_TYPES else OXIDE_TYPES[0]
    states = data.get("oxidation_states")
    if states is None:
        return corrections.per_atom(symbols, counts, oxide, sulfide)
    return corrections.given(symbols, counts, oxide, sulfide, states)


def _records(path: str) -> Iterator[Mapping[str, Any]]:
    """Entries of a JSON file: a list or dictionary of entries, possibly under ``entries`` or ``data``.

    Raises:
        SourceError: The file is missing, too large, or has no entries.
    """
    source = find_files([path])[0]
    with source.open() as stream:
        text = stream.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise SourceError(f"{path}: more than {MAX_JSON_BYTES >> 30} GiB of JSON; write the energies to a table (CSV)")
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise SourceError(f"{path}: not valid JSON ({error})") from error
    if isinstance(content, dict):
        content = next((content[key] for key in ("entries", "data") if key in content), content)
    if isinstance(content, dict):
        content = [content] if "composition" in content and "energy" in content else list(content.values())
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        raise SourceError(f"{path}: not a file of pymatgen entries (a list of records with composition and energy)")
    yield from content
