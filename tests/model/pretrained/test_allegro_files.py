"""Files of Allegro: a trained network as checkpoint and as package, and what is wrong with other files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equiscreen.model import load_pretrained
from equiscreen.model.networks.allegro import AllegroNetwork
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.pretrained.nequip.allegro import allegro_network
from equiscreen.model.pretrained.nequip.files import open_checkpoint
from equiscreen.pipeline.errors import CheckpointError

from ...conftest import ROOT
from .test_nequip_files import changed_checkpoint, changed_package, model_of, replaced
from .test_oracles import check, imported, nequip_content, oracle

FOLDER = ROOT / "tests/oracles/allegro"
PACKAGE, CHECKPOINT = FOLDER / "trained.nequip.zip", FOLDER / "trained.ckpt"


@pytest.mark.parametrize("path", [CHECKPOINT, PACKAGE], ids=["checkpoint", "package"])
def test_a_trained_network_gives_the_numbers_of_allegro(path: Path) -> None:
    """Both hold averaged weights; its own code, too, is float32, which doubles the rounding."""
    network, card = load_pretrained(path, scheme="matpes-pbe")
    assert isinstance(network, AllegroNetwork)
    expected = dict(np.load(FOLDER / "trained.npz"))
    check(TorchPotential(network), expected, torch.float32, factor=2)
    assert (card.symmetry, card.energy_scheme, card.origin) == ("o3", "matpes-pbe", {"file": path.name})
    assert network.elements == (1, 6, 8, 14, 29)


def test_checkpoint_and_package_are_the_same_network() -> None:
    first, second = (load_pretrained(path)[0].state_dict() for path in (CHECKPOINT, PACKAGE))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.allclose(weight, second[name], rtol=1e-6, atol=1e-7), name


def test_modifiers_that_choose_faster_code_do_not_matter(tmp_path: Path) -> None:
    """Allegro-OAM-L was trained so, with the longer name of the builder."""

    def modified(content: dict[str, Any]) -> None:
        model = content["hyper_parameters"]["model"]
        model["_target_"] = "allegro.model.allegro_models.AllegroModel"
        modifiers = [{"modifier": "enable_CuEquivarianceContracter"}]
        content["hyper_parameters"]["model"] = {
            "_target_": "nequip.model.modify",
            "modifiers": modifiers,
            "model": model,
        }

    path = changed_checkpoint(tmp_path / "modified.ckpt", modified, CHECKPOINT)
    first, second = (load_pretrained(file)[0].state_dict() for file in (CHECKPOINT, path))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_signs_of_the_coupling_coefficients_are_those_of_the_file() -> None:
    """The same network, written with 3j symbols of the other sign."""
    content = torch.load(CHECKPOINT, weights_only=True)
    content["state_dict"] = {name: x for name, x in content["state_dict"].items() if not name.startswith("ema.")}
    turned = copy.deepcopy(content)
    state = turned["state_dict"]
    name = next(name for name in state if name.endswith("allegro.tps.0.w3j"))
    weights = state[name.replace("w3j", "weights")]
    assert state[name].shape[0] == weights.shape[1] > 3
    state[name][2] *= -1
    weights[:, 2] *= -1
    first, second = (allegro_network(open_checkpoint(one, "x")).state_dict() for one in (content, turned))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    state[name][2] *= 1.5
    with pytest.raises(ValueError, match=r"the 3j symbols of .* follow another convention"):
        allegro_network(open_checkpoint(turned, "x"))


def test_weights_by_element_follow_the_order_of_the_types() -> None:
    """The oracles' types are not in the order of the atomic numbers."""
    network = imported("allegro", "00")
    state = oracle("allegro", "00").state
    theirs = next(x for name, x in state.items() if name.endswith("type_embed.center_embed.weight")).double()
    types = oracle("allegro", "00").written["model"]["type_names"]
    assert types == ["Cu", "H", "Si", "O", "C"]
    assert network.elements == (1, 6, 8, 14, 29)
    assert torch.equal(network.state_dict()["embedding.receiver"], theirs[[1, 4, 3, 2, 0]])


