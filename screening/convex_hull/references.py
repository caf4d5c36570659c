"""Reference phases of a hull: entries of the Materials Project, earlier results of ours, or tables of energies."""

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

from ...pipeline.errors import ConfigError, SourceError
from ...pipeline.runs.target import ROOT_FILE
from ...pipeline.sources.discovery import find_files
from ..chemistry.composition import Compositions
from .energies import CORRECTED, SCHEMES, UNCORRECTED, ScoredEnergies, same_basis
from .mp2020 import MP2020, OXIDE_TYPES, SULFIDE_TYPES

# Larger files of entries would need several times as much memory; tables and datasets are read in pieces.
MAX_JSON_BYTES = 4 << 30
_TABLES = (".csv", ".csv.gz", ".parquet", ".parquet.gz")
_GGA = frozenset({"GGA", "GGA+U"})
_R2SCAN = frozenset({"R2SCAN", "r2SCAN"})
_FORMATION, _TOTAL = "formation_energy_per_atom", "energy_per_atom"
_ID_COLUMNS = ("id", "material_id", "entry_id", "structure_id")
_NAMED_AT_MOST = 20


@dataclass
class Gathered:
    """Entries while files are read."""

    composition: list[int] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    other_names: list[str] = field(default_factory=list)
    members: list[NDArray[np.float64] | None] = field(default_factory=list)

    def add(
        self, composition: int, energy: float, name: str, other: str = "", members: NDArray[np.float64] | None = None
    ) -> None:
        """One entry; its energy corrected, eV/atom."""
        self.composition.append(composition)
        self.energy.append(energy)
        self.names.append(name)
        self.other_names.append(other)
        self.members.append(members)


@dataclass(frozen=True)
class References:
    """Entries, by composition, those of one composition by energy.

    Attributes:
        composition: int64[n].
        energy: float64[n], corrected where the scheme asks for it, eV/atom.
        names: Their ids.
        other_names: A second id, that of the material, where there is one.
        members: float64[n, members], energy of each member of an ensemble, or None.
        account: What each file brought, for the attributes of the hull.
    """

    composition: NDArray[np.int64]
    energy: NDArray[np.float64]
    names: Sequence[str]
    other_names: Sequence[str]
    members: NDArray[np.float64] | None
    account: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, found: Gathered, n_members: int, account: Sequence[Mapping[str, Any]]) -> References:
        """Sort what was gathered.

        Args:
            found: Entries.
            n_members: Of the candidates: energies of so many members are kept, if any reference has them. One that has
                none is the same for all members.
            account: Of the files.
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
        """int64[n_compositions + 1], where the entries of each composition begin."""
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
        paths: Files of pymatgen's entries (JSON), datasets of ours, or tables (CSV, parquet) with the columns
            ``formula`` and ``energy_per_atom`` or ``formation_energy_per_atom``, and perhaps an id and ``scheme``.
        candidates: What they are for.
        compositions: Takes up those of the references.
        corrections: For energies that need them.
        scheme: Of the energies in tables, and of entries that do not tell.
        allow_unrelaxed: Take datasets of unrelaxed structures.

    Raises:
        ConfigError: A scheme that is unknown or does not fit, or nothing in a file can be used.
        SourceError: A file cannot be read.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise ConfigError(f"--scheme {scheme}: there are {', '.join(SCHEMES)}")
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
    rows = ScoredEnergies(path)
    if not rows.relaxed and not allow and candidates.relaxed:
        raise ConfigError(f"{path}: its structures are not relaxed, the candidates are; say --unrelaxed-references")
    same_basis(candidates.scheme, rows.scheme, path)
    if rows.scheme == "own" and rows.model != candidates.model and scheme != "own":
        raise ConfigError(
            f"{path}: its energies are of another model of unnamed scheme; say --scheme own if the two were trained on "
            "the same energies"
        )
    with_members = rows.n_members and rows.n_members == candidates.n_members
    for chunk in rows.chunks(compositions, corrections if rows.scheme == UNCORRECTED else None):
        ids = rows.column("structure_id", chunk.start, chunk.stop).tolist()
        for row in np.flatnonzero(chunk.competes).tolist():
            members = chunk.members[row] if with_members and chunk.members is not None else None
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
    skipped = 0
    schemes: set[str] = set()
    for batch in _batches(path):
        columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
        formation = _TOTAL not in columns
        values = columns.get(_TOTAL, columns.get(_FORMATION))
        formulas = columns.get("formula", columns.get("pretty_formula"))
        if formulas is None or values is None:
            raise ConfigError(f"{path}: a table of references has columns formula and {_TOTAL} (or {_FORMATION})")
        if any(isinstance(value, str) for value in values):
            raise ConfigError(f"{path}: its energies are not all numbers")
        said = columns.get("scheme", [scheme] * len(values))
        ids = next((columns[name] for name in _ID_COLUMNS if name in columns), [""] * len(values))
        for formula, value, own, name in zip(formulas, values, said, ids, strict=True):
            if own is None or own not in SCHEMES:
                raise ConfigError(f"{path}: which energies are these? Say --scheme, one of {', '.join(SCHEMES)}")
            if own not in schemes:
                same_basis(candidates, own, path)
                schemes.add(own)
            if formation and own == UNCORRECTED:
                raise ConfigError(f"{path}: formation energies of {own!r} are of no use; say --scheme {CORRECTED}")
            if value is None or not np.isfinite(value) or not formula:
                skipped += 1
                continue
            number = compositions.of_formula(formula)
            label = "" if name is None else str(name)
            if formation:
                waiting.append((number, float(value), label))
            else:
                added = _by_formula(number, compositions, corrections) if own == UNCORRECTED else 0.0
                found.add(number, float(value) + added, label)
    return {"kind": "table", "scheme": ", ".join(sorted(schemes)), "without_energy": skipped}


def _by_formula(number: int, compositions: Compositions, corrections: MP2020 | None) -> float:
    """Of a composition without a structure."""
    if corrections is None:
        return 0.0
    symbols, counts = compositions.symbols(number), compositions.counts(number)
    return corrections.per_atom(symbols, counts, *corrections.from_formula(symbols, counts))


def _add_formation_energies(
    waiting: Sequence[tuple[int, float, str]], compositions: Compositions, found: Gathered
) -> None:
    """Entries known by their formation energies, added to the energies of the elements among the others.

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
                f"formation energies (of {compositions.formula(number)}, {name}) need references of the elements too, "
                f"and {', '.join(missing)} has none; add a --references with elements"
            )
        elemental = sum(elements[z] * count for z, count in zip(system, counts, strict=True)) / sum(counts)
        found.add(number, value + elemental, name)


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    """A table, some rows at a time.

    Raises:
        SourceError: It cannot be read.
    """
    wanted = {"formula", "pretty_formula", _TOTAL, _FORMATION, "scheme", *_ID_COLUMNS}
    text = {"formula", "pretty_formula", "scheme", *_ID_COLUMNS}
    try:
        source = find_files([path])[0] if "://" in path else None
        if ".parquet" in path:
            if path.endswith(".gz"):
                raise SourceError(f"{path}: decompress it first; parquet is compressed inside")
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
        raise SourceError(f"{path}: cannot be read as a table ({' '.join(str(error).split())[:200]})") from error


