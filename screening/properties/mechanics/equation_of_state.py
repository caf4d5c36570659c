"""Equations of state: the energy of a crystal at several volumes, and the Birch-Murnaghan fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ....pipeline.errors import ConfigError
from ....pipeline.store.schema import ArraySpec, structure_array
from ...relaxation.batched import GPA, RelaxSettings
from ..protocol import (
    FAILED,
    NOT_RELAXED,
    Cells,
    Material,
    Outcome,
    OutcomeError,
    Property,
    Stages,
    Workload,
    check_crystal,
)
from .elastic import deformed

# Approximate number of evaluations in the relaxation of the ions at one volume.
_EVALUATIONS = 6


@dataclass(frozen=True, slots=True)
class EquationOfState(Property):
    """Energy at several volumes of a crystal whose cell keeps its shape.

    Attributes:
        volumes: Volumes relative to the volume of the relaxed crystal.
        relax_ions: Settings for relaxing the ions at each volume; None keeps their fractional coordinates.

    Raises:
        ConfigError: There are fewer than five volumes, or one of them is not between 0.5 and 2.
    """

    name = "eos"

    volumes: tuple[float, ...] = (0.94, 0.955, 0.97, 0.985, 1.0, 1.015, 1.03, 1.045, 1.06)
    relax_ions: RelaxSettings | None = field(
        default_factory=lambda: RelaxSettings(fmax=1e-3, smax=None, fix_cell=True, allow_extrapolation=True)
    )

    def __post_init__(self) -> None:
        if len(set(self.volumes)) < 5 or not all(0.5 <= volume <= 2.0 for volume in self.volumes):
            raise ConfigError(f"volumes {self.volumes}: give at least five, all between 0.5 and 2")

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """See `Property.arrays`."""
        points = partial(structure_array, dims=("eos_point",), inner=(len(self.volumes),))
        return (
            structure_array("bulk_modulus_eos", "float64", "bulk modulus of the equation of state", units="GPa"),
            structure_array(
                "bulk_modulus_derivative",
                "float64",
                "derivative of the bulk modulus of the equation of state with respect to pressure",
                units="1",
            ),
            structure_array(
                "eos_volume", "float64", "volume at the minimum of the equation of state", units="angstrom^3"
            ),
            structure_array("eos_r_squared", "float64", "coefficient of determination of the fit", units="1"),
            points("eos_volumes", "float64", "volumes of the cells that were evaluated", units="angstrom^3"),
            points("eos_energies", "float64", "total energies of these cells", units="eV"),
        )

    def workload(self, n_atoms: int) -> Workload:
        """See `Property.workload`."""
        cells = len(self.volumes)
        return Workload(cells, cells * n_atoms * (1 if self.relax_ions is None else _EVALUATIONS))

    def stages(self, material: Material) -> Stages:
        """See `Property.stages`."""
        check_crystal(material.structure)
        stretches = [np.cbrt(volume) * np.eye(3) for volume in self.volumes]
        results = yield Cells([deformed(material.structure, stretch) for stretch in stretches], self.relax_ions)
        for volume, result in zip(self.volumes, results, strict=True):
            if not result.converged:
                raise OutcomeError(
                    NOT_RELAXED,
                    f"the ions did not relax within {result.evaluations} evaluations at {volume:g} times the volume of "
                    "the relaxed crystal",
                )
        volumes = np.array([result.structure.volume for result in results])
        energies = np.array([result.energy for result in results])
        points = {"eos_volumes": volumes, "eos_energies": energies}
        fit = birch_murnaghan(volumes, energies)
        if fit is None:
            note = "the energies have no minimum between the smallest and the largest volume"
            return Outcome(FAILED, points, note=note)
        return Outcome(
            values={
                **points,
                "bulk_modulus_eos": fit.bulk_modulus / GPA,
                "bulk_modulus_derivative": fit.derivative,
                "eos_volume": fit.volume,
                "eos_r_squared": fit.r_squared,
            }
        )


@dataclass(frozen=True, slots=True)
class BirchMurnaghan:
    """A fitted equation of state.

    Attributes:
        volume: Volume at the minimum, angstrom^3.
        energy: Energy at the minimum, eV.
        bulk_modulus: Bulk modulus at the minimum, eV/angstrom^3.
        derivative: Derivative of the bulk modulus with respect to pressure.
        r_squared: Coefficient of determination.
    """

    volume: float
    energy: float
    bulk_modulus: float
    derivative: float
    r_squared: float


def birch_murnaghan(volumes: NDArray[np.float64], energies: NDArray[np.float64]) -> BirchMurnaghan | None:
    """Fit the third-order Birch-Murnaghan equation of state (F. Birch, Phys. Rev. 71, 809 (1947)).

    The energy is a cubic polynomial in x = V^(-2/3), so this is a linear least-squares fit.

    Args:
        volumes: float64[n], angstrom^3.
        energies: float64[n], eV.

    Returns:
        The fit; None if it has no minimum between the smallest and the largest volume.
    """
    # Scaled and centred, so that the fit is well conditioned.
    middle = float(np.mean(volumes))
    x, shift = (volumes / middle) ** (-2 / 3) - 1.0, float(np.mean(energies))
    coefficients: list[float] = np.polynomial.polynomial.polyfit(x, energies - shift, 3).tolist()
    a, b, c, d = coefficients
    discriminant = c * c - 3 * b * d
    if discriminant <= 0 or c + math.sqrt(discriminant) <= 0:
        return None
    at = -b / (c + math.sqrt(discriminant))  # the minimum, in a form without cancellation for a small d
    if not x.min() <= at <= x.max():
        return None
    curvature, third = 2 * math.sqrt(discriminant), 6 * d
    v = (1.0 + at) ** -1.5  # relative to the middle
    first, second = -2 / 3 * v ** (-5 / 3), 10 / 9 * v ** (-8 / 3)  # derivatives of x with respect to v
    in_volume = curvature * first**2
    # The slope is zero at the minimum.
    third_in_volume = third * first**3 + 3 * curvature * first * second
    residual = float(np.sum((energies - shift - np.polynomial.polynomial.polyval(x, coefficients)) ** 2))
    spread = float(np.sum((energies - shift) ** 2))
    return BirchMurnaghan(
        volume=v * middle,
        energy=a + at * (b + at * (c + at * d)) + shift,
        bulk_modulus=v * in_volume / middle,
        derivative=-1.0 - v * third_in_volume / in_volume,
        r_squared=1.0 - residual / spread,
    )
