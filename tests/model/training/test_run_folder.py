"""Run folders: nothing that is still needed is lost, and resuming a run does not change its result."""

from __future__ import annotations

import shutil
from pathlib import Path

import ase.io
import pytest
import torch
from equiscreen.model import EnsembleReport, load_checkpoint, load_members, repeat, train, train_ensemble
from equiscreen.model.training.callbacks import BEST, LAST
from equiscreen.model.training.run_folder import read_recipe
from equiscreen.pipeline import LabelMapping, featurize
from equiscreen.pipeline.errors import ConfigError, EquiscreenError, OutputExistsError
from equiscreen.pipeline.runs.lock import locked
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ...conftest import ELEMENTS, write_emt_labelled
from ..conftest import small_config


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_checkpoint(run / "model.ckpt")[0].state_dict() for run in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def unfinished(run: Path) -> Path:
    """Turn a run into one that was interrupted after its last epoch."""
    (run / "model.ckpt").unlink()
    return run


def test_overwrite_keeps_what_is_fine_tuned(store: Path, tmp_path: Path) -> None:
    train(store, tmp_path / "base", small_config(max_epochs=1))
    config = small_config(max_epochs=1).starting_from(tmp_path / "base")
    with pytest.raises(OutputExistsError, match="contains the checkpoint to fine-tune"):
        train(store, tmp_path / "base", config, overwrite=True)
    assert (tmp_path / "base" / "model.ckpt").exists()


def test_overwrite_does_not_touch_a_run_that_is_under_way(store: Path, tmp_path: Path) -> None:
    run = unfinished(train(store, tmp_path / "run", small_config(max_epochs=1)).checkpoint.parent)
    before = (run / "run.json").read_bytes()
    with locked(run / "lock"):
        for overwrite in (False, True):
            with pytest.raises(OutputExistsError, match="another run is writing here"):
                train(store, run, small_config(max_epochs=2), overwrite=overwrite)
    assert (run / LAST).exists()
    assert (run / "run.json").read_bytes() == before


def test_overwrite_takes_up_the_same_run_and_replaces_others(store: Path, tmp_path: Path) -> None:
    run = unfinished(train(store, tmp_path / "run", small_config()).checkpoint.parent)
    train(store, run, small_config(), overwrite=True)
    assert len(list((run / "log").iterdir())) == 2  # it resumed
    train(store, run, small_config(), overwrite=True)
    assert len(list((run / "log").iterdir())) == 1  # a finished run starts again
    unfinished(run)
    train(store, run, small_config(max_epochs=1), overwrite=True)
    assert len(list((run / "log").iterdir())) == 1


def test_the_last_state_is_that_of_the_last_epoch(store: Path, tmp_path: Path) -> None:
    # With a vanishing learning rate no epoch is better than the first.
    report = train(store, tmp_path / "run", small_config(max_epochs=4, learning_rate=1e-30))
    assert torch.load(tmp_path / "run" / LAST, weights_only=True)["epoch"] == 3
    assert report.epochs == 4
    checkpoints = list((tmp_path / "run").rglob("*.ckpt"))
    assert len(checkpoints) == 3
    assert not any(bytes(tmp_path) in file.read_bytes() for file in checkpoints)


@pytest.mark.parametrize("moved", [False, True])
def test_a_training_that_stopped_early_stays_so(store: Path, tmp_path: Path, moved: bool) -> None:
    config = small_config(max_epochs=20, learning_rate=1e-30, early_stop_epochs=2)
    whole = train(store, tmp_path / "run", config)
    assert whole.epochs < 20
    run = tmp_path / "elsewhere" if moved else tmp_path / "again"
    shutil.copytree(tmp_path / "run", run)
    if moved:
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    best = (run / BEST).read_bytes()
    again = train(store, unfinished(run), config)
    assert again.epochs == whole.epochs
    assert (run / BEST).read_bytes() == best
    assert same_weights(run, tmp_path / "run")


def test_a_damaged_state_is_one_line(store: Path, tmp_path: Path) -> None:
    run = unfinished(train(store, tmp_path / "run", small_config(max_epochs=1)).checkpoint.parent)
    (run / LAST).write_bytes((run / LAST).read_bytes()[:1000])
    with pytest.raises(EquiscreenError, match=r"last\.ckpt is damaged .*; delete the run folder"):
        train(store, run, small_config(max_epochs=1))


def test_a_validation_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    write_emt_labelled(tmp_path / "s.extxyz", probe_structures(ELEMENTS, 12, seed=33))
    images = ase.io.read(tmp_path / "s.extxyz", ":")
    for place, image in enumerate(images):
        image.info["part"] = int(place > 9)
    images[11].calc.results["energy"] = 1e200
    ase.io.write(tmp_path / "s.extxyz", images)
    labels = LabelMapping().with_inline([], ["part"]).with_ase_defaults()
    featurize(tmp_path / "s.extxyz", tmp_path / "g.zarr", cutoff=4.5, labels=labels, scheduler="threads")
    config = small_config(split={"by": "time", "key": "part", "validation": 0.17})
    with pytest.raises(EquiscreenError, match=r"validation loss became inf in epoch 1, caused by \S*11 "):
        train(tmp_path / "g.zarr", tmp_path / "run", config)


def test_an_ensemble_is_repeated_as_one(store: Path, tmp_path: Path) -> None:
    config = small_config(max_epochs=1, split={"validation": 0.2, "test": 0.2})
    first = train_ensemble(store, tmp_path / "first", config, members=2)
    assert first.test.keys() == first.validation.keys()
    assert load_members(tmp_path / "first")[1].test == first.test
    again = repeat(tmp_path / "first", tmp_path / "again")
    assert isinstance(again, EnsembleReport)
    assert again.validation == first.validation
    assert again.calibration == first.calibration


def test_a_repetition_begins_with_the_same_checkpoint(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        train(store, tmp_path / f"base-{seed}", small_config(max_epochs=1, seed=seed))
    monkeypatch.chdir(tmp_path)
    train(store, tmp_path / "run", small_config(max_epochs=1).starting_from("base-0"))
    monkeypatch.chdir("/")  # a path given relative to the old folder still works
    repeat(tmp_path / "run", tmp_path / "again")
    assert same_weights(tmp_path / "run", tmp_path / "again")
    assert read_recipe(tmp_path / "run").start_sha256
    shutil.copy(tmp_path / "base-1" / "model.ckpt", tmp_path / "base-0" / "model.ckpt")
    with pytest.raises(ConfigError, match="not the checkpoint that"):
        repeat(tmp_path / "run", tmp_path / "third")


def test_devices_that_are_not_there(store: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match=r"training\.accelerator cuda"):
        train(store, tmp_path / "run", small_config(accelerator="cuda"))
