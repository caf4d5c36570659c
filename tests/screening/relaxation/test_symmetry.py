"""Symmetrization: a crystal that has its space group within a tolerance gets it exactly, and keeps it."""

from __future__ import annotations

from dataclasses import replace

import ase
import ase.build
import numpy as np
import pytest
from ase.spacegroup import crystal
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.graphs.potential import Evaluation
from equiscreen.pipeline.structures.symmetry import find_symmetry
from equiscreen.screening.relaxation.batched import OK, RelaxSettings, relax_structures
from equiscreen.screening.relaxation.symmetry import symmetrized

from ...emt_potential import EmtPotential

QUARTZ = [(0.4697, 0, 0), (0.4135, 0.2669, 0.1191)]
CALCITE = [(0, 0, 0), (0, 0, 0.25), (0.257, 0, 0.25)]


class Slanted(EmtPotential):
    """EMT with a force of 0.01 eV/angstrom on the first atom, against the symmetry of any crystal."""

    def evaluate(self, block: GraphBlock) -> Evaluation:
        found = super().evaluate(block)
        forces = found.forces.copy()
        forces[block.atom_start, 0] += 0.01
        return replace(found, forces=forces)


@pytest.mark.parametrize(
    ("atoms", "number"),
    [
        (ase.build.bulk("ZnO", "wurtzite", a=3.25, c=5.2, u=0.38), 186),
        (crystal(["Si", "O"], QUARTZ, spacegroup=152, cellpar=[4.916, 4.916, 5.405, 90, 90, 120]), 152),
        (crystal(["Ca", "C", "O"], CALCITE, spacegroup=167, cellpar=[4.99, 4.99, 17.06, 90, 90, 120]), 167),
        (ase.build.bulk("NaCl", "rocksalt", a=5.6, cubic=True), 225),
    ],
)
def test_a_distorted_crystal_becomes_symmetric(atoms: ase.Atoms, number: int) -> None:
    rng = np.random.default_rng(1)
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 5e-4, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0, 3e-3, atoms.positions.shape)
    given = Structure.from_ase(atoms)
    found = symmetrized(given, 0.05)
    for structure, tolerance, expected in ((given, 1e-6, False), (found, 1e-8, True)):
        group = find_symmetry(structure, tolerance)
        assert (group is not None and group.number == number) is expected
    moved = found.frac_coord - given.frac_coord
    assert np.linalg.norm((moved - np.round(moved)) @ found.cell, axis=1).max() < 0.03
    assert np.abs(found.cell - given.cell).max() < 0.02
    assert np.array_equal(found.atomic_number, given.atomic_number)
    np.testing.assert_allclose(symmetrized(found, 0.05).cell, found.cell, atol=1e-12)


def test_only_crystals_are_symmetrized() -> None:
    for atoms in (ase.build.molecule("H2O"), ase.build.graphene(vacuum=5.0)):
        structure = Structure.from_ase(atoms)
        assert symmetrized(structure, 0.05) is structure


def test_forces_against_the_symmetry_do_not_count() -> None:
    """A model without mirror symmetry has such forces; a relaxation that keeps the group cannot follow them."""
    alloy = ase.build.bulk("Cu", cubic=True, a=3.7)
    alloy.symbols[0] = "Au"
    settings = RelaxSettings(fmax=1e-3, smax=0.02, fix_symmetry=True, max_steps=60)
    ((_, found),) = relax_structures([(0, Structure.from_ase(alloy))], Slanted(), settings)
    assert found.status == OK
    assert found.last is not None
    group = find_symmetry(found.last.structure, 1e-6)
    assert group is not None
    assert group.number == 221
