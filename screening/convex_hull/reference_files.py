"""Reading of reference phases: pymatgen entries, scores datasets, and tables of energies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...pipeline.energy_schemes import OWN, SCHEMES, without_dispersion
from ...pipeline.errors import ConfigError, SourceError, StoreError
from ...pipeline.runs.target import ROOT_FILE
from ...pipeline.sources.discovery import find_files
from ...pipeline.store.graph_store import open_root
from ...pipeline.structures.structure import Structure
from ..chemistry.composition import Compositions
from ..dataset.scores import SCORES_SCHEMA
from .energies import ScoredEnergies, VibrationalFreeEnergies, check_same_basis, check_without_dispersion
from .mp2020 import MP2020
from .reference_entries import read_entries
from .reference_tables import TABLES, FormationEnergy, add_formation_energies, read_table
from .references import Gathered, LeftOut, ReadSettings, References, add_elements


def is_dataset(path: str | Path) -> bool:
    """Return whether a path of references is the path of a scores dataset."""
    return str(path).rstrip("/").endswith(".zarr") or (Path(path) / ROOT_FILE).exists()


def content_version(path: str) -> list[str]:
    """Return the path of references, and a version of their content: the store hash, or one version per file.

    Raises:
        SourceError: There is no such file.
        StoreError: The dataset is missing or damaged.
    """
    if is_dataset(path):
        return [path, str(open_root(path, SCORES_SCHEMA).attrs.get("store_hash"))]
    return [path, *(file.version for file in find_files([path]))]


def read_references(
    paths: Sequence[str | Path],
    candidates: ScoredEnergies,
    compositions: Compositions,
    corrections: MP2020 | None,
    *,
    scheme: str | None = None,
    allow_unrelaxed: bool = False,
    with_structures: bool = False,
    own_energies: bool = False,
    temperature: float | None = None,
) -> References:
    """Read reference phases from entries, datasets and tables.

    Args:
        paths: Files of pymatgen entries (JSON), scores datasets, or tables (CSV, parquet) with the columns ``formula``
            and ``energy_per_atom`` or ``formation_energy_per_atom``, and optionally an id, ``scheme`` and functional
            (``run_type``, ``functional``, ``xc``).
        candidates: Scores that are compared with the references.
        compositions: Updated with the compositions of the references.
        corrections: MP2020 corrections, for energies that need them.
        scheme: Energy scheme of table rows that do not state one, and of entries that state no functional.
        allow_unrelaxed: Accept datasets of unrelaxed structures for relaxed candidates.
        with_structures: Whether every reference needs a structure.
        own_energies: Whether the references must be datasets computed with the candidates' model, without tabulated
            energies of elements.
        temperature: Temperature of their free energies, K; None for energies.

    Raises:
        ConfigError: An energy scheme is unknown or incompatible; a table lacks columns, or a file has no usable entry;
            a dataset holds unrelaxed structures, the candidates are relaxed, and `allow_unrelaxed` is not set;
            `own_energies` is set, and the references are not a dataset computed with the candidates' model; only the
            energies of the candidates include dispersion; a dataset lacks free energies that are needed; or an extra
            is not installed.
        SourceError: A file cannot be read, or has no structures although they are needed.
        StoreError: A dataset cannot be read, or has no energies.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise ConfigError(f"unknown energy scheme {scheme!r}; choose one of {', '.join(SCHEMES)}")
    settings = ReadSettings(candidates.scheme, scheme, compositions, corrections, with_structures)
    found, waiting = Gathered(), list[FormationEnergy]()
    account: list[dict[str, Any]] = []
    tables: dict[int, LeftOut] = {}
    for path in paths:
        before, waited = len(found.energy), len(waiting)
        name = str(path).rstrip("/")
        if own_energies and not is_dataset(name):
            raise ConfigError(
                f"{path} is not a scores dataset; relax the references with the model of the candidates first"
            )
        if not is_dataset(name):
            check_without_dispersion(candidates.scheme, name)
        if name.endswith(TABLES):
            left_out = tables[len(account)] = LeftOut()
            notes = {**read_table(name, settings, found, waiting, left_out), **left_out.attrs()}
        elif is_dataset(name):
            notes = _read_dataset(
                name,
                candidates,
                settings,
                found,
                allow=allow_unrelaxed,
                own_energies=own_energies,
                temperature=temperature,
            )
        else:
            notes = read_entries(name, settings, found)
        read = len(found.energy) - before + len(waiting) - waited
        if not read:
            raise ConfigError(f"{path}: none of the entries can be used{_reasons(notes)}; use other references")
        account.append({"path": name, "entries": read, **notes})
    elements = {} if own_energies else add_elements(found, compositions, candidates.scheme)
    add_formation_energies(waiting, compositions, found)
    for place, left_out in tables.items():
        lacking = (
            left_out.by_reason.total() - account[place]["left_out"]
        )  # entries with formation energies whose elements have no references
        account[place] |= {**left_out.attrs(), "entries": account[place]["entries"] - lacking}
    return References.of(found, candidates.n_members, account, elements)


