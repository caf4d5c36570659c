"""Environments that angles distinguish but distances alone do not."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from equiscreen.conformance.laws import evaluate
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphBlock, Structure

from ..conftest import CUTOFF
from .networks import network_of

SIDE = 3.0  # of the polygons, angstrom; second neighbours in a hexagon lie beyond the cutoff
DISTANCES_ONLY = {"hidden_irreps": "4x0e", "l_max": 0, "correlation": 3, "n_interactions": 3}


def polygon(corners: int, centre: float = 0.0) -> np.ndarray:
    angles = 2 * np.pi * np.arange(corners) / corners
    radius = SIDE / (2 * np.sin(np.pi / corners))
    return np.stack([centre + radius * np.cos(angles), radius * np.sin(angles), np.zeros(corners)], axis=1)


def hexagon_and_triangles() -> list[Structure]:
    """One ring of six and two rings of three: all atoms have two neighbours at the same distance."""
    two = np.concatenate([polygon(3), polygon(3, centre=20.0)])
    return [Structure.from_cartesian([29] * 6, positions) for positions in (polygon(6), two)]


def cubic_and_hexagonal_packing() -> list[Structure]:
    """Packings with first shells of 12 atoms and second shells of 6; the next 2 of hcp, at sqrt(8/3), are cut off."""
    nearest = 2.8
    assert nearest * np.sqrt(2) < CUTOFF < nearest * np.sqrt(8 / 3)
    hexagonal: Atoms = bulk("Cu", "hcp", a=nearest, c=nearest * np.sqrt(8 / 3))
    cubic: Atoms = bulk("Cu", "fcc", a=nearest * np.sqrt(2)).repeat((2, 1, 1))
    return [Structure.from_ase(atoms) for atoms in (cubic, hexagonal)]


# Each with a degree of harmonics that distinguishes them: sites of hcp have a moment of degree 3, those of fcc do not.
PAIRS = {"rings": (hexagon_and_triangles, 1), "packings": (cubic_and_hexagonal_packing, 3)}


@pytest.mark.parametrize("name", list(PAIRS))
def test_the_atoms_of_both_have_the_same_distances(name: str) -> None:
    block = GraphBlock.from_structures(PAIRS[name][0](), CUTOFF)
    distances = np.linalg.norm(block.displacements(), axis=1)
    of_atoms = [np.sort(distances[block.receiver == atom]) for atom in range(len(block.atomic_number))]
    assert all(len(some) > 0 for some in of_atoms)
    for some in of_atoms:
        # Positions are rounded to float64.
        assert np.allclose(some, of_atoms[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", list(PAIRS))
def test_scalars_of_distances_do_not_tell_them_apart(name: str) -> None:
    energy = evaluate(TorchPotential(network_of(DISTANCES_ONLY)), PAIRS[name][0]()).energy
    assert abs(energy[0] - energy[1]) <= 1e-10 * abs(energy[0])


@pytest.mark.parametrize("name", list(PAIRS))
def test_harmonics_tell_them_apart(name: str) -> None:
    make, degree = PAIRS[name]
    for hidden in ("4x0e", "4x0e + 4x1o"):
        settings = {"hidden_irreps": hidden, "l_max": degree, "correlation": 2}
        energy = evaluate(TorchPotential(network_of(settings)), make()).energy
        # Ten thousand times the rounding allowed in the test above.
        assert abs(energy[0] - energy[1]) >= 1e-6 * abs(energy[0]), hidden
