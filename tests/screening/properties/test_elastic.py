"""Elastic tensors equal independent finite differences with ASE, pymatgen's moduli, and turn with the crystal."""

from __future__ import annotations

import ase
import ase.build
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from equiscreen.pipeline import Structure
from equiscreen.pipeline.errors import ConfigError
from equiscreen.pipeline.structures.symmetry import point_group
from equiscreen.screening.properties.evaluation import run_stages
from equiscreen.screening.properties.materials import Protocol, compute_materials
from equiscreen.screening.properties.mechanics.elastic import Elastic
from equiscreen.screening.properties.mechanics.elastic_tensor import (
    Moduli,
    fitted_tensor,
    invariant_basis,
    needed_strains,
    rotated_tensor,
)
from equiscreen.screening.properties.presets import PRESETS
from equiscreen.screening.properties.protocol import PROPERTY_STATUSES, Outcome
from equiscreen.screening.relaxation.batched import GPA
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ...emt_potential import EmtPotential

STEP = 1e-3
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def relaxed(atoms: ase.Atoms) -> ase.Atoms:
    """A crystal at its minimum, by ASE."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-6, steps=500)
    return atoms


def hexagonal_copper() -> ase.Atoms:
    """A crystal whose ions move when it is strained: each atom has its neighbours on one side of a plane."""
    return relaxed(ase.build.bulk("Cu", "hcp", a=2.54, c=4.2))


def ordered_alloy() -> ase.Atoms:
    """A tetragonal crystal."""
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.symbols[[0, 1]] = "Au"
    return relaxed(atoms)


def finite_differences(atoms: ase.Atoms) -> NDArray[np.float64]:
    """Elastic tensor (GPa) from ASE: central differences of the stress with relaxed ions, with tiny strains."""
    out = np.empty((6, 6))
    for mode, (i, j) in enumerate(VOIGT):
        stresses = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] = strain[j, i] = sign * STEP / (1 if i == j else 2)
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            strained.calc = EMT()
            BFGS(strained, logfile=None).run(fmax=1e-6, steps=200)
            stresses.append(strained.get_stress())
        out[mode] = (stresses[0] - stresses[1]) / (2 * STEP) / ase.units.GPa
    return out


def elastic(atoms: ase.Atoms, settings: Elastic | None = None, preset: str = "default") -> Outcome:
    """The outcome for a crystal that is relaxed already, with EMT."""
    potential = EmtPotential()
    protocol = Protocol.of(PRESETS[preset], ["elastic"], potential, relax=False)
    if settings is not None:
        protocol = Protocol((settings,), protocol.relaxation, relax=False, plausibility=protocol.plausibility)
    (found,) = compute_materials([Structure.from_ase(atoms)], potential, protocol)
    return found.outcomes["elastic"]


@pytest.mark.parametrize("crystal", [hexagonal_copper, ordered_alloy])
def test_tensors_are_those_of_finite_differences(crystal: object) -> None:
    atoms = crystal()  # type: ignore[operator]
    expected = finite_differences(atoms)
    found = elastic(atoms)
    assert PROPERTY_STATUSES[found.status] == "ok", found.note
    # Strains of 1 % change the constants by their curvature, the square of the strain times some tens.
    np.testing.assert_allclose(found.values["elastic_tensor"], expected, atol=0.005 * expected.max())
    whole = elastic(atoms, Elastic(use_symmetry=False))
    np.testing.assert_allclose(whole.values["elastic_tensor"], expected, atol=0.005 * expected.max())
    assert whole.values["n_strained_cells"] == 24 > found.values["n_strained_cells"]


def test_clamped_ions_are_stiffer() -> None:
    atoms = hexagonal_copper()
    clamped, free = elastic(atoms, Elastic(relax_ions=None)), elastic(atoms)
    difference = clamped.values["elastic_tensor"] - free.values["elastic_tensor"]
    assert np.linalg.eigvalsh(difference).max() > 1.0  # GPa
    assert np.linalg.eigvalsh(difference).min() > -0.1


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_tensor_turns_with_the_crystal(seed: int) -> None:
    atoms = hexagonal_copper()
    turn = Rotation.random(random_state=seed).as_matrix()
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ turn.T, scale_atoms=True)
    expected = rotated_tensor(elastic(atoms).values["elastic_tensor"], turn)
    found = elastic(turned).values["elastic_tensor"]
    np.testing.assert_allclose(found, expected, atol=0.005 * expected.max())


def test_the_protocol_of_matcalc() -> None:
    """MatCalc's fit, written with pymatgen: Green-Lagrange strains, Cauchy stresses, all six kinds of strain."""
    elasticity = pytest.importorskip("pymatgen.analysis.elasticity")
    adaptor = pytest.importorskip("pymatgen.io.ase").AseAtomsAdaptor
    atoms = ordered_alloy()
    normal, shear = (-0.01, -0.005, 0.005, 0.01), (-0.06, -0.03, 0.03, 0.06)
    deformations = elasticity.DeformedStructureSet(adaptor.get_structure(atoms), normal, shear, symmetry=False)
    strains, stresses = [], []
    for gradient, structure in zip(deformations.deformations, deformations, strict=True):
        strained = adaptor.get_atoms(structure)
        strained.calc = EMT()
        stresses.append(strained.get_stress(voigt=False))
        strains.append(elasticity.Strain.from_deformation(gradient))
    expected = np.empty((6, 6))
    for mode in range(6):
        some = [place for place, strain in enumerate(strains) if np.flatnonzero(np.abs(strain.voigt) > 1e-9) == [mode]]
        amounts = np.array([strains[place].voigt[mode] for place in some])
        values = np.array([elasticity.Stress(stresses[place]).voigt for place in some])
        expected[mode] = np.polyfit(amounts, values, 1)[0] / ase.units.GPa
    found = elastic(atoms, preset="matcalc").values
    tensor = elasticity.ElasticTensor.from_voigt((expected + expected.T) / 2)
    np.testing.assert_allclose(found["elastic_tensor"], (expected + expected.T) / 2, atol=1e-3)
    assert found["bulk_modulus_vrh"] == pytest.approx(tensor.k_vrh, abs=1e-3)
    assert found["shear_modulus_vrh"] == pytest.approx(tensor.g_vrh, abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_moduli_are_those_of_pymatgen(seed: int) -> None:
    elasticity = pytest.importorskip("pymatgen.analysis.elasticity")
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(6, 6))
    tensor = 50 * factor @ factor.T + 20 * np.eye(6)
    theirs, ours = elasticity.ElasticTensor.from_voigt(tensor), Moduli.of(tensor)
    pairs = [
        (ours.bulk_voigt, theirs.k_voigt),
        (ours.bulk_reuss, theirs.k_reuss),
        (ours.bulk, theirs.k_vrh),
        (ours.shear_voigt, theirs.g_voigt),
        (ours.shear_reuss, theirs.g_reuss),
        (ours.shear, theirs.g_vrh),
        (ours.young * 1e9, theirs.y_mod),
        (ours.poisson, theirs.homogeneous_poisson),
        (ours.anisotropy, theirs.universal_anisotropy),
    ]
    np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=1e-9)
    assert ours.is_stable
    assert not Moduli.of(tensor - 1.01 * np.linalg.eigvalsh(tensor)[0] * np.eye(6)).is_stable


