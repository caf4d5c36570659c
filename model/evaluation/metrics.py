"""Errors of a network, or of an ensemble, on structures with labels, in the units in which they are told."""

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
    """Predictions beside labels, where there are labels.

    Attributes:
        unit: Of both.
        found: float64[n], components of the quantity one after the other.
        label: float64[n].
    """

    unit: str
    found: NDArray[np.float64]
    label: NDArray[np.float64]

    @property
    def mae(self) -> float:
        """Mean absolute error; NaN without labels."""
        return float(np.abs(self.found - self.label).mean()) if len(self.label) else float("nan")


def error_units(network: Network) -> dict[str, str]:
    """Units in which errors of its outputs are told: the energy per atom, everything else as it stands."""
    return {spec.name: "eV/atom" if spec.name == "energy" else spec.unit for spec in network.outputs}


def compare(network: Network, batches: Iterable[Batch], parts: int = 1) -> dict[str, Comparison]:
    """Evaluate labelled batches, where the network is.

    Args:
        network: In evaluation mode afterwards.
        batches: On any device.
        parts: In which each is evaluated, as far as memory was short before.
    """
    network.eval()
    device = network.reference_energies.device
    units = error_units(network)
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in units}
    labels: dict[str, list[NDArray[np.float64]]] = {name: [] for name in units}
    for batch in (part for whole in batches for part in whole.split(parts)):
        moved = batch.to(device)
        with torch.no_grad():
            pairs = presented(network, network.predict(*moved.inputs), moved)
        for name, (value, label) in pairs.items():
            known = torch.isfinite(label)
            found[name].append(value[known].cpu().numpy())
            labels[name].append(label[known].cpu().numpy())
    return {name: Comparison(units[name], _joined(found[name]), _joined(labels[name])) for name in units}


def _joined(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate(parts) if parts else np.zeros(0)


def mae_by_name(comparisons: Mapping[str, Comparison]) -> dict[str, float]:
    """Mean absolute errors by name and unit."""
    return {f"{name} {x.unit}".rstrip(): x.mae for name, x in comparisons.items()}


def presented(network: Network, found: Any, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Predictions beside labels, in the units in which errors are told: energies per atom, heads as their tensors."""
    out: dict[str, tuple[Tensor, Tensor]] = {}
    if found.energy is not None:
        out["energy"] = (found.energy / batch.n_atoms, batch.labels["energy"] / batch.n_atoms)
        out["forces"] = (found.forces.double(), batch.labels["forces"])
        out["stress"] = (found.virial / batch.input("volume").view(-1, 1, 1), batch.labels["stress"])
    for name, head in network.named_heads():
        out[name] = (head.present(found.heads[name]), head.present(batch.labels[name]))
    return {name: (value.detach(), label) for name, (value, label) in out.items()}
