"""ONNX translations of the ATen operators that occur in traced networks.

Each handler takes the graph, the traced node and its arguments. Tensors arrive as `Value` objects, which may have axes
that ONNX still has to broadcast; sizes arrive as symbolic expressions.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from ..pipeline.errors import ExportError
from .graph_builder import ONE, Graph, Value, broadcast, open_axes, shape_of, size_of, with_size

aten = torch.ops.aten


def _traced(node: fx.Node, place: int = 0) -> Tensor:
    """Return the traced tensor of an argument."""
    found: Tensor = node.args[place].meta["val"]  # type: ignore[union-attr]
    return found


def _elementwise(kind: str) -> Callable[..., Value]:
    def handler(graph: Graph, node: fx.Node, *operands: Any) -> Value:
        out = node.meta["val"]
        if node.kwargs.get("alpha", 1) != 1:
            raise ExportError(
                f"{node.target} with the argument alpha has no translation to ONNX; multiply by alpha beforehand"
            )
        dtype = out.dtype if out.dtype != torch.bool else _common_dtype(node.args)
        values = [_operand(graph, x, dtype) for x in operands]
        known = [x.constant for x in values]
        if all(x is not None for x in known):
            folded = FOLDED.get(node.target, node.target)(*known)  # type: ignore[call-overload]
            return graph.constant(folded.reshape((1,) * (out.dim() - folded.dim()) + folded.shape))
        neutral = _neutral(kind, values)
        if neutral is not None and len(neutral.shape) == out.dim():
            return neutral
        return graph.emit(kind, values, broadcast([x.shape for x in values]), out.dtype)

    return handler


def _common_dtype(arguments: Sequence[Any]) -> torch.dtype:
    """Return the dtype for comparing two operands by PyTorch's rule: a number does not widen a tensor of its kind."""
    first, second = (x.meta["val"] if isinstance(x, fx.Node) else x for x in arguments)
    return torch.result_type(first, second)


def _operand(graph: Graph, x: Any, dtype: torch.dtype) -> Value:
    """Convert a tensor, a number or a symbolic size to a value of this dtype."""
    if isinstance(x, sympy.Expr) and not x.is_number:
        return graph.cast(graph.reshape(graph.size(x), ()), dtype)
    return graph.cast(x, dtype) if isinstance(x, Value) else graph.constant(torch.tensor(x, dtype=dtype))


def _neutral(kind: str, values: Sequence[Value]) -> Value | None:
    """Return the other operand if one operand is the neutral element of the operation, otherwise None."""
    neutral = {"Mul": 1.0, "Add": 0.0}.get(kind)
    if neutral is None:
        return None
    for one, other in (values, values[::-1]):
        if one.constant is not None and one.constant.numel() == 1 and float(one.constant) == neutral:
            return other
    return None


def _where(graph: Graph, node: fx.Node, condition: Value, a: Any, b: Any) -> Value:
    dtype = node.meta["val"].dtype
    values = [condition, _operand(graph, a, dtype), _operand(graph, b, dtype)]
    return graph.emit("Where", values, broadcast([x.shape for x in values]), dtype)


def _reversed_subtraction(graph: Graph, node: fx.Node, a: Value, b: float, alpha: float = 1) -> Value:
    if alpha != 1:
        raise ExportError(
            f"{node.target} with the argument alpha has no translation to ONNX; multiply by alpha beforehand"
        )
    dtype = node.meta["val"].dtype
    return graph.emit("Sub", [_operand(graph, b, dtype), _operand(graph, a, dtype)], a.shape, dtype)


def _silu(graph: Graph, node: fx.Node, x: Value) -> Value:
    return graph.emit("Mul", [x, graph.emit("Sigmoid", [x], x.shape, x.dtype)], x.shape, x.dtype)


def _sigmoid_gradient(graph: Graph, node: fx.Node, gradient: Value, y: Value) -> Value:
    one = _operand(graph, 1, y.dtype)
    slope = graph.emit("Mul", [y, graph.emit("Sub", [one, y], y.shape, y.dtype)], y.shape, y.dtype)
    return graph.emit("Mul", [gradient, slope], broadcast([gradient.shape, slope.shape]), y.dtype)


def _tanh_gradient(graph: Graph, node: fx.Node, gradient: Value, y: Value) -> Value:
    square = graph.emit("Mul", [y, y], y.shape, y.dtype)
    slope = graph.emit("Sub", [_operand(graph, 1, y.dtype), square], y.shape, y.dtype)
    return graph.emit("Mul", [gradient, slope], broadcast([gradient.shape, slope.shape]), y.dtype)


def _power(graph: Graph, node: fx.Node, x: Value, exponent: float) -> Value:
    return graph.emit("Pow", [x, _operand(graph, exponent, x.dtype)], x.shape, x.dtype)


