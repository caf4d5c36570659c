"""Training: it learns, resumes, validates on held-out structures, and reports what is wrong."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.io import write
from equiscreen.conformance.laws import evaluate
from equiscreen.model import Config, load_checkpoint, train
from equiscreen.model.checkpoint import ModelCard, describe_checkpoint, save_checkpoint
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import (
    CheckpointError,
    ConfigError,
    EquiscreenError,
    OutputExistsError,
    UnknownElementError,
)
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ...conftest import ELEMENTS, small_network
from ..conftest import small_config as config
from ..labelled import images, stored, whole
from .conftest import plots_drawn

TINY = {"hidden_irreps": "4x0e + 2x1o", "n_radial": 2, "correlation": 1, "n_interactions": 1}
PROPERTIES = ("strain", "hardness", "brightness", "charge", "field")
HEADS: dict[str, Any] = {
    "strain": {"tensor": "symmetric"},
    "hard": {"label": "hardness"},
    "brightness": {"transform": "log"},
    "charge": {"extensive": True},
    "field": {"tensor": "vector", "per": "atom"},
}


def label_of(head: str) -> str:
    return str(HEADS.get(head, {}).get("label", head))


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def recomputed(run: Path, stores: Sequence[Path], subset: str) -> dict[str, float]:
    """Recompute the mean absolute errors of a run's model on one subset of its split, from the stores."""
    potential = TorchPotential(load_checkpoint(run / "model.ckpt")[0])
    rows = np.load(run / "split.npz")
    differences: dict[str, list[np.ndarray[Any, Any]]] = {spec.name: [] for spec in potential.outputs}
    for number, store in enumerate(stores):
        block = whole(store).take(rows[f"{subset}_{number}"])
        found = potential.evaluate(block).arrays()
        labels = block.structure_labels | block.atom_labels
        for name, parts in differences.items():
            if label_of(name) in labels:
                error = np.abs(found[name] - labels[label_of(name)])
                error = error / block.n_atoms if name == "energy" else error
                parts.append(error[np.isfinite(labels[label_of(name)])])
    return {name: float(np.concatenate(parts).mean()) for name, parts in differences.items()}


