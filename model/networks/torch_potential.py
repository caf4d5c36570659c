"""A network as a potential: graphs in, energies, forces, stresses and properties out, evaluated in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.neighbor_table import INPUT_NAMES
from ...pipeline.graphs.potential import Evaluation, OutputSpec, evaluate_in_buckets
from .base import Network

DEFAULT_SLOTS = 8_192


class TorchPotential:
    """A network, evaluated eagerly on the device that holds its weights.

    Args:
        network: The network; it is set to evaluation mode.
        slots: Number of neighbour slots per batch.
    """

    def __init__(self, network: Network, slots: int = DEFAULT_SLOTS) -> None:
        self.network = network.eval()
        self.slots = slots

    @property
    def cutoff(self) -> float:
        """Cutoff radius (angstrom)."""
        return self.network.cutoff

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the network supports."""
        return self.network.elements

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """Specifications of the outputs."""
        return self.network.outputs

    def evaluate(self, block: GraphBlock) -> Evaluation:
        """Compute all outputs for all structures of a block.

        Raises:
            UnknownElementError: The block contains an element that the network does not support.
        """
        dtype = np.dtype(np.float64 if self.network.dtype == torch.float64 else np.float32)
        return evaluate_in_buckets(block, self, dtype, self.slots, self._run_table)

    def _run_table(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        device = self.network.reference_energies.device
        inputs = (torch.from_numpy(np.ascontiguousarray(arrays[name])).to(device) for name in INPUT_NAMES)
        found = self.network(*inputs)
        return {spec.name: x.detach().cpu().numpy() for spec, x in zip(self.outputs, found, strict=True)}
