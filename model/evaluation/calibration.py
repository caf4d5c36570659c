"""Calibration: how well the spread of an ensemble predicts the error of its mean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MAX_BINS = 10
POINTS_PER_BIN = 10


def calibration(error: NDArray[np.floating[Any]], spread: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Measure how well a predicted standard deviation matches the errors.

    Args:
        error: float[...], predictions minus labels; NaN where a label is missing.
        spread: float[...], predicted standard deviations, of the same shape.

    Returns:
        The following numbers, NaN if there are too few points. ``ratio``: root mean square of error / spread, where the
        spread is positive; 1 means that the spread is well calibrated, and a larger ratio means that the ensemble is
        overconfident. ``spearman``: rank correlation of the absolute error and the spread. ``coverage_1``,
        ``coverage_2``: fractions of points whose error is within one and two spreads; 0.683 and 0.954 if errors are
        normal and the spread is well calibrated.

    Raises:
        ValueError: The shapes differ, or a spread is negative.
    """
    size, sigma = sizes(error, spread)
    some = sigma > 0
    ratio = float(np.sqrt(np.mean((size[some] / sigma[some]) ** 2))) if some.any() else math.nan
    covered = [float(np.mean(size <= k * sigma)) if len(size) else math.nan for k in (1, 2)]
    return {"ratio": ratio, "spearman": _spearman(size, sigma), "coverage_1": covered[0], "coverage_2": covered[1]}


def binned_rms(size: Floats, sigma: Floats) -> tuple[Floats, Floats]:
    """Return root mean squares of spreads and errors in bins with equal numbers of points, sorted by spread.

    Args:
        size: float64[n], absolute errors.
        sigma: float64[n], spreads.

    Returns:
        Root mean square spreads and errors, float64[n_bins] each; at most 10 bins, with at least 10 points each if
        there are several.
    """
    n_bins = min(MAX_BINS, max(1, len(sigma) // POINTS_PER_BIN))
    bins = np.array_split(np.argsort(sigma, kind="stable"), n_bins)
    predicted, found = (np.array([np.sqrt(np.mean(x[b] ** 2)) for b in bins]) for x in (sigma, size))
    return predicted, found


def sizes(error: NDArray[np.floating[Any]], spread: NDArray[np.floating[Any]]) -> tuple[Floats, Floats]:
    """Return absolute errors and spreads where both are finite, float64[n] each.

    Raises:
        ValueError: The shapes differ, or a spread is negative.
    """
    if error.shape != spread.shape:
        raise ValueError(f"errors have shape {error.shape}, but spreads have shape {spread.shape}")
    values, sigma = both_finite(error, spread)
    if (sigma < 0).any():
        raise ValueError("a spread is negative; pass standard deviations")
    return np.abs(values), sigma


def both_finite(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> tuple[Floats, Floats]:
    """Return the values where both arrays are finite, float64[n] each; both arrays have the same shape."""
    a, b = (np.asarray(x, dtype=np.float64).reshape(-1) for x in (first, second))
    both = np.isfinite(a) & np.isfinite(b)
    return a[both], b[both]


def _spearman(a: Floats, b: Floats) -> float:
    """Return the rank correlation; NaN if all values of one side are equal, or if there are fewer than two points."""
    from scipy.stats import spearmanr  # noqa: PLC0415 - half a second to import, for one number at the end

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(spearmanr(a, b).statistic)
