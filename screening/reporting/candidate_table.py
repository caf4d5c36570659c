"""The table of candidates: values for the page, duplicates folded, and structures of the best ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import EquiscreenError
from ...pipeline.plain_text import one_line
from ...pipeline.structures.cif_text import cif_text
from ...pipeline.structures.matching import composition_key, crystal_vector, first_same_crystal
from ...pipeline.structures.structure import Structure
from ..dataset.ranked_table import space_group_symbol
from ..dataset.reader import ScoresReader
from ..dataset.scores import UNRELAXED

# Candidates whose structures are part of the page, and the largest number of atoms of such a structure.
STRUCTURES, MAX_ATOMS = 200, 500
# Number of the best candidates that are searched for duplicates.
FOLDED = 10_000
# Relaxations to forces of 0.02 eV/angstrom leave sites about this far from the minimum (angstrom).
_SAME = 0.05
# Heading of each column in the order of the table, and the decimals of its values.
_COLUMNS: Mapping[str, tuple[str, int]] = {
    "formula": ("formula", 0),
    "energy_above_hull": ("above hull", 3),
    "energy_above_hull_std": ("± (ensemble)", 3),
    "probability_below_hull": ("probability below hull", 2),
    "probability_near_hull": ("probability near hull", 2),
    "energy_above_model_hull": ("above model hull", 3),
    "energy_above_joint_hull": ("above hull with candidates", 3),
    "formation_energy_per_atom": ("formation energy", 3),
    "energy_per_atom": ("energy", 3),
    "energy_std": ("± (ensemble)", 3),
    "bulk_modulus_vrh": ("bulk modulus", 1),
    "shear_modulus_vrh": ("shear modulus", 1),
    "bulk_modulus_eos": ("bulk modulus", 1),
    "is_mechanically_stable": ("mechanically stable", 0),
    "is_dynamically_stable": ("dynamically stable", 0),
    "kappa": ("thermal conductivity", 2),
    "space_group": ("space group", 0),
    "novelty": ("known or new", 0),
    "known_as": ("known as", 0),
    "volume_change": ("volume change", 1),
    "max_force": ("largest force", 3),
    "n_atoms": ("atoms", 0),
    "charge_neutral": ("charge-neutral", 0),
    "status": ("status", 0),
    "structure_id": ("id", 0),
}
# Columns that are shown only if another column is absent, and the names of these other columns.
_INSTEAD = {
    "energy_per_atom": "formation_energy_per_atom",
    "energy_std": "energy_above_hull_std",
    "bulk_modulus_eos": "bulk_modulus_vrh",
}
# Columns that `select` adds.
_OF_SELECTION = frozenset({"novelty", "known_as", "charge_neutral"})
_PERCENT = frozenset({"volume_change"})
_PRODUCT = re.compile(r"^(?P<fraction>\S+) (?P<phase>.*)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        name: Name of the array in the dataset.
        heading: Heading of the column on the page.
        unit: Unit of the values; empty without one.
        description: What the values are, in a sentence.
        decimals: Decimals of the values; None for text.
    """

    name: str
    heading: str
    unit: str
    description: str
    decimals: int | None

    def as_json(self) -> dict[str, Any]:
        """Return the column as the script of the page expects it."""
        return {
            "name": self.name,
            "heading": self.heading,
            "unit": self.unit,
            "description": self.description,
            "decimals": self.decimals,
        }


