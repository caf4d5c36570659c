"""How heads must transform with their structures, derived only from their kind of tensor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from e3nn import o3
from equiscreen.conformance.outputs import Array, OutputKind
from equiscreen.model.config.head import HeadConfig
from equiscreen.model.equivariance.tensors import TENSORS

# Nye's index pairs in ASE's order, and the position of each pair.
_PAIRS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
_PLACES = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])


def kinds_of(heads: Mapping[str, HeadConfig]) -> dict[str, OutputKind]:
    """How the outputs of heads transform."""
    return {
        name: OutputKind(lambda values, turn, head=head: turned(values, head, turn), extensive=head.extensive)
        for name, head in heads.items()
    }


def turned(values: Array, kind: HeadConfig, turn: Array) -> Array:
    """Transform tensors to those of the rotated or mirrored crystal.

    Args:
        values: float64[n, *shape]; an axis of length 6 is a symmetric pair in Voigt notation without factors.
        kind: Configuration of the head.
        turn: float64[3, 3], orthogonal.
    """
    if kind.irreps is not None:
        blocks = [wigner(ir.l, ir.p, turn) for mul, ir in o3.Irreps(kind.irreps) for _ in range(mul)]
        ends = np.cumsum([0, *(len(block) for block in blocks)])
        parts = [values[:, a:b] @ block.T for a, b, block in zip(ends, ends[1:], blocks, strict=False)]
        return np.concatenate(parts, axis=1)
    named = TENSORS.get(kind.tensor)
    pseudo = kind.pseudo ^ (named is not None and named.pseudo)
    out = cartesian(values)
    for axis in range(1, out.ndim):
        out = np.moveaxis(np.tensordot(out, turn, axes=(axis, 1)), -1, axis)
    for axis in range(1, values.ndim):
        if values.shape[axis] == 6:
            front = np.moveaxis(out, (axis, axis + 1), (0, 1))
            out = np.moveaxis(np.stack([front[pair] for pair in _PAIRS]), 0, axis)
    return out * np.sign(np.linalg.det(turn)) if pseudo else out


def cartesian(values: Array) -> Array:
    """Expand every axis of length 6 to two of length 3; the first axis counts the tensors."""
    for axis in reversed(range(1, values.ndim)):
        if values.shape[axis] == 6:
            values = np.take(values, _PLACES, axis=axis)
    return values


def wigner(degree: int, parity: int, turn: Array) -> Array:
    """Matrix of a rotation or rotoinversion on the components of an irrep.

    It is fitted to e3nn's harmonics of some directions and of their images, since e3nn's own conversion from a matrix
    to angles uses an arc cosine, which loses half the digits.

    Returns:
        float64[2 degree + 1, 2 degree + 1].
    """
    proper = turn * np.sign(np.linalg.det(turn))
    directions = np.random.default_rng(7).normal(size=(40, 3))
    here, there = (
        o3.spherical_harmonics(degree, torch.from_numpy(np.ascontiguousarray(x)), normalize=True).numpy()
        for x in (directions, directions @ proper.T)
    )
    matrix: Array = np.linalg.lstsq(here, there, rcond=None)[0].T
    return matrix if np.linalg.det(turn) > 0 else parity * matrix
