"""References that are the same phase as a candidate, for hulls without each candidate's own phase."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from ...pipeline.structures.structure import Structure
from ..chemistry.composition import Compositions
from ..chemistry.same_phase import PhaseMatcher
from .energies import EnergyRows, ScoredEnergies
from .references import References

# Number of reference structures kept in memory; many candidates of a composition are compared with the same references.
_CACHED = 4096


class OwnPhases:
    """Recognises references that are the same phase as a candidate, by their structures.

    Elements are always compared with their own references, which define zero formation energy.

    Args:
        scores: The dataset of the candidates.
        references: All references, each with a structure.
        compositions: Compositions of candidates and references.

    Raises:
        ConfigError: pymatgen is not installed.
    """

    def __init__(self, scores: ScoredEnergies, references: References, compositions: Compositions) -> None:
        self._scores, self._references = scores, references
        self._starts = references.starts(len(compositions))
        self._compound = np.array([len(compositions.system(number)) > 1 for number in range(len(compositions))])
        self._matcher = PhaseMatcher("--exclude-self", "hull")
        self._structure = lru_cache(_CACHED)(self._read)

    def of(self, rows: EnergyRows) -> dict[int, list[int]]:
        """Find the rows whose own phase is among the references.

        Returns:
            For each of these rows, the indices of the other references of its composition, lowest energy first.

        Raises:
            StoreError: The structures of the candidates cannot be read.
            SourceError: The structures of the references cannot be read.
        """
        first, last = self._starts[rows.composition], self._starts[rows.composition + 1]
        asked = np.flatnonzero(self._compound[rows.composition] & (last > first) & np.isfinite(rows.energy))
        structures = self._scores.structures(rows.start + asked)
        own: dict[int, list[int]] = {}
        for row, structure in zip(asked.tolist(), structures, strict=True):
            places = range(int(first[row]), int(last[row]))
            others = list(self._others(structure, places))
            if len(others) < len(places):
                own[rows.start + row] = others
        return own

    def _others(self, structure: Structure, places: range) -> Iterator[int]:
        """Yield the indices of the references that are not the same phase as a structure."""
        for place in places:
            if not self._matcher.same(structure, self._structure(place)):
                yield place

    def _read(self, place: int) -> Structure:
        read = self._references.structures[place]
        if read is None:
            raise ValueError(f"reference {place} was read without its structure")
        return read()
