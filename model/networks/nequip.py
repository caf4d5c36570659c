"""NequIP-type networks such as SevenNet and Nequix: messages from neighbours, a gate and skip connections.

For each path of irreps, a message is the product of the sender's features with spherical harmonics, times a learned
radial function per channel (Batzner et al., Nat. Commun. 13, 2453 (2022)). Constants that published codes keep separate
(fan-in, moments of activations, mean number of neighbours, prefactors of radial functions) are folded into the weights
here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn.functional import silu

from ..config.network import NequipConfig
from ..equivariance.irreps import SCALAR, Features, Irrep, Path, SphericalHarmonics, coupling, product_paths
from ..equivariance.tensors import harmonic_irreps, parsed
from ..layers.messages import Slots, sum_messages
from ..layers.radial import polynomial_envelope
from ..layers.sine import sine
from ..layers.table import Table
from ..statistics import DataStatistics
from .base import Network

NORM_EPSILON = 1e-12


class NequipNetwork(Network):
    """A NequIP-type network that predicts energies, forces and stresses.

    Args:
        config: Configuration of the network.
        elements: Supported atomic numbers, in ascending order.
        statistics: Reference energies and scales.
        dtype: Data type of weights and features.
    """

    config: NequipConfig

    def __init__(
        self,
        config: NequipConfig,
        elements: Sequence[int],
        statistics: DataStatistics,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(config, elements, statistics)
        self.config = config
        harmonics = harmonic_irreps(config.l_max, config.symmetry)
        self.basis = BesselFunctions(config)
        self.harmonics = SphericalHarmonics(config.l_max)
        channels = channels_after(config)
        # Atoms start with scalars that depend only on their element, so the first interaction reads from tables.
        first = {SCALAR: config.embedding}
        self.sent = nn.Parameter(torch.randn(len(self.elements), first[SCALAR]))
        interactions = [
            NequipInteraction(config, sent, made, harmonics, None if number else len(self.elements))
            for number, (sent, made) in enumerate(zip([first, *channels], channels, strict=False))
        ]
        self.interactions = nn.ModuleList(interactions)
        paths = {path: None for layer in interactions for path in layer.convolution.paths}
        self.couplings = Couplings(list(paths), config.l_max)
        self.readout = nn.Parameter(torch.randn(channels[-1][SCALAR], 1))
        self.to(dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of weights and features."""
        return self.readout.dtype

    def convolution(self, layer: int) -> Convolution:
        """Return the convolution of an interaction; interactions are numbered from 0."""
        interaction = self.interactions[layer]
        if not isinstance(interaction, NequipInteraction):
            raise TypeError(type(interaction))
        return interaction.convolution

    def layers(self, species: Tensor, table: Table) -> list[Features]:
        """Compute the features after each interaction: by irrep, float[N, 2 l + 1, channels]."""
        slots = Slots(table)
        flat = table.vectors.reshape(-1, 3)
        distance = torch.sqrt((flat * flat).sum(-1, keepdim=True))
        basis = self.basis(slots.to_pairs(distance) / 2)
        couplings = self.couplings(self.harmonics(flat / distance), table.neighbors.shape[1])
        features, out = {SCALAR: self.sent[species].unsqueeze(1)}, []
        for interaction in self.interactions:
            features = interaction(features, species, basis, couplings, slots)
            out.append(features)
        return out

    def relative_energies(self, layers: Sequence[Features]) -> Tensor:
        """Compute atomic energies relative to the reference energies, in units of the energy scales: float[N]."""
        return (layers[-1][SCALAR].squeeze(1) @ self.readout).squeeze(-1)


class BesselFunctions(nn.Module):
    """Bessel functions sin(k r) / r with trained frequencies k, times the envelope."""

    def __init__(self, config: NequipConfig) -> None:
        super().__init__()
        self.config, self.cutoff = config, config.cutoff
        self.frequencies = nn.Parameter(math.pi / config.cutoff * torch.arange(1, config.n_basis + 1))

    def forward(self, distance: Tensor) -> Tensor:
        """Map distances, float[E, 1] in angstrom, to float[E, n_basis]."""
        return sine(distance * self.frequencies) * (self.envelope(distance) / distance)

    def envelope(self, distance: Tensor) -> Tensor:
        """Map distances, float[E, 1] in angstrom, to the envelope, float[E, 1]: it falls from 1 to 0 at the cutoff."""
        if self.config.envelope == "polynomial":
            return polynomial_envelope(distance / self.cutoff, self.config.envelope_power)
        onset = self.config.envelope_onset or 0.0
        square, outer, inner = distance * distance, self.cutoff**2, onset**2
        rest = outer - square
        falling = rest * rest * (outer + 2 * square - 3 * inner) / (outer - inner) ** 3
        beyond = torch.where(distance < self.cutoff, falling, torch.zeros_like(distance))
        return torch.where(distance < onset, torch.ones_like(distance), beyond)


