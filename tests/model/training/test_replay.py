"""Replay: what a checkpoint knows of an older domain survives fine-tuning, and runs with replay resume and repeat."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equiscreen.conformance.laws import evaluate
from equiscreen.model import Config, TrainingReport, load_checkpoint, repeat, train
from equiscreen.model.config.training import FINE_TUNING_DEFAULTS, REPLAY_DEFAULTS, TrainingConfig
from equiscreen.model.data.replay import REPLAY_STORE, Replay
from equiscreen.model.data.training_data import open_stores
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.training.lightning_module import TrainingModule
from equiscreen.model.training.train import make_recipe
from equiscreen.pipeline import GraphStore
from equiscreen.pipeline.errors import ConfigError, OutputExistsError, StoreError
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ...conftest import ELEMENTS
from ..conftest import interrupted_after, small_config
from ..labelled import images, stored

TINY = {"hidden_irreps": "4x0e + 2x1o", "n_radial": 2, "correlation": 2}
NEW = (29, 47)


@pytest.fixture(scope="module")
def start(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on alloys of three metals."""
    run = tmp_path_factory.mktemp("start") / "run"
    train(store, run, small_config(TINY, max_epochs=10))
    return run


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graph store of alloys with an element that the checkpoint does not know."""
    folder = tmp_path_factory.mktemp("new")
    return stored(folder / "g.zarr", images(probe_structures(NEW, 24, seed=90, max_atoms=8), emt=True))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graph store of alloys as the checkpoint knows them, without labels."""
    folder = tmp_path_factory.mktemp("old")
    return stored(folder / "g.zarr", images(probe_structures(ELEMENTS, 40, seed=97, max_atoms=8)))


def settings(start: Path, replayed: Path | None, *, fine_tune: dict[str, Any] | None = None, **training: Any) -> Config:
    keys = {"checkpoint": str(start), "replay_fraction": 1.0, **(fine_tune or {})}
    if replayed is not None:
        keys["replay"] = str(replayed)
    return small_config(**{"max_epochs": 2, "batch_size": 4, **training}, fine_tune=keys)


def assert_equal(a: Path, b: Path) -> None:
    first, second = (load_checkpoint(run / "model.ckpt")[0].state_dict() for run in (a, b))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def replayed(run: Path) -> Replay:
    store = GraphStore(run / REPLAY_STORE)
    return Replay(store, int(store.attrs["replay"]["n_training"]))


# --- defaults ---------------------------------------------------------------------------------------------------------


def test_fine_tuning_has_defaults_of_its_own(store: Path, start: Path) -> None:
    config = Config.parse({"training": {"learning_rate": 0.5}}, "test").starting_from(start)
    training = make_recipe(open_stores(store), config, None).config.training
    assert training.learning_rate == 0.5
    given = {"learning_rate": 0.5, "relative_rate": False}  # a rate that is given is not relative
    for name, value in FINE_TUNING_DEFAULTS.items():
        assert getattr(training, name) == given.get(name, value)
        assert getattr(TrainingConfig(), name) != value
    unset = make_recipe(open_stores(store), Config().starting_from(start), None).config.training
    assert {name: getattr(unset, name) for name in FINE_TUNING_DEFAULTS} == FINE_TUNING_DEFAULTS
    assert training.with_defaults_of_task() == training
    replaying = make_recipe(open_stores(store), Config().starting_from(start).replaying(store), None).config.training
    expected = {**FINE_TUNING_DEFAULTS, **REPLAY_DEFAULTS}
    assert {name: getattr(replaying, name) for name in FINE_TUNING_DEFAULTS} == expected
    scratch = make_recipe(open_stores(store), Config(), None).config.training
    assert scratch == TrainingConfig()


def test_a_run_folder_holds_the_values_that_were_used(store: Path, start: Path, tmp_path: Path) -> None:
    keys = {"split": {"validation": 0.25}, "threads": 1, "max_epochs": 1}
    config = Config.parse({"training": keys}, "test").starting_from(start)
    train(store, tmp_path / "run", config, limit=12)
    written = Config.load(tmp_path / "run" / "config.yaml").training
    assert written.learning_rate == FINE_TUNING_DEFAULTS["learning_rate"]
    assert written.max_epochs == 1
    repeat(tmp_path / "run", tmp_path / "again")
    assert_equal(tmp_path / "run", tmp_path / "again")