def _same(graph: Graph, node: fx.Node, x: Value, *_: Any) -> Value:
    return graph.cast(x, node.meta["val"].dtype)


def _view(graph: Graph, node: fx.Node, x: Value, *_: Any) -> Value:
    """Change the shape and keep the order of elements."""
    traced = _traced(node)
    before, after = shape_of(traced), shape_of(node.meta["val"])
    shape = after
    for axis in open_axes(x, traced):
        # An open axis stays open if the new shape has an axis of the same size after the same number of elements.
        behind = math.prod(before[:axis])
        axes = [new for new, size in enumerate(after) if size == before[axis] and math.prod(after[:new]) == behind]
        if not axes:
            return graph.reshape(graph.full(x, traced), after)
        shape = with_size(shape, axes[0], ONE)
    return graph.reshape(x, shape)


def _expand(graph: Graph, node: fx.Node, x: Value, *_: Any) -> Value:
    """Add leading axes only; axes of size 1 stay open."""
    rank = node.meta["val"].dim()
    return graph.reshape(x, (ONE,) * (rank - len(x.shape)) + x.shape)


def _transpose(graph: Graph, x: Value, order: Sequence[int]) -> Value:
    shape = tuple(x.shape[axis] for axis in order)
    if x.constant is not None:
        return graph.constant(x.constant.permute(*order))
    if [axis for axis in order if x.shape[axis] != ONE] == [axis for axis, size in enumerate(x.shape) if size != ONE]:
        return graph.reshape(x, shape)  # only axes of size 1 move
    return graph.emit("Transpose", [x], shape, x.dtype, perm=list(order))


def _permute(graph: Graph, node: fx.Node, x: Value, order: Sequence[Any]) -> Value:
    return _transpose(graph, x, [int(axis) % len(order) for axis in order])


def _swap(graph: Graph, node: fx.Node, x: Value, first: int = 0, second: int = 1) -> Value:
    order = list(range(len(x.shape)))
    order[first], order[second] = order[second], order[first]
    return _transpose(graph, x, order)


def _matmul(graph: Graph, node: fx.Node, a: Value, b: Value) -> Value:
    """Multiply matrices: leading axes may be broadcast, the last two must be materialised."""
    left, right = (
        x if all(axis < like.dim() - 2 for axis in open_axes(x, like)) else graph.full(x, like)
        for x, like in ((a, _traced(node)), (b, _traced(node, 1)))
    )
    if len(right.shape) == 1:
        return graph.emit("MatMul", [left, right], left.shape[:-1], left.dtype)
    front = broadcast([left.shape[:-2], right.shape[:-2]]) if len(left.shape) > 2 else ()
    return graph.emit("MatMul", [left, right], (*front, left.shape[-2], right.shape[-1]), left.dtype)


def _sum(graph: Graph, node: fx.Node, x: Value, axes: Sequence[Any] = (), keep: Any = False) -> Value:
    out = node.meta["val"]
    x = graph.cast(graph.full(x, _traced(node)), out.dtype)
    chosen = sorted(int(axis) % len(x.shape) for axis in axes) if axes else list(range(len(x.shape)))
    return graph.emit(
        "ReduceSum",
        [x, graph.constant(torch.tensor(chosen, dtype=torch.int64))],
        shape_of(out),
        out.dtype,
        keepdims=int(bool(keep)),
    )


def _concatenate(graph: Graph, node: fx.Node, parts: Sequence[Value], axis: int = 0) -> Value:
    traced = [x.meta["val"] for x in node.args[0]]  # type: ignore[union-attr]
    out = node.meta["val"]
    full = [graph.cast(graph.full(x, like), out.dtype) for x, like in zip(parts, traced, strict=True)]
    return graph.emit("Concat", full, shape_of(out), out.dtype, axis=int(axis) % out.dim())


def _split(graph: Graph, node: fx.Node, x: Value, sizes: Sequence[Any], axis: int = 0) -> list[Value]:
    return graph.split(graph.full(x, _traced(node)), int(axis), [int(size) for size in sizes])


def _item(graph: Graph, node: fx.Node, values: Sequence[Value], place: int) -> Value:
    return values[place]


def _slice(
    graph: Graph, node: fx.Node, x: Value, axis: int = 0, start: Any = 0, end: Any = None, step: Any = 1
) -> Value:
    traced, out = _traced(node), node.meta["val"]
    axis = int(axis) % out.dim()
    if shape_of(traced)[axis] == shape_of(out)[axis]:
        return x
    x = graph.full(x, traced)
    limits = [size_of(start or 0), shape_of(traced)[axis] if end is None else size_of(end)]
    begin, stop, along, stride = (graph.sizes([sympy.sympify(value)]) for value in (*limits, axis, size_of(step)))
    return graph.emit("Slice", [x, begin, stop, along, stride], shape_of(out), x.dtype)


