"""Interactions: what an atom makes of its neighbours' features.

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

from .config import NetworkConfig
from .gather import gather_senders
from .irreps import ChannelwiseProduct, Features, Irrep, IrrepsLinear, coupling, product_paths, split_paths
from .perceptron import SILU_SCALE, Perceptron
from .symmetry import all_irreps, harmonic_irreps

SCALAR = Irrep("0e")


class Density(nn.Module):
    """The sum over neighbours, coupled to irreps.

    Args:
        channels_in: Of the neighbours' features.
        irreps_out: Irreps of the density.
        channels_out: Of each of them.
        harmonics: Irreps that the spherical harmonics stand for, one for each degree.
        n_radial: Radial functions.
        mean_neighbors: The sum is divided by its square root.
    """

    def __init__(
        self,
        channels_in: Mapping[Irrep, int],
        irreps_out: Sequence[Irrep],
        channels_out: int,
        harmonics: Sequence[Irrep],
        n_radial: int,
        mean_neighbors: float,
    ) -> None:
        super().__init__()
        self.channels_in = dict(channels_in)
        self.n_radial = n_radial
        l_max = len(harmonics) - 1
        self.n_harmonics = (l_max + 1) ** 2
        self.paths = {}
        mixed: dict[Irrep, int] = {}
        self.radial_weights = nn.ParameterDict()
        for irrep, channels in self.channels_in.items():
            paths = product_paths([irrep], harmonics, irreps_out)
            self.paths[irrep] = paths
            for path in paths:
                mixed[path.out] = mixed.get(path.out, 0) + channels
            # Columns over (component of the harmonics, component of the feature).
            matrix = torch.zeros(sum(p.out.dim for p in paths), self.n_harmonics, irrep.dim, dtype=torch.float64)
            row = 0
            for path in paths:
                here = slice(path.right.l**2, (path.right.l + 1) ** 2)
                matrix[row : row + path.out.dim, here] = coupling(path).permute(2, 1, 0)
                row += path.out.dim
            self.register_buffer(f"coupling_{irrep}", matrix.flatten(1), persistent=False)
            self.radial_weights[str(irrep)] = nn.Parameter(torch.randn(n_radial, l_max + 1, channels))
        degree_of = torch.repeat_interleave(torch.arange(l_max + 1), torch.arange(l_max + 1) * 2 + 1)
        self.register_buffer("degree_of", degree_of, persistent=False)
        self.mix = IrrepsLinear(mixed, dict.fromkeys(irreps_out, channels_out))
        self.norm = 1 / math.sqrt(n_radial * mean_neighbors)

    def forward(self, features: Features, basis: Tensor, neighbors: Tensor, reverse: Tensor) -> Features:
        """Sum over the slots of each atom.

        Args:
            features: Of all atoms.
            basis: float[N, K, n_radial * n_harmonics].
            neighbors: int64[N, K].
            reverse: int64[N, K].
        """
        n = basis.shape[0]
        flat = torch.cat([features[irrep].reshape(n, -1) for irrep in self.channels_in], dim=1)
        sent = gather_senders(flat, neighbors, reverse)
        summed = torch.bmm(basis.transpose(1, 2), sent)
        widths = [irrep.dim * channels for irrep, channels in self.channels_in.items()]
        by_irrep: dict[Irrep, list[Tensor]] = {}
        for (irrep, channels), part in zip(self.channels_in.items(), torch.split(summed, widths, dim=2), strict=True):
            weights = self.radial_weights[str(irrep)].index_select(1, self.degree_of) * self.norm
            moments = part.reshape(n, self.n_radial, self.n_harmonics, irrep.dim, channels)
            moments = (moments * weights.unsqueeze(2)).sum(1).reshape(n, self.n_harmonics * irrep.dim, channels)
            coupled = torch.matmul(getattr(self, f"coupling_{irrep}"), moments)
            for out, piece in split_paths(coupled, self.paths[irrep]).items():
                by_irrep.setdefault(out, []).append(piece)
        mixed: Features = self.mix({irrep: torch.cat(pieces, dim=-1) for irrep, pieces in by_irrep.items()})
        return mixed


class Interaction(nn.Module):
    """A density, its products up to the correlation order, and the next features.

    Args:
        config: Architecture.
        channels_in: Of the features that neighbours send.
        channels_out: Of the next features.
        n_elements: Elements that receive.
        mean_neighbors: See `Density`.
        residual: Whether the atom's own features are added. The first interaction's are a constant of the element, and
            adding them would give an atom without neighbours an energy.

    Attributes:
        channels_out: What it makes; an irrep that is wanted may need one more interaction to be filled.
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
        # Those of spherical harmonics always, others where features have them.
        kinds = {*harmonic_irreps(degree, config.symmetry), *hidden, *channels_out}
        inner = [ir for ir in all_irreps(degree, config.symmetry) if ir in kinds]
        reachable = {path.out for path in product_paths(channels_in, harmonics, inner)}
        irreps = [ir for ir in inner if ir in reachable]
        self.density = Density(channels_in, irreps, channels, harmonics, config.n_radial, mean_neighbors)
        self.receiver_scale = nn.Embedding(n_elements, channels)
        nn.init.normal_(self.receiver_scale.weight, mean=1.0, std=0.1)
        wide = dict.fromkeys(irreps, channels)
        # Products of a channel with itself have no antisymmetric part (a x a = 0), which all that is of the other
        # parity begins with: there, mixed channels are multiplied.
        self.mixed = IrrepsLinear(wide, wide) if config.symmetry != "natural" and config.correlation > 1 else None
        self.products, self.reduce = nn.ModuleList(), nn.ModuleList()
        mixes = [wide]
        left = irreps
        for order in range(2, config.correlation + 1):
            last = order == config.correlation
            wanted = sorted({*channels_out} if last else {*channels_out, *inner})
            product = ChannelwiseProduct(left, irreps, wanted, channels)
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
        """The next features of all atoms.

        Args:
            features: Of all atoms.
            species: int64[N].
            basis: float[N, K, n_radial * n_harmonics].
            neighbors: int64[N, K].
            reverse: int64[N, K].
        """
        scale = self.receiver_scale(species).unsqueeze(1)
        density = {ir: x * scale for ir, x in self.density(features, basis, neighbors, reverse).items()}
        out = self.mix[0](density)
        power = density if self.mixed is None else self.mixed(density)
        for order, product in enumerate(self.products):
            multiplied = product(power, density)
            out = _added(out, self.mix[order + 1](multiplied))
            if order < len(self.reduce):
                power = self.reduce[order](multiplied)
        out = {irrep: x * self.norm for irrep, x in out.items()}
        if self.nonlinearity is not None:
            out = self.nonlinearity(out)
        return out if self.residual is None else _added(out, self.residual(features))


