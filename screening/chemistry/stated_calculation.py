"""Statements about functionals and pseudopotentials in records of calculations, such as pymatgen entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from .functionals import (
    GGA,
    MIXED,
    POTCAR_SECTIONS,
    STATING,
    Functional,
    StatementError,
    agreed,
    named,
    of_potcar,
    of_vasp,
)

# Lower-case names of the parts of an entry, or of a task document, that describe the calculation. In a list of
# calculations the first one counts, since it was run last.
_SECTIONS = POTCAR_SECTIONS | {
    "parameters",
    "data",
    "input",
    "inputs",
    "orig_inputs",
    "calcs_reversed",
    "attributes",
    "metadata",
    "settings",
    "incar",
}
_MAX_DEPTH = 4
# Lower-case names of the fields that are read in these parts.
_READ = STATING | {"matpes_id", "potcar_functional", "potcar_spec", "potcar_symbols", "hubbards", "is_hubbard"}


@dataclass
class StatedCalculation:
    """Functional and pseudopotentials of a calculation, as stated in the sections of its record that describe it.

    Example:
        >>> str(StatedCalculation.of({"parameters": {"run_type": "GGA+U"}}).functional())
        'GGA+U'

    Attributes:
        statements: Functionals that the record states, by the place of each statement.
        titles: Titles of the POTCARs.
        potcar_sets: Functionals that the POTCARs were made for.
        is_matpes: Whether the record comes from MatPES.
    """

    statements: dict[str, Functional] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    potcar_sets: set[str] = field(default_factory=set)
    is_matpes: bool = False

    @classmethod
    def of(cls, record: object) -> Self:
        """Read a pymatgen entry or a task document, as parsed from JSON.

        Raises:
            StatementError: A statement is malformed.
        """
        found = cls()
        for place, section in _sections(record, "", _MAX_DEPTH):
            found.read(place, section)
        return found

    def functional(self) -> Functional | None:
        """Return the functional that the statements agree on; None if none is known.

        If no statement names one, it is the functional of the POTCARs, unless these are PBE POTCARs, which are used
        with other functionals too.

        Raises:
            StatementError: The statements contradict each other.
        """
        try:
            found = agreed(self.statements.values())
        except StatementError as error:
            given = " and ".join(f"{one} in {place}" for place, one in self.statements.items())
            raise StatementError(error.reason, given) from error
        if found is not None and (found.name or found.dispersion):
            return found
        # VASP uses the functional of the POTCARs by default, but PBE POTCARs are used with other functionals too.
        other = self.potcar_sets - {GGA}
        return Functional(min(other)) if other else None

    @property
    def with_u(self) -> bool:
        """Whether any statement says that a Hubbard U was used."""
        return any(one.with_u for one in self.statements.values())

    @property
    def without_u(self) -> bool:
        """Whether any statement says that no Hubbard U was used."""
        return any(one.with_u is False for one in self.statements.values())

    def read(self, place: str, section: Mapping[str, object]) -> None:
        """Add what a part of the record states.

        Args:
            place: Place of the part in the record.
            section: Content of the part.

        Raises:
            StatementError: A statement is malformed.
        """
        in_potcar = place.rpartition(".")[2].lower() in POTCAR_SECTIONS
        for key, value in section.items():
            name = str(key).lower()
            if name not in _READ:
                continue
            where = f"{place}.{key}" if place else str(key)
            if name == "matpes_id" and value is not None:
                self.is_matpes = True
            elif name == "potcar_functional" or (in_potcar and name == "functional"):
                self.potcar_sets |= {of_potcar(text) for text in _texts(where, value)} - {""}
            elif name in ("potcar_spec", "potcar_symbols"):
                titles = _titles(where, value)
                self.titles += titles
                self.potcar_sets |= {of_potcar(title) for title in titles if len(title.split()) > 1} - {""}
            elif name in ("hubbards", "is_hubbard") and place != "parameters" and _any_u(value):
                self.statements[where] = Functional("", with_u=True)
            elif name in STATING:
                stated = {f"{where} {text}": named(name, text) for text in _texts(where, value)}
                # A mixing scheme describes how GGA and r2SCAN energies are combined; the energy of an entry is
                # uncorrected.
                known = {text: one for text, one in stated.items() if one is not None and one.name != MIXED}
                self.statements |= known
        by_tags = of_vasp(section)
        if by_tags is not None:
            self.statements[f"{place or 'entry'} (VASP tags)"] = by_tags


def _any_u(value: object) -> bool:
    """Return whether a field says that a Hubbard U was used."""
    return any(map(bool, value.values())) if isinstance(value, Mapping) else value is True


def _sections(record: object, place: str, depth: int) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield a record and its parts that may describe the calculation, each with its place."""
    if not isinstance(record, Mapping):
        return
    yield place, record
    for key, value in record.items():
        if depth and str(key).lower() in _SECTIONS:
            first = value[0] if isinstance(value, list) and value else value
            yield from _sections(first, f"{place}.{key}" if place else str(key), depth - 1)


def _texts(place: str, value: object) -> list[str]:
    """Return the texts of a statement: some databases write lists, and pymatgen writes enumerations as dictionaries.

    Raises:
        StatementError: The value is neither text nor a list of texts; or a run type or calc_type is a list.
    """
    if isinstance(value, Mapping):
        value = value.get("value", value)
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if place.rpartition(".")[2].lower() in ("run_type", "calc_type"):
        raise StatementError(f"malformed {place}", f"found {value!r:.80}")
    return _list_of_texts(place, value)


def _list_of_texts(place: str, value: object) -> list[str]:
    """Return the strings of a list, without missing and empty ones.

    Raises:
        StatementError: The value is neither a list of strings nor None.
    """
    items = [] if value is None else value
    if not isinstance(items, list) or not all(item is None or isinstance(item, str) for item in items):
        raise StatementError(f"malformed {place}", f"found {value!r:.80}")
    return [item for item in items if item]


def _titles(place: str, value: object) -> list[str]:
    """Return the titles of POTCARs, from a list of strings or of dictionaries with the key ``titel``.

    Raises:
        StatementError: The value is malformed.
    """
    items = value if isinstance(value, list) else []
    titles = [item.get("titel") if isinstance(item, Mapping) else item for item in items]
    return _list_of_texts(place, titles if items else value)
