"""Sums of messages over neighbours: the step in which NequIP-type networks spend most of their time.

Slots are laid out as [N, components, K, channels]. Values of a pair then multiply whole rows of slots and channels, and
the sum over components and slots is one matrix product per atom.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .scatter_free import gather_rows, sum_rows
from .table import Table


class Slots:
    """Maps atom features and the radial functions of pairs to neighbour slots.

    Args:
        table: Inputs of the network.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        # The same indices, computed differently. Otherwise common-subexpression elimination would reuse the results of
        # the forward pass instead of recomputing them in the backward pass, and keep these results in memory.
        back = table.reverse.view(-1)[table.reverse]
        self.neighbors_again = table.neighbors.view(-1)[back]
        self.pair = table.pair.unsqueeze(1)
        self.pair_again = table.pair.view(-1)[back].unsqueeze(1)
        first = table.pair_slot
        self.pair_places = torch.cat([x.unsqueeze(1) for x in (first, table.reverse.view(-1)[first])], dim=1)
        self._senders: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def senders(self, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices for `gather_rows` of senders' features with `dim` components, int64[N, dim, K] each.

        Returns:
            `index`, a copy of `index` that is computed differently, and `places`.
        """
        if dim not in self._senders:
            n, k = self.table.neighbors.shape
            device = self.table.neighbors.device
            component = torch.arange(dim, device=device).view(1, dim, 1)
            index, again = ((x * dim).unsqueeze(1) + component for x in (self.table.neighbors, self.neighbors_again))
            first = (torch.arange(n, device=device) * (dim * k)).unsqueeze(1) + torch.arange(k, device=device)
            places = first.view(-1)[self.table.reverse].unsqueeze(1) + component * k
            self._senders[dim] = index, again, places
        return self._senders[dim]

    def spread(self, x: Tensor, *, again: bool = False) -> Tensor:
        """Copy the values of each pair to its slots: float[P, c] to float[N, 1, K, c]."""
        return gather_rows(x, self.pair_again if again else self.pair, self.pair_places)

    def to_pairs(self, x: Tensor) -> Tensor:
        """Sum the two slots of each pair: float[..., c] with N * K rows to float[P, c]."""
        return sum_rows(x, self.pair, self.pair_places)

    @cached_property
    def directed(self) -> DirectedSlots:
        """The same slots, for functions that differ between the two directions of a pair."""
        return DirectedSlots(self.table)


class DirectedSlots(Slots):
    """Maps for functions of slots, in the place of functions of pairs."""

    def spread(self, x: Tensor, *, again: bool = False) -> Tensor:  # noqa: ARG002 - nothing is gathered twice
        """Arrange the values of slots: float[N * K, c] to float[N, 1, K, c]."""
        n, k = self.table.neighbors.shape
        return x.view(n, 1, k, x.shape[-1])

    def to_pairs(self, x: Tensor) -> Tensor:
        """Undo `spread`: float[N, 1, K, c] to float[N * K, c]."""
        return x.reshape(-1, x.shape[-1])


class _Messages(torch.autograd.Function):
    """Sums of messages over neighbours, for one irrep along all its paths.

    No slot-sized tensor is saved for the gradient: recomputing it is faster than writing it to memory and reading it
    back, and an evaluation needs a fraction of the memory.
    """

    @staticmethod
    def forward(ctx: Any, slots: Slots, x: Tensor, *operands: Tensor | None) -> tuple[Tensor, ...]:
        ctx.slots = slots
        ctx.save_for_backward(x, *operands)
        n, dim, channels = x.shape
        index, _, places = slots.senders(dim)
        sent = gather_rows(x, index, places)
        out = []
        for function, matrices in _pairwise(operands):
            messages = sent * slots.spread(function)
            out.append(messages.sum(2) if matrices is None else torch.bmm(matrices, messages.view(n, -1, channels)))
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *operands = ctx.saved_tensors
        slots = ctx.slots
        n, dim, channels = x.shape
        _, index, places = slots.senders(dim)
        sent = gather_rows(x, index, places)
        gradients: list[Tensor | None] = []
        total = None
        for grad, (function, matrices) in zip(grads, _pairwise(operands), strict=True):
            spread = slots.spread(function, again=True)
            if matrices is None:
                back, grad_matrices = grad.unsqueeze(2), None
            else:
                back = torch.bmm(matrices.transpose(1, 2), grad).view_as(sent)
                grad_matrices = torch.bmm(grad, (sent * spread).view(n, -1, channels).transpose(1, 2))
            gradients += [slots.to_pairs(_sum_components(back * sent)), grad_matrices]
            term = back * spread
            total = term if total is None else total + term
        if total is None or not ctx.needs_input_grad[1]:
            return None, None, *gradients
        return None, sum_rows(total, index, places), *gradients


def sum_messages(
    slots: Slots, x: Tensor, functions: Sequence[Tensor], matrices: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Sum the senders' features of one irrep over the slots of each atom, along several paths.

    Args:
        slots: Maps from atoms and pairs to slots.
        x: float[N, dim, channels], features of all atoms.
        functions: float[P, channels] for each path, factor of each channel; of `DirectedSlots`, [N * K, channels].
        matrices: float[N, dim out, dim * K] for each path, which multiply the components of all slots; None sums the
            slots and leaves the components unchanged.

    Returns:
        float[N, dim out, channels] for each path.
    """
    operands = [y for path in zip(functions, matrices, strict=True) for y in path]
    out: tuple[Tensor, ...] = _Messages.apply(slots, x, *operands)  # type: ignore[no-untyped-call]
    return out


def _sum_components(x: Tensor) -> Tensor:
    return x.sum(1, keepdim=True) if x.shape[1] > 1 else x


def _pairwise(operands: Sequence[Any]) -> list[tuple[Tensor, Tensor | None]]:
    return list(zip(operands[::2], operands[1::2], strict=True))
