"""Checks of exported graphs: they pass correct graphs and catch wrong ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from equiscreen.cli.terminal.describe import describe
from equiscreen.export.checks import all_nodes, check_agreement, check_structure, is_reducing_scatter
from equiscreen.export.exporter import export_onnx, lower_and_check
from equiscreen.export.probes import Probes
from equiscreen.export.runtime.metadata import ModelMetadata
from equiscreen.export.runtime.onnx_potential import OnnxPotential
from equiscreen.model.checkpoint import ModelCard
from equiscreen.model.config.config import Config
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.training.train import train
from equiscreen.pipeline import featurize
from equiscreen.pipeline.errors import ExportError
from onnx import TensorProto, helper

from ..conformance.networks import NEQUIP, nequip_of
from ..conftest import CUTOFF, ELEMENTS, small_network, traced_once


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_exported_graph_holds_a_reducing_scatter(exported: Callable[[str], Path], dtype: str) -> None:
    model = onnx.load_model_from_string(exported(dtype).read_bytes())
    nodes = list(all_nodes(model.graph.node))
    assert len(nodes) > 100
    assert not [node.op_type for node in nodes if node.op_type.startswith("Scatter")]
    assert {node.domain for node in nodes} == {""}
    check_structure(model)


def graph(nodes: list[onnx.NodeProto], shape: list[object] | None = None) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or ["n", 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (graph([helper.make_node("ScatterND", ["x", "i", "x"], ["y"], reduction="add")]), "ScatterND"),
        (graph([helper.make_node("ScatterElements", ["x", "i", "x"], ["y"], reduction="mul")]), "ScatterElements"),
        (graph([helper.make_node("Einsum", ["x"], ["y"], equation="ij->j")]), "Einsum"),
        (graph([helper.make_node("Sin", ["x"], ["y"])]), "Sin"),
        (graph([helper.make_node("Relu", ["x"], ["y"], domain="com.evil")]), "com.evil"),
        (graph([helper.make_node("Relu", ["x"], ["y"])], [17, 3]), r"fixed sizes \[17\]"),
    ],
)
def test_what_must_not_be_in_a_graph_is_found(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_structure(model)


def test_scatters_inside_other_graphs_are_found() -> None:
    inner = helper.make_graph([helper.make_node("ScatterND", ["a", "b", "c"], ["d"], reduction="add")], "inner", [], [])
    nodes = list(all_nodes([helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)]))
    assert sum(is_reducing_scatter(node) for node in nodes) == 2


def test_parity_with_another_network_fails(exported: Callable[[str], Path], network: EquivariantNetwork) -> None:
    potential = OnnxPotential.load(exported("float32"))
    probes = Probes.of(small_network(correlation=2).float())
    found = check_agreement([small_network(correlation=2).float()], potential, probes)
    assert set(found) == {f"{x}/{d}" for x in ("energy", "forces", "stress") for d in ("float32", "float64")}
    assert max(found.values()) < 1e-4
    other = small_network(correlation=2).float()
    other.radial.perceptrons[0].weights[0].data *= 1.01
    with pytest.raises(ExportError, match="differs from PyTorch"):
        check_agreement([other], potential, probes)
    assert network.elements == ELEMENTS


def test_an_export_that_breaks_a_law_fails() -> None:
    """Wrongly mixed spherical harmonics break rotations, although PyTorch and ONNX Runtime agree on them."""
    wrong = small_network("2x0e + 2x1o", n_interactions=1, correlation=2).float()
    wrong.harmonics._raise_2.data[:, 0] *= 1.01
    with traced_once(), pytest.raises(ExportError, match="predictions for rotated structures are off by"):
        lower_and_check([wrong], ModelCard())


def test_what_knows_no_mirrors_may_not_say_so() -> None:
    """A network without parity whose card claims parity."""
    narrow = ("2x0e + 2x1e", "2x0e + 2x1e", "2x0e")
    network = nequip_of({**NEQUIP["sevennet"], "hidden_irreps": narrow, "l_max": 1}, torch.float32)
    with torch.no_grad():
        for interaction in network.interactions[1:]:
            interaction.convolution.radial[-1] *= 10
    with traced_once():
        report = lower_and_check([network], ModelCard(symmetry="so3"))[1].laws
        assert {name.split("/")[1] for name in report} == {"rotated", "moved and renumbered"}
        with pytest.raises(ExportError, match="predictions for mirrored structures are off by"):
            lower_and_check([network], ModelCard(symmetry="o3"))


def test_metadata_is_complete(exported: Callable[[str], Path]) -> None:
    metadata = OnnxPotential.load(exported("float32")).metadata
    assert metadata.cutoff == CUTOFF
    assert metadata.elements == ELEMENTS
    assert metadata.dtype == "float32"
    assert (metadata.symmetry, metadata.energy_scheme) == ("o3", "own")
    assert metadata.parity["forces/float64"] < 1e-4
    changes = ("rotated", "mirrored", "moved and renumbered")
    assert {*metadata.laws} == {f"{output}/{change}" for output in ("energy", "forces", "stress") for change in changes}
    assert max(metadata.laws.values()) < 1e-4
    assert metadata.limits == {"energy eV/atom": 1e-5, "forces eV/angstrom": 1e-4, "stress eV/angstrom^3": 1e-5}
    assert metadata.probes["structures"] == 24
    assert 0.01 < metadata.probes["forces eV/angstrom"] < 10
    assert len(metadata.weights_sha256) == 64
    assert metadata.probe_batch is not None
    assert ModelMetadata.from_props(metadata.to_props(), "again") == metadata


def test_info_on_a_model_is_json(exported: Callable[[str], Path]) -> None:
    facts = json.loads(json.dumps(describe(exported("float32"))))
    assert [output["name"] for output in facts["outputs"]] == ["energy", "forces", "stress"]
    assert facts["cutoff"] == CUTOFF
    assert facts["parity"]["energy/float32"] < 1e-5
    assert facts["probe_batch_structures"] == 6


def test_sine_depends_on_the_place_in_its_tensor() -> None:
    """Why Sin and Cos are forbidden. If this fails, ONNX Runtime has changed and they can be allowed again."""
    values = np.abs(np.random.default_rng(0).normal(size=20_011) * 3).astype(np.float32)
    model = graph([helper.make_node("Sin", ["x"], ["y"])], ["n"])
    model.ir_version = 10
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    whole = session.run(None, {"x": values})[0]
    shifted = [session.run(None, {"x": values[k : k + 5003 + k].copy()})[0] for k in range(1, 17)]
    assert any(not np.array_equal(part, whole[k : k + 5003 + k]) for k, part in enumerate(shifted, start=1))


@pytest.mark.slow
def test_a_network_trained_on_molecules_exports(data: Path, tmp_path: Path) -> None:
    featurize(data / "acac/train_300K.xyz", tmp_path / "g.zarr", cutoff=4.0, limit=100, scheduler="threads")
    config = Config.model_validate({"network": {"preset": "small"}, "training": {"max_epochs": 4, "batch_size": 8}})
    train(tmp_path / "g.zarr", tmp_path / "run", config)
    metadata = export_onnx(tmp_path / "run/model.ckpt", tmp_path / "m.onnx").metadata
    assert metadata.limits["forces eV/angstrom"] == pytest.approx(1e-4)
    assert 0.1 < metadata.probes["forces eV/angstrom"] <= 10
    distances = OnnxPotential.load(tmp_path / "m.onnx").minimum_distances
    assert distances is not None
    assert 0.9 < distances[1, 6] < 1.1
