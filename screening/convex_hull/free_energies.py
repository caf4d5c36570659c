"""Free energies of the vibrations of a dataset of properties, at any temperature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ..dataset.reader import ScoresReader

_FREE_ENERGY, _ENTROPY, _STATUS = "vibrational_free_energies", "vibrational_entropies", "phonons_status"
# One J/mol/K in eV/K (CODATA 2018: the inverse of the product of the elementary charge and the Avogadro constant).
_J_PER_MOL = 1 / 96485.33212
_NAMED = 5


class VibrationalFreeEnergies:
    """Helmholtz free energies of the vibrations of the crystals of a dataset, at one temperature.

    They are interpolated between the temperatures of the dataset by cubic polynomials that also have the right slope,
    which is minus the entropy. With steps of 100 K, the error is below 0.05 meV/atom above 100 K, and below 1 meV/atom
    down to 0 K (Einstein and Debye crystals from 0.5 to 16 THz).

    Args:
        scores: Dataset of `compute_properties` with phonons, or one made from it.
        temperature: Temperature, K.

    Raises:
        ConfigError: The dataset has no free energies, or none at this temperature.
    """

    def __init__(self, scores: ScoresReader, temperature: float) -> None:
        self._scores, self._temperature = scores, temperature
        absent = [name for name in (_FREE_ENERGY, _ENTROPY, _STATUS) if name not in scores.specs]
        if absent:
            raise ConfigError(
                f"{scores.path} has no vibrational free energies; compute them with `equiscreen properties "
                f"{scores.path} --what phonons`, and use that dataset"
            )
        self._temperatures = np.array(scores.specs[_FREE_ENERGY].attrs["temperatures"], dtype=np.float64)
        low, high = self._temperatures.min(), self._temperatures.max()
        if not low <= temperature <= high:
            raise ConfigError(
                f"{scores.path} has free energies from {low:g} to {high:g} K, not at {temperature:g} K; choose a "
                "temperature in this range"
            )

    def at(self, start: int, stop: int) -> NDArray[np.float64]:
        """Return the free energies of some rows, float64[n], eV/atom; NaN without phonons or with imaginary modes."""
        energies = np.asarray(self._scores.column(_FREE_ENERGY, start, stop), dtype=np.float64)
        slopes = -np.asarray(self._scores.column(_ENTROPY, start, stop), dtype=np.float64) * _J_PER_MOL
        found = interpolated(self._temperatures, energies, slopes, self._temperature)
        is_ok = self._scores.column(_STATUS, start, stop) == self._scores.meanings(_STATUS)["ok"]
        return np.where(is_ok, found, np.nan)

    def check_references(self, names: Sequence[str], rows: NDArray[np.int64]) -> None:
        """Check that all references have a free energy; the hull would lack the others.

        Args:
            names: Ids of these references.
            rows: int64[n], their rows in the dataset.

        Raises:
            ConfigError: A reference has no free energy.
        """
        if len(rows) == 0:
            return
        words = {value: word.replace("_", " ") for word, value in self._scores.meanings(_STATUS).items()}
        told = [
            f"{name} ({words[int(value)]})"
            for name, value in zip(names[:_NAMED], self._scores.rows(_STATUS, rows[:_NAMED]).tolist(), strict=True)
        ]
        more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
        raise ConfigError(
            f"{self._scores.path}: these references have no vibrational free energy: {', '.join(told)}{more}; leave "
            "them out with `equiscreen select`, or compute their phonons"
        )


def interpolated(
    points: NDArray[np.float64], values: NDArray[np.float64], slopes: NDArray[np.float64], place: float
) -> NDArray[np.float64]:
    """Return the values of a cubic Hermite interpolation.

    Args:
        points: float64[m], in any order.
        values: float64[n, m].
        slopes: Derivatives: float64[n, m].
        place: Where to interpolate, between the smallest and the largest point.

    Returns:
        float64[n].
    """
    order = np.argsort(points)
    x, y, slope = points[order], values[:, order], slopes[:, order]
    if len(x) == 1:
        return np.asarray(y[:, 0])
    left = int(np.clip(np.searchsorted(x, place, side="right") - 1, 0, len(x) - 2))
    width = x[left + 1] - x[left]
    t = (place - x[left]) / width
    return np.asarray(
        (1 + 2 * t) * (1 - t) ** 2 * y[:, left]
        + t * (1 - t) ** 2 * width * slope[:, left]
        + t**2 * (3 - 2 * t) * y[:, left + 1]
        + t**2 * (t - 1) * width * slope[:, left + 1]
    )
