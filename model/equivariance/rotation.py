"""How properties transform when a structure is rotated or mirrored."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .irreps import Irrep, SphericalHarmonics
from .tensors import TensorBasis, TensorProperty, presentation, tensor_basis


def rotate_property(
    values: NDArray[np.float64], head: TensorProperty, shape: tuple[int, ...], turn: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the values of a head for rotated structures: float64[n, *shape].

    Args:
        values: float64[n, *shape], values for the structures before the rotation.
        head: Configuration of the head.
        shape: Shape of one value.
        turn: float64[3, 3], the rotation or rotoinversion applied to the positions.

    Raises:
        ValueError: The configuration of the head is invalid, or its tensor cannot have this shape.
    """
    basis = tensor_basis(head)
    present = presentation(basis, shape).numpy()
    change = present @ _change_of_components(basis, turn) @ np.linalg.pinv(present)
    return (values.reshape(len(values), -1) @ change.T).reshape(values.shape)


def _change_of_components(basis: TensorBasis, turn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix that transforms the irrep components, float64[dim, dim]."""
    if basis.rank is None:
        out, begin = np.zeros((basis.dim, basis.dim)), 0
        for mul, irrep in basis.irreps:
            block = _wigner(irrep, turn)
            for _ in range(mul):
                out[begin : begin + irrep.dim, begin : begin + irrep.dim] = block
                begin += irrep.dim
        return out
    power: NDArray[np.float64] = np.ones((1, 1))
    for _ in range(basis.rank):
        power = np.kron(power, turn).astype(np.float64)
    pseudo = basis.irreps[0][1].p != (-1) ** basis.rank
    matrix = basis.matrix.numpy()
    change: NDArray[np.float64] = matrix.T @ power @ matrix * (np.sign(np.linalg.det(turn)) if pseudo else 1.0)
    return change


def _wigner(irrep: Irrep, turn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Wigner matrix, float64[dim, dim], fitted to the harmonics of some directions and their images."""
    sign = np.sign(np.linalg.det(turn))
    directions = np.random.default_rng(7).normal(size=(8 * irrep.dim, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    harmonics, degree = SphericalHarmonics(irrep.l), slice(irrep.l**2, (irrep.l + 1) ** 2)
    here, there = (
        harmonics(torch.from_numpy(np.ascontiguousarray(x)))[:, degree].numpy()
        for x in (directions, directions @ (turn * sign).T)
    )
    matrix: NDArray[np.float64] = np.linalg.lstsq(here, there, rcond=None)[0].T
    return matrix if sign > 0 else irrep.p * matrix
