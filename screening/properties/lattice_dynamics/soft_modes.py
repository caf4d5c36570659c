"""The softest imaginary mode of a crystal as a displacement of the smallest supercell that it fits into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....pipeline.structures.structure import Structure
from .force_constants import N_ACOUSTIC
from .supercells import PHONOPY_SYMPREC, from_phonopy

# Modes whose frequencies differ by less (THz) count as degenerate.
_DEGENERATE = 1e-4
_ROUNDING = 1e-6  # of displacements relative to the largest one
_DENOMINATOR = 1000  # largest one of a component of a wave vector


@dataclass(frozen=True, slots=True)
class SoftMode:
    """An imaginary mode that fits into a supercell.

    Attributes:
        frequency: Frequency, THz; negative.
        wave_vector: Wave vector, in reciprocal lattice vectors of the primitive cell: float64[3].
        supercell: Lattice vectors of the supercell as rows, in lattice vectors of the primitive cell: int64[3, 3].
        structure: The supercell without displacements.
        displacements: Displacements of its atoms, the largest of which has length 1: float64[n_atoms, 3].
    """

    frequency: float
    wave_vector: NDArray[np.float64]
    supercell: NDArray[np.int64]
    structure: Structure
    displacements: NDArray[np.float64]

    def displaced(self, amplitude: float) -> Structure:
        """Return the supercell with its atoms displaced along the mode.

        Args:
            amplitude: Length of the largest displacement, angstrom.
        """
        shift = amplitude * np.linalg.solve(self.structure.cell.T, self.displacements.T).T
        return Structure.from_fractional(
            self.structure.atomic_number, self.structure.cell, self.structure.frac_coord + shift
        )


def softest_mode(phonopy: Any, tolerance: float) -> SoftMode | None:
    """Find the lowest of the modes that fit into the supercell of the force constants.

    The frequencies of these modes do not depend on any interpolation. Of degenerate modes, the projection of the
    displacement of one atom onto their space is used, so that the result does not depend on the eigenvectors that the
    solver returns.

    Args:
        phonopy: The `Phonopy` object with force constants.
        tolerance: Modes count as imaginary if their frequency is below minus this value, THz.

    Returns:
        The mode; None if no imaginary mode fits into the supercell.
    """
    from phonopy.harmonic.dynmat_to_fc import get_commensurate_points  # noqa: PLC0415 - an extra

    repeated = np.rint(np.linalg.inv(phonopy.primitive_matrix) @ phonopy.supercell_matrix).astype(np.int64)
    wave_vectors = get_commensurate_points(repeated)
    sampled = phonopy.run_qpoints(wave_vectors, with_eigenvectors=True)
    frequencies = np.array(sampled.frequencies)
    gamma = np.flatnonzero(np.abs(wave_vectors - np.rint(wave_vectors)).max(axis=1) < PHONOPY_SYMPREC)
    for place in gamma.tolist():
        frequencies[place, np.argsort(np.abs(frequencies[place]))[:N_ACOUSTIC]] = np.inf
    lowest = float(frequencies.min())
    if lowest >= -tolerance:
        return None
    place = int(np.flatnonzero(frequencies.min(axis=1) < lowest + _DEGENERATE)[0])
    modes = frequencies[place] < lowest + _DEGENERATE
    vectors = np.asarray(sampled.eigenvectors)[place][:, modes]
    return _mode(phonopy.primitive, lowest, wave_vectors[place], vectors)


def _mode(primitive: Any, frequency: float, wave_vector: NDArray[np.float64], vectors: NDArray[Any]) -> SoftMode:
    """Return a mode of a degenerate space as displacements of its supercell.

    Args:
        primitive: phonopy's primitive cell.
        frequency: Frequency, THz.
        wave_vector: float64[3], in reciprocal lattice vectors of the primitive cell.
        vectors: Eigenvectors that span the space: complex128[3 n_primitive, n].
    """
    crystal = from_phonopy(primitive)
    basis = _wave_lattice(wave_vector)
    matrix = _reduced(basis, crystal.cell)
    translations = np.array(list(np.ndindex(*np.diag(basis).tolist())))
    places = (crystal.frac_coord[:, None] + translations).reshape(-1, 3)
    numbers = np.repeat(crystal.atomic_number, len(translations))
    structure = Structure.from_fractional(
        numbers, matrix @ crystal.cell, np.linalg.solve(matrix.T.astype(float), places.T).T
    )
    weights = np.linalg.norm(vectors, axis=1)
    first = int(np.flatnonzero(weights > weights.max() * (1 - _ROUNDING))[0])
    mode = (vectors @ vectors[first].conj()).reshape(-1, 3) / np.sqrt(primitive.masses)[:, None]
    waves = np.repeat(mode, len(translations), axis=0) * np.exp(2j * np.pi * places @ wave_vector)[:, None]
    # The phase at which the real part is largest; where all phases are alike, they differ by a translation.
    squares = (waves**2).sum()
    phase = np.angle(squares) if abs(squares) > _ROUNDING * (np.abs(waves) ** 2).sum() else 0.0
    real = (waves * np.exp(-0.5j * phase)).real
    scaled = np.asarray(real / np.linalg.norm(real, axis=1).max())
    return SoftMode(frequency, wave_vector, matrix, structure, scaled)


def commensurate_supercell(wave_vector: NDArray[np.float64], cell: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the smallest supercell that holds whole waves, with lattice vectors that are as short as possible.

    Example:
        >>> import numpy as np
        >>> from equiscreen.screening.properties.lattice_dynamics.soft_modes import commensurate_supercell
        >>> abs(round(np.linalg.det(commensurate_supercell(np.array([0.5, 0.5, 0.5]), np.eye(3)))))
        2

    Args:
        wave_vector: float64[3], rational numbers, in reciprocal lattice vectors.
        cell: Lattice vectors of the primitive cell as rows: float64[3, 3], angstrom.

    Returns:
        Lattice vectors of the supercell as rows, in lattice vectors of the primitive cell: int64[3, 3], with a positive
        determinant.
    """
    return _reduced(_wave_lattice(wave_vector), cell)


def _wave_lattice(wave_vector: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return a basis of the lattice vectors with whole numbers of waves, in Hermite normal form: int64[3, 3]."""
    exact = [Fraction(float(value)).limit_denominator(_DENOMINATOR) for value in wave_vector]
    size = lcm(*(value.denominator for value in exact))
    waves = np.array([int(value * size) for value in exact])
    # The lattice of all t with waves . t = 0 modulo the size has this index, so its basis has this determinant.
    return next(one for one in _normal_forms(size) if not ((one @ waves) % size).any())


def _reduced(basis: NDArray[np.int64], cell: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the shortest basis of the same lattice, right-handed relative to the cell: int64[3, 3]."""
    from ase.geometry import minkowski_reduce  # noqa: PLC0415 - ASE takes 0.3 s to import

    _, operations = minkowski_reduce(basis @ cell)
    matrix: NDArray[np.int64] = np.rint(operations @ basis).astype(np.int64)
    return matrix if np.linalg.det(matrix) > 0 else -matrix


def _normal_forms(size: int) -> Iterator[NDArray[np.int64]]:
    """Yield all integer matrices of a determinant in Hermite normal form (upper triangular)."""
    for a in range(1, size + 1):
        for b in range(1, size // a + 1):
            if size % (a * b):
                continue
            c = size // (a * b)
            for x in range(b):
                for y in range(c):
                    for z in range(c):
                        yield np.array([[a, x, y], [0, b, z], [0, 0, c]], dtype=np.int64)
