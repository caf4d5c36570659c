"""Lowering: the translation of a network and its gradients to one ONNX graph.

``make_fx`` traces the outputs and ``autograd.grad`` into one flat graph of ATen operators, which `aten_translation`
translates to ONNX. Both steps run twice, on tables of different sizes, and must give the same bytes: this proves that
no size of an example is fixed in the graph.
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

# The inputs and their axes of variable size.
_ATOMS, _SLOTS, _PAIRS, _STRUCTURES = ("atoms",), ("atoms", "slots"), ("pairs",), ("structures",)
INPUTS = dict(zip(INPUT_NAMES, (_ATOMS, _SLOTS, _SLOTS, _SLOTS, _SLOTS, _PAIRS, _ATOMS, _STRUCTURES), strict=True))
# Two tables. In each, the numbers of atoms, slots, pairs and structures all differ, because make_fx merges sizes that
# are equal. Each table is given by a number of structures and a seed.
TRACED_STRUCTURES = ((7, 1), (5, 2))


def lower(network: Network, outputs: Collection[str] | None = None, opset: int = OPSET) -> onnx.ModelProto:
    """Translate a network, in its dtype, to ONNX.

    Args:
        network: A network on the CPU (tracing on another device turns gradients into constants). It is set to
            evaluation mode, and its weights no longer require gradients.
        outputs: Names of the network's outputs to keep; None keeps all.
        opset: Version of the ONNX operator set.

    Raises:
        ExportError: An operation has no translation, or the graph depends on the size of the example.
    """
    network = network.eval().requires_grad_(requires_grad=False)
    names = [spec.name if outputs is None or spec.name in outputs else None for spec in network.outputs]
    examples = [_example(network, count, seed) for count, seed in TRACED_STRUCTURES]
    model, again = (translate(_trace(network, example), INPUTS, names, opset) for example in examples)
    if model.SerializeToString(deterministic=True) != again.SerializeToString(deterministic=True):
        raise ExportError(
            "a size of the traced example is hard-coded in the ONNX graph; derive all sizes from the inputs"
        )
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
            f"the numbers of atoms, slots, pairs and structures in the traced example are {sizes}, but they must be "
            "different and at least 2; change TRACED_STRUCTURES in export/lowering.py"
        )
    return example


def _trace(network: Network, example: tuple[Tensor, ...]) -> fx.GraphModule:
    aten = torch.ops.aten
    # Decompose gradients that would become scatters, and composite operators.
    decompositions = torch._decomp.get_decompositions(  # noqa: SLF001 - documented, despite its name
        [aten.silu_backward, aten.slice_backward, aten.select_backward, aten.new_zeros, aten.detach]
    )
    return make_fx(
        network.__call__,
        tracing_mode="symbolic",
        decomposition_table=decompositions,  # type: ignore[arg-type]
        _allow_non_fake_inputs=True,
    )(*example)
