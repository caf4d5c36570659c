"""Supercells for phonons: their size, and the exchange of structures with phonopy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....pipeline.structures.structure import Structure
from ....pipeline.structures.symmetry import find_symmetry

# Lattice vectors whose lengths differ by less (angstrom) are repeated equally often, so that the supercell is as
# symmetric as its crystal.
_EQUAL_LENGTHS = 1e-3
# Supercells of up to this many times the requested length are considered.
_LONGEST = 2.0
_INTEGER = 1e-5  # largest difference of a matrix from integers
# Tolerance of phonopy's own search for symmetry, angstrom; it receives crystals that are symmetric already.
PHONOPY_SYMPREC = 1e-5


def supercell_matrix(structure: Structure, min_length: float, symprec: float) -> NDArray[np.int64]:
    """Return the smallest symmetric supercell in which no atom is close to one of its own images.

    Supercells of the cell as given, of its reduced form, of the primitive cell and of the conventional cell are
    compared; one that would lower the point group of the crystal is used only if all of them would. For a face-centred
    cubic crystal, multiples of the primitive cell need fewer atoms than cubes.

    Example:
        >>> from ase.build import bulk
        >>> from equiscreen.pipeline import Structure
        >>> from equiscreen.screening.properties.lattice_dynamics.supercells import supercell_matrix
        >>> supercell_matrix(Structure.from_ase(bulk("Cu")), min_length=10.0, symprec=1e-3).tolist()
        [[4, 0, 0], [0, 4, 0], [0, 0, 4]]

    Args:
        structure: Crystal that is periodic in three directions.
        min_length: Smallest distance of an atom from its images, angstrom.
        symprec: Tolerance of the search for symmetry: largest distance of a site from its symmetric position, angstrom.

    Returns:
        int64[3, 3]; its rows are the lattice vectors of the supercell, in lattice vectors of the structure.
    """
    from ase.geometry import minkowski_reduce  # noqa: PLC0415 - ASE takes 0.3 s to import

    found = find_symmetry(structure, symprec)
    bases, rotations = [np.eye(3), minkowski_reduce(structure.cell)[1]], np.eye(3)[None]
    if found is not None:
        # moyopy's matrices have the new lattice vectors as columns.
        bases += [np.array(found.prim_std_linear).T, np.array(found.std_linear).T]
        rotations = np.array(found.operations.rotations, dtype=np.float64)
    possible = [matrix for basis in bases for matrix in _repetitions(basis, structure.cell, min_length)]
    symmetric = [matrix for matrix in possible if _keeps(matrix, rotations)]
    smallest = min(symmetric or possible, key=lambda matrix: abs(round(np.linalg.det(matrix))))
    return smallest if np.linalg.det(smallest) > 0 else -smallest


def _repetitions(basis: NDArray[np.float64], cell: NDArray[np.float64], min_length: float) -> Iterator[NDArray[Any]]:
    """Yield the smallest supercell that repeats a basis to about equal lengths, if it is also a supercell of the cell.

    Args:
        basis: Lattice vectors to repeat, as rows, in lattice vectors of the cell: float64[3, 3].
        cell: float64[3, 3], lattice vectors as rows, angstrom.
        min_length: Smallest length of a lattice vector, angstrom.
    """
    lengths = np.linalg.norm(basis @ cell, axis=1)
    most = np.ceil(_LONGEST * min_length / lengths).astype(int)
    steps = sorted({n * length for length, count in zip(lengths, most, strict=True) for n in range(1, count + 1)})
    for step in steps:
        counts = np.ceil((step - _EQUAL_LENGTHS) / lengths).clip(min=1)
        matrix = counts[:, None] * basis
        whole = np.rint(matrix).astype(np.int64)
        if np.abs(matrix - whole).max() < _INTEGER and shortest_vector(whole @ cell) >= min_length - _EQUAL_LENGTHS:
            yield whole
            return


def _keeps(matrix: NDArray[np.int64], rotations: NDArray[np.float64]) -> bool:
    """Return whether the operations of a crystal map the lattice of a supercell onto itself.

    Args:
        matrix: Lattice vectors of the supercell as rows: int64[3, 3].
        rotations: float64[n, 3, 3], acting on column vectors of fractional coordinates.
    """
    turned = matrix @ rotations.transpose(0, 2, 1) @ np.linalg.inv(matrix)
    return bool(np.abs(turned - np.rint(turned)).max() < _INTEGER)


def shortest_vector(cell: NDArray[np.float64]) -> float:
    """Return the length of the shortest vector of a lattice, angstrom.

    Args:
        cell: float64[3, 3], lattice vectors as rows, angstrom.
    """
    from ase.geometry import minkowski_reduce  # noqa: PLC0415 - ASE takes 0.3 s to import

    reduced, _ = minkowski_reduce(cell)
    return float(np.linalg.norm(reduced, axis=1).min())


def to_phonopy(structure: Structure) -> tuple[Any, NDArray[np.float64]]:
    """Return a structure as phonopy's `PhonopyAtoms`, and the matrix of its primitive cell.

    Returns:
        The atoms, and float64[3, 3]; its columns are the primitive lattice vectors, in lattice vectors of the
        structure.
    """
    from phonopy.structure.atoms import PhonopyAtoms  # noqa: PLC0415 - an extra
    from phonopy.structure.cells import guess_primitive_matrix  # noqa: PLC0415 - an extra

    numbers = structure.atomic_number.astype(int).tolist()
    atoms = PhonopyAtoms(numbers=numbers, cell=structure.cell, scaled_positions=structure.frac_coord)
    return atoms, np.asarray(guess_primitive_matrix(atoms, symprec=PHONOPY_SYMPREC))


def from_phonopy(atoms: Any) -> Structure:
    """Return phonopy's `PhonopyAtoms` as a structure, with its atoms in the same order."""
    return Structure.from_fractional(atoms.numbers, atoms.cell, atoms.scaled_positions)
