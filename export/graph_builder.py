"""Builder of an ONNX graph that computes nothing twice and merges consecutive reshapes.

No size is fixed to a size of the traced example: each is a symbolic expression of the input sizes, and is computed at
run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
import sympy
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.utils._sympy.functions import FloorDiv

from ..pipeline.errors import ExportError

# Supported opsets. The operators used here have existed since opset 13, and Shape of selected axes since 15; 17 is the
# oldest tested. ONNX Runtime's CUDA provider has all of these operators up to opset 18; in later opsets its older
# releases leave some of them (Equal, Pad, ReduceMax, Identity) to the CPU; see `cuda_placement`.
OPSETS = range(17, 24)
OPSET = 18
ONNX_TYPES: dict[torch.dtype, int] = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.int64: onnx.TensorProto.INT64,
    torch.bool: onnx.TensorProto.BOOL,
}
ONE = sympy.Integer(1)

Shape = tuple[sympy.Expr, ...]


def onnx_type(dtype: torch.dtype) -> int:
    """Return the code of a dtype in ONNX.

    Raises:
        ExportError: The dtype has no translation to ONNX.
    """
    if dtype not in ONNX_TYPES:
        raise ExportError(f"{dtype} has no translation to ONNX; use float32, float64, int64 or bool")
    return ONNX_TYPES[dtype]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the ONNX graph.

    Attributes:
        name: Name in the graph.
        shape: Sizes as symbolic expressions. An axis of size 1 stands for any size of the traced tensor, because ONNX
            broadcasts it.
        dtype: Data type of the elements.
        constant: Content, if it is known at export.
    """

    name: str
    shape: Shape
    dtype: torch.dtype
    constant: Tensor | None = None


