"""Novelty of a crystal compared with a graph store of known crystals: first by composition, then by structure."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...pipeline.store.graph_store import GraphStore
from ...pipeline.structures.matching import composition_key, crystal_vector
from ...pipeline.structures.structure import Structure
from ..chemistry.same_phase import PhaseMatcher
from ..dataset.reader import read_structures

NOVELTY = ("known", "new_phase", "new_composition", "not_compared")
KNOWN, NEW_PHASE, NEW_COMPOSITION, NOT_COMPARED = range(len(NOVELTY))
# Number of structures whose atoms are in memory at once.
_BLOCK = 65_536
# Tolerance of a fingerprint, which is a mean of float64 numbers over up to 65,535 atoms.
_SAME = 1e-9


class KnownCrystals:
    """A graph store of known crystals.

    Args:
        path: Path or URL of the store.

    Attributes:
        store: The opened store.

    Raises:
        StoreError: The store cannot be read.
        ConfigError: pymatgen is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.store = GraphStore(path)
        self._matcher = PhaseMatcher("--known", "select")
        self._structure = lru_cache(maxsize=4096)(self._read)

    @cached_property
    def _fingerprints(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Fingerprints of the compositions of all crystals, ascending, float64[n]; and the row of each, int64[n]."""
        size = len(self.store)
        blocks = [self._fingerprints_of(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)]
        values = np.concatenate([np.empty(0), *blocks])
        order = np.argsort(values, kind="stable")
        return values[order], order

    def _fingerprints_of(self, start: int, stop: int) -> NDArray[np.float64]:
        counts = self.store.column("n_atoms", start, stop).astype(np.int64)
        first = self.store.column("atom_start", start, stop)
        numbers = self.store.column("atomic_number", int(first[0]), int(first[-1] + counts[-1]))
        sums: NDArray[np.float64] = np.add.reduceat(_WEIGHTS[numbers], first - first[0])
        return sums / counts

    def _read(self, row: int) -> Structure:
        found = read_structures(self.store, np.array([row]), ("cell", "pbc", "atomic_number", "frac_coord"))
        return Structure(found["atomic_number"], found["cell"][0], found["frac_coord"], found["pbc"][0])

    def find(self, structure: Structure) -> tuple[int, str]:
        """Look up a crystal among the known ones.

        Known crystals of the same reduced composition are tried in the order of the distance between their vectors (see
        `pipeline.structures.matching.crystal_vector`); `chemistry.same_phase.PhaseMatcher` compares them.

        Args:
            structure: The crystal.

        Returns:
            Index into `NOVELTY`, and the id of the matching known crystal or an empty string.

        Raises:
            StoreError: The store is damaged.
        """
        rows = self._of_composition(structure)
        if not rows:
            return NEW_COMPOSITION, ""
        if not structure.pbc.all():
            return NOT_COMPARED, ""
        own = crystal_vector(structure)
        crystals = [(row, known) for row in rows if (known := self._structure(row)).pbc.all()]
        far = {row: float(np.abs(crystal_vector(known) - own).max()) for row, known in crystals}
        for row, known in sorted(crystals, key=lambda item: (far[item[0]], item[0])):
            if self._matcher.same(structure, known):
                return KNOWN, str(self.store.column("structure_id", row, row + 1)[0])
        return NEW_PHASE, ""

    def _of_composition(self, structure: Structure) -> list[int]:
        """Return the rows of known crystals with the same reduced composition."""
        wanted = float(_WEIGHTS[structure.atomic_number].sum() / len(structure))
        values, rows = self._fingerprints
        begin, end = np.searchsorted(values, [wanted - _SAME, wanted + _SAME])
        amounts = _fractions(structure)
        return [row for row in sorted(rows[begin:end].tolist()) if _fractions(self._structure(row)) == amounts]


def _fractions(structure: Structure) -> int:
    """Return a key that is equal for equal reduced compositions, regardless of periodicity."""
    periodic = Structure(structure.atomic_number, structure.cell, structure.frac_coord, np.ones(3, dtype=bool))
    return composition_key(periodic)


# One random number per element; its mean over the atoms distinguishes compositions.
_WEIGHTS = np.random.default_rng(20_261_124).random(256)
