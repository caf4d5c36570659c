"""Checks that a network of a given symmetry can provide the irreps that its configuration requires."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from e3nn.o3 import Irrep
from torch import nn

from ..equivariance.tensors import TENSORS, TensorBasis, all_irreps, carrier, parsed, presentation, tensor_basis
from .head import HeadConfig


def hidden_irreps(symmetry: str, channels: int, l_max: int) -> str:
    """Return a preset's features: channels halve with each degree.

    Under ``o3``, each degree also has an irrep of the opposite parity, with a quarter of the channels but at least two.
    """
    parts = []
    for degree in range(l_max + 1):
        natural = Irrep(degree, (-1) ** degree)
        parts.append(f"{channels >> degree}x{carrier(natural, symmetry)}")
        if symmetry == "o3":
            parts.append(f"{max(2, channels >> (degree + 2))}x{Irrep(degree, -natural.p)}")
    return " + ".join(parts)


def check_network(symmetry: str, hidden: str, l_max: int, heads: Mapping[str, HeadConfig]) -> str:
    """Validate a network's irreps and heads, and return the hidden irreps in normal form.

    Raises:
        ValueError: The hidden irreps are invalid or do not exist in this symmetry, or the network cannot predict one of
            the heads.
    """
    irreps = [(mul, carrier(ir, symmetry)) for mul, ir in parsed(hidden)]
    kinds = [ir for _, ir in irreps]
    if len(set(kinds)) != len(kinds):
        raise ValueError(
            f"hidden_irreps {hidden}: list each irrep only once (`symmetry: so3` does not distinguish parities)"
        )
    if Irrep("0e") not in kinds:
        raise ValueError(f"hidden_irreps {hidden}: scalars (0e) are required; add them, as in 32x0e + 16x1o")
    wrong = [str(ir) for ir in kinds if ir not in all_irreps(ir.l, symmetry)]
    if wrong:
        raise ValueError(
            f"hidden_irreps: `symmetry: natural` has no {', '.join(wrong)}, only 0e, 1o, 2e, ...; use `symmetry: o3`"
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
            f"heads.{name}: a pseudotensor requires parity, which `symmetry: so3` does not track; use `symmetry: o3`"
        )
    lacking = [str(ir) for ir in irreps if symmetry == "natural" and ir.p != (-1) ** ir.l]
    if lacking:
        raise ValueError(f"heads.{name}: `symmetry: natural` has no {', '.join(lacking)}; use `symmetry: o3`")
    degree = max(ir.l for ir in irreps)
    if degree > l_max:
        raise ValueError(
            f"heads.{name} contains l = {degree}, which harmonics up to l_max = {l_max} cannot represent at sites of "
            f"high symmetry; set `l_max: {degree}` (at most 6)"
        )
    if head.transform == "log" and not (basis.rank == 0 or _is_symmetric_matrix(basis)):
        raise ValueError(f"heads.{name}: `transform: log` requires a positive scalar or a symmetric matrix; remove it")
    if head.transform == "log" and (head.extensive or head.pseudo or irreps[0].p < 0):
        raise ValueError(f"heads.{name}: `transform: log` requires a true (not pseudo), intensive tensor; remove it")
    if head.per == "atom" and head.extensive:
        raise ValueError(f"heads.{name}: `extensive` applies to properties of structures, not of atoms; remove it")


def _is_pseudo(head: HeadConfig, irreps: Iterable[Irrep]) -> bool:
    if head.irreps is not None:
        return any(ir.p != (-1) ** ir.l for ir in irreps)
    kind = TENSORS.get(head.tensor)
    return head.pseudo ^ (kind is not None and kind.pseudo)


def _is_symmetric_matrix(basis: TensorBasis) -> bool:
    return basis.rank == 2 and sorted(str(ir) for _, ir in basis.irreps) == ["0e", "2e"]


def is_reserved(name: str) -> bool:
    """Whether `torch.nn.ModuleDict` already has an attribute of this name."""
    return hasattr(nn.ModuleDict(), name)
