"""Elastic tensors: their fit to stresses of strained crystals, their symmetry, moduli and stability.

Tensors are 6 x 6 matrices in Voigt notation, order xx, yy, zz, yz, xz, xy, with engineering shear strains (twice the
tensor components). Fits are done in Kelvin notation, in which shear components of stress and strain carry a factor of
sqrt(2), so that a rotation of the crystal is an orthogonal 6 x 6 matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
_ROWS, _COLUMNS = (np.array(index) for index in zip(*VOIGT, strict=True))
# Factors from Voigt to Kelvin components of a stress, and of a strain in engineering components.
_KELVIN = np.array([1.0, 1.0, 1.0, np.sqrt(2.0), np.sqrt(2.0), np.sqrt(2.0)])
# A combination of strains suffices if it determines each independent constant at least this well, relative to all six
# strains: its error is then at most about twice as large.
_WELL_DETERMINED = 0.45
_RANK = 1e-8


def to_voigt(tensor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert symmetric stress tensors to Voigt components: float64[..., 3, 3] to float64[..., 6]."""
    out: NDArray[np.float64] = (tensor[..., _ROWS, _COLUMNS] + tensor[..., _COLUMNS, _ROWS]) / 2
    return out


def unit_strain(mode: int) -> NDArray[np.float64]:
    """Return the strain tensor of one Voigt component: float64[3, 3], with ones at the component's places."""
    strain = np.zeros((3, 3))
    i, j = VOIGT[mode]
    strain[i, j] = strain[j, i] = 1.0
    return strain


