"""The equivariant network: neighbour tables to energy, forces, stress and other properties.

Every interaction sums learned radial functions times spherical harmonics times the neighbours' features into a density
on each atom, couples the density's components to irreps, takes products of the density with itself and mixes channels.
All layers lack biases, and an atom's own features enter only through products with its density: an atom without
neighbours has exactly its reference energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from e3nn import o3
from torch import Tensor, nn

from ..pipeline.potential import ENERGY_OUTPUTS, OutputSpec
from .config import NetworkConfig
from .exact import ExactBuffers
from .gather import permute_slots
from .heads import Head, head_channels, neutral_statistics
from .interaction import Interaction
from .irreps import SCALAR, Features, SphericalHarmonics
from .perceptron import Perceptron
from .radial import RadialBasis
from .statistics import DataStatistics

MAX_ATOMIC_NUMBER = 118


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a network finds, in the form that it is trained on.

    Attributes:
        energy: float64[G], eV; this and the next two are None for a network without an energy.
        forces: float[N, 3], eV/angstrom.
        virial: float64[G, 3, 3], eV: the derivative by strain; divided by the volume it is the stress.
        heads: Components of the irreps of each head, by name: float64[G or N, dim].
    """

    energy: Tensor | None
    forces: Tensor | None
    virial: Tensor | None
    heads: dict[str, Tensor]


class EquivariantNetwork(ExactBuffers):
    """A network whose features are irreps.

    Args:
        config: Architecture; its cutoff has to be set.
        elements: Atomic numbers that it knows, ascending.
        statistics: Of the training set; heads without any have shifts of zero and scales of one.
        dtype: Of weights and features. The constants of the algebra are made in float64 and rounded to it; a network
            that is cast to float64 afterwards keeps them rounded.

    Raises:
        ConfigError: A head needs irreps that the network never makes.
    """

    def __init__(
        self,
        config: NetworkConfig,
        elements: Sequence[int],
        statistics: DataStatistics,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if config.cutoff is None:
            raise ValueError("the network's cutoff is not set")
        known = {
            name: statistics.heads.get(name) or neutral_statistics(head, len(elements))
            for name, head in config.heads.items()
        }
        self.config, self.elements, self.statistics = config, tuple(elements), replace(statistics, heads=known)
        self.cutoff = config.cutoff
        index = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.int64)
        index[torch.tensor(self.elements)] = torch.arange(len(self.elements))
        self.species_index: Tensor
        self.register_buffer("species_index", index, persistent=False)
        self._build(config)
        self.reference_energies: Tensor
        self.energy_scales: Tensor
        self.register_exact("reference_energies", torch.tensor(statistics.reference_energies, dtype=torch.float64))
        self.register_exact("energy_scales", torch.tensor(statistics.energy_scales, dtype=torch.float64))
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
            wanted = {**head_channels(list(config.heads.values()), config.symmetry), **scalars} if last else hidden
            interaction = Interaction(
                config, sent, wanted, len(self.elements), self.statistics.mean_neighbors, residual=layer > 0
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

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and features."""
        return self.embedding.weight.dtype

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """What `forward` returns, in that order."""
        energy = ENERGY_OUTPUTS if self.config.energy else ()
        return (*energy, *(head.spec(name) for name, head in self.named_heads()))

    def named_heads(self) -> list[tuple[str, Head]]:
        """The heads, by name."""
        return [(name, head) for name, head in self.heads.items() if isinstance(head, Head)]

    def layers(self, species: Tensor, vectors: Tensor, neighbors: Tensor, reverse: Tensor) -> list[Features]:
        """Features behind each interaction: by irrep, float[N, 2 l + 1, channels]."""
        n, k = neighbors.shape
        flat = vectors.reshape(n * k, 3)
        distance = torch.sqrt((flat * flat).sum(-1, keepdim=True))
        harmonics = self.harmonics(flat / distance)
        features = {SCALAR: self.embedding(species).unsqueeze(1)}
        out = []
        for interaction, radial in zip(self.interactions, self.radial(distance), strict=True):
            features = interaction(features, species, radial * harmonics, neighbors, reverse)
            out.append(features)
        return out

    def predict(
        self,
        atomic_number: Tensor,
        vectors: Tensor,
        neighbors: Tensor,
        reverse: Tensor,
        structure: Tensor,
        volume: Tensor,
    ) -> Prediction:
        """Evaluate a `NeighborTable`; the energy with its exact gradients.

        Args:
            atomic_number: int64[N].
            vectors: float[N, K, 3], angstrom.
            neighbors: int64[N, K].
            reverse: int64[N, K].
            structure: int64[N].
            volume: float64[G], angstrom^3; only its length matters here.
        """
        species = self.species_index[atomic_number]
        members = (structure.unsqueeze(0) == torch.arange(volume.shape[0], device=volume.device).unsqueeze(1)).double()
        vectors = vectors.detach().requires_grad_(self.config.energy)
        with torch.set_grad_enabled(self.config.energy or torch.is_grad_enabled()):
            layers = self.layers(species, vectors, neighbors, reverse)
            # Double scales times float energies: units come in behind the gradient's rounding, in float64.
            relative = [readout(x[SCALAR].squeeze(1)) for x, readout in zip(layers, self.readouts, strict=False)]
        heads = {name: head(layers[-1], species, members) for name, head in self.named_heads()}
        if not self.config.energy:
            return Prediction(None, None, None, heads)
        scales = self.energy_scales[species]
        with torch.enable_grad():
            atoms = torch.cat(relative, dim=-1).sum(-1).double() * scales
            (gradient,) = torch.autograd.grad(atoms.sum(), vectors, create_graph=self.training)
        if not self.training:
            atoms, vectors = atoms.detach(), vectors.detach()
            heads = {name: x.detach() for name, x in heads.items()}
        opposite = permute_slots(gradient.reshape(1, -1, 3), reverse).view_as(gradient)
        forces = (gradient - opposite).sum(1)
        virial = torch.bmm(vectors.transpose(1, 2), gradient)
        virial = (virial + virial.transpose(1, 2)).reshape(-1, 9).double() / 2
        energy = members @ (atoms + self.reference_energies[species])
        return Prediction(energy, forces, (members @ virial).view(-1, 3, 3), heads)

    def forward(
        self,
        atomic_number: Tensor,
        vectors: Tensor,
        neighbors: Tensor,
        reverse: Tensor,
        structure: Tensor,
        volume: Tensor,
    ) -> tuple[Tensor, ...]:
        """All outputs in their units, for a `NeighborTable`; arguments as for `predict`.

        Returns:
            As `outputs` says: energy float64[G] in eV, forces float[N, 3] in eV/angstrom and stress float64[G, 3, 3] in
            eV/angstrom^3 (of no meaning where the volume is not), then the heads, float64[G or N, *shape].
        """
        found = self.predict(atomic_number, vectors, neighbors, reverse, structure, volume)
        out: list[Tensor] = []
        if found.energy is not None and found.forces is not None and found.virial is not None:
            out += [found.energy, found.forces, found.virial / volume.view(-1, 1, 1)]
        return (*out, *(head.present(found.heads[name]) for name, head in self.named_heads()))
