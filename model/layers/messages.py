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

    Attributes:
        symmetric: Whether the two slots of a pair have the same radial functions.
    """

    symmetric = True

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
            `index`, the same indices computed in another way for the backward pass, and `places`.
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
        """Copy the values of each pair to its slots: float[P, c] to float[N, 1, K, c]; `again` in a backward pass."""
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

    symmetric = False

    def spread(self, x: Tensor, *, again: bool = False) -> Tensor:  # noqa: ARG002 - nothing is gathered twice
        """Arrange the values of slots: float[N * K, c] to float[N, 1, K, c]."""
        n, k = self.table.neighbors.shape
        return x.view(n, 1, k, x.shape[-1])

    def to_pairs(self, x: Tensor) -> Tensor:
        """Undo `spread`: float[N, 1, K, c] to float[N * K, c]."""
        return x.reshape(-1, x.shape[-1])


class _Messages(torch.autograd.Function):
    """Sums of messages over neighbours, for one irrep along all its paths.

    A path's part of the energy's gradient is a sum over pairs that treats the sender's features and the receiver's
    gradient alike, so either can be gathered to the other's slots if both slots of a pair have the same functions.
    Gathering the one with fewer components makes the products per slot smaller. See `_gathers_gradient`.

    No slot-sized tensor of the senders' features is saved for the gradient: recomputing it is faster than writing it to
    memory and reading it back, and an evaluation needs a fraction of the memory.
    """

    @staticmethod
    def forward(ctx: Any, slots: Slots, odd: Sequence[bool], x: Tensor, *operands: Tensor | None) -> tuple[Tensor, ...]:
        ctx.slots, ctx.odd = slots, odd
        ctx.save_for_backward(x, *operands)
        n, dim, channels = x.shape
        paths = _pairwise(operands)
        to_scalars = [matrices for _, matrices in paths if matrices is not None and matrices.shape[1] == 1]
        if slots.symmetric and dim > 1 and len(to_scalars) == len(paths):
            # Contract the components in the sender's slots, which leaves one to be moved.
            out = []
            for is_odd, to_scalar, (function, _) in zip(odd, to_scalars, paths, strict=True):
                messages = _contracted(to_scalar, _signed(x, odd=is_odd)) * slots.spread(function)
                out.append(messages.view(-1, channels)[slots.table.reverse].sum(1, keepdim=True))
            return tuple(out)
        index, _, places = slots.senders(dim)
        sent = gather_rows(x, index, places)
        out = []
        for function, matrices in paths:
            messages = sent * slots.spread(function)
            out.append(messages.sum(2) if matrices is None else torch.bmm(matrices, messages.view(n, -1, channels)))
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *operands = ctx.saved_tensors
        slots = ctx.slots
        dim, widest = x.shape[1], max(grad.shape[1] for grad in grads)
        _, index, places = slots.senders(dim)
        gradients: list[Tensor | None] = []
        in_slots: list[Tensor] = []
        of_atoms: list[Tensor] = []
        sent = None
        for grad, is_odd, (function, matrices) in zip(grads, ctx.odd, _pairwise(operands), strict=True):
            spread = slots.spread(function, again=True)
            if slots.symmetric and _gathers_gradient(dim, grad.shape[1], widest):
                *found, part = _gradients_of_sender(slots, x, grad, spread, matrices, odd=is_odd)
                of_atoms.append(part)
            else:
                sent = gather_rows(x, index, places) if sent is None else sent
                *found, part = _gradients_of_receiver(slots, sent, grad, spread, matrices)
                in_slots.append(part)
            gradients += found
        if not ctx.needs_input_grad[2]:
            return None, None, None, *gradients
        if in_slots:
            of_atoms.append(sum_rows(_total(in_slots), index, places))
        return None, None, _total(of_atoms), *gradients


def _gathers_gradient(dim: int, dim_out: int, widest: int) -> bool:
    """Whether the receiver's gradient is gathered to the sender's slots, instead of the features to the receiver's.

    This is the case if the gradient has fewer components, or equally many and no other path gathers the features.

    Args:
        dim: Number of components of the features.
        dim_out: Number of components of the path's gradient.
        widest: Largest number of components of a path's gradient.
    """
    return dim_out < dim or dim_out == dim == widest


def _gradients_of_receiver(
    slots: Slots, sent: Tensor, grad: Tensor, spread: Tensor, matrices: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Compute gradients of one path in the receiver's slots.

    Args:
        slots: Maps from atoms and pairs to slots.
        sent: float[N, dim, K, channels], features of the senders.
        grad: float[N, dim out, channels], gradient of the sums.
        spread: float[N, 1, K, channels], radial functions.
        matrices: float[N, dim out, dim * K] or None.

    Returns:
        Gradients of the radial functions of pairs, of the matrices, and of the sender's features in each slot,
        float[N, dim, K, channels].
    """
    if matrices is None:
        back, grad_matrices = grad.unsqueeze(2), None
    else:
        back = torch.bmm(matrices.transpose(1, 2), grad).view_as(sent)
        grad_matrices = torch.bmm(grad, (sent * spread).flatten(1, 2).transpose(1, 2))
    return slots.to_pairs(_sum_components(back * sent)), grad_matrices, back * spread


