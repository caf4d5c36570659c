"""Fine-tuning: what is kept of a checkpoint, what is learned again, and what new data add."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equiscreen.conformance.laws import evaluate
from equiscreen.model import Config, EquivariantNetwork, load_checkpoint, repeat, train
from equiscreen.model.checkpoint import ModelCard, save_checkpoint, save_ensemble
from equiscreen.model.networks.allegro import AllegroNetwork
from equiscreen.model.networks.nequip import NequipNetwork
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphStore, Structure
from equiscreen.pipeline.errors import CheckpointError, ConfigError
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ...conformance.networks import ALLEGRO, NEQUIP, allegro_of, nequip_of
from ...conftest import ELEMENTS
from ..conftest import small_config
from ..labelled import images, stored

# Steps too small to change a weight, so the result is the state before the first step.
STILL = {"learning_rate": 1e-30, "max_epochs": 1, "batch_size": 40, "warmup_steps": 0}
TINY = {"hidden_irreps": "4x0e + 2x1o", "n_radial": 2, "correlation": 2}
SHIFTS = {13: 100.0, 29: -250.0, 79: 17.5}


@pytest.fixture(scope="module")
def start(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on alloys of three metals."""
    run = tmp_path_factory.mktemp("start") / "run"
    train(store, run, small_config(TINY, max_epochs=3))
    return run