@dataclass(frozen=True, slots=True)
class CandidateTable:
    """Candidates of a report, best first.

    Attributes:
        rows: int64[n], row of each candidate in the dataset.
        columns: Columns of the table.
        values: Values by column, one per candidate; None if missing.
        parents: int64[n], place of the first candidate that is the same crystal, or its own place if there is none.
        structures: Structures of the best distinct candidates, by place in the table.
        decompositions: Competing phases of these candidates in words, by place in the table.
        note: Why structures are missing; empty if none are.
    """

    rows: NDArray[np.int64]
    columns: Sequence[Column]
    values: Mapping[str, Sequence[Any]]
    parents: NDArray[np.int64]
    structures: Mapping[int, Structure]
    decompositions: Mapping[int, str]
    note: str

    @property
    def distinct(self) -> NDArray[np.int64]:
        """Places in the table of the candidates that are not duplicates of others, best first: int64[n]."""
        return np.flatnonzero(self.parents == np.arange(len(self.parents)))

    def as_json(self) -> dict[str, Any]:
        """Return the table as the script of the page expects it."""
        details = {}
        for place, structure in self.structures.items():
            file_format, text = _structure_text(structure, f"{place + 1}-{self.values['formula'][place]}")
            details[str(place)] = {
                "format": file_format,
                "text": text,
                "decomposition": self.decompositions.get(place, ""),
            }
        duplicates = not np.array_equal(self.parents, np.arange(len(self.parents)))
        return {
            "columns": [column.as_json() for column in self.columns],
            "values": dict(self.values),
            "parents": self.parents.tolist() if duplicates else None,
            "details": details,
        }


def candidate_table(
    rows: ScoresReader, ranked: NDArray[np.int64], ranked_by: str, selection: ScoresReader | None = None
) -> CandidateTable:
    """Read the candidates of a report.

    Two of the best 10,000 candidates are duplicates if `pipeline.structures.matching.same_crystal` matches them within
    0.05 angstrom. The structures of the best 200 distinct candidates are read, unless they have more than 500 atoms. If
    the graph store cannot be read, the table marks no duplicates and has no structures, and a note gives the reason.

    Args:
        rows: Reader of the dataset.
        ranked: int64[n], rows of the dataset, best first.
        ranked_by: Column that the candidates are ranked by; it follows the formula in the table.
        selection: A selection from this dataset. Its columns for novelty and charge balance are added, or replace those
            of the dataset; structures outside the selection have no values in these columns.

    Raises:
        StoreError: The dataset is damaged.
    """
    columns = _columns(rows, ranked_by, selection)
    values = {
        column.name: _values(rows, column, ranked)
        if selection is None or column.name not in _OF_SELECTION & selection.specs.keys()
        else _selected_values(selection, column, ranked)
        for column in columns
    }
    parents = np.arange(len(ranked))
    structures: dict[int, Structure] = {}
    note = ""
    try:
        parents = _parents(rows, ranked)
        best = np.flatnonzero(parents == np.arange(len(ranked)))[:STRUCTURES]
        small = best[rows.rows("n_atoms", ranked[best]) <= MAX_ATOMS]
        structures = dict(zip(small.tolist(), rows.structures(ranked[small]), strict=True))
    except EquiscreenError as error:
        note = f"No structures: {error}"
    decompositions = {}
    if "decomposition" in rows.specs and structures:
        places = list(structures)
        texts = rows.rows("decomposition", ranked[places]).tolist()
        decompositions = {place: decomposition_in_words(text) for place, text in zip(places, texts, strict=True)}
    return CandidateTable(ranked, columns, values, parents, structures, decompositions, note)


def decomposition_in_words(text: str) -> str:
    """Return the competing phases in words, with fractions as percentages.

    Example:
        >>> decomposition_in_words("0.6667 NaCl (mp-22862) + 0.3333 Na (mp-10172)")
        '66.67 % NaCl (mp-22862) + 33.33 % Na (mp-10172)'

    Args:
        text: Value of the column `decomposition`: fraction of the atoms, formula and id of each phase.
    """
    found = []
    for product in text.split(" + ") if text else ():
        parts = _PRODUCT.match(product)
        try:
            percent = 100 * float(parts["fraction"]) if parts else None
        except ValueError:
            percent = None
        found.append(product if parts is None or percent is None else f"{percent:.4g} % {parts['phase']}")
    return " + ".join(map(one_line, found))


