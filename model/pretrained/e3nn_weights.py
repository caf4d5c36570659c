"""Conversion steps shared by all codes based on e3nn."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from e3nn import o3
from e3nn.math import normalize2mom
from torch import Tensor

from ...pipeline.errors import CheckpointError
from ..equivariance.irreps import SCALAR, Irrep
from ..equivariance.irreps import Path as IrrepPath
from ..networks.nequip import ODD_SCALAR, with_gates

# e3nn does not rescale a function if the factor would be this close to one.
IDENTITY_TOLERANCE = 1e-4

Channels = Mapping[Irrep, int]


def e3nn_matrices(flat: Tensor, into: Channels, out: Channels, fan_in: Channels | None = None) -> dict[Irrep, Tensor]:
    """Split the flat weights of `e3nn.o3.Linear` into normalised matrices.

    Args:
        flat: Flat weights; anything after the matrices is ignored.
        into: Number of input channels of each irrep, in the order of the file.
        out: Number of output channels of each irrep.
        fan_in: Number of input channels used for normalisation, if it is larger than `into`.

    Returns:
        float64[input channels, output channels] for each irrep.
    """
    matrices, begin = {}, 0
    for irrep, channels in into.items():
        if irrep in out:
            size = channels * out[irrep]
            matrix = flat[begin : begin + size].double().view(channels, out[irrep])
            matrices[irrep] = matrix / math.sqrt((fan_in or into)[irrep])
            begin += size
    return matrices


def e3nn_element_matrices(flat: Tensor, into: Channels, attributes: Tensor, out: Channels) -> dict[Irrep, Tensor]:
    """Turn the weights of a product of features and scalars of the elements into one matrix for each element.

    Args:
        flat: Flat weights of an `e3nn.o3.FullyConnectedTensorProduct`.
        into: Number of input channels of each irrep, in the order of the file.
        attributes: float64[n_elements, a], the scalars of each element.
        out: Number of output channels of each irrep.

    Returns:
        float64[n_elements, input channels, output channels] for each irrep, normalised.
    """
    matrices, begin, width = {}, 0, attributes.shape[1]
    for irrep, channels in into.items():
        if irrep in out:
            size = channels * width * out[irrep]
            weights = flat[begin : begin + size].double().view(channels, width, out[irrep])
            matrices[irrep] = torch.einsum("ea,uaw->euw", attributes, weights) / math.sqrt(channels * width)
            begin += size
    return matrices


def e3nn_paths(
    left: Sequence[Irrep], right: Sequence[Irrep], out: Collection[Irrep], *, by_result: bool
) -> list[IrrepPath]:
    """Return the paths of a convolution in the order of e3nn-based codes; `by_result` sorts them by the last irrep."""
    paths = [IrrepPath(a, b, c) for a in left for b in right for c in a * b if c in out]
    return sorted(paths, key=lambda path: path.out) if by_result else paths


@dataclass(frozen=True)
class InteractionShape:
    """Irreps of one interaction in a file.

    Attributes:
        into: Number of channels of each irrep before the interaction, in the order of the file.
        out: Number of channels of each irrep after the gate, in the order of the file.
        paths: Paths of the convolution, in the order of its radial functions.
    """

    into: Channels
    out: Channels
    paths: Sequence[IrrepPath]

    @property
    def summed(self) -> dict[Irrep, int]:
        """Number of channels of each irrep after the convolution, sorted by irrep as e3nn does."""
        channels: dict[Irrep, int] = {}
        for path in sorted(self.paths, key=lambda path: path.out):
            channels[path.out] = channels.get(path.out, 0) + self.into[path.left]
        return channels

    @property
    def gate_in(self) -> dict[Irrep, int]:
        """Number of channels of each irrep before the gate."""
        return with_gates(self.out)

    def kept_columns(self, kept: Collection[Irrep]) -> list[int]:
        """Return the columns of the scalars before the gate, without the gates of dropped irreps."""
        columns, begin = list(range(self.out[SCALAR])), self.out[SCALAR]
        for irrep, channels in self.out.items():
            if irrep.l > 0:
                columns += range(begin, begin + channels) if irrep in kept else ()
                begin += channels
        return columns

    def without_dropped(self, matrices: Mapping[Irrep, Tensor], kept: Collection[Irrep]) -> dict[Irrep, Tensor]:
        """Restrict linear maps that precede the gate to the channels of the kept irreps.

        Args:
            matrices: float[..., input channels, output channels] for each irrep.
            kept: Irreps after the gate.
        """
        columns = self.kept_columns(kept)
        return {ir: m[..., columns] if ir == SCALAR else m for ir, m in matrices.items() if ir in kept}

    def rows(self, matrices: Mapping[Irrep, Tensor], ours: Sequence[IrrepPath]) -> dict[Irrep, Tensor]:
        """Reorder the rows of the linear maps that follow the convolution to the order of equiscreen's paths.

        Args:
            matrices: float[channels of all paths that end in the irrep, output channels] for each irrep.
            ours: equiscreen's paths, which may be fewer than those in the file.
        """
        out = {}
        for irrep, matrix in matrices.items():
            theirs = [path for path in self.paths if path.out == irrep]
            pieces = torch.split(matrix, [self.into[path.left] for path in theirs], dim=0)
            rows = dict(zip(theirs, pieces, strict=True))
            out[irrep] = torch.cat([rows[path] for path in ours if path.out == irrep], dim=0)
        return out


def nonzero_irreps(shapes: Sequence[InteractionShape]) -> list[dict[Irrep, int]]:
    """Return the number of channels of each irrep after each interaction, without irreps that are always zero."""
    made, kept = {SCALAR}, []
    for shape in shapes:
        made = {path.out for path in shape.paths if path.left in made} & {*shape.out}
        kept.append({irrep: channels for irrep, channels in shape.out.items() if irrep in made})
    return kept


def ordered_columns(
    matrix: Tensor, theirs: Sequence[IrrepPath], ours: Sequence[IrrepPath], channels: Channels, signs: Sequence[float]
) -> Tensor:
    """Reorder the columns of a radial matrix to the order of equiscreen's paths, which may be fewer.

    Args:
        matrix: float[hidden, channels of all paths].
        theirs: Paths, in the order of the file.
        ours: Paths, in equiscreen's order.
        channels: Number of channels of each left irrep.
        signs: Sign that multiplies the columns of each path in `ours`.
    """
    columns = dict(zip(theirs, torch.split(matrix, [channels[path.left] for path in theirs], dim=1), strict=True))
    return torch.cat([columns[path] * sign for path, sign in zip(ours, signs, strict=True)], dim=1)


def activation_gain(function: Callable[[Tensor], Tensor]) -> float:
    """Return the factor that e3nn multiplies an activation by, so that its second moment is one.

    e3nn estimates the moment from samples with a fixed seed, and does not rescale the function if the factor is close
    to one.
    """
    gain = float(normalize2mom(function).cst)
    return 1.0 if abs(gain - 1) < IDENTITY_TOLERANCE else gain


def gate_gains(
    irreps: Collection[Irrep],
    even: Callable[[Tensor], Tensor],
    odd: Callable[[Tensor], Tensor],
    gate: Callable[[Tensor], Tensor],
) -> dict[Irrep, float]:
    """Return, for each irrep, the factor that e3nn's gate applies and equiscreen's leaves out."""
    others = activation_gain(gate)
    gains = dict.fromkeys(irreps, others)
    if SCALAR in gains:
        gains[SCALAR] = activation_gain(even)
    if ODD_SCALAR in gains:
        gains[ODD_SCALAR] = activation_gain(odd)
    return gains


def sign_of_3j(state: Mapping[str, Tensor], prefix: str, path: IrrepPath) -> float:
    """Return the sign of the 3j symbols used in training, relative to the symbols of the installed e3nn.

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


def check_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Check that all weights are finite numbers.

    Raises:
        CheckpointError: A weight is NaN or infinite.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{path} is damaged: the weights {name} contain NaN or infinite numbers; copy or download it again"
            )
