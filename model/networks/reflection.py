"""Mirror symmetry of networks without parity: how much they violate it, and how averaging restores it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ...pipeline.errors import ConfigError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.potential import Potential
from ...pipeline.structures.structure import Structure
from ..config.network import Architecture
from ..equivariance.irreps import Features
from ..equivariance.rotation import rotate_property
from ..layers.table import Table
from ..probes import ProbeSource, tame
from ..statistics import GeometryStatistics
from .base import Network

# Number of structures that are compared with their mirror images.
MIRROR_STRUCTURES = 32
_POOL, _SEED = 40, 21


def mirror_violation(
    potential: Potential, config: Architecture, geometry: GeometryStatistics | None = None
) -> dict[str, float]:
    """Measure the largest difference of each output between structures and their inverted images.

    Energies are compared per atom. The `MIRROR_STRUCTURES` structures are random, have no symmetry, and consist of the
    network's elements. Their distances, density and size resemble the training data; if these are unknown, distances
    are about the sums of covalent radii. Other structures can differ more, so the result is a lower bound.

    Args:
        potential: The network as a potential.
        config: Configuration of the network, which determines how its heads transform under inversion.
        geometry: Statistics of the training data; None if they are unknown.

    Returns:
        Differences by output and unit, such as ``energy eV/atom``.
    """
    source = ProbeSource.of(potential.elements, potential.cutoff, geometry)
    structures, _ = tame(potential, source.structures(_POOL, _SEED), MIRROR_STRUCTURES)
    mirrored = [
        Structure.from_fractional(s.atomic_number, -s.cell, s.frac_coord)
        if s.pbc.any()
        else Structure.from_cartesian(s.atomic_number, -s.positions)
        for s in structures
    ]
    blocks = [GraphBlock.from_structures(some, potential.cutoff) for some in (structures, mirrored)]
    before, after = (potential.evaluate(block).arrays() for block in blocks)
    out = {}
    for spec in potential.outputs:
        expected = before[spec.name]
        if spec.name == "forces":
            expected = -expected
        elif spec.name in config.heads:
            expected = rotate_property(expected, config.heads[spec.name], spec.shape, -np.eye(3))
        difference = np.abs(after[spec.name] - expected)
        if spec.name == "energy":
            difference = difference / blocks[0].n_atoms
        if not np.isnan(difference).all():
            unit = "eV/atom" if spec.name == "energy" else spec.unit
            out[f"{spec.name} {unit}".rstrip()] = float(np.nanmax(difference))
    return out


class MirrorAveraged(Network):
    """The mean of a network without parity and its mirror image, which respects mirror symmetry.

    Evaluations take twice as long. Averaging changes a prediction by half of the difference between the network's
    predictions for a structure and for its mirror image.

    Args:
        network: A network with an energy, without heads and without parity.

    Raises:
        ConfigError: The network has heads, or already tracks parity.
    """

    def __init__(self, network: Network) -> None:
        if network.config.symmetry != "so3":
            raise ConfigError(
                f"a network with `symmetry: {network.config.symmetry}` already respects mirror symmetry; remove "
                "`--average-mirror`"
            )
        if network.config.heads:
            raise ConfigError(
                "networks with heads cannot be averaged with their mirror images; remove `--average-mirror`"
            )
        super().__init__(network.config, network.elements, network.statistics)
        self.config, self.network = network.config, network

    def layers(self, species: Tensor, table: Table) -> list[Features]:
        """Compute the features after each interaction, first of the structures and then of their inverted images."""
        inverted = table._replace(vectors=-table.vectors)
        return [*self.network.layers(species, table), *self.network.layers(species, inverted)]

    def relative_energies(self, layers: Sequence[Features]) -> Tensor:
        """Compute atomic energies relative to the reference energies, in units of the energy scales: float[N]."""
        half = len(layers) // 2
        return (self.network.relative_energies(layers[:half]) + self.network.relative_energies(layers[half:])) / 2
