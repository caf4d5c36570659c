"""Lattice thermal conductivity: third-order force constants, relaxation times, and the coherence between modes.

phono3py (Togo et al., Phys. Rev. B 91, 094306 (2015)) finds the displacements and solves the linearized transport
equation in the relaxation-time approximation; coherences are those of Simoncelli et al., Nat. Phys. 15, 809 (2019).
The forces are computed elsewhere, many supercells at a time.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ....pipeline.structures.structure import Structure
from ..protocol import BornCharges
from .conductivity_errors import ModeConductivities
from .force_constants import N_ACOUSTIC, nac_parameters, without_residual
from .supercells import PHONOPY_SYMPREC, from_phonopy, to_phonopy

# Wigner's transport equation, as phono3py names it.
_COHERENCE = "SMM19"
# Acoustic modes at Gamma below minus this frequency (THz) count as imaginary; they are 0 but for rounding.
_ACOUSTIC_TOLERANCE = 1e-2

Mesh = float | tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ConductivitySupercells:
    """Supercells of a crystal whose forces give its thermal conductivity.

    Attributes:
        phono3py: phono3py's `Phono3py` object with the displacements.
    """

    phono3py: Any

    @property
    def n_anharmonic(self) -> int:
        """Number of displaced supercells of the third-order force constants."""
        first = self.phono3py.dataset["first_atoms"]
        return len(first) + sum(len(one["second_atoms"]) for one in first)

    def harmonic(self) -> tuple[Structure, ...]:
        """Supercells of the second-order force constants: first without displacements, then one per displacement."""
        displaced = self.phono3py.phonon_supercells_with_displacements
        return tuple(map(from_phonopy, (self.phono3py.phonon_supercell, *displaced)))

    def anharmonic(self) -> tuple[Structure, ...]:
        """Supercells of the third-order force constants: first without displacements, then displaced ones.

        One or two atoms of a supercell are displaced.
        """
        return tuple(map(from_phonopy, (self.phono3py.supercell, *self.phono3py.supercells_with_displacements)))


@dataclass(frozen=True, slots=True)
class Conductivity:
    """Thermal conductivity of a crystal by temperature, and its parts by mode.

    Attributes:
        temperature: float64[n_temperatures], K.
        kappa: Conductivity tensor in the order xx, yy, zz, yz, xz, xy: float64[n_temperatures, 6], W/m/K.
        coherence: The part of it that the coherence between modes contributes: float64[n_temperatures, 6], W/m/K.
        wave_vector: Irreducible wave vectors, in reciprocal lattice vectors of the primitive cell:
            float64[n_wave_vectors, 3].
        weight: Number of wave vectors of the mesh that each represents: int64[n_wave_vectors].
        frequency: float64[n_wave_vectors, n_bands], THz.
        mode_kappa: Contribution of each mode, averaged over directions, times the number of wave vectors of the mesh:
            float64[n_temperatures, n_wave_vectors, n_bands], W/m/K. A coherence is divided between its two modes.
    """

    temperature: NDArray[np.float64]
    kappa: NDArray[np.float64]
    coherence: NDArray[np.float64]
    wave_vector: NDArray[np.float64]
    weight: NDArray[np.int64]
    frequency: NDArray[np.float64]
    mode_kappa: NDArray[np.float64]

    def at(self, row: int = 0) -> ModeConductivities:
        """Return the conductivities at one of the temperatures, for a comparison with a reference."""
        total = float(self.kappa[row, :3].mean())
        return ModeConductivities(total, self.mode_kappa[row], self.weight.astype(np.float64))


def conductivity_supercells(
    crystal: Structure, harmonic: NDArray[np.int64], anharmonic: NDArray[np.int64], mesh: Mesh, displacement: float
) -> ConductivitySupercells:
    """Return the supercells whose forces give the thermal conductivity of a crystal.

    Args:
        crystal: Crystal that is periodic in three directions, with its sites at symmetric positions.
        harmonic: Supercell of the second-order force constants: lattice vectors as rows, in lattice vectors of the
            crystal, int64[3, 3].
        anharmonic: Supercell of the third-order force constants: int64[3, 3].
        mesh: Numbers of wave vectors, or the length that sets them (see `force_constants.stability`), angstrom.
        displacement: Length of the displacements, angstrom.
    """
    # phono3py's compiled code does not look at OMP_NUM_THREADS, which Dask sets for its workers.
    os.environ.setdefault("RAYON_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1)))
    from phono3py import Phono3py  # noqa: PLC0415 - an extra

    atoms, primitive = to_phonopy(crystal)
    # phonopy's matrices have the new lattice vectors as columns.
    phono3py = Phono3py(
        atoms,
        supercell_matrix=anharmonic.T,
        phonon_supercell_matrix=harmonic.T,
        primitive_matrix=primitive,
        symprec=PHONOPY_SYMPREC,
        log_level=0,
    )
    phono3py.mesh_numbers = mesh
    phono3py.generate_displacements(distance=displacement)
    return ConductivitySupercells(phono3py)


def set_harmonic_forces(
    supercells: ConductivitySupercells, forces: ArrayLike, born: BornCharges | None = None
) -> float:
    """Compute the second-order force constants, and return the lowest frequency on the mesh.

    Args:
        supercells: The supercells.
        forces: Forces on the atoms of each harmonic supercell, float[n_supercells, n_atoms, 3], eV/angstrom.
        born: Born charges for the splitting of longitudinal and transverse optical modes; None leaves it out.

    Returns:
        Frequency, THz, negative for an imaginary mode. Acoustic modes at Gamma count only below -0.01 THz.
    """
    phono3py = supercells.phono3py
    phono3py.phonon_forces = without_residual(forces)
    phono3py.produce_fc2()
    phono3py.symmetrize_fc2()
    if born is not None:
        phono3py.nac_params = nac_parameters(phono3py, born)
    with _silence():
        phono3py.init_phph_interaction()
        phono3py.run_phonon_solver()
    frequencies, _, addresses = phono3py.get_phonon_data()
    found = frequencies.copy()
    at_gamma = ~addresses.any(axis=1)
    acoustic = found[at_gamma, :N_ACOUSTIC]
    found[at_gamma, :N_ACOUSTIC] = np.where(acoustic < -_ACOUSTIC_TOLERANCE, acoustic, np.inf)
    return float(found.min())


def conductivity(
    supercells: ConductivitySupercells,
    forces: ArrayLike,
    temperatures: Sequence[float],
    *,
    isotopes: bool,
    boundary: float,
    average_degenerate: bool,
) -> Conductivity:
    """Compute the thermal conductivity, after `set_harmonic_forces` has set the second-order force constants.

    Args:
        supercells: The supercells.
        forces: Forces on the atoms of each anharmonic supercell, float[n_supercells, n_atoms, 3], eV/angstrom.
        temperatures: Temperatures, K.
        isotopes: Whether the natural mixture of isotopes scatters phonons.
        boundary: Mean free path that boundaries impose, micrometres.
        average_degenerate: Whether to average the weights of scattering over degenerate modes.
    """
    phono3py = supercells.phono3py
    phono3py.forces = without_residual(forces)
    phono3py.produce_fc3()
    phono3py.symmetrize_fc3()
    with _silence():
        phono3py.init_phph_interaction(average_degenerate_weights=average_degenerate)
        phono3py.run_thermal_conductivity(
            temperatures=temperatures, is_isotope=isotopes, boundary_mfp=boundary, transport_type=_COHERENCE
        )
    found = phono3py.thermal_conductivity
    return Conductivity(
        np.asarray(found.temperatures),
        np.asarray(found.kappa[0]),
        np.asarray(found.kappa_inter[0]),
        np.asarray(found.qpoints),
        np.asarray(found.grid_weights),
        np.asarray(found.frequencies),
        _by_mode(np.asarray(found.mode_kappa_matrix[0]), np.asarray(found.mode_heat_capacities)),
    )


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    """A context in which phono3py does not print a remark about acoustic modes at Gamma that are not exactly 0."""
    return contextlib.redirect_stdout(io.StringIO())


def _by_mode(pairs: NDArray[np.float64], heat_capacities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide the coherence of each pair of modes between the two, and average over directions.

    Each mode receives the share that the heat capacity of the other has in the sum of the two. The benchmark
    phonondb-103 divides coherences in this way.

    Args:
        pairs: Contributions by pairs of bands: float64[n_temperatures, n_wave_vectors, n_bands, n_bands, 6], W/m/K.
        heat_capacities: float64[n_temperatures, n_wave_vectors, n_bands], eV/K.

    Returns:
        float64[n_temperatures, n_wave_vectors, n_bands], W/m/K.
    """
    average = pairs[..., :3].mean(axis=-1)
    sums = heat_capacities[..., :, None] + heat_capacities[..., None, :]
    shares = np.divide(heat_capacities[..., :, None], sums, out=np.zeros_like(sums), where=sums > 0)
    return np.asarray(2 * (average * shares).sum(axis=-2))