@pytest.fixture(scope="module")
def silver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graph store of alloys of copper with silver, which the checkpoint does not know, with additional properties."""
    structures = probe_structures((29, 47), 24, seed=90, max_atoms=8)
    labels = ("hardness", "strain", "field")
    return stored(tmp_path_factory.mktemp("silver") / "g.zarr", images(structures, labels, emt=True), labels)


def fine_tuned(
    store: Path, out: Path, checkpoint: Path, network: dict[str, Any] | None = None, **training: Any
) -> EquivariantNetwork:
    fine_tune = {"checkpoint": str(checkpoint), **training.pop("fine_tune", {})}
    report = train(store, out, small_config(network, fine_tune=fine_tune, **training))
    return load_checkpoint(report.checkpoint)[0]


def rows_of(network: EquivariantNetwork, elements: tuple[int, ...]) -> list[int]:
    return [network.elements.index(element) for element in elements]


def shifted(store: Path, path: Path) -> Path:
    """Copy a store with another zero of energy for each element."""
    graphs = GraphStore(store)
    block = graphs.block(0, len(graphs))
    atoms = images([block.structure(place) for place in range(len(block))], emt=True)
    for image in atoms:
        image.calc.results["energy"] += sum(SHIFTS[int(z)] for z in image.numbers)
    return stored(path, atoms)


def test_frozen_weights_stay_to_the_bit_and_the_others_change(store: Path, start: Path, tmp_path: Path) -> None:
    freeze = ["embedding", "radial", "interactions.0"]
    network = fine_tuned(store, tmp_path / "run", start, max_epochs=2, fine_tune={"freeze": freeze})
    before = dict(load_checkpoint(start / "model.ckpt")[0].named_parameters())
    changed = []
    for name, parameter in network.named_parameters():
        if f"{name}.".startswith(tuple(f"{part}." for part in freeze)):
            assert torch.equal(parameter, before[name]), name
        else:
            changed.append(not torch.equal(parameter, before[name]))
    assert len(changed) > 3
    assert all(changed)


def test_nothing_frozen_means_that_everything_learns(store: Path, start: Path, tmp_path: Path) -> None:
    network = fine_tuned(store, tmp_path / "run", start, max_epochs=2)
    before = dict(load_checkpoint(start / "model.ckpt")[0].named_parameters())
    assert not any(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())
    assert network.config == load_checkpoint(start / "model.ckpt")[0].config


def test_a_new_element_comes_beside_the_known_ones(silver: Path, start: Path, tmp_path: Path) -> None:
    network = fine_tuned(silver, tmp_path / "run", start, max_epochs=1, fine_tune={"freeze": ["embedding"]})
    old = load_checkpoint(start / "model.ckpt")[0]
    assert network.elements == (13, 29, 47, 79)
    known = rows_of(network, ELEMENTS)
    assert torch.equal(network.embedding.weight[known], old.embedding.weight[rows_of(old, ELEMENTS)])
    new = network.embedding.weight[network.elements.index(47)]
    assert not any(torch.equal(new, row) for row in old.embedding.weight)
    mixed = probe_structures((13, 47, 79), 4, seed=91, max_atoms=8)
    assert np.isfinite(evaluate(TorchPotential(network), mixed).energy).all()


def test_structures_without_the_new_element_are_seen_as_before(silver: Path, start: Path, tmp_path: Path) -> None:
    network = fine_tuned(silver, tmp_path / "run", start, **STILL, fine_tune={"references": "keep"})
    old = load_checkpoint(start / "model.ckpt")[0]
    structures = probe_structures(ELEMENTS, 6, seed=92)
    found, expected = (evaluate(TorchPotential(x), structures) for x in (network, old))
    assert np.allclose(found.energy, expected.energy, rtol=0, atol=1e-4)
    assert np.allclose(found.forces, expected.forces, rtol=0, atol=1e-4)


def test_a_new_head_comes_beside_the_energy_and_leaves_it_as_it_is(silver: Path, start: Path, tmp_path: Path) -> None:
    heads = {"hardness": {}, "strain": {"tensor": "symmetric"}}
    keep = {"references": "keep"}
    network = fine_tuned(silver, tmp_path / "still", start, {"heads": heads}, **STILL, fine_tune=keep)
    assert [spec.name for spec in network.outputs] == ["energy", "forces", "stress", "hardness", "strain"]
    old = load_checkpoint(start / "model.ckpt")[0]
    structures = probe_structures(ELEMENTS, 6, seed=93)
    found, expected = (evaluate(TorchPotential(x), structures) for x in (network, old))
    assert np.allclose(found.energy, expected.energy, rtol=0, atol=1e-4)
    assert np.allclose(found.forces, expected.forces, rtol=0, atol=1e-4)

    learned = fine_tuned(silver, tmp_path / "run", start, {"heads": heads}, max_epochs=3)
    assert learned.statistics.heads.keys() == heads.keys()
    assert not torch.equal(next(learned.heads["hardness"].parameters()), next(network.heads["hardness"].parameters()))
    # Fine-tuned from there on data without those labels, only the energy remains.
    plain = stored(tmp_path / "plain.zarr", images(probe_structures((29, 47), 8, seed=94, max_atoms=6), emt=True))
    assert fine_tuned(plain, tmp_path / "again", tmp_path / "run", **STILL).config.heads == {}


def test_weights_that_a_new_head_makes_begin_anew_are_told(
    silver: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # An axial vector adds products to the last interaction, which changes the shapes of its weights.
    train(silver, tmp_path / "start", small_config({**TINY, "symmetry": "o3"}, max_epochs=1))
    fine_tune = {"checkpoint": str(tmp_path / "start")}
    heads = {"spin": {"tensor": "axial_vector", "per": "atom", "label": "field"}}
    settings = small_config({"symmetry": "o3", "heads": heads}, max_epochs=1, fine_tune=fine_tune)
    train(silver, tmp_path / "run", settings, progress=True)
    assert re.search(r"train: training\.fine_tune: .* start at random: .*interactions\.1", capsys.readouterr().err)
    plain = small_config({"symmetry": "o3"}, max_epochs=1, fine_tune=fine_tune)
    train(silver, tmp_path / "plain", plain, progress=True)
    assert "start at random" not in capsys.readouterr().err


def test_other_zeros_of_energy_are_found_before_the_first_step(store: Path, start: Path, tmp_path: Path) -> None:
    other = shifted(store, tmp_path / "shifted.zarr")
    here = fine_tuned(store, tmp_path / "here", start, **STILL)
    there = fine_tuned(other, tmp_path / "there", start, **STILL)
    difference = np.subtract(there.statistics.reference_energies, here.statistics.reference_energies)
    assert difference == pytest.approx([SHIFTS[element] for element in there.elements], abs=1e-6)
    structures = probe_structures(ELEMENTS, 6, seed=95)
    found, expected = (evaluate(TorchPotential(x), structures) for x in (there, here))
    zeros = [sum(SHIFTS[int(z)] for z in s.atomic_number) for s in structures]
    assert np.allclose(found.energy, expected.energy + zeros, rtol=0, atol=1e-4)
    assert np.array_equal(found.forces, expected.forces)


def test_references_can_be_kept(store: Path, start: Path, tmp_path: Path) -> None:
    other = shifted(store, tmp_path / "shifted.zarr")
    kept = fine_tuned(other, tmp_path / "run", start, **STILL, fine_tune={"references": "keep"})
    old = load_checkpoint(start / "model.ckpt")[0]
    assert kept.statistics.reference_energies == old.statistics.reference_energies
    # The error is that of the energy zeros, which the next epochs would have to correct.
    assert load_checkpoint(tmp_path / "run" / "model.ckpt")[1].validation["energy eV/atom"] > 10


def test_isolated_atoms_set_the_zero_of_energy_only_if_the_checkpoint_agrees(start: Path, tmp_path: Path) -> None:
    crystals = probe_structures((13, 29), 16, seed=99, max_atoms=6)
    alone = [Structure.from_cartesian([number], np.zeros((1, 3))) for number in (13, 29)]
    old = load_checkpoint(start / "model.ckpt")[0]
    predicted = evaluate(TorchPotential(old), crystals).energy.tolist()
    references = np.array(old.statistics.reference_energies[:2])
    for shift, used in ((0.01, True), (3.0, False)):
        atoms = images([*crystals, *alone], emt=True)
        for image, energy in zip(atoms, [*predicted, *(references + shift)], strict=True):
            image.calc.results["energy"] = energy
        data = stored(tmp_path / f"{shift}.zarr", atoms)
        found = fine_tuned(data, tmp_path / f"run-{shift}", start, **STILL).statistics.reference_energies[:2]
        assert found == pytest.approx(references + (shift if used else 0.0), abs=1e-4)


def test_weights_are_taken_from_a_file_as_from_a_folder(store: Path, start: Path, tmp_path: Path) -> None:
    shutil.copy(start / "model.ckpt", tmp_path / "m.ckpt")
    found = [
        fine_tuned(store, tmp_path / str(place), checkpoint, max_epochs=1).state_dict()
        for place, checkpoint in enumerate((start, tmp_path / "m.ckpt"))
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_mistake_is_named(store: Path, start: Path, tmp_path: Path) -> None:
    def tune(checkpoint: Path, **fine_tune: Any) -> None:
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        fine_tuned(store, out, checkpoint, max_epochs=1, fine_tune=fine_tune)

    with pytest.raises(ConfigError, match=r"freeze: unknown parameter prefix 'embeding'; did you mean 'embedding'\?"):
        tune(start, freeze=["embeding"])
    with pytest.raises(ConfigError, match=r"prefix 'zzz'; choose embedding"):
        tune(start, freeze=["zzz"])
    with pytest.raises(CheckpointError, match=r"none\.ckpt: no such checkpoint"):
        tune(tmp_path / "none.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no model\.ckpt in this folder"):
        tune(tmp_path / "empty")
    for member in ("member-0", "member-1"):
        shutil.copytree(start, tmp_path / "both" / member)
    save_ensemble(tmp_path / "both", ["member-0", "member-1"], ModelCard())
    with pytest.raises(ConfigError, match="an ensemble; fine-tune one of its members"):
        tune(tmp_path / "both")


def test_a_store_that_sees_less_far_than_the_checkpoint_is_refused(start: Path, tmp_path: Path) -> None:
    network = load_checkpoint(start / "model.ckpt")[0]
    assert network.cutoff == 4.5
    near = stored(
        tmp_path / "near.zarr", images(probe_structures(ELEMENTS, 6, seed=96, max_atoms=6), emt=True), cutoff=4.0
    )
    with pytest.raises(ConfigError, match=r"is 4\.5, larger than the cutoff of 4\.0 angstrom in .*near\.zarr"):
        fine_tuned(near, tmp_path / "run", start)


def test_freezing_everything_is_refused(store: Path, start: Path, tmp_path: Path) -> None:
    everything = ["embedding", "radial", "interactions", "readouts"]
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        fine_tuned(store, tmp_path / "run", start, max_epochs=1, fine_tune={"freeze": everything})


def test_settings_of_fine_tuning_are_in_the_run(store: Path, start: Path, tmp_path: Path) -> None:
    fine_tuned(store, tmp_path / "run", start, max_epochs=1, fine_tune={"freeze": ["radial"]})
    written = Config.load(tmp_path / "run" / "config.yaml")
    assert written.training.fine_tune.checkpoint == start
    assert written.training.fine_tune.freeze == ("radial",)
    assert written.network == load_checkpoint(start / "model.ckpt")[0].config


# --- imported weights -------------------------------------------------------------------------------------------------


@pytest.fixture(params=[*NEQUIP, "splines"])
def imported(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint like one from `equiscreen import`, with narrow layers."""
    path = tmp_path / "imported.ckpt"
    allegro = request.param in ALLEGRO
    network = (allegro_of if allegro else nequip_of)((ALLEGRO if allegro else NEQUIP)[request.param], torch.float32)
    save_checkpoint(path, network, ModelCard("so3" if network.config.symmetry == "so3" else "o3"))
    return path