def _reasons(notes: dict[str, Any]) -> str:
    """Return the reasons why entries of a file were left out, for a message; empty if none were."""
    because = notes.get("left_out_because", {})
    counts = ", ".join(f"{count:,} {reason}" for reason, count in notes.get("left_out_by_reason", {}).items())
    first = next(iter(because.items()), None)
    return f" ({counts}; the first, {first[0]}: {first[1]})" if first else ""


def _read_dataset(
    path: str,
    candidates: ScoredEnergies,
    settings: ReadSettings,
    found: Gathered,
    *,
    allow: bool,
    own_energies: bool,
    temperature: float | None,
) -> dict[str, Any]:
    """Read reference phases from a scores dataset."""
    rows = ScoredEnergies(path)
    if own_energies and rows.model != candidates.model:
        raise ConfigError(
            f"{path}: these energies and the candidates' energies come from different models; relax the references "
            "with the model of the candidates"
        )
    if not rows.relaxed and not allow and candidates.relaxed:
        raise ConfigError(
            f"{path}: these structures are not relaxed, but the candidates are; use --unrelaxed-references to accept "
            "them"
        )
    check_same_basis(candidates.scheme, rows.scheme, path)
    if without_dispersion(rows.scheme) == OWN and rows.basis != candidates.basis and settings.assumed != OWN:
        raise ConfigError(
            f"{path}: these energies come from another model, and each model has a scheme of its own; use --scheme own "
            "if both models were trained on the same energies"
        )
    with_members = rows.n_members and rows.n_members == candidates.n_members
    vibrations = None if temperature is None else VibrationalFreeEnergies(rows, temperature)
    left_out = 0
    for chunk in rows.energies(settings.compositions, settings.corrections):
        ids = rows.ids(chunk)
        own = rows.member_energies(chunk) if with_members else None
        competing = np.flatnonzero(chunk.competes)
        left_out += len(chunk.competes) - len(competing)
        energy = chunk.energy
        if vibrations is not None:
            energy = energy + vibrations.at(chunk.start, chunk.stop)
            lacking = competing[np.isnan(energy[competing])]
            vibrations.check_references(ids[lacking].tolist(), chunk.start + lacking)
        for row in competing.tolist():
            members = None if own is None or vibrations is not None else own[row]
            structure = partial(_structure, rows, chunk.start + row) if settings.with_structures else None
            found.add(int(chunk.composition[row]), float(energy[row]), ids[row], members, structure)
    return {
        "kind": "dataset",
        "scheme": rows.scheme,
        "relaxed": rows.relaxed,
        "store_hash": rows.attrs["store_hash"],
        "left_out": left_out,
        "left_out_by_reason": {"no reliable energy": left_out} if left_out else {},
    }


def _structure(rows: ScoredEnergies, row: int) -> Structure:
    """Return the structure of a row of a dataset of references.

    Raises:
        SourceError: The structure cannot be read.
    """
    try:
        return rows.structures(np.array([row]))[0]
    except StoreError as error:
        raise SourceError(f"{rows.path}: --exclude-self needs the structures of references: {error}") from error
