"""Gathering along a neighbour table, with gradients that are gathers again.

The gradient of an indexing is a scatter. On a symmetric neighbour table it need not be: the slots that read atom j are
the opposites of the slots of atom j, so its gradient is read through ``reverse`` and summed over the slots. This keeps
scatters out of the exported graph, where ONNX Runtime 1.32 adds wrongly in ScatterND when indices repeat and several
threads work, and is faster in training too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    """Rows of `x` by `index`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(index, places)
        ctx.shape = x.shape
        return x.reshape(-1, x.shape[-1])[index]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return sum_rows(grads[0], *ctx.saved_tensors).view(ctx.shape), None, None


class _SumRows(torch.autograd.Function):
    """The sums that are the gradient of `_GatherRows`, and whose gradient it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(index, places)
        ctx.shape = x.shape
        rows = x.reshape(-1, x.shape[-1])
        if places.shape[-1] == 2:  # many sums of two are slow
            one, other = torch.split(places, [1, 1], dim=-1)
            return rows[one.squeeze(-1)] + rows[other.squeeze(-1)]
        return rows[places].sum(-2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return gather_rows(grads[0], *ctx.saved_tensors).view(ctx.shape), None, None


def gather_rows(x: Tensor, index: Tensor, places: Tensor) -> Tensor:
    """Rows of `x`, float[..., c], by their number: float[*index.shape, c].

    Args:
        x: Its rows are counted over all axes but the last.
        index: int64[...].
        places: int64[..., m]: where, in the flat `index`, each row of `x` is read; every row equally often.
    """
    out: Tensor = _GatherRows.apply(x, index, places)  # type: ignore[no-untyped-call]
    return out


def sum_rows(x: Tensor, index: Tensor, places: Tensor) -> Tensor:
    """Sum what `gather_rows` spread: float[*places.shape[:-1], c] from float[*index.shape, c]; arguments as there."""
    out: Tensor = _SumRows.apply(x, index, places)  # type: ignore[no-untyped-call]
    return out


class _PermuteSlots(torch.autograd.Function):
    """``x[:, reverse]``. Opposites of opposites are themselves, so it is its own gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reverse: Tensor) -> Tensor:
        ctx.save_for_backward(reverse)
        return x.index_select(1, reverse.reshape(-1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (reverse,) = ctx.saved_tensors
        return permute_slots(grads[0], reverse), None


class _GatherSenders(torch.autograd.Function):
    """``x[:, neighbors]``, from atoms to slots."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, neighbors: Tensor, reverse: Tensor) -> Tensor:
        ctx.save_for_backward(reverse)
        return x.index_select(1, neighbors.reshape(-1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (reverse,) = ctx.saved_tensors
        groups, _, channels = grads[0].shape
        n, k = reverse.shape
        return permute_slots(grads[0], reverse).view(groups, n, k, channels).sum(2), None, None


def permute_slots(x: Tensor, reverse: Tensor) -> Tensor:
    """Give each slot what stands in the slot of the opposite edge: float[G, N * K, c] by int64[N, K]."""
    out: Tensor = _PermuteSlots.apply(x, reverse)  # type: ignore[no-untyped-call]
    return out


def gather_senders(x: Tensor, neighbors: Tensor, reverse: Tensor) -> Tensor:
    """Give each slot the features of its sending atom: float[G, N * K, c] from float[G, N, c]."""
    out: Tensor = _GatherSenders.apply(x, neighbors, reverse)  # type: ignore[no-untyped-call]
    return out
