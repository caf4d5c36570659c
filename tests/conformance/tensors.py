"""How outputs have to change with their structures, from what kind of tensor each is and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from e3nn import o3
from equiscreen.model.config.head import HeadConfig
from equiscreen.model.equivariance.tensors import TENSORS
from equiscreen.model.networks.ensemble import SPREAD
from equiscreen.pipeline.graphs.potential import OutputSpec
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Nye's pairs of indices in ASE's order, and the place of each pair.
_PAIRS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
_PLACES = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
# Heads that are not written down: the energy and what follows from it.
_ENERGY = {
    "energy": HeadConfig(extensive=True),
    "forces": HeadConfig(tensor="vector", per="atom"),
    "stress": HeadConfig(tensor="symmetric"),
}


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to a structure.

    Attributes:
        turn: float64[3, 3], a rotation or a rotoinversion.
        atoms: int[n_new_atoms], which of the atoms before each atom is; None leaves them.
        copies: How many cells of before one cell holds.
    """

    turn: Array | None = None
    atoms: NDArray[np.int64] | None = None
    copies: int = 1


def expected(
    before: Mapping[str, Array], outputs: Iterable[OutputSpec], heads: Mapping[str, HeadConfig], change: Change
) -> dict[str, Array]:
    """Outputs of changed structures.

    The spread of an ensemble is a standard deviation of components, which is no tensor unless it is a scalar; turned
    spreads of others are left out.
    """
    kinds = {**_ENERGY, **heads}
    found = {}
    for spec in outputs:
        name = spec.name.removesuffix(SPREAD)
        kind, values = kinds[name], before[spec.name]
        if change.turn is not None and (name == spec.name or not spec.shape):
            values = turned(values, kind, change.turn)
            if name != spec.name:
                values = np.abs(values)
        elif change.turn is not None:
            continue
        if kind.per == "atom" and change.atoms is not None:
            values = values[change.atoms]
        found[spec.name] = values * (change.copies if kind.extensive else 1)
    return found


def turned(values: Array, kind: HeadConfig, turn: Array) -> Array:
    """A tensor in a turned or mirrored crystal.

    Args:
        values: float64[n, *shape]; an axis of 6 is a symmetric pair of indices, in Voigt's notation without factors.
        kind: Of the tensor.
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
    """Every axis of 6 as two of 3; the first axis counts the tensors."""
    for axis in reversed(range(1, values.ndim)):
        if values.shape[axis] == 6:
            values = np.take(values, _PLACES, axis=axis)
    return values


def wigner(degree: int, parity: int, turn: Array) -> Array:
    """What a rotation or rotoinversion does to the components of an irrep.

    Solved for from e3nn's harmonics of some directions and of their images: e3nn's own way from a matrix to angles is
    an arc cosine, which keeps half the digits.

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
