"""Gathers along a neighbour table whose gradients are gathers again.

The gradient of indexing is a scatter. On a symmetric neighbour table, it can be a gather instead: the slots that read
atom j are the opposites of the slots of atom j, so the gradient is gathered through ``reverse`` and summed over the
slots. This keeps scatters out of the exported graph, where ScatterND of ONNX Runtime 1.32 gives wrong sums when indices
repeat and several threads run. It also makes training faster.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    """Gathers rows of `x` by `index`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(index, places)
        ctx.shape = x.shape
        return x.reshape(-1, x.shape[-1])[index]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return sum_rows(grads[0], *ctx.saved_tensors).view(ctx.shape), None, None


class _SumRows(torch.autograd.Function):
    """Sums rows: the gradient of `_GatherRows`, which in turn is the gradient of this function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(index, places)
        ctx.shape = x.shape
        rows = x.reshape(-1, x.shape[-1])
        if places.shape[-1] == 2:  # sum() over an axis of length 2 is slow
            one, other = torch.split(places, [1, 1], dim=-1)
            return rows[one.squeeze(-1)] + rows[other.squeeze(-1)]
        return rows[places].sum(-2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return gather_rows(grads[0], *ctx.saved_tensors).view(ctx.shape), None, None


def gather_rows(x: Tensor, index: Tensor, places: Tensor) -> Tensor:
    """Gather rows of `x` by number: float[*index.shape, c].

    Args:
        x: float[..., c]; rows are numbered over all axes but the last.
        index: int64[...], row numbers.
        places: int64[..., m], positions in the flattened `index` at which each row of `x` is read; every row is read
            equally often.
    """
    out: Tensor = _GatherRows.apply(x, index, places)  # type: ignore[no-untyped-call]
    return out


def sum_rows(x: Tensor, index: Tensor, places: Tensor) -> Tensor:
    """Sum the copies that `gather_rows` makes of each row: float[*index.shape, c] to float[*places.shape[:-1], c].

    Args:
        x: float[*index.shape, c].
        index: As in `gather_rows`.
        places: As in `gather_rows`.
    """
    out: Tensor = _SumRows.apply(x, index, places)  # type: ignore[no-untyped-call]
    return out


class _PermuteSlots(torch.autograd.Function):
    """Reorders slots: ``x[:, reverse]``. Reversing twice is the identity, so the function is its own gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reverse: Tensor) -> Tensor:
        ctx.save_for_backward(reverse)
        return x.index_select(1, reverse.reshape(-1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (reverse,) = ctx.saved_tensors
        return permute_slots(grads[0], reverse), None


class _GatherSenders(torch.autograd.Function):
    """Gathers the features of each slot's sender: ``x[:, neighbors.reshape(-1)]``."""

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
    """Copy to each slot the value of the opposite edge's slot.

    Args:
        x: float[groups, N * K, c]; the result has the same shape.
        reverse: int64[N, K], slot of the opposite edge.
    """
    out: Tensor = _PermuteSlots.apply(x, reverse)  # type: ignore[no-untyped-call]
    return out


def gather_senders(x: Tensor, neighbors: Tensor, reverse: Tensor) -> Tensor:
    """Copy to each slot the features of its sender: float[groups, N, c] to float[groups, N * K, c].

    Args:
        x: Features of all atoms.
        neighbors: int64[N, K], sender of each slot.
        reverse: int64[N, K], slot of the opposite edge.
    """
    out: Tensor = _GatherSenders.apply(x, neighbors, reverse)  # type: ignore[no-untyped-call]
    return out
