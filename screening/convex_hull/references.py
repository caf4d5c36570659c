"""Reference phases of a hull, and counts of the entries that are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from ...pipeline.energy_schemes import CORRECTED, OWN, UNCORRECTED
from ...pipeline.errors import ConfigError
from ...pipeline.structures.structure import Structure
from ..chemistry.composition import Compositions, System
from ..chemistry.elemental_energies import SOURCES, elemental_energies
from ..chemistry.functionals import GGA, GGA_U
from .mp2020 import MP2020

# Larger energies (eV/atom) are mistakes; even all-electron energies of the heaviest atoms are only a tenth of this.
MAX_ENERGY = 1e7
# Reason for leaving out a reference that cannot compete with any candidate.
OUTSIDE = "outside the chemical systems of the candidates"
_NAMED_AT_MOST = 20
_QUOTED = 80


class EntryLeftOutError(ValueError):
    """An entry cannot be used as a reference.

    Args:
        reason: A few words that many entries share; entries are counted by reason.
        detail: What is wrong with this entry.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def quoted(value: object) -> str:
    """Return a value of an input file as short text for a message."""
    text = repr(value)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."


def check_one_functional(path: str, scheme: str, functionals: AbstractSet[str]) -> None:
    """Check that references for a user's own network follow one functional.

    Args:
        path: File of the references.
        scheme: Energy scheme of the candidates.
        functionals: Functionals that the references state.

    Raises:
        ConfigError: The references follow several functionals; GGA and GGA+U count as one.
    """
    if scheme == OWN and len(functionals) > 1 and functionals != {GGA, GGA_U}:
        raise ConfigError(
            f"{path}: the entries follow several functionals ({', '.join(sorted(functionals))}); keep only the entries "
            "with the functional that the model was trained on"
        )


@dataclass
class LeftOut:
    """Entries of a file that are not used.

    Attributes:
        by_reason: Number of entries by reason.
        because: Reasons of the first entries, by name.
    """

    by_reason: Counter[str] = field(default_factory=Counter)
    because: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, error: EntryLeftOutError) -> None:
        """Count an entry that is left out."""
        self.by_reason[error.reason] += 1
        if len(self.because) < _NAMED_AT_MOST:
            self.because[name] = str(error)

    def attrs(self) -> dict[str, Any]:
        """Return the counts and reasons, as attributes of a hull."""
        by_reason = dict(sorted(self.by_reason.items(), key=lambda item: (-item[1], item[0])))
        return {
            "left_out": self.by_reason.total(),
            "left_out_by_reason": by_reason,
            "left_out_because": dict(self.because),
        }


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """Settings of the readers of references.

    Attributes:
        scheme: Energy scheme of the candidates.
        assumed: Energy scheme of entries and rows that state none; None if the user gave none.
        compositions: Updated with the compositions of the references.
        corrections: MP2020 corrections, for energies that need them.
        with_structures: Whether every reference needs a structure.
        keep_structures: Whether structures are read where they exist.
        wanted: Function that returns whether references of a chemical system are wanted; None accepts all.
    """

    scheme: str
    assumed: str | None
    compositions: Compositions
    corrections: MP2020 | None
    with_structures: bool = False
    keep_structures: bool = False
    wanted: Callable[[System], bool] | None = None

    def check_wanted(self, composition: int) -> None:
        """Check that a reference can compete with any candidate.

        Raises:
            EntryLeftOutError: The reference lies in none of the candidates' chemical systems.
        """
        if self.wanted is not None and not self.wanted(self.compositions.system(composition)):
            raise EntryLeftOutError(OUTSIDE)


@dataclass(frozen=True, slots=True)
class Phase:
    """One reference, as given in a file.

    Attributes:
        composition: Number of the composition.
        energy: Energy as given (eV/atom): the total energy, or the formation energy.
        name: Id of the reference; empty if the file gives none.
        scheme: Energy scheme that the energy follows.
        functional: Functional or run type, if stated; otherwise empty.
        correction: MP2020 correction that the energy still needs (eV/atom).
        formation: Whether the energy is a formation energy.
        structure: Function that reads the structure; None if there is none, or if none was requested.
    """

    composition: int
    energy: float
    name: str
    scheme: str
    functional: str = ""
    correction: float = 0.0
    formation: bool = False
    structure: Callable[[], Structure] | None = None


