"""Where ONNX Runtime ran the nodes of a model, judged from real profiles (of the CPU; there is no GPU here)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from equiscreen.export.cuda_placement import cpu_nodes
from equiscreen.export.runtime.placement import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    NodeRun,
    check_placement,
    finished_placement,
    judge_placement,
    read_profile,
)
from equiscreen.pipeline import GraphBlock
from equiscreen.pipeline.errors import DeviceError
from equiscreen.pipeline.graphs.neighbor_table import neighbor_table
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ...conftest import CUTOFF, ELEMENTS


def profiled_session(model: Path, folder: Path) -> onnxruntime.InferenceSession:
    """A session on the CPU that has run one batch with profiling, which has not ended."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(model.read_bytes(), options, providers=[CPU_PROVIDER])
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 3, seed=6), CUTOFF)
    table = neighbor_table(block, CUTOFF, np.float32).arrays()
    session.run(None, {item.name: table[item.name] for item in session.get_inputs()})
    return session


@pytest.fixture(scope="module")
def nodes(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[NodeRun]:
    session = profiled_session(exported("float32"), tmp_path_factory.mktemp("profile"))
    return read_profile(Path(session.end_profiling()).read_text())


@pytest.fixture(scope="module")
def on_gpu(nodes: Sequence[NodeRun], exported: Callable[[str], Path]) -> list[NodeRun]:
    """The profile as it would be on a GPU: all nodes there but those that ONNX Runtime is predicted to keep."""
    kept = {node.name for node in cpu_nodes(onnx.load(exported("float32")))}
    return [node if node.name in kept else replace(node, provider=CUDA_PROVIDER) for node in nodes]


def test_a_profile_names_operators_types_and_sizes(nodes: Sequence[NodeRun], exported: Callable[[str], Path]) -> None:
    operators = {node.name: node.op_type for node in onnx.load(exported("float32")).graph.node}
    named = [node for node in nodes if node.name in operators]
    assert len(named) > 0.9 * len(operators)  # ONNX Runtime's optimizer merges and removes a few
    assert all(node.operator == operators[node.name] and node.provider == CPU_PROVIDER for node in named)
    product = next(node for node in nodes if node.operator == "MatMul")
    assert {kind for kind, _ in (*product.inputs, *product.outputs)} == {"float"}
    assert product.outputs[0][1] > 0


def test_a_run_on_the_requested_device_passes(exported: Callable[[str], Path], tmp_path: Path) -> None:
    placement = finished_placement(profiled_session(exported("float32"), tmp_path), CPU_PROVIDER)
    assert placement.on_device > 100
    assert (placement.shape_arithmetic, placement.misplaced) == (0, ())
    assert not list(tmp_path.iterdir())


def test_a_run_on_the_cpu_does_not_pass_as_one_on_a_gpu(nodes: Sequence[NodeRun]) -> None:
    placement = judge_placement(nodes)
    assert placement.on_device == 0
    assert {"MatMul", "Mul", "ReduceSum", "Gather"} <= {node.operator for node in placement.misplaced}
    with pytest.raises(DeviceError, match=r"m\.onnx: \d+ nodes run on the CPU .* and \d+ others; .* cuda:1\+cpu"):
        check_placement(placement, "m.onnx", "cuda:1")


def test_shape_arithmetic_may_stay_on_the_cpu(on_gpu: Sequence[NodeRun]) -> None:
    placement = judge_placement(on_gpu)
    assert placement.misplaced == ()
    assert 0 < placement.shape_arithmetic < 0.1 * placement.on_device
    check_placement(placement, "m.onnx", "cuda")


@pytest.mark.parametrize(
    ("operator", "kind", "elements", "accepted"),
    [
        ("MemcpyFromHost", "int64", 3, True),
        ("MemcpyFromHost", "int64", 101, False),
        ("MemcpyFromHost", "float", 1, False),
        ("MemcpyToHost", "int64", 1, False),
        ("MatMul", "int64", 101, False),
    ],
)
def test_copies_and_work_on_the_cpu_are_named(
    on_gpu: Sequence[NodeRun], operator: str, kind: str, elements: int, accepted: bool
) -> None:
    provider = CUDA_PROVIDER if operator.startswith("Memcpy") else CPU_PROVIDER
    node = NodeRun("inside", operator, provider, ((kind, elements),), ((kind, elements),))
    placement = judge_placement([*on_gpu, node])
    assert placement.misplaced == (() if accepted else (node,))
    if not accepted:
        with pytest.raises(DeviceError, match=rf"inside \({operator}, {kind}, {elements} elements\)"):
            check_placement(placement, "m.onnx", "cuda")


@pytest.mark.parametrize("text", ["", "[", "[]", '[{"cat": "Session", "name": "model_run", "args": {}}]'])
def test_what_is_no_profile_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|no node"):
        read_profile(text)
