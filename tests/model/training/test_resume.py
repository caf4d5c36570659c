"""An interrupted or repeated run ends with the same weights, to the last bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from equiscreen.model import load_checkpoint, repeat, train
from equiscreen.model.training.run_folder import join_logs
from equiscreen.pipeline.errors import ConfigError

from ..conftest import interrupted_after, small_config


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "model.ckpt")[0].state_dict()


def assert_equal(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def kill_when(process: subprocess.Popen[bytes], ready: Path, after: float = 0.0) -> None:
    """Kill a process with SIGKILL once a file exists and was last changed at least `after` seconds ago."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if ready.exists() and time.time() - ready.stat().st_ctime >= after:
            break
        time.sleep(0.005)
    assert process.poll() is None, "the process ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        pytest.param({"max_epochs": 12}, "between epochs", marks=pytest.mark.slow),
        # Batches of two structures, with a checkpoint after each, so it is killed in the middle of an epoch.
        ({"max_epochs": 3, "batch_size": 2, "checkpoint_minutes": 1e-9, "schedule": "plateau"}, "within an epoch"),
    ],
)
def test_a_killed_training_ends_in_the_weights_of_an_undisturbed_one(
    store: Path, tmp_path: Path, settings: dict[str, object], what: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(small_config(**settings).model_dump(mode="json")))
    command = [sys.executable, "-m", "equiscreen", "train", store, "--config", config, "--out", tmp_path / "killed"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    kill_when(process, last)
    saved = torch.load(last, weights_only=True)
    if what == "within an epoch":
        assert 0 < saved["batches_done"] < 15
    assert not (tmp_path / "killed" / "model.ckpt").exists()
    train(store, tmp_path / "killed", small_config(**settings))
    whole = train(store, tmp_path / "whole", small_config(**settings))
    assert_equal(tmp_path / "killed", tmp_path / "whole")
    rows = join_logs(tmp_path / "killed").read_text().splitlines()
    epochs = [row.split(",")[0] for row in rows[1:]]
    assert epochs[: whole.epochs] == [str(epoch) for epoch in range(whole.epochs)]


@pytest.mark.parametrize("steps", [7, 10])
def test_a_training_interrupted_in_a_later_epoch_ends_in_the_same_weights(
    store: Path, tmp_path: Path, steps: int
) -> None:
    """After 7 steps, in the middle of the second of epochs of 5 batches, and after 10, between two epochs."""
    config = small_config(checkpoint_minutes=1e-9, batch_size=6)
    whole = train(store, tmp_path / "whole", config)
    assert whole.n_training == 30
    with interrupted_after(steps):
        train(store, tmp_path / "run", config)
    train(store, tmp_path / "run", config)
    assert_equal(tmp_path / "run", tmp_path / "whole")


def test_a_run_folder_is_enough_to_repeat_the_run(store: Path, tmp_path: Path) -> None:
    train(store, tmp_path / "first", small_config(seed=5), limit=30)
    again = repeat(tmp_path / "first", tmp_path / "again")
    assert_equal(tmp_path / "first", tmp_path / "again")
    assert again.n_training + again.n_validation == 30
    assert (tmp_path / "first" / "split.npz").read_bytes() == (tmp_path / "again" / "split.npz").read_bytes()
    (tmp_path / "first" / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a run folder"):
        repeat(tmp_path / "first", tmp_path / "third")


def test_another_seed_gives_other_weights_and_the_same_split(store: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(store, tmp_path / str(seed), small_config(seed=seed, max_epochs=1))
    assert not torch.equal(weights(tmp_path / "0")["embedding.weight"], weights(tmp_path / "1")["embedding.weight"])
    assert (tmp_path / "0" / "split.npz").read_bytes() == (tmp_path / "1" / "split.npz").read_bytes()
