"""Stresses of slabs and chains are derivatives of the energy; their cells relax only where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase
import ase.build
import numpy as np
import pytest
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.errors import ConfigError
from equiscreen.screening.partial_periodicity import extent, has_volume, in_directions
from equiscreen.screening.relaxation.batched import (
    CELL_KEPT,
    OTHER_AXES,
    RELAX_STATUSES,
    WITHOUT_GROUP,
    WITHOUT_PRESSURE,
    Relaxed,
    RelaxSettings,
    relax_structures,
)
from equiscreen.screening.scoring.score import score_block
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation


@pytest.fixture(scope="module")
def exact(exported: Callable[[str], Path]) -> OnnxPotential:
    return OnnxPotential.load(exported("float64"), threads=1)


def film(axis: int = 2, height: float = 15.0) -> Structure:
    """Two layers of an alloy, periodic except along one lattice vector; without a height, it has no such vector."""
    cell = np.array([[2.8, 0.3, 0.0], [0.2, 3.1, 0.0], [0.0, 0.0, height]])
    positions = [[0.1, 0.2, 5.0], [1.4, 1.7, 6.9]]
    turn = np.roll(np.eye(3), axis - 2, axis=1)
    pbc = np.arange(3) != axis
    cell, positions = np.roll(cell @ turn, axis - 2, axis=0), np.array(positions) @ turn
    return Structure.from_cartesian([13, 29], positions, cell, pbc)


def chain(axis: int) -> Structure:
    """A zigzag chain along one Cartesian axis, without a cell across it."""
    turn = np.roll(np.eye(3), axis - 2, axis=1)
    positions = np.array([[0.0, 0.0, 0.1], [0.9, 0.4, 1.6]]) @ turn
    cell = np.zeros((3, 3))
    cell[axis, axis] = 3.2
    return Structure.from_cartesian([13, 79], positions, cell, np.arange(3) == axis)


def strained(structure: Structure, strain: np.ndarray) -> Structure:
    deformation = np.eye(3) + strain
    cell, positions = structure.cell @ deformation, structure.positions @ deformation
    return replace(Structure.from_cartesian(structure.atomic_number, positions, cell, structure.pbc), cell=cell)


def slope(structure: Structure, strain: np.ndarray, potential: OnnxPotential) -> float:
    """Derivative of the energy along a strain, by finite differences, eV."""
    step = 1e-4
    ends = [strained(structure, sign * step * strain) for sign in (1, -1)]
    energy = potential.evaluate(GraphBlock.from_structures(ends, potential.cutoff)).energy
    return float(energy[0] - energy[1]) / (2 * step)


@settings(deadline=None, max_examples=12)
@given(
    axis=st.integers(0, 2), seed=st.integers(0, 2**31 - 1), turned=st.booleans(), height=st.sampled_from([15.0, 0.0])
)
def test_the_stress_of_a_slab_is_the_derivative_in_its_plane(
    exact: OnnxPotential, axis: int, seed: int, turned: bool, height: float
) -> None:
    slab = film(axis, height)
    if turned:
        turn = Rotation.random(random_state=seed).as_matrix()
        slab = Structure.from_cartesian(slab.atomic_number, slab.positions @ turn, slab.cell @ turn, slab.pbc)
    raw = np.random.default_rng(seed).normal(size=(3, 3))
    strain, inside = in_directions(raw, slab.cell, slab.pbc)
    found = score_block(GraphBlock.from_structures([slab], exact.cutoff), exact)
    expected = slope(slab, strain, exact)
    in_plane, stress = found["in_plane_virial"][0], found["stress"][0]
    assert np.array_equal(np.isfinite(in_plane), inside)
    assert np.nansum(in_plane * strain) * extent(slab.cell[slab.pbc]) == pytest.approx(expected, abs=1e-5)
    assert has_volume(slab.cell, slab.pbc) == bool(height)
    if height:
        assert np.nansum(stress * strain) * abs(np.linalg.det(slab.cell)) == pytest.approx(expected, abs=1e-5)
        assert np.array_equal(np.isfinite(stress), inside)
    else:
        assert np.isnan(stress).all()
    if not turned:
        assert inside.sum() == 4
    assert np.isnan(found["axial_virial"]).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_pull_of_a_chain_is_the_derivative_along_it(exact: OnnxPotential, axis: int) -> None:
    one = chain(axis)
    found = score_block(GraphBlock.from_structures([one], exact.cutoff), exact)
    strain = np.diag(np.arange(3) == axis).astype(float)
    assert found["axial_virial"][0] * 3.2 == pytest.approx(slope(one, strain, exact), abs=1e-5)
    assert np.isnan(found["stress"]).all()
    assert np.isnan(found["in_plane_virial"]).all()


def relaxed(structure: Structure, potential: OnnxPotential, **changes: object) -> Relaxed:
    ((_, found),) = relax_structures([(0, structure)], potential, RelaxSettings(**changes))  # type: ignore[arg-type]
    assert found.last is not None
    return found


def test_a_slab_keeps_its_cell_or_relaxes_in_its_plane(sevennet_model: Path) -> None:
    """The amount of vacuum makes no difference; settings without effect are reported."""
    potential = OnnxPotential.load(sevennet_model, threads=1)
    layer = ase.build.mx2("MoS2", a=3.3, vacuum=8.0)
    layer.pbc = (True, True, False)
    slab = Structure.from_ase(layer)
    layer.cell[2] = 0.0
    kept = relaxed(slab, potential)
    assert kept.last is not None
    assert np.array_equal(kept.last.structure.cell, slab.cell)
    assert kept.remarks == (CELL_KEPT,)
    assert relaxed(slab, potential, pressure=1.0).remarks == (CELL_KEPT, WITHOUT_PRESSURE)
    edges = []
    for one in (slab, Structure.from_ase(layer)):
        found = relaxed(one, potential, cell_axes="abc")
        assert found.last is not None
        assert (RELAX_STATUSES[found.status], found.remarks) == ("ok", ())
        assert np.allclose(found.last.structure.cell[2], one.cell[2], atol=1e-12)
        edges.append(np.linalg.norm(found.last.structure.cell[0]))
    assert edges == pytest.approx([3.19, 3.19], abs=0.01)  # PBE: 3.18
    molecule = Structure.from_ase(ase.Atoms("OH", [[0, 0, 0], [0, 0, 1]]))
    assert relaxed(molecule, potential).remarks == ()
    assert relaxed(molecule, potential, pressure=1.0).remarks == (WITHOUT_PRESSURE,)
    assert relaxed(molecule, potential, fix_symmetry=True).remarks == (WITHOUT_GROUP,)
    assert relaxed(slab, potential, fix_cell=True).remarks == ()
    assert relaxed(slab, potential, cell_axes="c").remarks == (OTHER_AXES,)


def test_a_crystal_relaxes_along_the_chosen_axes(sevennet_model: Path) -> None:
    potential = OnnxPotential.load(sevennet_model, threads=1)
    copper = Structure.from_ase(ase.build.bulk("Cu", a=3.8, cubic=True))
    found = relaxed(copper, potential, cell_axes="ab").last
    assert found is not None
    lengths = found.structure.cell.diagonal()
    assert lengths[2] == 3.8
    assert lengths[0] == pytest.approx(lengths[1], abs=1e-4)
    assert lengths[0] < 3.6
    assert np.abs(found.stress[:2, :2]).max() < 0.1 * 0.00625
    assert abs(found.stress[2, 2]) > 0.01


@pytest.mark.parametrize("said", [{"cell_axes": "x"}, {"cell_axes": "aa"}, {"cell_axes": "a", "fix_cell": True}])
def test_axes_that_make_no_sense(said: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="axes"):
        RelaxSettings(**said)  # type: ignore[arg-type]
