"""Files of NequIP: a trained network as checkpoint and as package, and what is wrong with other files."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equiscreen.model import load_checkpoint, load_pretrained
from equiscreen.model.networks.nequip import NequipNetwork
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.pretrained.load import import_weights
from equiscreen.model.pretrained.nequip.files import open_checkpoint
from equiscreen.model.pretrained.nequip.nequip import nequip_network
from equiscreen.pipeline.errors import CheckpointError

from ...conftest import ROOT
from .test_oracles import check

FOLDER = ROOT / "tests/oracles/nequip"
PACKAGE, CHECKPOINT = FOLDER / "trained.nequip.zip", FOLDER / "trained.ckpt"


class Harmful:
    """A pickle that runs a command when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def changed_checkpoint(path: Path, change: Callable[[dict[str, Any]], object], source: Path = CHECKPOINT) -> Path:
    """Write the checkpoint with a change."""
    content = torch.load(source, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def changed_package(
    path: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None, source: Path = PACKAGE
) -> Path:
    """Write the package with other contents of its members, and additional members."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, content in (extra or {}).items():
            new.writestr(name, content)
    return path


def same(_name: str, content: bytes) -> bytes:
    return content


def replaced(pattern: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
    return lambda _, content: re.sub(pattern, new, content)


def model_of(settings: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    """A change of settings of the network."""
    return lambda content: content["hyper_parameters"]["model"].update(settings)


@pytest.mark.parametrize("path", [CHECKPOINT, PACKAGE], ids=["checkpoint", "package"])
def test_a_trained_network_gives_the_numbers_of_nequip(path: Path) -> None:
    """Both hold averaged weights; its own code, too, is float32, which doubles the rounding."""
    network, card = load_pretrained(path, scheme="matpes-pbe")
    expected = dict(np.load(FOLDER / "trained.npz"))
    check(TorchPotential(network), expected, torch.float32, factor=2)
    assert (card.symmetry, card.energy_scheme, card.origin) == ("o3", "matpes-pbe", {"file": path.name})
    assert network.elements == (1, 6, 8, 14, 29)


@pytest.mark.parametrize("number", ["00", "01"])
def test_checkpoints_of_the_oldest_version_give_its_numbers(number: str) -> None:
    """With parity, whose irreps it sorts differently, and without, where it has even irreps only."""
    folder = ROOT / "tests/oracles/nequip_old"
    path = folder / f"{number}.ckpt"
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"]["info_dict"]["versions"]["nequip"] == "0.7.1"
    network = nequip_network(open_checkpoint(content, path))
    assert network.config.symmetry == {"00": "o3", "01": "so3"}[number]
    check(TorchPotential(network), dict(np.load(folder / f"{number}.npz")), torch.float64)


def test_checkpoint_and_package_are_the_same_network() -> None:
    first, second = (load_pretrained(path)[0].state_dict() for path in (CHECKPOINT, PACKAGE))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.allclose(weight, second[name], rtol=1e-6, atol=0), name


def test_a_package_is_imported_by_the_command(tmp_path: Path) -> None:
    line = import_weights(PACKAGE, tmp_path / "out.ckpt")
    assert "5 elements, cutoff 4 angstrom" in line
    assert "set `--scheme`" in line
    network, _ = load_checkpoint(tmp_path / "out.ckpt")
    expected = dict(np.load(FOLDER / "trained.npz"))
    check(TorchPotential(network), expected, torch.float32, factor=2)


@pytest.mark.parametrize(("version", "power"), [("0.13.0", 5), ("0.16.2", 5), ("0.17.0", 6)])
def test_before_0_17_the_repulsion_had_the_envelope_of_the_radial_basis(
    version: str, power: int, tmp_path: Path
) -> None:
    """NequIP-OAM-L is from 0.13."""

    def older(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["model"]["polynomial_cutoff_p"] = 5
        content["hyper_parameters"]["info_dict"]["versions"]["nequip"] = version

    network, _ = load_pretrained(changed_checkpoint(tmp_path / "older.ckpt", older))
    assert isinstance(network, NequipNetwork)
    assert (network.config.envelope_power, network.config.pair_repulsion) == (5, power)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_edge_type_cutoff": {"H": 2.0}}, "per_edge_type_cutoff is set"),
        ({"categorical_graph_field_embed": []}, "categorical_graph_field_embed is set"),
        ({"convnet_nonlinearity_type": "norm"}, "convnet_nonlinearity_type is 'norm'"),
        ({"convnet_nonlinearity_scalars": {"e": "gelu", "o": "tanh"}}, "convnet_nonlinearity is 'gelu'"),
        ({"readout_mlp_nonlinearity": "gelu"}, "readout_mlp_nonlinearity is 'gelu'"),
        ({"polynomial_cutoff_p": 5.5}, r"polynomial_cutoff_p is 5\.5, not an integer"),
        ({"pair_potential": {"_target_": "x.LennardJones"}}, r"pair_potential is x\.LennardJones"),
        ({"pair_potential": {"_target_": "nequip.nn.pair_potential.ZBL", "units": "real"}}, "has units 'real'"),
        ({"type_names": ["H", "C", "O", "Si", "Xx"], "pair_potential": None}, "atom type Xx is not an element"),
        ({"type_names": ["H", "C", "O", "Si", "H"], "pair_potential": None}, "type_names: contains duplicates"),
        ({"attention": True}, "unknown setting attention"),
        ({"_target_": "nequip.model.ModelFromPackage"}, "_target_ is nequip.model.ModelFromPackage; .* package it"),
        ({"_target_": "allegro.model.AllegroForces"}, "_target_ is allegro.model.AllegroForces"),
        ({"num_layers": 10**9}, "at most 32 items|damaged"),
        ({"l_max": 10**9, "num_features": 4}, "less than or equal to 6|damaged"),
        ({"num_features": [7, 4]}, "damaged, or was written by an unsupported version of NequIP"),
    ],
)
def test_an_unknown_architecture_is_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = changed_checkpoint(tmp_path / "other.ckpt", model_of(settings))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(path)
    assert "\n" not in str(caught.value)


def spoil(content: dict[str, Any]) -> None:
    content["state_dict"]["ema.ema_weight_3"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil, r"the weights layer0_convnet\.conv\.edge_mlp\.mlp\.0\.weight contain NaN"),
        (lambda x: x["hyper_parameters"]["info_dict"]["versions"].update(nequip="0.20.0"), r"from NequIP 0\.20\.0"),
        (
            lambda x: x["hyper_parameters"]["info_dict"]["training_module"].update(_target_="a.ScheduleFree"),
            r"the training module a\.ScheduleFree is not supported",
        ),
        (lambda x: x["state_dict"].pop("ema.ema_weight_2"), "averaged weights do not fit"),
        (lambda x: x["state_dict"]["ema._extra_state"].update(is_holding_ema_weights=False), "during validation"),
        (lambda x: x["hyper_parameters"].update(model=Harmful()), r"would run (posix|nt)\.system"),
    ],
    ids=["NaN", "version", "trainer", "averages", "validation", "harmful"],
)
def test_a_bad_checkpoint_is_refused(change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    path = changed_checkpoint(tmp_path / "bad.ckpt", change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(path)
    assert "\n" not in str(caught.value)


HARMFUL, NEWER = (pickle.dumps(Harmful(), protocol) for protocol in (2, 4))
BAD_PACKAGES: dict[str, tuple[Callable[[str, bytes], bytes], dict[str, bytes], str]] = {
    "outside": (same, {"last.nequip/../../evil": b""}, "which lies outside its folder"),
    "absolute": (same, {"/etc/evil": b""}, "which lies outside its folder"),
    "drive": (same, {"C:/evil": b""}, "which lies outside its folder"),
    "harmful": (
        lambda name, content: HARMFUL if name.endswith(".pkl") else content,
        {},
        r"reading the file requires (posix|nt)\.system, which is not allowed",
    ),
    "operation": (
        lambda name, content: NEWER if name.endswith(".pkl") else content,
        {},
        "the pickle uses the operation STACK_GLOBAL, which PyTorch does not use",
    ),
    "version": (replaced(rb"nequip: 0\.19\.1", b"nequip: 1.0.0"), {}, r"from NequIP 1\.0\.0"),
    "format": (replaced(rb"package_version_id: 2", b"package_version_id: 3"), {}, "package version 3"),
    "pickle": (lambda name, x: x[:5000] if name.endswith(".pkl") else x, {}, r"eager_model\.pkl cannot be read"),
    "tensor": (lambda name, x: x[:4] if name.endswith(".storage") else x, {}, r"a tensor has \d bytes instead of \d+"),
    "module": (replaced(rb"per_atom_energy_readout", b"per_atom_energy_somethi"), {}, "per_atom_energy_somethi"),
}


@pytest.mark.parametrize("name", list(BAD_PACKAGES))
def test_a_bad_package_is_refused(name: str, tmp_path: Path) -> None:
    change, extra, message = BAD_PACKAGES[name]
    path = changed_package(tmp_path / "bad.nequip.zip", change, extra)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(path)
    assert "\n" not in str(caught.value)


def test_a_cut_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.nequip.zip"
    path.write_bytes(PACKAGE.read_bytes()[:20_000])
    with pytest.raises(CheckpointError, match="damaged, or not a checkpoint of SevenNet, Nequix"):
        load_pretrained(path)


def test_a_package_with_too_many_members_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equiscreen.model.pretrained.records.archive.MAX_MEMBERS", 10)
    with pytest.raises(CheckpointError, match="the limit is 10"):
        load_pretrained(PACKAGE)
    monkeypatch.undo()
    monkeypatch.setattr("equiscreen.model.pretrained.records.archive.MAX_PICKLE_BYTES", 1_000)
    with pytest.raises(CheckpointError, match=r"eager_model\.pkl has 106,\d+ bytes; the limit is 1,000"):
        load_pretrained(PACKAGE)


def test_a_network_of_nequip_has_one_fidelity() -> None:
    for path in (CHECKPOINT, PACKAGE):
        with pytest.raises(CheckpointError, match="has only one fidelity"):
            load_pretrained(path, modality="PBE")
