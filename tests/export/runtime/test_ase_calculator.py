"""The ASE calculator, as scripts for ASE use it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.build
import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from equiscreen.export import OnnxCalculator, OnnxPotential
from equiscreen.pipeline import Structure
from equiscreen.pipeline.errors import UnknownElementError
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ...conftest import ELEMENTS


@pytest.fixture
def calculator(exported: Callable[[str], Path]) -> OnnxCalculator:
    return OnnxCalculator(exported("float64"), threads=1)


def test_it_finds_what_the_potential_finds(exported: Callable[[str], Path], calculator: OnnxCalculator) -> None:
    potential = OnnxPotential.load(exported("float64"))
    for structure in probe_structures(ELEMENTS, 4, seed=5):
        atoms = structure.to_ase()
        atoms.calc = calculator
        expected = potential.evaluate_structures([Structure.from_ase(atoms)])
        assert atoms.get_potential_energy() == pytest.approx(expected.energy[0], rel=1e-12)
        assert np.allclose(atoms.get_forces(), expected.forces, atol=1e-10)
        assert np.allclose(atoms.get_stress(voigt=False), expected.stress[0], atol=1e-10)


def test_forces_and_stress_are_those_of_ases_own_differences(calculator: OnnxCalculator) -> None:
    """Signs, units and the order of components, checked by other code."""
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell @ [[1.02, 0.01, 0.0], [0.0, 0.99, 0.02], [0.0, 0.0, 1.01]], scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = calculator
    forces = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 1])
    assert np.abs(atoms.get_forces()[:2] - forces).max() < 1e-6 * max(1, np.abs(forces).max())
    stress = calculate_numerical_stress(atoms, eps=1e-5)
    assert np.abs(atoms.get_stress() - stress).max() < 1e-6 * max(1, np.abs(stress).max())


def test_an_ase_optimizer_goes_downhill_with_it(calculator: OnnxCalculator) -> None:
    atoms = ase.build.bulk("Al", cubic=True)
    atoms.rattle(0.1, seed=2)
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.0, steps=5)
    assert atoms.get_potential_energy() < before


def test_what_a_molecule_has(calculator: OnnxCalculator) -> None:
    atoms = ase.build.molecule("H2")
    atoms.numbers[:] = 29
    atoms.positions *= 3
    atoms.calc = calculator
    assert np.isfinite(atoms.get_potential_energy())
    with pytest.raises(PropertyNotImplementedError, match="periodic in all three directions"):
        atoms.get_stress()


def test_an_unknown_element_is_told(calculator: OnnxCalculator) -> None:
    atoms = ase.build.bulk("U", "fcc", a=4.5)
    atoms.calc = calculator
    with pytest.raises(UnknownElementError, match=r"\[92\]"):
        atoms.get_potential_energy()
