"""Ensembles: members differ only in their random numbers, an interrupted run resumes, and the spread is correct."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from equiscreen.cli.terminal.describe import describe
from equiscreen.conformance.laws import evaluate
from equiscreen.model import Config, load_checkpoint, load_members, train_ensemble
from equiscreen.model.checkpoint import find_checkpoints
from equiscreen.model.networks.ensemble import EnsemblePotential, check_members
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.training.ensemble import EnsembleReport
from equiscreen.pipeline import Structure
from equiscreen.pipeline.errors import CheckpointError, ConfigError, OutputExistsError
from equiscreen.pipeline.graphs.potential import with_spread
from equiscreen.pipeline.structures.random_crystals import probe_structures
from hypothesis import given, settings
from hypothesis import strategies as st

from ...conftest import ELEMENTS, small_network
from ..conftest import small_config
from ..labelled import images, stored, whole
from .conftest import plots_drawn
from .test_resume import kill_when

TINY = {"hidden_irreps": "4x0e + 2x1o", "n_radial": 2, "correlation": 1, "n_interactions": 1}
HEADS = {"hardness": {}, "field": {"tensor": "vector", "per": "atom"}}


def settings_of(**training: object) -> Config:
    return small_config({**TINY, "heads": HEADS}, **{"max_epochs": 2, **training})


@pytest.fixture(scope="module")
def properties(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graph store of alloys with energies, a hardness, and a field at each atom."""
    structures = probe_structures(ELEMENTS, 40, seed=110, max_atoms=8)
    path = tmp_path_factory.mktemp("properties") / "g.zarr"
    return stored(path, images(structures, tuple(HEADS), emt=True), tuple(HEADS))


@pytest.fixture(scope="module")
def ensemble(properties: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EnsembleReport]:
    folder = tmp_path_factory.mktemp("ensemble") / "run"
    with plots_drawn():
        return folder, train_ensemble(properties, folder, settings_of(seed=7), members=2)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "model.ckpt")[0].state_dict()


def test_members_differ_and_have_the_same_split(ensemble: tuple[Path, EnsembleReport]) -> None:
    folder, report = ensemble
    first, second = (weights(folder / f"member-{number}") for number in (0, 1))
    assert not torch.equal(first["embedding.weight"], second["embedding.weight"])
    splits = [(folder / f"member-{number}" / "split.npz").read_bytes() for number in (0, 1)]
    assert splits[0] == splits[1]
    seeds = [Config.load(folder / f"member-{number}" / "config.yaml").training.seed for number in (0, 1)]
    assert seeds == [7, 8]
    assert report.members == 2


def test_a_folder_holds_what_makes_it_an_ensemble(ensemble: tuple[Path, EnsembleReport]) -> None:
    folder, report = ensemble
    content = json.loads((folder / "ensemble.json").read_text())
    assert content["schema"] == "equiscreen-ensemble/1"
    assert content["members"] == ["member-0", "member-1"]
    for name in ("energy", "forces", "stress", *HEADS):
        assert (folder / f"calibration_{name}.png").read_bytes().startswith(b"\x89PNG")
    networks, card = load_members(folder)
    assert len(networks) == 2
    assert dict(card.calibration) == report.calibration
    assert dict(card.validation) == report.validation
    facts = describe(folder)
    assert facts["members"] == 2
    assert facts["calibration"] == report.calibration
    assert json.dumps(facts)


def test_the_report_is_of_the_mean_of_the_members(ensemble: tuple[Path, EnsembleReport], properties: Path) -> None:
    folder, report = ensemble
    held_out = np.load(folder / "member-0" / "split.npz")["validation_0"]
    block = whole(properties).take(held_out)
    found = EnsemblePotential(load_members(folder)[0]).evaluate(block)
    labels = block.structure_labels | block.atom_labels
    arrays = found.arrays()
    errors = {name: arrays[name] - labels[name] for name in ("forces", "stress", *HEADS)}
    errors["energy"] = (found.energy - labels["energy"]) / block.n_atoms
    reported = {name.split(" ")[0]: value for name, value in report.validation.items()}
    assert reported == pytest.approx({name: float(np.abs(error).mean()) for name, error in errors.items()}, rel=1e-3)
    spread = arrays["hardness_std"]
    ratio = float(np.sqrt(np.mean((errors["hardness"] / spread) ** 2)))
    assert report.calibration["hardness"] == pytest.approx(ratio, rel=0.05)
    assert "error over spread: " in str(report)


def test_mean_and_spread_are_those_of_the_members(ensemble: tuple[Path, EnsembleReport]) -> None:
    networks, _ = load_members(ensemble[0])
    check_statistics(networks, probe_structures(ELEMENTS, 5, seed=111))


