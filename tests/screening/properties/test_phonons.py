"""Phonons are those of phonopy used directly, and obey the laws of lattice dynamics."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase import units
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from equiscreen.pipeline import Structure, featurize
from equiscreen.pipeline.errors import ConfigError, StoreError
from equiscreen.pipeline.structures.symmetry import point_group
from equiscreen.screening import compute_properties
from equiscreen.screening.properties.evaluation import run_stages
from equiscreen.screening.properties.lattice_dynamics import spectra
from equiscreen.screening.properties.lattice_dynamics.force_constants import (
    displaced_supercells,
    nac_parameters,
    set_force_constants,
    stability,
    with_force_constants,
)
from equiscreen.screening.properties.lattice_dynamics.phonons import Phonons
from equiscreen.screening.properties.lattice_dynamics.spectra import bands, density_of_states
from equiscreen.screening.properties.lattice_dynamics.stored import band_figure, stored_phonopy
from equiscreen.screening.properties.lattice_dynamics.supercells import shortest_vector, supercell_matrix
from equiscreen.screening.properties.materials import Protocol
from equiscreen.screening.properties.presets import PRESETS
from equiscreen.screening.properties.protocol import PROPERTY_STATUSES, BornCharges, Material, Outcome
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ...emt_potential import EmtPotential

Phonopy = pytest.importorskip("phonopy", reason="phonopy is not installed").Phonopy
PhonopyAtoms = pytest.importorskip("phonopy.structure.atoms").PhonopyAtoms
pytest.importorskip("seekpath", reason="seekpath is not installed")

SYMPREC = 1e-5
GAS_CONSTANT = 8.31446262  # J/mol/K
# Lattice constants at the minimum of the energy in EMT, angstrom.
LATTICE = {"Al": 3.9949, "Cu": 3.5899}
SETTINGS = Phonons(min_length=8.0, mesh=30.0, temperatures=(0.0, 300.0))


def material(atoms: ase.Atoms) -> Material:
    atoms.calc = EMT()
    stress = atoms.get_stress(voigt=False) if atoms.pbc.all() else np.zeros((3, 3))
    return Material(Structure.from_ase(atoms), atoms.get_potential_energy(), atoms.get_forces(), stress, SYMPREC)


def found(atoms: ase.Atoms, settings: Phonons = SETTINGS) -> Outcome:
    """Phonons of a crystal in EMT."""
    return run_stages({0: settings.stages(material(atoms))}, EmtPotential())[0]


def status(one: Outcome) -> str:
    return PROPERTY_STATUSES[one.status]


@pytest.mark.parametrize("element", ["Al", "Cu"])
def test_they_are_those_of_phonopy_and_ase(element: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frequencies and heat capacity of a cubic cell, by phonopy's own functions and ASE's calculator."""
    atoms = bulk(element, a=LATTICE[element], cubic=True)
    unitcell = PhonopyAtoms(atoms.get_chemical_symbols(), cell=atoms.cell.array, positions=atoms.positions)
    expected = Phonopy(unitcell, np.diag([3, 3, 3]), primitive_matrix="F")
    expected.generate_displacements(distance=0.01)
    forces = []
    for cell in expected.supercells_with_displacements:
        displaced = ase.Atoms(cell.symbols, positions=cell.positions, cell=cell.cell, pbc=True, calculator=EMT())
        forces.append(displaced.get_forces())
    expected.forces = forces
    expected.produce_force_constants()
    expected.symmetrize_force_constants()
    mesh = expected.run_mesh(30.0)
    thermal = expected.run_thermal_properties(temperatures=[300.0], exclude_gamma_acoustic=True)

    monkeypatch.setattr(spectra, "_DISPLACEMENT_MESH", 8.0)  # phonopy takes its time for many wave vectors
    one = found(atoms, replace(SETTINGS, supercell=(3, 3, 3)))
    assert status(one) == "ok"
    assert one.values["n_phonon_displacements"] == 1
    own = with_force_constants(
        Structure.from_ase(atoms), one.values["phonon_supercell"], one.tables["force_constants"].reshape(1, -1, 3, 3)
    )
    assert np.allclose(own.run_mesh(30.0).frequencies, mesh.frequencies, atol=1e-4)
    assert one.values["heat_capacity"] == pytest.approx(thermal.heat_capacity[0], abs=1e-4)
    assert one.values["vibrational_entropy"] == pytest.approx(thermal.entropy[0], abs=1e-3)
    assert one.values["vibrational_free_energy"] == pytest.approx(thermal.free_energy[0] / 96.4853321, abs=1e-6)
    own.run_mesh(8.0, with_eigenvectors=True, is_mesh_symmetry=False)
    displacements = own.run_thermal_displacement_matrices(
        temperatures=[300.0], freq_min=1e-2, exclude_gamma_acoustic=True
    ).thermal_displacement_matrices[0]
    assert np.allclose(one.tables["displacement_tensor"], displacements.real, atol=1e-8)


