"""Errors of thermal conductivities, in total and by mode (Póta et al., arXiv:2408.00755)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The largest possible error, also used where a model predicts imaginary modes or another space group for a crystal.
LARGEST_ERROR = 2.0


@dataclass(frozen=True, slots=True)
class ModeConductivities:
    """Thermal conductivity of a crystal at one temperature, averaged over directions, and its parts by mode.

    Attributes:
        total: Conductivity, W/m/K.
        modes: Contribution of each mode of each irreducible wave vector, times the number of wave vectors of the mesh:
            float64[n_wave_vectors, n_bands], W/m/K.
        weights: Number of wave vectors of the mesh that each irreducible one represents: float64[n_wave_vectors]. The
            total is the sum of the modes divided by the sum of the weights.
    """

    total: float
    modes: NDArray[np.float64]
    weights: NDArray[np.float64]


def relative_difference(predicted: ModeConductivities | None, reference: ModeConductivities) -> float:
    """Return the symmetric relative difference (SRD) of conductivities, positive if the prediction is too large.

    Its absolute value is the symmetric relative error (SRE).

    Args:
        predicted: Predicted conductivity; None if there is none, because of imaginary modes or another space group.
        reference: Reference conductivity.

    Returns:
        A number between -2 and 2; -2 without a prediction.
    """
    if predicted is None or not np.isfinite(predicted.total):
        return -LARGEST_ERROR
    return 2 * (predicted.total - reference.total) / (predicted.total + reference.total)


def relative_mode_error(predicted: ModeConductivities | None, reference: ModeConductivities) -> float:
    """Return the symmetric relative mean error (SRME) of two conductivities, by mode.

    Unlike the difference of the totals, it does not let errors of different modes cancel.

    Args:
        predicted: Predicted conductivity; None if there is none, because of imaginary modes or another space group.
        reference: Reference conductivity, on the same mesh.

    Returns:
        A number between 0 and 2; 2 without a prediction.

    Raises:
        ValueError: The two conductivities have different irreducible wave vectors or bands.
    """
    if predicted is None or not np.isfinite(predicted.total):
        return LARGEST_ERROR
    if predicted.modes.shape != reference.modes.shape or not np.array_equal(predicted.weights, reference.weights):
        raise ValueError(
            f"the modes have shapes {predicted.modes.shape} and {reference.modes.shape}; compute both on the same mesh"
        )
    microscopic = np.abs(predicted.modes - reference.modes).sum() / predicted.weights.sum()
    return float(2 * microscopic / (predicted.total + reference.total))
