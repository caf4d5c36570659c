"""Exportable algebra of irreps: spherical harmonics, Clebsch-Gordan products and linear maps as matrix products.

A feature is a dictionary from irrep to a tensor ``[n, 2 l + 1, channels]``. Channels come last, so that constants over
components are small matrices and a linear map is one matrix product. Components are ordered and normalised as in e3nn
("component" normalisation: the components of a random feature have unit variance).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from e3nn import o3
from e3nn.o3 import Irrep as Irrep  # noqa: PLC0414 - re-exported
from torch import Tensor, nn

Features = dict[Irrep, Tensor]
SCALAR = Irrep("0e")


@dataclass(frozen=True, slots=True)
class Path:
    """A tensor-product path of irreps, ``left x right -> out``."""

    left: Irrep
    right: Irrep
    out: Irrep


def product_paths(left: Iterable[Irrep], right: Iterable[Irrep], out: Iterable[Irrep]) -> list[Path]:
    """Return all allowed paths that end in one of `out`, grouped by the left irrep."""
    rights, outs = list(right), list(out)
    return [Path(a, b, c) for a in left for b in rights for c in outs if c in a * b]


def coupling(path: Path) -> Tensor:
    """Return the Clebsch-Gordan coefficients of a path, normalised to preserve variance.

    Returns:
        float64[2 l + 1, 2 l + 1, 2 l + 1] for the left, right and resulting irrep.
    """
    matrix: Tensor = o3.wigner_3j(path.left.l, path.right.l, path.out.l, dtype=torch.float64)
    return matrix * math.sqrt(path.out.dim)


class SphericalHarmonics(nn.Module):
    """Spherical harmonics of unit vectors up to `l_max`, equal to e3nn's with "component" normalisation.

    Each degree is the highest coupling of the previous degree with the vector itself. No formula is written out, and no
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
            # At the pole only the middle component is non-zero: it is positive and equals the norm, sqrt(2 l + 1).
            matrix = matrix * math.sqrt(2 * degree + 1) / here[degree]
            before = torch.outer(before, pole).reshape(-1) @ matrix
            self.register_buffer(f"_raise_{degree}", matrix, persistent=False)

    def forward(self, unit_vectors: Tensor) -> Tensor:
        """Map float[n, 3] to float[n, (l_max + 1)^2], degrees in ascending order."""
        n = unit_vectors.shape[0]
        first = unit_vectors * math.sqrt(3.0)
        degrees = [torch.ones_like(unit_vectors.sum(-1, keepdim=True)), first]
        for degree in range(2, self.l_max + 1):
            outer = degrees[-1].unsqueeze(-1) * first.unsqueeze(-2)
            size = (2 * degree - 1) * 3
            degrees.append(outer.reshape(n, size) @ getattr(self, f"_raise_{degree}"))
        return torch.cat(degrees[: self.l_max + 1], dim=-1)


class IrrepsLinear(nn.Module):
    """Linear map of the channels of each irrep: the most general one that commutes with rotations and mirrors."""

    def __init__(self, channels_in: Mapping[Irrep, int], channels_out: Mapping[Irrep, int]) -> None:
        super().__init__()
        self.irreps = [irrep for irrep in channels_out if irrep in channels_in]
        self.weights = nn.ParameterDict(
            {str(irrep): nn.Parameter(torch.randn(channels_in[irrep], channels_out[irrep])) for irrep in self.irreps}
        )
        self._scales = {irrep: 1 / math.sqrt(channels_in[irrep]) for irrep in self.irreps}

    def forward(self, features: Features) -> Features:
        """Map the features of each irrep that input and output have in common."""
        out = {}
        for irrep in self.irreps:
            x = features[irrep]
            n, dim, channels = x.shape
            weight = self.weights[str(irrep)] * self._scales[irrep]
            out[irrep] = (x.reshape(n * dim, channels) @ weight).view(n, dim, weight.shape[1])
        return out


class ChannelwiseProduct(nn.Module):
    """Channel-wise Clebsch-Gordan products of two features, over all allowed paths.

    In the result, each irrep has the channels of all paths that end in it, side by side.

    Args:
        left: Irreps of the left feature.
        right: Irreps of the right feature.
        out: Irreps to keep.
        channels: Number of channels of every irrep, on both sides.
        square: Whether both sides are the same feature; if so, products that vanish or differ only in order are
            skipped.
    """

    def __init__(
        self,
        left: Sequence[Irrep],
        right: Sequence[Irrep],
        out: Sequence[Irrep],
        channels: int,
        *,
        square: bool = False,
    ) -> None:
        super().__init__()
        self.left, self.right = list(left), list(right)
        paths = product_paths(left, right, out)
        if square:
            paths = [path for path in paths if _is_distinct_in_square(path, self.right)]
        self.blocks = nn.ModuleList(_Block(lefts, rights, some) for lefts, rights, some in _blocks(paths))
        self.channels_out: dict[Irrep, int] = {}
        for path in paths:
            self.channels_out[path.out] = self.channels_out.get(path.out, 0) + channels

    @property
    def paths(self) -> list[Path]:
        """Paths, in the order of the channels of each irrep."""
        return [path for block in self.blocks for path in block.paths]  # type: ignore[union-attr]

    def forward(self, left: Features, right: Features) -> Features:
        """Multiply two features."""
        grouped: dict[Irrep, list[Tensor]] = {}
        for block in self.blocks:
            for irrep, piece in block(left, right).items():
                grouped.setdefault(irrep, []).append(piece)
        return {irrep: torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0] for irrep, pieces in grouped.items()}


