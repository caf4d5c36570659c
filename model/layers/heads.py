"""Heads: tensor properties of structures and atoms, predicted from the features of the last interaction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...pipeline.errors import ConfigError
from ...pipeline.graphs.potential import Defined, OutputSpec
from ..config.head import HeadConfig
from ..equivariance.irreps import SCALAR, Features, Irrep
from ..equivariance.tensors import TENSORS, carrier, default_shape, presentation, tensor_basis
from ..statistics import HeadStatistics
from .float64_buffers import Float64Buffers
from .mlp import Perceptron

# exp(A) = exp(A / 2^6)^(2^6), where the series of exp(A / 2^6) has terms up to order 14. The result is exact to float64
# rounding for norms of A up to 30.
_SQUARINGS, _SERIES = 6, 14


class Head(Float64Buffers):
    """Readout of one property.

    Invariant components come from a perceptron on the scalars. All others are linear in the features of their irrep,
    with each channel multiplied by a learned function of the scalars. There are no biases: an isolated atom contributes
    exactly the shift of its element.

    Args:
        name: Name of the head in error messages.
        config: Configuration of the head.
        statistics: Statistics of the head's labels.
        channels: Number of channels of each input irrep.
        symmetry: Symmetry of the network.

    Raises:
        ConfigError: The network never produces one of the head's irreps.
    """

    def __init__(
        self,
        name: str,
        config: HeadConfig,
        statistics: HeadStatistics,
        channels: Mapping[Irrep, int],
        symmetry: str,
    ) -> None:
        super().__init__()
        self.config, self.statistics = config, statistics
        self.basis = tensor_basis(config)
        self.carriers = [(mul, carrier(ir, symmetry)) for mul, ir in self.basis.irreps]
        self._check_reach(name, channels)
        width = config.channels
        self.scalars, self.gates, self.weights = nn.ModuleDict(), nn.ModuleDict(), nn.ParameterDict()
        for place, (mul, ir) in enumerate(self.carriers):
            if ir == SCALAR:
                self.scalars[str(place)] = Perceptron(channels[SCALAR], width, mul)
            else:
                self.gates[str(place)] = Perceptron(channels[SCALAR], width, channels[ir])
                self.weights[str(place)] = nn.Parameter(torch.randn(channels[ir], mul))
        kinds = [ir for mul, ir in self.basis.irreps for _ in range(mul)]
        scales = [scale for scale, ir in zip(statistics.scales, kinds, strict=True) for _ in range(ir.dim)]
        invariant = [ir == SCALAR for ir in kinds for _ in range(ir.dim)]
        shifts = torch.zeros(len(statistics.shifts), self.basis.dim, dtype=torch.float64)
        shifts[:, torch.tensor(invariant)] = torch.tensor(statistics.shifts, dtype=torch.float64)
        self.component_scales: Tensor
        self.element_shifts: Tensor
        self.presenting: Tensor
        self.cartesian: Tensor
        self.register_float64("component_scales", torch.tensor(scales, dtype=torch.float64))
        self.register_float64("element_shifts", shifts)
        # Transposed, since components are row vectors.
        matrix = presentation(self.basis, statistics.shape).T.contiguous()
        self.register_float64("presenting", matrix)
        self.register_float64("cartesian", self.basis.matrix.T.contiguous())

    def _check_reach(self, name: str, channels: Mapping[Irrep, int]) -> None:
        missing = sorted({str(ir) for _, ir in self.carriers if ir not in channels})
        if missing:
            raise ConfigError(
                f"network.heads.{name}: this network never produces {', '.join(missing)}; raise `correlation` or "
                "`n_interactions`, or add irreps to `hidden_irreps`"
            )

    def spec(self, name: str) -> OutputSpec:
        """Return the specification of the head's output.

        Args:
            name: Name of the output.
        """
        kind = TENSORS.get(self.config.tensor) if self.config.irreps is None else None
        defined: Defined = "molecules" if kind is not None and kind.molecules_only else "always"
        return OutputSpec(name, self.config.per, self.statistics.shape, self.statistics.unit, defined)

    def forward(self, features: Features, species: Tensor, members: Tensor) -> Tensor:
        """Predict the irrep components (with `transform: log`, of the logarithm), in the unit of the labels.

        Args:
            features: Features of the last interaction.
            species: int64[N], index of each atom's element.
            members: float64[G, N], 1 where the atom belongs to the structure.

        Returns:
            float64[G, dim], or float64[N, dim] for a property of atoms.
        """
        scalars = features[SCALAR].squeeze(1)
        parts = []
        for place, (mul, ir) in enumerate(self.carriers):
            if ir == SCALAR:
                parts.append(self.scalars[str(place)](scalars))
                continue
            x = features[ir]
            n, dim, channels = x.shape
            gated = x * (1 + self.gates[str(place)](scalars)).unsqueeze(1)
            weight = self.weights[str(place)] / math.sqrt(channels)
            out = (gated.reshape(n * dim, channels) @ weight).view(n, dim, mul)
            parts.append(out.transpose(1, 2).reshape(n, mul * dim))
        components = torch.cat(parts, dim=1).double() * self.component_scales + self.element_shifts[species]
        if self.config.per == "atom":
            return components
        pooled = members @ components
        return pooled if self.config.extensive else pooled / members.sum(1, keepdim=True)

    def present(self, components: Tensor) -> Tensor:
        """Convert components float64[n, dim] to the property itself, float64[n, *shape]."""
        if self.config.transform == "log":
            components = self._exponential(components)
        return (components @ self.presenting).reshape(-1, *self.statistics.shape)

    def _exponential(self, components: Tensor) -> Tensor:
        if self.basis.rank == 0:
            return components.exp()
        matrix = (components @ self.cartesian).view(-1, 3, 3) / 2**_SQUARINGS
        unit = torch.eye(3, dtype=matrix.dtype, device=matrix.device).unsqueeze(0)
        series = unit + matrix / _SERIES
        for k in range(_SERIES - 1, 0, -1):
            series = unit + torch.bmm(matrix, series) / k
        for _ in range(_SQUARINGS):
            series = torch.bmm(series, series)
        exponential: Tensor = series.reshape(-1, 9) @ self.cartesian.T
        return exponential


def neutral_statistics(config: HeadConfig, n_elements: int) -> HeadStatistics:
    """Return placeholder statistics for a head without labels: zero shifts and unit scales."""
    basis = tensor_basis(config)
    invariants = sum(mul for mul, ir in basis.irreps if ir == SCALAR)
    return HeadStatistics(
        shape=config.shape if config.shape is not None else default_shape(basis),
        unit="",
        shifts=((0.0,) * invariants,) * n_elements,
        scales=(1.0,) * sum(mul for mul, _ in basis.irreps),
    )


def head_channels(heads: Sequence[HeadConfig], symmetry: str) -> dict[Irrep, int]:
    """Return the number of channels of each irrep that the last interaction must provide for the heads."""
    required: dict[Irrep, int] = {}
    for head in heads:
        for _, ir in tensor_basis(head).irreps:
            key = carrier(ir, symmetry)
            required[key] = max(required.get(key, 0), head.channels)
    return required
