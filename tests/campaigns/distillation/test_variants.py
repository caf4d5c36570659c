"""Variants of a crystal: near it, reproducible, and independent of other crystals."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import fcc111, molecule
from equiscreen.campaigns.distillation.settings import RELAXATION_STEPS, VariantSettings
from equiscreen.campaigns.distillation.variants import perturbed, relaxation_frames
from equiscreen.campaigns.distillation.worker import label_block
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening.dataset.scores import EXTRAPOLATING, OK, TOO_LARGE, UNKNOWN_ELEMENT
from equiscreen.screening.plausibility import Plausibility
from hypothesis import given, settings
from hypothesis import strategies as st

from ...emt_potential import EmtPotential

METALS = (13, 29, 79)


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), number=st.integers(0, 20), strain=st.floats(1e-3, 0.29), rattle=st.floats(0.0, 0.99))
def test_a_copy_is_near_its_crystal(seed: int, number: int, strain: float, rattle: float) -> None:
    (crystal,) = probe_structures(METALS, 1, seed)
    chosen = VariantSettings(strain=strain, rattle=rattle, seed=seed)
    copy, again = (perturbed(crystal, chosen, number) for _ in range(2))
    assert copy.content_hash() == again.content_hash()
    assert np.array_equal(copy.atomic_number, crystal.atomic_number)
    deformation = np.linalg.solve(crystal.cell, copy.cell) - np.eye(3)
    assert np.allclose(deformation, deformation.T, atol=1e-9)  # no rotation
    assert np.abs(deformation).max() <= strain + 1e-9
    moved = copy.frac_coord - crystal.frac_coord
    moved = (moved - moved.round()) @ crystal.cell
    assert np.abs(moved).max() <= 7 * rattle + 1e-6  # standard deviations
    other = perturbed(crystal, chosen, number + 1)
    assert other.content_hash() != copy.content_hash()


def test_only_crystals_are_strained() -> None:
    chosen = VariantSettings(strain=0.1)
    slab = Structure.from_ase(fcc111("Al", (2, 2, 2), vacuum=8.0, periodic=False))
    assert slab.pbc.tolist() == [True, True, False]
    water = Structure.from_ase(molecule("H2O"))
    for structure in (slab, water):
        copy = perturbed(structure, chosen, 0)
        assert np.array_equal(copy.cell, structure.cell)
        assert copy.content_hash() != structure.content_hash()


def test_frames_lead_from_the_crystal_to_its_minimum() -> None:
    potential = EmtPotential()
    crystals = probe_structures(METALS, 2, seed=2, max_atoms=4)
    chosen = VariantSettings(frames=3)
    bounds = Plausibility.of(potential)
    for crystal, frames in zip(crystals, relaxation_frames(crystals, potential, chosen, bounds), strict=True):
        assert 1 <= len(frames) <= 3 <= RELAXATION_STEPS
        energies = potential.evaluate(GraphBlock.from_structures([crystal, *frames], potential.cutoff)).energy
        assert energies[-1] == energies.min() < energies[0]
    assert relaxation_frames(crystals, potential, VariantSettings(frames=0), bounds) == [[], []]


def test_what_the_teacher_cannot_judge_has_a_status_and_no_labels() -> None:
    potential = EmtPotential()
    good, close, foreign = probe_structures(METALS, 3, seed=4, max_atoms=4)
    near = close.frac_coord.copy()
    near[1] = near[0] + np.linalg.solve(close.cell.T, [0.3, 0.0, 0.0])
    overlapping = Structure.from_fractional(close.atomic_number, close.cell, near)
    numbers = foreign.atomic_number.copy()
    numbers[0] = 8  # EMT's oxygen is left out of the potential
    oxide = Structure.from_fractional(numbers, foreign.cell, foreign.frac_coord)
    block = GraphBlock.from_structures([good, overlapping, oxide], potential.cutoff)
    labels = label_block(block, potential, Plausibility.of(potential))
    assert labels.status.tolist() == [OK, EXTRAPOLATING, UNKNOWN_ELEMENT]
    assert np.isfinite(labels.energy).tolist() == [True, False, False]
    assert np.isfinite(labels.forces).all(axis=1).tolist() == (block.atom_structure == 0).tolist()
    assert [set(one) for one in labels.by_structure(block)] == [{"energy", "forces", "stress"}, set(), set()]
    killed = label_block(block.take([0]), potential, Plausibility.of(potential), skip=True)
    assert killed.status.tolist() == [TOO_LARGE]
    assert killed.energy == pytest.approx(np.nan, nan_ok=True)
