"""Activation functions: their values and derivatives, and that they vanish exactly where padding relies on it."""

from __future__ import annotations

import math

import pytest
import torch
from equiscreen.model.layers.activations import ACTIVATIONS, shifted_softplus, softplus


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_is_accurate_to_rounding(dtype: torch.dtype) -> None:
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    rounding = torch.finfo(dtype).eps
    for function, divisor in ((softplus, 1.0), (shifted_softplus, 2.0)):
        expected = torch.logaddexp(x, torch.zeros_like(x)) - math.log(divisor)
        assert torch.all(torch.abs(function(x.to(dtype)).double() - expected) <= 4 * rounding * (1 + torch.abs(x)))


def test_shifted_softplus_keeps_its_digits_near_zero() -> None:
    x = torch.tensor([1e-3, -1e-3, 0.05, -0.05], dtype=torch.float32)
    expected = torch.log1p(torch.expm1(x.double()) / 2)
    assert torch.all(torch.abs(shifted_softplus(x).double() - expected) <= 4e-8)


@pytest.mark.parametrize("name", ["silu", "ssp", "mish", "tanh"])
def test_a_perceptron_of_zeros_gives_exactly_zero(name: str) -> None:
    """Edges beyond the cutoff have zeros as inputs, and their messages are not masked."""
    for dtype in (torch.float32, torch.float64):
        assert not ACTIVATIONS[name](torch.zeros(5, dtype=dtype)).any()


@pytest.mark.parametrize("name", ["ssp", "mish"])
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ACTIVATIONS[name], (x,))
