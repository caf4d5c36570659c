"""Quantities from phonons: density of states, bands, thermodynamic functions and thermal displacements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .force_constants import N_ACOUSTIC

# kJ/mol in eV (CODATA 2018: the product of the elementary charge and the Avogadro constant, 96.48533212 kJ/mol).
KJ_PER_MOL = 1 / 96.48533212
BAND_POINTS = 51  # on the longest segment of a path
# Modes below this frequency (THz) are left out of thermal displacements, to which they would contribute without bound.
_LEAST_FREQUENCY = 1e-2
# Mesh of thermal displacements, angstrom (see `force_constants.stability`); symmetry does not reduce it.
_DISPLACEMENT_MESH = 30.0


@dataclass(frozen=True, slots=True)
class ThermalFunctions:
    """Thermodynamic functions of the harmonic crystal at constant volume, by temperature.

    Imaginary modes do not contribute, so the functions of a crystal with imaginary modes are incomplete.

    Attributes:
        temperature: Temperatures: float64[n], K.
        heat_capacity: Heat capacities: float64[n], J/K per mole of atoms.
        entropy: Entropies: float64[n], J/K per mole of atoms.
        free_energy: Helmholtz free energy of the vibrations, with the zero-point energy: float64[n], eV/atom.
        zero_point_energy: Zero-point energy, eV/atom.
    """

    temperature: NDArray[np.float64]
    heat_capacity: NDArray[np.float64]
    entropy: NDArray[np.float64]
    free_energy: NDArray[np.float64]
    zero_point_energy: float


@dataclass(frozen=True, slots=True)
class DensityOfStates:
    """Density of states of the phonons.

    Attributes:
        frequency: Frequencies: float64[n], THz.
        density: States per atom and THz: float64[n], 1/THz; the integral is 3.
    """

    frequency: NDArray[np.float64]
    density: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bands:
    """Frequencies along the path of Hinuma et al., Comput. Mater. Sci. 128, 140 (2017).

    Attributes:
        wave_vector: Wave vectors, in reciprocal lattice vectors of the primitive cell: float64[n, 3].
        distance: Distance along the path: float64[n], 1/angstrom (without 2 pi).
        frequency: Frequencies: float64[n, n_bands], THz.
        labels: Name of each wave vector that ends a segment, such as GAMMA or X; empty for all others.
    """

    wave_vector: NDArray[np.float64]
    distance: NDArray[np.float64]
    frequency: NDArray[np.float64]
    labels: tuple[str, ...]


def thermal_functions(phonopy: Any, temperatures: Sequence[float]) -> ThermalFunctions:
    """Compute heat capacity, entropy and free energy on the mesh of `force_constants.stability`.

    Args:
        phonopy: phonopy's object after `force_constants.stability`.
        temperatures: Temperatures, K.
    """
    found = phonopy.run_thermal_properties(temperatures=temperatures, exclude_gamma_acoustic=True)
    n_atoms = len(phonopy.primitive)
    return ThermalFunctions(
        np.asarray(found.temperatures),
        np.asarray(found.heat_capacity) / n_atoms,
        np.asarray(found.entropy) / n_atoms,
        np.asarray(found.free_energy) * KJ_PER_MOL / n_atoms,
        float(found.zero_point_energy) * KJ_PER_MOL / n_atoms,
    )


def density_of_states(phonopy: Any) -> DensityOfStates:
    """Compute the density of states by the tetrahedron method, on the mesh of `force_constants.stability`.

    Args:
        phonopy: phonopy's object after `force_constants.stability`.
    """
    found = phonopy.run_total_dos()
    return DensityOfStates(np.asarray(found.frequency_points), np.asarray(found.dos) / len(phonopy.primitive))


def bands(phonopy: Any, points: int = BAND_POINTS) -> Bands:
    """Compute frequencies along the path that seekpath proposes for the crystal.

    Args:
        phonopy: phonopy's object after `force_constants.stability`.
        points: Number of wave vectors on the longest segment.
    """
    from seekpath import get_path_orig_cell  # noqa: PLC0415 - an extra

    primitive = phonopy.primitive
    path = get_path_orig_cell((primitive.cell, primitive.scaled_positions, primitive.numbers))
    ends = np.array([[path["point_coords"][name] for name in segment] for segment in path["path"]])
    reciprocal = np.linalg.inv(primitive.cell).T
    lengths = np.linalg.norm((ends[:, 1] - ends[:, 0]) @ reciprocal, axis=1)
    counts = np.ceil(lengths / lengths.max() * (points - 1)).astype(int).clip(min=1) + 1
    segments = [np.linspace(start, stop, count) for (start, stop), count in zip(ends, counts, strict=True)]
    found = phonopy.run_band_structure(segments)
    names = [
        (first, *[""] * (count - 2), last) for (first, last), count in zip(path["path"], counts.tolist(), strict=True)
    ]
    return Bands(
        np.concatenate(segments),
        np.concatenate(found.distances),
        np.concatenate(found.frequencies),
        tuple(name for segment in names for name in segment),
    )


def thermal_displacements(phonopy: Any, temperatures: Sequence[float]) -> NDArray[np.float64]:
    """Compute the mean-square displacement tensor of each atom of the crystal, in Cartesian axes.

    The sum over modes is as in phonopy's `run_thermal_displacement_matrices`, which takes a second per crystal.

    Args:
        phonopy: phonopy's object after `force_constants.stability`.
        temperatures: Temperatures, K.

    Returns:
        float64[n_temperatures, n_atoms, 3, 3], angstrom^2.
    """
    own = phonopy.replicate()  # a copy, so that the mesh of `force_constants.stability` is kept
    own.force_constants, own.nac_params = phonopy.force_constants, phonopy.nac_params
    mesh = own.run_mesh(mesh=_DISPLACEMENT_MESH, with_eigenvectors=True, is_mesh_symmetry=False)
    masses = phonopy.primitive.masses
    frequency = np.array(mesh.frequencies)
    frequency[mesh.gamma_index, np.argsort(np.abs(frequency[mesh.gamma_index]))[:N_ACOUSTIC]] = 0.0
    counted = frequency > _LEAST_FREQUENCY
    vectors = np.swapaxes(mesh.eigenvectors, 1, 2).reshape(*frequency.shape, len(masses), 3)[counted]
    squares = np.einsum("nki,nkj->nkij", vectors, vectors.conj()).real
    amplitudes = [_mean_squares(frequency[counted], temperature) for temperature in temperatures]
    sums = np.einsum("tn,nkij->tkij", amplitudes, squares) / (len(frequency) * masses[:, None, None])
    return np.asarray(sums[:, _primitive_atoms(phonopy)])


def _mean_squares(frequency: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return the mean-square amplitude of each mode, times the mass: float64[n], angstrom^2 Da.

    Args:
        frequency: Frequencies: float64[n], THz.
        temperature: Temperature, K.
    """
    from ase.units import _amu, _hbar, _k  # noqa: PLC0415 - SI units; ASE takes 0.3 s to import

    omega = 2e12 * np.pi * frequency
    with np.errstate(divide="ignore"):  # at 0 K
        coth = 1 / np.tanh(_hbar * omega / (2 * _k * np.float64(temperature)))
    return np.asarray(_hbar / (2 * omega) * coth / _amu * 1e20)


def _primitive_atoms(phonopy: Any) -> NDArray[np.int64]:
    """Return the atom of the primitive cell that each atom of the crystal repeats: int64[n_atoms]."""
    primitive = phonopy.primitive
    return np.array([primitive.p2p_map[primitive.s2p_map[place]] for place in phonopy.supercell.u2s_map])
