"""Element fractions of structures, and formation energies computed from them."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ..pipeline import GraphBlock
from ..screening.dataset.scores import OK


def element_fractions(block: GraphBlock, numbers: ArrayLike) -> NDArray[np.float64]:
    """Return the atomic fraction of each element in each structure, float64[n_structures, n_elements].

    Args:
        block: Structures.
        numbers: Atomic numbers of the elements.
    """
    wanted = np.asarray(numbers)
    is_element = block.atomic_number[:, None] == wanted
    return np.add.reduceat(is_element.astype(np.float64), block.atom_start, axis=0) / block.n_atoms[:, None]


def reliable_energies(scores: xr.Dataset) -> NDArray[np.float64]:
    """Return the energies of all rows, float64[n] (eV/atom); NaN where the status is not ok."""
    return np.where(scores["status"].values == OK, scores["energy_per_atom"].values, np.nan)


def formation_energies(
    energy: NDArray[np.float64], fractions: NDArray[np.float64], elements: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return energies relative to the elements, float64[n] (eV/atom); NaN if an element has no energy.

    Args:
        energy: float64[n], energies of the structures, eV/atom.
        fractions: float64[n, n_elements], atomic fractions.
        elements: float64[n_elements], energies of the elements, eV/atom.
    """
    return np.asarray(energy - np.where(fractions > 0, fractions * elements, 0.0).sum(axis=1))
