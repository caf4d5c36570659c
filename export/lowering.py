"""Lowering: a network with its gradients becomes one ONNX graph.

``make_fx`` turns outputs and ``autograd.grad`` into one plain graph of ATen operations, which `translation` writes in
ONNX. Both are done twice, on tables of different sizes, and have to end in the same bytes, so that no size of an
example is frozen in.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ..model.data.batches import table_tensors
from ..model.layers.table import Table
from ..model.networks.base import Network
from ..pipeline.errors import ExportError
from ..pipeline.graphs.graph_block import GraphBlock
from ..pipeline.graphs.neighbor_table import INPUT_NAMES
from ..pipeline.structures.random_crystals import probe_structures
from .aten_translation import translate
from .graph_builder import OPSET

# The inputs, and their axes whose sizes change.
_ATOMS, _SLOTS, _PAIRS, _STRUCTURES = ("atoms",), ("atoms", "slots"), ("pairs",), ("structures",)
INPUTS = dict(zip(INPUT_NAMES, (_ATOMS, _SLOTS, _SLOTS, _SLOTS, _SLOTS, _PAIRS, _ATOMS, _STRUCTURES), strict=True))
# Two tables whose numbers of atoms, slots and structures all differ: make_fx takes equal sizes for one and the same.
TRACED_STRUCTURES = ((7, 1), (5, 2))


def lower(network: Network, outputs: Collection[str] | None = None, opset: int = OPSET) -> onnx.ModelProto:
    """Translate a network, in its dtype, to ONNX.

    Args:
        network: In evaluation mode, on the CPU (tracing on another device bakes gradients in as constants).
        outputs: Names of those to keep of the network's outputs; None keeps all.
        opset: Version of the operators.

    Raises:
        ExportError: An operation without translation, or results that depend on the size of the example.
    """
    network = network.eval().requires_grad_(requires_grad=False)
    names = [spec.name if outputs is None or spec.name in outputs else None for spec in network.outputs]
    examples = [_example(network, count, seed) for count, seed in TRACED_STRUCTURES]
    model, again = (translate(_trace(network, example), INPUTS, names, opset) for example in examples)
    if model.SerializeToString(deterministic=True) != again.SerializeToString(deterministic=True):
        raise ExportError("the graph depends on the size of its example: a size is frozen in")
    return model


def _example(network: Network, count: int, seed: int) -> tuple[Tensor, ...]:
    block = GraphBlock.from_structures(
        probe_structures(network.elements, count, seed, cutoff=network.cutoff), network.cutoff
    )
    example = table_tensors(block, network.cutoff, network.dtype)
    table = Table(*example)
    sizes = (*table.neighbors.shape, len(table.pair_slot), len(table.volume))
    if len(set(sizes)) < len(sizes) or min(sizes) < 2:
        raise ExportError(
            f"the example has {sizes} atoms, slots, pairs and structures: equal ones cannot be told apart"
        )
    return example


def _trace(network: Network, example: tuple[Tensor, ...]) -> fx.GraphModule:
    aten = torch.ops.aten
    # Gradients that would be scatters, and what is several operations at once.
    decompositions = torch._decomp.get_decompositions(  # noqa: SLF001 - the documented place, in spite of its name
        [aten.silu_backward, aten.slice_backward, aten.select_backward, aten.new_zeros, aten.detach]
    )
    return make_fx(
        network.__call__,
        tracing_mode="symbolic",
        decomposition_table=decompositions,  # type: ignore[arg-type]
        _allow_non_fake_inputs=True,
    )(*example)
