"""Reference phases from files of pymatgen entries (JSON)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Annotated, Any

import numpy as np
from ase.data import atomic_numbers
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...pipeline.energy_schemes import MATPES_PBE, OMAT24, OWN, R2SCAN, UNCORRECTED
from ...pipeline.errors import ConfigError, SourceError, detail
from ...pipeline.readers.json_values import RepeatedKeyError, parse_json
from ...pipeline.readers.splitting import documents
from ...pipeline.sources.discovery import find_files
from ...pipeline.sources.files import SourceFile
from ...pipeline.sources.formats import Format
from ...pipeline.structures.structure import Structure
from ..chemistry.composition import MAX_COUNT, element_of_species
from ..chemistry.functionals import GGA, OF_SCHEME, R2SCAN_FUNCTIONAL, StatementError, of_potcar
from ..chemistry.stated_calculation import StatedCalculation
from ..chemistry.task_documents import entry_of_task, is_task_document
from .energies import basis
from .mp2020 import MP2020, OXIDE_TYPES, SULFIDE_TYPES
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

# Size limit of a file that holds a dictionary of entries, which needs several times as much memory; lists of entries,
# tables and datasets are read piece by piece.
MAX_JSON_BYTES = 4 << 30
_HEAD_BYTES = 1 << 10
_NO_ENTRIES = (
    "this is not a file of pymatgen entries (a list of records with composition and energy); give one, or a table"
)
# OMat24 uses the Hubbard U and the POTCARs of the Materials Project, except for these POTCARs (OMat24StaticSet in
# FAIRChem).
_OMAT24_POTCARS = {"W": "W_sv", "Yb": "Yb_3"}
_NO_POTCAR = "pseudopotentials of another scheme"
_OTHER_U = "Hubbard U of another scheme"
_WHOLE = 1e-8

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# Names only label a phase, so no value of this field may cause the entry to be left out.
_Name = Any


class _Section(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Parameters(_Section):
    hubbards: dict[str, _Number] | None = None
    is_hubbard: bool | None = None


class _Data(_Section):
    material_id: _Name = None
    oxide_type: str | None = None
    sulfide_type: str | None = None
    oxidation_states: dict[str, _Number] | None = None


class _Entry(_Section):
    """The fields of a pymatgen entry that a hull needs, with the meanings that they have in ComputedStructureEntry."""

    entry_id: _Name = None
    composition: dict[str, _Number]
    energy: _Number
    parameters: _Parameters | None = None
    data: _Data | None = None
    structure: dict[str, Any] | None = None


def read_entries(path: str, settings: ReadSettings, found: Gathered) -> dict[str, Any]:
    """Read pymatgen entries; corrections in the file are ignored, since the energies of entries are uncorrected.

    An entry that cannot be used, such as one with a different functional, is left out and counted.

    Args:
        path: File or URL of the entries.
        settings: Settings of the reader, including the energy scheme of the candidates.
        found: Updated with the entries.

    Returns:
        Summary of the file.

    Raises:
        SourceError: The file cannot be read or has no entries; or every entry needs a structure, but one has none, or
            one that cannot be read.
        ConfigError: The candidates follow a scheme of their own, and the entries follow more than one functional; or
            pymatgen is needed and not installed.
    """
    left_out = LeftOut()
    schemes: set[str] = set()
    functionals: set[str] = set()
    for phase in entry_phases(path, entry_records(path), settings, left_out):
        schemes.add(phase.scheme)
        functionals.add(phase.functional or "not stated")
        found.add(phase.composition, phase.energy + phase.correction, phase.name, structure=phase.structure)
    return {
        "kind": "entries",
        "scheme": ", ".join(sorted(schemes)),
        "functionals": sorted(functionals),
        **left_out.attrs(),
    }


def entry_phases(path: str, records: Iterable[object], settings: ReadSettings, left_out: LeftOut) -> Iterator[Phase]:
    """Turn entries into reference phases; an entry that cannot be used is left out and counted.

    Args:
        path: Where the entries come from, for messages.
        records: The entries, as pymatgen writes them.
        settings: Settings of the reader, including the energy scheme of the candidates.
        left_out: Account of the entries that are left out.

    Raises:
        SourceError: Every entry needs a structure, but one has none, or one that cannot be read.
        ConfigError: The candidates follow a scheme of their own, and the entries follow more than one functional; or
            pymatgen is needed and not installed.
    """
    functionals: set[str] = set()
    for number, record in enumerate(records):
        name = _name_of(record, number)
        try:
            entry = _parsed(record)
            amounts = _amounts(entry.composition)
            composition = settings.compositions.add(amounts.items())
            settings.check_wanted(composition)
            calculation, functional = _calculation(record)
            scheme = _scheme(functional or None, settings, is_matpes=calculation.is_matpes)
            energy = _energy_per_atom(entry.energy, sum(amounts.values()))
            symbols = settings.compositions.symbols(composition)
            _check_settings(scheme, entry.parameters or _Parameters(), calculation, symbols, settings.corrections)
            correction = 0.0
            if scheme == UNCORRECTED and settings.corrections is not None:
                correction = _correction(entry, composition, settings, settings.corrections)
        except EntryLeftOutError as error:
            left_out.add(name, error)
            continue
        structure = _structure_if_wanted(path, name, entry, settings)
        functionals |= {functional} - {""}
        material = entry.data.material_id if entry.data is not None else None
        label = str(material) if isinstance(material, str | int) else name
        yield Phase(composition, energy, label, scheme, functional, correction, structure=structure)
    check_one_functional(path, settings.scheme, functionals)


def _name_of(record: object, number: int) -> str:
    """Return the id of an entry, or its position in the file, from 0."""
    given = record.get("entry_id", record.get("task_id")) if isinstance(record, Mapping) else None
    return str(given) if isinstance(given, str | int | float) and str(given) else str(number)


def _parsed(record: object) -> _Entry:
    """Return the fields of an entry, or of a task document.

    Raises:
        EntryLeftOutError: A field is missing or malformed.
    """
    if isinstance(record, RepeatedKeyError):
        raise EntryLeftOutError("repeated key", str(record))
    try:
        if is_task_document(record):
            record = entry_of_task(record)
        entry = _Entry.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = {"energy": "no finite energy", "composition": "no composition with whole numbers of atoms"}.get(
            place.partition(".")[0], f"malformed {place}" if place else "not an entry"
        )
        raise EntryLeftOutError(reason, f"{first['msg']}, found {quoted(first['input'])}") from error
    except ValueError as error:
        raise EntryLeftOutError("contradictory energies", str(error)) from error
    except RecursionError as error:
        raise EntryLeftOutError("not an entry", "nested too deeply") from error
    return entry


def _amounts(composition: Mapping[str, float]) -> dict[int, int]:
    """Return the number of atoms by atomic number; charged species, such as ``Na1+``, count as their elements.

    Raises:
        EntryLeftOutError: An element is unknown, or a number of atoms is not whole.
    """
    reason = "no composition with whole numbers of atoms"
    amounts: dict[int, int] = {}
    for species, count in composition.items():
        symbol = element_of_species(species)
        if symbol is None or not 0 <= count <= MAX_COUNT or abs(count - round(count)) > _WHOLE:
            raise EntryLeftOutError(reason, f"{quoted(species)}: {count:g}")
        if round(count):
            number = atomic_numbers[symbol]
            amounts[number] = amounts.get(number, 0) + round(count)
    if not amounts:
        raise EntryLeftOutError(reason, "no atoms")
    return amounts


def _calculation(record: object) -> tuple[StatedCalculation, str]:
    """Return what an entry states about its calculation, and its functional, which is empty if not stated.

    Raises:
        EntryLeftOutError: A statement is malformed, or two contradict each other.
    """
    try:
        found = StatedCalculation.of(record)
        functional = found.functional()
    except StatementError as error:
        raise EntryLeftOutError(error.reason, str(error)) from error
    return found, "" if functional is None else str(functional)


def _scheme(functional: str | None, settings: ReadSettings, *, is_matpes: bool) -> str:
    """Return the energy scheme of an entry. What the entry states takes precedence over what the user assumes.

    Raises:
        EntryLeftOutError: The energy cannot be compared with the energies of the candidates.
    """
    if functional is None:
        if settings.assumed is None:
            raise EntryLeftOutError("no functional stated", "use --scheme to state the energy scheme of such entries")
        scheme = settings.assumed
    elif settings.scheme == OWN:
        if settings.assumed != OWN:
            raise EntryLeftOutError(
                f"functional {functional}", "use --scheme own if the model was trained on such energies"
            )
        return OWN
    elif functional not in OF_SCHEME[settings.scheme]:
        raise EntryLeftOutError(f"functional {functional}", f"the candidates follow {settings.scheme}")
    elif functional == R2SCAN_FUNCTIONAL:
        scheme = R2SCAN
    elif is_matpes:
        scheme = MATPES_PBE
    else:  # the energies of entries are uncorrected, regardless of the scheme that was assumed for them
        scheme = settings.assumed if settings.assumed in (OMAT24, MATPES_PBE) else UNCORRECTED
    if basis(scheme) != basis(settings.scheme):
        raise EntryLeftOutError(f"energy scheme {scheme}", f"the candidates follow {settings.scheme}")
    return scheme


def _energy_per_atom(total: float, n_atoms: int) -> float:
    """Return the uncorrected energy of an entry (eV/atom).

    Raises:
        EntryLeftOutError: The energy is not plausible for any material.
    """
    energy = total / n_atoms
    if abs(energy) > MAX_ENERGY:
        raise EntryLeftOutError("no plausible energy", f"{energy:g} eV/atom")
    return energy


def _correction(entry: _Entry, composition: int, settings: ReadSettings, corrections: MP2020) -> float:
    """Return the MP2020 correction of an entry (eV/atom), from data on its anions, its structure or its formula.

    Raises:
        EntryLeftOutError: The structure is malformed.
    """
    symbols, counts = settings.compositions.symbols(composition), settings.compositions.counts(composition)
    if len(symbols) == 1:
        return 0.0
    data = entry.data or _Data()
    oxide, sulfide = data.oxide_type, data.sulfide_type
    if entry.structure and (("O" in symbols and not oxide) or ("S" in symbols and not sulfide)):
        from pymatgen.analysis.structure_analyzer import oxide_type, sulfide_type  # noqa: PLC0415 - an extra

        crystal = _crystal(entry.structure)
        oxide = oxide or oxide_type(crystal, 1.05)
        sulfide = sulfide or sulfide_type(crystal) or "sulfate"
    by_formula = corrections.from_formula(symbols, counts)
    oxide = oxide or by_formula[0]
    sulfide = {"polysulfide": "sulfide", "sulfide": "sulfide", None: "sulfide"}.get(sulfide, SULFIDE_TYPES[1])
    oxide = oxide if oxide in OXIDE_TYPES else OXIDE_TYPES[0]
    if data.oxidation_states is None:
        return corrections.per_atom(symbols, counts, oxide, sulfide)
    return corrections.given(symbols, counts, oxide, sulfide, data.oxidation_states)


def _check_settings(
    scheme: str,
    parameters: _Parameters,
    calculation: StatedCalculation,
    symbols: tuple[str, ...],
    corrections: MP2020 | None,
) -> None:
    """Check that a calculation has the Hubbard U and the pseudopotentials of its scheme, as far as it states them.

    The scheme r2scan has no set of pseudopotentials of its own; its calculations use PBE POTCARs.

    Raises:
        EntryLeftOutError: The Hubbard U or the pseudopotentials differ.
        ConfigError: The settings of the scheme come with pymatgen, which is not installed.
    """
    if scheme == OWN:
        return
    given = {symbol: value for symbol, value in (parameters.hubbards or {}).items() if value}
    titles = calculation.titles
    if scheme == UNCORRECTED and corrections is not None:
        # As in pymatgen, a calculation without `hubbards` used no Hubbard U.
        _check_u(given, corrections.hubbards(symbols) if len(symbols) > 1 else given, "MP2020")
        _check_potcars(titles, symbols, corrections.potcars, "MP2020")
    elif scheme == OMAT24:
        if parameters.hubbards is not None or calculation.without_u:
            _check_u(given, _mp2020().hubbards(symbols), "OMat24")
        if titles:
            _check_potcars(titles, symbols, {**_mp2020().potcars, **_OMAT24_POTCARS}, "OMat24")
    elif scheme in (R2SCAN, MATPES_PBE) and (given or parameters.is_hubbard or calculation.with_u):
        raise EntryLeftOutError(_OTHER_U, f"{quoted(given) if given else 'unknown values'} (eV); {scheme} uses none")
    if scheme == MATPES_PBE and titles:
        _check_potcars(titles, symbols, _potcars_of_matpes(), "MatPES")
    if other := calculation.potcar_sets - {GGA}:
        raise EntryLeftOutError(_NO_POTCAR, f"{', '.join(sorted(other))}; {scheme} uses PBE pseudopotentials")


def _check_u(given: Mapping[str, float], expected: Mapping[str, float], scheme: str) -> None:
    """Check the Hubbard U (eV) of each element.

    Raises:
        EntryLeftOutError: The values differ from the scheme's values.
    """
    if given != expected:
        raise EntryLeftOutError(
            _OTHER_U, f"{quoted(given) if given else 'none'} (eV); {scheme} uses {expected or 'none'}"
        )


def _check_potcars(titles: list[str], symbols: tuple[str, ...], potcars: Mapping[str, str], scheme: str) -> None:
    """Check the titles of POTCARs, such as "PAW_PBE Fe_pv 06Sep2000" or "PBE Fe_pv".

    Raises:
        EntryLeftOutError: The scheme uses other POTCARs, or a title does not state a functional.
    """
    if not titles:
        return
    used = {title.split()[1] for title in titles if of_potcar(title) == GGA and len(title.split()) > 1}
    wanted = {potcars.get(symbol) for symbol in symbols}
    if used != wanted or any(len(title.split()) < 2 or of_potcar(title) != GGA for title in titles):
        needed = ", ".join(f"PAW_PBE {symbol}" for symbol in sorted(map(str, wanted)))
        raise EntryLeftOutError(_NO_POTCAR, f"{quoted(sorted(titles))}; {scheme} has {needed}")


@lru_cache(maxsize=1)
def _mp2020() -> MP2020:
    """Return the settings of the Materials Project, for schemes that share them.

    Raises:
        ConfigError: pymatgen is not installed.
    """
    return MP2020()


@lru_cache(maxsize=1)
def _potcars_of_matpes() -> Mapping[str, str]:
    """Return the symbols of the POTCARs of MatPES by element, as pymatgen ships them.

    Raises:
        ConfigError: pymatgen is not installed.
    """
    try:
        from pymatgen.io.vasp.sets import MatPESStaticSet  # noqa: PLC0415 - an extra, and slow to import
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the pseudopotentials of MatPES need {error.name}, which is not installed: pip install 'equiscreen[hull]'"
        ) from error
    potcars: Mapping[str, str] = MatPESStaticSet.CONFIG["POTCAR"]
    return potcars


def _structure_if_wanted(path: str, name: str, entry: _Entry, settings: ReadSettings) -> Callable[[], Structure] | None:
    """Return a function that reads the structure of an entry; None if no structure is wanted, or if it cannot be read.

    Raises:
        SourceError: Every entry needs a structure, but this one has none, or one that cannot be read.
    """
    if settings.with_structures:
        return _structure_of(path, name, entry)
    if not settings.keep_structures or not entry.structure:
        return None
    try:
        return _structure_of(path, name, entry)
    except SourceError:  # the energy can still be used
        return None


def _structure_of(path: str, name: str, entry: _Entry) -> Callable[[], Structure]:
    """Return a function that reads the structure of an entry.

    Raises:
        SourceError: The entry has no structure, or one that cannot be read.
    """
    if not entry.structure:
        raise SourceError(
            f"{path}: entry {name} has no structure, but --exclude-self recognises phases by their structures; use "
            "entries with structures, or leave out --exclude-self"
        )
    try:
        crystal = _crystal(entry.structure)
    except EntryLeftOutError as error:
        raise SourceError(
            f"{path}: the structure of entry {name}, which --exclude-self needs, cannot be read ({error}); repair the "
            "entry, or leave out --exclude-self"
        ) from error
    return partial(
        Structure.from_fractional,
        np.array([site.specie.Z for site in crystal], dtype=np.uint8),
        np.array(crystal.lattice.matrix),
        np.array(crystal.frac_coords),
    )


def _crystal(content: Mapping[str, Any]) -> Any:
    """Read an ordered pymatgen structure.

    Raises:
        EntryLeftOutError: The structure is malformed or disordered.
    """
    from pymatgen.core import Structure as Crystal  # noqa: PLC0415 - an extra

    try:
        crystal = Crystal.from_dict(dict(content))
    except Exception as error:  # pymatgen raises errors of many kinds
        raise EntryLeftOutError("malformed structure", detail(error)) from error
    if not len(crystal) or not crystal.is_ordered or not np.isfinite(crystal.lattice.matrix).all():
        raise EntryLeftOutError("malformed structure", "it is empty or disordered, or has no cell")
    return crystal


def entry_records(path: str) -> Iterator[object]:
    """Yield the entries of a JSON file: a list or dictionary of entries, possibly under ``entries`` or ``data``.

    If an entry of a list has a repeated key, the error is yielded in place of the entry.

    Raises:
        SourceError: The file is missing, too large or not valid JSON, or has no entries; or the path matches several
            files.
    """
    source, *others = find_files([path])
    if others:
        raise SourceError(f"{path} matches {1 + len(others):,} files; give each file of references by its own path")
    with source.open() as stream:
        listed = stream.read(_HEAD_BYTES).lstrip().startswith(b"[")
    if listed:
        yield from _elements(path, source)
        return
    with source.open() as stream:
        text = stream.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise SourceError(
            f"{path}: the file holds more than {MAX_JSON_BYTES >> 30} GiB of JSON; write the entries as a list, or the "
            "energies to a table (CSV)"
        )
    try:
        content = parse_json(text)
    except RepeatedKeyError as error:
        raise SourceError(f"{path}: {error}; keep one value of that key") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not valid JSON ({detail(error)})") from error
    if isinstance(content, dict):
        content = next((content[key] for key in ("entries", "data") if key in content), content)
    if isinstance(content, dict):
        single = is_task_document(content) or ("composition" in content and "energy" in content)
        content = [content] if single else list(content.values())
    if not isinstance(content, list) or not any(isinstance(record, dict) for record in content):
        raise SourceError(f"{path}: {_NO_ENTRIES}")
    yield from content


def _elements(path: str, source: SourceFile) -> Iterator[object]:
    """Yield the elements of a JSON array one by one; an element with a repeated key is replaced by the error.

    Raises:
        SourceError: The file is not valid JSON, or no element is a record.
    """
    any_record = False
    with source.open() as stream:
        for document in documents(stream, Format.JSON):
            record: object = None
            try:
                record = parse_json(document.content) if not document.reason else None
            except RepeatedKeyError as error:
                record = error
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{path} is not valid JSON ({detail(error)})") from error
            if document.reason:
                raise SourceError(f"{path}: {document.reason}")
            any_record = any_record or isinstance(record, dict | RepeatedKeyError)
            yield record
    if not any_record:
        raise SourceError(f"{path}: {_NO_ENTRIES}")
