"""Gather reference phases from several sources into one table."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from ase.data import chemical_symbols

from ...pipeline.atomic import atomic_path
from ...pipeline.energy_schemes import CORRECTED, OWN, SCHEMES, UNCORRECTED
from ...pipeline.errors import ConfigError, EquiscreenError, InvalidStructureError, OutputExistsError, StoreError
from ...pipeline.provenance import recorded_path
from ...pipeline.redaction import redact_urls
from ...pipeline.runs.lock import locked
from ...pipeline.runs.progress import ProgressReport
from ...pipeline.runs.staging import PARQUET, check_file, make_working_folder
from ...pipeline.sources.discovery import OPTIMADE_PREFIX, Paths, path_names
from ...pipeline.structures.structure import Structure
from ...pipeline.suggestions import unknown_name
from ...screening.chemistry.composition import Compositions
from ...screening.convex_hull.energies import ScoredEnergies, check_same_basis, check_without_dispersion
from ...screening.convex_hull.mp2020 import MP2020
from ...screening.convex_hull.reference_entries import entry_phases, entry_records
from ...screening.convex_hull.reference_files import is_dataset
from ...screening.convex_hull.reference_tables import TABLES, table_phases
from ...screening.convex_hull.references import OUTSIDE, EntryLeftOutError, LeftOut, Phase, ReadSettings
from ...screening.dataset.parquet import METADATA_KEY
from .account import ReferencesAccount, SourceAccount
from .materials_project import entries_of_mp
from .optimade import download, resource_phases
from .providers import PROVIDERS, check_scheme, provider_of
from .systems import ChemicalSystems, system_name

MP = "mp"
_LOCK = "lock"
_OPTIONAL = ("formation_energy_per_atom", "mp2020_correction_per_atom", "lattice_vectors")
_VECTORS = pa.list_(pa.list_(pa.float64()))
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("formula", pa.string()),
        pa.field("energy_per_atom", pa.float64(), metadata={"units": "eV/atom"}),
        pa.field("formation_energy_per_atom", pa.float64(), metadata={"units": "eV/atom"}),
        pa.field("mp2020_correction_per_atom", pa.float64(), metadata={"units": "eV/atom"}),
        ("scheme", pa.string()),
        ("run_type", pa.string()),
        ("source", pa.string()),
        pa.field("lattice_vectors", _VECTORS, metadata={"units": "angstrom"}),
        pa.field("cartesian_site_positions", _VECTORS, metadata={"units": "angstrom"}),
        ("species_at_sites", pa.list_(pa.string())),
        ("dimension_types", pa.list_(pa.int8())),
    ]
)


def fetch_references(
    what: Paths,
    systems: Iterable[frozenset[str]] | None,
    out: str | Path,
    *,
    scheme: str = UNCORRECTED,
    assumed: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> ReferencesAccount:
    """Gather reference phases into a parquet table for `equiscreen hull --references`.

    Downloads of an interrupted run are kept in ``OUT.partial``, and the same call resumes them; local files are read
    again.

    Example:
        >>> found = fetch_references(["entries.json.gz"], {frozenset({"Li", "O"})}, "refs.parquet")  # doctest: +SKIP
        >>> print(found.summary("refs.parquet"))  # doctest: +SKIP

    Args:
        what: Files of pymatgen entries, tables, scores datasets, ``mp`` (through `mp-api`), ``optimade:PROVIDER``,
            ``optimade:URL`` or, for a mirror, ``optimade:PROVIDER@URL``.
        systems: Elements of each candidate; only phases within one of these chemical systems are kept. None keeps all.
        out: Table to write.
        scheme: Energy scheme of the candidates; references that cannot be compared with it are left out and counted.
        assumed: Energy scheme of entries and rows that do not state one.
        overwrite: Replace an existing table.
        progress: Show progress on standard error.

    Returns:
        The summary, which is also stored in the metadata of the table.

    Raises:
        ConfigError: A source has no suitable references, is unknown or needs a setting; or the energies of the
            candidates include dispersion.
        SourceError: A source cannot be read, or a server fails.
        StoreError: A scores dataset is missing or damaged.
        OutputExistsError: The table exists, cannot be written, or another run is writing it.
    """
    target, given = Path(out), path_names(what)
    for name in given:
        check_without_dispersion(scheme, name)
    for name in (scheme, assumed or scheme):
        if name not in SCHEMES:
            raise ConfigError(unknown_name("energy scheme", name, SCHEMES))
    if not given:
        raise ConfigError("there are no references; give at least one file, mp or optimade:PROVIDER")
    if target.suffix != ".parquet":
        raise ConfigError(f"{out}: the table is a parquet file; give it a name that ends in .parquet")
    check_file(target, given, overwrite=overwrite, begins=PARQUET)
    wanted, compositions = ChemicalSystems(systems), Compositions()
    corrections = MP2020() if scheme in (UNCORRECTED, CORRECTED) else None
    settings = ReadSettings(
        scheme,
        assumed,
        compositions,
        corrections,
        keep_structures=True,
        wanted=None if systems is None else wanted.wanted,
    )
    work = target.with_name(f"{target.name}.partial")
    try:
        make_working_folder(work, out, _LOCK)
        with locked(work / _LOCK):
            rows: list[dict[str, Any]] = []
            sources = [_gather(one, settings, wanted, target, work, rows, progress=progress) for one in given]
            if not rows:
                raise ConfigError(
                    f"{', '.join(map(redact_urls, given))}: there are no references, or none in the chosen chemical "
                    "systems; use references that cover the elements of these systems"
                )
            account = _account(rows, sources, wanted, scheme)
            _write(target, rows, account)
            shutil.rmtree(work)
    except EquiscreenError:
        _remove_if_empty(work)
        raise
    except OSError as error:
        raise OutputExistsError(
            f"{out} cannot be written ({error.strerror or error}); choose another `--out`"
        ) from error
    return account


def _remove_if_empty(work: Path) -> None:
    """Remove the folder of a run that has downloaded nothing."""
    with suppress(OSError):
        if [file.name for file in work.iterdir()] == [_LOCK]:
            shutil.rmtree(work)


class _Counted(LeftOut):
    """Counts of the references that are left out; references outside the chemical systems are counted separately.

    Attributes:
        outside: Number of references outside the chemical systems of the candidates.
    """

    outside = 0

    def add(self, name: str, error: EntryLeftOutError) -> None:
        if error.reason == OUTSIDE:
            self.outside += 1
        else:
            super().add(name, error)


def _gather(
    what: str,
    settings: ReadSettings,
    systems: ChemicalSystems,
    out: Path,
    work: Path,
    rows: list[dict[str, Any]],
    *,
    progress: bool,
) -> SourceAccount:
    """Add the phases of one source to the rows of the table.

    Raises:
        ConfigError: None of the source's references is suitable.
    """
    left_out, counts = _Counted(), Counter[str]()
    kind, when, phases = _phases(what, settings, systems, work, left_out, counts, progress=progress)
    remote = what == MP or what.startswith(OPTIMADE_PREFIX)
    name = redact_urls(what) if remote else recorded_path(what, out)
    run_types: Counter[str] = Counter()
    before = len(rows)
    for phase in phases:
        rows.append(_row(phase, settings.compositions, name))
        run_types[phase.functional or f"not stated ({phase.scheme})"] += 1
    found = len(rows) - before
    reasons = left_out.attrs()
    if not found and left_out.by_reason:
        first, because = next(iter(left_out.because.items()))
        counted = ", ".join(f"{count:,} {reason}" for reason, count in reasons["left_out_by_reason"].items())
        raise ConfigError(
            f"{redact_urls(what)}: no reference can be used ({counted}; the first, {first}: {because}); choose another "
            "source"
        )
    read = found + left_out.outside + left_out.by_reason.total() + counts["duplicate"]
    return SourceAccount(
        name,
        kind,
        when,
        read,
        found,
        counts["duplicate"],
        left_out.outside,
        reasons["left_out_by_reason"],
        reasons["left_out_because"],
        _most_first(run_types),
    )


def _phases(
    what: str,
    settings: ReadSettings,
    systems: ChemicalSystems,
    work: Path,
    left_out: LeftOut,
    counts: Counter[str],
    *,
    progress: bool,
) -> tuple[str, str, Iterator[Phase]]:
    """Return the kind of a source, the time when it was downloaded or read (UTC), and its phases."""
    now = _time(datetime.now(UTC).timestamp())
    if what.startswith(OPTIMADE_PREFIX):
        provider = provider_of(what)
        check_scheme(what, provider, settings.scheme, settings.assumed)
        with ProgressReport(f"download {provider.name}", 0, enabled=progress) as bar:
            files = download(provider, systems, work, bar.advance)
        when = _time(min(file.stat().st_mtime for file in files))
        return "OPTIMADE", when, resource_phases(provider, files, settings, left_out, counts)
    if what == MP:
        with ProgressReport("download Materials Project", 0, "entries", enabled=progress) as bar:
            entries = list(_distinct(entries_of_mp(systems, settings.scheme, work, bar.advance), counts))
        return "mp-api", now, entry_phases(what, entries, settings, left_out)
    if what in PROVIDERS and not os.path.lexists(what):
        raise ConfigError(f"{what}: no such file; did you mean {OPTIMADE_PREFIX}{what}?")
    if what.endswith(TABLES):
        return "table", now, table_phases(what, settings, left_out)
    if is_dataset(what):
        return "dataset", now, _dataset_phases(what, settings, left_out)
    return "entries", now, entry_phases(what, entry_records(what), settings, left_out)


def _distinct(entries: Iterable[Mapping[str, Any]], counts: Counter[str]) -> Iterator[Mapping[str, Any]]:
    seen: set[str] = set()
    for entry in entries:
        name = str(entry.get("entry_id"))
        counts["duplicate"] += name in seen
        if name not in seen:
            seen.add(name)
            yield entry


def _dataset_phases(path: str, settings: ReadSettings, left_out: LeftOut) -> Iterator[Phase]:
    """Yield the phases of a scores dataset.

    Raises:
        ConfigError: The energies cannot be compared with those of the candidates, or belong to unrelaxed structures.
    """
    scores = ScoredEnergies(path)
    check_same_basis(settings.scheme, scores.scheme, path)
    if not scores.relaxed:
        raise ConfigError(f"{path}: these structures are not relaxed; relax them first with `equiscreen relax`")
    if scores.scheme == OWN and settings.assumed != OWN:
        raise ConfigError(
            f"{path}: these energies follow a scheme without a name; use --scheme own if the model of the candidates "
            "was trained on the same energies"
        )
    for chunk in scores.energies(settings.compositions, settings.corrections):
        names = scores.ids(chunk)
        for row, composition in enumerate(chunk.composition.tolist()):
            try:
                settings.check_wanted(composition)
                if not chunk.competes[row]:
                    raise EntryLeftOutError("no reliable energy")  # noqa: TRY301
            except EntryLeftOutError as error:
                left_out.add(str(names[row]), error)
                continue
            # The correction depends on the structure, so the corrected energy is written.
            scheme = CORRECTED if scores.scheme == UNCORRECTED else scores.scheme
            structure = partial(_structure_of_row, scores, chunk.start + row)
            yield Phase(composition, float(chunk.energy[row]), str(names[row]), scheme, structure=structure)


def _structure_of_row(scores: ScoredEnergies, row: int) -> Structure:
    return scores.structures(np.array([row]))[0]


def _row(phase: Phase, compositions: Compositions, source: str) -> dict[str, Any]:
    """Make a row of the table from a phase."""
    corrected = phase.scheme == UNCORRECTED and not phase.formation
    row: dict[str, Any] = {
        "id": phase.name,
        "formula": compositions.formula(phase.composition),
        "energy_per_atom": None if phase.formation else phase.energy,
        "formation_energy_per_atom": phase.energy if phase.formation else None,
        "mp2020_correction_per_atom": phase.correction if corrected else None,
        "scheme": phase.scheme,
        "run_type": phase.functional or None,
        "source": source,
        "system": compositions.symbols(phase.composition),
    }
    try:
        structure = None if phase.structure is None else phase.structure()
    except (InvalidStructureError, StoreError):  # the graph store is gone, but the energy can still be used
        structure = None
    if structure is not None:
        row |= {
            "lattice_vectors": structure.cell.tolist(),
            "cartesian_site_positions": structure.positions.tolist(),
            "species_at_sites": [chemical_symbols[number] for number in structure.atomic_number.tolist()],
            "dimension_types": structure.pbc.astype(np.int8).tolist(),
        }
    return row


def _account(
    rows: list[dict[str, Any]], sources: list[SourceAccount], systems: ChemicalSystems, scheme: str
) -> ReferencesAccount:
    """Return the summary of a whole table."""
    by_system = Counter(system_name(row["system"]) for row in rows)
    run_types: Counter[str] = Counter()
    for one in sources:
        run_types.update(one.run_types)
    known = {row["system"][0] for row in rows if len(row["system"]) == 1 and row["energy_per_atom"] is not None}
    given = systems.given
    elements = (
        {symbol for one in given for symbol in one} if given is not None else {s for r in rows for s in r["system"]}
    )
    names = [] if given is None else [system_name(one) for one in given]
    return ReferencesAccount(
        scheme,
        len(rows),
        _most_first(run_types),
        tuple(names),
        dict(sorted(by_system.items(), key=lambda item: (item[0].count("-"), item[0]))),
        tuple(sorted(elements - known)),
        tuple(name for name in names if name not in by_system),
        tuple(sources),
        version("equiscreen"),
    )


def _write(path: Path, rows: list[dict[str, Any]], account: ReferencesAccount) -> None:
    """Write the table, sorted by chemical system, formula and id, without empty columns."""
    rows.sort(key=lambda row: (len(row["system"]), row["system"], row["formula"], row["source"], row["id"]))
    absent = {name for name in _OPTIONAL if all(row.get(name) is None for row in rows)}
    if "lattice_vectors" in absent:
        absent |= {"cartesian_site_positions", "species_at_sites", "dimension_types"}
    schema = pa.schema([field for field in _SCHEMA if field.name not in absent])
    schema = schema.with_metadata({METADATA_KEY: orjson.dumps(account.attrs())})
    with atomic_path(path) as scratch:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), scratch, compression="zstd")


def _most_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
