"""The physics that every potential has to obey, eager or exported: inherit `PotentialLaws` and give a `potential`.

Tolerances are relative to the largest force of the structures at hand. In float32 a sum over some fifty neighbours, in
two layers, keeps five digits; in float64 thirteen, of which ten are asked for.
"""

from __future__ import annotations

import numpy as np
import pytest
from equiscreen.export.probes import probe_structures
from equiscreen.pipeline import Structure
from equiscreen.pipeline.potential import Evaluation, Potential
from scipy.spatial.transform import Rotation

from ..conftest import ELEMENTS, REFERENCES, evaluate


class PotentialLaws:
    """Laws of an O(3) potential; subclasses define the fixture `potential` and the tolerance."""

    tolerance = 1e-10
    float64 = True
    reflections = True

    @pytest.fixture
    def structures(self) -> list[Structure]:
        rng = np.random.default_rng(6)
        return [
            Structure.from_fractional(s.atomic_number, s.cell, s.frac_coord + rng.normal(0, 0.06, s.frac_coord.shape))
            for s in probe_structures(ELEMENTS, 6, seed=5, max_atoms=9)
            if len(s) > 2
        ]

    def close(self, a: np.ndarray, b: np.ndarray, scale: float) -> bool:
        return bool(np.abs(a - b).max() <= self.tolerance * max(1.0, scale))

    def assert_same(self, a: Evaluation, b: Evaluation) -> None:
        scale = float(np.abs(a.forces).max())
        assert scale > 1e-3, "the structures say nothing: no forces"
        assert self.close(a.energy, b.energy, max(scale, float(np.abs(a.energy).max())))
        assert self.close(a.forces, b.forces, scale)
        assert self.close(a.stress, b.stress, scale)

    @pytest.mark.parametrize("mirror", [False, True])
    def test_rotation_and_reflection(self, potential: Potential, structures: list[Structure], mirror: bool) -> None:
        if mirror and not self.reflections:
            pytest.skip("no symmetry of this network")
        turn = Rotation.random(rng=np.random.default_rng(1)).as_matrix() * (-1 if mirror else 1)
        turned = [Structure.from_fractional(s.atomic_number, s.cell @ turn.T, s.frac_coord) for s in structures]
        before, after = evaluate(potential, structures), evaluate(potential, turned)
        self.assert_same(Evaluation(before.energy, before.forces @ turn.T, turn @ before.stress @ turn.T), after)

    def test_translation(self, potential: Potential, structures: list[Structure]) -> None:
        moved = [
            Structure.from_fractional(s.atomic_number, s.cell, s.frac_coord + np.array([0.3, 0.71, 0.123]))
            for s in structures
        ]
        self.assert_same(evaluate(potential, structures), evaluate(potential, moved))

    def test_permutation(self, potential: Potential, structures: list[Structure]) -> None:
        for s in structures:
            order = np.random.default_rng(2).permutation(len(s))
            other = Structure.from_fractional(s.atomic_number[order], s.cell, s.frac_coord[order])
            before, after = evaluate(potential, [s]), evaluate(potential, [other])
            self.assert_same(Evaluation(before.energy, before.forces[order], before.stress), after)

    def test_another_cell_of_the_same_crystal(self, potential: Potential, structures: list[Structure]) -> None:
        basis = np.array([[1, 1, 0], [0, 1, -1], [0, 0, 1]])  # determinant one
        other = [
            Structure.from_fractional(s.atomic_number, basis @ s.cell, s.frac_coord @ np.linalg.inv(basis))
            for s in structures
        ]
        self.assert_same(evaluate(potential, structures), evaluate(potential, other))

    @pytest.mark.parametrize("times", [(2, 1, 1), (2, 1, 3)])
    def test_supercell(self, potential: Potential, structures: list[Structure], times: tuple[int, int, int]) -> None:
        k = int(np.prod(times))
        for s in structures:
            large = Structure.from_ase(s.to_ase().repeat(times))
            small, tiled = evaluate(potential, [s]), evaluate(potential, [large])
            self.assert_same(Evaluation(small.energy * k, np.tile(small.forces, (k, 1)), small.stress), tiled)

    def test_one_atom_that_sees_only_its_images(self, potential: Potential) -> None:
        cell = np.array([[2.1, 0.2, 0.0], [0.0, 2.0, 0.1], [0.3, 0.0, 2.2]])  # cutoff beyond twice its edges
        one = Structure.from_fractional([29], cell, [[0.1, 0.2, 0.3]])
        eight = Structure.from_ase(one.to_ase().repeat((2, 2, 2)))
        small, large = evaluate(potential, [one]), evaluate(potential, [eight])
        scale = float(np.abs(small.stress).max())
        assert scale > 1e-3
        assert self.close(small.energy * 8, large.energy, float(np.abs(large.energy).max()))
        assert self.close(small.stress, large.stress, scale)
        assert np.abs(large.forces).max() <= self.tolerance * 10

    def test_batch_equals_single(self, potential: Potential, structures: list[Structure]) -> None:
        together = evaluate(potential, structures)
        alone = [evaluate(potential, [s]) for s in structures]
        self.assert_same(
            together,
            Evaluation(*(np.concatenate([getattr(e, x) for e in alone]) for x in ("energy", "forces", "stress"))),
        )

    def test_forces_sum_to_zero_and_stress_is_symmetric(
        self, potential: Potential, structures: list[Structure]
    ) -> None:
        for s in structures:
            found = evaluate(potential, [s])
            scale = float(np.abs(found.forces).max())
            assert self.close(found.forces.sum(axis=0), np.zeros(3), scale * len(s))
            assert self.close(found.stress, found.stress.transpose(0, 2, 1), scale)

    def test_molecule_has_no_stress_and_no_torque(self, potential: Potential) -> None:
        positions = np.random.default_rng(4).uniform(0, 3.5, (5, 3)) + np.arange(5)[:, None] * [0.9, 0.4, 0.2]
        molecule = Structure.from_cartesian([13, 29, 79, 29, 13], positions)
        found = evaluate(potential, [molecule])
        torque = np.cross(positions, found.forces).sum(axis=0)
        assert np.isnan(found.stress).all()
        assert np.abs(found.forces).max() > 1e-2
        assert self.close(torque, np.zeros(3), 10 * float(np.abs(found.forces).max()))

    def test_isolated_atoms_have_their_reference_energy(self, potential: Potential) -> None:
        atoms = [Structure.from_cartesian([number], [[0.0, 0.0, 0.0]]) for number in ELEMENTS]
        found = evaluate(potential, atoms)
        assert found.energy.tolist() == list(REFERENCES)
        assert not found.forces.any()

    def test_smooth_at_the_cutoff(self, potential: Potential) -> None:
        def pair(distance: float) -> tuple[float, float]:
            found = evaluate(potential, [Structure.from_cartesian([29, 79], [[0, 0, 0], [distance, 0, 0]])])
            return float(found.energy[0]) - REFERENCES[1] - REFERENCES[2], float(found.forces[0, 0])

        rc = potential.cutoff
        energies, forces = np.abs([pair(rc - d) for d in (1.5, 1.0, 0.5, 1e-2, 1e-3, -1e-3)]).T
        assert energies.max() > 1e-3, "the pair does not interact"
        assert forces.max() > 1e-3
        # The envelope vanishes with the third power of the distance to the cutoff, its slope with the second.
        assert (energies[3:] <= energies.max() * 1e-4).all()
        assert (forces[3:] <= forces.max() * 1e-3).all()
        assert energies[5] == 0
        assert forces[5] == 0

    def test_repeated_runs_agree_bitwise(self, potential: Potential, structures: list[Structure]) -> None:
        first = evaluate(potential, structures)
        for _ in range(5):
            again = evaluate(potential, structures)
            assert all(np.array_equal(getattr(first, x), getattr(again, x)) for x in ("energy", "forces", "stress"))

    def test_forces_are_the_gradient_of_the_energy(self, potential: Potential, structures: list[Structure]) -> None:
        if not self.float64:
            pytest.skip("finite differences need float64")
        s, step = structures[0], 1e-4
        found = evaluate(potential, [s])
        moved = []
        for atom in range(len(s)):
            for axis in range(3):
                for sign in (1, -1, 2, -2):
                    positions = s.positions.copy()
                    positions[atom, axis] += sign * step
                    moved.append(Structure.from_cartesian(s.atomic_number, positions, s.cell, pbc=True))
        energy = evaluate(potential, moved).energy.reshape(len(s), 3, 4)
        numeric = -_slope(energy, step)
        assert np.abs(numeric - found.forces).max() <= 1e-6 * np.abs(found.forces).max()

    def test_stress_is_the_gradient_by_strain(self, potential: Potential, structures: list[Structure]) -> None:
        if not self.float64:
            pytest.skip("finite differences need float64")
        s, step = structures[1], 1e-5
        strained = []
        for row in range(3):
            for column in range(3):
                for sign in (1, -1, 2, -2):
                    strain = np.zeros((3, 3))
                    strain[row, column] += sign * step / 2
                    strain[column, row] += sign * step / 2
                    cell = s.cell @ (np.eye(3) + strain)
                    strained.append(Structure.from_fractional(s.atomic_number, cell, s.frac_coord))
        energy = evaluate(potential, strained).energy.reshape(3, 3, 4)
        found = evaluate(potential, [s]).stress[0]
        assert np.abs(_slope(energy, step) / s.volume - found).max() <= 1e-6 * np.abs(found).max()


def _slope(energy: np.ndarray, step: float) -> np.ndarray:
    """Fourth-order central difference of energies at steps of +1, -1, +2, -2."""
    return (8 * (energy[..., 0] - energy[..., 1]) - (energy[..., 2] - energy[..., 3])) / (12 * step)
