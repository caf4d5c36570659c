"""Reference phases from OPTIMADE servers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_plus, urlsplit, urlunsplit

import numpy as np
from ase.data import chemical_symbols

from ...pipeline.energy_schemes import CORRECTED, OWN
from ...pipeline.errors import ConfigError, InvalidStructureError
from ...pipeline.readers.optimade import structure_from_optimade
from ...pipeline.sources.optimade_client import UnsupportedQueryError, fetch
from ...pipeline.structures.structure import Structure
from ...screening.chemistry.composition import parsed
from ...screening.chemistry.functionals import OF_SCHEME, StatementError, of_row
from ...screening.convex_hull.reference_entries import entry_phases
from ...screening.convex_hull.references import (
    MAX_ENERGY,
    EntryLeftOutError,
    LeftOut,
    Phase,
    ReadSettings,
    check_one_functional,
    quoted,
)
from .providers import EnergyField, Provider
from .systems import ChemicalSystems

# Longest filter of a request, characters: servers and proxies reject long URLs.
_FILTER_LENGTH = 1200
_PAGE = 100
_NO_ENERGY = "no energy"
_MORE_FIELDS = ("chemical_formula_reduced",)


def requests(provider: Provider, systems: ChemicalSystems, *, plain: bool = False) -> list[str]:
    """Return the URLs whose responses together hold all phases in the chemical systems.

    Args:
        provider: The server.
        systems: Chemical systems of the candidates.
        plain: Use only operators that every server must support; `HAS ONLY` is optional.

    Raises:
        ConfigError: Neither the systems nor the URL restrict the response; databases have millions of structures.
    """
    parts = urlsplit(provider.url)
    items = [item for item in parts.query.split("&") if item]
    given = next((unquote_plus(item[7:]) for item in items if item.startswith("filter=")), "")
    if systems.given is None and not given:
        raise ConfigError(
            f"{provider.name}: choose the chemical systems to fetch with --systems Li-Fe-O or --candidates SOURCE"
        )
    fields = ",".join([*provider.response_fields(), *_MORE_FIELDS])
    kept = [item for item in items if not item.startswith(("filter=", "response_fields="))]
    if not any(item.startswith("page_limit=") for item in kept):
        kept.append(f"page_limit={_PAGE}")
    found = []
    for chosen in _filters(systems, plain=plain):
        both = f"({given}) AND ({chosen})" if given and chosen else given or chosen
        query = "&".join([f"filter={quote(both)}", *kept, f"response_fields={fields}"])
        found.append(urlunsplit((parts.scheme, parts.netloc, parts.path, query, "")))
    return found


def _filters(systems: ChemicalSystems, *, plain: bool) -> Iterator[str]:
    """Yield OPTIMADE filters, each short enough for a URL."""
    if systems.given is None:
        yield ""
        return
    if plain:
        wanted = [(_quoted(system), len(system)) for system in systems.parts()]
        every = [f"(elements HAS ALL {symbols} AND nelements={count})" for symbols, count in wanted]
    else:
        every = [f"elements HAS ONLY {_quoted(system)}" for system in systems.largest()]
    clauses: list[str] = []
    for clause in every:
        if clauses and len(" OR ".join([*clauses, clause])) > _FILTER_LENGTH:
            yield " OR ".join(clauses)
            clauses = []
        clauses.append(clause)
    yield " OR ".join(clauses)


def _quoted(system: Iterable[str]) -> str:
    return ",".join(f'"{symbol}"' for symbol in system)


def download(provider: Provider, systems: ChemicalSystems, folder: Path, progress: Callable[[int], None]) -> list[Path]:
    """Download the responses that are still missing, each into a file; an unfinished download resumes.

    Raises:
        ConfigError: Neither the systems nor the URL restrict the response.
        SourceError: The server does not respond, or rejects the request.
    """
    try:
        return [_downloaded(url, folder, progress) for url in requests(provider, systems)]
    except UnsupportedQueryError:
        if systems.given is None:
            raise
        return [_downloaded(url, folder, progress) for url in requests(provider, systems, plain=True)]


def _downloaded(url: str, folder: Path, progress: Callable[[int], None]) -> Path:
    file = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.jsonl"
    if not file.exists():
        fetch(url, file, progress=progress)
    return file


def resource_phases(
    provider: Provider, files: list[Path], settings: ReadSettings, left_out: LeftOut, counts: Counter[str]
) -> Iterator[Phase]:
    """Turn the structures of a server into reference phases.

    Args:
        provider: The server.
        files: Responses of the server, one structure per line.
        settings: Settings of the reader, including the energy scheme of the candidates.
        left_out: Updated with the structures that are left out.
        counts: Updated with the numbers of structures that are ``read`` and ``duplicate``.

    Raises:
        ConfigError: No structure has an energy; or the candidates follow the scheme `own`, and the structures follow
            more than one functional.
    """
    seen: set[str] = set()
    functionals: set[str] = set()
    fields = provider.fitting(settings.scheme)
    without = 0
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                resource = json.loads(line)
                counts["read"] += 1
                name = str(resource.get("id", counts["read"]))
                if name in seen:
                    counts["duplicate"] += 1
                    continue
                seen.add(name)
                given = resource.get("attributes")
                attributes = given if isinstance(given, Mapping) else {}
                without += all(field.value(attributes) is None for field in provider.fields)
                for phase in _phase(name, attributes, provider, fields, settings, left_out):
                    functionals |= {phase.functional} - {""}
                    yield phase
    if seen and without == len(seen):
        asked = ", ".join(provider.response_fields())
        raise ConfigError(
            f"{provider.name} serves no energies: no structure (of {without:,}) has any of the fields {asked}; choose "
            "another provider"
        )
    check_one_functional(provider.name, settings.scheme, functionals)


def _phase(
    name: str,
    attributes: Mapping[str, Any],
    provider: Provider,
    fields: tuple[EnergyField, ...],
    settings: ReadSettings,
    left_out: LeftOut,
) -> Iterator[Phase]:
    """Yield the phase that a structure represents; nothing if it cannot be used."""
    try:
        counts, structure = _atoms(attributes)
        composition = settings.compositions.add(counts.items())
        settings.check_wanted(composition)
        field = next((one for one in fields if one.value(attributes) is not None), None)
        if field is None:
            raise EntryLeftOutError(_NO_ENERGY, f"in the scheme of the candidates, {settings.scheme}")  # noqa: TRY301
        functional = _functional(attributes, provider, field)
        if not field.formation and field.scheme != CORRECTED:
            record = _entry(name, counts, field.value(attributes), functional, structure, settings)
            yield from entry_phases(provider.name, [record], settings, left_out)
            return
        if not functional and settings.assumed is None:
            raise EntryLeftOutError(  # noqa: TRY301
                "no functional", "name the database, as in optimade:alexandria@URL, or use --scheme"
            )
        allowed = OF_SCHEME.get(settings.scheme)
        if functional and allowed is not None and not _is_of(functional, allowed):
            raise EntryLeftOutError(f"functional {functional}", f"the candidates follow {settings.scheme}")  # noqa: TRY301
        energy = _number(field.value(attributes)) / (1 if field.formation else sum(counts.values()))
        if abs(energy) > MAX_ENERGY:
            raise EntryLeftOutError("no plausible energy", f"{energy:g} eV/atom")  # noqa: TRY301
    except EntryLeftOutError as error:
        left_out.add(name, error)
        return
    scheme = OWN if settings.scheme == OWN else field.scheme
    read = None if structure is None else lambda: structure
    yield Phase(composition, energy, name, scheme, functional, formation=field.formation, structure=read)


def _atoms(attributes: Mapping[str, Any]) -> tuple[dict[int, int], Structure | None]:
    """Return the number of atoms in the cell by atomic number, and the structure if the sites are given.

    Raises:
        EntryLeftOutError: The structure cannot be read.
    """
    if attributes.get("species_at_sites") is not None:
        try:
            structure = structure_from_optimade(attributes)
        except InvalidStructureError as error:
            raise EntryLeftOutError("no readable structure", str(error)) from error
        numbers, counts = np.unique(structure.atomic_number, return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True)), structure
    formula, sites = attributes.get("chemical_formula_reduced"), attributes.get("nsites")
    try:
        reduced = parsed(str(formula or ""))
    except ConfigError as error:
        raise EntryLeftOutError("no composition with whole numbers of atoms", quoted(formula)) from error
    if not isinstance(sites, int) or sites < 1 or sites % sum(reduced.values()):
        raise EntryLeftOutError("no number of sites", f"{formula} with nsites {quoted(sites)}")
    return {number: count * sites // sum(reduced.values()) for number, count in reduced.items()}, None


def _functional(attributes: Mapping[str, Any], provider: Provider, field: EnergyField) -> str:
    """Return the functional of an energy, as the structure states it or, if it states none, as the field implies it.

    Raises:
        EntryLeftOutError: The statement is malformed, or contradicts itself.
    """
    stated = attributes.get(provider.functional_field) if provider.functional_field else None
    if stated is None or not field.name.startswith(provider.functional_field.rsplit("_xc_", 1)[0]):
        return field.functional
    try:
        found = of_row({"xc_functional": stated})
    except StatementError as error:
        raise EntryLeftOutError(error.reason, str(error)) from error
    return field.functional if found is None else str(found)


def _is_of(functional: str, allowed: frozenset[str]) -> bool:
    """Whether a functional, or the thermo type GGA_GGA+U that combines two, belongs to a scheme."""
    found = of_row({"functional": functional})
    return (functional == "GGA_GGA+U" and "GGA" in allowed) or (found is not None and str(found) in allowed)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise EntryLeftOutError("no finite energy", quoted(value))
    return float(value)


def _entry(
    name: str,
    counts: Mapping[int, int],
    energy: object,
    functional: str,
    structure: Structure | None,
    settings: ReadSettings,
) -> dict[str, Any]:
    """Convert a total energy into an entry, so that it is checked and corrected like any other entry.

    Servers do not state the Hubbard U, so the values of the Materials Project are assumed, which Alexandria uses.
    """
    symbols = [chemical_symbols[number] for number in sorted(counts)]
    corrections = settings.corrections
    hubbards = corrections.hubbards(symbols) if corrections is not None and len(symbols) > 1 else {}
    record: dict[str, Any] = {
        "entry_id": name,
        "composition": {chemical_symbols[number]: count for number, count in counts.items()},
        "energy": _number(energy),
        "parameters": {"hubbards": hubbards, **({"functional": functional} if functional else {})},
    }
    if structure is not None and structure.pbc.all():
        sites = [
            {"species": [{"element": chemical_symbols[number], "occu": 1}], "abc": place}
            for number, place in zip(structure.atomic_number.tolist(), structure.frac_coord.tolist(), strict=True)
        ]
        record["structure"] = {"lattice": {"matrix": structure.cell.tolist()}, "sites": sites}
    return record
