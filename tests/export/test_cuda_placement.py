"""Which nodes of an exported graph would leave a GPU. The session fixture in conftest.py checks every export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from equiscreen.export import exporter, graph_builder
from equiscreen.export.cuda_placement import cpu_nodes, cuda_kernels
from onnx import TensorProto, defs, helper, numpy_helper


def graph(nodes: Sequence[onnx.NodeProto], inputs: dict[str, int], outputs: dict[str, int]) -> onnx.ModelProto:
    values = [
        [helper.make_tensor_value_info(name, kind, ["n", "k"]) for name, kind in found.items()]
        for found in (inputs, outputs)
    ]
    three = numpy_helper.from_array(np.array([3], dtype=np.int64), "three")
    opsets = [helper.make_opsetid("", graph_builder.OPSET)]
    return helper.make_model(helper.make_graph(nodes, "g", *values, [three]), opset_imports=opsets)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_only_shape_arithmetic_leaves_the_gpu(exported: Callable[[str], Path], dtype: str) -> None:
    nodes = cpu_nodes(onnx.load(exported(dtype)))
    assert {node.operator for node in nodes} <= {"Add", "Concat", "Div", "Mul", "Reshape"}
    assert all(node.shape_arithmetic for node in nodes)


def test_later_operator_sets_leave_the_gpu(exported: Callable[[str], Path]) -> None:
    model = onnx.load(exported("float32"))
    model.opset_import[0].version = 21
    leaving = {node.operator: node.reason for node in cpu_nodes(model) if not node.shape_arithmetic}
    assert leaving == {
        "Cast": "its inputs are in host memory",  # it follows Equal
        "Equal": "no kernel for version 19 of the operator",
        "Identity": "no kernel for version 21 of the operator",
    }


def test_an_operator_or_type_without_a_kernel_leaves_the_gpu() -> None:
    nodes = [
        helper.make_node("Where", ["c", "c", "c"], ["w"], "where"),
        helper.make_node("Celu", ["x"], ["y"], "celu"),
        helper.make_node("ReduceSum", ["x", "three"], ["z"], "sum"),
    ]
    kinds = {"c": TensorProto.BOOL, "x": TensorProto.FLOAT}
    outputs = {"w": TensorProto.BOOL, "y": TensorProto.FLOAT, "z": TensorProto.FLOAT}
    found = cpu_nodes(graph(nodes, kinds, outputs))
    assert [(node.name, node.reason, node.shape_arithmetic) for node in found] == [
        ("where", "no kernel for bool", False),
        ("celu", "the operator is not in the list of kernels", False),
    ]


def test_arithmetic_of_sizes_with_an_input_leaves_the_gpu() -> None:
    """ONNX Runtime counts inputs of the graph as tensors in host memory, so that this sum would be on the CPU."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], "shape", start=0, end=1),
        helper.make_node("Mul", ["s", "three"], ["m"], "sizes"),
        helper.make_node("Add", ["index", "m"], ["moved"], "add"),
        helper.make_node("Gather", ["x", "moved"], ["y"], "gather"),
    ]
    kinds = {"x": TensorProto.FLOAT, "index": TensorProto.INT64}
    found = cpu_nodes(graph(nodes, kinds, {"y": TensorProto.FLOAT}))
    assert [(node.name, node.shape_arithmetic) for node in found] == [
        ("sizes", True),
        ("add", False),
        ("gather", False),
    ]


def test_the_list_names_the_type_parameters_of_the_operators() -> None:
    """A misspelt parameter would let every type pass."""
    for operator, kernels in cuda_kernels().items():
        for kernel in kernels:
            schema = defs.get_schema(operator, kernel.since)
            assert set(kernel.types) <= {item.type_param_str for item in schema.type_constraints}, operator
            assert max(kernel.host_inputs, default=0) < len(schema.inputs), operator


def test_a_graph_that_would_leave_the_gpu_fails_in_the_tests() -> None:
    model = graph([helper.make_node("Celu", ["x"], ["y"], "celu")], {"x": TensorProto.FLOAT}, {"y": TensorProto.FLOAT})
    with pytest.raises(AssertionError, match=r"on the CPU, not on a GPU.*celu"):
        exporter.check_structure(model)
