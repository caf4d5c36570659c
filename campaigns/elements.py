"""Crystals of the elements, for formation energies with models whose energy scheme has no elemental energies.

`elements.extxyz` beside this module holds the stable phase of 89 elements in PBE, with its id in the Materials Project:
the elemental references of MatPES (Kaplan et al., arXiv:2503.04070), as distributed with MatCalc 0.7.0 (BSD-3).
"""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np

from ..pipeline.atomic import atomic_path
from ..pipeline.store.graph_store import GraphStore

_CRYSTALS = Path(__file__).with_name("elements.extxyz")
# Number of atoms of a graph store that are in memory at once.
_ATOMS = 1 << 22


def write_elements(store: str | Path, out: Path) -> list[str]:
    """Write the crystals of all elements of a graph store to an extended XYZ file.

    Args:
        store: Path or URL of the graph store.
        out: File to write.

    Returns:
        Symbols of the elements that were written.
    """
    numbers = _elements_of(GraphStore(store))
    crystals = [atoms for atoms in ase.io.read(_CRYSTALS, index=":") if int(atoms.numbers[0]) in numbers]
    with atomic_path(out) as scratch:
        ase.io.write(scratch, crystals, format="extxyz")
    return [atoms.symbols[0] for atoms in crystals]


def _elements_of(graphs: GraphStore) -> set[int]:
    """Atomic numbers of all elements of a graph store."""
    found: set[int] = set()
    total = int(graphs.column("n_atoms").sum(dtype=np.int64))
    for start in range(0, total, _ATOMS):
        found.update(np.unique(graphs.column("atomic_number", start, min(start + _ATOMS, total))).tolist())
    return found
