"""The equivariant network, which maps padded neighbour tables to energy, forces, stress and other properties.

Every interaction sums learned radial functions times spherical harmonics times the neighbours' features into a density
on each atom, couples the density's components to irreps, takes products of the density with itself and mixes channels.
No layer has biases, and an atom's own element enters only as a factor of its density, so an isolated atom has exactly
its reference energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from e3nn import o3
from torch import Tensor, nn

from ..config.network import NetworkConfig
from ..equivariance.irreps import SCALAR, Features, SphericalHarmonics
from ..layers.heads import Head, head_channels, neutral_statistics
from ..layers.interaction import Interaction
from ..layers.mlp import Perceptron
from ..layers.radial import RadialBasis
from ..layers.table import Table
from ..statistics import DataStatistics
from .base import Network


class EquivariantNetwork(Network):
    """A network whose features are irreps.

    Example:
        >>> from equiscreen.model import load_checkpoint
        >>> network, _ = load_checkpoint("run/model.ckpt")
        >>> type(network).__name__, network.cutoff
        ('EquivariantNetwork', 5.0)

    Args:
        config: Configuration of the network; its cutoff must be set.
        elements: Supported atomic numbers, in ascending order.
        statistics: Statistics of the training set; heads without statistics get zero shifts and unit scales.
        dtype: Data type of weights and features. The constants of the algebra are computed in float64 and rounded to
            this type; they stay rounded if the network is later cast to float64.

    Raises:
        ConfigError: A head needs irreps that the network never produces.
        ValueError: The cutoff is not set.
    """

    config: NetworkConfig

    def __init__(
        self,
        config: NetworkConfig,
        elements: Sequence[int],
        statistics: DataStatistics,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        known = {
            name: statistics.heads.get(name) or neutral_statistics(head, len(elements))
            for name, head in config.heads.items()
        }
        super().__init__(config, elements, replace(statistics, heads=known))
        self.config = config
        self._build(config)
        self.to(dtype)

    def _build(self, config: NetworkConfig) -> None:
        hidden = {ir: mul for mul, ir in o3.Irreps(config.hidden_irreps)}
        scalars = {SCALAR: hidden[SCALAR]}
        self.embedding = nn.Embedding(len(self.elements), hidden[SCALAR])
        self.radial = RadialBasis(config, self.cutoff)
        self.harmonics = SphericalHarmonics(config.l_max)
        self.interactions = nn.ModuleList()
        sent = scalars
        for layer in range(config.n_interactions):
            last = layer == config.n_interactions - 1
            outputs = {**head_channels(list(config.heads.values()), config.symmetry), **scalars} if last else hidden
            interaction = Interaction(
                config, sent, outputs, len(self.elements), self.statistics.mean_neighbors, residual=layer > 0
            )
            self.interactions.append(interaction)
            sent = interaction.channels_out
        self.readouts = nn.ModuleList()
        if config.energy:
            self.readouts.extend(Perceptron(hidden[SCALAR], 1) for _ in range(config.n_interactions - 1))
            self.readouts.append(Perceptron(hidden[SCALAR], config.readout_hidden, 1))
        self.heads = nn.ModuleDict(
            {
                name: Head(name, head, self.statistics.heads[name], sent, config.symmetry)
                for name, head in config.heads.items()
            }
        )

    def named_heads(self) -> list[tuple[str, Head]]:
        """Return names and heads, in the order of the outputs."""
        return [(name, head) for name, head in self.heads.items() if isinstance(head, Head)]

    def layers(self, species: Tensor, table: Table) -> list[Features]:
        """Compute the features after each interaction: by irrep, float[N, 2 l + 1, channels]."""
        flat = table.vectors.reshape(-1, 3)
        distance = torch.sqrt((flat * flat).sum(-1, keepdim=True))
        harmonics = self.harmonics(flat / distance)
        features = {SCALAR: self.embedding(species).unsqueeze(1)}
        out = []
        for interaction, radial in zip(self.interactions, self.radial(distance), strict=True):
            features = interaction(features, species, radial * harmonics, table.neighbors, table.reverse)
            out.append(features)
        return out

    def relative_energies(self, layers: Sequence[Features]) -> Tensor:
        """Compute atomic energies relative to the reference energies, in units of the energy scales: float[N]."""
        parts = [readout(x[SCALAR].squeeze(1)) for x, readout in zip(layers, self.readouts, strict=True)]
        return torch.cat(parts, dim=-1).sum(-1)
