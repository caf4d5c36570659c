"""Translation of a traced graph of ATen operators to ONNX.

Everything that depends only on weights is computed during translation (constant folding). Tensors that PyTorch expands
stay unexpanded where ONNX broadcasts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ..pipeline.errors import ExportError
from .aten_operators import HANDLERS
from .graph_builder import OPSET, Graph, Value, open_axes, size_of

aten = torch.ops.aten


def translate(
    traced: fx.GraphModule,
    inputs: Mapping[str, Sequence[str]],
    output_names: Sequence[str | None],
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Translate a graph that `make_fx` traced with symbolic sizes.

    Args:
        traced: Traced graph; its placeholders are the inputs, in order.
        inputs: Names of the inputs, each with the names of its axes of variable size.
        output_names: Names of the outputs; an output named None is dropped, together with everything that no other
            output needs.
        opset: Version of the ONNX operator set.

    Raises:
        ExportError: An operation, dtype or size cannot be translated.
    """
    graph = Graph()
    values: dict[fx.Node, Any] = {}
    outputs: list[Value] = []
    names = iter(inputs)
    splits = _splits(traced.graph)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            name = next(names)
            values[node] = graph.add_input(name, node.meta["val"], inputs[name])
        elif node.op == "get_attr":
            values[node] = graph.constant(_attribute(traced, str(node.target)))
        elif node.op == "output":
            (found,) = node.args
            outputs = [graph.full(values[x], x.meta["val"]) for x in found]
        elif node in splits and not _is_known(values[splits[node][0]], splits[node][0]):
            source, axis, sizes, place = splits[node]
            values[node] = graph.split(graph.full(values[source], source.meta["val"]), axis, sizes)[place]
        elif isinstance(node.meta["val"], Tensor | list | tuple):
            values[node] = _call(graph, node, values)
    named = [(value, name) for value, name in zip(outputs, output_names, strict=True) if name]
    return graph.model([value for value, _ in named], [name for _, name in named], opset)


def _call(graph: Graph, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Translate one operation, or evaluate it now if all its arguments are constant."""
    if node.target not in HANDLERS:
        raise ExportError(f"{node.target} has no translation to ONNX; add one to export/aten_operators.py")
    sources = {x: values[x] for x in node.all_input_nodes if x in values}
    if sources and all(_is_known(value, x) for x, value in sources.items()):
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda x: values[x].constant if x in values else x)
        if not any(isinstance(x, fx.Node) for x in pytree.tree_leaves(arguments)):
            found = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
            # Contiguous, so that views of a constant that was traced as a copy are possible.
            return pytree.tree_map(lambda x: graph.constant(x.contiguous()), found)
    return HANDLERS[node.target](graph, node, *(_argument(x, values) for x in node.args))


def _is_known(value: Any, node: fx.Node) -> bool:
    return isinstance(value, Value) and value.constant is not None and not open_axes(value, node.meta["val"])


def _argument(x: Any, values: Mapping[fx.Node, Any]) -> Any:
    """Convert an argument to the form that handlers take: tensors as values, sizes as symbolic expressions."""
    if isinstance(x, list | tuple):
        return [_argument(y, values) for y in x]
    if not isinstance(x, fx.Node):
        return x
    return values[x] if x in values else size_of(x.meta["val"])


def _splits(graph: fx.Graph) -> dict[fx.Node, tuple[fx.Node, int, list[int], int]]:
    """Map slices that together make up their source to (source, axis, sizes of all slices, index of the slice)."""
    groups: dict[tuple[fx.Node, int], dict[tuple[int, int], list[fx.Node]]] = {}
    for node in graph.find_nodes(op="call_function", target=aten.slice.Tensor):
        if len(node.args) != 4:
            continue
        source, axis, start, end = node.args
        size = size_of(source.meta["val"].shape[axis])
        if size.is_Integer and isinstance(start, int) and isinstance(end, int):
            groups.setdefault((source, axis), {}).setdefault((start, min(end, int(size))), []).append(node)
    out: dict[fx.Node, tuple[fx.Node, int, list[int], int]] = {}
    for (source, axis), ranges in groups.items():
        ordered = sorted(ranges)
        starts, ends = [start for start, _ in ordered], [end for _, end in ordered]
        if [0, *ends] == [*starts, size_of(source.meta["val"].shape[axis])]:
            sizes = [end - start for start, end in ordered]
            out |= {node: (source, axis, sizes, place) for place, key in enumerate(ordered) for node in ranges[key]}
    return out


def _attribute(module: fx.GraphModule, path: str) -> Tensor:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found  # type: ignore[no-any-return]