@pytest.mark.slow
def test_imported_weights_learn_but_for_what_is_frozen(store: Path, imported: Path, tmp_path: Path) -> None:
    allegro = load_checkpoint(imported)[0].config.family == "allegro"
    freeze = ["embedding" if allegro else "sent", "interactions.0"]
    network = fine_tuned(
        store, tmp_path / "run", imported, max_epochs=4, learning_rate=2e-3, fine_tune={"freeze": freeze}
    )
    assert isinstance(network, AllegroNetwork if allegro else NequipNetwork)
    before = dict(load_checkpoint(imported)[0].named_parameters())
    for name, parameter in network.named_parameters():
        frozen = f"{name}.".startswith(tuple(f"{part}." for part in freeze))
        assert torch.equal(parameter, before[name]) == frozen, name
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["training/loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]
    repeat(tmp_path / "run", tmp_path / "again")
    again = load_checkpoint(tmp_path / "again" / "model.ckpt")[0]
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in network.state_dict().items())


def test_imported_weights_get_a_new_element(silver: Path, imported: Path, tmp_path: Path) -> None:
    network = fine_tuned(silver, tmp_path / "run", imported, **STILL, fine_tune={"references": "keep"})
    assert network.elements == (13, 29, 47, 79)
    old = load_checkpoint(imported)[0]
    structures = probe_structures(ELEMENTS, 4, seed=92)
    found, expected = (evaluate(TorchPotential(x), structures) for x in (network, old))
    assert np.allclose(found.energy, expected.energy, rtol=0, atol=1e-4)
    assert np.isfinite(evaluate(TorchPotential(network), probe_structures((13, 47), 3, seed=93)).energy).all()


def test_imported_weights_take_no_heads(silver: Path, imported: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="imported weights predict only energies, forces and stresses"):
        fine_tuned(silver, tmp_path / "run", imported, {"heads": {"hardness": {}}}, max_epochs=1)
