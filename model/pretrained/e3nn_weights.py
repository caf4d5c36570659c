"""What files of other codes on e3nn have in common."""

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
    """The matrices of `e3nn.o3.Linear`, which stand one after the other in one tensor, with their norm: float64.

    Args:
        flat: The tensor; there may be more behind the matrices.
        into: Channels that come in.
        out: Channels that go out.
        fan_in: Channels that come in, for the norm, where they are more.
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
    """Columns for the channels of each path, in the order of our paths.

    Args:
        matrix: float[hidden, channels of all paths].
        paths: Ours.
        channels: Of the feature on the left of each.
        signs: To multiply each path's columns with.
        by_result: The matrix has them in the order of the irrep that paths end in.
    """
    order = list(range(len(paths)))
    if by_result:
        order.sort(key=lambda place: paths[place].out)
    pieces = dict(zip(order, torch.split(matrix, [channels[paths[place].left] for place in order], dim=1), strict=True))
    return torch.cat([pieces[place] * sign for place, sign in enumerate(signs)], dim=1)


def sign_of_3j(state: Mapping[str, Tensor], prefix: str, path: Path) -> float:
    """Sign of the 3j symbols that a file was trained with, relative to e3nn's own.

    Versions of e3nn differ in it; tensor products keep the symbols beside their weights, if no degree is zero.

    Raises:
        ValueError: Symbols of another convention.
    """
    degrees = (path.left.l, path.right.l, path.out.l)
    stored = state.get(f"{prefix}._compiled_main_left_right._w3j_{'_'.join(map(str, degrees))}")
    if stored is None:
        return 1.0
    ours = o3.wigner_3j(*degrees, dtype=torch.float64)
    for sign in (1.0, -1.0):
        if torch.allclose(stored.double(), sign * ours, atol=1e-5):
            return sign
    raise ValueError(f"3j symbols of {degrees} that are not e3nn's")
