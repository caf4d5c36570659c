"""NequIP-type networks such as SevenNet and Nequix: messages from neighbours, a gate and skip connections.

For each path of irreps, a message is the product of the sender's features with spherical harmonics, times a learned
radial function per channel (Batzner et al., Nat. Commun. 13, 2453 (2022)). Constants that published codes keep separate
(fan-in, moments of activations, mean number of neighbours, prefactors of radial functions) are folded into the weights
here. Under o3 and natural, irreps are labelled with their parity; under so3, only if activations mix parities (see
`NequipConfig.tracks_parity`). Odd scalars have an activation of their own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from ..config.network import NequipConfig, SelfConnection
from ..equivariance.irreps import SCALAR, Features, Irrep, Path, SphericalHarmonics, coupling, product_paths
from ..equivariance.tensors import harmonic_irreps, parsed
from ..layers.activations import ACTIVATIONS
from ..layers.messages import Slots, sum_messages
from ..layers.radial import polynomial_envelope
from ..layers.sine import sine
from ..layers.table import Table
from ..statistics import DataStatistics
from .base import Network

NORM_EPSILON = 1e-12
ODD_SCALAR = Irrep("0o")
# Screened Coulomb repulsion (Ziegler, Biersack and Littmark, The Stopping and Range of Ions in Solids, 1985), with the
# digits of LAMMPS: e^2 / (4 pi epsilon_0) in eV angstrom, exponent of the charges, length in angstrom, and the
# amplitudes and decay constants of the screening function.
COULOMB, CHARGE_POWER, SCREENING_LENGTH = 14.399645, 0.23, 0.46850
SCREENING = ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980))


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
        self.basis = BesselFunctions(config)
        self.harmonics = SphericalHarmonics(config.l_max)
        channels = channels_after(config)
        # Atoms start with scalars that depend only on their element, so the first interaction reads from tables.
        first = {SCALAR: config.embedding}
        self.sent = nn.Parameter(torch.randn(len(self.elements), first[SCALAR]))
        own: list[SelfConnection] = [*config.self_connections] or ["linear" for _ in channels]
        interactions = [
            NequipInteraction(config, sent, made, len(self.elements), kind, first=number == 0)
            for number, (sent, made, kind) in enumerate(zip([first, *channels[:-1]], channels, own, strict=True))
        ]
        self.interactions = nn.ModuleList(interactions)
        paths = {path: None for layer in interactions for path in layer.convolution.paths}
        self.couplings = Couplings(list(paths), config.l_max)
        widths = [channels[-1][SCALAR], *config.readout_hidden]
        self.readout_hidden = nn.ParameterList(torch.randn(a, b) / math.sqrt(a) for a, b in itertools.pairwise(widths))
        self.readout = nn.Parameter(torch.randn(widths[-1], 1))
        power = config.pair_repulsion
        self.repulsion = PairRepulsion(self.elements, self.energy_scales, power) if power else None
        self.to(dtype)

    def convolution(self, layer: int) -> Convolution:
        """Return the convolution of an interaction; interactions are numbered from 0."""
        interaction = self.interactions[layer]
        if not isinstance(interaction, NequipInteraction):
            raise TypeError(type(interaction))
        return interaction.convolution

    def layers(self, species: Tensor, table: Table) -> list[Features]:
        """Compute the features after each interaction: by irrep, float[N, 2 l + 1, channels].

        With pair repulsion, its energies follow as the last scalars, in units of the energy scales: float[N, 1, 1].
        """
        slots = Slots(table)
        flat = table.vectors.reshape(-1, 3)
        distance = torch.sqrt((flat * flat).sum(-1, keepdim=True))
        apart = slots.to_pairs(distance) / 2
        basis, inside = self.basis(apart), apart < self.cutoff
        harmonics = self.harmonics(flat / distance if self.config.unit_vectors else flat)
        couplings = self.couplings(harmonics, table.neighbors.shape[1])
        features, out = {SCALAR: self.sent[species].unsqueeze(1)}, []
        for interaction in self.interactions:
            features = interaction(features, species, basis, inside, couplings, slots)
            out.append(features)
        if self.repulsion is not None:
            repulsion = self.repulsion(distance, distance / self.cutoff, species, table.neighbors)
            out.append({SCALAR: repulsion.view(-1, 1, 1)})
        return out

    def relative_energies(self, layers: Sequence[Features]) -> Tensor:
        """Compute atomic energies relative to the reference energies, in units of the energy scales: float[N]."""
        *_, last = layers[: len(self.interactions)]
        scalars = last[SCALAR].squeeze(1)
        for weight in self.readout_hidden:
            scalars = ACTIVATIONS[self.config.readout_activation](scalars @ weight)
        energies = (scalars @ self.readout).squeeze(-1)
        return energies if self.repulsion is None else energies + layers[-1][SCALAR].view(-1)


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


class PairRepulsion(nn.Module):
    """Screened Coulomb repulsion of the nuclei, half of each pair's energy for each of its atoms.

    Args:
        elements: Atomic numbers, in the order of the network's elements.
        scales: float64[n_elements], energy scale of each element (eV).
        power: Power of the polynomial envelope.
    """

    def __init__(self, elements: Sequence[int], scales: Tensor, power: int) -> None:
        super().__init__()
        self.power = power
        charges = torch.tensor(elements, dtype=torch.float64)
        self.charges: Tensor
        self.inverse_lengths: Tensor
        self.factors: Tensor
        self.register_buffer("charges", charges, persistent=False)
        self.register_buffer("inverse_lengths", charges**CHARGE_POWER / SCREENING_LENGTH, persistent=False)
        self.register_buffer("factors", COULOMB / 2 * charges / scales, persistent=False)

    def forward(self, distance: Tensor, relative: Tensor, species: Tensor, neighbors: Tensor) -> Tensor:
        """Compute the repulsion energy of each atom, in units of the energy scales: float[N].

        Args:
            distance: float[N * K, 1], distance of each slot (angstrom).
            relative: float[N * K, 1], the distance divided by the cutoff of the pair.
            species: int64[N], index of each atom's element.
            neighbors: int64[N, K], sender of each slot.
        """
        distance, others = distance.view_as(neighbors), species[neighbors]
        reach = self.inverse_lengths[species].unsqueeze(1) + self.inverse_lengths[others]
        x = distance * reach
        screening = SCREENING[0][0] * torch.exp(-SCREENING[0][1] * x)
        for amplitude, decay in SCREENING[1:]:
            screening = screening + amplitude * torch.exp(-decay * x)
        envelope = polynomial_envelope(relative.view_as(neighbors), self.power)
        pairs = self.charges[others] * (screening * envelope / distance)
        return pairs.sum(1) * self.factors[species]


class Couplings(nn.Module):
    """Matrices that couple a sender's features to the spherical harmonics, for each path of irreps.

    Args:
        paths: Products of a sender's feature (left) with spherical harmonics (right).
        l_max: Highest degree of the spherical harmonics.
    """

    def __init__(self, paths: Sequence[Path], l_max: int) -> None:
        super().__init__()
        # The product of a feature with the harmonic of degree 0 is the feature itself.
        self.paths = [path for path in paths if path.right.l > 0]
        columns = [torch.zeros((l_max + 1) ** 2, 0, dtype=torch.float64)]
        for path in self.paths:
            matrix = torch.zeros((l_max + 1) ** 2, path.left.dim * path.out.dim, dtype=torch.float64)
            here = slice(path.right.l**2, (path.right.l + 1) ** 2)
            matrix[here] = coupling(path).permute(1, 2, 0).reshape(path.right.dim, -1)
            columns.append(matrix)
        self.matrix: Tensor
        self.register_buffer("matrix", torch.cat(columns, dim=1), persistent=False)

    def forward(self, harmonics: Tensor, slots: int) -> dict[Path, Tensor]:
        """Map float[N * K, (l_max + 1)^2] to float[N, 2 l_out + 1, (2 l_left + 1) * K] for each path."""
        if not self.paths:
            return {}
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
        activation: Activation of the radial perceptron.

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
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.channels = dict(channels)
        self.paths = product_paths(channels, harmonics, irreps_out)
        self.channels_out: dict[Irrep, int] = {}
        for path in self.paths:
            self.channels_out[path.out] = self.channels_out.get(path.out, 0) + channels[path.left]
        self.widths = [channels[path.left] for path in self.paths]
        self.activation = ACTIVATIONS[activation]
        # Radial functions that do not vanish beyond the cutoff, although the basis does, must be set to zero there.
        self.masked = bool(self.activation(torch.zeros(1)) != 0)
        sizes = [n_basis, *radial_hidden, sum(self.widths)]
        self.radial = nn.ParameterList(torch.randn(a, b) / math.sqrt(a) for a, b in itertools.pairwise(sizes))

    def forward(
        self,
        features: Features,
        basis: Tensor,
        couplings: Mapping[Path, Tensor],
        slots: Slots,
        envelope: Tensor | None = None,
        inside: Tensor | None = None,
    ) -> Features:
        """Sum over the neighbour slots of each atom.

        Args:
            features: Features of all atoms.
            basis: float[P, n_basis], radial basis functions of each pair.
            couplings: Coupling matrices of each path; see `Couplings`.
            slots: Maps from atoms and pairs to slots.
            envelope: float[P, 1], factor of all radial functions; None if the basis includes the envelope.
            inside: bool[P, 1], whether pairs are within the cutoff; needed if the activation is not zero at zero.

        Returns:
            Sums by irrep, float[N, 2 l + 1, channels]; channels of different paths are side by side.
        """
        hidden = basis
        for weight in self.radial[:-1]:
            hidden = self.activation(hidden @ weight)
        if self.masked:
            if inside is None:
                raise TypeError("the activation is not zero at zero: `inside` is required")
            hidden = torch.where(inside, hidden, torch.zeros_like(hidden))
        if envelope is not None:
            hidden = hidden * envelope
        weights = dict(zip(self.paths, torch.split(self.radial[-1], self.widths, dim=1), strict=True))
        out: dict[Irrep, list[Tensor]] = {}
        for irrep in self.channels:
            paths = [path for path in self.paths if path.left == irrep]
            functions = [hidden @ weights[path] for path in paths]
            matrices, odd = [couplings.get(path) for path in paths], [path.right.l % 2 == 1 for path in paths]
            sums = sum_messages(slots, features[irrep], functions, matrices, odd)
            for path, total in zip(paths, sums, strict=True):
                out.setdefault(path.out, []).append(total)
        return {irrep: torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0] for irrep, parts in out.items()}


class NequipInteraction(nn.Module):
    """One interaction: messages are mixed, added to the atom's own features, and gated.

    Args:
        config: Configuration of the network.
        channels_in: Number of channels of each input irrep.
        channels_out: Number of channels of each output irrep.
        n_elements: Number of elements.
        self_connection: How the atom's own features are added; see `NequipConfig`.
        first: Whether this is the first interaction, whose inputs depend only on the element, so that an atom's message
            and self-connection are read from tables.
    """

    def __init__(
        self,
        config: NequipConfig,
        channels_in: Mapping[Irrep, int],
        channels_out: Mapping[Irrep, int],
        n_elements: int,
        self_connection: SelfConnection,
        *,
        first: bool,
    ) -> None:
        super().__init__()
        self.gated = {ir: mul for ir, mul in channels_out.items() if ir.l > 0}
        self.scalars = channels_out[SCALAR]
        self.activation, self.gate = ACTIVATIONS[config.activation], ACTIVATIONS[config.gate_activation]
        self.odd_activation = ACTIVATIONS[config.odd_activation]
        self.residual = config.residual and not first and dict(channels_in) == dict(channels_out)
        wide = with_gates(channels_out)
        self.convolution = Convolution(
            config.n_basis,
            config.radial_hidden,
            channels_in,
            list(channels_out),
            harmonics_of(config),
            config.radial_activation,
        )
        self.send = None if first else _matrices(channels_in, channels_in)
        self.mix = _matrices(self.convolution.channels_out, wide)
        self.mix_bias = nn.Parameter(torch.zeros(wide[SCALAR]))
        self.send_bias = None if first else nn.Parameter(torch.zeros(channels_in[SCALAR]))
        scaled = config.sender_scales and not first
        self.send_scale = nn.Parameter(torch.ones(n_elements)) if scaled else None
        tabulated = first and self_connection != "none"
        self.skip_table = nn.Parameter(torch.randn(n_elements, wide[SCALAR])) if tabulated else None
        linear, by_element = (not first and self_connection == kind for kind in ("linear", "element"))
        self.skip = _matrices(channels_in, wide) if linear else None
        self.skip_by_element = _matrices(channels_in, wide, n_elements) if by_element else None
        self.norm = None
        if config.layer_norm:
            self.norm = nn.ParameterDict({str(ir): nn.Parameter(torch.ones(mul)) for ir, mul in wide.items()})

    def forward(
        self,
        features: Features,
        species: Tensor,
        basis: Tensor,
        inside: Tensor,
        couplings: Mapping[Path, Tensor],
        slots: Slots,
    ) -> Features:
        """Compute the next features of all atoms: by irrep, float[N, 2 l + 1, channels].

        Args:
            features: Features of all atoms: by irrep, float[N, 2 l + 1, channels].
            species: int64[N], index of each atom's element.
            basis: As in `Convolution.forward`.
            inside: As in `Convolution.forward`.
            couplings: As in `Convolution.forward`.
            slots: As in `Convolution.forward`.
        """
        sent = features if self.send is None else _apply_linear(features, self.send, self.send_bias)
        if self.send_scale is not None:
            scale = self.send_scale[species].view(-1, 1, 1)
            sent = {irrep: x * scale for irrep, x in sent.items()}
        out = _apply_linear(self.convolution(sent, basis, couplings, slots, inside=inside), self.mix, self.mix_bias)
        own = self._own(features, species)
        out = {irrep: x + own[irrep] if irrep in own else x for irrep, x in out.items()}
        gated = self._gate(out if self.norm is None else self._normalised(out, self.norm))
        return {irrep: x + features[irrep] for irrep, x in gated.items()} if self.residual else gated

    def _own(self, features: Features, species: Tensor) -> Features:
        """Compute the contribution of the atom's own features before the gate."""
        if self.skip_table is not None:
            return {SCALAR: self.skip_table[species].unsqueeze(1)}
        if self.skip_by_element is not None:
            matrices = {o3.Irrep(name): weight[species] for name, weight in self.skip_by_element.items()}
            return {irrep: torch.bmm(features[irrep], matrix) for irrep, matrix in matrices.items()}
        return {} if self.skip is None else _apply_linear(features, self.skip, None)

    def _normalised(self, features: Features, weights: nn.ParameterDict) -> Features:
        """Normalise the features as Nequix does, and multiply them by weights.

        The divisor is the root of the mean over irreps of their sums of squares / (2 l + 1)^2.
        """
        squares = [(x * x).sum((1, 2), keepdim=True) / (irrep.dim**2 * len(features)) for irrep, x in features.items()]
        total = squares[0]
        for square in squares[1:]:
            total = total + square
        factor = 1 / torch.sqrt(total + NORM_EPSILON)
        return {irrep: x * weights[str(irrep)] * factor for irrep, x in features.items()}

    def _gate(self, features: Features) -> Features:
        if self.activation is self.gate:
            scalars, *gates = torch.split(
                self.activation(features[SCALAR]), [self.scalars, *self.gated.values()], dim=-1
            )
        else:
            scalars, *gates = torch.split(features[SCALAR], [self.scalars, *self.gated.values()], dim=-1)
            scalars, gates = self.activation(scalars), [self.gate(gate) for gate in gates]
        out = {SCALAR: scalars, **{ir: features[ir] * gate for ir, gate in zip(self.gated, gates, strict=True)}}
        if ODD_SCALAR in features:
            out[ODD_SCALAR] = self.odd_activation(features[ODD_SCALAR])
        return out


def channels_after(config: NequipConfig) -> list[dict[Irrep, int]]:
    """Return the number of channels of each irrep after each interaction."""
    return [{ir: mul for mul, ir in parsed(text)} for text in config.hidden_irreps]


def harmonics_of(config: NequipConfig) -> list[Irrep]:
    """Return the irreps of the spherical harmonics."""
    return harmonic_irreps(config.l_max, "natural" if config.tracks_parity else "so3")


def with_gates(channels: Mapping[Irrep, int]) -> dict[Irrep, int]:
    """Return the channels before the gate, with one additional scalar for each gated channel."""
    gates = sum(mul for irrep, mul in channels.items() if irrep.l > 0)
    return {**channels, SCALAR: channels[SCALAR] + gates}


def _matrices(
    channels_in: Mapping[Irrep, int], channels_out: Mapping[Irrep, int], n_elements: int | None = None
) -> nn.ParameterDict:
    """Draw random weights of a linear map of the channels of each irrep, or of one map for each element."""
    leading = () if n_elements is None else (n_elements,)
    return nn.ParameterDict(
        {
            str(ir): nn.Parameter(torch.randn(*leading, channels_in[ir], mul) / math.sqrt(channels_in[ir]))
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
