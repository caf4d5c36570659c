"""Where ONNX Runtime's CUDA provider would run the nodes of a graph, predicted without a GPU from its list of kernels.

`cuda_kernels.json` holds the list with its source and version. The rules are those of ONNX Runtime:

- A kernel runs a node if the version of the operator lies in the kernel's range. A range without an end matches only
  the version at which it begins (core/framework/kernel_registry.cc).
- Some kernels read or write small tensors in the memory of the host, such as the result of Shape. A node that reads
  such a tensor where its own kernel does not expect one runs on the CPU if all of its other inputs are tensors in host
  memory, constants of at most 100 elements or inputs of the graph (core/framework/fallback_cpu_capability.cc).

ONNX Runtime first replaces nodes that depend on constants alone by their results, which is not imitated here: a few
more nodes of shape arithmetic may run on the CPU (18 instead of 15 for 7net-0).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
from onnx import TensorProto, defs, shape_inference

KERNELS = Path(__file__).with_name("cuda_kernels.json")
SMALL_CONSTANT = 100  # elements; kSmallInitializerThreshold in fallback_cpu_capability.cc


@dataclass(frozen=True, slots=True)
class CudaKernel:
    """A kernel of the CUDA provider, for some versions of one operator.

    Attributes:
        since: First version of the operator.
        until: Last version of the operator; None if the kernel is for version `since` only.
        types: Element types that the kernel supports, by type parameter of the operator's schema.
        host_inputs: Positions of the inputs that the kernel reads from host memory.
        host_outputs: Positions of the outputs that the kernel writes to host memory.
    """

    since: int
    until: int | None
    types: Mapping[str, Sequence[str]]
    host_inputs: tuple[int, ...] = ()
    host_outputs: tuple[int, ...] = ()

    def runs(self, version: int) -> bool:
        """Whether the kernel is for this version of the operator."""
        return version == self.since or (self.until is not None and self.since <= version <= self.until)


@dataclass(frozen=True, slots=True)
class CpuNode:
    """A node that runs on the CPU although the graph runs on a GPU.

    Attributes:
        name: Name of the node.
        operator: Type of the node.
        reason: Why the node runs on the CPU.
        shape_arithmetic: Whether the node only computes with sizes, which is best done on the CPU: all of its inputs
            come from Shape nodes and small constants.
    """

    name: str
    operator: str
    reason: str
    shape_arithmetic: bool


@cache
def cuda_kernels() -> dict[str, tuple[CudaKernel, ...]]:
    """Return the listed kernels of the CUDA provider by operator."""
    found: dict[str, tuple[CudaKernel, ...]] = {}
    for row in json.loads(KERNELS.read_text(encoding="utf-8"))["kernels"]:
        hosts = {name: tuple(row.get(name, ())) for name in ("host_inputs", "host_outputs")}
        kernel = CudaKernel(row["since"], row["until"], row["types"], **hosts)
        found[row["operator"]] = (*found.get(row["operator"], ()), kernel)
    return found


def cpu_nodes(model: onnx.ModelProto) -> list[CpuNode]:
    """Return the nodes that ONNX Runtime would run on the CPU if the graph is run with the CUDA provider.

    Args:
        model: Graph of standard operators without nested graphs, in topological order.
    """
    graph = shape_inference.infer_shapes(model).graph
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    small = {tensor.name for tensor in graph.initializer if _elements(tensor) <= SMALL_CONSTANT}
    inputs = {value.name for value in graph.input}
    host: set[str] = set()  # tensors in host memory
    sizes: set[str] = set()  # tensors computed only from sizes and small constants
    found = []
    for node in graph.node:
        schema = defs.get_schema(node.op_type, opset)
        kernel, reason = _kernel(node, schema, types)
        names = [name for name in node.input if name]
        only_sizes = node.op_type == "Shape" or (
            bool(sizes.intersection(names)) and all(name in sizes or name in small for name in names)
        )
        if kernel is not None:
            unexpected = {name for place, name in enumerate(node.input) if place not in kernel.host_inputs} & host
            near = all(name in host or name in small or name in inputs for name in names)
            expected = any(node.input[place] in host for place in kernel.host_inputs if place < len(node.input))
            if not (unexpected and near and not expected):
                host |= {node.output[place] for place in kernel.host_outputs}
                sizes |= set(node.output) if only_sizes and set(node.output) <= host else set()
                continue
            reason = "its inputs are in host memory"
        host |= set(node.output)
        sizes |= set(node.output) if only_sizes else set()
        found.append(CpuNode(node.name, node.op_type, reason, only_sizes))
    return found


def _elements(tensor: TensorProto) -> int:
    elements = 1
    for size in tensor.dims:
        elements *= size
    return elements


def _kernel(node: onnx.NodeProto, schema: defs.OpSchema, types: Mapping[str, int]) -> tuple[CudaKernel | None, str]:
    """Return the kernel that runs a node on the GPU, or why there is none."""
    kernels = cuda_kernels().get(node.op_type, ())
    if not kernels:
        return None, "the operator is not in the list of kernels"
    kernel = next((kernel for kernel in kernels if kernel.runs(schema.since_version)), None)
    if kernel is None:
        return None, f"no kernel for version {schema.since_version} of the operator"
    for parameter, name in _typed(node, schema):
        element = TensorProto.DataType.Name(types[name]).lower()
        if element not in kernel.types.get(parameter, (element,)):
            return None, f"no kernel for {element}"
    return kernel, ""


def _typed(node: onnx.NodeProto, schema: defs.OpSchema) -> Iterator[tuple[str, str]]:
    """Yield the type parameter and the name of each input and output of a node; the last parameter may repeat."""
    for formal, actual in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for place, name in enumerate(actual):
            if name:
                yield formal[min(place, len(formal) - 1)].type_str, name
