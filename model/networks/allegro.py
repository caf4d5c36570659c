"""Allegro: features of edges instead of atoms (Musaelian et al., Nat. Commun. 14, 579 (2023)).

An edge only interacts with the other edges of its receiver, so only the elements of neighbours are read, and the
network is strictly local. In each layer, the features of an edge are multiplied by a weighted sum of the spherical
harmonics of all edges of the receiver. This sum and the coupling coefficients form one matrix per atom and channel,
which acts on the features of every edge.

The perceptrons only read the scalars among the features, and the first features are weighted spherical harmonics. So
the matrices of all layers are multiplied for each atom, before they meet an edge: the scalar of an edge and channel is
the product of its harmonics with one vector of the receiver, and no other features of edges are computed.

In the authors' code, the sum is called the environment, and the perceptrons of the layers are called latents. Constants
that are kept separate there (fan-in, gains, mean number of neighbours, prefactors) are folded into the weights here,
and linear maps that follow each other are one map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from ..config.network import AllegroConfig
from ..equivariance.irreps import SCALAR, Features, Irrep, Path, SphericalHarmonics, coupling
from ..equivariance.tensors import harmonic_irreps, parsed
from ..layers.activations import ACTIVATIONS
from ..layers.radial import polynomial_envelope
from ..layers.sine import sine
from ..layers.table import Table
from ..statistics import DataStatistics
from .base import Network
from .nequip import PairRepulsion


class AllegroNetwork(Network):
    """An Allegro network that predicts energies, forces and stresses.

    Args:
        config: Configuration of the network.
        elements: Supported atomic numbers, in ascending order.
        statistics: Reference energies and scales.
        dtype: Data type of weights and features.
    """

    config: AllegroConfig

    def __init__(
        self,
        config: AllegroConfig,
        elements: Sequence[int],
        statistics: DataStatistics,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(config, elements, statistics)
        self.config = config
        count, degrees = len(self.elements), config.l_max + 1
        bessel = config.radial == "bessel"
        self.embedding = BesselEmbedding(config, count) if bessel else SplineEmbedding(config, count)
        # Scalars of an edge, and weights of each channel and degree for the sum over edges and for the first features.
        self.widths = [config.scalars, config.channels * degrees, config.channels * degrees]
        hidden = config.embedding_hidden
        self.perceptron = EdgePerceptron([config.embedding, *hidden, sum(self.widths)], config.embedding_activation)
        self.harmonics = SphericalHarmonics(config.l_max)
        self.interactions = nn.ModuleList(AllegroInteraction(config, layer) for layer in range(len(config.edge_irreps)))
        widths = [config.scalars * (len(self.interactions) + 1), *config.readout_hidden, 1]
        self.readout = EdgePerceptron(widths, config.readout_activation)
        self.sum_scales = nn.Parameter(torch.ones(count)) if config.sum_scales else None
        power = config.pair_repulsion
        self.repulsion = PairRepulsion(self.elements, self.energy_scales, power) if power else None
        # Degree of each component of the harmonics, as a matrix.
        degree = torch.repeat_interleave(torch.arange(degrees), 2 * torch.arange(degrees) + 1)
        self.spread: Tensor
        self.inverse_cutoffs: Tensor
        self.register_buffer("spread", torch.eye(degrees, dtype=torch.float64)[:, degree], persistent=False)
        self.register_buffer("inverse_cutoffs", 1 / self._cutoffs(), persistent=False)
        self.to(dtype)

    def _cutoffs(self) -> Tensor:
        """Return the cutoff radii, float64[n_elements, n_elements] for receiver and sender (angstrom)."""
        symbols = [chemical_symbols[number] for number in self.elements]
        rows = [self.config.pair_cutoffs.get(symbol, {}) for symbol in symbols]
        return torch.tensor([[row.get(other, self.cutoff) for other in symbols] for row in rows], dtype=torch.float64)

    def interaction(self, layer: int) -> AllegroInteraction:
        """Return a layer, counted from 0."""
        found = self.interactions[layer]
        if not isinstance(found, AllegroInteraction):
            raise TypeError(type(found))
        return found

    def layers(self, species: Tensor, table: Table) -> list[Features]:
        """Compute the energy of each atom, and its share of the pair repulsion if there is any.

        Args:
            species: int64[N], index of each atom's element in `elements`.
            table: Inputs of the network.

        Returns:
            Features with one scalar per atom, float[N, 1, 1], in units of the energy scales.
        """
        n, k = table.neighbors.shape
        flat = table.vectors.reshape(-1, 3)
        distance = torch.sqrt((flat * flat).sum(-1, keepdim=True))
        pair = species.unsqueeze(1) * len(self.elements) + species[table.neighbors]
        relative = distance / self.cutoff
        if self.config.pair_cutoffs:
            relative = distance * self.inverse_cutoffs.view(-1)[pair].view(-1, 1)
        harmonics = self.harmonics(flat / distance).view(n, k, -1)
        hidden = self.perceptron.hidden([EdgeScalars(self.embedding(relative, species, table.neighbors))])
        first, sums, initial = torch.split(self.perceptron.last, self.widths, dim=1)
        # By degree and then channel, so that sums over degrees are sums of long rows.
        initial = initial.reshape(len(initial), self.config.channels, -1).transpose(1, 2).reshape(len(initial), -1)
        initial = hidden @ initial
        scalars = [EdgeScalars.mapped(hidden, first)]
        matrices: list[Tensor] = []
        for layer in range(len(self.interactions)):
            interaction = self.interaction(layer)
            total = self._total(hidden, sums, harmonics, species)
            vectors = interaction.matrices(total, scalar=True)
            for matrix in reversed(matrices):
                vectors = torch.bmm(matrix, vectors)
            invariant = self._invariant(initial, harmonics, vectors.view(n, self.config.channels, -1))
            hidden = interaction.perceptron.hidden([*scalars, EdgeScalars(invariant)])
            more, *rest = torch.split(interaction.perceptron.last, interaction.widths, dim=1)
            scalars.append(EdgeScalars.mapped(hidden, more))
            if rest:
                matrices.append(interaction.matrices(total))
                (sums,) = rest
        energies = (self.readout.hidden(scalars) @ self.readout.last).view(n, k).sum(1)
        if self.sum_scales is not None:
            energies = energies * self.sum_scales[species]
        out = [{SCALAR: energies.view(-1, 1, 1)}]
        if self.repulsion is not None:
            repulsion = self.repulsion(distance, relative, species, table.neighbors)
            out.append({SCALAR: repulsion.view(-1, 1, 1)})
        return out

    def relative_energies(self, layers: Sequence[Features]) -> Tensor:
        """Compute atomic energies relative to the reference energies, in units of the energy scales: float[N]."""
        first, *others = (layer[SCALAR].view(-1) for layer in layers)
        return first + others[0] if others else first

    def _invariant(self, weights: Tensor, harmonics: Tensor, vectors: Tensor) -> Tensor:
        """Compute the scalars among the features of each edge: float[N * K, C].

        Args:
            weights: float[N * K, degrees * C], weights of the spherical harmonics in the first features.
            harmonics: float[N, K, (l_max + 1)^2].
            vectors: float[N, C, (l_max + 1)^2], maps the first features of an atom's edges to the scalars.
        """
        n, channels, components = vectors.shape
        # `spread` keeps the components of one degree for each weight.
        by_degree = vectors.transpose(1, 2).unsqueeze(2) * self.spread.t().unsqueeze(2)
        products = torch.bmm(harmonics, by_degree.reshape(n, components, -1)).view_as(weights) * weights
        return products.view(weights.shape[0], -1, channels).sum(1)

    def _total(self, hidden: Tensor, sums: Tensor, harmonics: Tensor, species: Tensor) -> Tensor:
        """Sum the weighted spherical harmonics over the edges of each atom: float[N, C, (l_max + 1)^2].

        The weights are a linear map of the hidden layer of a perceptron, so this map is applied after the sum: once for
        each atom instead of each edge.

        Args:
            hidden: float[N * K, hidden], last hidden layer of a perceptron.
            sums: float[hidden, C * degrees], maps it to the weights.
            harmonics: float[N, K, (l_max + 1)^2].
            species: int64[N], index of each atom's element.
        """
        n, k, _ = harmonics.shape
        width = sums.shape[0]
        products = torch.bmm(hidden.view(n, k, width).transpose(1, 2), harmonics)
        # A matrix for each component, float[(l_max + 1)^2, hidden, C].
        by_component = (sums.reshape(width * self.config.channels, -1) @ self.spread).view(
            width, -1, len(self.spread.t())
        )
        # Contiguous: the gradient of a product with a transposed matrix would be one whose bits depend on threads.
        total = torch.bmm(products.permute(2, 0, 1), by_component.permute(2, 0, 1)).permute(1, 2, 0).contiguous()
        if self.sum_scales is not None:
            total = total * self.sum_scales[species].view(-1, 1, 1)
        return total


class EdgeScalars(NamedTuple):
    """Scalars of edges, or scalars and a linear map that is yet to be applied to them.

    Attributes:
        values: float[N * K, width].
        map: float[width, scalars], or None for the scalars themselves.
    """

    values: Tensor
    map: Tensor | None = None

    @classmethod
    def mapped(cls, values: Tensor, matrix: Tensor) -> EdgeScalars:
        """Scalars that are a linear map of values.

        Perceptrons fold the map into their first weights, which saves a product over edges; a map to fewer numbers is
        applied at once instead, since the perceptrons would then read more.
        """
        return cls(values, matrix) if matrix.shape[0] <= matrix.shape[1] else cls(values @ matrix)

    def folded(self, weights: Tensor) -> Tensor:
        """Return weights, float[scalars, outputs], as weights of the values: float[width, outputs]."""
        if self.map is None:
            return weights
        # In float64: rounding errors of weights are the same for all edges, and add up in the energy.
        return (self.map.double() @ weights.double()).to(weights.dtype)


class BesselEmbedding(nn.Module):
    """Scalars of an edge: linear maps of Bessel functions, times factors for the elements of receiver and sender.

    The Bessel functions are sin(k x) / x, where k is a trained frequency and x the distance relative to the cutoff.

    Args:
        config: Configuration of the network.
        n_elements: Number of elements.
    """

    def __init__(self, config: AllegroConfig, n_elements: int) -> None:
        super().__init__()
        self.power, half = config.envelope_power, config.embedding // 2
        self.frequencies = nn.Parameter(math.pi * torch.arange(1, config.n_basis + 1))
        self.radial = nn.Parameter(torch.randn(config.n_basis, config.embedding) / math.sqrt(config.n_basis))
        self.receiver = nn.Parameter(torch.randn(n_elements, half))
        self.sender = nn.Parameter(torch.randn(n_elements, half))

    def forward(self, relative: Tensor, species: Tensor, neighbors: Tensor) -> Tensor:
        """Compute the scalars of all edges, float[N * K, embedding].

        Args:
            relative: float[N * K, 1], distance relative to the cutoff.
            species: int64[N], index of each atom's element.
            neighbors: int64[N, K], sender of each slot.
        """
        basis = sine(relative * self.frequencies) * (polynomial_envelope(relative, self.power) / relative)
        shape = (*neighbors.shape, self.receiver.shape[1])
        one, other = torch.split(basis @ self.radial, [self.receiver.shape[1]] * 2, dim=1)
        one = one.view(shape) * self.receiver[species].unsqueeze(1)
        other = other.view(shape) * self.sender[species[neighbors]]
        return torch.cat([one, other], dim=2).view(relative.shape[0], -1)


class SplineEmbedding(nn.Module):
    """Scalars of an edge: splines of the distance, with weights for each pair of elements.

    A spline is sin(pi u)^4 within its support, where u runs from 0 to 1.

    Args:
        config: Configuration of the network.
        n_elements: Number of elements.
    """

    def __init__(self, config: AllegroConfig, n_elements: int) -> None:
        super().__init__()
        count, span = config.n_basis, config.spline_span
        weights = torch.randn(n_elements, n_elements, config.embedding, count)
        self.splines = nn.Parameter(weights / math.sqrt(span + 1))
        self.width = (span + 1) / count
        self.begins: Tensor
        begins = torch.arange(-span, count - span, dtype=torch.float64) / count
        self.register_buffer("begins", begins, persistent=False)

    def forward(self, relative: Tensor, species: Tensor, neighbors: Tensor) -> Tensor:
        """Compute the scalars of all edges; arguments and result as in `BesselEmbedding.forward`."""
        u = (relative - self.begins) * (1 / self.width)
        zero = torch.zeros_like(u)
        wave = sine(math.pi * torch.where(u > 0, torch.where(u < 1, u, zero), zero))
        square = wave * wave
        pair = species.unsqueeze(1) * len(self.splines) + species[neighbors]
        weights = self.splines.flatten(0, 1)[pair.view(-1)]
        return torch.bmm(weights, (square * square).unsqueeze(2)).squeeze(2)


class EdgePerceptron(nn.Module):
    """Linear maps without biases, with an activation in between, on edges.

    Args:
        widths: Widths of the input, the hidden layers and the output.
        activation: Name of the activation.
    """

    def __init__(self, widths: Sequence[int], activation: str) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(a, b) / math.sqrt(a) for a, b in itertools.pairwise(widths))
        self.activation = ACTIVATIONS[activation]

    @property
    def last(self) -> Tensor:
        """The map from the last hidden layer to the result: float[hidden, widths[-1]]."""
        last: Tensor = self.weights[-1]
        return last

    def hidden(self, inputs: Sequence[EdgeScalars]) -> Tensor:
        """Compute the last hidden layer, or without hidden layers the input: float[E, hidden].

        Args:
            inputs: Scalars of the edges, widths[0] in total; zero beyond the cutoff, and so is the result.
        """
        if len(self.weights) == 1:
            return torch.cat([x if matrix is None else x @ matrix for x, matrix in inputs], dim=1)
        sizes = [x.shape[1] if matrix is None else matrix.shape[1] for x, matrix in inputs]
        blocks = torch.split(self.weights[0], sizes)
        maps = [x.folded(block) for x, block in zip(inputs, blocks, strict=True)]
        x = self.activation(torch.cat([x.values for x in inputs], dim=1) @ torch.cat(maps))
        for weight in [*self.weights][1:-1]:
            x = self.activation(x @ weight)
        return x


class AllegroInteraction(nn.Module):
    """One layer: the weights of products with the sum over the receiver's edges, and of the perceptron of new scalars.

    Args:
        config: Configuration of the network.
        layer: Number of the layer, counted from 0.

    Attributes:
        paths: Products of a feature (left) with the sum of spherical harmonics (right).
    """

    def __init__(self, config: AllegroConfig, layer: int) -> None:
        super().__init__()
        harmonics = harmonic_irreps(config.l_max, "so3" if config.symmetry == "so3" else "natural")
        before = _irreps(config.edge_irreps[layer - 1]) if layer else harmonics
        after = _irreps(config.edge_irreps[layer])
        self.paths = edge_paths(before, harmonics, after)
        self.dims = [sum(irrep.dim for irrep in irreps) for irreps in (harmonics, before, after)]
        # Each entry belongs to one path at most.
        couplings = torch.zeros(*self.dims, dtype=torch.float64)
        places = torch.zeros(*self.dims, dtype=torch.int64)
        begins = [dict(zip(irreps, _begins(irreps), strict=True)) for irreps in (harmonics, before, after)]
        for place, path in enumerate(self.paths):
            right, left, out = (
                slice(begin[irrep], begin[irrep] + irrep.dim)
                for begin, irrep in zip(begins, (path.right, path.left, path.out), strict=True)
            )
            couplings[right, left, out] = coupling(path).permute(1, 0, 2)
            places[right, left, out] = place
        self.couplings: Tensor
        self.places: Tensor
        self.register_buffer("couplings", couplings.flatten(), persistent=False)
        self.register_buffer("places", places.flatten(), persistent=False)
        rows = config.channels if config.channel_weights else 1
        self.weights = nn.Parameter(torch.randn(rows, len(self.paths)) / math.sqrt(len(self.paths)))
        last = layer + 1 == len(config.edge_irreps)
        self.widths = [config.scalars] if last else [config.scalars, config.channels * (config.l_max + 1)]
        inputs = config.scalars * (layer + 1) + config.channels
        self.perceptron = EdgePerceptron([inputs, *config.latent_hidden, sum(self.widths)], config.latent_activation)

    def matrices(self, total: Tensor, *, scalar: bool = False) -> Tensor:
        """Compute the matrices that map the features of an atom's edges to the next: float[N * C, left, out].

        Args:
            total: float[N, C, (l_max + 1)^2], sum over the edges of each atom.
            scalar: Whether to map to the scalar among the next features only: float[N * C, left, 1].
        """
        n, channels, _ = total.shape
        right, left, out = self.dims
        couplings = (self.weights.index_select(1, self.places) * self.couplings).view(-1, right, left, out)
        if scalar:
            # Scalars come first.
            couplings, out = couplings[..., :1], 1
        if len(couplings) == 1:
            matrices = total.reshape(n * channels, right) @ couplings.reshape(right, -1)
        else:
            matrices = torch.bmm(total.transpose(0, 1), couplings.reshape(channels, right, -1)).transpose(0, 1)
        return matrices.reshape(n * channels, left, out)


def edge_paths(left: Sequence[Irrep], right: Sequence[Irrep], out: Sequence[Irrep]) -> list[Path]:
    """Return the paths of the products of a layer, sorted by their result as in Allegro's code.

    Args:
        left: Irreps of the features of an edge.
        right: Irreps of the sum over edges.
        out: Irreps of the result.
    """
    return [Path(a, b, c) for c in out for a in left for b in right if c in a * b]


def _irreps(text: str) -> list[Irrep]:
    return [irrep for _, irrep in parsed(text)]


def _begins(irreps: Sequence[Irrep]) -> list[int]:
    return [0, *itertools.accumulate(irrep.dim for irrep in irreps)][: len(irreps)]