@dataclass
class Gathered:
    """Reference entries, collected while files are read."""

    composition: list[int] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    members: list[NDArray[np.float64] | None] = field(default_factory=list)
    structures: list[Callable[[], Structure] | None] = field(default_factory=list)

    def add(
        self,
        composition: int,
        energy: float,
        name: str,
        members: NDArray[np.float64] | None = None,
        structure: Callable[[], Structure] | None = None,
    ) -> None:
        """Add an entry.

        Args:
            composition: Number of the composition.
            energy: Corrected energy (eV/atom).
            name: Id of the entry, for the decomposition products.
            members: float64[members], corrected energies of the members of an ensemble (eV/atom).
            structure: Function that reads the structure when it is needed.
        """
        self.composition.append(composition)
        self.energy.append(energy)
        self.names.append(name)
        self.members.append(members)
        self.structures.append(structure)


def add_elements(found: Gathered, compositions: Compositions, scheme: str) -> dict[str, Any]:
    """Add the tabulated energies of all elements that have no other reference.

    Args:
        found: The other references.
        compositions: Updated with the compositions of the elements.
        scheme: Energy scheme of the candidates.

    Returns:
        Summary of the added elements, for the attributes of the hull; empty for a scheme without such energies.
    """
    systems = {compositions.system(number) for number in set(found.composition)}
    added = {s: one for s, one in elemental_energies(scheme).items() if (atomic_numbers[s],) not in systems}
    for symbol, element in added.items():
        found.add(compositions.add([(atomic_numbers[symbol], 1)]), element.energy, element.name)
    if not added:
        return {}
    source = SOURCES[UNCORRECTED if scheme == CORRECTED else scheme]
    return {"scheme": scheme, "source": source, "elements": list(added)}


@dataclass(frozen=True)
class References:
    """Reference entries, sorted by composition, energy and name.

    Attributes:
        composition: int64[n], numbers of the compositions.
        energy: float64[n], energies (eV/atom), corrected where their scheme requires it.
        names: Ids of the entries, or of their material where an entry names one.
        members: float64[n, members], energies of each member of an ensemble (eV/atom); None without an ensemble.
        structures: Functions that read the structures of the entries; None for an entry without one.
        account: Summary of each file, for the attributes of the hull.
        elements: Summary of the elements whose energies come from equiscreen's tables; empty if there are none.
    """

    composition: NDArray[np.int64]
    energy: NDArray[np.float64]
    names: Sequence[str]
    members: NDArray[np.float64] | None
    structures: Sequence[Callable[[], Structure] | None]
    account: tuple[Mapping[str, Any], ...] = ()
    elements: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, found: Gathered, n_members: int, account: Sequence[Mapping[str, Any]], elements: Mapping[str, Any]
    ) -> References:
        """Sort collected entries by composition, energy and name, so that their order in the files has no effect.

        Args:
            found: Collected entries.
            n_members: Number of ensemble members of the candidates. If any entry has energies of this many members,
                member energies are kept; an entry without them then has the same energy for all members.
            account: Summary of each file.
            elements: Summary of the elements that `add_elements` added.
        """
        composition, energy = np.array(found.composition, dtype=np.int64), np.array(found.energy, dtype=np.float64)
        by_name = np.array(sorted(range(len(found.names)), key=found.names.__getitem__), dtype=np.int64)
        order = by_name[np.lexsort((energy[by_name], composition[by_name]))]
        members = None
        if n_members and any(values is not None for values in found.members):
            rows = [np.full(n_members, e) if m is None else m for m, e in zip(found.members, found.energy, strict=True)]
            members = np.array(rows)[order]
        return cls(
            composition[order],
            energy[order],
            [found.names[place] for place in order.tolist()],
            members,
            [found.structures[place] for place in order.tolist()],
            tuple(account),
            elements,
        )

    def gathered(self) -> Gathered:
        """Return the entries as a collection to which more entries can be added."""
        members = [None] * len(self.energy) if self.members is None else list(self.members)
        return Gathered(
            self.composition.tolist(), self.energy.tolist(), list(self.names), members, list(self.structures)
        )

    def starts(self, n_compositions: int) -> NDArray[np.int64]:
        """Return the first entry of each composition: int64[n_compositions + 1]."""
        return np.searchsorted(self.composition, np.arange(n_compositions + 1)).astype(np.int64)
