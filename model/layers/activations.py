"""Activation functions by name, whose results do not depend, to the last bit, on an element's position in its tensor.

ONNX Runtime's Softplus and Log round differently in vectorised code and in the code for the remainder of a tensor, so
the logarithm is a series here (see `sine` for the same problem).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

# Number of terms of the series of artanh(s), which is accurate to float64 rounding for s in [-1/3, 1/3].
_TERMS = 17


class _Softplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, divisor: int) -> Tensor:
        ctx.save_for_backward(x)
        # log((1 + exp x) / d) = max(x, 0) + log((1 + t) / d) with t = exp(-|x|), and the last logarithm is
        # 2 artanh((1 + t - d) / (1 + t + d)). For d = 2, the result is exactly zero at x = 0.
        t = torch.exp(-torch.abs(x))
        s = (t + (1 - divisor)) / (t + (1 + divisor))
        square = s * s
        series = torch.ones_like(s) / (2 * _TERMS - 1)
        for k in range(_TERMS - 2, -1, -1):
            series = series * square + 1 / (2 * k + 1)
        return relu(x) + 2 * s * series

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * torch.sigmoid(x), None


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp x)."""
    out: Tensor = _Softplus.apply(x, 1)  # type: ignore[no-untyped-call]
    return out


def shifted_softplus(x: Tensor) -> Tensor:
    """Return log(1/2 + exp(x) / 2), the softplus function shifted to zero at x = 0 (Schuett et al., NeurIPS 2017)."""
    out: Tensor = _Softplus.apply(x, 2)  # type: ignore[no-untyped-call]
    return out


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0)."""
    return torch.where(x > 0, x, torch.zeros_like(x))


def elu(x: Tensor) -> Tensor:
    """Return x for positive numbers and exp(x) - 1 for negative ones (Clevert et al., ICLR 2016)."""
    return torch.where(x > 0, x, torch.exp(x - relu(x)) - 1)


def mish(x: Tensor) -> Tensor:
    """Return the product of x and tanh(softplus(x)) (Misra, BMVC 2020)."""
    return x * torch.tanh(softplus(x))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "ssp": shifted_softplus,
    "tanh": torch.tanh,
    "abs": torch.abs,
    "relu": relu,
    "elu": elu,
    "sigmoid": torch.sigmoid,
    "mish": mish,
}
