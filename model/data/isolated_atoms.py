"""Isolated atoms of a training set: their energies are the reference energies of the elements, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from ase.data import chemical_symbols
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.labels.quantities import ENERGY
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.schema import STATUS_NAMED_ISOLATED

# Column and value with which a data set may mark isolated atoms, the same as in training data for MACE.
CONFIG_TYPE, ISOLATED_ATOM = "config_type", "IsolatedAtom"
# An atom is isolated if its nearest image is at least this many cutoffs away; one cutoff is not enough, as the
# docstring of `isolated_atoms` explains.
_CUTOFFS = 2.0
# Two energies of one element count as equal if they differ by at most this (eV).
_SAME_ENERGY = 1e-6
_IMAGES = np.array([image for image in product(range(-2, 3), repeat=3) if any(image)])


def isolated_atoms(
    stores: Sequence[GraphStore], usable: Sequence[NDArray[np.bool_]], cutoff: float
) -> list[NDArray[np.bool_]]:
    """Find structures that consist of one isolated atom.

    A single atom is isolated if it is not periodic, if its nearest image is at least two cutoffs away, or if the data
    set marks it as isolated: in its status or, in a store of an earlier version, in a column `config_type`. A crystal
    with one atom in its cell is not isolated just because the atom has no neighbour within the cutoff, as in bcc
    caesium at 5 angstrom.

    Args:
        stores: Graph stores.
        usable: bool[n_structures] for each store, structures to examine.
        cutoff: Cutoff radius of the network (angstrom).

    Returns:
        bool[n_structures] for each store.
    """
    found = []
    for store, chosen in zip(stores, usable, strict=True):
        alone = np.zeros(len(store), dtype=bool)
        single = np.flatnonzero(chosen & (store.n_atoms == 1))
        marked = _marked(store)
        for row in single.tolist():
            cell, pbc = store.column("cell", row, row + 1)[0], store.column("pbc", row, row + 1)[0]
            alone[row] = (row in marked) or _nearest_image(cell, pbc.astype(bool)) >= _CUTOFFS * cutoff
        found.append(alone)
    return found


def energies_of_isolated_atoms(stores: Sequence[GraphStore], isolated: Sequence[NDArray[np.bool_]]) -> dict[int, float]:
    """Return the energy of each element that has an isolated atom (eV), by atomic number.

    Args:
        stores: Graph stores.
        isolated: bool[n_structures] for each store, from `isolated_atoms`.

    Raises:
        ConfigError: An element has two different energies.
    """
    found: dict[int, tuple[float, str]] = {}
    for store, rows in zip(stores, isolated, strict=True):
        if ENERGY not in store.label_names[0]:
            continue
        for row in np.flatnonzero(rows).tolist():
            block = store.block(row, row + 1, labels=[ENERGY])
            number, energy = int(block.atomic_number[0]), float(block.structure_labels[ENERGY][0])
            if not np.isfinite(energy):
                continue
            name = f"{store.column('structure_id', row, row + 1)[0]} of {store.path}"
            known, where = found.setdefault(number, (energy, name))
            if abs(known - energy) > _SAME_ENERGY:
                raise ConfigError(
                    f"the isolated atom {chemical_symbols[number]} has two energies, {known:g} eV ({where}) and "
                    f"{energy:g} eV ({name}); keep only one"
                )
    return {number: energy for number, (energy, _) in found.items()}


def _marked(store: GraphStore) -> set[int]:
    """Return the rows that the data set marks as isolated atoms."""
    marked = (store.column("status") & STATUS_NAMED_ISOLATED) > 0
    if CONFIG_TYPE in store.specs:
        marked |= store.column(CONFIG_TYPE) == ISOLATED_ATOM
    return set(np.flatnonzero(marked).tolist())


def _nearest_image(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> float:
    """Return the distance of an atom to its nearest image (angstrom); infinite without periodic directions."""
    if not pbc.any():
        return np.inf
    cell = np.asarray(minkowski_reduce(cell, pbc)[0])
    images = _IMAGES[(_IMAGES[:, ~pbc] == 0).all(axis=1)]
    return float(np.linalg.norm(images @ cell, axis=1).min())
