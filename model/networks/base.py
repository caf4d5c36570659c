"""Base class of all networks: an energy summed over atoms, its exact gradients, and heads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...pipeline.graphs.potential import ENERGY_OUTPUTS, OutputSpec
from ...pipeline.structures.structure import MAX_ATOMIC_NUMBER
from ..equivariance.irreps import Features
from ..layers.float64_buffers import Float64Buffers
from ..layers.scatter_free import permute_slots
from ..layers.table import Table
from ..statistics import DataStatistics

if TYPE_CHECKING:
    from ..config.network import Architecture
    from ..layers.heads import Head


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predictions of a network for G structures with N atoms in total, in the form used for training.

    Attributes:
        energy: float64[G], eV; None, like forces and virial, if the network has no energy.
        forces: float[N, 3], eV/angstrom.
        virial: float64[G, 3, 3], derivative of the energy with respect to strain (eV); the stress is the virial divided
            by the volume.
        heads: Irrep components of each head, by name: float64[G, dim], or float64[N, dim] for properties of atoms.
    """

    energy: Tensor | None
    forces: Tensor | None
    virial: Tensor | None
    heads: dict[str, Tensor]


class Network(Float64Buffers):
    """A network on padded neighbour tables.

    Args:
        config: Configuration of the network; its cutoff must be set.
        elements: Supported atomic numbers, in ascending order.
        statistics: Statistics of the training set, such as reference energies and scales of the elements.

    Raises:
        ValueError: The cutoff is not set.
    """

    def __init__(self, config: Architecture, elements: Sequence[int], statistics: DataStatistics) -> None:
        super().__init__()
        if config.cutoff is None:
            raise ValueError("the network's cutoff is not set; set `cutoff` in its configuration")
        self.elements, self.statistics = tuple(elements), statistics
        self.cutoff = config.cutoff
        index = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.int64)
        index[torch.tensor(self.elements)] = torch.arange(len(self.elements))
        self.species_index: Tensor
        self.register_buffer("species_index", index, persistent=False)
        self.reference_energies: Tensor
        self.energy_scales: Tensor
        self.register_float64("reference_energies", torch.tensor(statistics.reference_energies, dtype=torch.float64))
        self.register_float64("energy_scales", torch.tensor(statistics.energy_scales, dtype=torch.float64))

    config: Architecture

    @property
    def dtype(self) -> torch.dtype:
        """Data type of weights and features."""
        return next(self.parameters()).dtype

    @abstractmethod
    def layers(self, species: Tensor, table: Table) -> list[Features]:
        """Compute the features after each interaction: by irrep, float[N, 2 l + 1, channels].

        Args:
            species: int64[N], index of each atom's element in `elements`.
            table: Inputs of the network.
        """

    @abstractmethod
    def relative_energies(self, layers: Sequence[Features]) -> Tensor:
        """Compute atomic energies relative to the reference energies, in units of the energy scales: float[N]."""

    def named_heads(self) -> list[tuple[str, Head]]:
        """Return names and heads, in the order of the outputs."""
        return []

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """Specifications of the outputs of `forward`, in order."""
        energy = ENERGY_OUTPUTS if self.config.energy else ()
        return (*energy, *(head.spec(name) for name, head in self.named_heads()))

    def predict(self, *inputs: Tensor) -> Prediction:
        """Predict the energy with its exact gradients, and the heads.

        Args:
            *inputs: Fields of a `Table`, in order.
        """
        table = Table(*inputs)
        atomic_number, structure, volume = table.atomic_number, table.structure, table.volume
        species = self.species_index[atomic_number]
        members = (structure.unsqueeze(0) == torch.arange(volume.shape[0], device=volume.device).unsqueeze(1)).double()
        vectors = table.vectors.detach().requires_grad_(self.config.energy)
        with torch.set_grad_enabled(self.config.energy or torch.is_grad_enabled()):
            layers = self.layers(species, table._replace(vectors=vectors))
            relative = self.relative_energies(layers) if self.config.energy else None
        heads = {name: head(layers[-1], species, members) for name, head in self.named_heads()}
        if relative is None:
            return Prediction(None, None, None, heads)
        # The scales are float64, so that converting the atomic energies to eV adds no float32 rounding error.
        with torch.enable_grad():
            atoms = relative.double() * self.energy_scales[species]
            (gradient,) = torch.autograd.grad(atoms.sum(), vectors, create_graph=self.training)
        if not self.training:
            atoms, vectors = atoms.detach(), vectors.detach()
            heads = {name: x.detach() for name, x in heads.items()}
        opposite = permute_slots(gradient.reshape(1, -1, 3), table.reverse).view_as(gradient)
        forces = (gradient - opposite).sum(1)
        virial = torch.bmm(vectors.transpose(1, 2), gradient)
        virial = (virial + virial.transpose(1, 2)).reshape(-1, 9).double() / 2
        energy = members @ (atoms + self.reference_energies[species])
        return Prediction(energy, forces, (members @ virial).view(-1, 3, 3), heads)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute all outputs in their units.

        Args:
            *inputs: Fields of a `Table`, in order.

        Returns:
            The outputs in the order of `outputs`: energy float64[G] in eV, forces float[N, 3] in eV/angstrom and stress
            float64[G, 3, 3] in eV/angstrom^3 (meaningless for structures without a volume), then the heads, float64[G
            or N, *shape].
        """
        found = self.predict(*inputs)
        out: list[Tensor] = []
        if found.energy is not None and found.forces is not None and found.virial is not None:
            out += [found.energy, found.forces, found.virial / Table(*inputs).volume.view(-1, 1, 1)]
        return (*out, *(head.present(found.heads[name]) for name, head in self.named_heads()))