def _gather(axis: int | None) -> Callable[..., Value]:
    """Make a handler that gathers along an axis: rows for `embedding` and `index`, a given axis for `index_select`."""

    def handler(graph: Graph, node: fx.Node, x: Value, *arguments: Any) -> Value:
        along, index = (axis, arguments[0]) if axis is not None else arguments
        if isinstance(index, Sequence):
            if len(index) != 1:
                raise ExportError(
                    f"{node.target} with an index on any axis but the first has no translation to ONNX; use "
                    "index_select"
                )
            (index,) = index
        if len(node.all_input_nodes) != 2:
            raise ExportError(
                f"{node.target} of a tensor indexed by itself has no translation to ONNX; rewrite the layer without it"
            )
        (traced,) = (y for y in node.all_input_nodes if y is not node.args[0])
        index = graph.full(index, traced.meta["val"])
        x = graph.full(x, _traced(node))
        return graph.emit("Gather", [x, index], shape_of(node.meta["val"]), x.dtype, axis=int(along))

    return handler


def _filled(value: float | None) -> Callable[..., Value]:
    """Make a handler for a constant tensor of equal numbers, with all axes open."""

    def handler(graph: Graph, node: fx.Node, *arguments: Any) -> Value:
        out = node.meta["val"]
        number = arguments[-1] if value is None else value
        return graph.constant(torch.full((1,) * out.dim(), number, dtype=out.dtype))

    return handler


def _evaluated(graph: Graph, node: fx.Node, *arguments: Any) -> Value:
    """Evaluate an operation that depends on no tensor."""
    return graph.constant(node.target(*node.args, **node.kwargs))  # type: ignore[operator]


def _range(graph: Graph, node: fx.Node, end: Any) -> Value:
    zero, one = (graph.constant(torch.tensor(x, dtype=torch.int64)) for x in (0, 1))
    limit = graph.reshape(graph.size(size_of(end)), ())
    numbers = graph.emit("Range", [zero, limit, one], shape_of(node.meta["val"]), torch.int64)
    return graph.cast(numbers, node.meta["val"].dtype)


# Operations on a tensor and a number, as the same operations on two tensors.
FOLDED = {
    aten.mul.Scalar: aten.mul.Tensor,
    aten.lt.Scalar: aten.lt.Tensor,
    aten.gt.Scalar: aten.gt.Tensor,
}
HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: _elementwise("Add"),
    aten.sub.Tensor: _elementwise("Sub"),
    aten.mul.Tensor: _elementwise("Mul"),
    aten.mul.Scalar: _elementwise("Mul"),
    aten.div.Tensor: _elementwise("Div"),
    aten.neg.default: _elementwise("Neg"),
    aten.sqrt.default: _elementwise("Sqrt"),
    aten.exp.default: _elementwise("Exp"),
    aten.round.default: _elementwise("Round"),
    aten.floor.default: _elementwise("Floor"),
    aten.reciprocal.default: _elementwise("Reciprocal"),
    aten.sigmoid.default: _elementwise("Sigmoid"),
    aten.tanh.default: _elementwise("Tanh"),
    aten.eq.Tensor: _elementwise("Equal"),
    aten.lt.Scalar: _elementwise("Less"),
    aten.gt.Scalar: _elementwise("Greater"),
    aten.abs.default: _elementwise("Abs"),
    aten.sgn.default: _elementwise("Sign"),
    aten.rsub.Scalar: _reversed_subtraction,
    aten.silu.default: _silu,
    aten.sigmoid_backward.default: _sigmoid_gradient,
    aten.tanh_backward.default: _tanh_gradient,
    aten.pow.Tensor_Scalar: _power,
    aten.alias.default: _same,
    aten.clone.default: _same,
    aten._to_copy.default: _same,  # noqa: SLF001 - the name of an operator
    aten.view.default: _view,
    aten._unsafe_view.default: _view,  # noqa: SLF001 - the name of an operator
    aten.unsqueeze.default: _view,
    aten.squeeze.dim: _view,
    aten.expand.default: _expand,
    aten.t.default: _swap,
    aten.transpose.int: _swap,
    aten.permute.default: _permute,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mv.default: _matmul,
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.cat.default: _concatenate,
    aten.split_with_sizes.default: _split,
    operator.getitem: _item,
    aten.slice.Tensor: _slice,
    aten.index.Tensor: _gather(0),
    aten.embedding.default: _gather(0),
    aten.index_select.default: _gather(None),
    aten.where.self: _where,
    aten.ones_like.default: _filled(1.0),
    aten.zeros_like.default: _filled(0.0),
    aten.zeros.default: _filled(0.0),
    aten.full.default: _filled(None),
    aten.scalar_tensor.default: _filled(None),
    aten.eye.default: _evaluated,
    aten.arange.start: _evaluated,
    aten.arange.start_step: _evaluated,
    aten.arange.default: _range,
}
