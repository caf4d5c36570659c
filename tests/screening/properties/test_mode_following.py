"""Imaginary modes are followed to structures of lower energy, which other commands read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list
from ase.units import _amu, _e
from equiscreen.pipeline import GraphBlock, GraphStore, Structure, featurize
from equiscreen.pipeline.graphs.potential import ENERGY_OUTPUTS, Evaluation, OutputSpec
from equiscreen.screening import compute_properties, relax, screen
from equiscreen.screening.properties import compute, presets
from equiscreen.screening.properties.estimates import estimate
from equiscreen.screening.properties.evaluation import run_stages
from equiscreen.screening.properties.lattice_dynamics.force_constants import displaced_supercells, set_force_constants
from equiscreen.screening.properties.lattice_dynamics.mode_following import AMPLITUDES, FOLLOWED_STATUSES, follow
from equiscreen.screening.properties.lattice_dynamics.phonons import Phonons
from equiscreen.screening.properties.lattice_dynamics.soft_modes import commensurate_supercell, softest_mode
from equiscreen.screening.properties.lattice_dynamics.supercells import supercell_matrix
from equiscreen.screening.properties.protocol import PROPERTY_STATUSES, CellResult, Cells, Material, Outcome
from equiscreen.screening.relaxation.batched import RelaxSettings

from ...emt_potential import EmtPotential

pytest.importorskip("phonopy", reason="phonopy is not installed")
pytest.importorskip("seekpath", reason="seekpath is not installed")

SYMPREC = 1e-5
# The crystals of `Wells`: lattice constant (angstrom), eV/angstrom^2, and eV/angstrom^4.
EDGE, SOFTNESS, COUPLING, SPRING, QUARTIC = 4.0, 0.5, 0.25, 5.0, 50.0
SETTINGS = Phonons(
    min_length=8.0, mesh=30.0, temperatures=(0.0, 300.0), follow=RelaxSettings(fmax=1e-3, smax=0.02, max_steps=200)
)


def bcc_copper() -> ase.Atoms:
    """Copper at the minimum of its energy as a body-centred crystal, where it is unstable."""
    return bulk("Cu", "bcc", a=2.8665)


def energy(structure: Structure) -> float:
    atoms = structure.to_ase()
    atoms.calc = EMT()
    return float(atoms.get_potential_energy())


def material(atoms: ase.Atoms) -> Material:
    atoms.calc = EMT()
    stress = atoms.get_stress(voigt=False)
    return Material(Structure.from_ase(atoms), atoms.get_potential_energy(), atoms.get_forces(), stress, SYMPREC)


def found(atoms: ase.Atoms, settings: Phonons = SETTINGS) -> Outcome:
    return run_stages({0: settings.stages(material(atoms))}, EmtPotential())[0]


def word(one: Outcome) -> str:
    return FOLLOWED_STATUSES[one.values.get("followed_status", 0)]


@pytest.mark.parametrize(
    "wave_vector", [(0, 0, 0), (0.5, 0.5, 0.5), (0, 0, 1 / 3), (0.25, -0.25, 0), (0.5, 1 / 3, 0.2)]
)
def test_supercells_hold_whole_waves_and_are_as_small_as_possible(wave_vector: tuple[float, ...]) -> None:
    cell = np.array([[3.0, 0.0, 0.0], [1.0, 4.0, 0.0], [-1.0, 0.5, 5.0]])
    q = np.array(wave_vector)
    matrix = commensurate_supercell(q, cell)
    waves = matrix @ q
    assert np.allclose(waves, np.rint(waves))
    fitting = [n for n in range(1, 31) if np.allclose(n * q, np.rint(n * q))]  # no smaller lattice has this period
    assert round(np.linalg.det(matrix)) == fitting[0]


def test_the_energy_of_a_small_displacement_is_that_of_the_mode() -> None:
    """E = 1/2 (2 pi nu)^2 sum m u^2, in a supercell that differs from that of the force constants."""
    crystal = Structure.from_ase(bcc_copper())
    cells = displaced_supercells(crystal, supercell_matrix(crystal, 8.0, SYMPREC), 0.01)
    forces = [result.to_ase() for result in cells.structures]
    for atoms in forces:
        atoms.calc = EMT()
    phonopy = set_force_constants(cells, [atoms.get_forces() for atoms in forces])
    mode = softest_mode(phonopy, 0.1)
    assert mode is not None
    with pytest.raises(StopIteration) as end:  # no mode is as soft as that
        next(follow(phonopy, material(bcc_copper()), 10.0, RelaxSettings()))
    assert FOLLOWED_STATUSES[end.value.value.status] == "no_commensurate_mode"
    assert 1 < len(mode.structure) < len(cells.structures[0])
    step = 0.02
    change = (energy(mode.displaced(step)) + energy(mode.displaced(-step))) / 2 - energy(mode.structure)
    mass = phonopy.primitive.masses[0]
    squares = (mode.displacements**2).sum() * step**2
    per_cycle = (2 * np.pi * 1e12) ** 2 * _amu / _e * 1e-20  # (THz)^2 Da in eV/angstrom^2
    assert change == pytest.approx(-0.5 * mode.frequency**2 * per_cycle * mass * squares, rel=0.03)


@dataclass
class Wells:
    """Crystals of the CsCl type in which each aluminium atom moves in a well with two minima along each axis.

    With the displacement u of an aluminium atom from the centre of its eight copper neighbours, the energy is
    -SOFTNESS/2 u^2 + QUARTIC/4 (x^4 + y^4 + z^4) for each of them, COUPLING u.u' for each pair of neighbours, and
    that of springs between copper atoms.
    """

    cutoff: float = 6.0
    elements: tuple[int, ...] = (13, 29)
    outputs: tuple[OutputSpec, ...] = ENERGY_OUTPUTS

    def evaluate(self, block: GraphBlock) -> Evaluation:
        found = [self._evaluated(block.structure(row)) for row in range(len(block))]
        forces = np.concatenate([one[1] for one in found])
        return Evaluation(np.array([one[0] for one in found]), forces, np.zeros((len(found), 3, 3)))

    def _evaluated(self, structure: Structure) -> tuple[float, np.ndarray[Any, Any]]:
        atoms = structure.to_ase()
        first, second, vector = neighbor_list("ijD", atoms, 1.21 * EDGE)
        aluminium, forces = atoms.numbers == 13, np.zeros((len(atoms), 3))
        to_copper = aluminium[first] & ~aluminium[second]
        centre = np.zeros((len(atoms), 3))
        np.add.at(centre, first[to_copper], vector[to_copper] / 8)
        u = -centre
        pairs = aluminium[first] & aluminium[second]
        field = np.zeros_like(u)
        np.add.at(field, first[pairs], COUPLING * u[second[pairs]])
        energy = (-SOFTNESS / 2 * u**2 + QUARTIC / 4 * u**4 + field * u / 2).sum()
        slope = -SOFTNESS * u + QUARTIC * u**3 + field
        forces -= slope
        np.add.at(forces, second[to_copper], slope[first[to_copper]] / 8)
        springs = ~aluminium[first] & ~aluminium[second]
        stretch = vector[springs] - EDGE * np.rint(vector[springs] / EDGE)
        np.add.at(forces, first[springs], SPRING * stretch)
        return float(energy + SPRING / 4 * (stretch**2).sum()), forces


def test_a_mode_at_the_zone_boundary_leads_to_the_minimum_that_can_be_computed() -> None:
    """Neighbours move in opposite directions: E = -(a + 6 c)/2 u^2 + b/4 u^4 for two atoms, at the wave vector R."""
    atoms = bulk("CuAl", "cesiumchloride", a=EDGE)
    structure = Structure.from_ase(atoms)
    crystal = Material(structure, 0.0, np.zeros((2, 3)), np.zeros((3, 3)), SYMPREC)
    fixed = RelaxSettings(fmax=1e-4, fix_cell=True, allow_extrapolation=True)
    settings = replace(SETTINGS, min_length=2 * EDGE, mesh=10.0, follow=fixed)
    one = run_stages({0: settings.stages(crystal)}, Wells())[0]
    softness = SOFTNESS + 6 * COUPLING
    assert word(one) == "lower", one.note
    assert np.abs(one.values["followed_wave_vector"]).tolist() == [0.5, 0.5, 0.5]
    assert one.values["followed_n_atoms"] == 4
    assert one.values["followed_energy_gain"] == pytest.approx(softness**2 / (4 * QUARTIC) / 2, rel=1e-4)
    per_cycle = (2 * np.pi * 1e12) ** 2 * _amu / _e * 1e-20  # (THz)^2 Da in eV/angstrom^2
    expected = -np.sqrt(softness / per_cycle / atoms.get_masses()[atoms.numbers == 13][0])
    assert one.values["min_frequency"] == pytest.approx(expected, rel=3e-3)  # with the quartic term
    assert one.derived is not None
    moved = one.derived.structure.to_ase()
    distances = moved.get_all_distances(mic=True)[moved.numbers == 13][:, moved.numbers == 29]
    assert distances.min() < np.sqrt(3) / 2 * EDGE - 0.05


def test_copper_leaves_the_body_centred_structure() -> None:
    atoms = bcc_copper()
    one = found(atoms)
    assert PROPERTY_STATUSES[one.status] == "imaginary_modes"
    assert word(one) == "lower"
    assert one.derived is not None
    new = one.derived.structure
    assert len(new) == one.values["followed_n_atoms"] > 1
    gain = energy(Structure.from_ase(atoms)) - energy(new) / len(new)
    assert one.values["followed_energy_gain"] == pytest.approx(gain, abs=1e-7)
    close_packed = energy(Structure.from_ase(bulk("Cu", a=3.5899)))
    assert 0.005 < gain <= energy(Structure.from_ase(atoms)) - close_packed + 1e-6
    relaxed = new.to_ase()
    relaxed.calc = EMT()
    assert np.abs(relaxed.get_forces()).max() < 1e-3
    assert one.values["followed_space_group"] not in (0, 229)
    assert np.isfinite(one.values["vibrational_free_energy"])  # the phonons of the crystal itself stay
    again = found(atoms)
    assert again.derived is not None
    assert np.array_equal(again.derived.structure.frac_coord, new.frac_coord)


def test_what_cannot_be_followed_keeps_its_phonons() -> None:
    stable = found(bulk("Cu", a=3.5899))
    assert (word(stable), stable.derived) == ("not_followed", None)
    settings = SETTINGS.follow
    assert settings is not None
    hasty = found(bcc_copper(), replace(SETTINGS, follow=replace(settings, max_steps=2)))
    assert word(hasty) == "not_relaxed"
    assert "did not relax within 2 evaluations" in hasty.note
    few = found(bcc_copper(), replace(SETTINGS, follow=replace(settings, max_edges=10)))
    assert word(few) == "too_large"
    assert few.derived is None
    assert few.values["min_frequency"] < -SETTINGS.tolerance
    assert len(few.tables["force_constants"]) > 0


@pytest.mark.slow
def test_the_new_structures_are_a_store_that_other_commands_read(
    exported: Callable[[str], Path], tmp_path: Path
) -> None:
    """The crystals of an untrained network have imaginary modes; relaxations of few steps are enough."""
    crystals = [bulk("Cu"), bulk("CuAl", "cesiumchloride", a=3.0), bulk("Al")]
    for name, one in zip(("copper", "alloy", "aluminium"), crystals, strict=True):
        one.info["name"] = name
    ase.io.write(tmp_path / "c.extxyz", crystals, format="extxyz")
    featurize(tmp_path / "c.extxyz", tmp_path / "g.zarr", cutoff=4.5, id_field="name", scheduler="threads")
    small = presets.PRESETS["default"].altered("phonons", min_length=6.0, mesh=15.0, temperatures=(300.0,))
    small = replace(small, relaxation=replace(small.relaxation, max_steps=5))
    model, out = exported("float64"), tmp_path / "p.zarr"
    plain, followed = (
        estimate(tmp_path / "g.zarr", model, ["phonons"], preset=small, relax=False, follow_modes=follows)
        for follows in (False, True)
    )
    assert followed.cells == plain.cells + len(crystals) * len(AMPLITUDES)
    assert "with imaginary modes as frequent as in it" in str(followed)
    assert "imaginary" not in str(plain)
    scores = compute_properties(
        tmp_path / "g.zarr", model, out, ["phonons"], preset=small, relax=False, follow_modes=True, scheduler="threads"
    )
    words = [FOLLOWED_STATUSES[value] for value in scores["followed_status"].values]
    gains = scores["followed_energy_gain"].values
    rows = [row for row, gain in enumerate(gains) if gain > 1e-5]
    assert rows, words
    store = GraphStore(tmp_path / "p.followed.graphs.zarr")
    assert store.verify() == []
    assert scores.attrs["followed_graphs"] == {"path": "p.followed.graphs.zarr", "store_hash": store.store_hash}
    ids = scores["structure_id"].values[rows].tolist()
    assert store.column("followed_from", 0, len(store)).tolist() == ids
    assert store.column("structure_id", 0, len(store)).tolist() == [f"{name}-followed" for name in ids]
    assert np.allclose(store.column("energy_gain", 0, len(store)).astype(float), gains[rows], atol=1e-6)
    assert "imaginary modes followed: " in compute.summary(scores, out)
    assert "no structure is ok" not in compute.summary(scores, out)
    again = screen(store.path, model, tmp_path / "s.zarr", scheduler="threads")
    parents = scores["energy_per_atom"].values[rows]
    assert np.allclose(parents - again["energy_per_atom"].values, gains[rows], atol=1e-6)
    loose = RelaxSettings(fmax=1e6, smax=1e9)
    assert len(relax(store.path, model, tmp_path / "r.zarr", loose, scheduler="threads")["energy"]) == len(rows)


def test_a_property_may_handle_a_cell_without_a_result() -> None:
    """The error is raised at the yield; `stages` of other properties end with its status."""
    close = replace(Structure.from_ase(bulk("Cu")), cell=1e-3 * np.eye(3))
    told: list[str] = []

    def stages() -> object:
        try:
            yield Cells([close])
        except Exception as error:  # noqa: BLE001 - the test looks at it
            told.append(type(error).__name__)
        (result,) = yield Cells([Structure.from_ase(bulk("Cu"))])
        assert isinstance(result, CellResult)
        return Outcome(values={"energy": result.energy})

    (one,) = run_stages({0: stages()}, EmtPotential()).values()  # type: ignore[dict-item]
    assert told == ["OutcomeError"]
    assert one.values["energy"] == pytest.approx(energy(Structure.from_ase(bulk("Cu"))))
    assert one.evaluations == 1
