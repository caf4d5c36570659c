"""Ensembles of networks: the mean is the prediction, the spread its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...pipeline.errors import CheckpointError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.potential import SPREAD, Evaluation, OutputSpec, with_spread
from .base import Network
from .torch_potential import TorchPotential


class EnsemblePotential:
    """An ensemble of networks as one potential.

    Args:
        networks: At least two networks with the same elements, cutoff, outputs and dtype.

    Raises:
        CheckpointError: There are fewer than two networks, or their elements, cutoff, outputs or dtype differ.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self.members = [TorchPotential(network) for network in networks]
        check_members(networks)

    @property
    def cutoff(self) -> float:
        """Cutoff radius (angstrom)."""
        return self.members[0].cutoff

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the networks support."""
        return self.members[0].elements

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """Specifications of the outputs: means, and standard deviations with the suffix ``_std``."""
        return with_spread(self.members[0].outputs)

    def evaluate(self, block: GraphBlock) -> Evaluation:
        """Compute the means of all outputs, with their standard deviations as properties.

        Raises:
            UnknownElementError: The block contains an element that the networks do not support.
        """
        found = [member.evaluate(block).arrays() for member in self.members]
        stacked = {name: np.stack([arrays[name] for arrays in found]) for name in found[0]}
        means = {name: values.mean(axis=0) for name, values in stacked.items()}
        names = [spec.name for spec in self.members[0].outputs]
        spread = {f"{name}{SPREAD}": stacked[name].std(axis=0, ddof=1) for name in names}
        energy, forces, stress = (means.pop(name) for name in ("energy", "forces", "stress"))
        return Evaluation(energy, forces, stress, {**means, **spread})


def check_members(networks: Sequence[Network]) -> None:
    """Check that networks can be members of one ensemble.

    Raises:
        CheckpointError: There are fewer than two networks, or their elements, cutoff, outputs or dtype differ.
    """
    if len(networks) < 2:
        raise CheckpointError(f"an ensemble needs at least two networks, not {len(networks)}")
    kinds = {(x.elements, x.cutoff, x.outputs, x.dtype) for x in networks}
    if len(kinds) > 1:
        raise CheckpointError(
            "the members of the ensemble differ in elements, cutoff, outputs or dtype; export each member separately"
        )
