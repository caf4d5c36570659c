"""Lowering: a network with its gradients becomes one ONNX graph.

The route has three steps. ``make_fx`` turns outputs and ``autograd.grad`` into one plain graph of ATen operations; it
is traced twice, on tables of different sizes, and the graphs have to be equal, so that no size is frozen in.
``torch.export`` gives the sizes names. ``torch.onnx.export`` translates.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ..model.data import table_tensors
from ..model.network import EquivariantNetwork
from ..pipeline.block import GraphBlock
from ..pipeline.errors import ExportError
from ..pipeline.probes import probe_structures
from ..pipeline.tables import INPUT_NAMES

OPSET = 20
# Two tables whose numbers of atoms, slots and structures all differ: make_fx takes equal sizes for one and the same.
TRACED_STRUCTURES = ((7, 1), (5, 2))


def lower(network: EquivariantNetwork) -> onnx.ModelProto:
    """Translate a network, in its dtype, to ONNX; its outputs are those that the network names.

    Args:
        network: In evaluation mode, on the CPU (tracing on another device bakes gradients in as constants).

    Raises:
        ExportError: The traces on tables of two sizes differ.
    """
    network = network.eval().requires_grad_(requires_grad=False)
    with _quiet_exporter():
        examples = [_example(network, count, seed) for count, seed in TRACED_STRUCTURES]
        traced, again = (_trace(network, example) for example in examples)
        if _operations(traced) != _operations(again):
            raise ExportError("the graph depends on the size of its example: a size is frozen in")
        _keep_scalars_exact(traced)
        return _translate(traced, examples[0], [spec.name for spec in network.outputs])


def _example(network: EquivariantNetwork, count: int, seed: int) -> tuple[Tensor, ...]:
    block = GraphBlock.from_structures(
        probe_structures(network.elements, count, seed, cutoff=network.cutoff), network.cutoff
    )
    return table_tensors(block, network.cutoff, network.dtype)


def _trace(network: EquivariantNetwork, example: tuple[Tensor, ...]) -> torch.fx.GraphModule:
    aten = torch.ops.aten
    # What has no ONNX translation, or one with a scatter, is decomposed into what has a good one.
    decompositions = torch._decomp.get_decompositions(  # noqa: SLF001 - the documented place, in spite of its name
        [aten.silu_backward, aten.slice_backward, aten.select_backward, aten.new_zeros, aten.detach]
    )
    return make_fx(
        network.__call__,
        tracing_mode="symbolic",
        decomposition_table=decompositions,  # type: ignore[arg-type]
        _allow_non_fake_inputs=True,
    )(*example)


def _operations(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def _keep_scalars_exact(traced: torch.fx.GraphModule) -> None:
    """Turn numbers in formulas into constants of the dtype in which they are used.

    The exporter writes them as float32 attributes (onnxscript 0.7, `aten_scalar_tensor`): 0.7 would be off by 1e-8 in a
    float64 graph, and in the float64 sums of a float32 graph.

    Raises:
        ExportError: A number that float32 does not hold stands where a tensor cannot.
    """
    for place, node in enumerate(list(traced.graph.nodes)):
        for position, value in enumerate(node.args):
            if not isinstance(value, float) or float(np.float32(value)) == value or not math.isfinite(value):
                continue
            if "Tensor" not in str(node.target):
                raise ExportError(f"{node.target} would round {value} to float32")
            name = f"scalar_{place}_{position}"
            traced.register_buffer(name, torch.tensor(value, dtype=node.meta["val"].dtype))
            with traced.graph.inserting_before(node):
                node.update_arg(position, traced.graph.get_attr(name))
    traced.recompile()


class _Plain(nn.Module):
    """A traced graph with named inputs."""

    def __init__(self, traced: torch.fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced  # an attribute called "graph" breaks torch.export

    def forward(
        self,
        atomic_number: Tensor,
        vectors: Tensor,
        neighbors: Tensor,
        reverse: Tensor,
        structure: Tensor,
        volume: Tensor,
    ) -> tuple[Tensor, ...]:
        out: tuple[Tensor, ...] = self.traced(atomic_number, vectors, neighbors, reverse, structure, volume)
        return out


def _translate(traced: torch.fx.GraphModule, example: tuple[Tensor, ...], names: list[str]) -> onnx.ModelProto:
    n, k, g = (torch.export.Dim(name, min=1) for name in ("atoms", "slots", "structures"))
    sizes = {
        "atomic_number": {0: n},
        "vectors": {0: n, 1: k},
        "neighbors": {0: n, 1: k},
        "reverse": {0: n, 1: k},
        "structure": {0: n},
        "volume": {0: g},
    }
    program = torch.export.export(_Plain(traced), example, dynamic_shapes=sizes)
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(INPUT_NAMES),
        output_names=names,
        verbose=False,
    )
    if exported is None:
        raise ExportError("the ONNX exporter returned nothing")
    model: onnx.ModelProto = exported.model_proto
    return _without_debris(model)


def _without_debris(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove stack traces and names of source files that the exporter leaves on every node."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        if hasattr(value, "metadata_props"):
            del value.metadata_props[:]
        value.doc_string = ""
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    return model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's notices on operators of packages that are not installed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
