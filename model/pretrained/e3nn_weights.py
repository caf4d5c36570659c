"""Conversion steps that are the same for all codes based on e3nn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from e3nn import o3
from torch import Tensor

from ..equivariance.irreps import Irrep, Path


def e3nn_matrices(
    flat: Tensor, into: Mapping[Irrep, int], out: Mapping[Irrep, int], fan_in: Mapping[Irrep, int] | None = None
) -> dict[Irrep, Tensor]:
    """Split the flat weights of `e3nn.o3.Linear` into normalised matrices, float64.

    Args:
        flat: Flat weights; anything after the matrices is ignored.
        into: Number of input channels of each irrep.
        out: Number of output channels of each irrep.
        fan_in: Number of input channels used for normalisation, if it is larger than `into`.
    """
    matrices, begin = {}, 0
    for irrep, channels in into.items():
        if irrep in out:
            size = channels * out[irrep]
            matrix = flat[begin : begin + size].double().view(channels, out[irrep])
            matrices[irrep] = matrix / math.sqrt((fan_in or into)[irrep])
            begin += size
    return matrices


def ordered_columns(
    matrix: Tensor, paths: Sequence[Path], channels: Mapping[Irrep, int], signs: Sequence[float], *, by_result: bool
) -> Tensor:
    """Reorder the columns of a radial matrix to the order of our paths.

    Args:
        matrix: float[hidden, channels of all paths].
        paths: Paths, in our order.
        channels: Number of channels of each left irrep.
        signs: Sign that multiplies the columns of each path.
        by_result: Whether the columns of `matrix` are sorted by the irrep that paths end in.
    """
    order = list(range(len(paths)))
    if by_result:
        order.sort(key=lambda place: paths[place].out)
    pieces = dict(zip(order, torch.split(matrix, [channels[paths[place].left] for place in order], dim=1), strict=True))
    return torch.cat([pieces[place] * sign for place, sign in enumerate(signs)], dim=1)


def sign_of_3j(state: Mapping[str, Tensor], prefix: str, path: Path) -> float:
    """Sign of the 3j symbols that the weights were trained with, relative to those of the installed e3nn.

    The sign differs between versions of e3nn. Tensor products store the symbols beside their weights if no degree is
    zero; without stored symbols, the sign is 1.

    Raises:
        ValueError: The symbols follow a different convention.
    """
    degrees = (path.left.l, path.right.l, path.out.l)
    stored = state.get(f"{prefix}._compiled_main_left_right._w3j_{'_'.join(map(str, degrees))}")
    if stored is None:
        return 1.0
    ours = o3.wigner_3j(*degrees, dtype=torch.float64)
    for sign in (1.0, -1.0):
        if torch.allclose(stored.double(), sign * ours, atol=1e-5):
            return sign
    raise ValueError(f"the 3j symbols of {degrees} differ from e3nn's by more than a sign")
