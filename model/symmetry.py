"""Which irreps a network of some symmetry has, and which heads it can carry.

Under ``so3`` parity is not tracked: an irrep of degree l is written ``le``, whatever its parity is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from e3nn import io, o3
from e3nn.o3 import Irrep
from torch import Tensor, nn

if TYPE_CHECKING:
    from .config import HeadConfig

LETTERS = "ijkl"


@dataclass(frozen=True, slots=True)
class TensorKind:
    """A kind of tensor that has a name.

    Attributes:
        formula: Its indices and their symmetry, in e3nn's notation.
        pseudo: Whether a mirror changes its sign beyond what its indices do.
        molecules_only: Whether periodic structures have none.
    """

    formula: str
    pseudo: bool = False
    molecules_only: bool = False


TENSORS = {
    "scalar": TensorKind(""),
    "pseudoscalar": TensorKind("", pseudo=True),
    "vector": TensorKind("i"),
    "axial_vector": TensorKind("i", pseudo=True),
    "dipole": TensorKind("i", molecules_only=True),  # of a charged molecule it would depend on the origin
    "matrix": TensorKind("ij"),
    "symmetric": TensorKind("ij=ji"),
    "piezoelectric": TensorKind("ijk=ikj"),
    "elastic": TensorKind("ijkl=jikl=klij"),
}


@dataclass(frozen=True)
class TensorBasis:
    """A Cartesian tensor as irreps.

    Attributes:
        irreps: With multiplicity.
        rank: Number of Cartesian indices; None for irreps that were given as such.
        matrix: float64[3^rank, dim], from components of the irreps to those of the tensor; its columns are orthonormal.
    """

    irreps: tuple[tuple[int, Irrep], ...]
    rank: int | None
    matrix: Tensor

    @property
    def dim(self) -> int:
        """Number of components."""
        return sum(mul * ir.dim for mul, ir in self.irreps)


def tensor_basis(head: HeadConfig) -> TensorBasis:
    """The irreps of a head, with their true parity.

    Raises:
        ValueError: No such kind, formula or irreps.
    """
    if head.irreps is not None:
        irreps = parsed(head.irreps)
        dim = sum(mul * ir.dim for mul, ir in irreps)
        return TensorBasis(irreps, None, torch.eye(dim, dtype=torch.float64))
    kind = TENSORS.get(head.tensor)
    if kind is None and not re.fullmatch(r"-?[ijkl]+(=-?[ijkl]+)*", head.tensor):
        raise ValueError(f"{head.tensor!r} is no tensor; known are {', '.join(TENSORS)}, and formulas like ij=ji")
    formula, pseudo = (kind.formula, kind.pseudo ^ head.pseudo) if kind else (head.tensor, head.pseudo)
    return _cartesian(formula, pseudo)


@lru_cache(maxsize=64)
def _cartesian(formula: str, pseudo: bool) -> TensorBasis:
    rank = len(formula.split("=", maxsplit=1)[0].removeprefix("-"))
    sign = -1 if pseudo else 1
    if rank == 0:
        return TensorBasis(((1, Irrep(0, sign)),), 0, torch.eye(1, dtype=torch.float64))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # e3nn makes its change of basis in the default dtype
    try:
        tensor = io.CartesianTensor(formula)
        change = tensor.reduced_tensor_products().change_of_basis
    except Exception as error:  # a formula that contradicts itself fails in many ways
        raise ValueError(f"{formula!r} is no formula of indices") from error
    finally:
        torch.set_default_dtype(before)
    irreps = tuple((mul, Irrep(ir.l, ir.p * sign)) for mul, ir in tensor)
    flat = change.reshape(change.shape[0], -1).T.contiguous()
    return TensorBasis(irreps, rank, flat)


def parsed(text: str) -> tuple[tuple[int, Irrep], ...]:
    """Irreps with their multiplicities.

    Raises:
        ValueError: Not in e3nn's notation, or none.
    """
    try:
        irreps = tuple((mul, ir) for mul, ir in o3.Irreps(text) if mul)
    except Exception as error:
        raise ValueError(f"{text!r} are no irreps; write them as 32x0e + 16x1o + 8x2e") from error
    if not irreps:
        raise ValueError(f"{text!r} holds no irreps")
    return irreps


def natural_irreps(l_max: int) -> list[Irrep]:
    """The irreps of spherical harmonics with their parity, 0e, 1o, 2e, ..."""
    return [Irrep(degree, (-1) ** degree) for degree in range(l_max + 1)]


def harmonic_irreps(l_max: int, symmetry: str) -> list[Irrep]:
    """The irreps that a network of some symmetry takes spherical harmonics for."""
    return [carrier(ir, symmetry) for ir in natural_irreps(l_max)]


def all_irreps(l_max: int, symmetry: str) -> list[Irrep]:
    """All irreps up to a degree that features of some symmetry may have."""
    if symmetry == "o3":
        return [Irrep(degree, parity) for degree in range(l_max + 1) for parity in (1, -1)]
    return harmonic_irreps(l_max, symmetry)


def carrier(irrep: Irrep, symmetry: str) -> Irrep:
    """The feature that carries a quantity."""
    return Irrep(irrep.l, 1) if symmetry == "so3" else irrep


def hidden_irreps(symmetry: str, channels: int, l_max: int) -> str:
    """Features of a preset: half as many channels for each next degree, and half of that for the other parity."""
    parts = []
    for degree in range(l_max + 1):
        natural = Irrep(degree, (-1) ** degree)
        parts.append(f"{channels >> degree}x{carrier(natural, symmetry)}")
        if symmetry == "o3":
            parts.append(f"{max(2, channels >> (degree + 2))}x{Irrep(degree, -natural.p)}")
    return " + ".join(parts)


def check_network(symmetry: str, hidden: str, l_max: int, heads: Mapping[str, HeadConfig]) -> str:
    """Hidden irreps in normal form.

    Raises:
        ValueError: What a network of this symmetry does not have, or a head that it cannot carry.
    """
    irreps = [(mul, carrier(ir, symmetry)) for mul, ir in parsed(hidden)]
    kinds = [ir for _, ir in irreps]
    if len(set(kinds)) != len(kinds):
        raise ValueError(f"hidden_irreps {hidden}: each irrep once, please")
    if Irrep("0e") not in kinds:
        raise ValueError(f"hidden_irreps {hidden}: needs scalars (0e), since the energy is one")
    wrong = [str(ir) for ir in kinds if ir not in all_irreps(ir.l, symmetry)]
    if wrong:
        raise ValueError(
            f"hidden_irreps: `symmetry: natural` has no {', '.join(wrong)}, only 0e, 1o, 2e, ...; say `symmetry: o3`"
        )
    for name, head in heads.items():
        _check_head(name, head, symmetry, l_max)
    return " + ".join(f"{mul}x{ir}" for mul, ir in irreps)


def _check_head(name: str, head: HeadConfig, symmetry: str, l_max: int) -> None:
    try:
        basis = tensor_basis(head)
        if head.shape is not None:
            presentation(basis, head.shape)
    except ValueError as error:
        raise ValueError(f"heads.{name}: {error}") from error
    irreps = [ir for _, ir in basis.irreps]
    if symmetry == "so3" and _is_pseudo(head, irreps):
        raise ValueError(
            f"heads.{name}: a pseudotensor changes its sign under a mirror, which `symmetry: so3` does not know; "
            "say `symmetry: o3`"
        )
    lacking = [str(ir) for ir in irreps if symmetry == "natural" and ir.p != (-1) ** ir.l]
    if lacking:
        raise ValueError(f"heads.{name}: `symmetry: natural` has no {', '.join(lacking)}; say `symmetry: o3`")
    degree = max(ir.l for ir in irreps)
    if degree > l_max:
        raise ValueError(
            f"heads.{name}: holds l = {degree}, which harmonics up to l_max = {l_max} give at no cubic site and "
            f"products of theirs seldom; say `l_max: {degree}`"
        )
    if head.transform == "log" and not (basis.rank == 0 or _is_symmetric_matrix(basis)):
        raise ValueError(f"heads.{name}: a logarithm have only positive scalars and symmetric matrices")
    if head.transform == "log" and (head.extensive or head.pseudo or irreps[0].p < 0):
        raise ValueError(f"heads.{name}: what has a logarithm is a true tensor and intensive")
    if head.per == "atom" and head.extensive:
        raise ValueError(f"heads.{name}: `extensive` is said of structures, not of atoms")


def _is_pseudo(head: HeadConfig, irreps: Iterable[Irrep]) -> bool:
    if head.irreps is not None:
        return any(ir.p != (-1) ** ir.l for ir in irreps)
    kind = TENSORS.get(head.tensor)
    return head.pseudo ^ (kind is not None and kind.pseudo)


def _is_symmetric_matrix(basis: TensorBasis) -> bool:
    return basis.rank == 2 and sorted(str(ir) for _, ir in basis.irreps) == ["0e", "2e"]


# ASE's order of Voigt components, as pairs of Cartesian indices.
VOIGT_PAIRS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def presentation(basis: TensorBasis, shape: tuple[int, ...]) -> Tensor:
    """How a tensor is written in a shape: float64[prod(shape), dim], from components of its irreps.

    Args:
        basis: The tensor.
        shape: Of one value. An axis of 3 is one index, an axis of 6 two that are symmetric, in Voigt's notation without
            factors (stiffness and stress, not compliance or strain); irreps that were given as such have one axis.

    Raises:
        ValueError: The tensor has no such shape.
    """
    if basis.rank is None:
        if shape != (basis.dim,):
            raise ValueError(f"irreps of {basis.dim} components do not have the shape {shape}")
        return basis.matrix
    spent = {3: 1, 6: 2}
    if any(size not in spent for size in shape) or sum(spent.get(size, 0) for size in shape) != basis.rank:
        raise ValueError(f"a tensor with {basis.rank} indices does not have the shape {shape}")
    rows = torch.arange(3**basis.rank).reshape((3,) * basis.rank)
    for axis, size in enumerate(shape):
        if size == 6:
            first, second = (torch.tensor(index) for index in zip(*VOIGT_PAIRS, strict=True))
            front = rows.movedim((axis, axis + 1), (0, 1))
            rows = front[first, second].movedim(0, axis)
    matrix = basis.matrix[rows.reshape(-1)]
    if torch.linalg.matrix_rank(matrix) < basis.dim:
        raise ValueError(f"the shape {shape} leaves out components of the tensor")
    return matrix


def default_shape(basis: TensorBasis) -> tuple[int, ...]:
    """All Cartesian indices, or the components of irreps."""
    return (basis.dim,) if basis.rank is None else (3,) * basis.rank


def is_reserved(name: str) -> bool:
    """Whether PyTorch's dictionaries of modules have something else of a name."""
    return hasattr(nn.ModuleDict(), name)
