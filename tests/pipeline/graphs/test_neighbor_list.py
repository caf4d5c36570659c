"""Neighbour lists and padded tables, compared with ASE and pymatgen and tested against their own laws."""

from __future__ import annotations

import csv
import gzip
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.neighborlist import primitive_neighbor_list
from equiscreen.pipeline import GraphBlock, Structure, neighbor_list, neighbor_table
from equiscreen.pipeline.errors import InvalidStructureError
from equiscreen.pipeline.graphs.neighbor_table import UNIFORM_ATOMS, evaluation_groups, table_widths
from equiscreen.pipeline.readers.cif import structure_from_cif
from equiscreen.pipeline.structures.random_crystals import probe_structures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pymatgen.optimization.neighbors import find_points_in_spheres

from ...conftest import ELEMENTS


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    """Cells from tiny to large and from cubic to badly skewed, of any periodicity, with one atom or several."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.one_of(st.floats(0.8, 2.0), st.floats(2.0, 9.0), st.floats(9.0, 60.0)))
    n_atoms = draw(st.integers(1, 1 if size < 2 else 12))
    cell = np.eye(3) * size + rng.normal(0, draw(st.floats(0, 0.6)) * size, (3, 3))
    edges = np.prod(np.linalg.norm(cell, axis=1))
    if abs(np.linalg.det(cell)) < 0.05 * edges:
        cell += np.eye(3) * 2 * size
    pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    return Structure.from_cartesian(rng.integers(1, 90, n_atoms), rng.random((n_atoms, 3)) @ cell, cell, pbc)


Edge = tuple[int, int, int, int, int]


def edges_of_ase(structure: Structure, cutoff: float) -> tuple[list[Edge], NDArray[np.float64]]:
    i, j, image, distance = primitive_neighbor_list(
        "ijSd", structure.pbc, structure.cell, structure.positions, cutoff + 1e-6
    )
    return list(zip(i.tolist(), j.tolist(), *image.T.tolist(), strict=True)), distance


def edges_of_pymatgen(structure: Structure, cutoff: float) -> tuple[list[Edge], NDArray[np.float64]]:
    positions, cell = np.ascontiguousarray(structure.positions), np.ascontiguousarray(structure.cell)
    i, j, image, distance = find_points_in_spheres(
        positions, positions, cutoff + 1e-6, structure.pbc.astype(np.int64), cell, 1e-8
    )
    others = distance > 1e-8
    image = np.rint(image).astype(int)[others]
    return list(zip(i[others].tolist(), j[others].tolist(), *image.T.tolist(), strict=True)), distance[others]


def assert_same_pairs(structure: Structure, cutoff: float) -> None:
    """Check that all pairs are found and no others, except at the cutoff itself, where implementations may differ."""
    block = GraphBlock.from_structures([structure], cutoff)
    found = list(zip(block.receiver.tolist(), block.sender.tolist(), *block.image.T.tolist(), strict=True))
    assert len(set(found)) == len(found)
    assert found == sorted(found, key=lambda edge: (edge[0], *edge[2:], edge[1]))
    assert {(j, i, -a, -b, -c) for i, j, a, b, c in found} == set(found)
    for finder in (edges_of_ase, edges_of_pymatgen):
        possible, distance = finder(structure, cutoff)
        sure = {edge for edge, d in zip(possible, distance, strict=True) if d < cutoff - 1e-6}
        assert sure <= set(found) <= set(possible), finder.__name__
    assert (np.linalg.norm(block.displacements(), axis=1) < cutoff).all()


def check_random_pairs(structure: Structure, cutoff: float) -> None:
    try:
        neighbor_list(structure, cutoff)
    except InvalidStructureError as error:
        if "overlapping atoms" not in str(error):  # random atoms may overlap
            raise
        return
    assert_same_pairs(structure, cutoff)


@settings(max_examples=150, deadline=None)
@given(structure=structures(), cutoff=st.floats(1.0, 6.0))
def test_pairs_are_those_of_ase_and_pymatgen(structure: Structure, cutoff: float) -> None:
    check_random_pairs(structure, cutoff)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(structure=structures(), cutoff=st.floats(1.0, 6.0))
def test_pairs_of_2000_random_cells(structure: Structure, cutoff: float) -> None:
    check_random_pairs(structure, cutoff)


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 0, 1), (0, 0, 0)])
def test_pairs_of_many_atoms_which_are_searched_in_bins(pbc: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(4)
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat((5, 4, 3))
    atoms.rattle(0.2, rng=rng)
    atoms.pbc = pbc
    cell = atoms.cell.array @ (np.eye(3) + 0.2 * np.tri(3, k=-1))
    atoms.set_cell(cell, scale_atoms=True)
    assert_same_pairs(Structure.from_ase(atoms[rng.permutation(len(atoms))]), 5.0)


def test_limits_of_a_graph() -> None:
    dense = Structure.from_fractional([1], np.eye(3), [[0, 0, 0]])
    with pytest.raises(InvalidStructureError, match=r"too many edges \(more than 100; reduce the cutoff\)"):
        neighbor_list(dense, 5.0, max_edges=100)
    with pytest.raises(InvalidStructureError, match="too many neighbours of one atom"):
        neighbor_list(dense, 26.0)
    cell = np.array([[1.0, 0, 0], [0, 100.0, 0], [33_000.0, 0, 0.9]])  # c - 33,000 a is as short as 0.9
    skewed = Structure(np.ones(1, np.uint8), cell, np.zeros((1, 3)), np.ones(3, bool))
    with pytest.raises(InvalidStructureError, match="lattice image index above 32767"):
        neighbor_list(skewed, 0.905)


@settings(max_examples=100, deadline=None)
@given(some=st.lists(structures(), min_size=1, max_size=4), cutoff=st.floats(1.0, 5.0), less=st.floats(0.5, 1.0))
def test_table_is_symmetric_and_padded(some: list[Structure], cutoff: float, less: float) -> None:
    try:
        block = GraphBlock.from_structures(some, cutoff)
    except InvalidStructureError:
        return
    table = neighbor_table(block, cutoff * less, np.float64)
    n, k = table.neighbors.shape
    vectors, reverse = table.vectors.reshape(-1, 3), table.reverse.reshape(-1)
    own = np.repeat(np.arange(n), k)
    padding = vectors[:, 0] == 2 * cutoff * less
    assert np.array_equal(reverse[reverse], np.arange(n * k))
    assert np.array_equal(own[reverse], table.neighbors.reshape(-1))
    assert np.array_equal(vectors[reverse][~padding], -vectors[~padding])
    assert np.array_equal(reverse[padding], np.flatnonzero(padding))
    assert np.array_equal(table.neighbors.reshape(-1)[padding], own[padding])
    # Each edge and its opposite form one pair, and all padding slots form another.
    pair = table.pair.reshape(-1)
    assert np.array_equal(pair[reverse], pair)
    assert np.array_equal(pair[table.pair_slot], np.arange(len(table.pair_slot)))
    assert np.bincount(pair[~padding]).tolist() == [2] * ((~padding).sum() // 2)
    assert (pair[padding] == (~padding).sum() // 2).all()
    within = np.linalg.norm(block.displacements(), axis=1) < cutoff * less
    assert (~padding).sum() == within.sum()
    assert np.array_equal(np.sort(vectors[~padding], axis=0), np.sort(block.displacements()[within], axis=0))


def test_an_atom_sees_its_own_images() -> None:
    found = neighbor_list(Structure.from_fractional([29], np.eye(3) * 2.0, [[0.5, 0.5, 0.5]]), 2.1)
    assert found.n_neighbors.tolist() == [6]
    assert found.image.tolist() == [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_two_atoms_at_one_place_are_refused() -> None:
    structure = Structure.from_fractional([29, 29], np.eye(3) * 4, [[0.999999, 0, 0], [0.0, 0, 0]])
    with pytest.raises(InvalidStructureError, match=r"overlapping atoms \(atoms 0 and 1"):
        neighbor_list(structure, 3.0)


@given(slots=st.integers(1, 2000))
@settings(deadline=None, max_examples=30)
def test_buckets_hold_every_structure_once_and_keep_to_the_limit(slots: int) -> None:
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 30, seed=1), 4.0)
    widths = table_widths(block, 4.0)
    assert (widths >= np.maximum(2, block.max_neighbors)).all()
    groups = list(evaluation_groups(block, 4.0, slots))
    assert sorted(np.concatenate([rows for rows, _ in groups]).tolist()) == list(range(30))
    for rows, width in groups:
        assert (widths[rows] == width).all()
        atoms = int(block.n_atoms[rows].sum())
        assert (atoms * width <= slots and atoms <= UNIFORM_ATOMS) or len(rows) == 1


@pytest.mark.slow
def test_pairs_of_real_crystals(data: Path) -> None:
    with gzip.open(data / "mp/mp_20_val.csv.gz", "rt") as file:
        texts = [row["cif"] for row in islice(csv.DictReader(file), 500)]
    assert len(texts) == 500
    for text in texts:
        assert_same_pairs(structure_from_cif(text)[0], 5.0)
