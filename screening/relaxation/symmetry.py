"""Symmetrization of structures and gradients, so that a relaxation preserves the space group of a crystal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...pipeline.structures.structure import Structure
from ...pipeline.structures.symmetry import find_symmetry


class SymmetricSteps:
    """Projection of a gradient onto the part that is invariant under the space group of a crystal.

    An operation is x -> W x + w for column vectors of fractional coordinates; it maps site i to site ``image[i]``. A
    gradient is symmetric if W rotates the gradient of site i into the gradient of site ``image[i]``, and leaves the
    gradient of the strain unchanged.

    Args:
        structure: Crystal. If it is not periodic in three directions, or no symmetry is found, gradients are unchanged.
        symprec: Tolerance of the search for symmetry: largest distance of a site from its symmetric position, angstrom.
    """

    def __init__(self, structure: Structure, symprec: float) -> None:
        found = find_symmetry(structure, symprec) if structure.pbc.all() else None
        if found is None:
            self.rotations = np.eye(3)[None]
            self.images = np.arange(len(structure))[None]
            return
        self.rotations = np.array(found.operations.rotations, dtype=np.float64)
        translations = np.array(found.operations.translations)
        self.images = np.array(
            [_images(structure, w, t) for w, t in zip(self.rotations, translations, strict=True)], dtype=np.int64
        )

    def projected(self, gradient: NDArray[np.float64], cell: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the symmetric part of a gradient.

        Args:
            gradient: float64[n_atoms, 3], or float64[n_atoms + 3, 3] with the strain if the cell moves, eV/angstrom.
            cell: Lattice vectors as rows: float64[3, 3], angstrom.

        Returns:
            An array of the same shape as `gradient`.
        """
        n_atoms = self.images.shape[1]
        # For row vectors: x' = x W^T in fractional coordinates, so r' = r (cell^-1 W^T cell).
        turns = np.linalg.solve(cell, self.rotations.transpose(0, 2, 1) @ cell)
        out = np.zeros_like(gradient)
        for turn, image in zip(turns, self.images, strict=True):
            out[image] += gradient[:n_atoms] @ turn
        if len(gradient) > n_atoms:
            out[n_atoms:] = np.einsum("gki,kl,glj->ij", turns, gradient[n_atoms:], turns)
        return out / len(turns)


def symmetrized(structure: Structure, symprec: float) -> Structure:
    """Return a structure moved to exact symmetry, so that it has its space group without a tolerance.

    The metric of the new lattice is the mean over the rotations, and its orientation is as close as possible to the
    orientation of the structure. Each site moves to the mean of its symmetric images.

    Args:
        structure: Structure. If it is not periodic in three directions, or no symmetry is found, it is returned
            unchanged.
        symprec: Tolerance of the search for symmetry: largest distance of a site from its symmetric position, angstrom.
    """
    found = find_symmetry(structure, symprec) if structure.pbc.all() else None
    if found is None:
        return structure
    shift = np.zeros_like(structure.frac_coord)
    rotations = np.array(found.operations.rotations, dtype=np.float64)
    for rotation, translation in zip(rotations, np.array(found.operations.translations), strict=True):
        image = _images(structure, rotation, translation)
        moved = structure.frac_coord @ rotation.T + translation - structure.frac_coord[image]
        shift[image] += moved - np.round(moved)
    metric = np.mean(rotations.transpose(0, 2, 1) @ (structure.cell @ structure.cell.T) @ rotations, axis=0)
    basis = np.linalg.cholesky(metric)
    left, _, right = np.linalg.svd(basis.T @ structure.cell)
    return Structure.from_fractional(
        structure.atomic_number,
        basis @ left @ right,
        structure.frac_coord + shift / len(rotations),
        structure.pbc,
    )


def _images(structure: Structure, rotation: NDArray[np.float64], translation: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the site to which an operation maps each site, the nearest of the same element: int64[n_atoms]."""
    moved = structure.frac_coord @ rotation.T + translation
    difference = moved[:, None] - structure.frac_coord[None]
    difference -= np.round(difference)
    distance = np.linalg.norm(difference @ structure.cell, axis=-1)
    other = structure.atomic_number[:, None] != structure.atomic_number[None]
    nearest: NDArray[np.int64] = np.where(other, np.inf, distance).argmin(axis=1)
    return nearest
