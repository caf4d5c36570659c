"""The checks of exported graphs: that they pass what is right, and that they catch what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from equiscreen.export.checks import all_nodes, check_parity, check_structure, is_reducing_scatter
from equiscreen.export.metadata import ModelMetadata
from equiscreen.export.runtime import OnnxPotential
from equiscreen.model.network import EquivariantNetwork
from equiscreen.pipeline.errors import ExportError
from onnx import TensorProto, helper

from ..conftest import CUTOFF, ELEMENTS, small_network


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
        (graph([helper.make_node("Relu", ["x"], ["y"])], [17, 3]), r"frozen sizes \[17\]"),
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
    found = check_parity([small_network(correlation=2).float()], potential)
    assert set(found) == {f"{x}/{d}" for x in ("energy", "forces", "stress") for d in ("float32", "float64")}
    assert max(found.values()) < 1e-4
    other = small_network(correlation=2).float()
    other.radial.perceptrons[0].weights[0].data *= 1.01
    with pytest.raises(ExportError, match="differs from PyTorch"):
        check_parity([other], potential)
    assert network.elements == ELEMENTS


def test_metadata_is_complete(exported: Callable[[str], Path]) -> None:
    metadata = OnnxPotential.load(exported("float32")).metadata
    assert metadata.cutoff == CUTOFF
    assert metadata.elements == ELEMENTS
    assert metadata.dtype == "float32"
    assert (metadata.symmetry, metadata.energy_scheme) == ("o3", "own")
    assert metadata.parity["forces/float64"] < 1e-4
    assert len(metadata.weights_sha256) == 64
    assert ModelMetadata.from_props(metadata.to_props(), "again") == metadata


def test_sine_depends_on_the_place_in_its_tensor() -> None:
    """Why Sin and Cos are forbidden: once this fails, ONNX Runtime has changed, and they can be allowed again."""
    values = np.abs(np.random.default_rng(0).normal(size=20_011) * 3).astype(np.float32)
    model = graph([helper.make_node("Sin", ["x"], ["y"])], ["n"])
    model.ir_version = 10
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    whole = session.run(None, {"x": values})[0]
    shifted = [session.run(None, {"x": values[k : k + 5003 + k].copy()})[0] for k in range(1, 17)]
    assert any(not np.array_equal(part, whole[k : k + 5003 + k]) for k, part in enumerate(shifted, start=1))
