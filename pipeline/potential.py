"""What every potential can do, eager or in ONNX: energies, forces and stresses of graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .block import GraphBlock, ragged_rows
from .errors import UnknownElementError
from .tables import neighbor_table, size_buckets


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results for a block of structures, in its order.

    Attributes:
        energy: float64[n_structures], eV.
        forces: float64[n_atoms, 3], eV/angstrom.
        stress: float64[n_structures, 3, 3], eV/angstrom^3; NaN unless all three directions are periodic.
    """

    energy: NDArray[np.float64]
    forces: NDArray[np.float64]
    stress: NDArray[np.float64]


class Potential(Protocol):
    """Anything that evaluates graphs."""

    @property
    def cutoff(self) -> float:
        """Angstrom."""
        ...

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that it knows."""
        ...

    def evaluate(self, block: GraphBlock) -> Evaluation:
        """Energy, forces and stress of all structures of a block."""
        ...


RunTable = Callable[[Mapping[str, NDArray[Any]]], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]


def evaluate_in_buckets(
    block: GraphBlock, elements: tuple[int, ...], cutoff: float, dtype: np.dtype[Any], slots: int, run: RunTable
) -> Evaluation:
    """Evaluate a block bucket by bucket, with little padding and bounded memory.

    Args:
        block: Graphs.
        elements: That the model knows.
        cutoff: Of the model, angstrom.
        dtype: Of the model.
        slots: Neighbour slots of a bucket.
        run: Maps the arrays of one table to energy, forces and stress.

    Raises:
        UnknownElementError: An element that the model does not know.
    """
    unknown = np.setdiff1d(block.atomic_number, elements)
    if len(unknown):
        raise UnknownElementError(f"the model does not know the elements {unknown.tolist()}")
    energy = np.empty(len(block))
    forces = np.empty((len(block.atomic_number), 3))
    stress = np.empty((len(block), 3, 3))
    for rows in size_buckets(block, slots):
        part = block.take(rows)
        e, f, s = run(neighbor_table(part, cutoff, dtype).arrays())
        energy[rows] = e
        forces[ragged_rows(block.atom_start[rows], block.n_atoms[rows])] = f
        stress[rows] = s
    stress[~block.pbc.all(axis=1)] = np.nan
    return Evaluation(energy, forces, stress)