def test_laws_of_a_crystal_at_rest() -> None:
    """Acoustic sum rule, zero modes at Gamma, three states per atom, and isotropic displacements on cubic sites."""
    one = found(bulk("Cu", a=LATTICE["Cu"]))
    constants = one.tables["force_constants"]
    assert np.abs(constants.sum(axis=0)).max() < 1e-10 * np.abs(constants).max()
    assert one.values["acoustic_frequency"] < 1e-4
    assert one.values["is_dynamically_stable"]
    frequency, density = one.tables["dos_frequency"], one.tables["dos"]
    assert np.trapezoid(density, frequency) == pytest.approx(3.0, rel=0.01)
    tensor = one.tables["displacement_tensor"][0]
    assert np.allclose(tensor, np.eye(3) * one.values["mean_square_displacement"], atol=1e-10)
    labels, frequencies = np.array(one.tables["band_label"]), one.tables["band_frequency"].reshape(-1, 3)
    gamma = labels == "GAMMA"
    assert gamma.sum() >= 2
    assert np.abs(frequencies[gamma]).max() < 1e-3
    assert frequencies[~gamma].max() > 5.0


def test_the_heat_capacity_has_the_limits_of_debye_and_dulong_petit() -> None:
    one = found(bulk("Cu", a=LATTICE["Cu"]), replace(SETTINGS, temperatures=(0.0, 10_000.0), temperature=10_000.0))
    cold, hot = one.values["heat_capacities"]
    assert cold == 0.0
    assert hot == pytest.approx(3 * GAS_CONSTANT, rel=2e-3)
    assert one.values["heat_capacity"] == hot
    assert one.values["vibrational_free_energies"][0] == pytest.approx(one.values["zero_point_energy"])
    assert one.values["vibrational_entropies"][0] == 0.0


def test_turned_and_other_cells_of_a_crystal_have_the_same_phonons() -> None:
    primitive = bulk("Cu", a=LATTICE["Cu"])
    turned = primitive.copy()
    turned.set_cell(primitive.cell.array @ Rotation.random(random_state=3).as_matrix(), scale_atoms=True)
    skewed = ase.Atoms(
        primitive.numbers, primitive.positions, cell=[[1, 1, 0], [0, 1, 0], [0, 1, 1]] @ primitive.cell.array, pbc=True
    )
    expected = found(primitive)
    path = np.sort(expected.tables["band_frequency"])
    for atoms in (turned, skewed, bulk("Cu", a=LATTICE["Cu"], cubic=True)):
        one = found(atoms)
        assert one.values["heat_capacity"] == pytest.approx(expected.values["heat_capacity"], abs=2e-2)
        if len(atoms) == 1:  # the same supercell
            assert np.allclose(np.sort(one.tables["band_frequency"]), path, atol=2e-3)


def test_imaginary_modes_are_reported() -> None:
    """Copper is unstable as a body-centred crystal: a shear leads to the face-centred one."""
    one = found(bulk("Cu", "bcc", a=2.85, cubic=True))
    assert status(one) == "imaginary_modes"
    assert not one.values["is_dynamically_stable"]
    assert one.values["min_frequency"] < -SETTINGS.tolerance
    assert 0.0 < one.values["imaginary_fraction"] < 1.0
    assert "THz at (" in one.note


def test_what_is_too_large_or_no_crystal_has_a_status() -> None:
    copper = bulk("Cu", a=LATTICE["Cu"])
    large = found(copper, replace(SETTINGS, max_atoms=20))
    assert (status(large), large.note) == ("too_large", "the supercell has 64 atoms; the limit is 20")
    many = copper.repeat((2, 2, 1))
    many.rattle(0.05, seed=1)
    assert status(found(many, replace(SETTINGS, max_displacements=3))) == "too_large"
    assert status(found(fcc111("Cu", (1, 1, 3), vacuum=5.0))) == "not_applicable"


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Cu"),
        bulk("Cu", cubic=True),
        bulk("Mg"),
        bulk("NaCl", "rocksalt", a=5.6),
        bulk("Fe"),
        bulk("Sn", "diamond", a=6.5),
    ],
    ids=str,
)
def test_supercells_are_large_enough_and_as_symmetric_as_the_crystal(atoms: ase.Atoms) -> None:
    structure = Structure.from_ase(atoms)
    matrix = supercell_matrix(structure, 9.0, SYMPREC)
    assert np.linalg.det(matrix) > 0
    assert shortest_vector(matrix @ structure.cell) >= 9.0 - 1e-2
    for rotation in rotations(structure):
        turned = matrix @ structure.cell @ rotation @ np.linalg.inv(matrix @ structure.cell)
        assert np.allclose(turned, np.rint(turned), atol=1e-6)
    smaller = supercell_matrix(structure, 5.0, SYMPREC)
    assert np.linalg.det(smaller) <= np.linalg.det(matrix)


