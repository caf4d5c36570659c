"""Checks of a network configuration against the irreps it asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from e3nn.o3 import Irrep
from torch import nn

from ..equivariance.tensors import TENSORS, TensorBasis, all_irreps, carrier, parsed, presentation, tensor_basis
from .head import HeadConfig


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


def is_reserved(name: str) -> bool:
    """Whether PyTorch's dictionaries of modules have something else of a name."""
    return hasattr(nn.ModuleDict(), name)