def check_statistics(networks: list[EquivariantNetwork], structures: list[Structure]) -> None:
    """Check means and spreads of an ensemble against its members, for any structures."""
    potential = EnsemblePotential(networks)
    found = evaluate(potential, structures).arrays()
    each = [evaluate(TorchPotential(network), structures).arrays() for network in networks]
    for spec in TorchPotential(networks[0]).outputs:
        values = np.stack([arrays[spec.name] for arrays in each])
        assert np.allclose(found[spec.name], values.mean(axis=0), rtol=1e-12, atol=1e-12, equal_nan=True)
        spread = values.std(axis=0, ddof=1)
        assert np.allclose(found[f"{spec.name}_std"], spread, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert {spec.name for spec in potential.outputs} <= set(found)
    assert potential.outputs == with_spread(networks[0].outputs)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), members=st.integers(2, 4))
def test_the_order_of_members_does_not_matter(seed: int, members: int) -> None:
    networks = [others(number) for number in range(members)]
    structures = probe_structures(ELEMENTS, 2, seed, max_atoms=6)
    check_statistics(networks, structures)
    forward, backward = (evaluate(EnsemblePotential(some), structures).arrays() for some in (networks, networks[::-1]))
    assert all(np.allclose(forward[name], backward[name], rtol=1e-9, atol=1e-9, equal_nan=True) for name in forward)


def others(number: int) -> EquivariantNetwork:
    """Build networks of one kind whose weights depend on the number."""
    network = small_network("4x0e + 2x1o", n_interactions=1, correlation=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 0.1 * number)
    return network


def test_equal_members_have_no_spread() -> None:
    found = evaluate(EnsemblePotential([others(1), others(1)]), probe_structures(ELEMENTS, 3, seed=112)).arrays()
    assert not any(values.any() for name, values in found.items() if name.endswith("_std"))


def test_members_have_to_be_of_one_kind() -> None:
    kinds = [
        small_network("4x0e + 2x1o", cutoff=4.0),
        small_network("4x0e + 2x1o").float(),
        small_network("4x0e + 2x1o", heads={"gap": {}}),
    ]
    for other in kinds:
        with pytest.raises(CheckpointError, match="differ in elements, cutoff, outputs or dtype"):
            check_members([small_network("4x0e + 2x1o"), other])
    with pytest.raises(CheckpointError, match="at least two networks"):
        EnsemblePotential([small_network("4x0e + 2x1o")])


def test_one_is_no_ensemble(properties: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an ensemble needs at least two members, not 1"):
        train_ensemble(properties, tmp_path / "run", settings_of(), members=1)
    assert not (tmp_path / "run").exists()


def test_a_finished_ensemble_is_not_touched(ensemble: tuple[Path, EnsembleReport], properties: Path) -> None:
    with pytest.raises(OutputExistsError, match="finished run"):
        train_ensemble(properties, ensemble[0], settings_of(seed=7), members=2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"schema": "equiscreen-ensemble/9", "members": ["a", "b"], "card": {}}',
        '{"schema": "equiscreen-ensemble/1", "members": ["member-0"], "card": {}}',
        '{"schema": "equiscreen-ensemble/1", "members": ["../member-0", "/etc"], "card": {}}',
        '{"schema": "equiscreen-ensemble/1", "members": 3, "card": {}}',
    ],
)
def test_a_damaged_ensemble_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "ensemble.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"ensemble\.json is damaged"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize("card", ["null", "[]", '{"colour": 3}', "absent"])
def test_a_damaged_card_is_told(ensemble: tuple[Path, EnsembleReport], tmp_path: Path, card: str) -> None:
    for name in ("member-0", "member-1"):
        (tmp_path / name).symlink_to(ensemble[0] / name)
    content = json.loads((ensemble[0] / "ensemble.json").read_text())
    content["card"] = None if card == "absent" else json.loads(card)
    if card == "absent":
        del content["card"]
    (tmp_path / "ensemble.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"ensemble\.json is damaged"):
        load_members(tmp_path)


def test_a_member_that_is_missing_is_told(tmp_path: Path) -> None:
    (tmp_path / "ensemble.json").write_text(
        '{"schema": "equiscreen-ensemble/1", "members": ["member-0", "member-1"], "card": {}}'
    )
    with pytest.raises(CheckpointError, match=r"member-0: there is no model\.ckpt in this folder"):
        load_members(tmp_path)


@pytest.mark.slow
def test_a_killed_ensemble_goes_on_with_the_members_that_it_lacks(properties: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    run = tmp_path / "run"
    config.write_text(yaml.safe_dump(settings_of(max_epochs=12).model_dump(mode="json")))
    command = [sys.executable, "-m", "equiscreen", "train", properties, "--config", config, "--seeds", "2"]
    process = subprocess.Popen([*command, "--out", run], stderr=subprocess.DEVNULL)
    kill_when(process, run / "member-1" / "checkpoints" / "last.ckpt")
    assert not (run / "ensemble.json").exists()
    assert not (run / "member-1" / "model.ckpt").exists()
    first = run / "member-0" / "model.ckpt"
    before = (first.read_bytes(), first.stat().st_mtime_ns)
    with pytest.raises(CheckpointError, match="run the same `equiscreen train` command again"):
        load_members(run)
    with pytest.raises(OutputExistsError, match="different settings or stores"):
        train_ensemble(properties, run, settings_of(max_epochs=12), members=3)
    report = train_ensemble(properties, run, settings_of(max_epochs=12), members=2)
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert report.members == len(load_members(run)[0]) == 2
