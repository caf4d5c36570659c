"""Element fractions of structures, from which formation energies are computed."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..pipeline import GraphBlock


def element_fractions(block: GraphBlock, numbers: ArrayLike) -> NDArray[np.float64]:
    """Fraction of the atoms of each structure that have each atomic number, float64[n_structures, n_elements]."""
    wanted = np.asarray(numbers)
    is_element = block.atomic_number[:, None] == wanted
    return np.add.reduceat(is_element.astype(np.float64), block.atom_start, axis=0) / block.n_atoms[:, None]
