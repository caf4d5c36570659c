"""Physical laws that every potential must obey, eager or exported: inherit `PotentialLaws` and provide a `potential`.

All outputs are checked, each according to its kind of tensor (`tensors.expected`). Tolerances are relative: for energy,
forces and stress to the largest force (and energy) of the tested structures, for a head to its largest value. In
float32 a sum over some fifty neighbours, in two layers, keeps five digits; in float64 it keeps thirteen, of which ten
are required.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from equiscreen.model.config.head import HeadConfig
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.graphs.potential import Evaluation, Potential
from equiscreen.pipeline.structures.random_crystals import probe_structures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ..conftest import CUTOFF, ELEMENTS, REFERENCES, evaluate
from .tensors import Array, Change, expected

# Fixtures are the same for all examples, and each subclass runs an inherited test on its own potential.
few = settings(
    max_examples=3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
seeds = st.integers(0, 2**32 - 1)


def crystals() -> list[Structure]:
    """Crystals without any symmetry."""
    rng = np.random.default_rng(6)
    return [
        Structure.from_fractional(s.atomic_number, s.cell, s.frac_coord + rng.normal(0, 0.06, s.frac_coord.shape))
        for s in probe_structures(ELEMENTS, 6, seed=5, max_atoms=9)
        if len(s) > 2
    ]


def molecule() -> Structure:
    """Molecule of five atoms in general positions."""
    positions = np.random.default_rng(4).uniform(0, 3.5, (5, 3)) + np.arange(5)[:, None] * [0.9, 0.4, 0.2]
    return Structure.from_cartesian([13, 29, 79, 29, 13], positions)


def slab(pbc: Sequence[bool] = (True, True, False)) -> Structure:
    """Crystal that is not periodic in all directions."""
    one = crystals()[1]
    return Structure.from_cartesian(one.atomic_number, one.positions, one.cell, pbc=pbc)


def slope(values: Array, step: float) -> Array:
    """Fourth-order central difference; the last axis holds the values at +1, -1, +2 and -2 steps."""
    return (8 * (values[..., 0] - values[..., 1]) - (values[..., 2] - values[..., 3])) / (12 * step)


class PotentialLaws:
    """Laws of an O(3) potential; subclasses define the fixture `potential`, `heads` and the tolerance."""

    tolerance = 1e-10
    float64 = True
    reflections = True
    energy = True
    # Energies of isolated atoms; None for networks in which they differ from the reference energies.
    isolated: Sequence[float] | None = REFERENCES
    # Interaction energy and force a hundredth of an angstrom inside the cutoff, relative to their largest values: the
    # envelope vanishes as the third power of the distance to the cutoff, and its slope as the second.
    near_the_cutoff = (1e-4, 1e-3)

    @pytest.fixture
    def heads(self) -> Mapping[str, HeadConfig]:
        """Heads of the potential, by name."""
        return {}

    @pytest.fixture
    def structures(self) -> list[Structure]:
        """Crystals."""
        return crystals()

    @pytest.fixture
    def everything(self, structures: list[Structure]) -> list[Structure]:
        """Crystals, a slab and a molecule."""
        return [*structures, slab(), molecule()]

    def needs_energy(self, *, float64: bool = False) -> None:
        """Skip a test that does not apply to this potential."""
        if not self.energy:
            pytest.skip("this network has no energy")
        if float64 and not self.float64:
            pytest.skip("finite differences need float64")

    def close(self, a: Array, b: Array, scale: float) -> bool:
        return bool(np.abs(a - b).max() <= self.tolerance * max(1.0, scale))

    def assert_same(self, wanted: Mapping[str, Array], found: Evaluation) -> None:
        """Compare all expected outputs, including where they are NaN; none of them may be zero everywhere."""
        arrays = found.arrays()
        force = np.nanmax(np.abs(arrays["forces"])) if self.energy else 0.0
        assert not self.energy or force > 1e-3, "the structures are not a test: no forces"
        for name, values in wanted.items():
            assert np.array_equal(np.isnan(values), np.isnan(arrays[name])), name
            if np.isnan(values).all():
                continue
            largest = float(np.nanmax(np.abs(values)))
            # The smallest heads of the untrained networks, pseudoscalars of crystals, are about 1e-5.
            assert largest > 1e-7, f"{name} is not tested: zero everywhere"
            of_energy = name.removesuffix("_std") in ("energy", "forces", "stress")
            scale = max(1.0, largest, force) if of_energy else largest
            assert np.nanmax(np.abs(values - arrays[name])) <= self.tolerance * scale, name

    @pytest.mark.parametrize("mirror", [False, True])
    @given(seed=seeds)
    @few
    def test_rotation_and_reflection(
        self,
        potential: Potential,
        heads: Mapping[str, HeadConfig],
        everything: list[Structure],
        mirror: bool,
        seed: int,
    ) -> None:
        if mirror and not self.reflections:
            pytest.skip("this network has no mirror symmetry")
        turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix() * (-1 if mirror else 1)
        changed = [
            Structure.from_cartesian(s.atomic_number, s.positions @ turn.T, s.cell @ turn.T, pbc=s.pbc)
            for s in everything
        ]
        before, after = evaluate(potential, everything), evaluate(potential, changed)
        self.assert_same(expected(before.arrays(), potential.outputs, heads, Change(turn=turn)), after)

    @given(seed=seeds)
    @few
    def test_translation(self, potential: Potential, everything: list[Structure], seed: int) -> None:
        rng = np.random.default_rng(seed)
        moved = [
            Structure.from_cartesian(s.atomic_number, s.positions + rng.uniform(-9, 9, 3), s.cell, pbc=s.pbc)
            for s in everything
        ]
        self.assert_same(evaluate(potential, everything).arrays(), evaluate(potential, moved))

    @given(seed=seeds)
    @few
    def test_permutation(
        self, potential: Potential, heads: Mapping[str, HeadConfig], everything: list[Structure], seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(len(s)) for s in everything]
        changed = [
            Structure.from_fractional(s.atomic_number[order], s.cell, s.frac_coord[order], s.pbc)
            for s, order in zip(everything, orders, strict=True)
        ]
        atoms = _in_block(everything, orders)
        before = evaluate(potential, everything).arrays()
        wanted = expected(before, potential.outputs, heads, Change(atoms=atoms))
        self.assert_same(wanted, evaluate(potential, changed))

    @given(seed=seeds)
    @few
    def test_another_cell_of_the_same_crystal(
        self, potential: Potential, structures: list[Structure], seed: int
    ) -> None:
        basis = _unimodular(np.random.default_rng(seed))
        other = [
            Structure.from_fractional(s.atomic_number, basis @ s.cell, s.frac_coord @ np.linalg.inv(basis))
            for s in structures
        ]
        self.assert_same(evaluate(potential, structures).arrays(), evaluate(potential, other))

    @pytest.mark.parametrize("times", [(2, 1, 1), (2, 1, 3)])
    def test_supercell(
        self,
        potential: Potential,
        heads: Mapping[str, HeadConfig],
        structures: list[Structure],
        times: tuple[int, int, int],
    ) -> None:
        k = int(np.prod(times))
        large = [Structure.from_ase(s.to_ase().repeat(times)) for s in structures]
        atoms = _in_block(structures, [np.tile(np.arange(len(s)), k) for s in structures])
        before = evaluate(potential, structures).arrays()
        wanted = expected(before, potential.outputs, heads, Change(atoms=atoms, copies=k))
        self.assert_same(wanted, evaluate(potential, large))

    def test_one_atom_that_sees_only_its_images(self, potential: Potential, heads: Mapping[str, HeadConfig]) -> None:
        cell = np.array([[2.1, 0.2, 0.0], [0.0, 2.0, 0.1], [0.3, 0.0, 2.2]])  # the cutoff exceeds twice the edges
        one = Structure.from_fractional([29], cell, [[0.1, 0.2, 0.3]])
        eight = Structure.from_ase(one.to_ase().repeat((2, 2, 2)))
        small, large = evaluate(potential, [one]).arrays(), evaluate(potential, [eight]).arrays()
        wanted = expected(small, potential.outputs, heads, Change(atoms=np.zeros(8, dtype=np.int64), copies=8))
        for name, values in wanted.items():
            # Quantities odd under inversion vanish, since the atom is a centre of symmetry: use a scale of at least 1.
            scale = max(1.0, float(np.abs(values).max()))
            assert np.allclose(values, large[name], rtol=0, atol=10 * self.tolerance * scale, equal_nan=True), name
        if self.energy:
            assert np.abs(small["stress"]).max() > 1e-5

    def test_batch_equals_single(self, potential: Potential, everything: list[Structure]) -> None:
        together = evaluate(potential, everything)
        alone = [evaluate(potential, [s]).arrays() for s in everything]
        self.assert_same({name: np.concatenate([x[name] for x in alone]) for name in alone[0]}, together)

    def test_repeated_runs_agree_bitwise(self, potential: Potential, everything: list[Structure]) -> None:
        first = evaluate(potential, everything).arrays()
        for _ in range(5):
            again = evaluate(potential, everything).arrays()
            assert all(np.array_equal(first[name], again[name], equal_nan=True) for name in first)

    def test_outputs_exist_where_they_have_a_meaning(self, potential: Potential) -> None:
        made = [crystals()[1], slab(), slab((False, True, False)), molecule()]
        found = {spec.name: [evaluate(potential, [s]).arrays()[spec.name] for s in made] for spec in potential.outputs}
        meanings = {"always": [True] * 4, "crystals": [True] + [False] * 3, "molecules": [False] * 3 + [True]}
        for spec in potential.outputs:
            exist = [np.isfinite(values).all() for values in found[spec.name]]
            absent = [np.isnan(values).all() for values in found[spec.name]]
            assert exist == meanings[spec.defined], spec.name
            assert absent == [not x for x in exist], spec.name

    def test_forces_sum_to_zero_and_stress_is_symmetric(
        self, potential: Potential, everything: list[Structure]
    ) -> None:
        self.needs_energy()
        for s in everything:
            found = evaluate(potential, [s])
            scale = float(np.abs(found.forces).max())
            assert self.close(found.forces.sum(axis=0), np.zeros(3), scale * len(s))
            if s.pbc.all():
                assert self.close(found.stress, found.stress.transpose(0, 2, 1), scale)

    def test_molecule_has_no_stress_and_no_torque(self, potential: Potential) -> None:
        self.needs_energy()
        one = molecule()
        found = evaluate(potential, [one])
        torque = np.cross(one.positions, found.forces).sum(axis=0)
        assert np.isnan(found.stress).all()
        assert np.abs(found.forces).max() > 1e-3
        assert self.close(torque, np.zeros(3), 10 * float(np.abs(found.forces).max()))

    def test_isolated_atoms_have_their_reference_energy(self, potential: Potential) -> None:
        self.needs_energy()
        atoms = [Structure.from_cartesian([number], [[0.0, 0.0, 0.0]]) for number in ELEMENTS]
        found = evaluate(potential, atoms)
        assert self.isolated is None or found.energy.tolist() == list(self.isolated)
        assert not found.forces.any()

    def test_heads_of_isolated_atoms_are_isotropic(self, potential: Potential, heads: Mapping[str, HeadConfig]) -> None:
        """Their values, the shifts of the elements, are checked in tests/model/networks/test_heads.py."""
        atoms = [Structure.from_cartesian([number], [[0.0, 0.0, 0.0]]) for number in ELEMENTS]
        found = evaluate(potential, atoms).properties
        outputs = [spec for spec in potential.outputs if spec.name in heads]
        turn = Rotation.random(rng=np.random.default_rng(3)).as_matrix() * (-1 if self.reflections else 1)
        for name, values in expected(found, outputs, heads, Change(turn=turn)).items():
            # Only two constant matrices lie between a shift and its tensor, so little is lost even in float32.
            assert np.allclose(values, found[name], rtol=0, atol=1e-12 * max(1.0, np.abs(values).max())), name

    def test_smooth_at_the_cutoff(self, potential: Potential) -> None:
        self.needs_energy()

        alone = evaluate(potential, [Structure.from_cartesian([number], [[0, 0, 0]]) for number in (29, 79)]).energy

        def pair(distance: float) -> tuple[float, float]:
            found = evaluate(potential, [Structure.from_cartesian([29, 79], [[0, 0, 0], [distance, 0, 0]])])
            return float(found.energy[0] - alone.sum()), float(found.forces[0, 0])

        rc = potential.cutoff
        energies, forces = np.abs([pair(rc - d) for d in (1.5, 1.0, 0.5, 1e-2, 1e-3, -1e-3)]).T
        assert energies.max() > 1e-3, "the pair does not interact"
        assert forces.max() > 1e-3
        assert (energies[3:] <= energies.max() * self.near_the_cutoff[0]).all()
        assert (forces[3:] <= forces.max() * self.near_the_cutoff[1]).all()
        assert energies[5] <= 1e-14  # rounding of the sum over atoms
        assert forces[5] == 0

    def test_everything_is_continuous_as_atoms_of_a_crystal_cross_the_cutoff(self, potential: Potential) -> None:
        # Steps of two thousandths of an angstrom that cross the cutoff between the third and the fourth structure.
        path = [_crossing(potential.cutoff, step) for step in (-5e-3, -3e-3, -1e-3, 1e-3, 3e-3, 5e-3)]
        edges = GraphBlock.from_structures(path, potential.cutoff).n_edges
        assert edges[2] > edges[3], "no neighbour is lost"
        found = evaluate(potential, path).arrays()
        for spec in potential.outputs:
            values = found[spec.name].reshape(len(path), -1)
            if np.isnan(values).all():
                continue
            steps = np.abs(np.diff(values, axis=0)).max(axis=1)
            rounding = 10 * self.tolerance * max(1.0, float(np.abs(values).max()))
            # A jump would stand out among the steps of a smooth function, which hardly vary along the path. (Without an
            # envelope, neighbours at the cutoff would contribute as much as the function itself.)
            assert steps[2] <= 1.5 * max(steps[0], steps[1], steps[3], steps[4]) + rounding, spec.name
            assert steps[2] <= 0.05 * max(1.0, float(np.abs(values).max())), spec.name

    def test_forces_are_the_gradient_of_the_energy(self, potential: Potential, structures: list[Structure]) -> None:
        self.needs_energy(float64=True)
        step = 1e-4
        for s in (structures[1], molecule()):
            found = evaluate(potential, [s])
            energy = evaluate(potential, _displaced(s, step)).energy.reshape(len(s), 3, 4)
            # The error of the stencil is of order step^4, that of rounding of order 1e-16 |E| / step.
            assert np.abs(-slope(energy, step) - found.forces).max() <= 1e-6 * np.abs(found.forces).max()

    def test_the_hessian_is_symmetric(self, potential: Potential, structures: list[Structure]) -> None:
        self.needs_energy(float64=True)
        s, step = structures[1], 1e-3
        forces = evaluate(potential, _displaced(s, step)).forces.reshape(3 * len(s), 4, 3 * len(s))
        hessian = -slope(forces.transpose(0, 2, 1), step)
        # As above, step^4 times fifth derivatives of the energy, which are about a hundred times the second.
        assert np.abs(hessian - hessian.T).max() <= 1e-6 * np.abs(hessian).max()
        assert np.abs(hessian).max() > 1e-2

    def test_stress_is_the_gradient_by_strain(self, potential: Potential, structures: list[Structure]) -> None:
        self.needs_energy(float64=True)
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
        assert np.abs(slope(energy, step) / s.volume - found).max() <= 1e-6 * np.abs(found).max()


def _in_block(structures: Sequence[Structure], orders: Sequence[np.ndarray]) -> np.ndarray:
    """Convert atom indices within structures to indices within a block."""
    first = np.cumsum([0, *(len(s) for s in structures[:-1])])
    return np.concatenate([start + order for start, order in zip(first, orders, strict=True)])


def _unimodular(rng: np.random.Generator) -> np.ndarray:
    """Random integer matrix of determinant one or minus one, close to the identity."""
    lower, upper = (np.eye(3) + np.tril(rng.integers(-1, 2, (3, 3)), -1) for _ in range(2))
    return rng.permutation(lower @ upper.T)


def _displaced(s: Structure, step: float) -> list[Structure]:
    """Copies of a structure with each coordinate displaced by +1, -1, +2 and -2 steps."""
    moved = []
    for atom in range(len(s)):
        for axis in range(3):
            for sign in (1, -1, 2, -2):
                positions = s.positions.copy()
                positions[atom, axis] += sign * step
                moved.append(Structure.from_cartesian(s.atomic_number, positions, s.cell, pbc=s.pbc))
    return moved


def _crossing(cutoff: float, beyond: float) -> Structure:
    """Crystal of two atoms, each with two neighbours at a distance of about `cutoff + beyond`."""
    assert cutoff == CUTOFF, "the crystal is made for this cutoff"
    edge = cutoff + beyond
    cell = np.array([[edge, 0.0, 0.0], [0.3, 3.9, 0.0], [0.1, 0.5, 4.1]])
    return Structure.from_cartesian([29, 79], [[0.1, 0.2, 0.3], [2.2, 1.9, 2.0]], cell, pbc=True)