# --- replay -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_replayed_is_remembered(new: Path, old: Path, start: Path, tmp_path: Path) -> None:
    unknown = probe_structures(ELEMENTS, 20, seed=98, max_atoms=8)
    before = evaluate(TorchPotential(load_checkpoint(start / "model.ckpt")[0]), unknown)
    moved = {}
    for name, source in (("plain", None), ("replay", old)):
        keep = {"references": "keep", "replay_fraction": 1.5}
        config = settings(start, source, fine_tune=keep, max_epochs=12, learning_rate=0.01)
        report = train(new, tmp_path / name, config)
        after = evaluate(TorchPotential(load_checkpoint(report.checkpoint)[0]), unknown)
        moved[name] = float(np.abs(after.forces - before.forces).mean())
        assert report.validation["forces"] < report.before["forces"]
    assert moved["replay"] < 0.5 * moved["plain"]


def test_the_sample_is_that_of_the_settings_and_labelled_by_the_untuned_network(
    new: Path, old: Path, start: Path, tmp_path: Path
) -> None:
    keys = {"references": "keep", "replay_fraction": 0.5, "replay_rattle": 0.0}
    report = train(new, tmp_path / "run", settings(start, old, fine_tune=keys, max_epochs=1))
    sample, source = replayed(tmp_path / "run"), GraphStore(old)
    assert (report.n_training, report.n_replayed, report.n_held_out) == (18, 9, 8)
    assert (sample.n_training, sample.n_held_out) == (9, 8)
    rows = sample.store.column("source_index")
    assert len(set(rows.tolist())) == 17
    block = sample.store.block(0, 17)
    found = TorchPotential(load_checkpoint(start / "model.ckpt")[0]).evaluate(block)
    assert np.allclose(block.structure_labels["energy"], found.energy, rtol=0, atol=1e-4)
    assert np.allclose(block.atom_labels["forces"], found.forces, rtol=0, atol=1e-4)
    assert np.allclose(block.structure_labels["stress"], found.stress, rtol=0, atol=1e-6, equal_nan=True)
    hashes = source.column("structure_hash")[rows]
    same = (hashes == sample.store.column("structure_hash")).all(axis=1)
    assert same.mean() > 0.9  # coordinates that were converted may round to another hash
    # The split of the new data does not mention them.
    assert np.load(tmp_path / "run" / "split.npz")["n_structures"].tolist() == [24]


def test_replayed_atoms_are_rattled_and_another_seed_draws_other_ones(
    new: Path, old: Path, start: Path, tmp_path: Path
) -> None:
    rows = []
    for seed in (0, 1):
        split = {"validation": 0.25, "seed": seed}
        train(new, tmp_path / str(seed), settings(start, old, max_epochs=1, split=split))
        store = replayed(tmp_path / str(seed)).store
        rows.append(store.column("source_index").tolist())
        sources = GraphStore(old).column("structure_hash")[rows[-1]]
        assert not (sources == store.column("structure_hash")).all(axis=1).any()
    assert rows[0] != rows[1]


def test_the_summary_tells_both_domains(new: Path, old: Path, start: Path, tmp_path: Path) -> None:
    report = train(new, tmp_path / "run", settings(start, old))
    text = str(report)
    assert "epochs on 18 structures and 18 replayed structures in" in text
    assert re.search(r" \(before fine-tuning: energy [\d.e-]+ eV/atom, forces", text)
    assert re.search(r"mean change on 8 replayed structures that were held out: energy [\d.e-]+ eV/atom, forces", text)
    assert report.drift.keys() == report.before.keys() == {"energy", "forces", "stress"}
    plain = train(new, tmp_path / "plain", settings(start, None))
    before, after = (load_checkpoint(run / "model.ckpt")[0] for run in (start, tmp_path / "run"))
    for element in (13, 79):  # which the new structures do not have
        rows = [network.embedding.weight[network.elements.index(element)] for network in (before, after)]
        assert torch.equal(*rows)
    assert not plain.drift
    assert plain.before == report.before  # of the network before its first step
    assert "replayed" not in str(plain)


