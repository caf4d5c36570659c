"""Thermal conductivities: their errors by mode, and one small crystal with phono3py used directly."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from equiscreen.screening.properties.evaluation import run_stages
from equiscreen.screening.properties.lattice_dynamics.conductivity import Kappa
from equiscreen.screening.properties.lattice_dynamics.conductivity_errors import (
    ModeConductivities,
    relative_difference,
    relative_mode_error,
)
from equiscreen.screening.properties.lattice_dynamics.supercells import supercell_matrix
from equiscreen.screening.properties.protocol import PROPERTY_STATUSES

from ...emt_potential import EmtPotential
from .test_phonons import LATTICE, material

Phono3py = pytest.importorskip("phono3py", reason="phono3py is not installed").Phono3py
PhonopyAtoms = pytest.importorskip("phonopy.structure.atoms").PhonopyAtoms

SETTINGS = Kappa(min_length=7.0, min_length_third=7.0, mesh=15.0)


def conductivities(modes: object, weights: object) -> ModeConductivities:
    values, counts = np.asarray(modes, dtype=float), np.asarray(weights, dtype=float)
    return ModeConductivities(float(values.sum() / counts.sum()), values, counts)


def test_errors_by_mode() -> None:
    reference = conductivities([[6.0, 2.0], [4.0, 0.0]], [1, 3])
    assert relative_mode_error(reference, reference) == 0.0
    assert relative_difference(reference, reference) == 0.0
    exchanged = conductivities([[2.0, 6.0], [4.0, 0.0]], [1, 3])
    assert relative_difference(exchanged, reference) == 0.0
    assert relative_mode_error(exchanged, reference) == pytest.approx(2 * (8 / 4) / (3 + 3))
    double = conductivities(2 * reference.modes, [1, 3])
    assert relative_difference(double, reference) == pytest.approx(2 / 3)
    assert relative_mode_error(double, reference) == pytest.approx(2 / 3)


def test_without_a_prediction_errors_are_the_largest() -> None:
    reference = conductivities([[6.0, 2.0], [4.0, 0.0]], [1, 3])
    assert relative_mode_error(None, reference) == 2.0
    assert relative_difference(None, reference) == -2.0
    assert relative_mode_error(replace(reference, total=float("nan")), reference) == 2.0
    with pytest.raises(ValueError, match="same mesh"):
        relative_mode_error(conductivities([[6.0, 2.0]], [1]), reference)


def test_published_references_are_sums_of_their_modes(data: Path) -> None:
    with gzip.open(data / "benchmarks" / "kappas_phononDB_PBE_NAC.json.gz") as file:
        table = json.load(file)
    for row, (total,) in table["kappa_TOT_ave"].items():
        one = conductivities(table["mode_kappa_TOT_ave"][row][0], table["weights"][row])
        assert one.total == pytest.approx(total, rel=1e-6)
        assert relative_mode_error(one, one) == 0.0


def test_unstable_crystals_have_no_conductivity() -> None:
    one = run_stages({0: SETTINGS.stages(material(bulk("Cu", "bcc", a=2.85, cubic=True)))}, EmtPotential())[0]
    assert PROPERTY_STATUSES[one.status] == "imaginary_modes"
    assert one.values["kappa_min_frequency"] < 0
    assert "kappa_anharmonic_force" not in one.tables


@pytest.mark.slow
def test_it_is_that_of_phono3py_and_ase() -> None:
    atoms = bulk("Al", a=LATTICE["Al"], cubic=True)
    unitcell = PhonopyAtoms(atoms.get_chemical_symbols(), cell=atoms.cell.array, positions=atoms.positions)
    given = material(atoms)
    matrix = supercell_matrix(given.structure, SETTINGS.min_length, given.symprec).T
    expected = Phono3py(unitcell, matrix, primitive_matrix="F", phonon_supercell_matrix=matrix)
    expected.mesh_numbers = SETTINGS.mesh
    expected.generate_displacements(distance=SETTINGS.displacement)

    def forces(cells: list[PhonopyAtoms]) -> list[np.ndarray]:
        return [
            ase.Atoms(one.symbols, positions=one.positions, cell=one.cell, pbc=True, calculator=EMT()).get_forces()
            for one in cells
        ]

    expected.forces = forces(expected.supercells_with_displacements)
    expected.phonon_forces = forces(expected.phonon_supercells_with_displacements)
    expected.produce_fc2()
    expected.symmetrize_fc2()
    expected.produce_fc3()
    expected.symmetrize_fc3()
    expected.init_phph_interaction(average_degenerate_weights=True)
    expected.run_thermal_conductivity(temperatures=[300.0], is_isotope=True, boundary_mfp=1e6, transport_type="SMM19")
    kappa = expected.thermal_conductivity.kappa[0, 0]

    stages = run_stages({0: SETTINGS.stages(given)}, EmtPotential())[0]
    assert PROPERTY_STATUSES[stages.status] == "ok"
    one = SETTINGS.finish(given, stages.tables)
    assert np.allclose(one.values["kappa_tensor"], kappa, atol=1e-6 * kappa[0])
    assert one.values["kappa"] == pytest.approx(kappa[:3].mean(), rel=1e-6)
    modes, weights = one.tables["mode_kappa"], one.tables["kappa_weight"]
    assert modes.sum() / weights.sum() == pytest.approx(one.values["kappa"])
