"""Messages of MACE's multi-head networks, whose radial functions depend on the elements of sender and receiver.

In the authors' code (`RealAgnosticResidualNonLinearInteractionBlock` of mace-torch 0.3.16), `own` is called linear_res,
`update` linear_2, and both perceptrons RadialMLP. The functions differ between the two directions of a pair, so each
neighbour slot has its own. The embeddings of the elements are folded into tables behind the first matrix, and the
moments of activations into the weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..config.network import MaceConfig
from ..equivariance.irreps import SCALAR, Features, Irrep, IrrepsLinear
from ..layers.messages import Slots
from .nequip import with_gates

DENSITY_WIDTH = 64
LAYER_NORM_EPSILON = 1e-5


class ElementPerceptron(nn.Module):
    """Hidden layers with layer normalisation, of the radial basis and the elements of sender and receiver.

    Args:
        n_basis: Number of radial basis functions.
        hidden: Widths of the hidden layers.
        n_elements: Number of elements.
    """

    def __init__(self, n_basis: int, hidden: Sequence[int], n_elements: int) -> None:
        super().__init__()
        sizes = itertools.pairwise([n_basis, *hidden])
        self.weights = nn.ParameterList(torch.randn(a, b) / math.sqrt(a) for a, b in sizes)
        # The bias of the first layer is part of the receivers' table.
        self.biases = nn.ParameterList(torch.zeros(width) for width in hidden[1:])
        self.gains = nn.ParameterList(torch.ones(width) for width in hidden)
        self.shifts = nn.ParameterList(torch.zeros(width) for width in hidden)
        self.senders = nn.Parameter(torch.randn(n_elements, hidden[0]))
        self.receivers = nn.Parameter(torch.randn(n_elements, hidden[0]))

    def forward(self, basis: Tensor, species: Tensor, slots: Slots) -> Tensor:
        """Compute the last hidden layer of each neighbour slot: float[N * K, width].

        Args:
            basis: float[P, n_basis], radial basis functions of each pair.
            species: int64[N], index of each atom's element.
            slots: Maps from atoms and pairs to slots.
        """
        first, *weights = self.weights
        senders = _centred(self.senders)[species[slots.table.neighbors]].unsqueeze(1)
        receivers = _centred(self.receivers)[species].view(species.shape[0], 1, 1, -1)
        x = slots.spread(basis @ _centred(first)) + senders + receivers
        x = self._activated(x.view(-1, x.shape[-1]), 0)
        for place, (weight, bias) in enumerate(zip(weights, self.biases, strict=True), start=1):
            x = self._activated(x @ _centred(weight) + _centred(bias), place)
        return x

    def _activated(self, centred: Tensor, place: int) -> Tensor:
        """Divide by the standard deviation of each row, whose mean is zero, scale, shift and activate."""
        variance = _mean(centred * centred)
        normalised = centred / torch.sqrt(variance + LAYER_NORM_EPSILON)
        return silu(normalised * self.gains[place] + self.shifts[place])


class NonlinearMessages(nn.Module):
    """The radial functions of the messages, and the gate of their normalised sum.

    Args:
        config: Configuration of the network.
        senders: Number of channels of each irrep of the senders' features.
        total: Number of channels of each irrep of the result.
        n_elements: Number of elements.
    """

    def __init__(
        self, config: MaceConfig, senders: Mapping[Irrep, int], total: Mapping[Irrep, int], n_elements: int
    ) -> None:
        super().__init__()
        self.widths = [*total.values()]
        self.radial = ElementPerceptron(config.n_basis, config.radial_hidden, n_elements)
        self.density = ElementPerceptron(config.n_basis, [DENSITY_WIDTH], n_elements)
        self.density_weight = nn.Parameter(torch.randn(DENSITY_WIDTH, 1) / math.sqrt(DENSITY_WIDTH))
        self.density_bias = nn.Parameter(torch.zeros(1))
        self.alpha = nn.Parameter(torch.tensor(20.0))
        self.beta = nn.Parameter(torch.tensor(0.0))
        self.own = IrrepsLinear(senders, with_gates(total))
        self.update = IrrepsLinear(total, total)

    def functions(self, basis: Tensor, envelope: Tensor, species: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
        """Compute what the radial functions are combinations of, and by what the sum of an atom is divided.

        Args:
            basis: As in `Convolution.forward`.
            envelope: float[P, 1], factor of all radial functions.
            species: int64[N], index of each atom's element.
            slots: Maps from atoms and pairs to slots.

        Returns:
            float[N * K, width + 1], the last hidden layer and a constant, both times the envelope; and float[N, 1, 1].
        """
        envelope = slots.spread(envelope).view(-1, 1)
        hidden = torch.cat([self.radial(basis, species, slots), torch.ones_like(envelope)], dim=-1) * envelope
        root = self.density(basis, species, slots) @ self.density_weight + self.density_bias
        density = (torch.tanh(root * root) * envelope).view(species.shape[0], -1, 1).sum(1, keepdim=True)
        return hidden, density * self.beta + self.alpha

    def forward(self, total: Features, sent: Features, divisor: Tensor) -> Features:
        """Normalise the sum over neighbours, add the atom's own features, and gate: by irrep, float[N, 2 l + 1, c].

        Args:
            total: Sum over neighbours, with the gates among the scalars.
            sent: Features that the atoms send.
            divisor: float[N, 1, 1].
        """
        own = self.own(sent)
        inputs = {irrep: x / divisor for irrep, x in total.items()}
        inputs = {irrep: x + own[irrep] if irrep in own else x for irrep, x in inputs.items()}
        scalars, *gates = torch.split(inputs.pop(SCALAR), self.widths, dim=-1)
        gated = {irrep: x * torch.sigmoid(gate) for (irrep, x), gate in zip(inputs.items(), gates, strict=True)}
        return dict(self.update({SCALAR: silu(scalars), **gated}))


def _centred(x: Tensor) -> Tensor:
    """Subtract the mean over the last axis: of the weights of a linear map, so that its results have mean zero."""
    return x - _mean(x)


def _mean(x: Tensor) -> Tensor:
    """Return the mean over the last axis, which stays; as a sum, which is translated to ONNX."""
    return x.sum(-1, keepdim=True) / x.shape[-1]
