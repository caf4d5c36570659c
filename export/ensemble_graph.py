"""Ensembles as one ONNX graph: the graphs of the members side by side, followed by their mean and spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..pipeline.graphs.potential import SPREAD


def join(members: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Join graphs into one that returns the mean of every output, and its standard deviation as ``NAME_std``.

    The standard deviation has n - 1 in its denominator.

    Args:
        members: At least two graphs with the same inputs and outputs.
    """
    prefixed = [
        onnx.compose.add_prefix(model, f"member{number}/", rename_inputs=False) for number, model in enumerate(members)
    ]
    joined = onnx.ModelProto()
    joined.CopyFrom(prefixed[0])
    graph = joined.graph
    for other in prefixed[1:]:
        graph.node.extend(other.graph.node)
        graph.initializer.extend(other.graph.initializer)
    originals = list(members[0].graph.output)
    del graph.output[:]
    means, spreads = [], []
    for value in originals:
        names = [f"member{number}/{value.name}" for number in range(len(members))]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        graph.node.extend(_statistics(value.name, names))
        for name, weight in ((value.name, 1 / len(members)), (f"{value.name}{SPREAD}", 1 / (len(members) - 1))):
            graph.initializer.append(numpy_helper.from_array(np.array(weight, dtype), f"{name}/weight"))
        means.append(_renamed(value, value.name))
        spreads.append(_renamed(value, f"{value.name}{SPREAD}"))
    graph.output.extend([*means, *spreads])
    return joined


def _statistics(name: str, members: Sequence[str]) -> list[onnx.NodeProto]:
    spread = f"{name}{SPREAD}"
    nodes = [
        helper.make_node("Sum", list(members), [f"{name}/sum"], f"{name}/sum"),
        helper.make_node("Mul", [f"{name}/sum", f"{name}/weight"], [name], f"{name}/mean"),
    ]
    squares = []
    for number, member in enumerate(members):
        difference, square = f"{spread}/difference{number}", f"{spread}/square{number}"
        nodes.append(helper.make_node("Sub", [member, name], [difference], difference))
        nodes.append(helper.make_node("Mul", [difference, difference], [square], square))
        squares.append(square)
    nodes.append(helper.make_node("Sum", squares, [f"{spread}/sum"], f"{spread}/sum"))
    nodes.append(helper.make_node("Mul", [f"{spread}/sum", f"{spread}/weight"], [f"{spread}/variance"], spread))
    nodes.append(helper.make_node("Sqrt", [f"{spread}/variance"], [spread], f"{spread}/root"))
    return nodes


def _renamed(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    out = onnx.ValueInfoProto()
    out.CopyFrom(value)
    out.name = name
    return out