class Couplings(nn.Module):
    """Matrices that couple a sender's features to the spherical harmonics, for each path of irreps.

    Args:
        paths: Products of a sender's feature (left) with spherical harmonics (right).
        l_max: Highest degree of the spherical harmonics.
    """

    def __init__(self, paths: Sequence[Path], l_max: int) -> None:
        super().__init__()
        # The product of a feature with l = 0 is the feature itself.
        self.paths = [path for path in paths if path.right.l > 0]
        columns = []
        for path in self.paths:
            matrix = torch.zeros((l_max + 1) ** 2, path.left.dim * path.out.dim, dtype=torch.float64)
            here = slice(path.right.l**2, (path.right.l + 1) ** 2)
            matrix[here] = coupling(path).permute(1, 2, 0).reshape(path.right.dim, -1)
            columns.append(matrix)
        self.matrix: Tensor
        self.register_buffer("matrix", torch.cat(columns, dim=1), persistent=False)

    def forward(self, harmonics: Tensor, slots: int) -> dict[Path, Tensor]:
        """Map float[N * K, (l_max + 1)^2] to float[N, 2 l_out + 1, (2 l_left + 1) * K] for each path."""
        sizes = [path.left.dim * path.out.dim for path in self.paths]
        parts = torch.split(self.matrix.t(), sizes, dim=0)
        columns = harmonics.t().contiguous()
        out = {}
        for path, part in zip(self.paths, parts, strict=True):
            z = (part @ columns).view(path.out.dim * path.left.dim, -1, slots).transpose(0, 1)
            out[path] = z.reshape(-1, path.out.dim, path.left.dim * slots)
        return out


class Convolution(nn.Module):
    """Sum of the neighbours' messages.

    Args:
        n_basis: Number of radial basis functions.
        radial_hidden: Hidden widths of the radial perceptron.
        channels: Number of channels of each irrep of the senders' features.
        irreps_out: Irreps to keep.
        harmonics: Irreps of the spherical harmonics.

    Attributes:
        channels_out: Number of channels of each output irrep, over all its paths.
    """

    def __init__(
        self,
        n_basis: int,
        radial_hidden: Sequence[int],
        channels: Mapping[Irrep, int],
        irreps_out: Sequence[Irrep],
        harmonics: Sequence[Irrep],
    ) -> None:
        super().__init__()
        self.channels = dict(channels)
        self.paths = product_paths(channels, harmonics, irreps_out)
        self.channels_out: dict[Irrep, int] = {}
        for path in self.paths:
            self.channels_out[path.out] = self.channels_out.get(path.out, 0) + channels[path.left]
        self.widths = [channels[path.left] for path in self.paths]
        sizes = [n_basis, *radial_hidden, sum(self.widths)]
        self.radial = nn.ParameterList(torch.randn(a, b) / math.sqrt(a) for a, b in itertools.pairwise(sizes))

    def forward(
        self,
        features: Features,
        basis: Tensor,
        couplings: Mapping[Path, Tensor],
        slots: Slots,
        envelope: Tensor | None = None,
    ) -> Features:
        """Sum over the neighbour slots of each atom.

        Args:
            features: Features of all atoms.
            basis: float[P, n_basis], radial basis functions of each pair.
            couplings: Coupling matrices of each path; see `Couplings`.
            slots: Maps from atoms and pairs to slots.
            envelope: float[P, 1], factor of all radial functions.
        """
        hidden = basis
        for weight in self.radial[:-1]:
            hidden = silu(hidden @ weight)
        if envelope is not None:
            hidden = hidden * envelope
        weights = dict(zip(self.paths, torch.split(self.radial[-1], self.widths, dim=1), strict=True))
        out: dict[Irrep, list[Tensor]] = {}
        for irrep in self.channels:
            paths = [path for path in self.paths if path.left == irrep]
            functions = [hidden @ weights[path] for path in paths]
            sums = sum_messages(slots, features[irrep], functions, [couplings.get(path) for path in paths])
            for path, total in zip(paths, sums, strict=True):
                out.setdefault(path.out, []).append(total)
        return {irrep: torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0] for irrep, parts in out.items()}


