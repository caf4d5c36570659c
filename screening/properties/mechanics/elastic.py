"""Elastic tensors from the stresses of strained cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....pipeline.errors import ConfigError
from ....pipeline.store.schema import VOIGT_NOTE, ArraySpec, structure_array
from ....pipeline.structures.structure import Structure
from ....pipeline.structures.symmetry import point_group
from ...relaxation.batched import GPA, RelaxSettings
from ..protocol import (
    NOT_RELAXED,
    CellResult,
    Cells,
    Material,
    Outcome,
    OutcomeError,
    Property,
    Stages,
    Workload,
    check_crystal,
)
from .elastic_tensor import VOIGT, Moduli, fitted_tensor, invariant_basis, needed_strains, to_voigt, unit_strain

# Approximate number of evaluations in the relaxation of the ions of one strained cell.
_EVALUATIONS = 6
_SHEARS = frozenset({3, 4, 5})


class StressMeasure(StrEnum):
    """Stress that is fitted against the Green-Lagrange strain."""

    # The stress that is conjugate to this strain: its derivative with respect to the strain is the elastic tensor.
    PIOLA_KIRCHHOFF = "piola_kirchhoff"
    # The stress that DFT codes print, which MatCalc fits; both agree to first order if the unstrained stress is zero.
    CAUCHY = "cauchy"


def _modulus(name: str, description: str) -> ArraySpec:
    return structure_array(name, "float64", description, units="GPa")


@dataclass(frozen=True, slots=True)
class Elastic(Property):
    """Elastic tensor, from a linear fit of the stress against several strains of each kind.

    Strains are Green-Lagrange tensors. The cell is deformed by the upper triangular deformation gradient that has this
    strain, so that the x axis and the xy plane keep their orientation.

    Attributes:
        normal_strains: Strains xx, yy and zz.
        shear_strains: Tensor components yz, xz and xy of shear strains, half of the engineering strains.
        relax_ions: Settings for relaxing the ions of a strained cell; None keeps their fractional coordinates
            ("clamped").
        use_symmetry: Apply only as many kinds of strain as the point group needs, and fit a tensor that has its
            symmetry; otherwise apply all six.
        stress_measure: Stress that is fitted.

    Raises:
        ConfigError: A strain is zero or above 0.2 in absolute value, or there are fewer than two of a kind.
    """

    name = "elastic"
    arrays = (
        structure_array(
            "elastic_tensor",
            "float64",
            "elastic tensor in the Cartesian frame of the relaxed structure" + VOIGT_NOTE,
            dims=("voigt", "voigt_2"),
            inner=(6, 6),
            units="GPa",
        ),
        _modulus("bulk_modulus_voigt", "bulk modulus, Voigt average (upper bound)"),
        _modulus("bulk_modulus_reuss", "bulk modulus, Reuss average (lower bound)"),
        _modulus("bulk_modulus_vrh", "bulk modulus, Voigt-Reuss-Hill average"),
        _modulus("shear_modulus_voigt", "shear modulus, Voigt average (upper bound)"),
        _modulus("shear_modulus_reuss", "shear modulus, Reuss average (lower bound)"),
        _modulus("shear_modulus_vrh", "shear modulus, Voigt-Reuss-Hill average"),
        _modulus("young_modulus", "Young's modulus of a polycrystal, from the Hill averages"),
        structure_array("poisson_ratio", "float64", "Poisson's ratio of a polycrystal", units="1"),
        structure_array("universal_anisotropy", "float64", "universal elastic anisotropy; 0 = isotropic", units="1"),
        structure_array(
            "is_mechanically_stable",
            "bool",
            "whether the elastic tensor is positive definite (Born); false if it is not known",
        ),
        _modulus("elastic_residual", "root mean square deviation of the fitted stresses from straight lines"),
        structure_array("n_elastic_constants", "int16", "independent elastic constants of the point group", units="1"),
        structure_array("n_strained_cells", "int16", "number of strained cells", units="1"),
    )

    normal_strains: tuple[float, ...] = (-0.01, -0.005, 0.005, 0.01)
    shear_strains: tuple[float, ...] = (-0.01, -0.005, 0.005, 0.01)
    relax_ions: RelaxSettings | None = field(
        default_factory=lambda: RelaxSettings(fmax=1e-3, smax=None, fix_cell=True, allow_extrapolation=True)
    )
    use_symmetry: bool = True
    stress_measure: StressMeasure = StressMeasure.PIOLA_KIRCHHOFF

    def __post_init__(self) -> None:
        for name, strains in (("normal", self.normal_strains), ("shear", self.shear_strains)):
            if len(set(strains)) < 2 or not all(0 < abs(strain) <= 0.2 for strain in strains):
                raise ConfigError(f"{name} strains {strains}: give at least two, none of them zero or above 0.2")

    def workload(self, n_atoms: int) -> Workload:
        """See `Property.workload`; all six kinds of strain are assumed."""
        cells = 3 * (len(self.normal_strains) + len(self.shear_strains))
        return Workload(cells, cells * n_atoms * (1 if self.relax_ions is None else _EVALUATIONS))

    def stages(self, material: Material) -> Stages:
        """See `Property.stages`."""
        check_crystal(material.structure)
        rotations = point_group(material.structure, material.symprec) if self.use_symmetry else np.eye(3)[None]
        basis = invariant_basis(rotations)
        modes = needed_strains(basis) if self.use_symmetry else tuple(range(6))
        strains = [(mode, amount) for mode in modes for amount in self._amounts(mode)]
        gradients = [deformation(amount * unit_strain(mode)) for mode, amount in strains]
        cells = [deformed(material.structure, gradient) for gradient in gradients]
        results = yield Cells(cells, self.relax_ions)
        self._check_converged(strains, results)
        stresses = [self._stress(one.stress, gradient) / GPA for one, gradient in zip(results, gradients, strict=True)]
        slopes, residual = self._slopes(modes, np.array(stresses))
        tensor = fitted_tensor(modes, slopes, basis)
        return Outcome(values=self._values(tensor, residual, len(basis), len(cells)))

    def _amounts(self, mode: int) -> tuple[float, ...]:
        return self.shear_strains if mode in _SHEARS else self.normal_strains

    def _check_converged(self, strains: Sequence[tuple[int, float]], results: Sequence[CellResult]) -> None:
        """Check that the ions of all strained cells are relaxed.

        Raises:
            OutcomeError: A relaxation did not converge.
        """
        for (mode, amount), result in zip(strains, results, strict=True):
            if not result.converged:
                i, j = VOIGT[mode]
                raise OutcomeError(
                    NOT_RELAXED,
                    f"the ions did not relax within {result.evaluations} evaluations at the strain "
                    f"{'xyz'[i]}{'xyz'[j]} {amount:+g}",
                )

    def _stress(self, stress: NDArray[np.float64], gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the stress that is fitted, from the Cauchy stress: float64[6], in the unit of `stress`."""
        if self.stress_measure is StressMeasure.PIOLA_KIRCHHOFF:
            inverse = np.linalg.inv(gradient)
            stress = np.linalg.det(gradient) * inverse @ stress @ inverse.T
        return to_voigt(stress)

    def _slopes(self, modes: Sequence[int], stresses: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Return derivatives of the stress with respect to each kind of strain, and deviations from straight lines.

        Args:
            modes: Voigt components of strain.
            stresses: float64[n_cells, 6], stresses of the cells, by mode and amount.

        Returns:
            float64[n_modes, 6] with engineering shear strains, and the root mean square residual.
        """
        slopes, residuals = [], []
        for mode, rows in zip(modes, self._rows(modes), strict=True):
            amounts = np.array(self._amounts(mode)) * (2.0 if mode in _SHEARS else 1.0)
            design = np.stack([amounts, np.ones_like(amounts)], axis=1)
            found = np.linalg.lstsq(design, stresses[rows], rcond=None)[0]
            slopes.append(found[0])
            residuals.append(stresses[rows] - design @ found)
        return np.array(slopes), float(np.sqrt(np.mean(np.concatenate(residuals) ** 2)))

    def _rows(self, modes: Sequence[int]) -> Iterator[slice]:
        start = 0
        for mode in modes:
            stop = start + len(self._amounts(mode))
            yield slice(start, stop)
            start = stop

    @staticmethod
    def _values(tensor: NDArray[np.float64], residual: float, constants: int, cells: int) -> dict[str, Any]:
        moduli = Moduli.of(tensor)
        return {
            "elastic_tensor": tensor,
            "bulk_modulus_voigt": moduli.bulk_voigt,
            "bulk_modulus_reuss": moduli.bulk_reuss,
            "bulk_modulus_vrh": moduli.bulk,
            "shear_modulus_voigt": moduli.shear_voigt,
            "shear_modulus_reuss": moduli.shear_reuss,
            "shear_modulus_vrh": moduli.shear,
            "young_modulus": moduli.young,
            "poisson_ratio": moduli.poisson,
            "universal_anisotropy": moduli.anisotropy,
            "is_mechanically_stable": moduli.is_stable,
            "elastic_residual": residual,
            "n_elastic_constants": constants,
            "n_strained_cells": cells,
        }


def deformation(strain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the upper triangular deformation gradient F of a Green-Lagrange strain (F^T F - 1) / 2: float64[3, 3]."""
    return np.asarray(np.linalg.cholesky(np.eye(3) + 2 * strain).T, dtype=np.float64)


def deformed(structure: Structure, gradient: NDArray[np.float64]) -> Structure:
    """Return a crystal with a deformed lattice and the same fractional coordinates.

    Args:
        structure: The crystal.
        gradient: Deformation gradient: float64[3, 3].
    """
    return Structure(
        structure.atomic_number, np.ascontiguousarray(structure.cell @ gradient.T), structure.frac_coord, structure.pbc
    )