class Gate(nn.Module):
    """SiLU of the scalars; each channel of the other features times the sigmoid of a scalar of its own.

    Args:
        channels: Of the features; the scalars come with `gates` more channels.
    """

    def __init__(self, channels: Mapping[Irrep, int]) -> None:
        super().__init__()
        self.gated = {ir: mul for ir, mul in channels.items() if ir != SCALAR}
        self.gates = sum(self.gated.values())
        self.widths = [channels[SCALAR], *self.gated.values()]

    def forward(self, features: Features) -> Features:
        """Drops the gates."""
        scalars, *gates = torch.split(features[SCALAR], self.widths, dim=-1)
        out = {SCALAR: silu(scalars) * SILU_SCALE}
        for ir, gate in zip(self.gated, gates, strict=True):
            out[ir] = features[ir] * torch.sigmoid(gate)
        return out


class ScalarMix(nn.Module):
    """Each channel times one more than a learned function of all scalars; the scalars plus another one.

    Args:
        channels: Of the features.
    """

    def __init__(self, channels: Mapping[Irrep, int]) -> None:
        super().__init__()
        self.perceptrons = nn.ModuleDict(
            {str(ir): Perceptron(channels[SCALAR], channels[SCALAR], mul) for ir, mul in channels.items()}
        )

    def forward(self, features: Features) -> Features:
        """Features of the same kinds."""
        scalars = features[SCALAR]
        factors = {ir: self.perceptrons[str(ir)](scalars) for ir in features}
        return {ir: x + (factors[ir] if ir == SCALAR else x * factors[ir]) for ir, x in features.items()}


def _nonlinearity(kind: str, channels: Mapping[Irrep, int]) -> Gate | ScalarMix | None:
    if kind == "none":
        return None
    return Gate(channels) if kind == "gate" else ScalarMix(channels)


def _added(a: Features, b: Features) -> Features:
    return {ir: a[ir] + b[ir] if ir in a and ir in b else (a if ir in a else b)[ir] for ir in {**a, **b}}
