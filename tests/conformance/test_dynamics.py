"""Energy is conserved in molecular dynamics: the forces are the gradient of one smooth energy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from ase import units
from ase.data import atomic_masses
from equiscreen.conformance.laws import evaluate
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import Structure

from .networks import network_of
from .tensors import Array

TEMPERATURE = 300.0  # K
DURATION = 500.0  # fs


@dataclass(frozen=True, slots=True)
class Run:
    """A trajectory.

    Attributes:
        time: float64[n_steps], ps.
        total: float64[n_steps], eV/atom.
        path: float64[n_steps], angstrom, root mean square displacement of the atoms from the start.
    """

    time: Array
    total: Array
    path: Array


@pytest.fixture(scope="module")
def potential() -> TorchPotential:
    """An untrained network with energies scaled by twenty, so that atoms vibrate as in a metal and do not drift off."""
    network = network_of({"correlation": 2, "l_max": 1, "hidden_irreps": "4x0e + 2x1o"})
    network.energy_scales *= 20
    return TorchPotential(network)


@pytest.fixture(scope="module")
def crystal(potential: TorchPotential) -> Structure:
    """Four atoms at a minimum of the energy, which even an untrained network has."""
    frac = [[0.02, 0.0, 0.01], [0.5, 0.48, 0.0], [0.5, 0.0, 0.52], [0.0, 0.5, 0.5]]
    s = Structure.from_fractional([13, 29, 79, 29], np.diag([4.1, 4.2, 4.3]), frac)
    positions, velocities = s.positions, np.zeros((len(s), 3))
    for _ in range(450):
        forces = evaluate(potential, [moved(s, positions)]).forces
        velocities = 0.9 * velocities + 0.003 * forces
        positions = positions + np.clip(velocities, -0.1, 0.1)
    assert np.abs(forces).max() < 1e-3, "no minimum was found"
    return moved(s, positions)


def moved(s: Structure, positions: Array) -> Structure:
    return Structure.from_cartesian(s.atomic_number, positions, s.cell, pbc=s.pbc)


def velocity_verlet(potential: TorchPotential, start: Structure, timestep: float) -> Run:
    """Run dynamics at constant energy, from Maxwell-distributed velocities.

    Args:
        potential: Potential that gives energies and forces.
        start: Initial structure.
        timestep: Time step (fs).
    """
    masses = atomic_masses[start.atomic_number][:, None]
    velocities = np.random.default_rng(5).normal(size=(len(start), 3)) * np.sqrt(units.kB * TEMPERATURE / masses)
    velocities -= (masses * velocities).sum(axis=0) / masses.sum()
    positions, dt = start.positions, timestep * units.fs
    found = evaluate(potential, [start])
    total, path = [], []
    for _ in range(round(DURATION / timestep)):
        velocities = velocities + found.forces / masses * dt / 2
        positions = positions + velocities * dt
        found = evaluate(potential, [moved(start, positions)])
        velocities = velocities + found.forces / masses * dt / 2
        total.append((found.energy[0] + (masses * velocities**2).sum() / 2) / len(start))
        path.append(np.sqrt(np.mean((positions - start.positions) ** 2)))
    time = np.arange(1, len(total) + 1) * timestep / 1000
    return Run(time, np.array(total), np.array(path))


def test_energy_neither_drifts_nor_wanders(potential: TorchPotential, crystal: Structure) -> None:
    coarse, fine = (velocity_verlet(potential, crystal, timestep) for timestep in (2.0, 1.0))
    for run in (coarse, fine):
        assert run.path.max() > 0.05, "the atoms do not move"
    drift = np.polyfit(fine.time, fine.total, 1)[0]
    assert abs(drift) < 1e-5  # eV/atom/ps
    # The energy that the algorithm conserves differs from this one by terms of order dt^2 (and dt^4).
    ratio = coarse.total.std() / fine.total.std()
    assert 3.5 < ratio < 4.5
