"""A pass over stores yields every structure once, in an order that depends on the seed; neighbour tables are exact."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from equiscreen.pipeline import GraphBlock, GraphStore, LabelMapping, Structure, featurize, neighbor_table
from equiscreen.pipeline.errors import InvalidStructureError, StoreError
from equiscreen.pipeline.store import epoch_reader as reading
from equiscreen.pipeline.store.epoch_reader import EpochReader, PlacedBlock, read_ahead
from equiscreen.pipeline.structures.random_crystals import probe_structures
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ...conftest import ELEMENTS, pymatgen_dict, write_extxyz, write_json

SIZES = (40, 23)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphStore, GraphStore]:
    """Two stores, the second with a band gap and without forces."""
    folder = tmp_path_factory.mktemp("reading")
    first = write_extxyz(folder / "0.extxyz", SIZES[0])
    featurize(first, folder / "0.zarr", cutoff=4.0, scheduler="threads")
    crystals = probe_structures(ELEMENTS, SIZES[1], seed=1)
    records = [{"structure": pymatgen_dict(s), "e": place, "gap": 0.1} for place, s in enumerate(crystals)]
    featurize(
        write_json(folder / "1.json", records),
        folder / "1.zarr",
        cutoff=4.0,
        labels=LabelMapping().with_inline(["energy=e[eV]", "gap=gap[eV]"]),
        scheduler="threads",
    )
    return GraphStore(folder / "0.zarr"), GraphStore(folder / "1.zarr")


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many runs and windows in a small store."""
    monkeypatch.setattr(reading, "RUN_EDGES", 700)
    monkeypatch.setattr(reading, "RUN_STRUCTURES", 5)
    monkeypatch.setattr(reading, "WINDOW_RUNS", 3)
    monkeypatch.setattr(reading, "SORTED_BATCHES", 2)


def places(pieces: Iterator[PlacedBlock]) -> list[list[tuple[int, int]]]:
    return [list(zip(rows.store.tolist(), rows.row.tolist(), strict=True)) for rows in pieces]


