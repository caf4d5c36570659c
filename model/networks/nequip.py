"""Networks of NequIP's kind: messages of neighbours, a gate, and skip connections; SevenNet and Nequix are such.

A message is, for each path of irreps, a learned radial function for each channel times the product of the neighbour's
features with spherical harmonics (Batzner et al., Nat. Commun. 13, 2453 (2022)). Constants that published code keeps
apart - fan-in, moments of activations, average numbers of neighbours, prefactors of radial functions - are parts of the
weights here.
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
    """A network of NequIP's kind, of energies, forces and stresses.

    Args:
        config: Architecture.
        elements: Atomic numbers that it knows, ascending.
        statistics: Reference energies and scales.
        dtype: Of weights and features.
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
        channels = channels_behind(config)
        # Atoms begin with scalars of their element; what the first interaction makes of them is tabulated.
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
        """Of weights and features."""
        return self.readout.dtype

    def convolution(self, layer: int) -> Convolution:
        """Of an interaction."""
        interaction = self.interactions[layer]
        if not isinstance(interaction, NequipInteraction):
            raise TypeError(type(interaction))
        return interaction.convolution

    def layers(self, species: Tensor, table: Table) -> list[Features]:
        """Features behind each interaction: by irrep, float[N, 2 l + 1, channels]."""
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
        """Energies of the atoms, in units of their scales and without references: float[N]."""
        return (layers[-1][SCALAR].squeeze(1) @ self.readout).squeeze(-1)


class BesselFunctions(nn.Module):
    """Sines of multiples of the distance over the distance, times the envelope."""

    def __init__(self, config: NequipConfig) -> None:
        super().__init__()
        self.config, self.cutoff = config, config.cutoff
        self.frequencies = nn.Parameter(math.pi / config.cutoff * torch.arange(1, config.n_basis + 1))

    def forward(self, distance: Tensor) -> Tensor:
        """float[E, 1] to float[E, n_basis]."""
        return sine(distance * self.frequencies) * (self.envelope(distance) / distance)

    def envelope(self, distance: Tensor) -> Tensor:
        """From 1 to 0 at the cutoff, and 0 beyond."""
        if self.config.envelope == "polynomial":
            return polynomial_envelope(distance / self.cutoff, self.config.envelope_power)
        onset = self.config.envelope_onset or 0.0
        square, outer, inner = distance * distance, self.cutoff**2, onset**2
        rest = outer - square
        falling = rest * rest * (outer + 2 * square - 3 * inner) / (outer - inner) ** 3
        beyond = torch.where(distance < self.cutoff, falling, torch.zeros_like(distance))
        return torch.where(distance < onset, torch.ones_like(distance), beyond)


class Couplings(nn.Module):
    """What harmonics make of the components of a neighbour's feature, for each path of irreps.

    Args:
        paths: Products of a neighbour's feature (left) with harmonics (right).
        l_max: Highest degree of the harmonics.
    """

    def __init__(self, paths: Sequence[Path], l_max: int) -> None:
        super().__init__()
        # Of a scalar with a feature there is only the feature itself.
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
        """float[N * K, (l_max + 1)^2] to float[N, 2 l_out + 1, (2 l_left + 1) * K] for each path."""
        sizes = [path.left.dim * path.out.dim for path in self.paths]
        parts = torch.split(self.matrix.t(), sizes, dim=0)
        columns = harmonics.t().contiguous()
        out = {}
        for path, part in zip(self.paths, parts, strict=True):
            z = (part @ columns).view(path.out.dim * path.left.dim, -1, slots).transpose(0, 1)
            out[path] = z.reshape(-1, path.out.dim, path.left.dim * slots)
        return out


class Convolution(nn.Module):
    """The sum of neighbours' messages.

    Args:
        config: Architecture.
        channels: Of the features that neighbours send.
        irreps_out: Irreps to keep.
        harmonics: Irreps of the spherical harmonics.

    Attributes:
        channels_out: The channels of all paths to an irrep, one after the other.
    """

    def __init__(
        self,
        config: NequipConfig,
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
        sizes = [config.n_basis, *config.radial_hidden, sum(self.widths)]
        self.radial = nn.ParameterList(torch.randn(a, b) / math.sqrt(a) for a, b in itertools.pairwise(sizes))

    def forward(self, features: Features, basis: Tensor, couplings: Mapping[Path, Tensor], slots: Slots) -> Features:
        """Sum over the slots of each atom.

        Args:
            features: Of all atoms.
            basis: float[P, n_basis].
            couplings: Of each path, see `Couplings`.
            slots: Readings.
        """
        hidden = basis
        for weight in self.radial[:-1]:
            hidden = silu(hidden @ weight)
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
    """Messages, mixed, added to the atom's own features, and gated.

    Args:
        config: Architecture.
        channels_in: Of the features that come in.
        channels_out: Of those that go out.
        harmonics: Irreps of the spherical harmonics.
        n_elements: Of the first interaction, whose incoming features are constants of the element: what an atom adds
            and sends is tabulated. None for the others.
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
        self.convolution = Convolution(config, channels_in, list(channels_out), harmonics)
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
        """The next features of all atoms; arguments as for `Convolution`."""
        sent = features if self.send is None else _mapped(features, self.send, self.send_bias)
        out = _mapped(self.convolution(sent, basis, couplings, slots), self.mix, self.mix_bias)
        own = _mapped(features, self.skip, None) if self.skip else {SCALAR: self.skip_table[species].unsqueeze(1)}
        out = {irrep: x + own[irrep] if irrep in own else x for irrep, x in out.items()}
        return self._gate(out if self.norm is None else self._normalised(out, self.norm))

    def _normalised(self, features: Features, weights: nn.ParameterDict) -> Features:
        """Divide by the root of the mean square: over channels, components twice, and irreps, as Nequix does."""
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


def channels_behind(config: NequipConfig) -> list[dict[Irrep, int]]:
    """Of the features behind each interaction."""
    return [{ir: mul for mul, ir in parsed(text)} for text in config.hidden_irreps]


def with_gates(channels: Mapping[Irrep, int]) -> dict[Irrep, int]:
    """Before the gate: a scalar more for each channel that is gated."""
    return {**channels, SCALAR: sum(channels.values())}


def _matrices(channels_in: Mapping[Irrep, int], channels_out: Mapping[Irrep, int]) -> nn.ParameterDict:
    """A linear map of the channels of each irrep."""
    return nn.ParameterDict(
        {
            str(ir): nn.Parameter(torch.randn(channels_in[ir], mul) / math.sqrt(channels_in[ir]))
            for ir, mul in channels_out.items()
            if ir in channels_in
        }
    )


def _mapped(features: Features, weights: nn.ParameterDict, bias: Tensor | None) -> Features:
    out = {}
    for name, weight in weights.items():
        irrep = o3.Irrep(name)
        n, dim, channels = features[irrep].shape
        x = (features[irrep].reshape(n * dim, channels) @ weight).view(n, dim, weight.shape[1])
        out[irrep] = x + bias if bias is not None and irrep == SCALAR else x
    return out
