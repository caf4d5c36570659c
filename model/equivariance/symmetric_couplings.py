"""Symmetric products of a feature with itself, coupled to irreps: a basis of all of them up to third order.

A coupling of the factors (a, b, c) to an irrep is a tensor T[M, i, j, k]; the product is the sum of T[M, i, j, k]
x_a[i] x_b[j] x_c[k], for each channel. Only the part of T that is symmetric under exchange of equal factors matters, so
different paths of Clebsch-Gordan coefficients can give the same product. The basis keeps only one of these paths
(Batatia et al., NeurIPS 2022, eq. 10, use all paths; Drautz, Phys. Rev. B 99, 014104 (2019)).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .irreps import Irrep, Path, coupling

# A coupling is new if the part of it that is not a combination of earlier ones exceeds this fraction of its norm.
# Couplings are exact up to float64 rounding, and the smallest fraction for a new coupling up to degree 4 is 0.04.
_NEW = 1e-3


@dataclass(frozen=True, slots=True)
class SymmetricCoupling:
    """One symmetric product of a feature.

    Attributes:
        factors: One to three irreps, in the order of the feature's irreps.
        out: Irrep of the product.
        tensor: float64[2 l_out + 1, 2 l + 1 of each factor].
    """

    factors: tuple[Irrep, ...]
    out: Irrep
    tensor: Tensor


def symmetric_couplings(irreps: Sequence[Irrep], out: Irrep, order: int) -> list[SymmetricCoupling]:
    """Return a basis of the symmetric products of `order` copies of a feature that have the irrep `out`.

    Args:
        irreps: Irreps of the feature; each irrep is listed only once.
        out: Irrep of the products.
        order: Number of factors of each product: 1, 2 or 3.
    """
    return list(_basis(tuple(irreps), out, order))


@lru_cache(maxsize=64)
def _basis(irreps: tuple[Irrep, ...], out: Irrep, order: int) -> list[SymmetricCoupling]:
    found = []
    for factors in itertools.combinations_with_replacement(irreps, order):
        basis: list[Tensor] = []
        for tensor in _paths(factors, out):
            symmetric = symmetrised(tensor, factors).flatten()
            rest = symmetric.clone()
            for _ in range(2):  # the second pass removes rounding errors of the first
                for one in basis:
                    rest = rest - (one @ rest) * one
            if rest.norm() > _NEW * tensor.norm():
                basis.append(rest / rest.norm())
                found.append(SymmetricCoupling(factors, out, tensor))
    return found


def _paths(factors: tuple[Irrep, ...], out: Irrep) -> Iterator[Tensor]:
    """Yield the coupling of each path: the last two factors first, then the first factor."""
    first, *others = factors
    if not others:
        if first == out:
            yield torch.eye(out.dim, dtype=torch.float64)
        return
    if len(others) == 1:
        if out in first * others[0]:
            yield coupling(Path(first, others[0], out)).permute(2, 0, 1)
        return
    second, third = others
    for between in second * third:
        if out in first * between:
            inner = coupling(Path(second, third, between))
            outer = coupling(Path(first, between, out))
            yield torch.tensordot(outer, inner, dims=([1], [2])).permute(1, 0, 2, 3)


def symmetrised(tensor: Tensor, factors: tuple[Irrep, ...]) -> Tensor:
    """Average couplings over all exchanges of equal factors.

    Args:
        tensor: float64[2 l_out + 1, 2 l + 1 of each factor, ...]; the result has the same shape.
        factors: Irreps of the factors.
    """
    exchanges, rest = _exchanges(factors), range(len(factors) + 1, tensor.dim())
    total = torch.zeros_like(tensor)
    for order in exchanges:
        total = total + tensor.permute(0, *(place + 1 for place in order), *rest)
    return total / len(exchanges)


@lru_cache(maxsize=1024)
def _exchanges(factors: tuple[Irrep, ...]) -> list[tuple[int, ...]]:
    """Return the permutations of the factors that leave the irrep at each place unchanged."""
    orders = itertools.permutations(range(len(factors)))
    return [
        order for order in orders if all(factors[place] == irrep for place, irrep in zip(order, factors, strict=True))
    ]