@pytest.mark.parametrize(
    ("atoms", "constants", "strains"),
    [
        (ase.build.bulk("Cu"), 3, 2),
        (ase.build.bulk("Cu", "hcp", a=2.5, c=4.1), 5, 3),
        (ase.build.bulk("Al").repeat((1, 1, 2)), 3, 2),  # the crystal counts, not its supercell
    ],
)
def test_a_symmetric_crystal_needs_few_strains(atoms: ase.Atoms, constants: int, strains: int) -> None:
    basis = invariant_basis(point_group(Structure.from_ase(atoms)))
    modes = needed_strains(basis)
    assert (len(basis), len(modes)) == (constants, strains)
    tensor = np.tensordot(np.arange(1.0, constants + 1), basis, 1)
    factors = np.array([1, 1, 1, *[np.sqrt(2)] * 3])
    tensor /= np.outer(factors, factors)
    np.testing.assert_allclose(fitted_tensor(modes, tensor[list(modes)], basis), tensor, atol=1e-12)


def test_a_crystal_without_symmetry_has_21_constants() -> None:
    basis = invariant_basis(np.eye(3)[None])
    assert (len(basis), len(needed_strains(basis))) == (21, 6)


def test_body_centred_copper_is_unstable() -> None:
    """EMT has its minimum at fcc; bcc is a saddle point, which the symmetric relaxation does not leave."""
    potential = EmtPotential()
    protocol = Protocol.of(PRESETS["default"], ["elastic"], potential)
    (found,) = compute_materials([Structure.from_ase(ase.build.bulk("Cu", "bcc", a=2.9))], potential, protocol)
    outcome = found.outcomes["elastic"]
    assert PROPERTY_STATUSES[outcome.status] == "ok", outcome.note
    assert outcome.values["is_mechanically_stable"] is False
    assert np.linalg.norm(found.relaxed.last.stress) < 0.02 * GPA * 3  # type: ignore[union-attr]


def test_a_singular_tensor_has_no_reuss_average() -> None:
    fluid = np.zeros((6, 6))
    fluid[:3, :3] = 2.2
    found = Moduli.of(fluid)
    assert (found.bulk_voigt, found.is_stable) == (pytest.approx(2.2), False)
    assert np.isnan(found.shear)


def test_strains_that_make_no_sense_are_refused() -> None:
    for strains in ((0.01,), (0.0, 0.01), (0.5, -0.5)):
        with pytest.raises(ConfigError, match="at least two"):
            Elastic(normal_strains=strains)
    assert run_stages({}, EmtPotential()) == {}