@pytest.fixture(scope="module")
def properties(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two stores with EMT labels: the first also has all properties, with gaps, the second only the hardness."""
    folder = tmp_path_factory.mktemp("properties")
    complete = images(probe_structures(ELEMENTS, 40, seed=70, max_atoms=8), PROPERTIES, emt=True)
    for place, atoms in enumerate(complete):
        for name in PROPERTIES[:4]:
            if (place + len(name)) % 5 == 0:
                del atoms.info[name]
        if place % 7 == 0:
            del atoms.arrays["field"]
    few = images(probe_structures(ELEMENTS, 12, seed=71, max_atoms=8), ("hardness",), emt=True)
    return [
        stored(folder / "complete.zarr", complete, PROPERTIES),
        stored(folder / "few.zarr", few, ("hardness",)),
    ]


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
    with pytest.raises(OutputExistsError, match="different settings or stores"):
        train(store, tmp_path / "run", config(max_epochs=2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(OutputExistsError, match="not a run folder"):
        train(store, tmp_path / "mine", config())


def test_a_loss_that_is_not_finite_stops_the_training(store: Path, tmp_path: Path) -> None:
    with pytest.raises(EquiscreenError, match="learning_rate"):
        train(store, tmp_path / "run", config(learning_rate=1e30, warmup_steps=0, gradient_clip=1e30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {max_epoch: 3}", "training: unknown key 'max_epoch'; did you mean 'max_epochs'"),
        ("training: {loss: {force: 3}}", "training.loss: unknown key 'force'; did you mean 'forces'"),
        ("trainin: {}", "did you mean 'training'"),
        ("network: {zzz: 1}", "network: unknown key 'zzz'; choose symmetry, cutoff"),
        ("network: {hidden_irreps: 3y7}", "are not valid irreps"),
        ("network: {hidden_irreps: 4x1o}", "are required"),
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


def test_the_loss_of_a_head_that_is_not_there_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.loss\.heads names undefined heads: gaap"):
        train(store, tmp_path / "run", config(loss={"heads": {"gaap": 1}}))


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
    for name, message in (("evil", "not a readable"), ("other", "'other'"), ("text", "not a read"), ("no", "no such")):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / f"{name}.ckpt")


def test_a_log_has_lines_from_the_first_epoch_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "equiscreen.model.training.callbacks.LINE_EVERY_S", 0.0
    )  # as if every epoch took longer than that
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
    with pytest.raises(OutputExistsError, match="not a run folder"):
        train(store, tmp_path, config(), overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    "energy",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["heads alone", "with the energy"],
)
def test_heads_learn_from_the_labels_that_there_are(properties: list[Path], tmp_path: Path, energy: bool) -> None:
    settings = config(
        {**TINY, "energy": energy, "heads": HEADS},
        max_epochs=20,
        batch_size=4,
        split={"validation": 0.2, "test": 0.1},
    )
    report = train(properties, tmp_path / "run", settings)
    wanted = {*HEADS, *(("energy", "forces", "stress") if energy else ())}
    assert report.validation.keys() == report.test.keys() == wanted
    assert report.n_training + report.n_validation + report.n_test == 52
    assert (report.n_validation, report.n_test) == (10, 5)
    labels = whole(properties[0]).structure_labels | whole(properties[0]).atom_labels
    for name in HEADS:
        values = labels[label_of(name)]
        spread = np.nanmean(np.abs(values - np.nanmean(values, axis=0)))
        assert report.validation[name] < 0.6 * spread, name
    # Rounding of float32, since batches have another order and padding.
    assert recomputed(tmp_path / "run", properties, "validation") == pytest.approx(dict(report.validation), rel=1e-3)
    assert recomputed(tmp_path / "run", properties, "test") == pytest.approx(dict(report.test), rel=1e-3)
    assert report.units == {
        "strain": "GPa",
        "hard": "GPa",
        "brightness": "",
        "charge": "e",
        "field": "V/angstrom",
        **({"energy": "eV/atom", "forces": "eV/angstrom", "stress": "eV/angstrom^3"} if energy else {}),
    }
    assert "test MAE on 5: " in str(report)


def test_a_charge_is_a_sum_and_a_hardness_a_mean(properties: list[Path], tmp_path: Path) -> None:
    report = train(properties, tmp_path / "run", config({**TINY, "energy": False, "heads": HEADS}, max_epochs=2))
    potential = TorchPotential(load_checkpoint(report.checkpoint)[0])
    crystals = probe_structures(ELEMENTS, 3, seed=72, max_atoms=8)
    doubled = [type(s).from_ase(s.to_ase().repeat((2, 1, 1))) for s in crystals]
    once, twice = evaluate(potential, crystals).properties, evaluate(potential, doubled).properties
    for name in ("strain", "hard", "brightness"):
        assert np.allclose(twice[name], once[name], rtol=1e-4, atol=1e-5), name
    assert np.allclose(twice["charge"], 2 * once["charge"], rtol=1e-4, atol=1e-4)
    assert (once["brightness"] > 0).all()


def test_a_label_without_a_logarithm_is_told_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    atoms = images(probe_structures(ELEMENTS, 12, seed=73, max_atoms=6), ("brightness",))
    for image in atoms[:3]:
        image.info["brightness"] *= -1
    store = stored(tmp_path / "g.zarr", atoms, ("brightness",))
    heads = {"hard": {"label": "brightness"}, "log": {"label": "brightness", "transform": "log"}}
    report = train(
        store, tmp_path / "run", config({**TINY, "energy": False, "heads": heads}, max_epochs=1), progress=True
    )
    notes = [line for line in capsys.readouterr().err.splitlines() if "have no logarithm" in line]
    assert len(notes) == 1
    assert notes[0].startswith("train: heads.log: ")
    assert np.isfinite(report.validation["log"])


def test_a_head_without_labels_is_refused(properties: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"heads\.zeta: no store has a label 'zeta' \(available: .*hardness"):
        train(properties, tmp_path / "a", config({"heads": {"zeta": {}}}))
    with pytest.raises(ConfigError, match=r"heads\.field: .* use `per: atom`"):
        train(properties, tmp_path / "b", config({"heads": {"field": {"tensor": "vector"}}}))
    with pytest.raises(ConfigError, match=r"heads\.strain: label 'strain': .* shape"):
        train(properties, tmp_path / "c", config({"heads": {"strain": {"tensor": "vector"}}}))


@pytest.mark.parametrize(("label", "value"), [("energy", 1e30), ("forces", 1e25)])
def test_the_structure_with_an_absurd_label_is_named(tmp_path: Path, label: str, value: float) -> None:
    atoms = images(probe_structures(ELEMENTS, 16, seed=74, max_atoms=6), emt=True)
    for place, image in enumerate(atoms):
        image.info["structure_id"] = f"crystal-{place}"
    found = atoms[5].calc.results
    found[label] = value if label == "energy" else np.full_like(found[label], value)
    store = stored(tmp_path / "g.zarr", atoms)
    with pytest.raises(EquiscreenError, match=rf"label is {label} of crystal-5 \(row 5 of .*g\.zarr\)"):
        train(store, tmp_path / "run", config(TINY, max_epochs=2, split={"validation": 0.1}))


def test_a_structure_without_a_finite_prediction_is_named_among_its_batch(tmp_path: Path) -> None:
    structures = probe_structures((13, 29), 16, seed=75, max_atoms=6)
    structures[5] = probe_structures((79,), 1, seed=76, max_atoms=6)[0]
    atoms = images(structures, emt=True)
    for place, image in enumerate(atoms):
        image.info["structure_id"] = f"crystal-{place}"
    store = stored(tmp_path / "g.zarr", atoms)
    start = small_network("4x0e + 2x1o", n_interactions=1, correlation=1)
    with torch.no_grad():
        start.embedding.weight[start.elements.index(79)] = torch.nan
    save_checkpoint(tmp_path / "m.ckpt", start, ModelCard())
    fine_tune = {"checkpoint": str(tmp_path / "m.ckpt"), "references": "keep"}
    with pytest.raises(EquiscreenError, match=r"loss became nan in epoch 1, .*, caused by crystal-5 \(row 5 of .*\); "):
        train(store, tmp_path / "run", config(fine_tune=fine_tune, batch_size=16, split={"validation": 0.1}))


def dated(path: Path, numbers: Sequence[Sequence[int]]) -> Path:
    """Featurize EMT-labelled crystals of these elements to a store, with ascending dates."""
    structures = [s for seed, known in enumerate(numbers) for s in probe_structures(known, 1, seed + 80, max_atoms=6)]
    atoms = images(structures, emt=True)
    for place, image in enumerate(atoms):
        image.info["date"] = str(2000 + place)
    return stored(path, atoms, columns=("date",))


def test_an_element_that_only_validation_has_is_told_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = dated(tmp_path / "g.zarr", [[29]] * 8 + [[29], [79], [29], [47]])
    split = {"by": "time", "key": "date", "validation": 0.35}
    report = train(store, tmp_path / "run", config(TINY, max_epochs=1, split=split), progress=True)
    assert (report.n_training, report.n_validation) == (8, 2)
    assert "train: 2 validation or test structures are skipped: no training structure contains Ag, Au" in (
        capsys.readouterr().err
    )
    assert load_checkpoint(report.checkpoint)[0].elements == (29,)
    nothing = dated(tmp_path / "n.zarr", [[29]] * 6 + [[79], [79]])
    with pytest.raises(ConfigError, match="no validation structure consists only of elements in the training set"):
        train(nothing, tmp_path / "none", config(TINY, max_epochs=1, split={**split, "validation": 0.25}))


def test_a_plateau_lowers_the_learning_rate(store: Path, tmp_path: Path) -> None:
    # Steps below float32 resolution change nothing, so no validation is better than the first.
    settings = config(
        TINY,
        learning_rate=1e-30,
        schedule="plateau",
        plateau_epochs=2,
        plateau_factor=0.5,
        max_epochs=7,
        warmup_steps=0,
        batch_size=30,
    )
    train(store, tmp_path / "run", settings)
    rates = [float(row["learning_rate"]) / 1e-30 for row in metrics(tmp_path / "run")]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(1)
    assert min(rates) == pytest.approx(0.25)
    assert set(np.round(np.log2(rates), 6)) == {0, -1, -2}


def test_a_run_folder_holds_logs_plots_and_its_settings(store: Path, tmp_path: Path) -> None:
    settings = config(TINY, max_epochs=4, early_stop_epochs=3)
    with plots_drawn():
        report = train(store, tmp_path / "run", settings)
    rows = metrics(tmp_path / "run")
    assert [int(row["epoch"]) for row in rows] == list(range(report.epochs))
    for row in rows:
        assert 0 <= float(row["training/waited_seconds"]) <= float(row["training/seconds"])
        assert np.isfinite([float(row[f"validation/{name}_mae"]) for name in ("energy", "forces", "stress")]).all()
        assert float(row["training/loss"]) > 0
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.05 * rates[0]
    assert list((tmp_path / "run" / "tensorboard").glob("**/events.out.tfevents*"))
    for plot in ("learning_curves.png", "parity.png"):
        assert (tmp_path / "run" / plot).read_bytes().startswith(b"\x89PNG")
    written = Config.load(tmp_path / "run" / "config.yaml")
    network = settings.network.model_copy(update={"cutoff": GraphStore(store).cutoff})
    assert written == settings.model_copy(update={"network": network})


def test_a_training_that_no_longer_improves_stops(store: Path, tmp_path: Path) -> None:
    settings = config(TINY, learning_rate=1e-30, max_epochs=50, early_stop_epochs=2, batch_size=30)
    assert train(store, tmp_path / "run", settings).epochs == 3
