"""Heads in exported files and in scores: each property has its axes and unit, and absent outputs stay absent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
import xarray as xr
from equiscreen.cli.terminal.describe import describe
from equiscreen.export import OnnxPotential
from equiscreen.export.exporter import export_onnx
from equiscreen.model.checkpoint import ModelCard, save_checkpoint
from equiscreen.model.config.network import NetworkConfig
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.statistics import DataStatistics, HeadStatistics
from equiscreen.pipeline import GraphBlock, GraphStore, LabelMapping, Structure, featurize
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import screen
from equiscreen.screening.dataset.scores import NOT_FINITE, OK, UNKNOWN_ELEMENT, score_arrays
from equiscreen.screening.scoring.score import score_block
from hypothesis import given, settings
from hypothesis import strategies as st

from ..conftest import CUTOFF, ELEMENTS, REFERENCES, traced_once

HEADS = {
    "gap": {},
    "dielectric": {"tensor": "symmetric", "transform": "log"},
    "stiffness": {"tensor": "symmetric", "shape": [6]},
    "mu": {"tensor": "dipole"},
    "charge": {"per": "atom"},
    "born": {"tensor": "symmetric", "per": "atom"},
    "parts": {"irreps": "0e + 1o"},
}
UNITS = {"gap": "eV", "stiffness": "GPa", "charge": "e"}
# Rows of the candidates' store: a crystal with uranium, and a molecule at the end.
URANIUM, MOLECULE, COUNT = 3, 9, 10


def network_of(heads: dict[str, dict[str, object]], *, energy: bool) -> EquivariantNetwork:
    """An untrained network whose heads have units."""
    torch.manual_seed(5)
    config = NetworkConfig.model_validate(
        {
            "cutoff": CUTOFF,
            "hidden_irreps": "4x0e + 2x1o",
            "n_radial": 2,
            "radial_hidden": 4,
            "correlation": 2,
            "n_interactions": 1,
            "energy": energy,
            "heads": {name: {"channels": 4, **head} for name, head in heads.items()},
        }
    )
    references = REFERENCES if energy else (0.0,) * len(ELEMENTS)
    plain = DataStatistics(references, (0.7 if energy else 1.0,) * len(ELEMENTS), 20.0)
    neutral = EquivariantNetwork(config, ELEMENTS, plain).statistics
    known: dict[str, HeadStatistics] = {
        name: replace(found, unit=UNITS.get(name, "")) for name, found in neutral.heads.items()
    }
    return EquivariantNetwork(config, ELEMENTS, replace(neutral, heads=known)).eval()


@pytest.fixture(scope="module")
def heads_alone() -> EquivariantNetwork:
    return network_of(HEADS, energy=False)


@pytest.fixture(scope="module")
def model(heads_alone: EquivariantNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported file of a network with heads and without energy."""
    folder = tmp_path_factory.mktemp("heads")
    save_checkpoint(folder / "model.ckpt", heads_alone, ModelCard())
    with traced_once():
        export_onnx(folder / "model.ckpt", folder / "m.onnx")
    return folder / "m.onnx"