def _columns(rows: ScoresReader, ranked_by: str, selection: ScoresReader | None) -> list[Column]:
    """Return the columns of the table that exist, with names for unrelaxed structures where these apply.

    The column that candidates are ranked by is always among them.
    """
    specs = dict(rows.specs)
    if selection is not None:
        specs |= {name: selection.specs[name] for name in _OF_SELECTION & selection.specs.keys()}
    ranking = ranked_by.removesuffix(UNRELAXED)
    found: dict[str, Column] = {}
    for bare, (heading, decimals) in {ranking: (ranking.replace("_", " "), 3), **_COLUMNS}.items():
        name = ranked_by if bare == ranking else bare if bare in specs else bare + UNRELAXED
        if name not in specs or (name != ranked_by and _INSTEAD.get(bare) in found):
            continue
        attrs = specs[name].attrs
        unit = "%" if bare in _PERCENT else str(attrs.get("units", "")).removeprefix("1")
        kind = specs[name].dtype
        is_number = kind.startswith(("float", "int", "uint")) and "flag_values" not in attrs and bare != "space_group"
        description = str(attrs.get("description", attrs.get("long_name", "")))
        title = heading if name == bare else f"{heading}, unrelaxed"
        found[bare] = Column(name, title, unit, description, decimals if is_number else None)
    return sorted(found.values(), key=lambda one: (one.name != "formula", one.name not in ("formula", ranked_by)))


def _values(rows: ScoresReader, column: Column, ranked: NDArray[np.int64]) -> list[Any]:
    values = rows.rows(column.name, ranked)
    if column.name == "space_group":
        texts = {
            number: f"{space_group_symbol(number)} ({number})" if number else None
            for number in np.unique(values).tolist()
        }
        return [texts[number] for number in values.tolist()]
    if column.decimals is not None:
        if values.dtype.kind != "f":
            return list(values.tolist())
        scaled = 100.0 * values if column.name in _PERCENT else values
        # Two more decimals than are shown, for downloads and for sorting.
        return [round(value, column.decimals + 2) if np.isfinite(value) else None for value in scaled.tolist()]
    if "flag_values" in rows.specs[column.name].attrs:
        words = {value: word.replace("_", " ") for word, value in rows.meanings(column.name).items()}
        return [words.get(int(value), "?") for value in values.tolist()]
    return [one_line(str(value)) for value in values.tolist()]


def _selected_values(selection: ScoresReader, column: Column, ranked: NDArray[np.int64]) -> list[Any]:
    """Return a selection's values for rows of the dataset that it was made from; None for rows not selected."""
    places = {row: place for place, row in enumerate(selection.column("scores_row", 0, len(selection)).tolist())}
    found = [places[row] for row in ranked.tolist() if row in places]
    values = iter(_values(selection, column, np.array(found, dtype=np.int64)))
    return [next(values) if row in places else None for row in ranked.tolist()]


def _parents(rows: ScoresReader, ranked: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for each candidate, the place of the first candidate that is the same crystal: int64[n]."""
    parents = np.arange(len(ranked))
    best = ranked[:FOLDED]
    if len(best):
        structures = rows.structures(best)
        keys = np.array([composition_key(one) for one in structures], dtype=np.uint64)
        vectors = np.array([crystal_vector(one) for one in structures])
        parents[: len(best)] = first_same_crystal(keys, vectors, structures.__getitem__, _SAME)
    return parents


def _structure_text(structure: Structure, name: str) -> tuple[str, str]:
    """Return a structure as a file for the viewer and for download: format and text."""
    if structure.pbc.all():
        return "cif", cif_text(structure, name, {})
    from io import StringIO  # noqa: PLC0415 - slabs and molecules are rare

    from ase.io import write  # noqa: PLC0415 - as above

    file = StringIO()
    write(file, structure.to_ase(), format="xyz")
    return "xyz", file.getvalue()