def _gradients_of_sender(
    slots: Slots, x: Tensor, grad: Tensor, spread: Tensor, matrices: Tensor | None, *, odd: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Compute gradients of one path in the sender's slots.

    A sender's slot has the matrices of the opposite edge up to a sign, so the gradient of the matrices is assigned to
    the slot of the opposite edge, whose vector is the same up to its sign.

    Args:
        slots: Maps from atoms and pairs to slots.
        x: float[N, dim, channels], features.
        grad: float[N, dim out, channels], gradient of the sums.
        spread: float[N, 1, K, channels], radial functions.
        matrices: float[N, dim out, dim * K] or None.
        odd: Whether the matrices change their sign with the vectors.

    Returns:
        Gradients of the radial functions of pairs, of the matrices, and of the features, float[N, dim, channels].
    """
    n, dim, channels = x.shape
    dim_out = grad.shape[1]
    index, _, places = slots.senders(dim_out)
    received = gather_rows(grad, index, places)
    scaled = received * spread
    if matrices is None:
        return slots.to_pairs(_sum_components(received * x.unsqueeze(2))), None, scaled.sum(2)
    signed, rows = _signed(x, odd=odd), scaled.view(n, -1, channels)
    by_component = _by_component(matrices, dim)
    messages = _contracted(matrices, signed)
    grad_matrices = torch.bmm(signed, rows.transpose(1, 2)).view(n, dim, dim_out, -1).transpose(1, 2)
    return (
        slots.to_pairs(_sum_components(messages * received)),
        grad_matrices.reshape(matrices.shape),
        _signed(torch.bmm(by_component, rows), odd=odd),
    )


def _by_component(matrices: Tensor, dim: int) -> Tensor:
    """Reorder float[N, dim out, dim * K] to float[N, dim, dim out * K]."""
    n, dim_out, _ = matrices.shape
    return matrices.view(n, dim_out, dim, -1).transpose(1, 2).reshape(n, dim, -1)


def _contracted(matrices: Tensor, x: Tensor) -> Tensor:
    """Multiply the features of each atom by the matrices of its own slots: float[N, dim out, K, channels]."""
    n, dim, channels = x.shape
    product = torch.bmm(_by_component(matrices, dim).transpose(1, 2), x)
    return product.view(n, matrices.shape[1], -1, channels)


def _signed(x: Tensor, *, odd: bool) -> Tensor:
    return -x if odd else x


def _total(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def sum_messages(
    slots: Slots, x: Tensor, functions: Sequence[Tensor], matrices: Sequence[Tensor | None], odd: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Sum the senders' features of one irrep over the slots of each atom, along several paths.

    Args:
        slots: Maps from atoms and pairs to slots.
        x: float[N, dim, channels], features of all atoms.
        functions: float[P, channels] for each path, factor of each channel; of `DirectedSlots`, [N * K, channels]. 0
            for padding.
        matrices: float[N, dim out, dim * K] for each path, which multiply the components of all slots; None sums the
            slots and leaves the components unchanged.
        odd: Whether the matrices of each path change their sign between the two slots of a pair, as those of odd
            harmonics do; otherwise they must be the same.

    Returns:
        float[N, dim out, channels] for each path.
    """
    operands = [y for path in zip(functions, matrices, strict=True) for y in path]
    out: tuple[Tensor, ...] = _Messages.apply(slots, tuple(odd), x, *operands)  # type: ignore[no-untyped-call]
    return out


def _sum_components(x: Tensor) -> Tensor:
    return x.sum(1, keepdim=True) if x.shape[1] > 1 else x


def _pairwise(operands: Sequence[Any]) -> list[tuple[Tensor, Tensor | None]]:
    return list(zip(operands[::2], operands[1::2], strict=True))
