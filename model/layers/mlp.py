"""Perceptrons without biases, scaled so that features keep unit variance from layer to layer.

Weights are drawn with unit variance and divided by the square root of their fan-in when they are used, as in e3nn, so
that one learning rate suits layers of all widths.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

# 1 / sqrt(E[silu(x)^2]) for a standard normal x, so that the scaled SiLU keeps the second moment.
SILU_SCALE = 1.677


class Perceptron(nn.Module):
    """Linear maps without biases, with SiLU in between, so that zero is mapped to zero.

    Args:
        *widths: Widths of the input, the hidden layers and the output.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map float[..., widths[0]] to float[..., widths[-1]]."""
        for place, weight in enumerate(self.weights):
            if place:
                x = silu(x) * SILU_SCALE
            x = x @ (weight / math.sqrt(weight.shape[0]))
        return x