def structures() -> list[Structure]:
    """Crystals, one of them with an element that no model here covers, and a molecule."""
    crystals = probe_structures(ELEMENTS, COUNT - 1, seed=120, max_atoms=8)
    numbers = crystals[URANIUM].atomic_number.copy()
    numbers[0] = 92
    crystals[URANIUM] = replace(crystals[URANIUM], atomic_number=numbers)
    return [*crystals, Structure.from_cartesian([29, 79], [[0, 0, 0], [2.4, 0.3, 0]])]


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graph store of the structures, with a column that has the name of a head and one that has not."""
    folder = tmp_path_factory.mktemp("candidates")
    images = [structure.to_ase() for structure in structures()]
    for place, atoms in enumerate(images):
        atoms.info.update(structure_id=f"c{place}", gap=f"wide {place}", family=f"f{place}")
    ase.io.write(folder / "c.extxyz", images)
    mapping = LabelMapping(columns=("gap", "family"))
    featurize(folder / "c.extxyz", folder / "c.zarr", cutoff=5.0, labels=mapping, scheduler="threads")
    return folder / "c.zarr"


@pytest.fixture(scope="module")
def scores(model: Path, candidates: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return screen(candidates, model, tmp_path_factory.mktemp("scores") / "s.zarr", scheduler="threads")


def test_an_exported_file_finds_what_the_network_finds(model: Path, heads_alone: EquivariantNetwork) -> None:
    potential = OnnxPotential.load(model)
    fresh = probe_structures(ELEMENTS, 7, seed=121)
    block = GraphBlock.from_structures([*fresh, structures()[MOLECULE]], CUTOFF)
    found, expected = potential.evaluate(block), TorchPotential(heads_alone).evaluate(block)
    assert potential.outputs == heads_alone.outputs
    assert found.properties.keys() == HEADS.keys()
    for name, values in expected.properties.items():
        assert found.properties[name].shape == values.shape
        assert np.allclose(found.properties[name], values, rtol=1e-4, atol=1e-4, equal_nan=True), name
    assert np.isnan(found.energy).all()
    assert np.isnan(found.forces).all()
    facts = describe(model)
    assert [spec["name"] for spec in facts["outputs"]] == list(HEADS)
    assert facts["members"] == 1


def test_scores_of_heads_have_axes_and_units_and_no_energy(scores: xr.Dataset) -> None:
    dims = {name: scores[name].dims[1:] for name in scores.data_vars}
    assert set(dims) == {"gap", "dielectric", "stiffness", "mu", "parts"}
    assert dims["gap"] == ()
    assert scores["dielectric"].shape == (COUNT, 3, 3)
    assert [name.split("_")[0] for name in map(str, dims["dielectric"])] == ["cartesian", "cartesian"]
    assert scores["stiffness"].shape == (COUNT, 6)
    assert dims["stiffness"] == ("voigt",)
    assert "xx, yy, zz, yz, xz, xy" in scores["stiffness"].attrs["description"]
    assert scores["parts"].shape == (COUNT, 4)
    assert {name: scores[name].attrs.get("units", "") for name in dims} == {name: UNITS.get(name, "") for name in dims}
    assert not {"energy", "energy_per_atom", "max_force", "stress", "energy_std"} & set(scores.variables)


def test_properties_of_atoms_are_not_in_the_scores(scores: xr.Dataset) -> None:
    assert not {"charge", "born"} & set(scores.variables)


def test_scores_are_the_networks(scores: xr.Dataset, candidates: Path, heads_alone: EquivariantNetwork) -> None:
    known = np.array([place for place in range(COUNT) if place != URANIUM])
    expected = TorchPotential(heads_alone).evaluate(GraphStore(candidates).block(0, COUNT).take(known)).properties
    for name in ("gap", "dielectric", "stiffness", "mu", "parts"):
        assert np.allclose(scores[name].values[known], expected[name], rtol=1e-4, atol=1e-4, equal_nan=True), name


def test_what_cannot_be_scored_is_nan_with_a_status(scores: xr.Dataset) -> None:
    status = scores["status"].values
    assert status.tolist() == [UNKNOWN_ELEMENT if place == URANIUM else OK for place in range(COUNT)]
    for name in ("gap", "dielectric", "stiffness", "parts"):
        absent = np.isnan(scores[name].values).reshape(COUNT, -1)
        assert absent[URANIUM].all()
        assert not np.delete(absent, URANIUM, axis=0).any()


def test_crystals_have_no_dipole(scores: xr.Dataset) -> None:
    there = np.isfinite(scores["mu"].values).all(axis=1)
    assert np.flatnonzero(there).tolist() == [MOLECULE]
    assert "NaN except for molecules" in scores["mu"].attrs["description"]


def test_a_column_of_a_heads_name_gives_way_and_others_stay(scores: xr.Dataset) -> None:
    assert scores["gap"].dtype == np.float64
    assert scores["family"].values.tolist() == [f"f{place}" for place in range(COUNT)]
    assert "family" in scores.coords


@pytest.mark.parametrize("energy", [False, True])
def test_arrays_of_scores_are_those_of_the_outputs(energy: bool) -> None:
    potential = TorchPotential(network_of(HEADS, energy=energy))
    block = GraphBlock.from_structures(structures(), CUTOFF)
    arrays = score_block(block, potential)
    specs = {spec.name: spec for spec in score_arrays(potential.outputs)}
    for name, spec in specs.items():
        if name in arrays:
            assert arrays[name].shape == spec.shape(COUNT), name
    assert ({"energy", "energy_per_atom", "max_force", "stress"} <= set(arrays)) == energy
    assert {"gap", "dielectric", "stiffness", "mu", "parts"} <= set(arrays)


@settings(deadline=None, max_examples=15)
@given(order=st.permutations(range(COUNT)))
def test_scores_follow_their_structures(order: list[int]) -> None:
    potential = TorchPotential(network_of({"gap": {}, "mu": {"tensor": "dipole"}}, energy=True))
    all_of_them = structures()
    before = score_block(GraphBlock.from_structures(all_of_them, CUTOFF), potential)
    after = score_block(GraphBlock.from_structures([all_of_them[place] for place in order], CUTOFF), potential)
    for name, values in before.items():
        if values.dtype == np.float64:
            assert np.allclose(after[name], values[order], rtol=1e-4, atol=1e-4, equal_nan=True), name
        else:
            assert np.array_equal(after[name], values[order]), name


@pytest.mark.parametrize("broken", ["gap", "born"])
def test_a_head_that_is_not_finite_is_told(broken: str) -> None:
    network = network_of(HEADS, energy=True)
    with torch.no_grad():
        for parameter in network.heads[broken].parameters():
            parameter.fill_(torch.nan)
    arrays = score_block(GraphBlock.from_structures(structures(), CUTOFF), TorchPotential(network))
    # A property of atoms is not in the scores, so it does not affect the status.
    expected = NOT_FINITE if broken == "gap" else OK
    assert set(np.delete(arrays["status"], URANIUM).tolist()) == {expected}
    assert np.isnan(np.delete(arrays["energy"], URANIUM)).all() == (broken == "gap")


@pytest.mark.slow
@pytest.mark.parametrize("float64", [False, True])
def test_heads_beside_an_energy_export_too(tmp_path: Path, float64: bool) -> None:
    network = network_of(HEADS, energy=True)
    save_checkpoint(tmp_path / "m.ckpt", network, ModelCard())
    report = export_onnx(tmp_path / "m.ckpt", tmp_path / "m.onnx", float64=float64)
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 5, seed=122), CUTOFF)
    found = OnnxPotential.load(tmp_path / "m.onnx").evaluate(block).arrays()
    for name, values in TorchPotential(network).evaluate(block).arrays().items():
        assert np.allclose(found[name], values, rtol=1e-4, atol=1e-4, equal_nan=True), name
    assert all(f"{name}/float64" in report.metadata.parity for name in ("energy", *HEADS) if name != "mu")
