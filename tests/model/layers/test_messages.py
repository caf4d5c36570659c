"""Sums of messages, and their first and second derivatives, against the same sums written with plain indexing."""

from __future__ import annotations

import pytest
import torch
from equiscreen.model.data.batches import table_tensors
from equiscreen.model.equivariance.irreps import Irrep, SphericalHarmonics, coupling, product_paths
from equiscreen.model.layers.messages import Slots, sum_messages
from equiscreen.model.layers.table import Table
from equiscreen.model.networks.nequip import Couplings
from equiscreen.pipeline import GraphBlock
from equiscreen.pipeline.structures.random_crystals import probe_structures
from torch import Tensor

CUTOFF, CHANNELS = 4.0, 3
HARMONICS = [Irrep("0e"), Irrep("1o"), Irrep("2e")]


@pytest.fixture(scope="module")
def table() -> Table:
    block = GraphBlock.from_structures(probe_structures((6, 8, 29), 3, seed=3, cutoff=CUTOFF), CUTOFF)
    return Table(*table_tensors(block, CUTOFF, torch.float64))


@pytest.mark.parametrize("outputs", [["0e"], ["0e", "1o"], ["0e", "1o", "2e"]], ids=" ".join)
@pytest.mark.parametrize("left", ["0e", "1o", "2e"])
def test_messages_have_the_derivatives_of_indexing(table: Table, left: str, outputs: list[str]) -> None:
    paths = product_paths([Irrep(left)], HARMONICS, [Irrep(name) for name in outputs])
    slots, n_slots = Slots(table), table.neighbors.numel()
    torch.manual_seed(0)
    x = torch.randn(len(table.neighbors), Irrep(left).dim, CHANNELS, dtype=torch.float64, requires_grad=True)
    own = table.reverse == torch.arange(n_slots).view_as(table.reverse)
    assert own.any()  # padding
    inside = torch.ones(len(table.pair_slot), 1, dtype=torch.float64)
    inside[table.pair[own][0]] = 0
    radial = torch.randn(len(paths), len(inside), CHANNELS, dtype=torch.float64, requires_grad=True)
    # A pair has one vector: where a derivative is assigned to one of its two slots does not matter.
    ahead = torch.zeros(n_slots, 1, dtype=torch.float64).index_fill(0, table.pair_slot, 2) - 1
    vectors = table.vectors.view(-1, 3)[table.pair_slot].requires_grad_()

    def harmonics() -> Tensor:
        return SphericalHarmonics(2).double()(vectors[table.pair.view(-1)] * ahead)

    def lowered() -> list[Tensor]:
        matrices = Couplings(paths, 2).double()(harmonics(), table.neighbors.shape[1])
        odd = [path.right.l % 2 == 1 for path in paths]
        functions = [function * inside for function in radial]
        return list(sum_messages(slots, x, functions, [matrices.get(path) for path in paths], odd))

    def plain() -> list[Tensor]:
        parts = harmonics().view(*table.neighbors.shape, -1).split([1, 3, 5], dim=-1)
        degrees = dict(zip(HARMONICS, parts, strict=True))
        return [
            torch.einsum(
                "abo,nkac,nkb,nkc->noc",
                coupling(path),
                x[table.neighbors],
                degrees[path.right],
                function[table.pair],
            )
            for path, function in zip(paths, radial * inside, strict=True)
        ]

    def derivatives(sums: list[Tensor]) -> list[Tensor]:
        energy = sum((total**3).sum() for total in sums)
        first = torch.autograd.grad(energy, [x, radial, vectors], create_graph=True, materialize_grads=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), [x, radial, vectors], materialize_grads=True)
        return [*sums, *first, *second]

    for mine, expected in zip(derivatives(lowered()), derivatives(plain()), strict=True):
        assert torch.allclose(mine, expected, rtol=1e-10, atol=1e-10 * float(expected.detach().abs().max()))
