"""Stresses of slabs and chains, which are periodic in two directions or in one.

Only strains in the periodic directions are meaningful. If the source gave a cell vector for each of the other
directions, a volume is known, and the components of the stress (1/V) dE/d(strain) in the periodic directions are
defined, as in ASE and in DFT codes. Otherwise there is no volume: the derivative is divided by the area of the slab, or
by the length of the chain. These quotients do not depend on the amount of vacuum, so they are given in both cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

# A graph store replaces a missing lattice vector by a unit vector normal to the others (docs/store.md).
_UNIT = 1e-6
# A Cartesian axis counts as normal to the periodic directions if its unit vector has a smaller projection onto them.
_NO_SHARE = 1e-6


@dataclass(frozen=True, slots=True)
class PartialStress:
    """Derivatives of the energy of some structures with respect to strain in their periodic directions.

    Attributes:
        stress: float64[n, 3, 3], eV/angstrom^3; NaN in directions that are not periodic, and in all directions for
            molecules, and for slabs and chains without a volume.
        in_plane: float64[n, 3, 3], eV/angstrom^2; for slabs, the derivative divided by the area; NaN for all others.
        axial: float64[n], eV/angstrom; for chains, the derivative along the axis divided by the length of the cell; NaN
            for all others.
    """

    stress: NDArray[np.float64]
    in_plane: NDArray[np.float64]
    axial: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        cells: NDArray[np.float64],
        periodic: NDArray[np.bool_],
        stress: NDArray[np.float64],
        virial: NDArray[np.float64] | None,
    ) -> Self:
        """Compute the stresses of some structures.

        Args:
            cells: float64[n, 3, 3], lattice vectors as rows, angstrom.
            periodic: bool[n, 3], which lattice vectors are periodic.
            stress: float64[n, 3, 3], stress of the crystals, eV/angstrom^3.
            virial: float64[n, 3, 3], derivative of the energy with respect to strain, eV; None if it is unknown.
        """
        size, n_periodic = len(cells), periodic.sum(axis=1)
        out = cls(stress.copy(), np.full((size, 3, 3), np.nan), np.full(size, np.nan))
        if virial is None:
            return out
        for row in np.flatnonzero((n_periodic > 0) & (n_periodic < 3)).tolist():
            cell, pbc, derivative = cells[row], periodic[row], virial[row]
            part, inside = in_directions(derivative, cell, pbc)
            part = np.where(inside, part, np.nan)
            if has_volume(cell, pbc):
                out.stress[row] = part / abs(np.linalg.det(cell))
            if n_periodic[row] == 2:
                out.in_plane[row] = part / extent(cell[pbc])
            else:
                axis = cell[pbc][0] / np.linalg.norm(cell[pbc][0])
                out.axial[row] = axis @ derivative @ axis / extent(cell[pbc])
        return out


def in_directions(
    tensor: NDArray[np.float64], cell: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Project a symmetric tensor onto the directions of some lattice vectors.

    Args:
        tensor: float64[3, 3], in any unit.
        cell: float64[3, 3], lattice vectors as rows.
        chosen: bool[3], lattice vectors that span the directions.

    Returns:
        The projected tensor, float64[3, 3], and which of its components lie in these directions, bool[3, 3].
    """
    # A QR decomposition of the vectors gives an orthonormal basis of their span.
    basis = np.linalg.qr(cell[chosen].T)[0]
    projector = basis @ basis.T
    share = np.sqrt((basis**2).sum(axis=1)) > _NO_SHARE
    part = projector @ ((tensor + tensor.T) / 2) @ projector
    return part, share[:, None] & share[None]


def has_volume(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> bool:
    """Return whether the source of a structure gave a cell vector for each direction that is not periodic.

    Args:
        cell: float64[3, 3], lattice vectors as rows, angstrom.
        pbc: bool[3], which of them are periodic.
    """
    lengths = np.linalg.norm(cell, axis=1)
    tilted = np.abs(cell[~pbc] @ cell[pbc].T) > _UNIT * lengths[pbc]
    given = (np.abs(lengths[~pbc] - 1.0) > _UNIT) | tilted.any(axis=1)
    return bool(given.all())


def extent(vectors: NDArray[np.float64]) -> float:
    """Return the length, area or volume that one, two or three vectors span (angstrom, angstrom^2 or angstrom^3).

    Args:
        vectors: float64[n, 3], vectors as rows, angstrom.
    """
    return float(np.sqrt(abs(np.linalg.det(vectors @ vectors.T))))
