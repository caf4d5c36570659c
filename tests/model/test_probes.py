"""Structures on which networks are tested look like their training data."""

from __future__ import annotations

import numpy as np
import pytest
from equiscreen.model.probes import ProbeSource
from equiscreen.model.statistics import GeometryStatistics
from equiscreen.pipeline import GraphBlock
from equiscreen.pipeline.structures.elements import pair_name, pair_numbers
from hypothesis import given, settings
from hypothesis import strategies as st

CUTOFF = 5.0


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, ...], GeometryStatistics]:
    """Elements, of which each is a neighbour of itself or of another, and statistics of structures of them."""
    elements = tuple(sorted(draw(st.sets(st.integers(1, 94), min_size=1, max_size=4))))
    known = {
        pair_name(a, b): draw(st.floats(0.7, 4.0))
        for a in elements
        for b in elements
        if a <= b and (a == b or draw(st.booleans()))
    }
    crystals = draw(st.sampled_from([0.0, 0.5, 1.0]))
    volume = draw(st.floats(4.0, 40.0)) if crystals else None
    return elements, GeometryStatistics(known, volume, crystals, draw(st.integers(2, 40)))


@given(known=geometries(), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_no_atoms_are_much_closer_than_in_the_training_data(
    known: tuple[tuple[int, ...], GeometryStatistics], seed: int
) -> None:
    elements, geometry = known
    structures = ProbeSource.of(elements, CUTOFF, geometry).structures(6, seed)
    assert sum(s.pbc.all() for s in structures) == 6 * geometry.crystals
    assert {int(z) for s in structures for z in s.atomic_number} <= {*elements}
    block = GraphBlock.from_structures(structures, CUTOFF)
    lengths = np.linalg.norm(block.displacements(), axis=1)
    for receiver, sender, length in zip(block.receiver, block.sender, lengths, strict=True):
        pair = pair_name(int(block.atomic_number[receiver]), int(block.atomic_number[sender]))
        # Jitter and shear move two atoms towards each other by a quarter at most.
        assert length > 0.75 * geometry.minimum_distances.get(pair, 0.9 * CUTOFF)


def test_probes_are_the_same_every_time() -> None:
    one, other = (ProbeSource.of((8, 26), CUTOFF, None).structures(5, 3) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.positions, b.positions)
        assert np.array_equal(a.atomic_number, b.atomic_number)


@pytest.mark.parametrize("pair", ["H-H", "Na-Cl", "C-O"])
def test_names_of_pairs_are_read_back(pair: str) -> None:
    assert pair_name(*pair_numbers(pair)) == pair == pair_name(*reversed(pair_numbers(pair)))
