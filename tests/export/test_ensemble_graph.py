"""Ensembles as one ONNX file: mean and spread are those of the members, also in scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from equiscreen.cli.terminal.describe import describe
from equiscreen.export import OnnxPotential
from equiscreen.export.checks import all_nodes, check_structure
from equiscreen.export.ensemble_graph import join
from equiscreen.export.exporter import export_onnx
from equiscreen.model.checkpoint import MODEL_FILE, ModelCard, load_members, save_checkpoint, save_ensemble
from equiscreen.model.networks.ensemble import EnsemblePotential
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphBlock, GraphStore, featurize
from equiscreen.pipeline.errors import CheckpointError
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import screen
from equiscreen.screening.scoring.score import score_block
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..conftest import CUTOFF, ELEMENTS, small_network, traced_once

NETWORK = {"n_radial": 2, "n_interactions": 1, "correlation": 1, "heads": {"gap": {}, "charge": {"per": "atom"}}}


def members(count: int) -> list[EquivariantNetwork]:
    """Float32 networks of one architecture whose weights differ by a few percent."""
    out = []
    for number in range(count):
        network = small_network("4x0e + 2x1o", **NETWORK).float()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1 + 0.05 * number)
        out.append(network.eval())
    return out


def save(folder: Path, networks: Sequence[EquivariantNetwork]) -> Path:
    """An ensemble folder, as training writes it."""
    names = [f"member-{number}" for number in range(len(networks))]
    for name, network in zip(names, networks, strict=True):
        (folder / name).mkdir(parents=True)
        save_checkpoint(folder / name / MODEL_FILE, network, ModelCard())
    save_ensemble(folder, names, ModelCard(validation={"energy eV/atom": 0.02}, calibration={"energy": 1.25}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("ensemble"), members(2))


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "m.onnx"
    with traced_once():
        report = export_onnx(folder, out)
    assert report.path == out
    return out


def test_one_file_finds_what_the_members_find_together(model: Path, folder: Path) -> None:
    networks, _ = load_members(folder)
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 9, seed=130), CUTOFF)
    potential = OnnxPotential.load(model)
    found, expected = potential.evaluate(block).arrays(), EnsemblePotential(networks).evaluate(block).arrays()
    assert found.keys() == expected.keys()
    each = [TorchPotential(network).evaluate(block).arrays() for network in networks]
    for name, values in expected.items():
        # In float32, and spreads are differences of larger numbers.
        size = max(1.0, float(np.nanmax(np.abs(expected[name.removesuffix("_std")]))))
        assert np.allclose(found[name], values, rtol=1e-4, atol=1e-5 * size, equal_nan=True), name
    for name in ("energy", "forces", "gap", "charge"):
        spread = np.std([arrays[name] for arrays in each], axis=0, ddof=1)
        assert spread.max() > 1e-3
        assert np.allclose(found[f"{name}_std"], spread, rtol=1e-3, atol=1e-4), name


def test_the_file_says_that_it_is_an_ensemble(model: Path, folder: Path) -> None:
    metadata = OnnxPotential.load(model).metadata
    names = ["energy", "forces", "stress", "gap", "charge"]
    assert metadata.members == 2
    assert metadata.calibration == {"energy": 1.25}
    assert metadata.validation == {"energy eV/atom": 0.02}
    assert [spec.name for spec in metadata.outputs] == [*names, *(f"{name}_std" for name in names)]
    units = {spec.name: spec.unit for spec in metadata.outputs}
    assert all(units[f"{name}_std"] == units[name] for name in names)
    assert {f"{name}{ending}/float64" for name in names for ending in ("", "_std")} <= metadata.parity.keys()
    for path in (model, folder):
        facts = describe(path)
        assert facts["members"] == 2
        assert facts["calibration"] == {"energy": 1.25}
    assert json.dumps(describe(folder))
    graph = onnx.load_model_from_string(model.read_bytes())
    check_structure(graph)
    assert not [node.op_type for node in all_nodes(graph.graph.node) if node.op_type.startswith("Scatter")]


def test_scores_hold_spreads_with_units(model: Path, folder: Path, tmp_path: Path) -> None:
    images = [structure.to_ase() for structure in probe_structures(ELEMENTS, 8, seed=131)]
    images[2].numbers[0] = 92
    ase.io.write(tmp_path / "c.extxyz", images)
    featurize(tmp_path / "c.extxyz", tmp_path / "c.zarr", cutoff=5.0, scheduler="threads")
    scores = screen(tmp_path / "c.zarr", model, tmp_path / "s.zarr", scheduler="threads")
    known = np.array([0, 1, *range(3, 8)])
    block = GraphStore(tmp_path / "c.zarr").block(0, 8).take(known)
    each = [TorchPotential(network).evaluate(block) for network in load_members(folder)[0]]
    energy_std = np.std([x.energy for x in each], axis=0, ddof=1)
    assert np.allclose(scores["energy_std"].values[known], energy_std, rtol=1e-3, atol=1e-4)
    assert np.allclose(scores["energy"].values[known], np.mean([x.energy for x in each], axis=0), rtol=0, atol=1e-4)
    of_atoms = np.linalg.norm(np.std([x.forces for x in each], axis=0, ddof=1), axis=1)
    largest = np.maximum.reduceat(of_atoms, block.atom_start)
    assert np.allclose(scores["max_force_std"].values[known], largest, rtol=1e-3, atol=1e-4)
    gaps = np.std([x.properties["gap"] for x in each], axis=0, ddof=1)
    assert np.allclose(scores["gap_std"].values[known], gaps, rtol=1e-3, atol=1e-4)
    assert scores["energy_std"].attrs["units"] == "eV"
    assert scores["max_force_std"].attrs["units"] == "eV/angstrom"
    assert not {"stress_std", "forces_std", "charge", "charge_std"} & set(scores.variables)
    assert scores.attrs["model"]["members"] == 2
    spreads = [name for name in scores.data_vars if str(name).endswith("_std")]
    assert all(np.isnan(scores[name].values[2]).all() for name in spreads)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), count=st.integers(1, 5))
def test_a_spread_in_the_scores_belongs_to_its_structure(seed: int, count: int) -> None:
    potential = EnsemblePotential(members(3))
    crystals = probe_structures(ELEMENTS, count, seed, max_atoms=6)
    whole = score_block(GraphBlock.from_structures(crystals, CUTOFF), potential)
    for place, crystal in enumerate(crystals):
        alone = score_block(GraphBlock.from_structures([crystal], CUTOFF), potential)
        for name in ("energy", "energy_std", "max_force", "max_force_std", "gap_std"):
            # Float32 sums over padding of another length.
            assert np.allclose(alone[name], whole[name][place : place + 1], rtol=1e-3, atol=1e-4), name


def affine(factor: float, shift: float) -> onnx.ModelProto:
    """A graph that computes factor * x + shift."""
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [], [x]) for name, x in (("f", factor), ("s", shift))]
    nodes = [
        helper.make_node("Mul", ["x", "f"], ["scaled"], "scale"),
        helper.make_node("Add", ["scaled", "s"], ["y"], "shift"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "affine", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


@settings(deadline=None, max_examples=25)
@given(
    kinds=st.lists(st.tuples(st.floats(-5, 5, width=32), st.floats(-5, 5, width=32)), min_size=2, max_size=6),
    x=st.lists(st.floats(-10, 10, width=32), max_size=5),
)
def test_graphs_side_by_side_give_mean_and_spread(kinds: list[tuple[float, float]], x: list[float]) -> None:
    given_x = np.array(x, dtype=np.float32)
    joined = join([affine(*kind) for kind in kinds])
    onnx.checker.check_model(joined)
    found = run(joined, given_x)
    each = np.array([factor * given_x.astype(np.float64) + shift for factor, shift in kinds])
    assert found.keys() == {"y", "y_std"}
    # Numbers up to 55 in float32; the square root of a difference that is pure rounding error has half as many digits.
    assert np.allclose(found["y"], each.mean(axis=0), rtol=0, atol=1e-4)
    assert np.allclose(found["y_std"], each.std(axis=0, ddof=1), rtol=0, atol=1e-3)


def test_an_unfinished_ensemble_is_not_exported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "member-0").symlink_to(folder / "member-0")
    (tmp_path / "ensemble.json").write_text((folder / "ensemble.json").read_text())
    with pytest.raises(CheckpointError, match=r"member-1: .* run the same `equiscreen train` command again"):
        export_onnx(tmp_path, tmp_path / "m.onnx")
    (tmp_path / "ensemble.json").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.ckpt in this folder"):
        export_onnx(tmp_path, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_members_of_two_kinds_are_not_exported(tmp_path: Path) -> None:
    networks = [*members(1), small_network("4x0e + 2x1o", n_radial=2, correlation=1).float()]
    with pytest.raises(CheckpointError, match="differ in elements, cutoff, outputs or dtype"):
        export_onnx(save(tmp_path / "run", networks), tmp_path / "m.onnx")


@pytest.mark.slow
def test_an_ensemble_of_three_in_float64(tmp_path: Path) -> None:
    networks = members(3)
    export_onnx(save(tmp_path / "run", networks), tmp_path / "m.onnx", float64=True)
    potential = OnnxPotential.load(tmp_path / "m.onnx")
    assert (potential.metadata.members, potential.metadata.dtype) == (3, "float64")
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 5, seed=132), CUTOFF)
    expected = EnsemblePotential(load_members(tmp_path / "run", torch.float64)[0]).evaluate(block).arrays()
    for name, values in potential.evaluate(block).arrays().items():
        assert np.allclose(values, expected[name], rtol=1e-6, atol=1e-8, equal_nan=True), name
