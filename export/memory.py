"""Memory of an evaluation: what a neighbour slot needs, from ONNX Runtime's profile of a run.

The sizes of all tensors are those that ONNX Runtime allocated, and the time for which each is kept follows from the
order in which the nodes ran. Unlike the memory of the process, the result is the same for every export of a network.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from ..pipeline.graphs.graph_block import GraphBlock
from ..pipeline.graphs.neighbor_table import neighbor_table
from .runtime.placement import CPU_PROVIDER, NodeRun, read_profile

_ITEM_BYTES = {"double": 8, "int64": 8, "float": 4, "int32": 4, "bool": 1}
_WIDEST_ITEM = 8
# Their outputs share the memory of their first input.
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


@dataclass(frozen=True, slots=True)
class TableMemory:
    """Memory of the evaluation of a neighbour table, relative to its number of slots.

    Attributes:
        bytes_per_slot: Largest memory of all tensors that exist at the same time, bytes.
        elements_per_slot: Elements of the largest tensor.
    """

    bytes_per_slot: float
    elements_per_slot: float


def table_memory(data: bytes, block: GraphBlock, cutoff: float, dtype: str) -> TableMemory:
    """Evaluate a block as one table with profiling, and return the memory per slot.

    Args:
        data: Content of the ONNX file.
        block: Structures of elements that the model covers.
        cutoff: Cutoff of the model, angstrom.
        dtype: Floating-point type of the model.
    """
    import onnxruntime  # noqa: PLC0415 - an extra

    table = neighbor_table(block, cutoff, dtype).arrays()
    with tempfile.TemporaryDirectory(prefix="equiscreen-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session = onnxruntime.InferenceSession(data, options, providers=[CPU_PROVIDER])
        feed = {item.name: table[item.name] for item in session.get_inputs()}
        session.run(None, feed)
        runs = read_profile(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load(options.optimized_model_filepath).graph
    slots = table["neighbors"].size
    largest = max(elements for run in runs for _, elements in run.outputs)
    inputs = sum(np.asarray(values).nbytes for values in feed.values())
    return TableMemory(
        bytes_per_slot=math.ceil((inputs + _peak_bytes(graph, runs)) / slots),
        elements_per_slot=math.ceil(largest / slots),
    )


def _peak_bytes(graph: onnx.GraphProto, runs: Sequence[NodeRun]) -> int:
    """Return the largest memory of the results of nodes that exist at the same time, bytes.

    Args:
        graph: The optimized graph.
        runs: Its nodes, in the order in which they ran.
    """
    nodes = {node.name: node for node in graph.node}
    order = [(nodes[run.name], run) for run in runs if run.name in nodes]
    owner: dict[str, str] = {}
    sizes: dict[str, int] = {}
    last: dict[str, int] = {}
    for place, (node, run) in enumerate(order):
        for name in node.input:
            last[owner.get(name, name)] = place
        names = [name for name in node.output if name]
        for name, (kind, elements) in zip(names, run.outputs, strict=False):
            if node.op_type in _VIEWS:
                owner[name] = owner.get(node.input[0], node.input[0])
            else:
                owner[name], sizes[name] = name, elements * _ITEM_BYTES.get(kind, _WIDEST_ITEM)
    for output in graph.output:
        last[owner.get(output.name, output.name)] = len(order)
    return _peak(order, sizes, last)


def _peak(order: Sequence[tuple[onnx.NodeProto, NodeRun]], sizes: Mapping[str, int], last: Mapping[str, int]) -> int:
    """Return the peak of the total size of results, each kept from the node that makes it to its last use."""
    freed: dict[int, int] = {}
    for name, place in last.items():
        freed[place] = freed.get(place, 0) + sizes.get(name, 0)
    held = peak = 0
    for place, (node, _) in enumerate(order):
        made = [name for name in node.output if name in sizes]
        held += sum(sizes[name] for name in made)
        peak = max(peak, held)
        held -= freed.get(place, 0) + sum(sizes[name] for name in made if name not in last)
    return peak