def rotations(structure: Structure) -> NDArray[np.float64]:
    return point_group(structure, SYMPREC).transpose(0, 2, 1)


def test_bands_need_no_standard_cell() -> None:
    """Labelled wave vectors are those of the crystal whatever its axes are: X of copper is 1/2 of a cubic axis away."""
    atoms = bulk("Cu", a=LATTICE["Cu"])
    atoms.set_cell(np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]) @ atoms.cell.array)
    one = found(atoms)
    phonopy = with_force_constants(
        Structure.from_ase(atoms), one.values["phonon_supercell"], one.tables["force_constants"].reshape(1, -1, 3, 3)
    )
    path = bands(phonopy)
    reciprocal = np.linalg.inv(phonopy.primitive.cell).T
    at_x = path.wave_vector[[label == "X" for label in path.labels]] @ reciprocal
    assert np.allclose(np.linalg.norm(at_x, axis=1), 1 / LATTICE["Cu"], atol=1e-6)


def test_charges_split_longitudinal_and_transverse_modes() -> None:
    """Lyddane, Sachs and Teller: the squares differ by 4 pi Z^2 / (epsilon V mu), in a crystal of springs."""
    structure, charge, epsilon = Structure.from_ase(bulk("NaCl", "rocksalt", a=5.6)), 1.1, 2.3
    cells = displaced_supercells(structure, 2 * np.eye(3, dtype=int), 0.01)
    forces = []
    for cell in cells.structures:
        shift = cell.frac_coord - cells.structures[0].frac_coord
        moved = (shift - np.rint(shift)) @ cell.cell
        forces.append(-5.0 * (moved - moved.mean(axis=0)))
    born = BornCharges(np.array([1.0, -1.0])[:, None, None] * charge * np.eye(3), epsilon * np.eye(3))
    phonopy = set_force_constants(cells, forces, born)
    transverse = phonopy.run_qpoints([[0, 0, 0]]).frequencies[0, -1]
    longitudinal = phonopy.run_qpoints([[0, 0, 0]], nac_q_direction=[1, 0, 0]).frequencies[0, -1]
    mass = 1 / (1 / phonopy.primitive.masses).sum()
    expected = 4 * np.pi * 14.399645 * charge**2 / (epsilon * structure.volume * mass)  # eV/angstrom^2/Da
    per_cycle = (2 * np.pi * 1e12) ** 2 * units._amu / units._e * 1e-20  # (THz)^2 Da in eV/angstrom^2
    assert longitudinal**2 - transverse**2 == pytest.approx(expected / per_cycle, rel=1e-4)
    with pytest.raises(ConfigError, match="one 3x3 tensor per atom"):
        nac_parameters(phonopy, replace(born, charges=np.zeros((3, 3))))


def test_a_missing_library_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phonopy", None)
    with pytest.raises(ConfigError, match=r"^phonons needs phonopy, .*: pip install 'equiscreen\[properties\]'$"):
        Protocol.of(PRESETS["default"], ["phonons"], EmtPotential())


@pytest.mark.slow
def test_a_dataset_holds_what_phonopy_needs(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """Tables of several crystals lie one after another; the crystals of an untrained network are hardly stable."""
    atoms = [bulk("Cu"), bulk("Al"), fcc111("Al", (1, 1, 2), vacuum=5.0)]
    for name, one in zip(("copper", "aluminium", "slab"), atoms, strict=True):
        one.info["name"] = name
    ase.io.write(tmp_path / "c.extxyz", atoms, format="extxyz")
    featurize(tmp_path / "c.extxyz", tmp_path / "g.zarr", cutoff=4.5, id_field="name", scheduler="threads")
    out = tmp_path / "p.zarr"
    scores = compute_properties(
        tmp_path / "g.zarr", exported("float64"), out, ["phonons"], relax=False, scheduler="threads"
    )
    points = scores["n_band_point"].values
    assert points[2] == 0
    assert len(scores["band_label"]) == points.sum()
    assert set(scores["band_label"].values[: points[0]]) > {"GAMMA", "X", "L", ""}
    assert len(scores["band_frequency"]) == 3 * points.sum()
    assert scores["heat_capacities"].dims == ("structure", "phonon_temperature")
    for row, name in enumerate(("copper", "aluminium")):
        phonopy = stored_phonopy(out, name)
        own = stability(phonopy, PRESETS["default"].chosen(["phonons"])[0].mesh, 0.1)
        assert own.min_frequency == pytest.approx(float(scores["min_frequency"][row]), abs=1e-6)
        assert band_figure(bands(phonopy), density_of_states(phonopy)).axes
    with pytest.raises(StoreError, match="slab has no phonons"):
        stored_phonopy(out, "slab")
    with pytest.raises(ConfigError, match="no structure has the id 'gold'"):
        stored_phonopy(out, "gold")