def test_a_scale_of_zero_does_not_harm_the_repulsion() -> None:
    content = nequip_content("allegro", "00")
    model, state = content["hyper_parameters"]["model"], content["state_dict"]
    model["pair_potential"] = {
        "_target_": "nequip.nn.pair_potential.ZBL",
        "chemical_species": model["type_names"],
        "units": "metal",
    }
    name = next(name for name in state if name.endswith("per_type_energy_scale_shift.scales"))
    found = []
    for scale in (0.0, 1.0):
        state[name] = torch.full((5, 1), scale, dtype=torch.float64)
        network = allegro_network(open_checkpoint(content, "x"))
        found.append(network)
    assert found[0].repulsion is not None
    assert found[1].repulsion is not None
    distance, neighbors = torch.tensor([[1.0], [1.5]], dtype=torch.float64), torch.tensor([[1], [0]])
    first, second = (
        network.repulsion(distance, distance / 4, torch.tensor([0, 3]), neighbors) * network.energy_scales[[0, 3]]
        for network in found
    )
    assert torch.allclose(first, second, rtol=1e-12, atol=0)
    assert (second > 0.5).all()  # eV


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"allegro_mlp_nonlinearity": "gelu"}, "allegro_mlp_nonlinearity is 'gelu'"),
        ({"readout_mlp_nonlinearity": "sigmoid"}, "readout_mlp_nonlinearity is 'sigmoid'"),
        ({"radial_chemical_embed": {"_target_": "my.Embedding"}}, r"radial_chemical_embed is my\.Embedding"),
        (
            {"radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_beta": 3}},
            "radial_chemical_embed has the unknown setting num_beta",
        ),
        (
            {"radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "polynomial_cutoff_p": 5.5}},
            r"averaged weights do not fit|polynomial_cutoff_p is 5\.5, not an integer",
        ),
        ({"pair_potential": {"_target_": "x.LennardJones"}}, r"pair_potential is x\.LennardJones"),
        ({"type_names": ["H", "C", "O", "Si", "Xx"], "pair_potential": None}, "atom type Xx is not an element"),
        ({"attention": True}, "unknown setting attention"),
        (
            {"_target_": "allegro.model.AllegroForces"},
            r"_target_ is allegro\.model\.AllegroForces; .* modified Allegro network",
        ),
        ({"num_layers": 10**9}, "at most 32 items|damaged"),
        ({"l_max": 10**9}, "less than or equal to 6|damaged"),
        ({"num_layers": 2}, "damaged, or was written by an unsupported version of Allegro"),
        (
            {"irreps_edge_sh": "0e+2e", "tensor_track_allowed_irreps": "0e+2e"},
            r"irreps_edge_sh is 0e \+ 2e",
        ),
    ],
)
def test_an_unknown_architecture_is_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = changed_checkpoint(tmp_path / "other.ckpt", model_of(settings), CHECKPOINT)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(path)
    assert "\n" not in str(caught.value)


def modify(content: dict[str, Any]) -> None:
    model = content["hyper_parameters"]["model"]
    modifiers = [{"modifier": "modify_PerTypeScaleShift"}]
    changed = {"_target_": "nequip.model.modify", "modifiers": modifiers, "model": model}
    content["hyper_parameters"]["model"] = changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x["hyper_parameters"]["info_dict"]["versions"].update(allegro="0.9.0"), r"from Allegro 0\.9\.0"),
        (modify, "unsupported architecture: the modifier modify_PerTypeScaleShift"),
        (
            lambda x: x["hyper_parameters"].update(model="AllegroModel"),
            "damaged, or was written by an unsupported version of NequIP",
        ),
    ],
    ids=["version", "modifier", "text"],
)
def test_a_bad_checkpoint_is_refused(change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    path = changed_checkpoint(tmp_path / "bad.ckpt", change, CHECKPOINT)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (rb"edge_readout", b"edge_reading", r"edge_reading \(nequip\.nn\.mlp\.ScalarMLP\) is unknown"),
        (rb"\nContracter\n", b"\nOtherproduct\n", r"has products of the kind allegro\.nn\._strided\._contract\.Other"),
        (rb"allegro: 0\.8\.3", b"allegro: 1.0.0", r"from Allegro 1\.0\.0"),
    ],
)
def test_a_bad_package_is_refused(old: bytes, new: bytes, message: str, tmp_path: Path) -> None:
    path = changed_package(tmp_path / "bad.nequip.zip", replaced(old, new), source=PACKAGE)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(path)
    assert "\n" not in str(caught.value)
