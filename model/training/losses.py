"""Loss: errors of predictions in the units of the loss, and their sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.training import LossConfig, TermConfig
from ..data.batches import Batch
from ..networks.base import Network, Prediction


@dataclass(frozen=True, slots=True)
class Residual:
    """Errors of one quantity.

    Attributes:
        error: float64[rows, ...], prediction minus label; zero where there is no label.
        known: bool, of the same shape, whether there is a label.
        per_atom: Whether rows are atoms rather than structures.
    """

    error: Tensor
    known: Tensor
    per_atom: bool


def residuals(network: Network, found: Prediction, batch: Batch) -> dict[str, Residual]:
    """Compute errors in the units of the loss.

    Energies are per atom; heads are in units of the spread of their labels, per atom if extensive.

    Args:
        network: Network that made the predictions.
        found: Predictions.
        batch: Batch with the labels.
    """
    out = {}
    if found.energy is not None and found.forces is not None and found.virial is not None:
        out["energy"] = _residual(found.energy, batch.labels["energy"], 1 / batch.n_atoms)
        out["forces"] = _residual(found.forces.double(), batch.labels["forces"], per_atom=True)
        volume = batch.input("volume").view(-1, 1, 1)
        out["stress"] = _residual(found.virial / volume, batch.labels["stress"])
    for name, head in network.named_heads():
        weight = 1 / head.component_scales
        if head.config.extensive:
            weight = weight / batch.n_atoms.unsqueeze(1)
        out[name] = _residual(found.heads[name], batch.labels[name], weight, per_atom=head.config.per == "atom")
    return out


def _residual(found: Tensor, label: Tensor, weight: Tensor | float = 1.0, *, per_atom: bool = False) -> Residual:
    known = torch.isfinite(label)
    # Multiply by the mask instead of selecting, so that a non-finite prediction is noticed.
    error = (found - torch.where(known, label, 0.0)) * weight * known
    return Residual(error, known, per_atom)


def term_of(loss: LossConfig, name: str) -> TermConfig:
    """Return the loss term of a quantity; heads that are not listed have the default term."""
    if name in ("energy", "forces", "stress"):
        term: TermConfig = getattr(loss, name)
        return term
    return loss.heads.get(name, TermConfig())


def penalty(error: Tensor, term: TermConfig) -> Tensor:
    """Compute the unweighted contribution of each error to a term: float64 of the same shape."""
    size = error.abs()
    if term.kind == "absolute":
        return size
    if term.kind == "huber":
        return torch.where(size <= term.delta, error.square(), term.delta * (2 * size - term.delta))
    return error.square()


def total_loss(found: Mapping[str, Residual], loss: LossConfig, counts: Mapping[str, Tensor]) -> Tensor:
    """Compute the loss: for each quantity, its weight times the mean penalty over the labelled components.

    Args:
        found: Errors of a whole batch or a part of it.
        loss: Terms of the loss.
        counts: Number of labelled components in the whole batch, over all its parts and processes, so that the losses
            of the parts add up to the loss of the whole batch.
    """
    # Include all predictions, so that every weight has a gradient, even if it is zero.
    out = torch.stack([residual.error.sum() for residual in found.values()]).sum() * 0.0
    for name, residual in found.items():
        term = term_of(loss, name)
        if term.weight:
            out = out + term.weight * penalty(residual.error, term).sum() / counts[name].clamp(min=1)
    return out
