"""How much a network without parity changes when a crystal is mirrored, and its mean with its mirror image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...pipeline.errors import ConfigError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.potential import Potential
from ...pipeline.structures.random_crystals import probe_structures
from ...pipeline.structures.structure import Structure
from ..config.network import Architecture
from ..equivariance.irreps import Features
from ..equivariance.rotation import rotate_property
from ..layers.table import Table
from .base import Network

_PROBES, _SEED = 12, 21


def mirror_violation(potential: Potential, config: Architecture) -> dict[str, float]:
    """Largest differences between structures and their images under inversion, by output with unit.

    Energies count per atom. The structures are random crystals of the network's elements, without symmetry of their
    own.

    Args:
        potential: The network.
        config: Its architecture, which tells what an inversion does to a head.
    """
    structures = probe_structures(potential.elements, _PROBES, _SEED, cutoff=potential.cutoff)
    mirrored = [Structure.from_fractional(s.atomic_number, -s.cell, s.frac_coord) for s in structures]
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
    """The mean of a network and of its mirror image, which knows parity where the network does not.

    It takes twice the time. What it changes is half of the network's `mirror_violation`, at most.

    Args:
        network: With an energy, and without heads.

    Raises:
        ConfigError: A network with heads, or one that knows parity already.
    """

    def __init__(self, network: Network) -> None:
        if network.config.symmetry != "so3":
            raise ConfigError(f"a network of the symmetry {network.config.symmetry} is the same as its mirror image")
        if network.config.heads:
            raise ConfigError("networks with heads cannot be averaged with their mirror images")
        super().__init__(network.config, network.elements, network.statistics)
        self.config, self.network = network.config, network

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and features."""
        return self.network.dtype

    def layers(self, species: Tensor, table: Table) -> list[Features]:
        """Features behind each interaction, then those of the inverted structures."""
        inverted = table._replace(vectors=-table.vectors)
        return [*self.network.layers(species, table), *self.network.layers(species, inverted)]

    def relative_energies(self, layers: Sequence[Features]) -> Tensor:
        """Energies of the atoms, in units of their scales and without references: float[N]."""
        half = len(layers) // 2
        return (self.network.relative_energies(layers[:half]) + self.network.relative_energies(layers[half:])) / 2
