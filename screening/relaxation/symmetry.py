"""Steps that keep the space group of a crystal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...pipeline.structures.structure import Structure
from ...pipeline.structures.symmetry import find_symmetry


class SymmetricSteps:
    """The part of a gradient that is the same for all operations of a crystal's space group.

    An operation is x -> W x + w in fractional coordinates, columns; it carries site i to site ``image[i]``. A gradient
    is symmetric if that of site i, turned by W, is that of site ``image[i]``, and the strain's is unchanged when
    turned.

    Args:
        structure: Periodic in three directions; without, nothing is projected.
        symprec: How far sites may be from where symmetry wants them, angstrom.
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
        """The symmetric part.

        Args:
            gradient: float64[n_atoms, 3], and three rows for the strain if the cell moves.
            cell: float64[3, 3], lattice vectors as rows, angstrom.
        """
        n_atoms = self.images.shape[1]
        # Of row vectors: x' = x W^T in fractional coordinates, so r' = r (cell^-1 W^T cell).
        turns = np.linalg.solve(cell, self.rotations.transpose(0, 2, 1) @ cell)
        out = np.zeros_like(gradient)
        for turn, image in zip(turns, self.images, strict=True):
            out[image] += gradient[:n_atoms] @ turn
        if len(gradient) > n_atoms:
            out[n_atoms:] = np.einsum("gki,kl,glj->ij", turns, gradient[n_atoms:], turns)
        return out / len(turns)


def _images(structure: Structure, rotation: NDArray[np.float64], translation: NDArray[np.float64]) -> NDArray[np.int64]:
    """int64[n_atoms], the site of the same element that each site is carried to: the nearest."""
    moved = structure.frac_coord @ rotation.T + translation
    difference = moved[:, None] - structure.frac_coord[None]
    difference -= np.round(difference)
    distance = np.linalg.norm(difference @ structure.cell, axis=-1)
    other = structure.atomic_number[:, None] != structure.atomic_number[None]
    nearest: NDArray[np.int64] = np.where(other, np.inf, distance).argmin(axis=1)
    return nearest
