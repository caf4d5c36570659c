"""Energies of a dataset, compared with the labels of its graph store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..dataset.scores import open_scores
from ..label_comparison import calibration, labels_and_predictions

_BINS = 10


@dataclass(frozen=True, slots=True)
class LabelledEnergies:
    """Labels and predictions of energies.

    Attributes:
        label: Labels: float64[n], eV/atom.
        prediction: Predictions: float64[n], eV/atom.
        calibration: Result of `binned_errors` for an ensemble; None for a single model.
    """

    label: NDArray[np.float64]
    prediction: NDArray[np.float64]
    calibration: tuple[list[float], list[float]] | None


def labelled_energies(scores: str | Path, store: str | Path | None) -> LabelledEnergies | None:
    """Read the energies that have a label; None if there are none.

    Args:
        scores: Path or URL of the dataset.
        store: Graph store of the dataset, if it was moved.

    Raises:
        ConfigError: The dataset is a selection, or has no energies.
        StoreError: The graph store is missing, or not the one that the scores were computed from.
    """
    dataset = open_scores(scores)
    label, prediction = labels_and_predictions(dataset, store=store)
    if not len(label):
        return None
    binned = binned_errors(*calibration(dataset, store=store)) if "energy_std" in dataset else None
    return LabelledEnergies(label, prediction, binned)


def binned_errors(error: NDArray[np.float64], spread: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Return the root mean squares of predicted uncertainties and of errors, eV/atom.

    The structures are sorted by predicted uncertainty and divided into tenths; each tenth gives one pair of values.

    Args:
        error: float64[n], prediction minus label, eV/atom.
        spread: float64[n], standard deviation among the members of the ensemble, eV/atom.
    """
    bins = [rows for rows in np.array_split(np.argsort(spread, kind="stable"), _BINS) if len(rows)]
    return (
        [float(np.sqrt((spread[rows] ** 2).mean())) for rows in bins],
        [float(np.sqrt((error[rows] ** 2).mean())) for rows in bins],
    )
