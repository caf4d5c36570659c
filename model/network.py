"""The equivariant network: neighbour tables to energy, forces and stress.

Every interaction sums learned radial functions times spherical harmonics times the neighbours' features into a density
on each atom, couples the density's components to irreps, takes products of the density with itself (the atomic cluster
expansion, Drautz, Phys. Rev. B 99, 014104 (2019)) and mixes channels. All layers lack biases, and an atom's own
features enter only through products with its density: an atom without neighbours has exactly its reference energy.

The sum over neighbours is one batched matrix product per atom; Clebsch-Gordan coefficients and radial weights act once
per atom, not once per edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor, nn

from .config import NetworkConfig
from .gather import gather_senders, permute_slots
from .irreps import (
    ChannelwiseProduct,
    Features,
    Irrep,
    IrrepsLinear,
    SphericalHarmonics,
    coupling,
    natural_irreps,
    product_paths,
    split_paths,
)
from .perceptron import Perceptron

SCALAR = Irrep("0e")
MAX_ATOMIC_NUMBER = 118


@dataclass(frozen=True, slots=True)
class DataStatistics:
    """What a network takes from its training set besides its weights.

    Attributes:
        reference_energies: eV, for each element of the network, in the order of its elements.
        energy_scale: eV; energies of atoms are the network's numbers times this.
        mean_neighbors: Average number of neighbours of an atom within the cutoff.
    """

    reference_energies: tuple[float, ...]
    energy_scale: float = 1.0
    mean_neighbors: float = 20.0


class RadialBasis(nn.Module):
    """Learned radial functions: a perceptron without biases on Chebyshev polynomials with a smooth envelope.

    The envelope (with p = 6: twice differentiable at the cutoff) is that of Gasteiger et al., "Directional message
    passing", ICLR 2020. Their Bessel functions would need a sine, whose last bit depends, in ONNX Runtime on the CPU,
    on the element's place in the tensor, and so on the number of threads; polynomials have no such trouble.
    """

    def __init__(self, config: NetworkConfig, cutoff: float) -> None:
        super().__init__()
        self.cutoff, self.n_basis = cutoff, config.n_basis
        self.perceptrons = nn.ModuleList(
            Perceptron(config.n_basis, config.radial_hidden, config.n_radial) for _ in range(config.n_interactions)
        )

    def forward(self, distance: Tensor) -> list[Tensor]:
        """float[N, K, 1] to float[N, K, n_radial] for each interaction."""
        u = distance / self.cutoff
        cube = u * u * u
        polynomial = 1 + cube * cube * (-28 + u * (48 - 21 * u))
        envelope = torch.where(u < 1, polynomial, torch.zeros_like(u))
        x = 1 - 2 * u
        chebyshev = [torch.ones_like(x), x]
        for _ in range(2, self.n_basis):
            chebyshev.append(2 * x * chebyshev[-1] - chebyshev[-2])
        basis = torch.cat(chebyshev[: self.n_basis], dim=-1) * envelope
        return [perceptron(basis) for perceptron in self.perceptrons]


class Density(nn.Module):
    """The sum over neighbours, coupled to irreps.

    Args:
        channels_in: Of the neighbours' features.
        irreps_out: Irreps of the density.
        channels_out: Of each of them.
        l_max: Of the harmonics.
        n_radial: Radial functions.
        mean_neighbors: The sum is divided by its square root.
    """

    def __init__(
        self,
        channels_in: Mapping[Irrep, int],
        irreps_out: Sequence[Irrep],
        channels_out: int,
        l_max: int,
        n_radial: int,
        mean_neighbors: float,
    ) -> None:
        super().__init__()
        self.channels_in = dict(channels_in)
        self.n_radial = n_radial
        harmonics = natural_irreps(l_max)
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
        channels = max(mul for mul, _ in o3.Irreps(config.hidden_irreps))
        hidden = [ir for _, ir in o3.Irreps(config.hidden_irreps)]
        degree = max(config.l_max, *(ir.l for ir in hidden))
        reachable = {path.out for path in product_paths(channels_in, natural_irreps(config.l_max), _both(degree))}
        # Natural irreps always, others where the hidden features have them.
        irreps = [ir for ir in _both(degree) if ir in reachable and (ir in natural_irreps(degree) or ir in hidden)]
        self.density = Density(channels_in, irreps, channels, config.l_max, config.n_radial, mean_neighbors)
        self.receiver_scale = nn.Embedding(n_elements, channels)
        nn.init.normal_(self.receiver_scale.weight, mean=1.0, std=0.1)
        outs = list(channels_out)
        self.products = nn.ModuleList()
        self.reduce = nn.ModuleList()
        mixes = [IrrepsLinear(dict.fromkeys(irreps, channels), channels_out)]
        for order in range(2, config.correlation + 1):
            wanted = sorted({*outs, *irreps}) if order < config.correlation else outs
            product = ChannelwiseProduct(irreps, irreps, wanted, channels)
            self.products.append(product)
            mixes.append(IrrepsLinear(product.channels_out, channels_out))
            if order < config.correlation:
                self.reduce.append(IrrepsLinear(product.channels_out, dict.fromkeys(irreps, channels)))
        # What the products reach; an irrep of `channels_out` may need one more interaction to be filled.
        self.channels_out = {ir: channels_out[ir] for ir in outs if any(ir in mix.irreps for mix in mixes)}
        self.mix = nn.ModuleList(mixes)
        self.norm = 1 / math.sqrt(len(self.mix))
        self.residual = IrrepsLinear(channels_in, channels_out) if residual else None

    def forward(
        self, features: Features, species: Tensor, basis: Tensor, neighbors: Tensor, reverse: Tensor
    ) -> Features:
        """The next features of all atoms."""
        scale = self.receiver_scale(species).unsqueeze(1)
        density = {ir: x * scale for ir, x in self.density(features, basis, neighbors, reverse).items()}
        out = self.mix[0](density)
        power = density
        for order, product in enumerate(self.products):
            multiplied = product(power, density)
            out = _added(out, self.mix[order + 1](multiplied))
            if order < len(self.reduce):
                power = self.reduce[order](multiplied)
        out = {irrep: x * self.norm for irrep, x in out.items()}
        return out if self.residual is None else _added(out, self.residual(features))


class EquivariantNetwork(nn.Module):
    """An interatomic potential whose features are irreps with parity.

    Args:
        config: Architecture; its cutoff has to be set.
        elements: Atomic numbers that it knows, ascending.
        statistics: Of the training set.
        dtype: Of weights and features. The constants of the algebra are made in float64 and rounded to it; a network
            that is cast to float64 afterwards keeps them rounded.
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
        self.config, self.elements, self.statistics = config, tuple(elements), statistics
        self.cutoff = config.cutoff
        hidden = {ir: mul for mul, ir in o3.Irreps(config.hidden_irreps)}
        scalars = {SCALAR: hidden[SCALAR]}
        index = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.int64)
        index[torch.tensor(self.elements)] = torch.arange(len(self.elements))
        self.species_index: Tensor
        self.register_buffer("species_index", index, persistent=False)
        self.embedding = nn.Embedding(len(self.elements), hidden[SCALAR])
        self.radial = RadialBasis(config, self.cutoff)
        self.harmonics = SphericalHarmonics(config.l_max)
        self.interactions = nn.ModuleList()
        sent = scalars
        for layer in range(config.n_interactions):
            wanted = scalars if layer == config.n_interactions - 1 else hidden
            interaction = Interaction(
                config, sent, wanted, len(self.elements), statistics.mean_neighbors, residual=layer > 0
            )
            self.interactions.append(interaction)
            sent = interaction.channels_out
        self.readouts = nn.ModuleList(Perceptron(hidden[SCALAR], 1) for _ in range(config.n_interactions - 1))
        self.readouts.append(Perceptron(hidden[SCALAR], config.readout_hidden, 1))
        self.reference_energies: Tensor
        self.register_buffer("reference_energies", torch.tensor(statistics.reference_energies, dtype=torch.float64))
        self.to(dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and features."""
        return self.embedding.weight.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EquivariantNetwork:
        """Change dtype or device; reference energies stay in float64."""
        references = self.reference_energies
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.reference_energies = references.to(self.reference_energies.device)
        return self

    def atom_energies(self, species: Tensor, vectors: Tensor, neighbors: Tensor, reverse: Tensor) -> Tensor:
        """float[N], what the atoms have beyond their reference energies, in units of the energy scale."""
        n, k = neighbors.shape
        distance = torch.sqrt((vectors * vectors).sum(-1, keepdim=True))
        harmonics = self.harmonics((vectors / distance).reshape(n * k, 3)).view(n, k, 1, -1)
        features = {SCALAR: self.embedding(species).unsqueeze(1)}
        energies = []
        for interaction, radial, readout in zip(self.interactions, self.radial(distance), self.readouts, strict=True):
            basis = (radial.unsqueeze(-1) * harmonics).reshape(n, k, -1)
            features = interaction(features, species, basis, neighbors, reverse)
            energies.append(readout(features[SCALAR].squeeze(1)))
        return torch.cat(energies, dim=-1).sum(-1)

    def forward(
        self,
        atomic_number: Tensor,
        vectors: Tensor,
        neighbors: Tensor,
        reverse: Tensor,
        structure: Tensor,
        volume: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energy with its exact gradients, for a `NeighborTable`.

        Args:
            atomic_number: int64[N].
            vectors: float[N, K, 3], angstrom.
            neighbors: int64[N, K].
            reverse: int64[N, K].
            structure: int64[N].
            volume: float64[G], angstrom^3.

        Returns:
            energy float64[G] in eV, forces float[N, 3] in eV/angstrom, stress float64[G, 3, 3] in eV/angstrom^3 (of no
            meaning where the volume is not).
        """
        species = self.species_index[atomic_number]
        vectors = vectors.detach().requires_grad_(True)  # noqa: FBT003
        with torch.enable_grad():
            energies = self.atom_energies(species, vectors, neighbors, reverse)
            (gradient,) = torch.autograd.grad(energies.sum(), vectors, create_graph=self.training)
        if not self.training:
            energies = energies.detach()
            vectors = vectors.detach()
        scale = self.statistics.energy_scale
        forces = (gradient - permute_slots(gradient, reverse)).sum(1) * scale
        virial = torch.bmm(vectors.transpose(1, 2), gradient)
        virial = (virial + virial.transpose(1, 2)).reshape(-1, 9).double() * (scale / 2)
        members = (structure.unsqueeze(0) == torch.arange(volume.shape[0], device=volume.device).unsqueeze(1)).double()
        energy = members @ (energies.double() * scale + self.reference_energies[species])
        stress = (members @ virial).view(-1, 3, 3) / volume.view(-1, 1, 1)
        return energy, forces, stress


def _both(l_max: int) -> list[Irrep]:
    """All irreps up to a degree, of both parities."""
    return [Irrep(degree, parity) for degree in range(l_max + 1) for parity in (1, -1)]


def _added(a: Features, b: Features) -> Features:
    return {ir: a[ir] + b[ir] if ir in a and ir in b else (a if ir in a else b)[ir] for ir in {**a, **b}}