class _Block(nn.Module):
    """Products of left irreps that share the same right irreps.

    Args:
        left: Irreps of the left side.
        right: Irreps of the right side.
        paths: Paths to compute; if each is the scalar product of an irrep with itself, only equal components are
            multiplied.
    """

    def __init__(self, left: Sequence[Irrep], right: Sequence[Irrep], paths: Sequence[Path]) -> None:
        super().__init__()
        self.left, self.right, self.paths = list(left), list(right), list(paths)
        self.diagonal = self.left == self.right and _are_scalar_products(paths)
        columns = torch.cat([_embedded(path, self.left, self.right) for path in self.paths], dim=-1)
        if self.diagonal:
            columns = columns.diagonal(dim1=0, dim2=1).T
        self.coupling: Tensor
        self.register_buffer("coupling", columns.reshape(-1, columns.shape[-1]).T.contiguous(), persistent=False)

    def forward(self, left: Features, right: Features) -> Features:
        """Multiply two features."""
        a, b = _stacked(left, self.left), _stacked(right, self.right)
        if self.diagonal:
            products = a * b
        else:
            n, rows, channels = a.shape
            products = (a.unsqueeze(2) * b.unsqueeze(1)).reshape(n, rows * b.shape[1], channels)
        return split_paths(torch.matmul(self.coupling, products), self.paths)


def _stacked(features: Features, irreps: Sequence[Irrep]) -> Tensor:
    return torch.cat([features[irrep] for irrep in irreps], dim=1) if len(irreps) > 1 else features[irreps[0]]


def _are_scalar_products(paths: Sequence[Path]) -> bool:
    """Whether every path is the scalar product of an irrep with itself."""
    return all(path.left == path.right and path.out.l == 0 for path in paths)


def _is_distinct_in_square(path: Path, order: Sequence[Irrep]) -> bool:
    """Whether the square of a feature has this product, and no earlier path yields the same product."""
    if path.left == path.right:
        return bool(path.out.l % 2 == 0)  # products with odd l are antisymmetric, so they vanish
    return order.index(path.left) < order.index(path.right)


def _blocks(paths: Sequence[Path]) -> list[tuple[list[Irrep], list[Irrep], list[Path]]]:
    """Group paths into blocks (left irreps, right irreps, paths) of left irreps that have the same partners.

    If all paths are scalar products of an irrep with itself, they form one block.
    """
    if _are_scalar_products(paths):
        irreps = [path.left for path in paths]
        return [(irreps, irreps, list(paths))]
    partners: dict[Irrep, tuple[Irrep, ...]] = {}
    for path in paths:
        known = partners.get(path.left, ())
        partners[path.left] = known if path.right in known else (*known, path.right)
    return [
        (
            [left for left, some in partners.items() if some == rights],
            list(rights),
            [path for path in paths if partners[path.left] == rights],
        )
        for rights in dict.fromkeys(partners.values())
    ]


def split_paths(stacked: Tensor, paths: Sequence[Path]) -> Features:
    """Split ``[n, sum of path dims, channels]`` by irrep; paths of one irrep are concatenated along the channels."""
    pieces = torch.split(stacked, [path.out.dim for path in paths], dim=1)
    grouped: dict[Irrep, list[Tensor]] = {}
    for path, piece in zip(paths, pieces, strict=True):
        grouped.setdefault(path.out, []).append(piece)
    return {irrep: torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0] for irrep, parts in grouped.items()}


def _embedded(path: Path, left: Sequence[Irrep], right: Sequence[Irrep]) -> Tensor:
    """Return the coupling of a path, embedded in all components of both sides: float64[left, right, path.out.dim]."""
    out = torch.zeros(sum(ir.dim for ir in left), sum(ir.dim for ir in right), path.out.dim, dtype=torch.float64)
    i = sum(irrep.dim for irrep in left[: left.index(path.left)])
    j = sum(irrep.dim for irrep in right[: right.index(path.right)])
    out[i : i + path.left.dim, j : j + path.right.dim] = coupling(path)
    return out