class Graph:
    """An ONNX graph under construction."""

    def __init__(self) -> None:
        self.inputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.known: dict[tuple[Any, ...], Any] = {}
        # Where each input size is read (input, axis), and the name of its axis.
        self.places: dict[sympy.Expr, tuple[str, int]] = {}
        self.axes: dict[sympy.Expr, str] = {}
        # The value that each reshaped value comes from.
        self.origins: dict[str, Value] = {}

    def add_input(self, name: str, example: Tensor, axes: Sequence[str]) -> Value:
        """Add an input to the graph.

        Args:
            name: Name of the input.
            example: Traced tensor.
            axes: Names of the axes of variable size, in order.

        Raises:
            ExportError: The dtype has no translation to ONNX.
        """
        value, remaining = Value(name, shape_of(example), example.dtype), iter(axes)
        for axis, size in enumerate(value.shape):
            if not size.is_Integer:
                self.places.setdefault(size, (name, axis))
                self.axes.setdefault(size, next(remaining))
        self.inputs.append(self.described(value))
        return value

    def described(self, value: Value) -> onnx.ValueInfoProto:
        """Return the name, type and shape of a value, with the names of its axes of variable size.

        Raises:
            ExportError: The dtype has no translation to ONNX.
        """
        sizes = [int(size) if size.is_Integer else self.axes.get(size) for size in value.shape]
        return helper.make_tensor_value_info(value.name, onnx_type(value.dtype), sizes)

    def constant(self, tensor: Tensor) -> Value:
        """Add a constant; equal constants are stored once.

        Raises:
            ExportError: The dtype has no translation to ONNX.
        """
        onnx_type(tensor.dtype)
        array = tensor.detach().cpu().contiguous().numpy()
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key not in self.known:
            shape = tuple(sympy.Integer(size) for size in tensor.shape)
            self.known[key] = Value(f"/constant_{len(self.initializers)}", shape, tensor.dtype, tensor.detach())
            self.initializers.append(numpy_helper.from_array(array, self.known[key].name))
        found: Value = self.known[key]
        return found

    def emit(self, kind: str, inputs: Sequence[Value], shape: Shape, dtype: torch.dtype, **attributes: Any) -> Value:
        """Add a node with one output, or reuse a node that already computes the same result."""
        (out,) = self.emit_many(kind, inputs, [shape], dtype, **attributes)
        return out

    def emit_many(
        self, kind: str, inputs: Sequence[Value], shapes: Sequence[Shape], dtype: torch.dtype, **attributes: Any
    ) -> list[Value]:
        """Add a node with several outputs, or reuse a node that already computes the same result."""
        names = [x.name for x in inputs]
        key = (kind, *names, *(f"{name}={value}" for name, value in sorted(attributes.items())))
        if key not in self.known:
            place = len(self.nodes)
            stem = f"/{kind.lower()}_{place}"  # the name of a head cannot contain a slash
            outputs = [stem] if len(shapes) == 1 else [f"{stem}_{number}" for number in range(len(shapes))]
            self.nodes.append(helper.make_node(kind, names, outputs, stem, **attributes))
            self.known[key] = [Value(name, shape, dtype) for name, shape in zip(outputs, shapes, strict=True)]
        found: list[Value] = self.known[key]
        return found

    def sizes(self, sizes: Sequence[sympy.Expr]) -> Value:
        """Return several sizes as a tensor, int64[len(sizes)].

        Raises:
            ExportError: As in `size`.
        """
        if all(size.is_Integer for size in sizes):
            return self.constant(torch.tensor([int(size) for size in sizes], dtype=torch.int64))
        parts = [self.size(size) for size in sizes]
        shape = (sympy.Integer(len(parts)),)
        return parts[0] if len(parts) == 1 else self.emit("Concat", parts, shape, torch.int64, axis=0)

    def size(self, size: sympy.Expr) -> Value:
        """Return one size as a tensor, int64[1].

        Raises:
            ExportError: The size is neither a size of an input nor computed from sizes of inputs by sums, products and
                floor division.
        """
        if size.is_Integer:
            return self.constant(torch.tensor([int(size)], dtype=torch.int64))
        if size in self.places:
            name, axis = self.places[size]
            source = Value(name, (), torch.int64)
            return self.emit("Shape", [source], (ONE,), torch.int64, start=axis, end=axis + 1)
        kinds = {sympy.Mul: "Mul", sympy.Add: "Add", FloorDiv: "Div"}
        if size.func not in kinds:
            raise ExportError(
                f"the size {size} has no translation to ONNX; compute sizes by sums, products and floor division only"
            )
        first, *others = (self.size(x) for x in size.args)
        for other in others:
            first = self.emit(kinds[size.func], [first, other], (ONE,), torch.int64)
        return first

    def full(self, value: Value, traced: Tensor) -> Value:
        """Expand a value to the full shape of the traced tensor.

        Raises:
            ExportError: As in `size`.
        """
        shape = shape_of(traced)
        if value.shape == shape:
            return value
        return self.emit("Expand", [value, self.sizes(shape)], shape, value.dtype)

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        """Convert a value to another dtype.

        Raises:
            ExportError: The dtype has no translation to ONNX.
        """
        if value.dtype == dtype:
            return value
        if value.constant is not None:
            return self.constant(value.constant.to(dtype))
        return self.emit("Cast", [value], value.shape, dtype, to=onnx_type(dtype))

    def reshape(self, value: Value, shape: Shape) -> Value:
        """Reshape a value; only the last of several consecutive reshapes is kept.

        Raises:
            ExportError: As in `size`.
        """
        if value.constant is not None:
            return self.constant(value.constant.reshape([int(size) for size in shape]))
        source = self.origins.get(value.name, value)
        if source.shape == shape:
            return source
        # In ONNX, 0 copies the size of the same axis of the input, and -1 is inferred from the rest.
        sizes = list(shape)
        for axis, size in enumerate(shape[: len(source.shape)]):
            if not size.is_Integer and size == source.shape[axis]:
                sizes[axis] = sympy.Integer(0)
        open_axes = [axis for axis, size in enumerate(sizes) if not size.is_Integer]
        if len(open_axes) == 1:
            sizes[open_axes[0]] = sympy.Integer(-1)
        elif open_axes:
            sizes = list(shape)
        out = self.emit("Reshape", [source, self.sizes(sizes)], shape, value.dtype)
        self.origins[out.name] = source
        return out

    def split(self, value: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
        """Split a value along an axis into parts of these sizes."""
        shapes = [with_size(value.shape, axis, sympy.Integer(size)) for size in sizes]
        lengths = self.constant(torch.tensor(sizes, dtype=torch.int64))
        return self.emit_many("Split", [value, lengths], shapes, value.dtype, axis=axis % len(value.shape))

    def model(self, outputs: Sequence[Value], names: Sequence[str], opset: int) -> onnx.ModelProto:
        """Return the finished model, without nodes, inputs and constants that no output needs."""
        for value, name in zip(outputs, names, strict=True):
            self.nodes.append(helper.make_node("Identity", [value.name], [name], name))
        needed, nodes = {*names}, []
        for node in reversed(self.nodes):
            if needed & {*node.output}:
                nodes.append(node)
                needed |= {*node.input}
        graph = helper.make_graph(
            nodes[::-1],
            "equiscreen",
            [x for x in self.inputs if x.name in needed],
            [self.described(replace(value, name=name)) for value, name in zip(outputs, names, strict=True)],
            [tensor for tensor in self.initializers if tensor.name in needed],
        )
        opsets = [helper.make_opsetid("", opset)]
        oldest = helper.find_min_ir_version_for(opsets)
        return helper.make_model(graph, producer_name="equiscreen", ir_version=oldest, opset_imports=opsets)


def size_of(size: Any) -> Any:
    """Return a traced size as a symbolic expression; other values are returned unchanged."""
    if isinstance(size, torch.SymInt):
        return sympy.sympify(size.node.expr)
    return sympy.Integer(size) if isinstance(size, int) else size


def shape_of(tensor: Tensor) -> Shape:
    """Return the sizes of a traced tensor as symbolic expressions."""
    return tuple(size_of(size) for size in tensor.shape)


def with_size(shape: Shape, axis: int, size: sympy.Expr) -> Shape:
    """Return the shape with the size of one axis replaced."""
    out = list(shape)
    out[axis] = size
    return tuple(out)


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Return the shape that compatible shapes broadcast to."""
    rank = max(len(shape) for shape in shapes)
    padded = [(ONE,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((size for size in sizes if size != ONE), ONE) for sizes in zip(*padded, strict=True))


def open_axes(value: Value, traced: Tensor) -> list[int]:
    """Return the axes of a value that ONNX still has to broadcast."""
    return [axis for axis, (own, size) in enumerate(zip(value.shape, shape_of(traced), strict=True)) if own != size]