def _read_entries(
    path: str,
    candidates: str,
    scheme: str | None,
    compositions: Compositions,
    corrections: MP2020 | None,
    found: Gathered,
) -> dict[str, Any]:
    """Entries of pymatgen; corrections that they carry are left aside, their own energies are uncorrected."""
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
            raise ConfigError(f"{path}: entry {name} has no run_type; say --scheme, one of {', '.join(SCHEMES)}")
        if own not in schemes:
            same_basis(candidates, own, path)
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


def _scheme_of(parameters: Mapping[str, Any], said: str | None) -> str | None:
    run = parameters.get("run_type")
    if run in _R2SCAN:
        return "r2scan"
    if run in _GGA:
        return UNCORRECTED
    return said


def _amounts(composition: Mapping[str, float]) -> list[tuple[int, int]]:
    """Atomic numbers and counts.

    Raises:
        ValueError: Counts that are no whole numbers.
        KeyError: An unknown element.
    """
    amounts = [(atomic_numbers[symbol], round(count)) for symbol, count in composition.items() if count]
    if not amounts or any(abs(count - round(count)) > 1e-8 or count < 0 for count in composition.values()):
        raise ValueError
    return amounts


def _incompatible(symbols: tuple[str, ...], parameters: Mapping[str, Any], corrections: MP2020) -> str:
    """Why the scheme does not hold for an entry; empty if it does."""
    given = {symbol: float(value) for symbol, value in (parameters.get("hubbards") or {}).items() if value}
    expected = corrections.hubbards(symbols) if len(symbols) > 1 else given
    if given != expected:
        return f"Hubbard U {given} where the scheme has {expected}"
    titles = [item["titel"].split()[1] for item in parameters.get("potcar_spec") or () if item and item.get("titel")]
    titles += [title.split()[1] for title in parameters.get("potcar_symbols") or () if title]
    wanted = {corrections.potcars.get(symbol) for symbol in symbols}
    return f"POTCAR {sorted(titles)} where the scheme has others" if titles and set(titles) != wanted else ""


def _correction(record: Mapping[str, Any], composition: int, compositions: Compositions, corrections: MP2020) -> float:
    """Of an entry, eV/atom, by what it says of its anions, or else by its structure, or else by its formula."""
    symbols, counts = compositions.symbols(composition), compositions.counts(composition)
    if len(symbols) == 1:
        return 0.0
    data = record.get("data") or {}
    oxide, sulfide = data.get("oxide_type"), data.get("sulfide_type")
    structure = record.get("structure")
    if structure and (("O" in symbols and not oxide) or ("S" in symbols and not sulfide)):
        from pymatgen.analysis.structure_analyzer import oxide_type, sulfide_type  # noqa: PLC0415 - an extra
        from pymatgen.core import Structure  # noqa: PLC0415 - likewise

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
    """The entries of a JSON file: a list, a dictionary of them, or one of these under ``entries`` or ``data``.

    Raises:
        SourceError: Too large, or no such file.
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
        raise SourceError(f"{path}: no entries of pymatgen (a list of dictionaries with composition and energy)")
    yield from content