def invariant_basis(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an orthonormal basis of the elastic tensors that a point group allows.

    Args:
        rotations: float64[n, 3, 3], a group of orthogonal matrices.

    Returns:
        float64[n_constants, 6, 6], symmetric matrices in Kelvin notation: 3 for a cubic crystal, 21 for a triclinic
        crystal.
    """
    turns = np.array([_kelvin_rotation(rotation) for rotation in rotations])
    pairs = [(i, j) for i in range(6) for j in range(i, 6)]
    basis = np.zeros((len(pairs), 6, 6))
    for place, (i, j) in enumerate(pairs):
        basis[place, i, j] = basis[place, j, i] = 1.0 if i == j else np.sqrt(0.5)
    projected = np.einsum("gij,pjk,glk->pil", turns, basis, turns) / len(turns)
    _, sizes, vectors = np.linalg.svd(projected.reshape(len(pairs), 36))
    out: NDArray[np.float64] = vectors[: int((sizes > _RANK).sum())].reshape(-1, 6, 6)
    return out


def _kelvin_rotation(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the orthogonal 6 x 6 matrix that rotates a symmetric tensor in Kelvin notation."""
    out = np.empty((6, 6))
    for mode in range(6):
        turned = rotation @ unit_strain(mode) @ rotation.T
        out[:, mode] = turned[_ROWS, _COLUMNS] * _KELVIN / (1.0 if mode < 3 else np.sqrt(2.0))
    return out


def needed_strains(basis: NDArray[np.float64]) -> tuple[int, ...]:
    """Return the fewest Voigt components of strain whose stresses determine all independent elastic constants.

    Args:
        basis: Basis of the allowed tensors, from `invariant_basis`.
    """
    for count in range(1, 6):
        shares = {modes: _share(basis, modes) for modes in combinations(range(6), count)}
        best = max(shares, key=lambda modes: (round(shares[modes], 6), [-mode for mode in modes]))
        if shares[best] >= _WELL_DETERMINED:
            return best
    return tuple(range(6))


def _share(basis: NDArray[np.float64], modes: Sequence[int]) -> float:
    """Return the smallest singular value of the map from constants to the stresses of strains; 1 for all six."""
    design = basis[:, :, list(modes)].reshape(len(basis), -1)
    if design.shape[0] > design.shape[1]:
        return 0.0
    return float(np.linalg.svd(design, compute_uv=False)[-1])


def fitted_tensor(modes: Sequence[int], slopes: NDArray[np.float64], basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the elastic tensor with a given symmetry that best fits derivatives of the stress, by least squares.

    Args:
        modes: Voigt components of strain that were applied.
        slopes: float64[n_modes, 6], derivatives of the Voigt stress with respect to each of them; for shears, with
            respect to the engineering strain.
        basis: Basis of the allowed tensors, from `invariant_basis`.

    Returns:
        float64[6, 6], in the unit of `slopes`.
    """
    places = list(modes)
    design = basis[:, :, places].transpose(2, 1, 0).reshape(6 * len(places), len(basis))
    kelvin = slopes * _KELVIN * _KELVIN[places][:, None]
    constants = np.linalg.lstsq(design, kelvin.reshape(-1), rcond=None)[0]
    found: NDArray[np.float64] = np.tensordot(constants, basis, 1) / np.outer(_KELVIN, _KELVIN)
    return found


def rotated_tensor(tensor: NDArray[np.float64], rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the elastic tensor of a rotated crystal: float64[6, 6].

    Args:
        tensor: Elastic tensor of the crystal: float64[6, 6].
        rotation: Orthogonal matrix that rotates column vectors: float64[3, 3].
    """
    turn, factors = _kelvin_rotation(rotation), np.outer(_KELVIN, _KELVIN)
    out: NDArray[np.float64] = turn @ (tensor * factors) @ turn.T / factors
    return out


@dataclass(frozen=True, slots=True)
class Moduli:
    """Averages of an elastic tensor over orientations; moduli in the unit of the tensor.

    The Voigt (uniform strain) and Reuss (uniform stress) averages are bounds on the moduli of a polycrystal, and the
    Hill average is their mean (R. Hill, Proc. Phys. Soc. A 65, 349 (1952)). The Reuss averages are NaN if the tensor is
    singular.

    Attributes:
        bulk_voigt, bulk_reuss: Bulk moduli.
        shear_voigt, shear_reuss: Shear moduli.
        is_stable: Whether every strain costs energy: all eigenvalues of the tensor are positive (F. Mouhat and F.-X.
            Coudert, Phys. Rev. B 90, 224104 (2014)).
    """

    bulk_voigt: float
    bulk_reuss: float
    shear_voigt: float
    shear_reuss: float
    is_stable: bool

    @classmethod
    def of(cls, tensor: NDArray[np.float64]) -> Moduli:
        """Return the averages of a tensor, float64[6, 6]."""
        kelvin = tensor * np.outer(_KELVIN, _KELVIN)
        values = np.linalg.eigvalsh((kelvin + kelvin.T) / 2)
        bulk, shear = _averages(kelvin)
        if np.abs(values).min() <= _RANK * np.abs(values).max():
            return cls(bulk, float("nan"), shear, float("nan"), is_stable=False)
        soft_bulk, soft_shear = _averages(np.asarray(np.linalg.inv(kelvin), dtype=np.float64))
        # The averages of the compliance are 1 / (9 K) and 1 / (4 G).
        return cls(bulk, 1 / (9 * soft_bulk), shear, 1 / (4 * soft_shear), is_stable=bool((values > 0).all()))

    @property
    def bulk(self) -> float:
        """Bulk modulus, Hill average."""
        return (self.bulk_voigt + self.bulk_reuss) / 2

    @property
    def shear(self) -> float:
        """Shear modulus, Hill average."""
        return (self.shear_voigt + self.shear_reuss) / 2

    @property
    def young(self) -> float:
        """Young's modulus of an isotropic solid, from the Hill averages of the moduli."""
        return 9 * self.bulk * self.shear / (3 * self.bulk + self.shear)

    @property
    def poisson(self) -> float:
        """Poisson's ratio of an isotropic solid, from the Hill averages of the moduli."""
        return (3 * self.bulk - 2 * self.shear) / (6 * self.bulk + 2 * self.shear)

    @property
    def anisotropy(self) -> float:
        """Universal anisotropy, 0 if isotropic (S. Ranganathan and M. Ostoja-Starzewski, PRL 101, 055504 (2008))."""
        return 5 * self.shear_voigt / self.shear_reuss + self.bulk_voigt / self.bulk_reuss - 6


def _averages(kelvin: NDArray[np.float64]) -> tuple[float, float]:
    """Return two invariants of a tensor in Kelvin notation, which give its average moduli.

    They are K and G for a stiffness tensor, and 1 / (9 K) and 1 / (4 G) for a compliance tensor.
    """
    hydrostatic = float(kelvin[:3, :3].sum())  # 9 K
    deviatoric = float(np.trace(kelvin)) - hydrostatic / 3  # 10 G: five equal eigenvalues 2 G
    return hydrostatic / 9, deviatoric / 10
