"""Point groups in the frame of the structure, and the tensors that they allow or forbid."""

from __future__ import annotations

import ast
import csv
import gzip
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ase.data import atomic_numbers
from equiscreen.pipeline import Structure
from equiscreen.pipeline.errors import LabelError
from equiscreen.pipeline.structures.symmetry import find_symmetry, point_group, rotated, symmetry_violation
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from .test_matching import other_setting, prototypes, random_rotation

# Orders of the 32 crystallographic point groups, each keyed by one of its symmorphic, primitive space groups.
GROUPS = {
    1: 1, 2: 2, 3: 2, 6: 2, 10: 4, 16: 4, 25: 4, 47: 8, 75: 4, 81: 4, 83: 8, 89: 8, 99: 8, 111: 8, 123: 16, 143: 3,
    147: 6, 149: 6, 156: 6, 162: 12, 168: 6, 174: 6, 175: 12, 177: 12, 183: 12, 187: 12, 191: 24, 195: 12, 200: 24,
    207: 24, 215: 24, 221: 48,
}  # fmt: skip
ROUNDING = 1e-12
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def crystal_of_group(number: int, rng: np.random.Generator) -> Structure:
    """Two general orbits of a primitive space group, in a randomly rotated cell of its crystal system."""
    import moyopy  # noqa: PLC0415 - only here

    operations = moyopy.operations_from_number(number)
    a, b, c = 5.1, 5.9, 6.8
    if number >= 195:
        cell = np.eye(3) * a
    elif number >= 143:
        cell = np.array([[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, c]])
    elif number >= 75:
        cell = np.diag([a, a, c])
    elif number >= 16:
        cell = np.diag([a, b, c])
    elif number >= 3:
        cell = np.array([[a, 0, 0], [0, b, 0], [1.3, 0, c]])
    else:
        cell = np.array([[a, 0, 0], [0.7, b, 0], [1.3, 0.9, c]])
    sites = [np.array(operations.rotations) @ site + operations.translations for site in rng.random((2, 3))]
    numbers = np.repeat([14, 8], len(operations))
    return Structure.from_fractional(numbers, cell @ random_rotation(rng), np.concatenate(sites))


def turned(structure: Structure, rotation: NDArray[np.float64]) -> Structure:
    return Structure.from_fractional(structure.atomic_number, structure.cell @ rotation.T, structure.frac_coord)


