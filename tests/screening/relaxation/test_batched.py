"""Relaxations reach the same minima as ASE, and have the same symmetries as the potential."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import ase.build
import ase.optimize
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.errors import ConfigError
from equiscreen.pipeline.graphs.neighbor_list import neighbor_list
from equiscreen.pipeline.graphs.potential import ENERGY_OUTPUTS, Evaluation
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.pipeline.structures.symmetry import find_symmetry
from equiscreen.screening.plausibility import Plausibility
from equiscreen.screening.relaxation.batched import (
    GPA,
    RELAX_STATUSES,
    Relaxed,
    RelaxSettings,
    _Graph,
    relax_structures,
)
from equiscreen.screening.relaxation.optimizers import Optimizer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ...emt_potential import EmtPotential


class SickPotential(EmtPotential):
    """Predicts NaN for every structure in a batch with aluminium, as a matrix product would."""

    def evaluate(self, block: GraphBlock) -> Evaluation:
        found = super().evaluate(block)
        return replace(found, energy=found.energy * np.nan) if 13 in block.atomic_number else found


class SmallMemory(EmtPotential):
    """Has memory for eight atoms at a time."""

    def evaluate(self, block: GraphBlock) -> Evaluation:
        if len(block.atomic_number) > 8:
            raise MemoryError("out of memory")
        return super().evaluate(block)


class TwoAtATime(OnnxPotential):
    """Evaluates two batches at a time, as on a GPU."""

    in_flight = 2


def distorted(atoms: ase.Atoms, seed: int, rattle: float = 0.1, strain: float = 0.03) -> Structure:
    """A crystal with random displacements (standard deviation in angstrom) and a random strain."""
    rng = np.random.default_rng(seed)
    deformation = rng.normal(0, strain, (3, 3))
    cell = atoms.cell.array @ (np.eye(3) + (deformation + deformation.T) / 2)
    positions = atoms.get_scaled_positions() @ cell + rng.normal(0, rattle, (len(atoms), 3))
    return Structure.from_cartesian(atoms.numbers, positions, cell, pbc=True)


def alloys() -> list[Structure]:
    """Six distorted metals and alloys."""
    l12 = ase.build.bulk("Ni", a=3.6, cubic=True)
    l12.symbols[0] = "Al"
    b2 = ase.build.bulk("Cu", "bcc", a=2.95, cubic=True)
    b2.symbols[1] = "Pd"
    ordered = ase.build.bulk("Au", a=4.0, cubic=True)
    ordered.symbols[:2] = "Cu"
    cells = [ase.build.bulk("Cu"), ase.build.bulk("Pt", cubic=True), l12, b2, ordered, ase.build.bulk("Ag").repeat(2)]
    return [distorted(atoms, seed) for seed, atoms in enumerate(cells)]


def relaxed(structures: Sequence[Structure], potential: EmtPotential | None = None, **changes: object) -> list[Relaxed]:
    """Results in the order of the structures, with some settings changed from the defaults."""
    found = dict(
        relax_structures(enumerate(structures), potential or EmtPotential(), RelaxSettings(**changes))  # type: ignore[arg-type]
    )
    return [found[place] for place in range(len(structures))]


def status(one: Relaxed) -> str:
    return RELAX_STATUSES[one.status]


@pytest.mark.parametrize("optimizer", [Optimizer.LBFGS, pytest.param(Optimizer.FIRE, marks=pytest.mark.slow)])
def test_minima_are_those_of_ase(optimizer: Optimizer) -> None:
    structures = alloys()
    found = relaxed(structures, optimizer=optimizer, fmax=0.01, smax=0.02)
    for structure, one in zip(structures, found, strict=True):
        atoms = structure.to_ase()
        atoms.calc = EMT()
        ase.optimize.FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.002, steps=1000)
        assert status(one) == "ok"
        assert one.last is not None
        assert one.last.energy / len(atoms) == pytest.approx(atoms.get_potential_energy() / len(atoms), abs=1e-4)
        assert one.last.structure.volume == pytest.approx(atoms.get_volume(), rel=5e-3)


def test_what_is_called_relaxed_is_relaxed() -> None:
    """A new evaluation of the relaxed structure meets the criteria, and its energy is below the initial one."""
    for one in relaxed(alloys(), fmax=0.03, smax=0.1):
        assert one.first is not None
        assert one.last is not None
        again = EmtPotential().evaluate(GraphBlock.from_structures([one.last.structure], 5.0))
        assert np.linalg.norm(again.forces, axis=1).max() <= 0.03
        assert np.abs(again.stress).max() <= 0.1 * GPA
        assert again.energy[0] == pytest.approx(one.last.energy, abs=1e-9)
        assert one.last.energy < one.first.energy


def test_the_measure_of_ase_for_the_cell() -> None:
    for structure, one in zip(alloys(), relaxed(alloys(), smax=None), strict=True):
        assert one.last is not None
        atoms = one.last.structure.to_ase()
        atoms.calc = EMT()
        assert np.linalg.norm(FrechetCellFilter(atoms).get_forces(), axis=1).max() <= 0.05 * (1 + 1e-9)
        assert len(structure) == len(atoms)


def test_neighbours_in_flight_change_nothing() -> None:
    """EMT evaluates structures one at a time, so results are equal bit for bit."""
    together = relaxed(alloys())
    few = dict(relax_structures(enumerate(alloys()), EmtPotential(), edges_in_flight=1))
    for place, structure in enumerate(alloys()):
        (alone,) = relaxed([structure])
        for other in (together[place], few[place]):
            assert alone.last is not None
            assert other.last is not None
            assert (alone.n_steps, alone.last.energy) == (other.n_steps, other.last.energy)
            assert np.array_equal(alone.last.structure.cell, other.last.structure.cell)


def test_one_that_is_done_makes_room_for_the_next() -> None:
    potential = EmtPotential()
    structures = alloys() * 2
    edges = GraphBlock.from_structures(structures, potential.cutoff).n_edges
    results = list(relax_structures(enumerate(structures), potential, edges_in_flight=int(edges[0] * 3)))
    assert sorted(place for place, _ in results) == list(range(len(structures)))
    evaluated = potential.evaluated[1:]  # the first evaluation is that of isolated atoms
    assert max(evaluated) < len(structures)
    assert sum(evaluated) == sum(one.n_steps for _, one in results)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_turned_and_renumbered_structures_take_the_same_way(seed: int) -> None:
    structure = alloys()[2]
    order = np.random.default_rng(seed).permutation(len(structure))
    turn = Rotation.random(random_state=seed % 2**31).as_matrix()
    other = Structure(structure.atomic_number[order], structure.cell @ turn, structure.frac_coord[order], structure.pbc)
    one, two = relaxed([structure, other], trajectory=True, fmax=0.1, smax=1.0)
    energies = [[frame.energy for frame in each.frames] for each in (one, two)]
    assert np.allclose(*energies, atol=1e-6)


def test_all_points_are_kept_if_they_are_wanted() -> None:
    for one in relaxed(alloys()[:2], trajectory=True):
        assert len(one.frames) == one.n_steps
        assert one.frames[0] == one.first
        assert one.frames[-1] == one.last


def test_a_fixed_cell_stays() -> None:
    for structure, one in zip(alloys(), relaxed(alloys(), fix_cell=True), strict=True):
        assert one.last is not None
        assert status(one) == "ok"
        assert np.array_equal(one.last.structure.cell, structure.cell)
        assert np.linalg.norm(one.last.forces, axis=1).max() <= 0.05


def test_under_pressure_the_stress_balances_it() -> None:
    free, pressed = relaxed(alloys()), relaxed(alloys(), pressure=10.0)
    for one, two in zip(free, pressed, strict=True):
        assert one.last is not None
        assert two.last is not None
        assert np.allclose(two.last.stress / GPA, -10.0 * np.eye(3), atol=0.1)
        assert two.last.structure.volume < one.last.structure.volume


def test_symmetry_is_kept_if_it_is_to_be() -> None:
    """Body-centred copper keeps its space group, and a distorted alloy the one that is found with a loose tolerance.

    The exact gradient of a symmetric structure is symmetric; only rounding would break the symmetry.
    """
    bcc = Structure.from_ase(ase.build.bulk("Cu", "bcc", a=2.8, cubic=True))
    (kept,) = relaxed([bcc], fix_symmetry=True)
    assert kept.last is not None
    found = find_symmetry(kept.last.structure, 1e-4)
    assert found is not None
    assert found.number == 229
    structure = alloys()[4]
    (projected,) = relaxed([structure], fix_symmetry=True, symprec=0.5)
    assert projected.last is not None
    loose, tight = (find_symmetry(s, 0.5) for s in (structure, projected.last.structure))
    assert loose is not None
    assert tight is not None
    assert tight.number == loose.number > 1


def test_a_rattle_leaves_a_saddle() -> None:
    """Body-centred copper is a saddle point of EMT: symmetric, without forces, and higher in energy than fcc."""
    bcc = Structure.from_ase(ase.build.bulk("Cu", "bcc", a=2.8, cubic=True))
    fcc = Structure.from_ase(ase.build.bulk("Cu", a=3.7))
    (still,) = relaxed([bcc])
    left, stayed = relaxed([bcc, fcc], rattle=0.05, seed=1)  # one seed in four leads back to the saddle
    ground = stayed.last
    assert ground is not None
    assert still.last is not None
    assert left.saddle is not None
    assert left.last is not None
    assert left.saddle.energy == still.last.energy
    assert left.rattled_energy == left.last.energy < left.saddle.energy - 0.01
    assert left.last.energy / 2 == pytest.approx(ground.energy, abs=1e-3)
    assert stayed.rattled_energy == pytest.approx(ground.energy, abs=1e-4)
    assert left.n_steps > still.n_steps
    _, again = relaxed([fcc, bcc], rattle=0.05, seed=1)
    other, _ = relaxed([bcc, fcc], rattle=0.05, seed=2)
    assert again.rattled_energy == left.rattled_energy
    assert other.rattled_energy != left.rattled_energy


def test_molecules_and_slabs_keep_their_cells() -> None:
    dimer = Structure.from_cartesian([29, 29], [[0, 0, 0], [0, 0, 2.6]])
    slab = Structure.from_ase(ase.build.fcc111("Al", (1, 1, 3), a=4.1, vacuum=5.0))
    two = relaxed([dimer, slab])
    assert [status(one) for one in two] == ["ok", "ok"]
    for structure, one in zip((dimer, slab), two, strict=True):
        assert one.last is not None
        assert np.array_equal(one.last.structure.cell, structure.cell)


def test_what_cannot_be_relaxed_has_a_status_and_disturbs_nothing() -> None:
    copper, aluminium = alloys()[0], Structure.from_ase(ase.build.bulk("Al"))
    uranium = Structure.from_ase(ase.build.bulk("U", "fcc", a=4.5))
    thin = Structure.from_fractional([29], np.eye(3) * 30.0, [[0, 0, 0]])
    found = relaxed([copper, aluminium, uranium, thin], SickPotential(), max_steps=100)
    assert [status(one) for one in found][:3] == ["ok", "not_finite", "unknown_element"]
    assert found[1].last is None
    assert found[2].n_steps == 0
    (alone,) = relaxed([copper])
    assert found[0].last is not None
    assert alone.last is not None
    assert (found[0].n_steps, found[0].last.energy) == (alone.n_steps, alone.last.energy)
    capped = relaxed(alloys(), max_steps=2)
    assert {status(one) for one in capped} == {"not_converged"}
    assert all(one.n_steps == 2 and one.last is not None for one in capped)
    (large,) = relaxed([copper], max_edges=10)
    assert (status(large), large.n_steps) == ("too_large", 0)
    assert "too many edges" in large.reason


def test_one_that_flies_apart_is_told() -> None:
    """A large negative pressure: there is no minimum."""
    (one,) = relaxed([alloys()[0]], pressure=-60.0, max_steps=500)
    assert status(one) == "exploded"
    assert "volume" in one.reason
    assert one.last == one.first


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.3), st.floats(0, 0.06))
@settings(max_examples=60, deadline=None)
def test_the_skin_misses_no_neighbour(seed: int, rattle: float, strain: float) -> None:
    """As long as a neighbour list is reused, it has every pair within the cutoff."""
    rng = np.random.default_rng(seed)
    cutoff, skin = 4.0, 0.5
    structure = alloys()[seed % 6]
    graph = _Graph(neighbor_list(structure, cutoff + skin), structure.cell, structure.frac_coord)
    cell = structure.cell @ (np.eye(3) + rng.normal(0, strain, (3, 3)))
    frac = structure.frac_coord + rng.normal(0, rattle, (len(structure), 3)) @ np.linalg.inv(cell)
    if not graph.holds(cell, frac, cutoff, skin):
        return

    def pairs(searched: Structure, reach: float, shift: np.ndarray) -> set[tuple[int, ...]]:
        near = neighbor_list(searched, reach, min_distance=1e-9)
        receiver = np.repeat(np.arange(len(searched)), near.n_neighbors)
        image = near.image.astype(int) + (shift[receiver] - shift[near.neighbor])
        return set(map(tuple, np.column_stack([receiver, near.neighbor, image]).tolist()))

    # A structure wraps its atoms into the cell; the reused list does not.
    wrapped = np.floor(frac).astype(int)
    now = Structure.from_fractional(structure.atomic_number, cell, frac)
    assert pairs(now, cutoff, wrapped) <= pairs(structure, cutoff + skin, np.zeros_like(wrapped))


def test_the_skin_changes_nothing(exported: Callable[[str], Path]) -> None:
    """With a network, which uses the neighbour list."""
    potential = OnnxPotential.load(exported("float64"), threads=1)
    gold = ase.build.bulk("Au", a=4.2, cubic=True)
    gold.symbols[0] = "Cu"
    structures = [distorted(gold, seed) for seed in range(3)]
    ways = [
        dict(
            relax_structures(enumerate(structures), potential, RelaxSettings(skin=skin, max_steps=15, trajectory=True))
        )
        for skin in (0.0, 0.5)
    ]
    for place in range(3):
        one, two = ([frame.energy for frame in way[place].frames] for way in ways)
        assert np.allclose(one, two, atol=1e-8)


def test_a_relaxation_has_the_same_bits_in_any_company(exported: Callable[[str], Path]) -> None:
    """Shuffled, only the first of them, in tables and batches of other sizes, two at a time; also after a rattle."""
    crystals = probe_structures((13, 29, 79), 8, seed=5)
    changed = RelaxSettings(max_steps=6, rattle=0.05, fmax=1.0, smax=10.0)
    expected: dict[int, Relaxed] = {}
    for kind, order, slots, edges in (
        (OnnxPotential, range(8), 2048, 30_000),
        (OnnxPotential, range(7, -1, -1), 300, 2_000),
        (OnnxPotential, range(4), 10_000, 1),
        (TwoAtATime, range(8), 300, 30_000),
    ):
        potential = kind.load(exported("float32"), threads=1, slots=slots)
        pairs = [(row, crystals[row]) for row in order]
        for row, one in relax_structures(pairs, potential, changed, edges_in_flight=edges):
            other = expected.setdefault(row, one)
            assert (one.status, one.n_steps) == (other.status, other.n_steps)
            assert np.array_equal([one.rattled_energy], [other.rattled_energy], equal_nan=True)
            assert one.last is not None
            assert other.last is not None
            assert one.last.energy == other.last.energy
            assert np.array_equal(one.last.forces, other.last.forces)
            assert np.array_equal(one.last.structure.cell, other.last.structure.cell)


def test_a_lack_of_memory_divides_batches_and_changes_no_bit() -> None:
    structures = [*alloys(), Structure.from_ase(ase.build.bulk("Au", cubic=True) * (2, 2, 1))]
    few_steps, plausibility = RelaxSettings(max_steps=4), Plausibility.of(EmtPotential())
    enough, short = (
        dict(relax_structures(enumerate(structures), potential, few_steps, plausibility=plausibility))
        for potential in (EmtPotential(), SmallMemory())
    )
    too_large = short.pop(len(structures) - 1)
    assert RELAX_STATUSES[too_large.status] == "too_large"
    assert too_large.reason == "the structure does not fit into memory"
    assert max(len(structures[row]) for row in short) == 8
    for row, one in short.items():
        assert one.last is not None
        assert (one.status, one.n_steps) == (enough[row].status, enough[row].n_steps)
        assert np.array_equal(one.last.forces, enough[row].last.forces)
        assert one.last.energy == enough[row].last.energy


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"fmax": 0.0}, "positive"),
        ({"skin": -1.0}, "negative"),
        ({"rattle": 0.05, "fix_symmetry": True}, "breaks the symmetry"),
        ({"fix_cell": True, "pressure": 1.0}, "no effect on a fixed cell"),
    ],
)
def test_settings_that_contradict_each_other(said: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RelaxSettings(**said)  # type: ignore[arg-type]


def test_a_potential_without_forces_is_refused() -> None:
    with pytest.raises(ConfigError, match="forces, stress"):
        list(relax_structures([], EmtPotential(outputs=ENERGY_OUTPUTS[:1])))
