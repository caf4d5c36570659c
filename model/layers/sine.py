"""A polynomial sine for export: the last bit of ONNX Runtime's own sine depends on an element's position in its tensor.

On a CPU, the vectorised code and the code for the remainder of a tensor round differently, and where the remainder
begins depends on how threads divide the tensor (seen in onnxruntime 1.32).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Odd terms up to x^21, for x between -pi / 2 and pi / 2: accurate to float64 rounding.
_TERMS = 10
# Pi in two parts; the first has so few digits that its products with small integers are exact in float32.
_PI_HIGH = 3.140625
_PI_LOW = math.pi - _PI_HIGH


class _Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _reduced_sine(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * sine(x + math.pi / 2)


def sine(x: Tensor) -> Tensor:
    """Return the sine of angles up to a few hundred radians, differentiable to any order."""
    out: Tensor = _Sine.apply(x)  # type: ignore[no-untyped-call]
    return out


def _reduced_sine(x: Tensor) -> Tensor:
    """Evaluate a polynomial in the angle modulo pi, and negate it if the number of half turns is odd."""
    half_turns = torch.round(x * (1 / math.pi))
    rest = (x - half_turns * _PI_HIGH) - half_turns * _PI_LOW
    odd = half_turns - 2 * torch.floor(half_turns * 0.5)
    square = rest * rest
    series = torch.ones_like(rest)
    for k in range(_TERMS, 0, -1):
        series = 1 - series * square * (1 / ((2 * k) * (2 * k + 1)))
    return rest * series * (1 - 2 * odd)
