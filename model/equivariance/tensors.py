"""Cartesian tensors as irreps, and the irreps that features of a given symmetry can have.

Under ``so3`` parity is not tracked: an irrep of degree l is written ``le`` regardless of its parity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from e3nn import io, o3
from e3nn.o3 import Irrep
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorKind:
    """A named kind of tensor.

    Attributes:
        formula: Indices and their permutation symmetry, in e3nn's notation.
        pseudo: Whether a mirror flips the sign in addition to the transformation of the indices.
        molecules_only: Whether the property is undefined for periodic structures.
    """

    formula: str
    pseudo: bool = False
    molecules_only: bool = False


TENSORS = {
    "scalar": TensorKind(""),
    "pseudoscalar": TensorKind("", pseudo=True),
    "vector": TensorKind("i"),
    "axial_vector": TensorKind("i", pseudo=True),
    "dipole": TensorKind("i", molecules_only=True),  # of a neutral molecule; the dipole of an ion depends on the origin
    "matrix": TensorKind("ij"),
    "symmetric": TensorKind("ij=ji"),
    "piezoelectric": TensorKind("ijk=ikj"),
    "elastic": TensorKind("ijkl=jikl=klij"),
}


@dataclass(frozen=True)
class TensorBasis:
    """A Cartesian tensor as irreps.

    Attributes:
        irreps: Irreps with their multiplicities.
        rank: Number of Cartesian indices; None for a head given as irreps.
        matrix: float64[3^rank, dim], maps irrep components to tensor components, with orthonormal columns; the identity
            for a head given as irreps.
    """

    irreps: tuple[tuple[int, Irrep], ...]
    rank: int | None
    matrix: Tensor

    @property
    def dim(self) -> int:
        """Number of components."""
        return sum(mul * ir.dim for mul, ir in self.irreps)


class TensorProperty(Protocol):
    """Interface to the settings of a property that determine how it transforms; see `model.config.head.HeadConfig`."""

    @property
    def tensor(self) -> str:
        """Kind of tensor, or an index formula."""
        ...

    @property
    def irreps(self) -> str | None:
        """Irreps of the property, instead of a tensor."""
        ...

    @property
    def pseudo(self) -> bool:
        """Whether a mirror flips the sign in addition to the transformation of the indices."""
        ...


def tensor_basis(head: TensorProperty) -> TensorBasis:
    """Decompose the tensor of a head into irreps with their true parity.

    Raises:
        ValueError: The kind of tensor, the formula or the irreps are invalid.
    """
    if head.irreps is not None:
        irreps = parsed(head.irreps)
        dim = sum(mul * ir.dim for mul, ir in irreps)
        return TensorBasis(irreps, None, torch.eye(dim, dtype=torch.float64))
    kind = TENSORS.get(head.tensor)
    if kind is None and not re.fullmatch(r"-?[ijkl]+(=-?[ijkl]+)*", head.tensor):
        raise ValueError(
            f"unknown tensor {head.tensor!r}; choose one of {', '.join(TENSORS)}, or a formula such as ij=ji"
        )
    formula, pseudo = (kind.formula, kind.pseudo ^ head.pseudo) if kind else (head.tensor, head.pseudo)
    return _cartesian(formula, pseudo)


@lru_cache(maxsize=64)
def _cartesian(formula: str, pseudo: bool) -> TensorBasis:
    rank = len(formula.split("=", maxsplit=1)[0].removeprefix("-"))
    sign = -1 if pseudo else 1
    if rank == 0:
        return TensorBasis(((1, Irrep(0, sign)),), 0, torch.eye(1, dtype=torch.float64))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # e3nn computes its change of basis in the default dtype
    try:
        tensor = io.CartesianTensor(formula)
        change = tensor.reduced_tensor_products().change_of_basis
    except Exception as error:  # a contradictory formula fails in many ways
        raise ValueError(f"{formula!r} is not a valid index formula; write it like ij=ji") from error
    finally:
        torch.set_default_dtype(before)
    irreps = tuple((mul, Irrep(ir.l, ir.p * sign)) for mul, ir in tensor)
    flat = change.reshape(change.shape[0], -1).T.contiguous()
    return TensorBasis(irreps, rank, flat)


def parsed(text: str) -> tuple[tuple[int, Irrep], ...]:
    """Parse irreps with their multiplicities.

    Raises:
        ValueError: The text is not in e3nn's notation, or contains no irreps.
    """
    try:
        irreps = tuple((mul, ir) for mul, ir in o3.Irreps(text) if mul)
    except Exception as error:
        raise ValueError(f"{text!r} are not valid irreps; write them like 32x0e + 16x1o + 8x2e") from error
    if not irreps:
        raise ValueError(f"{text!r} contains no irreps; write them like 32x0e + 16x1o + 8x2e")
    return irreps


def natural_irreps(l_max: int) -> list[Irrep]:
    """Return the irreps of the spherical harmonics with their parity: 0e, 1o, 2e, ..."""
    return [Irrep(degree, (-1) ** degree) for degree in range(l_max + 1)]


def harmonic_irreps(l_max: int, symmetry: str) -> list[Irrep]:
    """Return the irreps that represent the spherical harmonics in a network of the given symmetry."""
    return [carrier(ir, symmetry) for ir in natural_irreps(l_max)]


def all_irreps(l_max: int, symmetry: str) -> list[Irrep]:
    """Return all irreps up to a degree that features of the given symmetry may have."""
    if symmetry == "o3":
        return [Irrep(degree, parity) for degree in range(l_max + 1) for parity in (1, -1)]
    return harmonic_irreps(l_max, symmetry)


def carrier(irrep: Irrep, symmetry: str) -> Irrep:
    """Return the irrep of the feature that represents a quantity of the given irrep."""
    return Irrep(irrep.l, 1) if symmetry == "so3" else irrep


# Voigt components in ASE's order, as pairs of Cartesian indices.
VOIGT_PAIRS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def presentation(basis: TensorBasis, shape: tuple[int, ...]) -> Tensor:
    """Return the matrix that maps irrep components to a value of the given shape: float64[prod(shape), dim].

    Args:
        basis: Decomposition of the tensor into irreps.
        shape: Shape of one value. An axis of length 3 is one index; an axis of length 6 is a symmetric pair in Voigt
            notation without factors (stiffness and stress, not compliance or strain). A head given as irreps has one
            axis.

    Raises:
        ValueError: The tensor cannot have this shape.
    """
    if basis.rank is None:
        if shape != (basis.dim,):
            raise ValueError(f"irreps with {basis.dim} components need the shape ({basis.dim},), not {shape}")
        return basis.matrix
    spent = {3: 1, 6: 2}
    if any(size not in spent for size in shape) or sum(spent.get(size, 0) for size in shape) != basis.rank:
        raise ValueError(
            f"a tensor of rank {basis.rank} does not have shape {shape}: an axis of length 3 is one index, an axis of "
            "length 6 a symmetric pair of indices"
        )
    rows = torch.arange(3**basis.rank).reshape((3,) * basis.rank)
    for axis, size in enumerate(shape):
        if size == 6:
            first, second = (torch.tensor(index) for index in zip(*VOIGT_PAIRS, strict=True))
            front = rows.movedim((axis, axis + 1), (0, 1))
            rows = front[first, second].movedim(0, axis)
    matrix = basis.matrix[rows.reshape(-1)]
    if torch.linalg.matrix_rank(matrix) < basis.dim:
        raise ValueError(f"shape {shape} drops components of the tensor; use axes of length 3 only")
    return matrix


def default_shape(basis: TensorBasis) -> tuple[int, ...]:
    """Return the shape of a value with all Cartesian indices written out or, for a head given as irreps, ``(dim,)``."""
    return (basis.dim,) if basis.rank is None else (3,) * basis.rank