class NequipInteraction(nn.Module):
    """One interaction: messages are mixed, added to the atom's own features, and gated.

    Args:
        config: Configuration of the network.
        channels_in: Number of channels of each input irrep.
        channels_out: Number of channels of each output irrep.
        harmonics: Irreps of the spherical harmonics.
        n_elements: Number of elements for the first interaction, whose inputs depend only on the element, so that an
            atom's message and skip connection are read from tables; None for all other interactions.
    """

    def __init__(
        self,
        config: NequipConfig,
        channels_in: Mapping[Irrep, int],
        channels_out: Mapping[Irrep, int],
        harmonics: Sequence[Irrep],
        n_elements: int | None,
    ) -> None:
        super().__init__()
        self.gated = {ir: mul for ir, mul in channels_out.items() if ir != SCALAR}
        self.scalars = channels_out[SCALAR]
        wide = with_gates(channels_out)
        self.convolution = Convolution(config.n_basis, config.radial_hidden, channels_in, list(channels_out), harmonics)
        self.send = None if n_elements else _matrices(channels_in, channels_in)
        self.mix = _matrices(self.convolution.channels_out, wide)
        self.mix_bias = nn.Parameter(torch.zeros(wide[SCALAR]))
        self.send_bias = None if n_elements else nn.Parameter(torch.zeros(channels_in[SCALAR]))
        if n_elements:
            self.skip_table = nn.Parameter(torch.randn(n_elements, wide[SCALAR]))
        self.skip = None if n_elements else _matrices(channels_in, wide)
        self.norm = None
        if config.layer_norm:
            self.norm = nn.ParameterDict({str(ir): nn.Parameter(torch.ones(mul)) for ir, mul in wide.items()})

    def forward(
        self,
        features: Features,
        species: Tensor,
        basis: Tensor,
        couplings: Mapping[Path, Tensor],
        slots: Slots,
    ) -> Features:
        """Compute the next features of all atoms.

        Args:
            features: Features of all atoms.
            species: int64[N], index of each atom's element.
            basis: As in `Convolution.forward`.
            couplings: As in `Convolution.forward`.
            slots: As in `Convolution.forward`.
        """
        sent = features if self.send is None else _apply_linear(features, self.send, self.send_bias)
        out = _apply_linear(self.convolution(sent, basis, couplings, slots), self.mix, self.mix_bias)
        own = _apply_linear(features, self.skip, None) if self.skip else {SCALAR: self.skip_table[species].unsqueeze(1)}
        out = {irrep: x + own[irrep] if irrep in own else x for irrep, x in out.items()}
        return self._gate(out if self.norm is None else self._normalised(out, self.norm))

    def _normalised(self, features: Features, weights: nn.ParameterDict) -> Features:
        """Divide by the root of the mean over irreps of their sums of squares / (2 l + 1)^2, as Nequix does."""
        squares = [(x * x).sum((1, 2), keepdim=True) / (irrep.dim**2 * len(features)) for irrep, x in features.items()]
        total = squares[0]
        for square in squares[1:]:
            total = total + square
        factor = 1 / torch.sqrt(total + NORM_EPSILON)
        return {irrep: x * weights[str(irrep)] * factor for irrep, x in features.items()}

    def _gate(self, features: Features) -> Features:
        activated = silu(features[SCALAR])
        scalars, *gates = torch.split(activated, [self.scalars, *self.gated.values()], dim=-1)
        return {SCALAR: scalars, **{ir: features[ir] * gate for ir, gate in zip(self.gated, gates, strict=True)}}


def channels_after(config: NequipConfig) -> list[dict[Irrep, int]]:
    """Number of channels of each irrep after each interaction."""
    return [{ir: mul for mul, ir in parsed(text)} for text in config.hidden_irreps]


def with_gates(channels: Mapping[Irrep, int]) -> dict[Irrep, int]:
    """Channels before the gate: one additional scalar for each gated channel."""
    return {**channels, SCALAR: sum(channels.values())}


def _matrices(channels_in: Mapping[Irrep, int], channels_out: Mapping[Irrep, int]) -> nn.ParameterDict:
    """Random weights of a linear map of the channels of each irrep."""
    return nn.ParameterDict(
        {
            str(ir): nn.Parameter(torch.randn(channels_in[ir], mul) / math.sqrt(channels_in[ir]))
            for ir, mul in channels_out.items()
            if ir in channels_in
        }
    )


def _apply_linear(features: Features, weights: nn.ParameterDict, bias: Tensor | None) -> Features:
    out = {}
    for name, weight in weights.items():
        irrep = o3.Irrep(name)
        n, dim, channels = features[irrep].shape
        x = (features[irrep].reshape(n * dim, channels) @ weight).view(n, dim, weight.shape[1])
        out[irrep] = x + bias if bias is not None and irrep == SCALAR else x
    return out
