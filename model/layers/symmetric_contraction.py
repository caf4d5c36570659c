"""Symmetric contraction: products of an atom's features with themselves, weighted by element and channel.

The sum is taken from Batatia et al., NeurIPS 2022 (MACE), eq. 10 and 11, over a basis of all different products
(`equivariance.symmetric_couplings`) instead of all paths.

The order of operations was chosen by the number of multiplications, which
tests/model/layers/test_symmetric_contraction.py counts. For each channel of an atom with features up to degree 3 and
products of three factors to 0e and 1o, these numbers are:

- the published order, weights times coupling matrices first, then one factor after another: 740,000;
- all 816 monomials of third order, then one matrix to all products: 37,000;
- all 136 monomials of second order, one matrix to the last two factors of each product, then the first: 20,000;
- the same, with a matrix for each pair of first and second factor, which leaves out most zeros: 7,600.

The last order is used. The first factor has the lowest degree, and so the fewest components.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..equivariance.irreps import Features, Irrep
from ..equivariance.symmetric_couplings import SymmetricCoupling, symmetric_couplings

MAX_CORRELATION = 3


class SymmetricContraction(nn.Module):
    """Weighted symmetric products of features, up to an order.

    Args:
        irreps_in: Irreps of the features, in ascending degree; all have the same number of channels.
        irreps_out: Irreps of the products.
        channels: Number of channels.
        correlation: Highest number of factors, from 1 to `MAX_CORRELATION`.
        n_elements: Number of elements.

    Attributes:
        couplings: The products, in the order of the weights.
        weights: float[n_elements, products, channels].
    """

    def __init__(
        self,
        irreps_in: Sequence[Irrep],
        irreps_out: Sequence[Irrep],
        channels: int,
        correlation: int,
        n_elements: int,
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out, self.correlation = list(irreps_in), list(irreps_out), correlation
        orders = range(2, correlation + 1)
        found = [one for out in irreps_out for order in orders for one in symmetric_couplings(irreps_in, out, order)]
        self.couplings = [one for out in irreps_out for one in symmetric_couplings(irreps_in, out, 1)]
        self.linear = [one.out for one in self.couplings]
        # For each second factor, the last factors that occur together with it.
        self.lasts = {
            second: [irrep for irrep in irreps_in if (second, irrep) in {one.factors[-2:] for one in found}]
            for second in irreps_in
        }
        self.blocks = nn.ModuleList()
        self.factors: list[tuple[Irrep | None, Irrep]] = []
        for first, second in dict.fromkeys((_first(one), one.factors[-2]) for one in found):
            some = [one for one in found if (_first(one), one.factors[-2]) == (first, second)]
            self.blocks.append(_Block(some, self.lasts[second]))
            self.factors.append((first, second))
            self.couplings += some
        self.weights = nn.Parameter(torch.randn(n_elements, len(self.couplings), channels))
        column = [place for place, one in enumerate(self.couplings) for _ in range(one.out.dim)]
        begins = {out: sum(other.dim for other in irreps_out[:place]) for place, out in enumerate(irreps_out)}
        rows = [begins[one.out] + m for one in self.couplings for m in range(one.out.dim)]
        total = torch.zeros(sum(out.dim for out in irreps_out), len(rows), dtype=torch.float64)
        total[rows, range(len(rows))] = 1.0
        self.column: Tensor
        self.total: Tensor
        self.register_buffer("column", torch.tensor(column), persistent=False)
        self.register_buffer("total", total, persistent=False)

    def forward(self, features: Features, species: Tensor) -> Features:
        """Compute the weighted sum of all products, float[N, 2 l + 1, channels] for each output irrep.

        Args:
            features: Features of all atoms.
            species: int64[N], index of each atom's element.
        """
        squares = {second: _outer(features, second, lasts) for second, lasts in self.lasts.items() if lasts}
        products = [features[irrep] for irrep in self.linear]
        for block, (first, second) in zip(self.blocks, self.factors, strict=True):
            products.append(block(squares[second], features[first] if first is not None else None))
        # Select elements first, so that the exported file stores one weight per product, not one per component.
        weights = self.weights[species].index_select(1, self.column)
        out = torch.matmul(self.total, torch.cat(products, dim=1) * weights)
        parts = torch.split(out, [irrep.dim for irrep in self.irreps_out], dim=1)
        return dict(zip(self.irreps_out, parts, strict=True))


class _Block(nn.Module):
    """Products with the same second factor and, if they have three factors, the same first factor.

    Args:
        couplings: The products, either all of three factors, or all of two factors, which count as the second and the
            last.
        lasts: Irreps of the last factors, in the order of the rows of `squares`.
    """

    def __init__(self, couplings: Sequence[SymmetricCoupling], lasts: Sequence[Irrep]) -> None:
        super().__init__()
        first = _first(couplings[0])
        self.depth = first.dim if first is not None else 1
        parts = []
        for one in couplings:
            second, last = one.factors[-2:]
            part = torch.zeros(one.out.dim * self.depth, second.dim, sum(ir.dim for ir in lasts), dtype=torch.float64)
            begin = sum(ir.dim for ir in lasts[: lasts.index(last)])
            part[..., begin : begin + last.dim] = one.tensor.reshape(-1, second.dim, last.dim)
            parts.append(part.flatten(1))
        self.matrix: Tensor
        self.register_buffer("matrix", torch.cat(parts), persistent=False)

    def forward(self, squares: Tensor, first: Tensor | None) -> Tensor:
        """Compute the products.

        Args:
            squares: float[N, rows, channels], products of the components of second and last factors.
            first: float[N, 2 l + 1, channels], the first factor; None for products of two factors.

        Returns:
            float[N, components of all products, channels].
        """
        pairs = torch.matmul(self.matrix, squares)
        if first is None:
            return pairs
        if self.depth == 1:
            return pairs * first
        n, rows, channels = pairs.shape
        return (pairs.view(n, rows // self.depth, self.depth, channels) * first.unsqueeze(1)).sum(2)


def _outer(features: Features, second: Irrep, lasts: Sequence[Irrep]) -> Tensor:
    """Multiply the components of one irrep with the components of others: float[N, rows, channels]."""
    left = features[second]
    right = torch.cat([features[irrep] for irrep in lasts], dim=1) if len(lasts) > 1 else features[lasts[0]]
    n, rows, channels = left.shape
    return (left.unsqueeze(2) * right.unsqueeze(1)).reshape(n, rows * right.shape[1], channels)


def _first(coupling: SymmetricCoupling) -> Irrep | None:
    return coupling.factors[0] if len(coupling.factors) == MAX_CORRELATION else None
