"""Learned radial functions: a perceptron without biases on a fixed basis that vanishes smoothly at the cutoff."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config.network import NetworkConfig
from .mlp import Perceptron
from .sine import sine


class RadialBasis(nn.Module):
    """Learned radial functions of each interaction.

    The envelope, with its power p, is taken from Gasteiger et al., "Directional message passing", ICLR 2020. Chebyshev
    polynomials are the default basis; the alternative, Bessel functions sin(n pi r / rc) / r, is from the same paper.

    Args:
        config: Configuration of the network.
        cutoff: Cutoff radius (angstrom).
    """

    def __init__(self, config: NetworkConfig, cutoff: float) -> None:
        super().__init__()
        self.cutoff, self.n_basis, self.basis = cutoff, config.n_basis, config.basis
        self.envelope_power = config.envelope_power
        self.perceptrons = nn.ModuleList(
            Perceptron(config.n_basis, config.radial_hidden, config.n_radial * (config.l_max + 1))
            for _ in range(config.n_interactions)
        )
        self.n_radial, self.degrees = config.n_radial, config.l_max + 1
        # Degree of each component of the harmonics, as a matrix: the gradient of an index lookup would be a scatter.
        degree = torch.repeat_interleave(torch.arange(self.degrees), 2 * torch.arange(self.degrees) + 1)
        self.spread: Tensor
        self.register_buffer("spread", torch.eye(self.degrees, dtype=torch.float64)[:, degree], persistent=False)

    def forward(self, distance: Tensor) -> list[Tensor]:
        """Map distances, float[E, 1] in angstrom, to radial functions.

        Returns:
            float[n_radial, E, (l_max + 1)^2] for each interaction; components of the same degree share a function.
        """
        u = distance / self.cutoff
        functions = _bessel(u, self.n_basis) if self.basis == "bessel" else _chebyshev(u, self.n_basis)
        basis = functions * polynomial_envelope(u, self.envelope_power)
        return [self._spread(perceptron(basis)) for perceptron in self.perceptrons]

    def _spread(self, functions: Tensor) -> Tensor:
        edges = functions.shape[0]
        apart = functions.view(edges, self.n_radial, self.degrees).transpose(0, 1).reshape(-1, self.degrees)
        return (apart @ self.spread).view(self.n_radial, edges, -1)


def polynomial_envelope(u: Tensor, power: int) -> Tensor:
    """Return the polynomial envelope of Gasteiger et al. (ICLR 2020), of the shape of `u`.

    The envelope falls from 1 at u = 0 to 0 at u = 1, where its first two derivatives vanish too, and is 0 beyond.

    Args:
        u: Distances divided by the cutoff.
        power: Power p of the first term after 1.
    """
    p = power
    rest = -(p + 1) * (p + 2) / 2 + u * (p * (p + 2) - u * (p * (p + 1) / 2))
    return torch.where(u < 1, 1 + _power(u, p) * rest, torch.zeros_like(u))


def _power(x: Tensor, exponent: int) -> Tensor:
    """Compute a power by repeated squaring, since ONNX Runtime's Pow is slow."""
    half = _power(x, exponent // 2) if exponent > 1 else None
    if half is None:
        return x
    square = half * half
    return square * x if exponent % 2 else square


def _chebyshev(u: Tensor, count: int) -> Tensor:
    x = 1 - 2 * u
    functions = [torch.ones_like(x), x]
    for _ in range(2, count):
        functions.append(2 * x * functions[-1] - functions[-2])
    return torch.cat(functions[:count], dim=-1)


def _bessel(u: Tensor, count: int) -> Tensor:
    """Return the Bessel functions sqrt(2) sin(n pi u) / u for n = 1, 2, ..., count."""
    frequencies = math.pi * torch.arange(1, count + 1, dtype=u.dtype, device=u.device)
    return sine(u * frequencies) * (math.sqrt(2) / u)
