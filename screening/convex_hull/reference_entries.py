"""Reference phases from files of pymatgen entries (JSON)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
import orjson
from ase.data import atomic_numbers
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...pipeline.energy_schemes import CORRECTED, MATPES_PBE, OMAT24, OWN, R2SCAN, UNCORRECTED
from ...pipeline.errors import ConfigError, SourceError, detail
from ...pipeline.sources.discovery import find_files
from ...pipeline.structures.structure import Structure
from ..chemistry.composition import MAX_COUNT, element_of_species
from .energies import basis
from .mp2020 import MP2020, OXIDE_TYPES, SULFIDE_TYPES
from .references import MAX_ENERGY, EntryLeftOutError, Gathered, LeftOut, ReadSettings, quoted

# Size limit of a file of entries, which needs several times as much memory; tables and datasets are read in chunks.
MAX_JSON_BYTES = 4 << 30
# Functionals as run types state them. pymatgen calls PBE calculations GGA or PBE, depending on its version and input.
_GGA, _GGA_U, _R2SCAN = "GGA", "GGA+U", "r2SCAN"
_FUNCTIONALS = {
    **dict.fromkeys(("GGA", "PBE"), _GGA),
    **dict.fromkeys(("GGA+U", "GGA_U", "GGAU", "PBE+U", "PBE_U"), _GGA_U),
    "R2SCAN": _R2SCAN,
}
# Functionals of the energy schemes of models. Networks of one's own may follow any single functional.
_OF_SCHEME = {
    UNCORRECTED: {_GGA, _GGA_U},
    CORRECTED: {_GGA, _GGA_U},
    OMAT24: {_GGA, _GGA_U},
    MATPES_PBE: {_GGA},
    R2SCAN: {_R2SCAN},
}
_PBE_POTCARS = frozenset({"PAW_PBE", "PBE"})
_WHOLE = 1e-8

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# Names only label a phase, so whatever stands there must not leave out the entry.
_Name = Any


class _Section(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Potcar(_Section):
    titel: str | None = None


class _Parameters(_Section):
    run_type: str | None = None
    functional: str | None = None
    hubbards: dict[str, _Number] | None = None
    potcar_spec: list[_Potcar | None] | None = None
    potcar_symbols: list[str | None] | None = None


class _Data(_Section):
    run_type: str | None = None
    material_id: _Name = None
    oxide_type: str | None = None
    sulfide_type: str | None = None
    oxidation_states: dict[str, _Number] | None = None


class _Entry(_Section):
    """The fields of a pymatgen entry that a hull needs; their meaning is that of ComputedStructureEntry."""

    entry_id: _Name = None
    composition: dict[str, _Number]
    energy: _Number
    run_type: str | None = None
    parameters: _Parameters | None = None
    data: _Data | None = None
    structure: dict[str, Any] | None = None


def read_entries(path: str, settings: ReadSettings, found: Gathered) -> dict[str, Any]:
    """Read pymatgen entries; their own corrections are ignored, since their energies are uncorrected.

    An entry that cannot be used, such as one with a different functional, is left out and counted.

    Args:
        path: File or URL of the entries.
        settings: What the entries are compared with.
        found: The entries are added to it.

    Returns:
        Summary of the file.

    Raises:
        SourceError: The file cannot be read, or an entry has no structure although every one needs one.
        ConfigError: The candidates follow a scheme of their own, and the entries more than one functional.
    """
    left_out = LeftOut()
    schemes: set[str] = set()
    functionals: set[str] = set()
    for number, record in enumerate(_records(path)):
        name = _name_of(record, number)
        try:
            entry = _parsed(record)
            amounts = _amounts(entry.composition)
            composition = settings.compositions.add(amounts.items())
            functional = _functional(entry)
            scheme = _scheme(functional, settings)
            energy = _energy_per_atom(entry.energy, sum(amounts.values()))
            if scheme == UNCORRECTED and settings.corrections is not None:
                energy += _correction(entry, composition, settings, settings.corrections)
        except EntryLeftOutError as error:
            left_out.add(name, error)
            continue
        structure = _structure_of(path, name, entry) if settings.with_structures else None
        schemes.add(scheme)
        functionals.add(functional or "not stated")
        material = entry.data.material_id if entry.data is not None else None
        found.add(composition, energy, str(material) if isinstance(material, str | int) else name, structure=structure)
    stated = functionals - {"not stated"}
    if settings.scheme == OWN and len(stated) > 1 and stated != {_GGA, _GGA_U}:
        raise ConfigError(
            f"{path}: its entries follow several functionals ({', '.join(sorted(stated))}); keep those that the model "
            "was trained on"
        )
    return {
        "kind": "entries",
        "scheme": ", ".join(sorted(schemes)),
        "functionals": sorted(functionals),
        **left_out.attrs(),
    }


def _name_of(record: object, number: int) -> str:
    """Id of an entry, or its place in the file."""
    given = record.get("entry_id") if isinstance(record, Mapping) else None
    return str(given) if isinstance(given, str | int | float) and str(given) else str(number)


def _parsed(record: object) -> _Entry:
    """The fields of an entry.

    Raises:
        EntryLeftOutError: A field is missing or malformed.
    """
    try:
        entry = _Entry.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = {"energy": "no finite energy", "composition": "no composition of whole numbers of atoms"}.get(
            place.partition(".")[0], f"malformed {place}" if place else "not an entry"
        )
        raise EntryLeftOutError(reason, f"{first['msg']}, found {quoted(first['input'])}") from error
    except RecursionError as error:
        raise EntryLeftOutError("not an entry", "nested too deeply") from error
    return entry


def _amounts(composition: Mapping[str, float]) -> dict[int, int]:
    """Number of atoms by atomic number; species with charges, such as ``Na1+``, count as their elements.

    Raises:
        EntryLeftOutError: An element is unknown, or a number of atoms is not whole.
    """
    reason = "no composition of whole numbers of atoms"
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


def _functional(entry: _Entry) -> str | None:
    """The functional that an entry states; None if it states none.

    Raises:
        EntryLeftOutError: The entry states two functionals.
    """
    parameters, data = entry.parameters or _Parameters(), entry.data or _Data()
    given = [text for text in (entry.run_type, parameters.run_type, data.run_type, parameters.functional) if text]
    stated = {_FUNCTIONALS.get(text.strip().upper(), text.strip()[:40]) for text in given}
    if {_GGA, _GGA_U} == stated:  # the functional is one; the run type says whether U was used
        stated = {_GGA_U}
    if len(stated) > 1:
        raise EntryLeftOutError("two functionals", " and ".join(sorted(stated)))
    return next(iter(stated), None)


def _scheme(functional: str | None, settings: ReadSettings) -> str:
    """Energy scheme of an entry. What the entry states takes precedence over what the user assumes.

    Raises:
        EntryLeftOutError: The energy cannot be compared with those of the candidates.
    """
    if functional is None:
        if settings.assumed is None:
            raise EntryLeftOutError("no run type", "use --scheme to state the energy scheme of such entries")
        scheme = settings.assumed
    elif settings.scheme == OWN:
        if settings.assumed != OWN:
            raise EntryLeftOutError(
                f"functional {functional}", "use --scheme own if the model was trained on such energies"
            )
        return OWN
    elif functional not in _OF_SCHEME[settings.scheme]:
        raise EntryLeftOutError(f"functional {functional}", f"the candidates follow {settings.scheme}")
    elif functional == _R2SCAN:
        scheme = R2SCAN
    else:  # the energies of entries are uncorrected, whatever scheme was assumed for them
        scheme = settings.assumed if settings.assumed in (OMAT24, MATPES_PBE) else UNCORRECTED
    if basis(scheme) != basis(settings.scheme):
        raise EntryLeftOutError(f"energy scheme {scheme}", f"the candidates follow {settings.scheme}")
    return scheme


def _energy_per_atom(total: float, n_atoms: int) -> float:
    """Uncorrected energy of an entry (eV/atom).

    Raises:
        EntryLeftOutError: No material has such an energy.
    """
    energy = total / n_atoms
    if abs(energy) > MAX_ENERGY:
        raise EntryLeftOutError("no plausible energy", f"{energy:g} eV/atom")
    return energy


def _correction(entry: _Entry, composition: int, settings: ReadSettings, corrections: MP2020) -> float:
    """MP2020 correction of an entry (eV/atom), by its own data on anions, else by its structure, else by its formula.

    Raises:
        EntryLeftOutError: The scheme does not apply to its settings.
    """
    symbols, counts = settings.compositions.symbols(composition), settings.compositions.counts(composition)
    _check_settings(entry.parameters or _Parameters(), symbols, corrections)
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


def _check_settings(parameters: _Parameters, symbols: tuple[str, ...], corrections: MP2020) -> None:
    """Check that the MP2020 scheme applies to a calculation.

    Raises:
        EntryLeftOutError: The calculation used different values of U, or different pseudopotentials.
    """
    given = {symbol: value for symbol, value in (parameters.hubbards or {}).items() if value}
    expected = corrections.hubbards(symbols) if len(symbols) > 1 else given
    if given != expected:
        raise EntryLeftOutError("Hubbard U of another scheme", f"{quoted(given)}; MP2020 has {expected}")
    titles = [item.titel for item in parameters.potcar_spec or () if item is not None and item.titel]
    titles += [title for title in parameters.potcar_symbols or () if title]
    if not titles:
        return
    # "PAW_PBE Fe_pv 06Sep2000" or "PBE Fe_pv": a symbol alone does not tell for which functional it was made.
    words = [title.split() for title in titles]
    used = {title[1] for title in words if len(title) > 1 and title[0] in _PBE_POTCARS}
    wanted = {corrections.potcars.get(symbol) for symbol in symbols}
    if used != wanted or any(len(title) < 2 or title[0] not in _PBE_POTCARS for title in words):
        needed = ", ".join(f"PAW_PBE {symbol}" for symbol in sorted(map(str, wanted)))
        raise EntryLeftOutError("pseudopotentials of another scheme", f"{quoted(sorted(titles))}; MP2020 has {needed}")


def _structure_of(path: str, name: str, entry: _Entry) -> Callable[[], Structure]:
    """Function that reads the structure of an entry.

    Raises:
        SourceError: The entry has no structure.
    """
    if not entry.structure:
        raise SourceError(
            f"{path}: entry {name} has no structure, which --exclude-self needs to recognise it; use entries with "
            "structures, or leave out --exclude-self"
        )
    try:
        crystal = _crystal(entry.structure)
    except EntryLeftOutError as error:
        raise SourceError(f"{path}: entry {name}: {error}; --exclude-self needs its structure") from error
    return partial(
        Structure.from_fractional,
        np.array([site.specie.Z for site in crystal], dtype=np.uint8),
        np.array(crystal.lattice.matrix),
        np.array(crystal.frac_coords),
    )


def _crystal(content: Mapping[str, Any]) -> Any:
    """An ordered pymatgen structure.

    Raises:
        EntryLeftOutError: The structure is malformed or disordered.
    """
    from pymatgen.core import Structure as Crystal  # noqa: PLC0415 - an extra

    try:
        crystal = Crystal.from_dict(dict(content))
    except Exception as error:  # whatever its parts raise
        raise EntryLeftOutError("malformed structure", detail(error)) from error
    if not len(crystal) or not crystal.is_ordered or not np.isfinite(crystal.lattice.matrix).all():
        raise EntryLeftOutError("malformed structure", "it is empty, disordered or has no cell")
    return crystal


def _records(path: str) -> Iterator[object]:
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
        content = _json(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not valid JSON ({detail(error)})") from error
    if isinstance(content, dict):
        content = next((content[key] for key in ("entries", "data") if key in content), content)
    if isinstance(content, dict):
        content = [content] if "composition" in content and "energy" in content else list(content.values())
    if not isinstance(content, list) or not any(isinstance(record, dict) for record in content):
        raise SourceError(f"{path}: not a file of pymatgen entries (a list of records with composition and energy)")
    yield from content


def _json(text: bytes) -> Any:
    """Parse JSON. Python's own writer also writes NaN and Infinity, which orjson refuses."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)
