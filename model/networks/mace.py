"""MACE: messages from neighbours, and products of their sum with itself (Batatia et al., NeurIPS 2022).

In the authors' code, `send` is called linear_up, `mix` linear and `by_element` skip_tp; `update` is the linear map of
the product. Constants that are kept separate there (mean number of neighbours, moments of activations, prefactors of
radial functions) are folded into the weights here. Batatia et al., arXiv:2401.00096, describe the density
normalisation, the transform of distances and the repulsion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..config.network import MaceConfig
from ..equivariance.irreps import SCALAR, Features, Irrep, IrrepsLinear, Path, SphericalHarmonics
from ..equivariance.tensors import harmonic_irreps, parsed
from ..layers.messages import Slots
from ..layers.pair_functions import DistanceTransform, ZblRepulsion, pair_atoms
from ..layers.radial import polynomial_envelope
from ..layers.sine import sine
from ..layers.symmetric_contraction import SymmetricContraction
from ..layers.table import Table
from ..statistics import DataStatistics
from .base import Network
from .mace_nonlinear import NonlinearMessages
from .nequip import Convolution, Couplings, with_gates


class MaceNetwork(Network):
    """A MACE network that predicts energies, forces and stresses.

    Args:
        config: Configuration of the network.
        elements: Supported atomic numbers, in ascending order.
        statistics: Reference energies and scales.
        dtype: Data type of weights and features.
    """

    config: MaceConfig

    def __init__(
        self,
        config: MaceConfig,
        elements: Sequence[int],
        statistics: DataStatistics,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(config, elements, statistics)
        self.config = config
        self.transform = DistanceTransform(config, self.elements) if config.transform != "none" else None
        self.basis = RadialFunctions(config)
        self.repulsion = ZblRepulsion(config.repulsion, config.cutoff, self.elements) if config.repulsion else None
        self.harmonics = SphericalHarmonics(config.l_max)
        self.embedding = nn.Parameter(torch.randn(len(self.elements), config.channels))
        interactions = [MaceInteraction(config, layer, len(self.elements)) for layer in range(len(config.readouts))]
        self.interactions = nn.ModuleList(interactions)
        paths = {path: None for layer in interactions for path in layer.convolution.paths}
        self.couplings = Couplings(list(paths), config.l_max)
        self.readouts = nn.ModuleList(Readout(kind, config) for kind in config.readouts)
        self.to(dtype)

    def interaction(self, layer: int) -> MaceInteraction:
        """Return an interaction, counted from 0."""
        found = self.interactions[layer]
        if not isinstance(found, MaceInteraction):
            raise TypeError(type(found))
        return found

    def layers(self, species: Tensor, table: Table) -> list[Features]:
        """Compute the repulsion of each atom as a scalar, if there is any, and the features after each interaction.

        Args:
            species: int64[N], index of each atom's element in `elements`.
            table: Inputs of the network.

        Returns:
            Features by irrep, float[N, 2 l + 1, channels]; the repulsion is a scalar in units of the energy scales.
        """
        slots = Slots(table)
        flat = table.vectors.reshape(-1, 3)
        distance = torch.sqrt((flat * flat).sum(-1, keepdim=True))
        apart = slots.to_pairs(distance) / 2
        one, other = (species[atoms] for atoms in pair_atoms(table))
        basis = self.basis(apart if self.transform is None else self.transform(apart, one, other))
        envelope: Tensor | None = polynomial_envelope(apart / self.cutoff, self.config.envelope_power)
        # Radial functions with biases do not vanish with the basis, and jump at the cutoff without an envelope.
        inside = envelope
        if self.config.envelope_on == "basis":
            basis, envelope, inside = basis * envelope, None, (apart < self.cutoff).to(basis.dtype)
        couplings = self.couplings(self.harmonics(flat / distance), table.neighbors.shape[1])
        out = []
        if self.repulsion is not None:
            out.append({SCALAR: slots.spread(self.repulsion(apart, one, other)).sum(2)})
        features = {SCALAR: self.embedding[species].unsqueeze(1)}
        for layer in range(len(self.interactions)):
            interaction = self.interaction(layer)
            factor = inside if interaction.nonlinear is not None else envelope
            features = interaction(features, species, basis, factor, couplings, slots)
            out.append(features)
        return out

    def relative_energies(self, layers: Sequence[Features]) -> Tensor:
        """Compute atomic energies relative to the reference energies, in units of the energy scales: float[N]."""
        terms = [x[SCALAR].view(-1) for x in layers[: -len(self.readouts)]]
        kinds = zip(self.readouts, self.config.readouts, layers[-len(self.readouts) :], strict=True)
        terms += [readout(x[SCALAR].squeeze(1)) for readout, kind, x in kinds if kind != "none"]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


class RadialFunctions(nn.Module):
    """Radial basis functions, without the envelope.

    Bessel functions sin(k r) / r have trained frequencies k, and Gaussians have trained centres. Chebyshev polynomials
    start at degree 1.
    """

    def __init__(self, config: MaceConfig) -> None:
        super().__init__()
        self.basis, self.count = config.basis, config.n_basis
        if config.basis == "bessel":
            self.frequencies = nn.Parameter(math.pi / config.cutoff * torch.arange(1, config.n_basis + 1))
        if config.basis == "gaussian":
            self.centres = nn.Parameter(torch.linspace(0, config.cutoff, config.n_basis))
            self.steepness = 0.5 * ((config.n_basis - 1) / config.cutoff) ** 2

    def forward(self, distance: Tensor) -> Tensor:
        """Map distances, float[P, 1], to float[P, n_basis]; their unit is angstrom, or none after ``agnesi``."""
        if self.basis == "bessel":
            return sine(distance * self.frequencies) / distance
        if self.basis == "gaussian":
            offset = distance - self.centres
            return torch.exp(offset * offset * -self.steepness)
        functions = [torch.ones_like(distance), distance]
        while len(functions) <= self.count:
            functions.append(2 * distance * functions[-1] - functions[-2])
        return torch.cat(functions[1:], dim=-1)


class MaceInteraction(nn.Module):
    """One interaction: the sum of messages from neighbours, its products, and the atom's own features.

    Args:
        config: Configuration of the network.
        layer: Number of the interaction, counted from 0; the inputs of the first depend only on the element.
        n_elements: Number of elements.

    Attributes:
        channels_in: Number of channels of each irrep of the inputs.
        channels_total: Number of channels of each irrep of the sum over neighbours.
        channels_out: Number of channels of each irrep of the results.
    """

    def __init__(self, config: MaceConfig, layer: int, n_elements: int) -> None:
        super().__init__()
        channels = config.channels
        harmonics = harmonic_irreps(config.l_max, config.symmetry)
        before = _irreps(config.hidden_irreps[layer - 1]) if layer else [SCALAR]
        self.channels_in = dict.fromkeys(before, channels)
        self.channels_out = dict.fromkeys(_irreps(config.hidden_irreps[layer]), channels)
        self.channels_total = dict.fromkeys(harmonics, channels)
        senders = self.channels_in
        if config.edge_irreps and (layer or config.edge_irreps_first):
            edges = {ir: mul for mul, ir in parsed(config.edge_irreps)}
            senders = edges if layer else {SCALAR: edges[SCALAR]}
        self.send = IrrepsLinear(self.channels_in, senders)
        self.nonlinear: NonlinearMessages | None = None
        self.skip: IrrepsLinear | None = None
        if config.nonlinear and config.nonlinear[layer]:
            self.nonlinear = NonlinearMessages(config, senders, self.channels_total, n_elements)
            self.convolution = Convolution(config.radial_hidden[-1] + 1, (), senders, harmonics, harmonics)
            self.mix = IrrepsLinear(self.convolution.channels_out, with_gates(self.channels_total))
            self.skip = IrrepsLinear(self.channels_in, self.channels_out) if layer else None
        else:
            self.convolution = Convolution(config.n_basis, config.radial_hidden, senders, harmonics, harmonics)
            self.mix = IrrepsLinear(self.convolution.channels_out, self.channels_total)
        self.density = nn.Parameter(torch.randn(config.n_basis, 1)) if config.density[layer] else None
        self.residual = config.residual[layer]
        mapped = [ir for ir in self.channels_in if ir in self.channels_out] if self.residual else harmonics
        if self.residual and not layer:
            self.skip_table = nn.Parameter(torch.randn(n_elements, channels))
        if self.nonlinear is not None or (self.residual and not layer):
            mapped = []
        self.by_element = nn.ParameterDict(
            {str(ir): nn.Parameter(torch.randn(n_elements, channels, channels) / math.sqrt(channels)) for ir in mapped}
        )
        self.contraction = SymmetricContraction(
            harmonics, list(self.channels_out), channels, config.correlation[layer], n_elements
        )
        self.update = IrrepsLinear(self.channels_out, self.channels_out)

    def forward(
        self,
        features: Features,
        species: Tensor,
        basis: Tensor,
        envelope: Tensor | None,
        couplings: Mapping[Path, Tensor],
        slots: Slots,
    ) -> Features:
        """Compute the next features of all atoms: by irrep, float[N, 2 l + 1, channels].

        Args:
            features: Features of all atoms: by irrep, float[N, 2 l + 1, channels].
            species: int64[N], index of each atom's element.
            basis: As in `Convolution.forward`.
            envelope: As in `Convolution.forward`; of a non-linear interaction, it is never None.
            couplings: As in `Convolution.forward`.
            slots: As in `Convolution.forward`.
        """
        sent = self.send(features)
        if self.nonlinear is not None and envelope is not None:
            functions, divisor = self.nonlinear.functions(basis, envelope, species, slots)
            total = self.mix(self.convolution(sent, functions, couplings, slots.directed))
            total = self.nonlinear(total, sent, divisor)
        else:
            total = self.mix(self.convolution(sent, basis, couplings, slots, envelope))
        if self.density is not None:
            total = self._normalised(total, self.density, basis, envelope, slots)
        own: Features = {}
        if not self.residual:
            total = self._mapped_by_element(total, species)
        elif self.skip is not None:
            own = self.skip(features)
        elif self.by_element:
            own = self._mapped_by_element(features, species)
        else:
            own = {SCALAR: self.skip_table[species].unsqueeze(1)}
        out = self.update(self.contraction(total, species))
        return {irrep: x + own[irrep] if irrep in own else x for irrep, x in out.items()}

    def _normalised(
        self, total: Features, weights: Tensor, basis: Tensor, envelope: Tensor | None, slots: Slots
    ) -> Features:
        """Divide by one plus the sum over neighbours of a learned density between 0 and 1."""
        root = basis @ weights
        density = torch.tanh(root * root)
        if envelope is not None:
            density = density * envelope
        factor = 1 / (1 + slots.spread(density).sum(2))
        return {irrep: x * factor for irrep, x in total.items()}

    def _mapped_by_element(self, features: Features, species: Tensor) -> Features:
        """Multiply the channels of each irrep by the matrix of the atom's element."""
        return {Irrep(name): torch.bmm(features[Irrep(name)], x[species]) for name, x in self.by_element.items()}


class Readout(nn.Module):
    """Energy of an atom from its scalars, with or without a hidden layer.

    Args:
        kind: ``linear``, ``perceptron``, ``biased`` (two hidden layers, and biases but for the first) or ``none``.
        config: Configuration of the network.
    """

    def __init__(self, kind: str, config: MaceConfig) -> None:
        super().__init__()
        hidden = {"linear": 0, "perceptron": 1, "biased": 2, "none": 0}[kind]
        widths = [] if kind == "none" else [*[config.readout_hidden] * hidden, 1]
        inputs = [config.channels, *widths]
        self.weights = nn.ParameterList(torch.randn(a, b) / math.sqrt(a) for a, b in zip(inputs, widths, strict=False))
        self.biases = nn.ParameterList(torch.zeros(width) for width in widths[1:] if kind == "biased")

    def forward(self, scalars: Tensor) -> Tensor:
        """Map float[N, channels] to float[N]."""
        for place, weight in enumerate(self.weights):
            scalars = (silu(scalars) if place else scalars) @ weight
            if place and len(self.biases):
                scalars = scalars + self.biases[place - 1]
        return scalars.squeeze(-1)


def _irreps(text: str) -> list[Irrep]:
    return [irrep for _, irrep in parsed(text)]
