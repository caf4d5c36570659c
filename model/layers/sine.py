"""Sines that export: polynomials, since ONNX Runtime's own depend, in their last bit, on an element's place.

On a CPU, vector code and the code for what remains at the end of a tensor round differently, and where that end is
depends on how threads divide the tensor (seen in onnxruntime 1.32).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Odd terms up to x^21 within a half turn: to rounding in float64.
_TERMS = 10
# Pi in two parts, the first with so few digits that its products with small whole numbers are exact in float32.
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
    """The sine of angles up to some hundred, for gradients of any order."""
    out: Tensor = _Sine.apply(x)  # type: ignore[no-untyped-call]
    return out


def _reduced_sine(x: Tensor) -> Tensor:
    """The polynomial of the angle less whole half turns, with the sign of their number."""
    half_turns = torch.round(x * (1 / math.pi))
    rest = (x - half_turns * _PI_HIGH) - half_turns * _PI_LOW
    odd = half_turns - 2 * torch.floor(half_turns * 0.5)
    square = rest * rest
    series = torch.ones_like(rest)
    for k in range(_TERMS, 0, -1):
        series = 1 - series * square * (1 / ((2 * k) * (2 * k + 1)))
    return rest * series * (1 - 2 * odd)
