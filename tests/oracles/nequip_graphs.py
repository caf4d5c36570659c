"""Inputs and results of NequIP, whose names are the same in all versions from 0.6 on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from ase.neighborlist import primitive_neighbor_list
from numpy.typing import NDArray
from torch import Tensor

from .structures import NUMBERS, SYMBOLS, Case, structures


def graph(case: Case, types: Sequence[str], cutoff: float) -> dict[str, Tensor]:
    """Input of NequIP for one structure, from version 0.7 on.

    Args:
        case: The structure.
        types: Symbols of the elements, in the order of the types.
        cutoff: Cutoff radius (angstrom).
    """
    cell = case.cell if any(case.pbc) else 100 * np.eye(3)
    i, j, shifts = primitive_neighbor_list("ijS", case.pbc, cell, case.positions, cutoff, self_interaction=False)
    places = {number: types.index(symbol) for number, symbol in zip(NUMBERS, SYMBOLS, strict=True)}
    return {
        "pos": torch.tensor(case.positions),
        "cell": torch.tensor(cell).view(1, 3, 3),
        "edge_index": torch.tensor(np.array([i, j])),
        "edge_cell_shift": torch.tensor(shifts, dtype=torch.float64).reshape(-1, 3),
        "atom_types": torch.tensor([places[number] for number in case.numbers.tolist()]),
        "batch": torch.zeros(len(case.numbers), dtype=torch.int64),
        "num_atoms": torch.tensor([len(case.numbers)]),
    }


def evaluated(model: torch.nn.Module, graph_of: Callable[[Case], dict[str, Tensor]]) -> dict[str, NDArray[np.float64]]:
    """Energies (eV), forces (eV/angstrom) and stresses (eV/angstrom^3; of crystals) of all structures.

    Args:
        model: The model.
        graph_of: Function that returns the input of the model for a structure.
    """
    energies, forces, stresses = [], [], []
    for case in structures():
        out = model(graph_of(case))
        energies.append(float(out["total_energy"].detach()))
        forces.append(out["forces"].detach().numpy())
        stress = out["stress"].detach().numpy().reshape(3, 3)
        stresses.append(stress if all(case.pbc) else np.full((3, 3), np.nan))
    return {"energy": np.array(energies), "forces": np.concatenate(forces), "stress": np.array(stresses)}
