"""Training: it learns, resumes, validates apart, and says what is wrong."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase.calculators.emt import EMT
from ase.io import write
from equiscreen.model import Config, load_checkpoint, train
from equiscreen.model.checkpoint import ModelCard, describe_checkpoint, save_checkpoint
from equiscreen.model.potential import TorchPotential
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import (
    CheckpointError,
    ConfigError,
    EquiscreenError,
    OutputExistsError,
    UnknownElementError,
)
from equiscreen.pipeline.probes import probe_structures

from ..conftest import ELEMENTS, evaluate, small_network
from .conftest import small_config as config


def test_training_learns_and_leaves_a_model_that_repeats_its_validation(store: Path, tmp_path: Path) -> None:
    first = train(store, tmp_path / "a", config(max_epochs=1))
    longer = train(store, tmp_path / "b", config(max_epochs=30, batch_size=4))
    assert longer.validation["forces"] < 0.8 * first.validation["forces"]
    assert longer.validation["energy"] < first.validation["energy"]
    network, card = load_checkpoint(longer.checkpoint)
    graphs = GraphStore(store)
    assert card.training_data == graphs.store_hash
    held_out = np.load(tmp_path / "b" / "split.npz")["validation_0"]
    assert len(held_out) == longer.n_validation == 10
    block = graphs.block(0, len(graphs)).take(held_out)
    found = TorchPotential(network).evaluate(block)
    mae = np.abs((found.energy - block.structure_labels["energy"]) / block.n_atoms).mean()
    assert mae == pytest.approx(longer.validation["energy"], rel=1e-4)
    force_mae = np.abs(found.forces - block.atom_labels["forces"]).mean()
    assert force_mae == pytest.approx(longer.validation["forces"], rel=1e-4)
    assert card.validation["forces eV/angstrom"] == longer.validation["forces"]


def test_labels_that_are_absent_do_not_count(tmp_path: Path) -> None:
    images = []
    for place, structure in enumerate(probe_structures(ELEMENTS, 12, seed=31)):
        atoms = structure.to_ase()
        atoms.calc = EMT()
        if place % 2:
            atoms.get_forces()
        else:
            atoms.get_potential_energy()
            atoms.calc.results = {"energy": atoms.calc.results["energy"]}
        images.append(atoms)
    write(tmp_path / "s.extxyz", images)
    featurize(tmp_path / "s.extxyz", tmp_path / "g.zarr", cutoff=4.5, scheduler="threads")
    report = train(tmp_path / "g.zarr", tmp_path / "run", config(max_epochs=1))
    assert np.isfinite(report.validation["energy"])
    assert np.isnan(report.validation["stress"]) or report.validation["stress"] > 0


def test_a_finished_or_other_run_is_not_touched(store: Path, tmp_path: Path) -> None:
    train(store, tmp_path / "run", config(max_epochs=1))
    with pytest.raises(OutputExistsError, match="finished run"):
        train(store, tmp_path / "run", config(max_epochs=1))
    (tmp_path / "run" / "model.ckpt").unlink()
    with pytest.raises(OutputExistsError, match="another configuration"):
        train(store, tmp_path / "run", config(max_epochs=2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(OutputExistsError, match="no run"):
        train(store, tmp_path / "mine", config())


def test_a_loss_that_is_not_finite_stops_the_training(store: Path, tmp_path: Path) -> None:
    with pytest.raises(EquiscreenError, match="learning_rate"):
        train(store, tmp_path / "run", config(learning_rate=1e30, warmup_steps=0, gradient_clip=1e30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {max_epoch: 3}", "training.max_epoch: no such key; did you mean 'max_epochs'"),
        ("training: {loss: {force: 3}}", "training.loss.force: no such key; did you mean 'forces'"),
        ("trainin: {}", "did you mean 'training'"),
        ("network: {zzz: 1}", "network.zzz: no such key; known are preset, symmetry"),
        ("network: {hidden_irreps: 3y7}", "no irreps"),
        ("network: {hidden_irreps: 4x1o}", "needs scalars"),
        ("network: {l_max: -1}", "network.l_max"),
        ("training: {dtype: float16}", "training.dtype"),
        ("[", "not valid YAML"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Config.load(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        Config.load(tmp_path / "none.yaml")


def test_a_cutoff_beyond_the_stores_is_refused(store: Path, tmp_path: Path) -> None:
    settings = Config.parse({"network": {"cutoff": 6.0}}, "test")
    with pytest.raises(ConfigError, match=r"featurize .* --cutoff 6.0"):
        train(store, tmp_path / "run", settings)


def test_a_store_without_energies_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s.extxyz", [s.to_ase() for s in probe_structures(ELEMENTS, 3, seed=1)])
    featurize(tmp_path / "s.extxyz", tmp_path / "g.zarr", cutoff=4.5, scheduler="threads")
    with pytest.raises(ConfigError, match="no structure has an energy"):
        train(tmp_path / "g.zarr", tmp_path / "run", config())


def test_checkpoints_give_the_network_back(tmp_path: Path) -> None:
    network = small_network()
    save_checkpoint(tmp_path / "m.ckpt", network, ModelCard(validation={"energy eV/atom": 0.1}))
    again, card = load_checkpoint(tmp_path / "m.ckpt")
    structures = probe_structures(ELEMENTS, 3, seed=1)
    assert np.array_equal(
        evaluate(TorchPotential(network), structures).forces, evaluate(TorchPotential(again), structures).forces
    )
    assert card.validation == {"energy eV/atom": 0.1}
    assert describe_checkpoint(tmp_path / "m.ckpt")["elements"] == list(ELEMENTS)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("1 + 1",)

    torch.save({"schema": Evil()}, tmp_path / "evil.ckpt")
    torch.save({"schema": "other"}, tmp_path / "other.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    for name, message in (("evil", "not a checkpoint"), ("other", "'other'"), ("text", "not a ch"), ("no", "no such")):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / f"{name}.ckpt")


def test_a_log_has_lines_from_the_first_epoch_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("equiscreen.model.callbacks.LINE_EVERY_S", 0.0)  # as where every epoch takes longer than that
    train(store, tmp_path / "run", config(max_epochs=2), progress=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train: epoch")]
    assert [line.split(";")[0] for line in lines] == ["train: epoch 1 of 2", "train: epoch 2 of 2"]
    assert lines[0].split("MAE")[1] != lines[1].split("MAE")[1]


def test_only_elements_that_were_trained_on_are_known(tmp_path: Path) -> None:
    copper = probe_structures([29], 8, seed=40)
    images = []
    for structure in [*copper, *probe_structures([79], 3, seed=41)]:
        atoms = structure.to_ase()
        if 79 not in atoms.numbers:
            atoms.calc = EMT()
            atoms.get_forces()
        images.append(atoms)
    write(tmp_path / "s.extxyz", images)
    featurize(tmp_path / "s.extxyz", tmp_path / "g.zarr", cutoff=4.5, scheduler="threads")
    report = train(tmp_path / "g.zarr", tmp_path / "run", config(max_epochs=1, batch_size=1))
    network, _ = load_checkpoint(report.checkpoint)
    assert network.elements == (29,)
    assert report.n_training + report.n_validation == 8
    with pytest.raises(UnknownElementError, match=r"\[79\]"):
        evaluate(TorchPotential(network), probe_structures([79], 1, seed=0))


def test_a_run_does_not_replace_its_input_or_what_is_no_run(store: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="is read by this run"):
        train(store, store.parent, config(), overwrite=True)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(OutputExistsError, match="no run"):
        train(store, tmp_path, config(), overwrite=True)
    assert (tmp_path / "thesis.tex").exists()
