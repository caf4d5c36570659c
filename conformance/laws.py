"""Physical laws that every potential must obey: inherit `PotentialLaws` and provide a `potential`.

All outputs are checked, each according to its kind (`outputs.expected`). Tolerances are relative: for energy, forces
and stress, to the largest energy or force of the tested structures; for any other output, to its largest value. In
float32 a sum over some fifty neighbours, in two layers, keeps five digits; in float64 it keeps thirteen, of which ten
are required.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from ase.data import covalent_radii
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..pipeline.graphs.graph_block import GraphBlock
from ..pipeline.graphs.potential import Evaluation, Potential
from ..pipeline.structures.random_crystals import SPACING, probe_structures
from ..pipeline.structures.structure import Structure
from .outputs import Array, Change, OutputKind, expected

# Health checks are suppressed because fixtures are the same for all examples, and each subclass runs an inherited test
# on its own potential. There is no shrinking, since a smaller seed gives no simpler example.
few = settings(
    max_examples=3,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
seeds = st.integers(0, 2**32 - 1)

# Smallest distance between two atoms, in units of the sum of their covalent radii and in angstrom. If a dozen
# neighbours were at the length of a bond, as in a random crystal of nonmetals, energies would be thousands of eV.
CLOSEST, CLOSEST_ANGSTROM = 0.9, 2.0
# Step (angstrom) and relative tolerance of finite differences in float32, where energies are rounded to about 1e-6 eV.
COARSE = (5e-3, 5e-3)


def evaluate(potential: Potential, structures: Sequence[Structure]) -> Evaluation:
    """Evaluate all outputs for structures."""
    return potential.evaluate(GraphBlock.from_structures(structures, potential.cutoff))


def crystals(elements: Sequence[int], cutoff: float) -> list[Structure]:
    """Make crystals without any symmetry, with three to nine atoms in the cell."""
    rng = np.random.default_rng(6)
    made = [s for s in probe_structures(elements, 6, seed=5, max_atoms=9, cutoff=cutoff) if len(s) > 2]
    noise = [rng.normal(0, 0.06, s.frac_coord.shape) for s in made]
    return [
        spread_out(Structure.from_fractional(s.atomic_number, s.cell, s.frac_coord + step))
        for s, step in zip(made, noise, strict=True)
    ]


def molecule(elements: Sequence[int]) -> Structure:
    """Make a molecule of five atoms in general positions."""
    first, second, third = (elements[place % len(elements)] for place in range(3))
    positions = np.random.default_rng(4).uniform(0, 3.5, (5, 3)) + np.arange(5)[:, None] * [0.9, 0.4, 0.2]
    return spread_out(Structure.from_cartesian([first, second, third, second, first], positions))


def spread_out(s: Structure) -> Structure:
    """Expand a structure until no two atoms are so close that energies change by large amounts in small steps."""
    radii = CLOSEST * covalent_radii[s.atomic_number]
    block = GraphBlock.from_structures([s], max(CLOSEST_ANGSTROM, 2 * float(radii.max())))
    if len(block.neighbor) == 0:
        return s
    wanted = np.maximum(CLOSEST_ANGSTROM, radii[block.receiver] + radii[block.sender])
    scale = max(1.0, float((wanted / np.linalg.norm(block.displacements(), axis=1)).max()))
    return Structure.from_cartesian(s.atomic_number, s.positions * scale, s.cell * scale, pbc=s.pbc)


def slab(crystal: Structure, pbc: Sequence[bool] = (True, True, False)) -> Structure:
    """Return the atoms of a crystal with periodicity in some directions only."""
    return Structure.from_cartesian(crystal.atomic_number, crystal.positions, crystal.cell, pbc=pbc)


def largest_elements(elements: Sequence[int]) -> tuple[int, int]:
    """Return the two elements with the largest covalent radii, which interact at the longest distances."""
    by_size = sorted(elements, key=lambda number: float(covalent_radii[number]))
    return by_size[max(0, len(by_size) - 2)], by_size[-1]


def pairs(numbers: Sequence[int], distances: Sequence[float] | Array) -> list[Structure]:
    """Make molecules of two atoms at the given distances, angstrom."""
    return [Structure.from_cartesian(numbers, np.diag([x, 0.0, 0.0])[[1, 0]]) for x in distances]


def slope(values: Array, step: float) -> Array:
    """Return a fourth-order central difference; the last axis of `values` holds values at +1, -1, +2 and -2 steps."""
    return (8 * (values[..., 0] - values[..., 1]) - (values[..., 2] - values[..., 3])) / (12 * step)


class PotentialLaws:
    """Laws of a potential; subclasses define the fixture `potential` and override these attributes where needed.

    Attributes:
        tolerance: Largest relative difference that rounding may cause.
        float64: Whether the potential computes in float64; otherwise derivatives are compared with coarser finite
            differences.
        exact: Whether equal inputs give equal bits, and atoms beyond the cutoff contribute exactly nothing.
        reflections: Whether the potential is equivariant under reflections.
        cutoff_known: Whether `potential.cutoff` is the range of the interaction of two atoms.
        isolated: Energies of isolated atoms of the elements, eV, if they are stated.
        near_the_cutoff: Largest interaction energy and force allowed a hundredth of an angstrom inside the cutoff,
            relative to their largest values. The default is for an envelope that vanishes as the third power of the
            distance to the cutoff, so that its slope vanishes as the second.
    """

    tolerance = 1e-10
    float64 = True
    exact = True
    reflections = True
    cutoff_known = True
    isolated: Sequence[float] | None = None
    near_the_cutoff = (1e-4, 1e-3)

    @pytest.fixture
    def elements(self, potential: Potential) -> Sequence[int]:
        """Atomic numbers of the elements that are tested."""
        return potential.elements

    @pytest.fixture
    def kinds(self) -> Mapping[str, OutputKind]:
        """Kinds of the potential's outputs besides energy, forces and stress."""
        return {}

    @pytest.fixture
    def structures(self, potential: Potential, elements: Sequence[int]) -> list[Structure]:
        """Random crystals of the tested elements."""
        return crystals(elements, potential.cutoff if self.cutoff_known else np.inf)

    @pytest.fixture
    def everything(self, structures: list[Structure], elements: Sequence[int]) -> list[Structure]:
        """The crystals, a slab and a molecule."""
        return [*structures, slab(structures[1]), molecule(elements)]

    def needs(self, potential: Potential, *outputs: str) -> None:
        """Skip a law about outputs that the potential does not have."""
        if missing := [name for name in outputs if name not in {spec.name for spec in potential.outputs}]:
            pytest.skip(f"the potential does not predict {' and '.join(missing)}")

    def needs_cutoff(self) -> None:
        """Skip a law about the cutoff of a potential that has none, or whose cutoff is unknown."""
        if not self.cutoff_known:
            pytest.skip("the range of the potential is unknown")

    def close(self, a: Array, b: Array, scale: float) -> bool:
        """Whether two arrays agree up to rounding, relative to a scale of at least one."""
        return bool(np.abs(a - b).max() <= self.tolerance * max(1.0, scale))

    def assert_same(self, wanted: Mapping[str, Array], found: Evaluation) -> None:
        """Compare all expected outputs, including where they are NaN; none of them may be zero everywhere."""
        arrays = found.arrays()
        force = 0.0
        if np.isfinite(arrays["forces"]).any():
            force = float(np.nanmax(np.abs(arrays["forces"])))
            assert force > 1e-3, "these structures test nothing, because all forces are zero"
        for name, values in wanted.items():
            assert np.array_equal(np.isnan(values), np.isnan(arrays[name])), name
            if np.isnan(values).all():
                continue
            largest = float(np.nanmax(np.abs(values)))
            # The smallest outputs of the untrained networks, pseudoscalars of crystals, are about 1e-5.
            assert largest > 1e-7, f"{name} is not tested: it is zero everywhere"
            of_energy = name.removesuffix("_std") in ("energy", "forces", "stress")
            scale = max(1.0, largest, force) if of_energy else largest
            error = float(np.nanmax(np.abs(values - arrays[name])))
            assert error <= self.tolerance * scale, f"{name} differs by {error:.1e}"

    @given(seed=seeds)
    @few
    def test_rotation(
        self, potential: Potential, kinds: Mapping[str, OutputKind], everything: list[Structure], seed: int
    ) -> None:
        """Outputs rotate with the structure."""
        self._assert_turned(potential, kinds, everything, _rotation(seed))

    @given(seed=seeds)
    @few
    def test_reflection(
        self, potential: Potential, kinds: Mapping[str, OutputKind], everything: list[Structure], seed: int
    ) -> None:
        """Outputs of a mirror image are the mirror images of the outputs."""
        if not self.reflections:
            pytest.skip("the potential is only SO(3)-equivariant: it may distinguish mirror images")
        self._assert_turned(potential, kinds, everything, -_rotation(seed))

    def _assert_turned(
        self, potential: Potential, kinds: Mapping[str, OutputKind], structures: list[Structure], turn: Array
    ) -> None:
        changed = [
            Structure.from_cartesian(s.atomic_number, s.positions @ turn.T, s.cell @ turn.T, pbc=s.pbc)
            for s in structures
        ]
        before, after = evaluate(potential, structures), evaluate(potential, changed)
        self.assert_same(expected(before.arrays(), potential.outputs, kinds, Change(turn=turn)), after)

    @given(seed=seeds)
    @few
    def test_translation(self, potential: Potential, everything: list[Structure], seed: int) -> None:
        """Nothing depends on the position of the structure as a whole."""
        rng = np.random.default_rng(seed)
        moved = [
            Structure.from_cartesian(s.atomic_number, s.positions + rng.uniform(-9, 9, 3), s.cell, pbc=s.pbc)
            for s in everything
        ]
        self.assert_same(evaluate(potential, everything).arrays(), evaluate(potential, moved))

    @given(seed=seeds)
    @few
    def test_permutation(
        self, potential: Potential, kinds: Mapping[str, OutputKind], everything: list[Structure], seed: int
    ) -> None:
        """Nothing depends on the order of the atoms."""
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(len(s)) for s in everything]
        changed = [
            Structure.from_fractional(s.atomic_number[order], s.cell, s.frac_coord[order], s.pbc)
            for s, order in zip(everything, orders, strict=True)
        ]
        atoms = _in_block(everything, orders)
        before = evaluate(potential, everything).arrays()
        wanted = expected(before, potential.outputs, kinds, Change(atoms=atoms))
        self.assert_same(wanted, evaluate(potential, changed))

    @given(seed=seeds)
    @few
    def test_another_cell_of_the_same_crystal(
        self, potential: Potential, structures: list[Structure], seed: int
    ) -> None:
        """Nothing depends on the choice of the lattice vectors."""
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
        kinds: Mapping[str, OutputKind],
        structures: list[Structure],
        times: tuple[int, int, int],
    ) -> None:
        """The energy of a supercell is the sum over its cells; forces and stress are those of one cell."""
        k = int(np.prod(times))
        large = [Structure.from_ase(s.to_ase().repeat(times)) for s in structures]
        atoms = _in_block(structures, [np.tile(np.arange(len(s)), k) for s in structures])
        before = evaluate(potential, structures).arrays()
        wanted = expected(before, potential.outputs, kinds, Change(atoms=atoms, copies=k))
        self.assert_same(wanted, evaluate(potential, large))

    def test_one_atom_that_sees_only_its_images(
        self, potential: Potential, elements: Sequence[int], kinds: Mapping[str, OutputKind]
    ) -> None:
        """One atom in a small cell and eight in its supercell are the same crystal."""
        number = largest_elements(elements)[0]
        cell = np.array([[2.1, 0.2, 0.0], [0.0, 2.0, 0.1], [0.3, 0.0, 2.2]])
        one = spread_out(Structure.from_fractional([number], cell, [[0.1, 0.2, 0.3]]))
        eight = Structure.from_ase(one.to_ase().repeat((2, 2, 2)))
        small, large = evaluate(potential, [one]).arrays(), evaluate(potential, [eight]).arrays()
        wanted = expected(small, potential.outputs, kinds, Change(atoms=np.zeros(8, dtype=np.int64), copies=8))
        for name, values in wanted.items():
            # Quantities odd under inversion vanish, since the atom is a centre of symmetry: use a scale of at least 1.
            scale = max(1.0, float(np.abs(values).max()))
            assert np.allclose(values, large[name], rtol=0, atol=10 * self.tolerance * scale, equal_nan=True), name
        if "stress" in wanted:
            assert np.abs(small["stress"]).max() > 1e-5

    def test_distant_molecules_do_not_interact(self, potential: Potential, elements: Sequence[int]) -> None:
        """The energy of two molecules beyond each other's reach is the sum of their energies."""
        self.needs(potential, "energy")
        self.needs_cutoff()
        one = molecule(elements)
        there = one.positions + np.array([0, 0, np.ptp(one.positions[:, 2]) + 2 * potential.cutoff])
        two = Structure.from_cartesian(np.tile(one.atomic_number, 2), np.concatenate([one.positions, there]))
        alone, both = evaluate(potential, [one]), evaluate(potential, [two])
        scale = max(float(np.abs(both.energy).max()), float(np.nanmax(np.abs(alone.forces), initial=0)))
        assert self.close(both.energy, 2 * alone.energy, scale)

    def test_batch_equals_single(self, potential: Potential, everything: list[Structure]) -> None:
        """The results of a structure do not depend on what else is evaluated."""
        together = evaluate(potential, everything)
        alone = [evaluate(potential, [s]).arrays() for s in everything]
        self.assert_same({name: np.concatenate([x[name] for x in alone]) for name in alone[0]}, together)

    def test_repeated_runs_agree(self, potential: Potential, everything: list[Structure]) -> None:
        """The same structures give the same results, bit for bit if the potential is exact."""
        first = evaluate(potential, everything)
        for _ in range(5):
            again = evaluate(potential, everything)
            self.assert_same(first.arrays(), again)
            if self.exact:
                same = [np.array_equal(a, again.arrays()[n], equal_nan=True) for n, a in first.arrays().items()]
                assert all(same)

    def test_outputs_exist_where_they_have_a_meaning(
        self, potential: Potential, structures: list[Structure], elements: Sequence[int]
    ) -> None:
        """Outputs are finite where they are defined, and NaN elsewhere."""
        crystal = structures[1]
        made = [crystal, slab(crystal), slab(crystal, (False, True, False)), molecule(elements)]
        found = {spec.name: [evaluate(potential, [s]).arrays()[spec.name] for s in made] for spec in potential.outputs}
        meanings = {"always": [True] * 4, "crystals": [True] + [False] * 3, "molecules": [False] * 3 + [True]}
        for spec in potential.outputs:
            exist = [np.isfinite(values).all() for values in found[spec.name]]
            absent = [np.isnan(values).all() for values in found[spec.name]]
            assert exist == meanings[spec.defined], spec.name
            assert absent == [not x for x in exist], spec.name

    def test_forces_sum_to_zero(self, potential: Potential, everything: list[Structure]) -> None:
        """The forces on the atoms of a structure sum to zero."""
        self.needs(potential, "forces")
        for s in everything:
            forces = evaluate(potential, [s]).forces
            assert self.close(forces.sum(axis=0), np.zeros(3), float(np.abs(forces).max()) * len(s))

    def test_stress_is_symmetric(self, potential: Potential, structures: list[Structure]) -> None:
        """The stress is a symmetric matrix, so that no crystal exerts a torque on itself."""
        self.needs(potential, "stress")
        for s in structures:
            found = evaluate(potential, [s])
            scale = float(np.nanmax(np.abs(found.forces), initial=0))
            assert self.close(found.stress, found.stress.transpose(0, 2, 1), scale)

    def test_molecule_has_no_torque(self, potential: Potential, elements: Sequence[int]) -> None:
        """The forces on the atoms of a molecule exert no torque."""
        self.needs(potential, "forces")
        one = molecule(elements)
        forces = evaluate(potential, [one]).forces
        torque = np.cross(one.positions, forces).sum(axis=0)
        assert np.abs(forces).max() > 1e-3
        assert self.close(torque, np.zeros(3), 10 * float(np.abs(forces).max()))

    def test_isolated_atoms(self, potential: Potential, elements: Sequence[int]) -> None:
        """An isolated atom has the stated energy, if there is one, and no force."""
        self.needs(potential, "energy")
        found = evaluate(potential, _isolated(elements))
        assert np.isfinite(found.energy).all()
        assert self.isolated is None or found.energy.tolist() == list(self.isolated)
        if "forces" in {spec.name for spec in potential.outputs}:
            assert np.abs(found.forces).max() <= (0.0 if self.exact else self.tolerance)

    def test_isolated_atoms_are_isotropic(
        self, potential: Potential, elements: Sequence[int], kinds: Mapping[str, OutputKind]
    ) -> None:
        """Other outputs of isolated atoms do not change under rotations."""
        if not kinds:
            pytest.skip("the potential has no outputs of known kind besides the energy and its derivatives")
        found = evaluate(potential, _isolated(elements)).properties
        outputs = [spec for spec in potential.outputs if spec.name in kinds]
        turn = _rotation(3) * (-1 if self.reflections else 1)
        for name, values in expected(found, outputs, kinds, Change(turn=turn)).items():
            # Only two constant matrices convert a shift to its tensor, so little precision is lost even in float32.
            assert np.allclose(values, found[name], rtol=0, atol=1e-12 * max(1.0, np.abs(values).max())), name

    def test_smooth_at_the_cutoff(self, potential: Potential, elements: Sequence[int]) -> None:
        """The energy and the force of a pair vanish smoothly at the cutoff."""
        self.needs(potential, "energy", "forces")
        self.needs_cutoff()
        pair, rc = largest_elements(elements), potential.cutoff
        bond = min(SPACING * float(covalent_radii[list(pair)].sum()), rc - 1.5)
        distances = [bond, rc - 1.0, rc - 0.5, rc - 1e-2, rc - 1e-3, rc + 1e-3]
        found = evaluate(potential, pairs(pair, distances))
        alone = float(evaluate(potential, _isolated(pair)).energy.sum())
        energies, forces = np.abs(found.energy - alone), np.abs(found.forces[::2, 0])
        # If the potential is not exact, the energies of the pair and of its atoms are rounded differently.
        rounding = (1e-14 if self.exact else self.tolerance) * max(1.0, abs(alone))
        for name, values, near in zip(("energy", "force"), (energies, forces), self.near_the_cutoff, strict=True):
            assert values.max() > 1e-3, f"the pair does not interact: it has no {name}"
            assert values[3:].max() <= values.max() * near + rounding, f"the {name} does not vanish at the cutoff"
            if self.exact or self.float64:  # otherwise a measured cutoff is not precise enough
                # Ten times closer to the cutoff, a smooth function is at least ten times smaller; a jump is not. Small
                # jumps are allowed: the force of ASE's EMT ends with a jump of a thousandth of its largest value.
                jump = max(values[3] / 2, values.max() * 3e-3)
                assert values[4] <= jump + rounding, f"the {name} jumps at the cutoff"
        assert energies[5] <= rounding
        assert not self.exact or forces[5] == 0

    def test_everything_is_continuous_as_atoms_of_a_crystal_cross_the_cutoff(
        self, potential: Potential, elements: Sequence[int]
    ) -> None:
        """No output jumps when a neighbour crosses the cutoff."""
        self.needs_cutoff()
        # Steps of two thousandths of an angstrom that cross the cutoff between the third and the fourth structure.
        pair = largest_elements(elements)
        path = [_crossing(pair, potential.cutoff, step) for step in (-5e-3, -3e-3, -1e-3, 1e-3, 3e-3, 5e-3)]
        edges = GraphBlock.from_structures(path, potential.cutoff).n_edges
        assert edges[2] > edges[3], "no neighbour leaves the cutoff"
        found = evaluate(potential, path).arrays()
        for spec in potential.outputs:
            values = found[spec.name].reshape(len(path), -1)
            if np.isnan(values).all():
                continue
            steps = np.abs(np.diff(values, axis=0)).max(axis=1)
            rounding = 10 * self.tolerance * max(1.0, float(np.abs(values).max()))
            # A jump would stand out among the steps of a smooth function, which hardly vary along the path. (Without an
            # envelope, the jump would be about as large as the output itself.)
            smooth = 1.5 * max(steps[0], steps[1], steps[3], steps[4]) + rounding
            assert steps[2] <= smooth, f"{spec.name} jumps by {steps[2]:.1e}"
            assert steps[2] <= 0.05 * max(1.0, float(np.abs(values).max())), spec.name

    def test_forces_are_the_gradient_of_the_energy(
        self, potential: Potential, structures: list[Structure], elements: Sequence[int]
    ) -> None:
        """Forces agree with finite differences of the energy."""
        self.needs(potential, "energy", "forces")
        # The error of the stencil is of order step^4, the rounding error of order 1e-16 |E| / step (1e-7 in float32).
        step, limit = (1e-4, 1e-6) if self.float64 else COARSE
        for s in (structures[1], molecule(elements)):
            forces = evaluate(potential, [s]).forces
            energy = evaluate(potential, _displaced(s, step)).energy.reshape(len(s), 3, 4)
            _assert_agree(-slope(energy, step), forces, limit, "forces")

    def test_the_hessian_is_symmetric(self, potential: Potential, structures: list[Structure]) -> None:
        """Forces are the gradient of some function."""
        self.needs(potential, "forces")
        if not self.float64:
            pytest.skip("differences of forces need float64")
        s, step = structures[1], 1e-3
        forces = evaluate(potential, _displaced(s, step)).forces.reshape(3 * len(s), 4, 3 * len(s))
        hessian = -slope(forces.transpose(0, 2, 1), step)
        # As above, the error is step^4 times the fifth derivatives of the energy, about a hundred times the second.
        _assert_agree(hessian, hessian.T, 1e-6, "second derivatives")
        assert np.abs(hessian).max() > 1e-2

    def test_stress_is_the_gradient_by_strain(self, potential: Potential, structures: list[Structure]) -> None:
        """Stress agrees with finite differences of the energy with respect to strain, divided by the volume."""
        self.needs(potential, "energy", "stress")
        s = structures[1]
        step, limit = (1e-5, 1e-6) if self.float64 else COARSE
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
        _assert_agree(slope(energy, step) / s.volume, evaluate(potential, [s]).stress[0], limit, "stress")


