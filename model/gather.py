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
    """``x.flat[reverse]`` over slots. Opposites of opposites are themselves, so it is its own gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reverse: Tensor) -> Tensor:
        ctx.save_for_backward(reverse)
        n, k, channels = x.shape
        return x.reshape(n * k, channels)[reverse.reshape(-1)].view(n, k, channels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (reverse,) = ctx.saved_tensors
        return permute_slots(grads[0], reverse), None


class _GatherSenders(torch.autograd.Function):
    """``x[neighbors]``, from atoms to slots."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, neighbors: Tensor, reverse: Tensor) -> Tensor:
        ctx.save_for_backward(reverse)
        return x[neighbors]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (reverse,) = ctx.saved_tensors
        return permute_slots(grads[0], reverse).sum(1), None, None


def permute_slots(x: Tensor, reverse: Tensor) -> Tensor:
    """Give each slot what stands in the slot of the opposite edge: float[N, K, c] from float[N, K, c], int64[N, K]."""
    out: Tensor = _PermuteSlots.apply(x, reverse)  # type: ignore[no-untyped-call]
    return out


def gather_senders(x: Tensor, neighbors: Tensor, reverse: Tensor) -> Tensor:
    """Give each slot the features of its sending atom: float[N, K, c] from float[N, c]."""
    out: Tensor = _GatherSenders.apply(x, neighbors, reverse)  # type: ignore[no-untyped-call]
    return out
