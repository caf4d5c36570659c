"""The symmetric contraction computes its couplings, needs as few operations as it says, and has no product twice."""

from __future__ import annotations

import math
import re

import pytest
import torch
from equiscreen.model.equivariance.irreps import Irrep, SphericalHarmonics
from equiscreen.model.equivariance.symmetric_couplings import symmetric_couplings, symmetrised
from equiscreen.model.equivariance.tensors import all_irreps, natural_irreps
from equiscreen.model.layers import symmetric_contraction
from equiscreen.model.layers.symmetric_contraction import SymmetricContraction

SCALAR, VECTOR = Irrep("0e"), Irrep("1o")


def characters(irreps: list[Irrep], out: Irrep, order: int) -> int:
    """Number of independent symmetric products, from the characters of rotations by an angle and of the inversion.

    The sum over the group is exact for a grid of angles, since characters are trigonometric polynomials.
    """
    count, total = 200, 0.0
    for parity in (1, -1):
        for place in range(count):
            angle = 2 * math.pi * (place + 0.5) / count

            def trace(multiple: int, angle: float = angle, parity: int = parity) -> float:
                return sum(
                    (ir.p if parity < 0 and multiple % 2 else 1)
                    * sum(math.cos(m * multiple * angle) for m in range(-ir.l, ir.l + 1))
                    for ir in irreps
                )

            powers = {
                1: trace(1),
                2: (trace(1) ** 2 + trace(2)) / 2,
                3: (trace(1) ** 3 + 3 * trace(1) * trace(2) + 2 * trace(3)) / 6,
            }
            own = (out.p if parity < 0 else 1) * sum(math.cos(m * angle) for m in range(-out.l, out.l + 1))
            total += powers[order] * own * (1 - math.cos(angle)) / (2 * count)
    return round(total)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("out", ["0e", "1o", "2e", "1e", "0o"])
def test_there_are_as_many_couplings_as_representation_theory_says(order: int, out: str) -> None:
    for irreps in (natural_irreps(2), all_irreps(1, "o3")):
        assert len(symmetric_couplings(irreps, Irrep(out), order)) == characters(irreps, Irrep(out), order)


def test_the_sum_is_that_of_the_couplings() -> None:
    torch.manual_seed(2)
    irreps, channels, atoms = natural_irreps(2), 3, 4
    contraction = SymmetricContraction(irreps, [SCALAR, VECTOR], channels, 3, 2).double()
    features = {ir: torch.randn(atoms, ir.dim, channels, dtype=torch.float64) for ir in irreps}
    species = torch.tensor([0, 1, 1, 0])
    found = contraction(features, species)
    expected = {ir: torch.zeros(atoms, ir.dim, channels, dtype=torch.float64) for ir in (SCALAR, VECTOR)}
    for place, one in enumerate(contraction.couplings):
        letters = "ijk"[: len(one.factors)]
        equation = f"M{letters},{','.join(f'n{x}c' for x in letters)},nc->nMc"
        weights = contraction.weights[species, place]
        for tensor in (one.tensor, symmetrised(one.tensor, one.factors)):
            product = torch.einsum(equation, tensor, *(features[ir] for ir in one.factors), weights)
            expected[one.out] = expected[one.out] + product / 2
    assert all(torch.allclose(found[ir], expected[ir], atol=1e-12) for ir in expected)


def test_products_turn_with_the_features() -> None:
    torch.manual_seed(2)
    irreps, harmonics = natural_irreps(3), SphericalHarmonics(3).double()
    contraction = SymmetricContraction(irreps, [SCALAR, VECTOR], 1, 3, 1).double()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    vectors = torch.nn.functional.normalize(torch.randn(1, 5, 3, dtype=torch.float64), dim=-1)
    results = []
    for some in (vectors, vectors @ turn.T):
        summed = harmonics(some.reshape(-1, 3)).view(1, 5, -1).sum(1)
        parts = torch.split(summed.unsqueeze(-1), [ir.dim for ir in irreps], dim=1)
        results.append(contraction(dict(zip(irreps, parts, strict=True)), torch.tensor([0])))
    before, after = results
    assert torch.allclose(before[SCALAR], after[SCALAR], atol=1e-10)
    # Components of l = 1 are those of the vector itself, in the order of e3nn.
    first = harmonics(torch.eye(3, dtype=torch.float64))[:, 1:4] / math.sqrt(3)
    cartesian = [x[VECTOR].squeeze(-1) @ first.T for x in (before, after)]
    assert torch.allclose(cartesian[0] @ turn.T, cartesian[1], atol=1e-10)


def test_the_numbers_of_operations_are_those_that_the_module_states() -> None:
    irreps, outs, size = natural_irreps(3), [SCALAR, VECTOR], 16
    couplings = SymmetricContraction(irreps, outs, 1, 3, 1)
    paths = {out: sum(out in mid * c for a in irreps for b in irreps for mid in a * b for c in irreps) for out in outs}
    cubic = [one for one in couplings.couplings if len(one.factors) == 3]
    columns = sum(one.out.dim * one.factors[0].dim for one in cubic)
    quadratic = sum(one.out.dim for one in couplings.couplings if len(one.factors) == 2)
    monomials, pairs = math.comb(size + 2, 3), math.comb(size + 1, 2)
    counts = [
        sum(out.dim * (size**3 * (paths[out] + 1) + size**2) for out in outs),
        monomials * (1 + sum(one.out.dim for one in cubic)),
        pairs * (1 + columns + quadratic) + columns,
        sum(block.matrix.numel() for block in couplings.blocks) + columns,
    ]
    lines = [line for line in str(symmetric_contraction.__doc__).splitlines() if line.startswith("- ")]
    text = " ".join(str(symmetric_contraction.__doc__).split("- ", 1)[1].split())
    stated = [int(number.replace(",", "")) for number in re.findall(r": ([\d,]+)[;.]", text)]
    assert len(stated) == len(lines) == 4
    for count, number in zip(counts, stated, strict=True):
        assert number == pytest.approx(count, rel=0.03)
