"""Structure matching: the same crystal in other cells, origins, orders or orientations, and near misses."""

from __future__ import annotations

import csv
import gzip
import itertools
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from equiscreen.pipeline import Structure
from equiscreen.pipeline.readers.cif import structure_from_cif
from equiscreen.pipeline.structures.matching import (
    TOLERANCE,
    VECTOR_SLACK,
    composition_key,
    crystal_vector,
    first_same_crystal,
    primitive,
    same_crystal,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

SEEDS = st.integers(0, 2**32 - 1)
# Rounding errors in the last digits of coordinates, propagated to distances of some angstrom.
ROUNDING = 1e-9
SILICON = 14
OXYGEN = 8


def random_crystal(rng: np.random.Generator, max_atoms: int = 6) -> Structure:
    """A crystal without symmetry and without atoms that are too close."""
    while True:
        numbers = rng.choice([3, 8, 14, 26], size=int(rng.integers(1, max_atoms + 1)))
        cell = np.diag(rng.uniform(3, 5, 3)) + rng.uniform(-1, 1, (3, 3))
        structure = Structure.from_fractional(numbers, cell, rng.random((len(numbers), 3)))
        distances = structure.to_ase().get_all_distances(mic=True)
        if distances[np.triu_indices(len(numbers), 1)].min(initial=9) > 0.8 and structure.volume > 20:
            return structure


def random_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    orthogonal, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return orthogonal * np.sign(np.linalg.det(orthogonal))


def lattice_points(matrix: NDArray[np.int64]) -> NDArray[np.int64]:
    """The points of the integer lattice within one cell of a sublattice with positive determinant."""
    size = round(np.linalg.det(matrix))
    adjugate = np.rint(np.linalg.inv(matrix) * size).astype(int)
    points = np.array(list(itertools.product(range(size), repeat=3)))
    _, first = np.unique(points @ adjugate % size, axis=0, return_index=True)
    assert len(first) == size
    return points[first]


def other_setting(structure: Structure, rng: np.random.Generator, multiple: int = 1) -> Structure:
    """The same crystal with another (possibly larger) cell, origin, order of sites and orientation."""
    matrix = np.diag(rng.permutation([multiple, 1, 1]))
    for _ in range(3):
        row, other = rng.choice(3, 2, replace=False)
        matrix[row] += rng.integers(-2, 3) * matrix[other]
    points = lattice_points(matrix)
    frac = (structure.frac_coord[:, None] + points).reshape(-1, 3) @ np.linalg.inv(matrix) + rng.random(3)
    numbers = np.repeat(structure.atomic_number, len(points))
    order = rng.permutation(len(numbers))
    return Structure.from_fractional(numbers[order], matrix @ structure.cell @ random_rotation(rng), frac[order])


def displaced(structure: Structure, displacement: NDArray[np.float64]) -> Structure:
    """The structure with its atoms moved by float64[n_atoms, 3], angstrom."""
    frac = structure.frac_coord + displacement @ np.linalg.inv(structure.cell)
    return Structure.from_fractional(structure.atomic_number, structure.cell, frac)


def mirrored(structure: Structure) -> Structure:
    return Structure.from_fractional(
        structure.atomic_number, structure.cell @ np.diag([1, 1, -1]), structure.frac_coord
    )


def quartz(sense: int) -> Structure:
    """alpha-quartz (Levien et al., Am. Mineral. 65, 920, 1980), P3_121 for sense 1 and P3_221 for -1."""
    a, c = 4.916, 5.4054
    silicon, oxygen = np.array([0.4697, 0, 1 / 3]), np.array([0.4135, 0.2669, 0.1191 + 1 / 3])
    numbers, frac = [], []
    # Generators of P3_121: the threefold screw axis, and the twofold axis (y, x, -z) on which silicon lies.
    for number, site in ((SILICON, silicon), (OXYGEN, oxygen), (OXYGEN, oxygen[[1, 0, 2]] * [1, 1, -1])):
        x, y, z = site
        frac += [(x, y, z), (-y, x - y, z + 1 / 3), (y - x, -x, z + 2 / 3)]
        numbers += [number] * 3
    cell = np.array([[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, c]])
    return Structure.from_fractional(numbers, cell, np.array(frac) * [1, 1, sense])  # z to -z gives the other group


@cache
def prototypes() -> tuple[Structure, ...]:
    """AFLOW prototypes of moderate size."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY  # noqa: PLC0415 - takes seconds to import

    found = [entry["snl"].structure for entry in AFLOW_PROTOTYPE_LIBRARY]
    return tuple(
        Structure.from_fractional([site.specie.Z for site in x], x.lattice.matrix, x.frac_coords)
        for x in found
        if len(x) <= 24
    )


def rows_of(path: Path, count: int) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return list(itertools.islice(csv.DictReader(file), count))


@cache
def materials(folder: Path, count: int) -> tuple[Structure, ...]:
    """Crystals of the Materials Project."""
    return tuple(structure_from_cif(row["cif"])[0] for row in rows_of(folder / "mp" / "mp_20_val.csv.gz", count))


def assert_same(a: Structure, b: Structure) -> None:
    assert composition_key(a) == composition_key(b)
    assert np.abs(crystal_vector(a) - crystal_vector(b)).max() < ROUNDING
    assert same_crystal(a, b)
    assert same_crystal(b, a)


@settings(deadline=None)
@given(seed=SEEDS, multiple=st.integers(1, 4))
def test_another_cell_origin_order_and_orientation(seed: int, multiple: int) -> None:
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng)
    assert_same(crystal, other_setting(crystal, rng, multiple))


@pytest.mark.slow
def test_prototypes_in_another_setting() -> None:
    rng = np.random.default_rng(0)
    for crystal in prototypes():
        assert_same(crystal, other_setting(crystal, rng, int(rng.integers(1, 5))))


def test_materials_in_another_setting(data: Path) -> None:
    rng = np.random.default_rng(1)
    for crystal in materials(data, 200):
        # Published with 8 digits, so repeats within a cell may differ in the last one.
        other = other_setting(crystal, rng, int(rng.integers(1, 5)))
        assert same_crystal(crystal, other)
        assert np.abs(crystal_vector(crystal) - crystal_vector(other)).max() < ROUNDING


@settings(deadline=None)
@given(seed=SEEDS, multiple=st.integers(1, 4))
def test_primitive_cell_has_no_repeats_and_keeps_the_crystal(seed: int, multiple: int) -> None:
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng)
    found = primitive(other_setting(crystal, rng, multiple))
    assert len(found) == len(crystal)  # nothing repeats in a random crystal
    assert np.linalg.det(found.cell) == pytest.approx(crystal.volume, rel=1e-9)  # and the cell is right-handed
    assert np.abs(crystal_vector(found) - crystal_vector(crystal)).max() < ROUNDING


@settings(deadline=None)
@given(seed=SEEDS)
def test_noise_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng)
    noisy = other_setting(crystal, rng, int(rng.integers(1, 5)))
    noisy = displaced(noisy, rng.normal(0, 1e-6, (len(noisy), 3)))
    assert same_crystal(crystal, noisy)
    assert np.abs(crystal_vector(crystal) - crystal_vector(noisy)).max() < 1e-4


@settings(deadline=None)
@given(seed=SEEDS)
def test_what_is_the_same_crystal_has_vectors_within_the_slack(seed: int) -> None:
    """The law on which the candidate search relies, at the edge of the tolerance."""
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng)
    reduced = primitive(crystal)
    cell = reduced.cell + rng.choice([-1, 1], (3, 3)) * TOLERANCE / np.sqrt(3)
    strained = Structure.from_fractional(reduced.atomic_number, cell, reduced.frac_coord)
    moved = displaced(strained, rng.choice([-1, 1], (len(crystal), 3)) * TOLERANCE / np.sqrt(3))
    apart = np.abs(crystal_vector(crystal) - crystal_vector(moved)).max()
    assert apart < VECTOR_SLACK * TOLERANCE


@pytest.mark.parametrize("size", [0.5, 1.5])
def test_the_tolerance_is_a_distance(size: float) -> None:
    """Move one atom of a large cell; subtracting the mean displacement hardly moves the others."""
    rng = np.random.default_rng(5)
    frac = np.array(list(itertools.product(range(4), repeat=3))) / 4 + rng.normal(0, 0.01, (64, 3))
    crystal = Structure.from_fractional(rng.choice([3, 8], 64), np.eye(3) * 11.0, frac)
    step = np.zeros((64, 3))
    step[17, 1] = size * TOLERANCE
    assert same_crystal(crystal, other_setting(displaced(crystal, step), rng)) == (size < 1)


@settings(deadline=None)
@given(seed=SEEDS)
def test_a_moved_atom_makes_another_crystal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng)
    assume(len(crystal) > 1)  # moving the only atom moves the origin
    step = np.zeros((len(crystal), 3))
    step[0] = 0.02 * random_rotation(rng)[0]
    assert not same_crystal(crystal, displaced(crystal, step))
    assert not same_crystal(crystal, other_setting(displaced(crystal, step), rng))


@settings(deadline=None)
@given(seed=SEEDS)
def test_another_volume_or_element_makes_another_crystal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng)
    scaled = Structure.from_fractional(crystal.atomic_number, crystal.cell * 1.005 ** (1 / 3), crystal.frac_coord)
    assert not same_crystal(crystal, other_setting(scaled, rng))
    numbers = crystal.atomic_number.copy()
    numbers[0] = 79
    changed = Structure.from_fractional(numbers, crystal.cell, crystal.frac_coord)
    assert composition_key(crystal) != composition_key(changed)
    assert not same_crystal(crystal, changed)


def test_changed_prototypes_and_materials_are_others(data: Path) -> None:
    rng = np.random.default_rng(2)
    for crystal in (*prototypes(), *materials(data, 5)):
        if len(primitive(crystal)) > 1:
            step = np.zeros((len(crystal), 3))
            step[0] = 0.02 * random_rotation(rng)[0]
            assert not same_crystal(crystal, displaced(crystal, step))
        scaled = Structure.from_fractional(crystal.atomic_number, crystal.cell * 1.005 ** (1 / 3), crystal.frac_coord)
        assert not same_crystal(crystal, scaled)


def test_an_antisite_pair_is_another_crystal_of_the_same_composition() -> None:
    """Rock salt with one cation and one anion swapped in a supercell."""
    salt = Structure.from_fractional(
        [11, 17], 2.82 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]), [[0, 0, 0], [0.5] * 3]
    )
    big = other_setting(salt, np.random.default_rng(0), 4)
    numbers = big.atomic_number.copy()
    cation, anion = int(np.argmax(numbers == 11)), int(np.argmax(numbers == 17))
    numbers[[cation, anion]] = numbers[[anion, cation]]
    swapped = Structure.from_fractional(numbers, big.cell, big.frac_coord)
    assert composition_key(salt) == composition_key(swapped)
    assert same_crystal(salt, big)
    assert not same_crystal(salt, swapped)


def test_mirror_images_of_quartz_are_two_crystals() -> None:
    import moyopy  # noqa: PLC0415 - only needed to check the inputs of the comparison

    right, left = quartz(1), quartz(-1)
    for crystal, number in ((right, 152), (left, 154)):
        cell = moyopy.Cell(crystal.cell.tolist(), crystal.frac_coord.tolist(), crystal.atomic_number.tolist())
        assert moyopy.MoyoDataset(cell).number == number
    rng = np.random.default_rng(0)
    assert same_crystal(mirrored(right), other_setting(left, rng, 2))
    assert not same_crystal(right, left)
    assert not same_crystal(right, mirrored(right))
    assert (
        np.abs(crystal_vector(right) - crystal_vector(left)).max() < ROUNDING
    )  # only `same_crystal` distinguishes them
    assert first_same_crystal(*tables([right, left, right, left])).tolist() == [0, 1, 0, 1]


@settings(deadline=None)
@given(seed=SEEDS)
def test_a_random_crystal_is_chiral(seed: int) -> None:
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng)
    # Crystals of one or two sites have a centre of inversion.
    assume(len(np.unique(crystal.atomic_number)) > 2 or len(crystal) > 3)
    assert not same_crystal(crystal, other_setting(mirrored(crystal), rng))


@pytest.mark.parametrize("size", [1e-5, 5e-4])
def test_a_nearly_repeated_motif_is_the_repeated_one(size: float) -> None:
    """Displacements on both sides of the threshold of `primitive`, always within the tolerance."""
    rng = np.random.default_rng(3)
    crystal = random_crystal(rng, 4)
    large = other_setting(crystal, rng, 3)
    moved = displaced(large, size * rng.choice([-1, 1], (len(large), 3)) / np.sqrt(3))
    assert len(primitive(moved)) == (len(crystal) if size < 1e-4 else 3 * len(crystal))
    assert same_crystal(crystal, moved)
    assert same_crystal(moved, crystal)


@pytest.mark.parametrize("pbc", [(False, False, False), (True, True, False)])
def test_what_is_no_crystal_is_compared_by_content(pbc: tuple[bool, bool, bool]) -> None:
    cell = np.eye(3) * (5.0 if any(pbc) else 1.0)
    a, b, c = (Structure.from_fractional([8, 1, 1], cell, f, pbc) for f in (QUARTERS, QUARTERS, QUARTERS[::-1]))
    solid = Structure.from_fractional([8, 1, 1], np.eye(3) * 5.0, QUARTERS)
    assert primitive(a) is a
    assert same_crystal(a, b)
    assert not same_crystal(a, c)
    assert not same_crystal(a, solid)
    assert composition_key(a) != composition_key(solid)
    assert first_same_crystal(*tables([solid, a, c, b])).tolist() == [0, 1, 2, 1]


QUARTERS = np.array([[0, 0, 0], [0.25, 0.25, 0], [0.25, 0, 0.5]])


def test_composition_key_is_the_same_in_every_process() -> None:
    program = (
        "import numpy; from equiscreen.pipeline import Structure;"
        "from equiscreen.pipeline.structures.matching import *;"
        "print(composition_key(Structure.from_fractional([8, 14, 8], numpy.eye(3) * 4, numpy.eye(3) / 3)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) == composition_key(quartz(1))


def tables(crystals: list[Structure]) -> tuple[NDArray[np.uint64], NDArray[np.float64], Callable[[int], Structure]]:
    keys = np.array([composition_key(x) for x in crystals], dtype=np.uint64)
    return keys, np.array([crystal_vector(x) for x in crystals]), crystals.__getitem__


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_first_of_each_crystal_is_found(seed: int) -> None:
    """Many crystals of few compositions, with duplicates in any order, compared with the definition."""
    rng = np.random.default_rng(seed)
    distinct = [random_crystal(rng, 3) for _ in range(6)]
    # Similar crystals, which the vectors hardly distinguish.
    distinct += [displaced(x, rng.normal(0, 0.01, (len(x), 3))) for x in distinct if len(x) > 1]
    distinct += [mirrored(x) for x in distinct]
    crystals = [other_setting(distinct[i], rng, int(rng.integers(1, 3))) for i in rng.integers(0, len(distinct), 30)]
    expected = [next(j for j in range(i + 1) if same_crystal(crystals[j], crystals[i])) for i in range(len(crystals))]
    assert first_same_crystal(*tables(crystals)).tolist() == expected


def test_candidates_are_not_lost_at_seams_of_the_grid() -> None:
    """Rows of equal crystals whose vectors differ by almost the slack, at random positions in the search grid."""
    rng = np.random.default_rng(0)
    crystal = primitive(quartz(1))
    n_pairs = 2000
    vectors = rng.uniform(0, 5, (n_pairs, 22))
    vectors = np.concatenate([vectors, vectors + rng.uniform(-1, 1, vectors.shape) * 0.999 * VECTOR_SLACK * TOLERANCE])
    keys = np.zeros(len(vectors), dtype=np.uint64)
    found = first_same_crystal(keys, vectors, lambda _: crystal)
    assert (found == np.tile(np.arange(n_pairs), 2)).all()


def test_duplicates_are_compared_with_one_representative() -> None:
    rng = np.random.default_rng(0)
    kinds = [random_crystal(rng) for _ in range(3)]
    of_row = rng.integers(0, 3, 3000)
    keys, vectors, _ = tables(kinds)
    asked: list[int] = []

    def structure_of(row: int) -> Structure:
        asked.append(row)
        return kinds[of_row[row]]

    first = first_same_crystal(keys[of_row], vectors[of_row] + rng.normal(0, 1e-9, (3000, 22)), structure_of)
    assert (of_row[first] == of_row).all()
    assert len(set(first.tolist())) == 3
    assert len(asked) <= 3000 + 3


def test_nothing_is_read_where_nothing_repeats() -> None:
    def structure_of(row: int) -> Structure:
        raise AssertionError(row)

    rng = np.random.default_rng(0)
    keys = rng.integers(0, 3000, 100_000).astype(np.uint64)
    vectors = rng.normal(3, 0.3, (100_000, 22))
    assert (first_same_crystal(keys, vectors, structure_of) == np.arange(100_000)).all()
    assert len(first_same_crystal(keys[:0], vectors[:0], structure_of)) == 0


def test_agreement_with_pymatgen(data: Path) -> None:
    """Pairs of Materials Project crystals with the same formula, and crystals in another setting."""
    from pymatgen.analysis.structure_matcher import StructureMatcher  # noqa: PLC0415 - takes seconds to import
    from pymatgen.core import Structure as Peer  # noqa: PLC0415 - the same

    # pymatgen's site tolerance is a fraction of the cube root of the volume per atom.
    matcher = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.05, primitive_cell=True, scale=False)

    def peer(structure: Structure) -> Peer:
        return Peer(structure.cell, structure.atomic_number.tolist(), structure.frac_coord)

    groups = defaultdict(list)
    for crystal in materials(data, 2500):
        groups[composition_key(crystal)].append(crystal)
    rng = np.random.default_rng(0)
    pairs = [pair for group in groups.values() for pair in itertools.combinations(group, 2)][:80]
    pairs += [(a, other_setting(a, rng, 2)) for a, _ in pairs[:20]]
    assert len(pairs) == 100
    for a, b in pairs:
        assert same_crystal(a, b) == matcher.fit(peer(a), peer(b))
