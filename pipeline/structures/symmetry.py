"""Crystal symmetry, and whether it allows a tensor that is given as a label.

Some published tensors are given in a different frame from their structure. Such a tensor usually breaks the symmetry of
the crystal. There are exceptions: a crystal without symmetry allows any tensor, and a cubic crystal any rotated
isotropic tensor.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import LabelError
from .structure import Structure

if TYPE_CHECKING:
    import moyopy

_LOG = logging.getLogger("moyo")

Axis = Literal["cartesian", "voigt"]

# Index of each Cartesian pair in ASE's order xx, yy, zz, yz, xz, xy.
_VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
MAX_RANK = 4


def find_symmetry(structure: Structure, symprec: float) -> moyopy.MoyoDataset | None:
    """Search for the space group of a crystal with moyopy.

    Args:
        structure: A structure that is periodic in three directions.
        symprec: Largest distance of a site from its symmetric position, angstrom.

    Returns:
        moyopy's result, or None if it finds no consistent group, for example for overlapping atoms.
    """
    import moyopy  # noqa: PLC0415 - only needed to search for symmetry

    # moyopy warns about every supercell whose shape is less symmetric than its crystal; nothing that we use depends on
    # that shape.
    if _LOG.level < logging.ERROR:
        _LOG.setLevel(logging.ERROR)
    cell = moyopy.Cell(structure.cell.tolist(), structure.frac_coord.tolist(), structure.atomic_number.tolist())
    try:
        return moyopy.MoyoDataset(cell, symprec=symprec)
    except ValueError:
        return None


def point_group(structure: Structure, symprec: float = 1e-2) -> NDArray[np.float64]:
    """Return the rotations and rotoinversions of a crystal's point group, in the frame of `structure.cell`.

    This is the group of the crystal, not of the cell: a supercell of any shape has the same group. The matrices are
    orthogonal and form a group to machine precision, even if the lattice is symmetric only within `symprec`: they
    belong to the nearest symmetric lattice.

    Args:
        structure: A structure. If it is not periodic in three directions, or no symmetry can be found (for example for
            overlapping atoms), only the identity is returned.
        symprec: Largest distance of a site from its symmetric position, angstrom.

    Returns:
        float64[n_operations, 3, 3], acting on Cartesian column vectors.
    """
    found = find_symmetry(structure, symprec) if structure.pbc.all() else None
    if found is None:
        return np.eye(3)[None]
    import moyopy  # noqa: PLC0415 - see find_symmetry

    # Use the operations of the space-group type in its primitive basis: a supercell of low symmetry hides some of them.
    setting = moyopy.Setting.hall_number(found.hall_number)
    operations = moyopy.operations_from_number(found.number, setting=setting, primitive=True)
    rotations = np.array(operations.rotations, dtype=np.float64)
    return _orthogonal(rotations, structure.cell.T @ np.array(found.prim_std_linear))


def _orthogonal(rotations: NDArray[np.float64], basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert rotations in lattice coordinates to orthogonal matrices.

    Args:
        rotations: float64[n, 3, 3], a group of integer matrices.
        basis: float64[3, 3], lattice vectors as columns, symmetric under the rotations up to noise.

    Returns:
        float64[n, 3, 3].
    """
    metric = np.mean(np.swapaxes(rotations, 1, 2) @ (basis.T @ basis) @ rotations, axis=0)
    symmetric = np.linalg.cholesky(metric).T
    # Bases of this metric differ by a rotation; choose the one closest to the input.
    left, _, right = np.linalg.svd(basis @ np.linalg.inv(symmetric))
    symmetric = left @ right @ symmetric
    found: NDArray[np.float64] = symmetric @ rotations @ np.linalg.inv(symmetric)
    return found


def symmetry_violation(tensor: ArrayLike, rotations: NDArray[np.float64], axes: Sequence[Axis] | None = None) -> float:
    """Return the fraction of a tensor that its crystal's symmetry forbids: |T - mean over the group of R.T| / |T|.

    The mean over a group is the projection onto its invariant tensors, so the result lies between 0, for an allowed
    tensor, and 1, for an entirely forbidden one (Nye, Physical Properties of Crystals, 1957).

    Args:
        tensor: A polar tensor: float[3, ...] of rank 0 to 4, or with a pair of symmetric indices as one Voigt index in
            ASE's order xx, yy, zz, yz, xz, xy: [6] like a stress, [3, 6] like the piezoelectric e_ijk, [6, 6] like a
            stiffness. Voigt components must equal the tensor components: divide the factors 2 and 4 out of strains and
            compliances first. Norms are taken of the full tensor.
        rotations: float64[n_operations, 3, 3], from `point_group`, in the frame of the tensor.
        axes: Kind of each index; inferred from its length, 3 or 6, if None.

    Returns:
        A fraction; 0 for a tensor of zeros, NaN for a tensor that is not finite.

    Raises:
        LabelError: The tensor does not have one of the shapes that `tensor` lists.
    """
    full = _cartesian(np.asarray(tensor, dtype=np.float64), axes)
    size = float(np.linalg.norm(full))
    if size == 0.0:
        return 0.0
    if not np.isfinite(size):
        return float("nan")
    return float(np.linalg.norm(full - rotated(full, rotations).mean(axis=0))) / size


def rotated(tensor: NDArray[np.float64], rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotate a Cartesian tensor by each of the rotations.

    Args:
        tensor: float64[3, ...], of any rank.
        rotations: float64[n, 3, 3].

    Returns:
        float64[n, 3, ...].
    """
    n, rank = len(rotations), tensor.ndim
    out = np.broadcast_to(tensor, (n, *tensor.shape))
    for _ in range(rank):  # each step rotates the first index and moves it to the end
        out = np.swapaxes(rotations @ out.reshape(n, 3, -1), 1, 2).reshape(n, *[3] * rank)
    return out


def _cartesian(tensor: NDArray[np.float64], axes: Sequence[Axis] | None) -> NDArray[np.float64]:
    """Expand every Voigt index into two Cartesian indices."""
    lengths = {"cartesian": 3, "voigt": 6}
    known: dict[int, Axis] = {3: "cartesian", 6: "voigt"}
    if axes is None:
        if not set(tensor.shape) <= set(known):
            raise LabelError(
                f"a tensor of shape {tensor.shape} is invalid: every index must have length 3, or 6 in Voigt notation"
            )
        axes = [known[length] for length in tensor.shape]
    elif tensor.shape != tuple(lengths[axis] for axis in axes):
        raise LabelError(f"a tensor of shape {tensor.shape} cannot have the indices {', '.join(axes)}")
    if sum(1 if axis == "cartesian" else 2 for axis in axes) > MAX_RANK:
        raise LabelError(f"a tensor of shape {tensor.shape} has a rank above {MAX_RANK}")
    for position in reversed(range(len(axes))):
        if axes[position] == "voigt":
            tensor = np.take(tensor, _VOIGT, axis=position)
    return tensor
