"""Checks that an exported graph must pass before it is written: structure, agreement with PyTorch, determinism."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx
import torch

from ..model.networks.base import Network
from ..model.networks.ensemble import EnsemblePotential
from ..model.networks.torch_potential import TorchPotential
from ..pipeline.errors import ExportError
from ..pipeline.graphs.graph_block import GraphBlock
from ..pipeline.graphs.potential import SPREAD, Evaluation, Potential
from .probes import LIMITS, UNITS, Probes
from .runtime.file_validation import STANDARD_DOMAINS
from .runtime.onnx_potential import OnnxPotential
from .runtime.probe_batch import ProbeBatch, differences

# Control flow and NonZero make sizes depend on data, and Einsum is slow. The last bit of Sin and Cos depends on the
# position of an element in its tensor (vectorised code and scalar remainder differ), and so on how threads divide the
# tensor (seen in onnxruntime 1.32; tests/export/test_checks.py shows it).
FORBIDDEN = frozenset({"Einsum", "If", "Loop", "Scan", "NonZero", "Sin", "Cos"})
SCATTERS = frozenset({"ScatterND", "ScatterElements", "Scatter"})

# Limit for outputs that are not in `LIMITS`, relative to the largest value or to the spread of the labels if that is
# larger.
PROPERTY_LIMIT = 1e-4
REPEATS = 3
PROBE_BATCH = 6  # structures; some 50 atoms, a few kilobytes
# In float64, Sigmoid and Exp behave like Sin and Cos: their last bits may change with the number of threads.
FLOAT64_THREAD_DIFFERENCE = 1e-12


def check_structure(model: onnx.ModelProto) -> None:
    """Check the graph without running it.

    Raises:
        ExportError: The graph has a scatter with a reduction, a forbidden operator or domain, external data, or a fixed
            size.
    """
    for node in all_nodes(model.graph.node):
        if node.domain not in STANDARD_DOMAINS:
            raise ExportError(
                f"the ONNX graph contains the operator {node.op_type} from the domain {node.domain!r}, but only "
                "standard operators are allowed; rewrite the layer without it"
            )
        if node.op_type in FORBIDDEN or is_reducing_scatter(node):
            raise ExportError(
                f"the ONNX graph contains the operator {node.op_type} ({node.name}), which is slow, not reproducible, "
                "or makes sizes depend on data; rewrite the layer without it"
            )
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise ExportError("the ONNX graph stores tensors in other files; store them in the graph")
    for value in model.graph.input:
        frozen = [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value") and d.dim_value != 3]
        if frozen:
            raise ExportError(
                f"the input {value.name} of the ONNX graph has the fixed sizes {frozen}, but only axes of length 3 may "
                "be fixed; derive all sizes from the inputs"
            )


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield all nodes, including the nodes of nested graphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from all_nodes(attribute.g.node)
            for graph in attribute.graphs:
                yield from all_nodes(graph.node)


def is_reducing_scatter(node: onnx.NodeProto) -> bool:
    """Whether a node is a scatter that combines several values written to one place (adds, multiplies, ...)."""
    reductions = [attribute.s for attribute in node.attribute if attribute.name == "reduction"]
    return node.op_type in SCATTERS and any(reduction not in (b"", b"none") for reduction in reductions)


def check_agreement(networks: Sequence[Network], potential: OnnxPotential, probes: Probes) -> dict[str, float]:
    """Compare ONNX Runtime with PyTorch on new structures, in the model's dtype and in float64.

    Args:
        networks: One network, or the members of an ensemble.
        potential: The exported model.
        probes: Structures to compare on.

    Returns:
        Largest absolute differences, by ``output/dtype of PyTorch``, in the unit of the output (energies: per atom).

    Raises:
        ExportError: A difference between ONNX Runtime and PyTorch exceeds its limit.
    """
    report: dict[str, float] = {}
    references = {
        potential.metadata.dtype: _reference(networks),
        "float64": _reference([copy.deepcopy(network).double() for network in networks]),
    }
    for block in probes.blocks:
        found = potential.evaluate(block)
        for dtype, reference in references.items():
            expected = reference.evaluate(block)
            for name, difference in _differences(found, expected, block, [x.name for x in potential.outputs]).items():
                limit = _limit(name, expected, networks[0], probes.scale)
                key = f"{name}/{dtype}"
                report[key] = max(report.get(key, 0.0), difference)
                if not difference <= limit:
                    unit = UNITS.get(name.removesuffix(SPREAD), "")
                    raise ExportError(
                        f"{name}: ONNX Runtime differs from PyTorch ({dtype}) by {difference:.1e} {unit}".rstrip()
                        + f", above the limit {limit:.1e} {unit}".rstrip()
                        + "; try --float64, or another version of ONNX Runtime"
                    )
    return report


def probe_batch(network: Network, potential: OnnxPotential, probes: Probes) -> ProbeBatch:
    """Choose a few of the structures as the batch that tests the model on a GPU.

    Args:
        network: The network, or the first member of an ensemble.
        potential: The exported model.
        probes: Structures to choose from.
    """
    chosen = probes.structures[:PROBE_BATCH]
    found = potential.evaluate_structures(chosen)
    limits = {spec.name: _limit(spec.name, found, network, probes.scale) for spec in potential.outputs}
    return ProbeBatch.of(potential, chosen, limits)


def _reference(networks: Sequence[Network]) -> Potential:
    return TorchPotential(networks[0]) if len(networks) == 1 else EnsemblePotential(networks)


def _limit(name: str, expected: Evaluation, network: Network, scale: float) -> float:
    """Return the largest difference allowed for an output, in its unit."""
    mean = name.removesuffix(SPREAD)
    if mean in LIMITS:
        return LIMITS[mean] * scale
    values = expected.properties[mean]
    largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    # The scales of a log-transformed head have no unit.
    log = network.config.heads[mean].transform == "log"
    return PROPERTY_LIMIT * (largest if log else max(largest, *network.statistics.heads[mean].scales))


def check_determinism(data: bytes, block: GraphBlock) -> None:
    """Check that repeated runs of one batch, with one and with two threads, give the same bits.

    Args:
        data: Content of the ONNX file.
        block: The batch.

    Raises:
        ExportError: Two runs differ in a bit (in float64 with different numbers of threads: by more than rounding).
    """
    results: list[Evaluation] = []
    for threads in (1, 2):
        potential = OnnxPotential(data, threads=threads)
        first, *others = (potential.evaluate(block) for _ in range(REPEATS))
        if not all(_equal(first, other) for other in others):
            raise ExportError(f"two runs of a batch differ (threads: {threads}); try another version of ONNX Runtime")
        results.append(first)
    one, two = results
    if potential.metadata.dtype == "float64":
        largest = max(float(np.nanmax(np.abs(x), initial=1e-3)) for x in one.arrays().values())
        if max(_differences(one, two, block, one.arrays()).values()) > FLOAT64_THREAD_DIFFERENCE * largest:
            raise ExportError(
                "runs with one and with two threads differ by more than rounding; try another version of ONNX Runtime"
            )
    elif not _equal(one, two):
        raise ExportError("runs with one and with two threads differ; try another version of ONNX Runtime")


def _differences(a: Evaluation, b: Evaluation, block: GraphBlock, outputs: Iterable[str]) -> dict[str, float]:
    return differences(a.arrays(), b.arrays(), block, outputs)


def _equal(a: Evaluation, b: Evaluation) -> bool:
    others = b.arrays()
    return all(np.array_equal(values, others[name], equal_nan=True) for name, values in a.arrays().items())


def torch_dtype_name(network: Network) -> str:
    """Return the dtype of a network, as "float32" or "float64"."""
    return "float64" if network.dtype == torch.float64 else "float32"
