"""Force constants of a crystal by finite displacements, and whether the crystal is dynamically stable.

phonopy (Togo et al., J. Phys.: Condens. Matter 35, 353001 (2023)) finds the displacements that are not equivalent by
symmetry, and turns their forces into force constants. The forces are computed elsewhere, for many crystals at a
time. Frequencies are in THz; imaginary modes have negative frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ....pipeline.errors import ConfigError
from ....pipeline.structures.structure import Structure
from ..protocol import BornCharges
from .supercells import PHONOPY_SYMPREC, from_phonopy, to_phonopy

# Translational and permutation symmetry are imposed on the force constants alternately, this many times.
_SYMMETRIZATIONS = 3
N_ACOUSTIC = 3
_COULOMB = 14.399645  # Coulomb constant, eV angstrom / e^2 (CODATA 2018)


@dataclass(frozen=True, slots=True)
class DisplacedSupercells:
    """Supercells of a crystal whose forces give its force constants.

    Attributes:
        structures: The supercells, in phonopy's order of atoms: first without displacements, then one per
            displacement.
        phonopy: phonopy's `Phonopy` object with the displacements.
    """

    structures: tuple[Structure, ...]
    phonopy: Any


@dataclass(frozen=True, slots=True)
class Stability:
    """Dynamical stability of a crystal.

    Attributes:
        min_frequency: Lowest frequency on the mesh and at the wave vectors that fit into the supercell, where no
            interpolation is involved, THz. The three acoustic modes at Gamma do not count.
        min_wave_vector: Wave vector of the mode with this frequency, in reciprocal lattice vectors of the primitive
            cell: float64[3].
        acoustic_at_gamma: Largest absolute frequency of the three acoustic modes at Gamma, THz; 0 apart from rounding.
        imaginary_fraction: Fraction of the modes on the mesh whose frequency is below minus the tolerance.
        is_stable: Whether no frequency is below minus the tolerance.
    """

    min_frequency: float
    min_wave_vector: NDArray[np.float64]
    acoustic_at_gamma: float
    imaginary_fraction: float
    is_stable: bool


def displaced_supercells(crystal: Structure, matrix: NDArray[np.int64], displacement: float) -> DisplacedSupercells:
    """Return the supercells whose forces give the force constants of a crystal.

    Example:
        >>> import numpy as np
        >>> from ase.build import bulk
        >>> from equiscreen.pipeline import Structure
        >>> from equiscreen.screening.properties.lattice_dynamics.force_constants import displaced_supercells
        >>> cells = displaced_supercells(Structure.from_ase(bulk("Cu")), 3 * np.eye(3, dtype=int), 0.01)
        >>> len(cells.structures), len(cells.structures[0])
        (2, 27)

    Args:
        crystal: Crystal that is periodic in three directions, with its sites at symmetric positions.
        matrix: Lattice vectors of the supercell as rows, in lattice vectors of the crystal: int64[3, 3].
        displacement: Length of the displacements, angstrom.
    """
    from phonopy import Phonopy  # noqa: PLC0415 - an extra

    atoms, primitive = to_phonopy(crystal)
    # phonopy's matrices have the new lattice vectors as columns.
    phonopy = Phonopy(atoms, matrix.T, primitive_matrix=primitive, symprec=PHONOPY_SYMPREC, log_level=0)
    phonopy.generate_displacements(distance=displacement)
    displaced = phonopy.supercells_with_displacements or []
    return DisplacedSupercells(tuple(map(from_phonopy, (phonopy.supercell, *displaced))), phonopy)


def set_force_constants(supercells: DisplacedSupercells, forces: ArrayLike, born: BornCharges | None = None) -> Any:
    """Compute the force constants of a crystal, and return phonopy's object with them.

    The forces of the supercell without displacements, which a relaxation does not remove completely, are subtracted.
    Force constants are symmetrized: they fulfil the acoustic sum rule, and are symmetric under permutations of the
    atoms.

    Args:
        supercells: The supercells.
        forces: Forces on the atoms of each of them, float[n_supercells, n_atoms, 3], eV/angstrom.
        born: Born charges for the splitting of longitudinal and transverse optical modes; None leaves it out.

    Returns:
        The `Phonopy` object; its `force_constants` are float64[n_primitive, n_supercell, 3, 3], eV/angstrom^2.
    """
    phonopy = supercells.phonopy
    phonopy.forces = without_residual(forces)
    phonopy.produce_force_constants(calculate_full_force_constants=False)
    phonopy.symmetrize_force_constants(level=_SYMMETRIZATIONS)
    if born is not None:
        phonopy.nac_params = nac_parameters(phonopy, born)
    return phonopy


def without_residual(forces: ArrayLike) -> NDArray[np.float64]:
    """Subtract the forces of the first supercell, which has no displacement, from the forces of all others.

    Args:
        forces: float[n_supercells, n_atoms, 3], eV/angstrom.

    Returns:
        float64[n_supercells - 1, n_atoms, 3], eV/angstrom.
    """
    values = np.asarray(forces, dtype=np.float64)
    return np.asarray(values[1:] - values[0])


def nac_parameters(phonopy: Any, born: BornCharges) -> dict[str, Any]:
    """Return phonopy's parameters of the non-analytical term, which splits optical modes near Gamma.

    Args:
        phonopy: phonopy's `Phonopy` or phono3py's `Phono3py` object of the crystal.
        born: Born charges of the atoms of the crystal.

    Raises:
        ConfigError: The arrays do not have one tensor for each atom of the crystal.
    """
    charges, dielectric = np.asarray(born.charges, dtype=float), np.asarray(born.dielectric, dtype=float)
    n_atoms = len(phonopy.unitcell)
    if charges.shape != (n_atoms, 3, 3) or dielectric.shape != (3, 3):
        raise ConfigError(
            f"the Born charges have shape {charges.shape} and the dielectric tensor has shape {dielectric.shape}, for "
            f"a crystal of {n_atoms} atoms; give one 3x3 tensor per atom, and one 3x3 dielectric tensor"
        )
    supercell = phonopy.supercell
    atoms = [supercell.u2u_map[supercell.s2u_map[place]] for place in phonopy.primitive.p2s_map]
    return {"born": charges[atoms], "dielectric": dielectric, "factor": _COULOMB}


def stability(phonopy: Any, mesh: float, tolerance: float) -> Stability:
    """Search for the lowest frequency on a mesh, and at the wave vectors that fit into the supercell.

    Args:
        phonopy: The `Phonopy` object with force constants; it keeps the mesh for thermodynamic functions and spectra.
        mesh: Length that sets the mesh, angstrom: its numbers of points are the products of this length with the
            lengths of the reciprocal lattice vectors (without 2 pi).
        tolerance: A crystal is stable if no frequency is below minus this value, THz.
    """
    from phonopy.harmonic.dynmat_to_fc import get_commensurate_points  # noqa: PLC0415 - an extra

    sampled = phonopy.run_mesh(mesh=mesh)
    repeated = np.rint(np.linalg.inv(phonopy.primitive_matrix) @ phonopy.supercell_matrix).astype(np.int64)
    fitting = get_commensurate_points(repeated)
    wave_vectors = np.concatenate([fitting, sampled.qpoints])
    frequencies = np.concatenate([phonopy.run_qpoints(fitting).frequencies, sampled.frequencies])
    at_gamma = np.abs(wave_vectors - np.rint(wave_vectors)).max(axis=1) < PHONOPY_SYMPREC
    gamma = frequencies[at_gamma]
    acoustic = np.argsort(np.abs(gamma), axis=1)[:, :N_ACOUSTIC]
    residual = float(np.abs(np.take_along_axis(gamma, acoustic, axis=1)).max())
    np.put_along_axis(gamma, acoustic, np.inf, axis=1)
    frequencies[at_gamma] = gamma
    lowest = np.unravel_index(frequencies.argmin(), frequencies.shape)
    min_frequency = float(frequencies[lowest])
    imaginary = (sampled.frequencies < -tolerance).sum(axis=1) @ sampled.weights
    return Stability(
        min_frequency,
        wave_vectors[lowest[0]],
        residual,
        float(imaginary / (sampled.weights.sum() * sampled.frequencies.shape[1])),
        min_frequency >= -tolerance,
    )


def with_force_constants(crystal: Structure, matrix: NDArray[np.int64], force_constants: ArrayLike) -> Any:
    """Return phonopy's object of a crystal from force constants that were computed earlier.

    Args:
        crystal: The crystal, as it was given to `displaced_supercells`.
        matrix: Lattice vectors of the supercell as rows, in lattice vectors of the crystal: int64[3, 3].
        force_constants: float[n_primitive, n_supercell, 3, 3], eV/angstrom^2.
    """
    phonopy = displaced_supercells(crystal, matrix, 1.0).phonopy
    phonopy.force_constants = np.asarray(force_constants, dtype=np.float64)
    return phonopy