@settings(deadline=None, max_examples=12)
@given(
    chosen=st.tuples(*(st.lists(st.booleans(), min_size=n, max_size=n) for n in SIZES)),
    shuffle=st.none() | st.tuples(st.integers(0, 2**40), st.integers(0, 99)),
    size=st.integers(1, 30),
    by_slots=st.booleans(),
)
def test_every_chosen_structure_comes_once(
    stores: tuple[GraphStore, GraphStore],
    chosen: tuple[list[bool], ...],
    shuffle: tuple[int, int] | None,
    size: int,
    by_slots: bool,
) -> None:
    wanted = [np.array(some) for some in chosen]
    expected = [(store, int(row)) for store, some in enumerate(wanted) for row in np.flatnonzero(some)]
    reader = EpochReader(stores, wanted, shuffle=shuffle, ahead=0)
    assert len(reader) == len(expected)
    blocks = places(reader.blocks(size))
    assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    in_blocks = [place for block in blocks for place in block]
    assert sorted(in_blocks) == expected
    if shuffle is None:
        assert in_blocks == expected
    batches = list(reader.batches(slots=100 * size) if by_slots else reader.batches(structures=size))
    assert sorted(place for batch in places(iter(batches)) for place in batch) == expected
    for rows in batches:
        slots = len(rows.block.atomic_number) * max(1, int(rows.block.max_neighbors.max()))
        assert len(rows) == 1 or (slots <= 100 * size if by_slots else len(rows) <= size)
    if not by_slots:
        assert len(batches) == -(-len(expected) // size)


def test_what_is_read_is_what_stands_in_the_stores(stores: tuple[GraphStore, GraphStore]) -> None:
    for rows in EpochReader(stores, shuffle=(3, 1)).blocks(7):
        for place, (store, row) in enumerate(zip(rows.store.tolist(), rows.row.tolist(), strict=True)):
            found, alone = rows.block.take([place]), stores[store].block(row, row + 1)
            assert np.array_equal(found.displacements(), alone.displacements())
            assert found.structure_labels["energy"] == alone.structure_labels["energy"]
            absent = np.full((len(alone.atomic_number), 3), np.nan)
            forces = alone.atom_labels.get("forces", absent)
            assert np.array_equal(found.atom_labels["forces"], forces, equal_nan=True)


def test_the_order_depends_on_seed_and_epoch_and_not_on_reading_ahead(stores: tuple[GraphStore, GraphStore]) -> None:
    def order(shuffle: tuple[int, int], ahead: int) -> list[list[tuple[int, int]]]:
        return places(EpochReader(stores, shuffle=shuffle, ahead=ahead).batches(structures=4))

    once = order((0, 1), 0)
    assert all(order((0, 1), ahead) == once for ahead in (1, 3, 50))
    assert sorted(map(sorted, once)) != sorted(map(sorted, order((0, 2), 1)))
    assert order((1, 1), 1) != once


def test_structures_from_everywhere_are_mixed(
    stores: tuple[GraphStore, GraphStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "WINDOW_RUNS", 1000)
    first = [next(EpochReader([stores[0]], shuffle=(0, epoch)).blocks(20)).row for epoch in range(12)]
    assert set(np.concatenate(first).tolist()) == set(range(SIZES[0]))
    assert all(np.ptp(rows) > SIZES[0] / 2 and (np.diff(rows) < 0).any() for rows in first)


def test_only_labels_that_are_asked_for_come_along(stores: tuple[GraphStore, GraphStore]) -> None:
    rows = next(EpochReader(stores, labels=["energy"]).blocks(3))
    assert list(rows.block.structure_labels) == ["energy"]
    assert not rows.block.atom_labels
    everything = next(EpochReader(stores).blocks(3)).block
    assert {*everything.structure_labels} == {"energy", "gap", "stress"}
    assert np.isnan(everything.structure_labels["gap"]).all()
    assert not next(EpochReader(stores, labels=False).blocks(3)).block.structure_labels


@pytest.mark.parametrize("label", ["gap=energy[meV]", "gap=energy"])
def test_labels_in_different_units_are_not_mixed(
    stores: tuple[GraphStore, GraphStore], tmp_path: Path, label: str
) -> None:
    labels = LabelMapping().with_inline([label])
    featurize(write_extxyz(tmp_path / "s.extxyz", 3), tmp_path / "g.zarr", labels=labels, scheduler="threads")
    others = [*stores, GraphStore(tmp_path / "g.zarr")]
    with pytest.raises(StoreError, match="the label 'gap' differs"):
        EpochReader(others)
    assert len(EpochReader(others, labels=["energy"])) == sum(SIZES) + 3


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("equiscreen-reading")]


def test_a_caller_that_stops_early_leaves_no_thread(stores: tuple[GraphStore, GraphStore]) -> None:
    batches = EpochReader(stores, shuffle=(0, 0), ahead=2).batches(structures=2)
    next(batches)
    assert reading_threads()
    batches.close()  # type: ignore[attr-defined] - it is a generator
    assert not reading_threads()
    with pytest.raises(KeyError):  # noqa: PT012 - the body of the loop raises the error
        for _ in EpochReader(stores, shuffle=(0, 0), ahead=2).blocks(2):
            raise KeyError
    assert not reading_threads()


@pytest.mark.parametrize("ahead", [0, 2])
def test_damage_is_an_error_where_the_blocks_are_used(tmp_path: Path, ahead: int) -> None:
    featurize(write_extxyz(tmp_path / "s.extxyz", 20), tmp_path / "g.zarr", cutoff=4.0, scheduler="threads")
    shard = next(path for path in (tmp_path / "g.zarr/image/c").rglob("*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0x10
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="'image' is damaged"):
        list(EpochReader([GraphStore(tmp_path / "g.zarr")], ahead=ahead).blocks())
    assert not reading_threads()


def test_an_error_comes_after_what_was_read_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise OSError("gone")

    seen = []
    with pytest.raises(OSError, match="gone"):  # noqa: PT012 - the loop raises the error
        for item in read_ahead(items(), 2, threading.Event()):
            seen.append(item)  # noqa: PERF402 - keeps the items before the error
    assert seen == [0, 1, 2]


def test_no_more_is_read_ahead_than_asked_for() -> None:
    made = []
    barrier = threading.Event()

    def items() -> Iterator[int]:
        for item in range(10):
            made.append(item)
            yield item
            barrier.set()

    ahead = read_ahead(items(), 2, threading.Event())
    next(ahead)
    barrier.wait(5)
    assert len(made) <= 3
    ahead.close()  # type: ignore[attr-defined] - it is a generator


def test_choices_have_to_fit(stores: tuple[GraphStore, GraphStore]) -> None:
    with pytest.raises(ValueError, match="length 3, but the store has 40 structures"):
        EpochReader(stores, [np.ones(3, dtype=bool), np.ones(SIZES[1], dtype=bool)])
    with pytest.raises(ValueError, match="exactly one of `structures` and `slots`"):
        EpochReader(stores).batches()


def test_taking_runs_is_taking(stores: tuple[GraphStore, GraphStore]) -> None:
    block = stores[0].block(0, SIZES[0])
    for rows in ([], [7], [5, 2, 5, 39]):
        found = block.take(rows)
        expected = GraphBlock.concatenate([block.take([]), *(stores[0].block(row, row + 1) for row in rows)])
        assert np.array_equal(found.displacements(), expected.displacements())
        assert np.array_equal(found.atom_labels["forces"], expected.atom_labels["forces"])
        assert np.array_equal(found.structure_labels["stress"], expected.structure_labels["stress"])
        assert found.neighbor.dtype == np.uint16


def by_definition(block: GraphBlock, cutoff: float, slots: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vectors and flat places of the reverse edges, edge by edge, from `GraphBlock.displacements`."""
    vectors = np.full((len(block.atomic_number), slots, 3), [2 * cutoff, 0.0, 0.0])
    reverse = np.arange(len(block.atomic_number) * slots)
    filled = np.zeros(len(block.atomic_number), dtype=int)
    flat = {}
    displacements = block.displacements()
    edges = list(zip(block.receiver.tolist(), block.sender.tolist(), block.image.tolist(), strict=True))
    for (i, j, image), vector in zip(edges, displacements, strict=True):
        if (vector * vector).sum() < cutoff * cutoff:
            vectors[i, filled[i]] = vector
            flat[i, j, *image] = i * slots + filled[i]
            filled[i] += 1
    for (i, j, a, b, c), place in flat.items():
        reverse[place] = flat[j, i, -a, -b, -c]
    return vectors, reverse


@st.composite
def graphs(draw: st.DrawFn) -> tuple[GraphBlock, float]:
    """A few structures in skewed cells of any periodicity, with pairs at symmetric places, and a cutoff."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    some = []
    for _ in range(draw(st.integers(1, 3))):
        cell = np.eye(3) * draw(st.floats(2.0, 6.0)) + rng.normal(0, draw(st.floats(0, 0.8)), (3, 3))
        frac = np.round(rng.random((draw(st.integers(1, 5)), 3)), draw(st.integers(1, 12)))
        pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
        some.append(Structure.from_cartesian(rng.integers(1, 90, len(frac)), frac @ cell, cell, pbc))
    cutoff = draw(st.floats(1.0, 5.0))
    return GraphBlock.from_structures(some, cutoff), cutoff * draw(st.floats(0.5, 1.0))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64]))