def turned_tensor(tensor: NDArray[np.float64], rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    return rotated(tensor, rotation[None])[0]


@pytest.mark.parametrize("number", GROUPS)
def test_all_32_point_groups(number: int) -> None:
    rng = np.random.default_rng(number)
    crystal = crystal_of_group(number, rng)
    group = point_group(crystal)
    assert len(group) == GROUPS[number]
    assert np.abs(group @ group.swapaxes(1, 2) - np.eye(3)).max() < ROUNDING
    products = (group[:, None] @ group[None]).reshape(-1, 1, 9) - group.reshape(1, -1, 9)
    assert np.abs(products).max(axis=2).min(axis=1).max() < ROUNDING  # a group
    for operation in group:  # each maps the neighbourhood of some atom onto that of another
        image = Structure.from_fractional(
            crystal.atomic_number, crystal.cell, turned(crystal, operation).positions @ np.linalg.inv(crystal.cell)
        )
        assert carried_onto_each_other(crystal, image)
    for rank in range(5):
        tensor = rng.normal(size=(3,) * rank)
        allowed = rotated(tensor, group).mean(axis=0)
        size = np.linalg.norm(allowed)
        if size > 1e-6:  # otherwise the group forbids every tensor of this rank
            assert symmetry_violation(allowed, group) < ROUNDING * np.linalg.norm(tensor) / size
        expected = np.linalg.norm(tensor - allowed) / np.linalg.norm(tensor)
        assert symmetry_violation(tensor, group) == pytest.approx(expected, abs=ROUNDING)


def carried_onto_each_other(a: Structure, b: Structure) -> bool:
    """Whether a translation maps the sites of one structure onto those of the other, in the same cell."""
    for i in np.flatnonzero(b.atomic_number == a.atomic_number[0]):
        apart = a.frac_coord[:, None] - (b.frac_coord + a.frac_coord[0] - b.frac_coord[i])
        apart = np.abs(apart - np.rint(apart)).max(axis=2) + (a.atomic_number[:, None] != b.atomic_number)
        if apart.min(axis=1).max() < 1e-6:
            return True
    return False


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")
def test_prototypes_against_spglib() -> None:
    import spglib  # noqa: PLC0415 - only here

    n_compared = 0
    for crystal in prototypes()[:100]:
        group = point_group(crystal)
        found = spglib.get_symmetry_dataset((crystal.cell, crystal.frac_coord, crystal.atomic_number), symprec=1e-2)
        symmetry = find_symmetry(crystal, 1e-2)
        assert symmetry is not None
        if found.number != symmetry.number:  # nearly at the tolerance, which the two libraries measure differently
            continue
        lattice = np.unique(found.rotations, axis=0).astype(float)
        expected = crystal.cell.T @ lattice @ np.linalg.inv(crystal.cell.T)
        assert len(expected) == len(group)
        assert np.abs(expected[:, None] - group).max(axis=(2, 3)).min(axis=0).max() < 0.01
        n_compared += 1
    assert n_compared > 95


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), multiple=st.integers(1, 4))
def test_a_supercell_has_the_group_of_its_crystal(seed: int, multiple: int) -> None:
    rng = np.random.default_rng(seed)
    structure = prototypes()[int(rng.integers(100))]
    group = point_group(structure)
    other = other_setting(structure, rng, multiple)
    other_group = point_group(other)
    assert len(group) == len(other_group)
    # The two frames differ by an unknown rotation, under which the traces are invariant.
    traces = [np.sort(np.trace(g, axis1=1, axis2=2)) for g in (group, other_group)]
    assert np.allclose(*traces, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(0, 4))
