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
