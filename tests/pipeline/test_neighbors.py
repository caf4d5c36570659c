"""Neighbour lists and tables, against ASE and against their own laws."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from ase.neighborlist import primitive_neighbor_list
from equiscreen.export.probes import probe_structures
from equiscreen.pipeline import GraphBlock, Structure, neighbor_list, neighbor_table
from equiscreen.pipeline.cif import structure_from_cif
from equiscreen.pipeline.errors import InvalidStructureError
from equiscreen.pipeline.neighbors import edge_keys
from equiscreen.pipeline.tables import size_buckets
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Structure as PymatgenStructure

from ..conftest import ELEMENTS


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    """Cells from tiny to large, from cubic to badly skewed, in any periodicity."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_atoms = draw(st.integers(1, 6))
    size = draw(st.floats(1.5, 9.0))
    cell = np.eye(3) * size + rng.normal(0, draw(st.floats(0, 0.6)) * size, (3, 3))
    edges = np.prod(np.linalg.norm(cell, axis=1))
    if abs(np.linalg.det(cell)) < 0.05 * edges:
        cell += np.eye(3) * 2 * size
    pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    return Structure.from_cartesian(rng.integers(1, 90, n_atoms), rng.random((n_atoms, 3)) @ cell, cell, pbc)


@settings(max_examples=150, deadline=None)
@given(structure=structures(), cutoff=st.floats(1.0, 6.0))
def test_pairs_are_those_of_ase(structure: Structure, cutoff: float) -> None:
    try:
        block = GraphBlock.from_structures([structure], cutoff)
    except InvalidStructureError:  # random atoms may fall on one another
        return
    vectors = block.displacements()
    i, j, image, distance = primitive_neighbor_list(
        "ijSd", structure.pbc, structure.cell, structure.positions, cutoff + 1e-6
    )
    sure = distance < cutoff - 1e-6  # finders may differ for a pair at the cutoff itself
    expected = {(int(a), int(b), *map(int, s)) for a, b, s in zip(i[sure], j[sure], image[sure], strict=True)}
    possible = {(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, image, strict=True)}
    found = {(int(a), int(b), *map(int, s)) for a, b, s in zip(block.receiver, block.sender, block.image, strict=True)}
    assert expected <= found <= possible
    assert len(found) == len(vectors)
    assert (np.linalg.norm(vectors, axis=1) < cutoff + 1e-9).all()


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
    within = np.linalg.norm(block.displacements(), axis=1) < cutoff * less
    assert (~padding).sum() == within.sum()
    assert np.array_equal(np.sort(vectors[~padding], axis=0), np.sort(block.displacements()[within], axis=0))


def test_keys_too_large_to_pack_are_ranked() -> None:
    rng = np.random.default_rng(0)
    receiver, sender = np.sort(rng.integers(0, 60_000, 500)), rng.integers(0, 60_000, 500)
    image = rng.integers(-30_000, 30_000, (500, 3))
    keys = edge_keys(receiver, image, sender, 60_000)
    by_key = np.argsort(keys, kind="stable")
    by_columns = np.lexsort((sender, *image.T[::-1], receiver))
    assert np.array_equal(by_key, by_columns)


def test_an_atom_sees_its_own_images() -> None:
    found = neighbor_list(Structure.from_fractional([29], np.eye(3) * 2.0, [[0.5, 0.5, 0.5]]), 2.1)
    assert found.n_neighbors.tolist() == [6]
    assert found.image.tolist() == [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_two_atoms_at_one_place_are_refused() -> None:
    structure = Structure.from_fractional([29, 29], np.eye(3) * 4, [[0.999999, 0, 0], [0.0, 0, 0]])
    with pytest.raises(InvalidStructureError, match=r"atoms \d and \d at one place"):
        neighbor_list(structure, 3.0)


@given(slots=st.integers(1, 2000))
@settings(deadline=None, max_examples=30)
def test_buckets_hold_every_structure_once_and_keep_to_the_limit(slots: int) -> None:
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 30, seed=1), 4.0)
    groups = list(size_buckets(block, slots))
    assert sorted(np.concatenate(groups).tolist()) == list(range(30))
    for group in groups:
        size = int(block.n_atoms[group].sum() * max(1, block.max_neighbors[group].max()))
        assert size <= slots or len(group) == 1


@pytest.mark.slow
def test_pairs_of_real_crystals_are_those_of_pymatgen(data: Path) -> None:
    with gzip.open(data / "mp/mp_20_val.csv.gz", "rt") as file:
        rows = [row["cif"] for _, row in zip(range(500), csv.DictReader(file), strict=False)]
    for cif in rows:
        block = GraphBlock.from_structures([structure_from_cif(cif)[0]], 5.0)
        near = np.abs(np.linalg.norm(block.displacements(), axis=1) - 5.0) < 1e-6
        _, _, _, distance = PymatgenStructure.from_str(cif, "cif").get_neighbor_list(5.0)
        theirs = int((np.abs(distance - 5.0) >= 1e-6).sum())
        assert int((~near).sum()) == theirs