def test_turning_crystal_and_tensor_together_changes_nothing(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    crystal = crystal_of_group(int(rng.choice(list(GROUPS))), rng)
    tensor, rotation = rng.normal(size=(3,) * rank), random_rotation(rng)
    before = symmetry_violation(tensor, point_group(crystal))
    after = symmetry_violation(turned_tensor(tensor, rotation), point_group(turned(crystal, rotation)))
    assert after == pytest.approx(before, abs=1e-9)


@pytest.mark.parametrize("number", [10, 47, 123, 191])
def test_a_tensor_in_another_frame_is_noticed(number: int) -> None:
    rng = np.random.default_rng(number)
    group = point_group(crystal_of_group(number, rng))
    allowed = rotated(np.diag([1.0, 2.0, 4.0]), group).mean(axis=0)
    assert symmetry_violation(allowed, group) < ROUNDING
    assert symmetry_violation(turned_tensor(allowed, random_rotation(rng)), group) > 0.05


def test_a_centre_of_inversion_forbids_odd_tensors() -> None:
    rng = np.random.default_rng(0)
    group = point_group(crystal_of_group(221, rng))
    for rank in (1, 3):
        assert symmetry_violation(rng.normal(size=(3,) * rank), group) == pytest.approx(1.0, abs=ROUNDING)
    assert symmetry_violation(3.0, group) == 0.0


@pytest.mark.parametrize("axes", [("voigt",), ("cartesian", "voigt"), ("voigt", "voigt"), ("voigt", "cartesian")])
def test_voigt_is_the_same_tensor(axes: tuple[str, ...]) -> None:
    """Compare with the full tensor, written out by hand."""
    rng = np.random.default_rng(0)
    group = point_group(crystal_of_group(99, rng))
    voigt = rng.normal(size=[{"voigt": 6, "cartesian": 3}[axis] for axis in axes])
    full = np.zeros([3] * sum({"voigt": 2, "cartesian": 1}[axis] for axis in axes))
    for index in np.ndindex(*voigt.shape):
        pairs = [
            [(i,)] if axis == "cartesian" else {VOIGT[i], VOIGT[i][::-1]} for i, axis in zip(index, axes, strict=True)
        ]
        for first in pairs[0]:
            for second in pairs[1] if len(pairs) > 1 else [()]:
                full[(*first, *second)] = voigt[index]
    expected = symmetry_violation(full, group)
    assert 0.01 < expected < 1
    assert symmetry_violation(voigt, group) == pytest.approx(expected, abs=ROUNDING)
    assert symmetry_violation(voigt, group, axes) == symmetry_violation(voigt, group)


def test_isotropic_stiffness_is_allowed_everywhere() -> None:
    stiffness = np.diag([2.0, 2, 2, 1, 1, 1])  # c11 - c12 = 2 c44
    stiffness[:3, :3] += 1.5
    for number in GROUPS:
        group = point_group(crystal_of_group(number, np.random.default_rng(number)))
        assert symmetry_violation(stiffness, group) < ROUNDING


def test_what_is_no_tensor_says_why() -> None:
    group = np.eye(3)[None]
    for tensor in (np.zeros(4), np.zeros((3, 5)), np.zeros((6, 6, 3)), np.zeros((3,) * 5)):
        with pytest.raises(LabelError, match="a tensor of shape"):
            symmetry_violation(tensor, group)
    with pytest.raises(LabelError, match="cannot have the indices cartesian, cartesian"):
        symmetry_violation(np.zeros((3, 6)), group, ("cartesian", "cartesian"))
    assert symmetry_violation(np.zeros((3, 3)), group) == 0.0
    assert np.isnan(symmetry_violation(np.full(6, np.nan), group))


def test_without_symmetry_only_the_identity_is_left() -> None:
    rng = np.random.default_rng(0)
    slab = Structure.from_fractional([14, 8], np.eye(3) * 4, [[0, 0, 0], [0.5, 0.5, 0.5]], (True, True, False))
    twice = Structure.from_fractional([14, 14], np.eye(3) * 4, [[0, 0, 0], [0, 0, 1e-5]])
    for structure in (slab, twice, crystal_of_group(1, rng)):
        group = point_group(structure)
        assert len(group) == 1
        assert symmetry_violation(rng.normal(size=(3, 3)), group) < ROUNDING


@cache
def tensors(path: Path, column: str) -> tuple[list[Structure], list[NDArray[np.float64]]]:
    """Structures and tensors of a published data set, each in the frame of its POSCAR."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        next(file)  # the citation
        header, *rows = csv.reader(file)
    # In one file, rows begin with an index that the header does not name.
    records = [dict(zip(header, row[len(row) - len(header) :], strict=True)) for row in rows]
    return [from_poscar(x["poscar"]) for x in records], [np.array(ast.literal_eval(x[column])) for x in records]


def from_poscar(text: str) -> Structure:
    lines = text.split("\n")
    cell = np.array([line.split() for line in lines[2:5]], dtype=float) * float(lines[1])
    counts = [int(x) for x in lines[6].split()]
    numbers = np.repeat([atomic_numbers[x] for x in lines[5].split()], counts)
    frac = np.array([line.split()[:3] for line in lines[8 : 8 + sum(counts)]], dtype=float)
    return Structure.from_fractional(numbers, cell, frac)


@pytest.mark.parametrize(
    ("file", "column", "expected"),
    [
        ("dielectric_constant", "e_electronic", 0),
        ("dielectric_constant", "e_total", 1),
        ("elastic_tensor", "elastic_tensor", 7),
    ],
)
def test_published_tensors(data: Path, file: str, column: str, expected: int) -> None:
    """Nearly all are allowed in the frame of their POSCAR; rotated, those of anisotropic crystals are forbidden."""
    csv.field_size_limit(10**9)
    structures, values = tensors(data / "tensors" / f"{file}.csv.gz", column)
    groups = [point_group(structure) for structure in structures]
    violation = np.array([symmetry_violation(x, group) for x, group in zip(values, groups, strict=True)])
    assert (violation > 0.05).sum() == expected
    if column == "e_total":
        rotation = random_rotation(np.random.default_rng(0))
        elsewhere = [symmetry_violation(turned_tensor(x, rotation), g) for x, g in zip(values, groups, strict=True)]
        assert (np.array(elsewhere) > 0.05).mean() > 0.3
