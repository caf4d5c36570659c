"""Errors of a network or an ensemble on labelled structures, in the units in which they are reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.batches import Batch
from ..networks.base import Network


@dataclass(frozen=True, slots=True)
class Comparison:
    """Predictions of one quantity with their labels, where there are labels.

    Attributes:
        unit: Unit of predictions and labels.
        found: float64[n], predicted components.
        label: float64[n], labelled components.
    """

    unit: str
    found: NDArray[np.float64]
    label: NDArray[np.float64]

    @property
    def mae(self) -> float:
        """Mean absolute error, in `unit`; NaN without labels."""
        return float(np.abs(self.found - self.label).mean()) if len(self.label) else float("nan")


def error_units(network: Network) -> dict[str, str]:
    """Return the units of reported errors by output: eV/atom for the energy, otherwise the unit of the output."""
    return {spec.name: "eV/atom" if spec.name == "energy" else spec.unit for spec in network.outputs}


def compare(network: Network, batches: Iterable[Batch], parts: int = 1) -> dict[str, Comparison]:
    """Evaluate labelled batches on the network's device.

    Args:
        network: The network; it is left in evaluation mode.
        batches: Batches on any device.
        parts: Number of parts that each batch is split into, to fit into memory.

    Returns:
        Predictions and labels of each output, by name.
    """
    network.eval()
    device = network.reference_energies.device
    units = error_units(network)
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in units}
    labels: dict[str, list[NDArray[np.float64]]] = {name: [] for name in units}
    for batch in (part for whole in batches for part in whole.split(parts)):
        moved = batch.to(device)
        with torch.no_grad():
            pairs = predictions_and_labels(network, network.predict(*moved.inputs), moved)
        for name, (value, label) in pairs.items():
            known = torch.isfinite(label)
            found[name].append(value[known].cpu().numpy())
            labels[name].append(label[known].cpu().numpy())
    return {name: Comparison(units[name], _concatenate(found[name]), _concatenate(labels[name])) for name in units}


def _concatenate(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate(parts) if parts else np.zeros(0)


def mae_by_name(comparisons: Mapping[str, Comparison]) -> dict[str, float]:
    """Return mean absolute errors by name and unit, such as ``energy eV/atom``."""
    return {f"{name} {x.unit}".rstrip(): x.mae for name, x in comparisons.items()}


def predictions_and_labels(network: Network, found: Any, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair predictions with labels, in the units in which errors are reported: energies per atom, heads as tensors."""
    out: dict[str, tuple[Tensor, Tensor]] = {}
    if found.energy is not None:
        out["energy"] = (found.energy / batch.n_atoms, batch.labels["energy"] / batch.n_atoms)
        out["forces"] = (found.forces.double(), batch.labels["forces"])
        out["stress"] = (found.virial / batch.input("volume").view(-1, 1, 1), batch.labels["stress"])
    for name, head in network.named_heads():
        out[name] = (head.present(found.heads[name]), head.present(batch.labels[name]))
    return {name: (value.detach(), label) for name, (value, label) in out.items()}
