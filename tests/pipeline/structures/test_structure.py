"""Structures: wrapping, validation, hashing, and the round trip through ASE."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from equiscreen.pipeline import Structure
from equiscreen.pipeline.errors import InvalidStructureError
from hypothesis import given, settings
from hypothesis import strategies as st

CUBE = np.eye(3) * 4.0


@settings(deadline=None)  # the first call compiles
@given(shift=st.tuples(*[st.integers(-3, 3)] * 3), seed=st.integers(0, 2**16))
def test_hash_does_not_depend_on_whole_cells(shift: tuple[int, int, int], seed: int) -> None:
    frac = np.random.default_rng(seed).random((4, 3))
    a = Structure.from_fractional([6, 7, 8, 9], CUBE, frac)
    b = Structure.from_fractional([6, 7, 8, 9], CUBE, frac + np.array(shift))
    assert a.content_hash() == b.content_hash()


@pytest.mark.parametrize("what", ["element", "coordinate", "cell", "pbc", "order"])
def test_hash_depends_on_everything_else(what: str) -> None:
    numbers, cell, frac = [6, 7], CUBE, np.array([[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]])
    base = Structure.from_fractional(numbers, cell, frac)
    other = {
        "element": lambda: Structure.from_fractional([6, 8], cell, frac),
        "coordinate": lambda: Structure.from_fractional(numbers, cell, frac + np.array([[1e-7, 0, 0], [0, 0, 0]])),
        "cell": lambda: Structure.from_fractional(numbers, cell * (1 + 1e-8), frac),
        "pbc": lambda: Structure.from_fractional(numbers, cell, frac, (True, True, False)),
        "order": lambda: Structure.from_fractional(numbers[::-1], cell, frac[::-1]),
    }[what]()
    assert base.content_hash() != other.content_hash()


def test_hash_forgives_rounding_and_the_seam_of_the_cell() -> None:
    a = Structure.from_fractional([6], CUBE, [[1 - 1e-12, 0.5, -1e-17]])
    b = Structure.from_fractional([6], CUBE, [[0.0, 0.5 + 1e-12, 0.0]])
    assert a.content_hash() == b.content_hash()
    assert (a.frac_coord >= 0).all()
    assert (a.frac_coord < 1).all()


@settings(deadline=None)  # the first call compiles and imports ASE
@given(
    decimals=st.integers(3, 12),
    pbc=st.sampled_from([(True, True, True), (True, True, False), (False, True, False), (False, False, False)]),
    seed=st.integers(0, 2**32),
)
def test_hash_of_decimal_numbers_outlasts_ase(decimals: int, pbc: tuple[bool, bool, bool], seed: int) -> None:
    rng = np.random.default_rng(seed)
    cell = np.round(np.diag(rng.uniform(4, 9, 3)) + rng.uniform(-1.5, 1.5, (3, 3)), decimals)
    frac = np.round(rng.random((12, 3)), decimals)
    frac[0] = 0, 0.5, round(1 / 3, decimals)
    structure = Structure.from_fractional(np.arange(1, 13), cell if any(pbc) else np.eye(3), frac, pbc)
    assert Structure.from_ase(structure.to_ase()).content_hash() == structure.content_hash()


def test_hash_of_fractions_of_the_cell_forgives_rounding() -> None:
    values = np.unique([n / d for d in (2, 3, 4, 6, 8, 12) for n in range(d)])
    frac = np.stack([values, values[::-1], np.roll(values, 3)], axis=1)
    numbers = np.arange(1, len(frac) + 1)
    hashes = {Structure.from_fractional(numbers, CUBE, frac + e).content_hash() for e in (-1e-11, 0.0, 1e-11)}
    assert len(hashes) == 1


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, False, False), (False, True, False)])
def test_ase_there_and_back(pbc: tuple[bool, bool, bool]) -> None:
    rng = np.random.default_rng(0)
    cell = np.where(np.array(pbc)[:, None], CUBE + rng.normal(0, 0.3, (3, 3)), 0.0)
    atoms = ase.Atoms("CuAuNi", positions=rng.random((3, 3)) * 3, cell=cell, pbc=pbc)
    structure = Structure.from_ase(atoms)
    back = structure.to_ase()
    assert (back.numbers == atoms.numbers).all()
    assert (back.pbc == atoms.pbc).all()
    assert np.allclose(back.get_all_distances(mic=True), atoms.get_all_distances(mic=True), rtol=0, atol=1e-12)
    assert Structure.from_ase(back).content_hash() == structure.content_hash()
    if not any(pbc):
        assert not back.cell.array.any()
        assert np.array_equal(structure.cell, np.eye(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], CUBE, np.zeros((0, 3))), "no atoms"),
        (([0], CUBE, [[0, 0, 0]]), "unknown element"),
        (([119], CUBE, [[0, 0, 0]]), "unknown element"),
        (([6], CUBE, [[0, np.nan, 0]]), "not finite"),
        (([6], CUBE + np.inf, [[0, 0, 0]]), "not finite"),
        (([6], np.zeros((3, 3)), [[0, 0, 0]]), "zero volume"),
        (([6], [[1, 0, 0], [0, 1, 0], [1, 1, 0]], [[0, 0, 0]]), "zero volume"),
        (([6, 7], CUBE, [[0, 0, 0]]), "coordinates for different numbers of atoms"),
    ],
)
def test_what_is_no_structure_says_why(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InvalidStructureError, match=message):
        Structure.from_fractional(*arguments)


def test_what_is_too_large_for_the_hash_is_refused() -> None:
    for x in (1e12, 2e12):
        with pytest.raises(InvalidStructureError, match="not finite"):
            Structure.from_cartesian([1, 1], [[0, 0, 0], [x, 0, 0]])
    with pytest.raises(InvalidStructureError, match="cell not finite or too large"):
        Structure.from_fractional([1], np.eye(3) * 1e10, [[0, 0, 0]])