def _assert_agree(derivative: Array, found: Array, limit: float, name: str) -> None:
    """Compare a numerical derivative with an output, relative to the largest component of the output."""
    error, largest = float(np.abs(derivative - found).max()), float(np.abs(found).max())
    assert error <= limit * largest, f"{name} differs by {error:.1e}; the largest component is {largest:.1e}"


def _rotation(seed: int) -> Array:
    """Return a random rotation matrix, float64[3, 3]."""
    turn: Array = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    return turn


def _isolated(elements: Sequence[int]) -> list[Structure]:
    return [Structure.from_cartesian([number], [[0.0, 0.0, 0.0]]) for number in elements]


def _in_block(structures: Sequence[Structure], orders: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Convert atom indices within structures to indices within a block."""
    first = np.cumsum([0, *(len(s) for s in structures[:-1])])
    return np.concatenate([start + order for start, order in zip(first, orders, strict=True)])


def _unimodular(rng: np.random.Generator) -> Array:
    """Return a random integer matrix of determinant one or minus one, close to the identity."""
    lower, upper = (np.eye(3) + np.tril(rng.integers(-1, 2, (3, 3)), -1) for _ in range(2))
    return rng.permutation(lower @ upper.T)


def _displaced(s: Structure, step: float) -> list[Structure]:
    """Return copies of a structure with each coordinate displaced by +1, -1, +2 and -2 steps."""
    moved = []
    for atom in range(len(s)):
        for axis in range(3):
            for sign in (1, -1, 2, -2):
                positions = s.positions.copy()
                positions[atom, axis] += sign * step
                moved.append(Structure.from_cartesian(s.atomic_number, positions, s.cell, pbc=s.pbc))
    return moved


def _crossing(pair: Sequence[int], cutoff: float, beyond: float) -> Structure:
    """Make a crystal of two atoms, each with two neighbours at a distance of about `cutoff + beyond`."""
    scale = cutoff / 4.5  # with a cutoff of 4.5 angstrom, no other distance is near the cutoff
    cell = np.array(
        [[cutoff + beyond, 0.0, 0.0], [0.3 * scale, 3.9 * scale, 0.0], [0.1 * scale, 0.5 * scale, 4.1 * scale]]
    )
    return Structure.from_cartesian(pair, np.array([[0.1, 0.2, 0.3], [2.2, 1.9, 2.0]]) * scale, cell, pbc=True)
