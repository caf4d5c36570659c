"""Algebra of irreps that exports: harmonics, Clebsch-Gordan products and linear maps, written as matrix products.

A feature is a dictionary from irrep to a tensor ``[n, 2 l + 1, channels]``: components first, channels last, so that
constants over components are small matrices and a linear map is one matrix product. Components are ordered and
normalised as in e3nn ("component" normalisation: a random feature has components of variance one).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from e3nn import o3
from e3nn.o3 import Irrep as Irrep  # noqa: PLC0414 - the package's own name for it
from torch import Tensor, nn

Features = dict[Irrep, Tensor]


@dataclass(frozen=True, slots=True)
class Path:
    """One product of irreps, ``left x right -> out``."""

    left: Irrep
    right: Irrep
    out: Irrep


def product_paths(left: Iterable[Irrep], right: Iterable[Irrep], out: Iterable[Irrep]) -> list[Path]:
    """All allowed products that end in one of `out`, grouped by the left irrep."""
    rights, outs = list(right), list(out)
    return [Path(a, b, c) for a in left for b in rights for c in outs if c in a * b]


def coupling(path: Path) -> Tensor:
    """Clebsch-Gordan coefficients of a path: float64[left, right, out], normalised to keep variance."""
    matrix: Tensor = o3.wigner_3j(path.left.l, path.right.l, path.out.l, dtype=torch.float64)
    return matrix * math.sqrt(path.out.dim)


class SphericalHarmonics(nn.Module):
    """Spherical harmonics up to `l_max` of unit vectors, equal to e3nn's with "component" normalisation.

    Each degree is the highest coupling of the one before with the vector itself, so no formula is written out, and no
    component is picked by an index (whose gradient would be a scatter).
    """

    def __init__(self, l_max: int) -> None:
        super().__init__()
        self.l_max = l_max
        pole = torch.tensor([0.0, math.sqrt(3.0), 0.0], dtype=torch.float64)
        before = pole
        for degree in range(2, l_max + 1):
            matrix = o3.wigner_3j(degree - 1, 1, degree, dtype=torch.float64).reshape(-1, 2 * degree + 1)
            here = torch.outer(before, pole).reshape(-1) @ matrix
            # On the pole the harmonics have norm sqrt(2 l + 1), all of it in the middle component, which is positive.
            matrix = matrix * math.sqrt(2 * degree + 1) / here[degree]
            before = torch.outer(before, pole).reshape(-1) @ matrix
            self.register_buffer(f"_raise_{degree}", matrix, persistent=False)

    def forward(self, unit_vectors: Tensor) -> Tensor:
        """float[..., 3] to float[..., (l_max + 1)^2], degrees one after the other."""
        n = unit_vectors.shape[0]
        first = unit_vectors * math.sqrt(3.0)
        degrees = [torch.ones_like(unit_vectors.sum(-1, keepdim=True)), first]
        for degree in range(2, self.l_max + 1):
            outer = degrees[-1].unsqueeze(-1) * first.unsqueeze(-2)
            size = (2 * degree - 1) * 3
            degrees.append(outer.reshape(n, size) @ getattr(self, f"_raise_{degree}"))
        return torch.cat(degrees[: self.l_max + 1], dim=-1)


class IrrepsLinear(nn.Module):
    """A linear map of the channels of each irrep; the only one that commutes with rotation and mirroring."""

    def __init__(self, channels_in: Mapping[Irrep, int], channels_out: Mapping[Irrep, int]) -> None:
        super().__init__()
        self.irreps = [irrep for irrep in channels_out if irrep in channels_in]
        self.weights = nn.ParameterDict(
            {str(irrep): nn.Parameter(torch.randn(channels_in[irrep], channels_out[irrep])) for irrep in self.irreps}
        )
        self._scales = {irrep: 1 / math.sqrt(channels_in[irrep]) for irrep in self.irreps}

    def forward(self, features: Features) -> Features:
        """Map each irrep that both sides know."""
        out = {}
        for irrep in self.irreps:
            x = features[irrep]
            n, dim, channels = x.shape
            weight = self.weights[str(irrep)] * self._scales[irrep]
            out[irrep] = (x.reshape(n * dim, channels) @ weight).view(n, dim, weight.shape[1])
        return out


class ChannelwiseProduct(nn.Module):
    """Clebsch-Gordan products of two features, channel by channel, over all allowed paths.

    The result holds, for each irrep, the channels of all its paths one after the other.

    Args:
        left: Irreps of the left feature.
        right: Irreps of the right feature.
        out: Irreps to keep.
        channels: Of all irreps, on both sides.
    """

    def __init__(self, left: Sequence[Irrep], right: Sequence[Irrep], out: Sequence[Irrep], channels: int) -> None:
        super().__init__()
        self.left, self.right = list(left), list(right)
        self.paths = product_paths(left, right, out)
        columns = [_embedded(path, self.left, self.right) for path in self.paths]
        self.coupling: Tensor
        self.register_buffer("coupling", torch.cat(columns, dim=1).T.contiguous(), persistent=False)
        self.channels_out: dict[Irrep, int] = {}
        for path in self.paths:
            self.channels_out[path.out] = self.channels_out.get(path.out, 0) + channels

    def forward(self, left: Features, right: Features) -> Features:
        """Multiply."""
        a = torch.cat([left[irrep] for irrep in self.left], dim=1)
        b = torch.cat([right[irrep] for irrep in self.right], dim=1)
        n, rows, channels = a.shape
        outer = (a.unsqueeze(2) * b.unsqueeze(1)).reshape(n, rows * b.shape[1], channels)
        return split_paths(torch.matmul(self.coupling, outer), self.paths)


def split_paths(stacked: Tensor, paths: Sequence[Path]) -> Features:
    """Gather ``[n, sum of path dims, channels]`` by irrep, paths of one irrep side by side in the channels."""
    pieces = torch.split(stacked, [path.out.dim for path in paths], dim=1)
    grouped: dict[Irrep, list[Tensor]] = {}
    for path, piece in zip(paths, pieces, strict=True):
        grouped.setdefault(path.out, []).append(piece)
    return {irrep: torch.cat(parts, dim=-1) for irrep, parts in grouped.items()}


def _embedded(path: Path, left: Sequence[Irrep], right: Sequence[Irrep]) -> Tensor:
    """The couplings of a path as columns over the outer product of all components of both sides."""
    rows, columns = sum(irrep.dim for irrep in left), sum(irrep.dim for irrep in right)
    out = torch.zeros(rows, columns, path.out.dim, dtype=torch.float64)
    i = sum(irrep.dim for irrep in left[: left.index(path.left)])
    j = sum(irrep.dim for irrep in right[: right.index(path.right)])
    out[i : i + path.left.dim, j : j + path.right.dim] = coupling(path)
    return out.reshape(rows * columns, path.out.dim)