def test_a_run_with_replay_resumes_to_the_bit(new: Path, old: Path, start: Path, tmp_path: Path) -> None:
    config = settings(start, old, checkpoint_minutes=1e-9, max_epochs=3)
    whole = train(new, tmp_path / "whole", config)
    with interrupted_after(13):  # in the middle of the second epoch, of 9 batches
        train(new, tmp_path / "run", config)
    labels = (tmp_path / "run" / REPLAY_STORE / "zarr.json").stat().st_mtime_ns
    report = train(new, tmp_path / "run", config)
    assert (tmp_path / "run" / REPLAY_STORE / "zarr.json").stat().st_mtime_ns == labels  # written once
    assert_equal(tmp_path / "run", tmp_path / "whole")
    assert (report.validation, report.before, report.drift) == (whole.validation, whole.before, whole.drift)


def test_a_run_with_replay_is_repeated_from_its_folder(new: Path, old: Path, start: Path, tmp_path: Path) -> None:
    source = shutil.copytree(old, tmp_path / "old.zarr")
    first = train(new, tmp_path / "run", settings(start, source))
    again = repeat(tmp_path / "run", tmp_path / "again")
    assert isinstance(again, TrainingReport)
    assert_equal(tmp_path / "run", tmp_path / "again")
    assert again.drift == first.drift
    shutil.rmtree(source)
    shutil.copytree(new, source)
    with pytest.raises(ConfigError, match=r"old\.zarr is not the store that .*run replayed: its content has changed"):
        repeat(tmp_path / "run", tmp_path / "third")


# --- bad input --------------------------------------------------------------------------------------------------------


def test_replay_requires_a_checkpoint(new: Path, old: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"replay requires a checkpoint.*`--from`"):
        train(new, tmp_path / "run", small_config().replaying(old))


def test_a_store_that_cannot_be_replayed_is_told(new: Path, start: Path, tmp_path: Path) -> None:
    near = stored(tmp_path / "near.zarr", images(probe_structures(ELEMENTS, 6, seed=96, max_atoms=6)), cutoff=4.0)
    with pytest.raises(ConfigError, match=r"near\.zarr cannot be replayed: its cutoff of 4\.0 angstrom is smaller"):
        train(new, tmp_path / "run", settings(start, near))
    other = stored(tmp_path / "other.zarr", images(probe_structures((46, 78), 4, seed=96, max_atoms=6)))
    with pytest.raises(ConfigError, match=r"other\.zarr cannot be replayed: 0 of its 4 structures have only elements"):
        train(new, tmp_path / "run", settings(start, other))
    single = stored(tmp_path / "one.zarr", images(probe_structures(ELEMENTS, 1, seed=96, max_atoms=6)))
    with pytest.raises(ConfigError, match=r"one\.zarr cannot be replayed: 1 of its 1 structures"):
        train(new, tmp_path / "run", settings(start, single))
    with pytest.raises(StoreError, match=r"none\.zarr: no such store"):
        train(new, tmp_path / "run", settings(start, tmp_path / "none.zarr"))


def test_a_store_that_is_replaced_during_the_run_is_noticed(
    new: Path, old: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(old, tmp_path / "old.zarr")
    config = settings(start, source, max_epochs=1)
    finish = TrainingModule.on_validation_epoch_end

    def replaced(self: TrainingModule) -> None:
        finish(self)
        shutil.rmtree(source)
        shutil.copytree(new, source)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "on_validation_epoch_end", replaced)
        with pytest.raises(StoreError, match=r"old\.zarr has changed during this run"):
            train(new, tmp_path / "run", config)
    assert not (tmp_path / "run" / "model.ckpt").exists()
    with pytest.raises(OutputExistsError, match="unfinished run with different settings or stores"):
        train(new, tmp_path / "run", config)


def test_the_run_folder_may_not_be_the_replayed_store(new: Path, old: Path, start: Path) -> None:
    with pytest.raises(OutputExistsError, match="cannot be the output"):
        train(new, old, settings(start, old))
