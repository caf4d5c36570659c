"""Interactions: message passing from an atom's neighbours.

The sum over neighbours is one batched matrix product per atom; Clebsch-Gordan coefficients and radial weights act once
per atom, not once per edge. Products of the density with itself follow the atomic cluster expansion (Drautz, Phys. Rev.
B 99, 014104 (2019)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn.functional import silu

from ..config.network import NetworkConfig
from ..equivariance.irreps import (
    SCALAR,
    ChannelwiseProduct,
    Features,
    Irrep,
    IrrepsLinear,
    coupling,
    product_paths,
    split_paths,
)
from ..equivariance.tensors import all_irreps, harmonic_irreps
from .mlp import SILU_SCALE, Perceptron
from .scatter_free import gather_senders

ROW_FLOATS = 4


class Density(nn.Module):
    """Sum over neighbours, coupled to irreps.

    Channels are divided into groups. Each group has its own radial functions, one per degree of the harmonics; the
    linear maps before and after the sum mix the groups. No tensor over edges is therefore wider than the features, and
    the sum is one small matrix product per atom and group.

    Args:
        channels_in: Number of channels of each irrep of the senders' features.
        irreps_out: Irreps of the density.
        channels_out: Number of channels of each irrep of the density.
        harmonics: Irreps that the spherical harmonics represent, one per degree.
        groups: Number of channel groups.
        mean_neighbors: Mean number of neighbours; the sum is divided by its square root.
    """

    def __init__(
        self,
        channels_in: Mapping[Irrep, int],
        irreps_out: Sequence[Irrep],
        channels_out: int,
        harmonics: Sequence[Irrep],
        groups: int,
        mean_neighbors: float,
    ) -> None:
        super().__init__()
        self.groups = groups
        # Number of channels of each irrep, padded to a multiple of the number of groups.
        self.channels = {irrep: -(-channels // groups) * groups for irrep, channels in channels_in.items()}
        self.missing = {irrep: self.channels[irrep] - channels for irrep, channels in channels_in.items()}
        self.widths = [irrep.dim * channels // groups for irrep, channels in self.channels.items()]
        # Rows are padded to a multiple of ROW_FLOATS numbers: copying rows of odd width takes twice as long (PyTorch
        # 2.13 on a CPU with AVX2).
        self.padding = -sum(self.widths) % ROW_FLOATS
        if self.padding:
            self.widths.append(self.padding)
        self.n_harmonics = len(harmonics) ** 2
        self.paths = {}
        mixed: dict[Irrep, int] = {}
        for irrep, channels in self.channels.items():
            paths = product_paths([irrep], harmonics, irreps_out)
            self.paths[irrep] = paths
            for path in paths:
                mixed[path.out] = mixed.get(path.out, 0) + channels
            # Columns run over (component of the harmonics, component of the feature).
            matrix = torch.zeros(sum(p.out.dim for p in paths), self.n_harmonics, irrep.dim, dtype=torch.float64)
            row = 0
            for path in paths:
                here = slice(path.right.l**2, (path.right.l + 1) ** 2)
                matrix[row : row + path.out.dim, here] = coupling(path).permute(2, 1, 0)
                row += path.out.dim
            self.register_buffer(f"coupling_{irrep}", matrix.flatten(1), persistent=False)
        self.mix = IrrepsLinear(mixed, dict.fromkeys(irreps_out, channels_out))
        self.norm = 1 / math.sqrt(mean_neighbors)

    def forward(self, features: Features, basis: Tensor, neighbors: Tensor, reverse: Tensor) -> Features:
        """Sum over the neighbour slots of each atom.

        Args:
            features: Features of all atoms.
            basis: float[groups, N * K, n_harmonics], radial functions times spherical harmonics.
            neighbors: int64[N, K], padded neighbour table.
            reverse: int64[N, K], slot of the opposite edge.

        Returns:
            The density by irrep, float[N, 2 l + 1, channels_out].
        """
        n, k = neighbors.shape
        sent = gather_senders(self._grouped(features), neighbors, reverse)
        left = basis.view(self.groups * n, k, self.n_harmonics).transpose(1, 2)
        summed = torch.bmm(left, sent.view(self.groups * n, k, sent.shape[2])) * self.norm
        summed = summed.view(self.groups, n, self.n_harmonics, sent.shape[2])
        by_irrep: dict[Irrep, list[Tensor]] = {}
        parts = torch.split(summed, self.widths, dim=3)
        for (irrep, channels), part in zip(self.channels.items(), parts, strict=False):
            moments = part.reshape(self.groups, n, self.n_harmonics * irrep.dim, channels // self.groups)
            moments = moments.permute(1, 2, 0, 3).reshape(n, self.n_harmonics * irrep.dim, channels)
            coupled = torch.matmul(getattr(self, f"coupling_{irrep}"), moments)
            for out, piece in split_paths(coupled, self.paths[irrep]).items():
                by_irrep.setdefault(out, []).append(piece)
        mixed: Features = self.mix({irrep: torch.cat(pieces, dim=-1) for irrep, pieces in by_irrep.items()})
        return mixed

    def _grouped(self, features: Features) -> Tensor:
        """Regroup features into float[groups, N, components of the irreps times channels per group]."""
        parts = []
        for irrep, channels in self.channels.items():
            x = features[irrep]
            n, dim, _ = x.shape
            if self.missing[irrep]:
                x = torch.cat([x, x.new_zeros(n, dim, self.missing[irrep])], dim=-1)
            x = x.reshape(n, dim, self.groups, channels // self.groups)
            parts.append(x.permute(2, 0, 1, 3).reshape(self.groups, n, -1))
        if self.padding:
            parts.append(parts[0].new_zeros(self.groups, n, self.padding))
        return torch.cat(parts, dim=2)


class Interaction(nn.Module):
    """One interaction: a density, its products up to the correlation order, and the next features.

    Args:
        config: Configuration of the network.
        channels_in: Number of channels of each irrep of the senders' features.
        channels_out: Number of channels of each irrep of the next features.
        n_elements: Number of elements that the network supports.
        mean_neighbors: Mean number of neighbours, as in `Density`.
        residual: Whether the atom's own features are added. In the first interaction, these depend only on its
            element, and adding them would give an isolated atom an energy.

    Attributes:
        channels_out: Number of channels of each irrep that the interaction produces. A requested irrep is missing if it
            first appears in a later interaction.
    """

    def __init__(
        self,
        config: NetworkConfig,
        channels_in: Mapping[Irrep, int],
        channels_out: Mapping[Irrep, int],
        n_elements: int,
        mean_neighbors: float,
        *,
        residual: bool,
    ) -> None:
        super().__init__()
        hidden = {ir: mul for mul, ir in o3.Irreps(config.hidden_irreps)}
        channels = max(hidden.values())
        degree = max(config.l_max, *(ir.l for ir in (*hidden, *channels_out)))
        harmonics = harmonic_irreps(config.l_max, config.symmetry)
        # Products always need the irreps of the spherical harmonics, and other irreps if the features have them.
        kinds = {*channels_out}
        if config.correlation > 1:
            kinds |= {*harmonic_irreps(degree, config.symmetry), *hidden}
        inner = [ir for ir in all_irreps(degree, config.symmetry) if ir in kinds]
        reachable = {path.out for path in product_paths(channels_in, harmonics, inner)}
        irreps = [ir for ir in inner if ir in reachable]
        self.density = Density(channels_in, irreps, channels, harmonics, config.n_radial, mean_neighbors)
        self.receiver_scale = nn.Embedding(n_elements, channels)
        nn.init.normal_(self.receiver_scale.weight, mean=1.0, std=0.1)
        wide = dict.fromkeys(irreps, channels)
        # A channel times itself has no antisymmetric part (a x a = 0), but only antisymmetric products yield irreps of
        # the other parity. Unless the symmetry rules out these irreps, the density is multiplied by mixed channels.
        self.mixed = IrrepsLinear(wide, wide) if config.symmetry != "natural" and config.correlation > 1 else None
        self.products, self.reduce = nn.ModuleList(), nn.ModuleList()
        mixes = [wide]
        left = irreps
        for order in range(2, config.correlation + 1):
            last = order == config.correlation
            outputs = sorted({*channels_out} if last else {*channels_out, *inner})
            square = order == 2 and self.mixed is None
            product = ChannelwiseProduct(left, irreps, outputs, channels, square=square)
            self.products.append(product)
            mixes.append(product.channels_out)
            if not last:
                left = [ir for ir in inner if ir in product.channels_out]
                self.reduce.append(IrrepsLinear(product.channels_out, dict.fromkeys(left, channels)))
        made = {ir: mul for ir, mul in channels_out.items() if any(ir in mix for mix in mixes)}
        self.channels_out = made
        self.nonlinearity = _nonlinearity(config.nonlinearity, made)
        gates = self.nonlinearity.gates if isinstance(self.nonlinearity, Gate) else 0
        widened = {ir: mul + (gates if ir == SCALAR else 0) for ir, mul in made.items()}
        self.mix = nn.ModuleList(IrrepsLinear(mix, widened) for mix in mixes)
        self.norm = 1 / math.sqrt(len(mixes))
        self.residual = IrrepsLinear(channels_in, made) if residual else None

    def forward(
        self, features: Features, species: Tensor, basis: Tensor, neighbors: Tensor, reverse: Tensor
    ) -> Features:
        """Compute the next features of all atoms.

        Args:
            features: Features of all atoms.
            species: int64[N], index of each atom's element.
            basis: float[n_radial, N * K, n_harmonics], radial functions times spherical harmonics.
            neighbors: int64[N, K], padded neighbour table.
            reverse: int64[N, K], slot of the opposite edge.

        Returns:
            Features by irrep, float[N, 2 l + 1, channels].
        """
        scale = self.receiver_scale(species).unsqueeze(1)
        density = {ir: x * scale for ir, x in self.density(features, basis, neighbors, reverse).items()}
        out = self.mix[0](density)
        power = density if self.mixed is None else self.mixed(density)
        for order, product in enumerate(self.products):
            multiplied = product(power, density)
            out = _sum_features(out, self.mix[order + 1](multiplied))
            if order < len(self.reduce):
                power = self.reduce[order](multiplied)
        out = {irrep: x * self.norm for irrep, x in out.items()}
        if self.nonlinearity is not None:
            out = self.nonlinearity(out)
        return out if self.residual is None else _sum_features(out, self.residual(features))


class Gate(nn.Module):
    """SiLU on the scalars; every other channel is multiplied by the sigmoid of its own gate scalar.

    Args:
        channels: Number of channels of each output irrep; the input has an additional scalar, the gate, for each
            channel that is not a scalar.
    """

    def __init__(self, channels: Mapping[Irrep, int]) -> None:
        super().__init__()
        self.gated = {ir: mul for ir, mul in channels.items() if ir != SCALAR}
        self.gates = sum(self.gated.values())
        self.widths = [channels[SCALAR], *self.gated.values()]

    def forward(self, features: Features) -> Features:
        """Apply the gates; the result does not contain them."""
        scalars, *gates = torch.split(features[SCALAR], self.widths, dim=-1)
        out = {SCALAR: silu(scalars) * SILU_SCALE}
        for ir, gate in zip(self.gated, gates, strict=True):
            out[ir] = features[ir] * torch.sigmoid(gate)
        return out


class ScalarMix(nn.Module):
    """Adds f to each scalar and multiplies other channels by 1 + f; each channel has its own learned f(all scalars).

    Args:
        channels: Number of channels of each irrep.
    """

    def __init__(self, channels: Mapping[Irrep, int]) -> None:
        super().__init__()
        self.perceptrons = nn.ModuleDict(
            {str(ir): Perceptron(channels[SCALAR], channels[SCALAR], mul) for ir, mul in channels.items()}
        )

    def forward(self, features: Features) -> Features:
        """Combine the channels with the scalars; the result has the same irreps and channels."""
        scalars = features[SCALAR]
        factors = {ir: self.perceptrons[str(ir)](scalars) for ir in features}
        return {ir: x + (factors[ir] if ir == SCALAR else x * factors[ir]) for ir, x in features.items()}


def _nonlinearity(kind: str, channels: Mapping[Irrep, int]) -> Gate | ScalarMix | None:
    if kind == "none":
        return None
    return Gate(channels) if kind == "gate" else ScalarMix(channels)


def _sum_features(a: Features, b: Features) -> Features:
    return {ir: a[ir] + b[ir] if ir in a and ir in b else (a if ir in a else b)[ir] for ir in {**a, **b}}
