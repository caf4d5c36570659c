"""Splits are disjoint, complete and reproducible, and keep groups together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from equiscreen.model.config.training import SplitConfig
from equiscreen.model.data.splits import Split, split_structures
from equiscreen.pipeline import GraphStore
from equiscreen.pipeline.errors import ConfigError, StoreError
from equiscreen.pipeline.structures.random_crystals import probe_structures
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from .test_batches import labelled_images, store_of

KEYS = {"structure": None, "composition": None, "group": "family", "stratified": "family", "time": "date"}
SIZES = (60, 30)
shares = st.floats(0.05, 0.45)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphStore, GraphStore]:
    folder = tmp_path_factory.mktemp("splits")
    labels = ["energy=e[eV]"]
    return (
        store_of(folder / "0.zarr", labelled_images(SIZES[0], 10), labels),
        store_of(folder / "1.zarr", labelled_images(SIZES[1], 11), labels),
    )


def everything(stores: Sequence[GraphStore]) -> list[NDArray[np.bool_]]:
    return [np.ones(len(store), dtype=bool) for store in stores]


def joined(parts: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    return np.concatenate(list(parts))


def texts(stores: Sequence[GraphStore], name: str) -> NDArray[np.str_]:
    return np.array([text for store in stores for text in store.column(name).tolist()])


def formulas(stores: Sequence[GraphStore]) -> list[str]:
    blocks = [store.block(0, len(store)) for store in stores]
    structures = [block.structure(place) for block in blocks for place in range(len(block))]
    return [structure.to_ase().symbols.formula.reduce()[0].format("hill") for structure in structures]


@settings(deadline=None, max_examples=30)
@given(
    by=st.sampled_from(sorted(KEYS)),
    validation=shares,
    test=st.just(0.0) | shares,
    seed=st.integers(0, 99),
    left_out=st.sets(st.integers(0, sum(SIZES) - 1), max_size=40),
)
def test_parts_are_disjoint_and_complete(
    stores: tuple[GraphStore, GraphStore], by: str, validation: float, test: float, seed: int, left_out: set[int]
) -> None:
    usable = np.ones(sum(SIZES), dtype=bool)
    usable[sorted(left_out)] = False
    choices = np.split(usable, [SIZES[0]])
    config = SplitConfig(by=by, key=KEYS[by], validation=validation, test=test, seed=seed)
    split = split_structures(stores, choices, config)
    parts = np.stack([joined(part) for part in (split.training, split.validation, split.test)])
    assert np.array_equal(parts.sum(axis=0), usable)
    assert (parts.sum(axis=1) > 0).tolist() == [True, True, test > 0]
    if by in ("structure", "stratified"):
        wanted = [round(usable.sum() * share) for share in (validation, test)]
        assert parts[1:].sum(axis=1).tolist() == wanted
    again = split_structures(stores, choices, config)
    assert np.array_equal(joined(again.validation), parts[1])
    assert np.array_equal(joined(again.test), parts[2])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("by", ["composition", "group"])
def test_what_belongs_together_stays_together(stores: tuple[GraphStore, GraphStore], by: str, seed: int) -> None:
    split = split_structures(stores, everything(stores), SplitConfig(by=by, key=KEYS[by], test=0.2, seed=seed))
    values = np.array(formulas(stores)) if by == "composition" else texts(stores, "family")
    parts = [set(values[joined(part)]) for part in (split.training, split.validation, split.test)]
    assert sum(map(len, parts)) == len(set(values)) == len(set.union(*parts))
    if by == "composition":  # groups are small, so the target is met closely
        assert abs(int(joined(split.test).sum()) - 0.2 * sum(SIZES)) <= 2


def test_formulas_of_any_number_of_units_are_the_same(tmp_path: Path) -> None:
    images = [s.to_ase() for s in probe_structures([13], 4, seed=1)]
    images += [s.to_ase() for s in probe_structures([29], 4, seed=2)]
    store = store_of(tmp_path / "g.zarr", images, [], ())
    split = split_structures([store], everything([store]), SplitConfig(by="composition", validation=0.5))
    assert split.validation[0].tolist() in ([True] * 4 + [False] * 4, [False] * 4 + [True] * 4)


@pytest.mark.parametrize("seed", range(5))
def test_of_each_group_its_share_is_held_out(stores: tuple[GraphStore, GraphStore], seed: int) -> None:
    config = SplitConfig(by="stratified", key="family", validation=0.2, test=0.1, seed=seed)
    split = split_structures(stores, everything(stores), config)
    families = texts(stores, "family")
    for family, size in Counter(families.tolist()).items():
        of_it = families == family
        assert abs(np.count_nonzero(joined(split.test) & of_it) - 0.1 * size) < 1 + 1e-9
        assert abs(np.count_nonzero(joined(split.validation) & of_it) - 0.2 * size) < 2
    other = split_structures(stores, everything(stores), config.model_copy(update={"seed": seed + 1}))
    assert not np.array_equal(joined(other.validation), joined(split.validation))


@pytest.mark.parametrize(("key", "kind"), [("date", str), ("number", float)])
def test_what_is_validated_on_is_later(stores: tuple[GraphStore, GraphStore], key: str, kind: type) -> None:
    split = split_structures(stores, everything(stores), SplitConfig(by="time", key=key, validation=0.2, test=0.2))
    times = np.array([kind(text) for text in texts(stores, key).tolist()])
    training, validation, test = (times[joined(part)] for part in (split.training, split.validation, split.test))
    assert max(training.tolist()) < min(validation.tolist())
    assert max(validation.tolist()) < min(test.tolist())


def test_mistakes_are_named(stores: tuple[GraphStore, GraphStore], tmp_path: Path) -> None:
    usable = everything(stores)
    with pytest.raises(ConfigError, match=r"no column 'age' \(available: date, family, number, source\)"):
        split_structures(stores, usable, SplitConfig(by="group", key="age"))
    with pytest.raises(ConfigError, match="of 90 structures have no 'family'"):
        split_structures(stores, usable, SplitConfig(by="time", key="family"))
    two = [np.arange(len(store)) < 1 for store in stores]
    assert joined(split_structures(stores, two, SplitConfig()).validation).sum() == 1
    with pytest.raises(
        ConfigError,
        match=r"too few labelled structures \(2\): each part \(training, validation, test\) needs at least one",
    ):
        split_structures(stores, two, SplitConfig(test=0.1))
    with pytest.raises(
        ConfigError, match=r"too few values of 'source' \(1\): each part \(training, validation\) needs at least one"
    ):
        split_structures(stores[:1], usable[:1], SplitConfig(by="group", key="source"))
    (tmp_path / "split.npz").write_text("nothing")
    for name in ("split.npz", "none.npz"):
        with pytest.raises(StoreError, match="cannot be read as a split"):
            Split.load(tmp_path / name)


def test_a_split_is_read_as_it_was_written(stores: tuple[GraphStore, GraphStore], tmp_path: Path) -> None:
    split = split_structures(stores, everything(stores), SplitConfig(test=0.1))
    split.save(tmp_path / "split.npz")
    again = Split.load(tmp_path / "split.npz", stores)
    for part in ("training", "validation", "test"):
        assert all(map(np.array_equal, getattr(split, part), getattr(again, part)))
    rows = np.load(tmp_path / "split.npz")["validation_1"]
    assert np.array_equal(rows, np.flatnonzero(split.validation[1]))
    assert [path.name for path in tmp_path.iterdir()] == ["split.npz"]
    with pytest.raises(StoreError, match=r"belongs to stores with \[60, 30\] structures, not \[60\]"):
        Split.load(tmp_path / "split.npz", stores[:1])