def test_tables_hold_the_displacements_to_the_last_bit(data: st.DataObject, dtype: type[np.floating]) -> None:
    try:
        block, cutoff = data.draw(graphs())
    except InvalidStructureError:  # random atoms may coincide
        return
    table = neighbor_table(block, cutoff, dtype)
    vectors, reverse = by_definition(block, cutoff, table.neighbors.shape[1])
    assert table.vectors.dtype == dtype
    assert table.vectors.tobytes() == vectors.astype(dtype).tobytes()  # the sign of a zero counts too
    assert np.array_equal(table.reverse.reshape(-1), reverse)
    own = np.repeat(np.arange(len(block.atomic_number)), table.neighbors.shape[1])
    assert np.array_equal(own[reverse], table.neighbors.reshape(-1))
    real = reverse != np.arange(len(reverse))
    flat = table.vectors.reshape(-1, 3)
    assert np.array_equal(flat[reverse][real], -flat[real])


def test_a_block_of_nothing_has_a_table() -> None:
    empty = GraphBlock.from_structures([], 4.0)
    assert neighbor_table(empty, 4.0).vectors.shape == (0, 1, 3)
    atom = GraphBlock.from_structures([Structure.from_cartesian([6], [[0, 0, 0]])], 4.0)
    assert neighbor_table(atom, 4.0).vectors.tolist() == [[[8.0, 0.0, 0.0]]]


@pytest.mark.parametrize("damage", ["neighbor", "image", "n_neighbors", "n_edges", "order", "missing"])
def test_a_graph_that_is_none_is_an_error(damage: str) -> None:
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 3, seed=2), 4.0)
    values = {name: getattr(block, name).copy() for name in ("neighbor", "image", "n_neighbors", "n_edges")}
    if damage == "neighbor":
        values["neighbor"][0] = 60_000
    elif damage == "image":
        values["image"][0] += 100
        values["image"][1] -= 100
        values["image"][2:5] = 0
    elif damage == "n_neighbors":
        values["n_neighbors"][0] += 1
    elif damage == "n_edges":
        values["n_edges"][:2] += np.array([1, -1], dtype=np.int32)
    elif damage == "order":
        first = int(block.n_neighbors[0])
        values["image"][:first] = values["image"][:first][::-1].copy()
        values["neighbor"][:first] = values["neighbor"][:first][::-1].copy()
    else:
        values["neighbor"] = values["neighbor"][:-1]
    with pytest.raises(InvalidStructureError):
        neighbor_table(replace(block, **values), 4.0)
