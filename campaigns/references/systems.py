"""Chemical systems of candidates, to which references are restricted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import combinations
from pathlib import Path

from ase.data import atomic_numbers, chemical_symbols

from ...pipeline.errors import ConfigError, SourceError
from ...pipeline.featurization.partitions import Plan, read_partition
from ...pipeline.readers.records import ReadOptions
from ...pipeline.sources.discovery import find_files
from ...pipeline.store.graph_store import GraphStore, open_root
from ...pipeline.store.schema import GRAPH_SCHEMA
from ...screening.chemistry.composition import System, formulas, parsed
from ...screening.convex_hull.reference_files import is_dataset
from ...screening.dataset.reader import ScoresReader
from ...screening.dataset.scores import SCORES_SCHEMA

_BLOCK = 4096


class ChemicalSystems:
    """The chemical systems of candidates; a phase competes if all of its elements are in one of these systems.

    Args:
        systems: Symbols of the elements of each candidate; None to keep all phases.

    Attributes:
        given: The different systems, sorted; None if all phases are kept.

    Raises:
        ConfigError: There are no chemical systems, or an element is unknown.
    """

    def __init__(self, systems: Iterable[frozenset[str]] | None) -> None:
        self.given = None if systems is None else sorted({frozenset(one) for one in systems}, key=sorted)
        if self.given is not None and not any(self.given):
            raise ConfigError("there are no chemical systems; give at least one, such as Li-Fe-O")
        for symbol in sorted(frozenset().union(*(self.given or ()))):
            if symbol not in atomic_numbers or symbol == "X":
                raise ConfigError(f"unknown element {symbol!r} in a chemical system; write systems as Li-Fe-O,Na-Cl")
        self._holding: dict[int, set[int]] = {}
        self._within = lru_cache(maxsize=1 << 18)(self._find)
        for place, system in enumerate(self.given or ()):
            for symbol in system:
                self._holding.setdefault(atomic_numbers[symbol], set()).add(place)

    def wanted(self, system: System) -> bool:
        """Whether a phase of these elements (atomic numbers) can compete with a candidate."""
        return self.given is None or self._within(system)

    def largest(self) -> list[list[str]]:
        """Return the symbols of the systems that are not contained in another one, sorted."""
        systems = self.given or []
        numbers = {one: {atomic_numbers[symbol] for symbol in one} for one in systems}
        alone = [
            one for one in systems if len(set.intersection(*(self._holding[number] for number in numbers[one]))) == 1
        ]
        return sorted(sorted(one) for one in alone)

    def parts(self) -> list[tuple[str, ...]]:
        """Return the symbols of every chemical system whose phases compete: all subsystems, the largest first."""
        found = {
            part
            for system in self.largest()
            for size in range(1, len(system) + 1)
            for part in combinations(system, size)
        }
        return sorted(found, key=lambda part: (-len(part), part))

    def _find(self, system: System) -> bool:
        return bool(set.intersection(*(self._holding.get(number, set()) for number in system)))


def systems_of_text(text: str) -> set[frozenset[str]]:
    """Parse chemical systems such as ``Li-Fe-O,Na-Cl``."""
    return {frozenset(filter(None, map(str.strip, one.split("-")))) for one in text.split(",") if one.strip()}


def system_name(symbols: Iterable[str]) -> str:
    """Return the name of a chemical system, such as ``Fe-Li-O``."""
    return "-".join(sorted(symbols))


def systems_of(source: str | Path) -> tuple[set[frozenset[str]], str | None]:
    """Return the chemical systems of candidates, and the energy scheme of their scores; None if there are no scores.

    Args:
        source: Scores dataset, graph store, or structure files.

    Raises:
        SourceError: The source cannot be read, or has no readable structure.
        StoreError: The store is missing or damaged.
    """
    scheme = None
    if is_dataset(source):
        root = open_root(source, GRAPH_SCHEMA, SCORES_SCHEMA)
        if root.attrs["schema"] == SCORES_SCHEMA:
            scores = ScoresReader(source)
            found = {one for start, stop in scores.chunks() for one in _systems(scores.column("formula", start, stop))}
            given = scores.attrs.get("model", {}).get("energy_scheme")
            scheme = None if given is None else str(given)
        else:
            store = GraphStore(source)
            blocks = (
                store.block(start, min(start + _BLOCK, len(store)), labels=False)
                for start in range(0, len(store), _BLOCK)
            )
            found = {one for block in blocks for one in _systems(formulas(block))}
    else:
        found = set(_systems_of_files(source))
    if not found:
        raise SourceError(f"{source} has no readable structure; give candidates that can be read")
    return found, scheme


def _systems(texts: Iterable[str]) -> Iterator[frozenset[str]]:
    for text in set(map(str, texts)):
        yield frozenset(chemical_symbols[number] for number in parsed(text))


def _systems_of_files(source: str | Path) -> Iterator[frozenset[str]]:
    options = ReadOptions()
    with tempfile.TemporaryDirectory() as folder:
        for partition in Plan(find_files([source]), Path(folder)):
            for record in read_partition(partition, options):
                if record.structure is not None:
                    yield frozenset(chemical_symbols[number] for number in set(record.structure.atomic_number.tolist()))
