"""What an exported graph has to pass before it becomes a file: structure, parity with PyTorch, determinism."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import torch

from ..model.network import EquivariantNetwork
from ..model.potential import TorchPotential
from ..pipeline.block import GraphBlock
from ..pipeline.errors import ExportError
from ..pipeline.potential import Evaluation
from ..pipeline.structure import Structure
from .modelfile import STANDARD_DOMAINS
from .probes import probe_structures
from .runtime import OnnxPotential

# Control flow and NonZero make sizes depend on data, Einsum is slow. Of Sin and Cos the last bit depends on an
# element's place in its tensor (vector code and scalar remainder differ), so on how threads divide it (seen in
# onnxruntime 1.32; tests/export/test_checks.py shows it).
FORBIDDEN = frozenset({"Einsum", "If", "Loop", "Scan", "NonZero", "Sin", "Cos"})
SCATTERS = frozenset({"ScatterND", "ScatterElements", "Scatter"})

# Other sizes than the traced ones: (structures, seed, largest number of atoms).
PARITY_PROBES = ((1, 11, 4), (3, 12, 30), (40, 13, 12))
# Largest differences allowed between ONNX Runtime and PyTorch, in eV/atom, eV/angstrom and eV/angstrom^3. The probes
# are no relaxed crystals: where forces exceed 1 eV/angstrom the limits grow with them, as rounding does.
LIMITS = {"energy": 1e-5, "forces": 1e-4, "stress": 1e-5}
REPEATS = 3
# In float64 the same holds of Sigmoid and Exp: with another number of threads the last bits may differ.
FLOAT64_THREAD_DIFFERENCE = 1e-12


def check_structure(model: onnx.ModelProto) -> None:
    """Look at the graph alone.

    Raises:
        ExportError: A reducing scatter, a forbidden operator or domain, external data, or a frozen size.
    """
    for node in all_nodes(model.graph.node):
        if node.domain not in STANDARD_DOMAINS:
            raise ExportError(f"the graph holds {node.op_type} of the domain {node.domain!r}")
        if node.op_type in FORBIDDEN or is_reducing_scatter(node):
            raise ExportError(f"the graph holds {node.op_type} ({node.name})")
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise ExportError("the graph keeps tensors in other files")
    for value in model.graph.input:
        frozen = [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value") and d.dim_value != 3]
        if frozen:
            raise ExportError(f"input {value.name} has the frozen sizes {frozen}")


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of graphs inside them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from all_nodes(attribute.g.node)
            for graph in attribute.graphs:
                yield from all_nodes(graph.node)


def is_reducing_scatter(node: onnx.NodeProto) -> bool:
    """Whether a node adds, multiplies or otherwise merges what it writes to one place."""
    reductions = [attribute.s for attribute in node.attribute if attribute.name == "reduction"]
    return node.op_type in SCATTERS and any(reduction not in (b"", b"none") for reduction in reductions)


def check_parity(network: EquivariantNetwork, potential: OnnxPotential) -> dict[str, float]:
    """Compare ONNX Runtime with PyTorch on fresh structures, in the model's dtype and in float64.

    Returns:
        Largest differences, by ``quantity/dtype of PyTorch``.

    Raises:
        ExportError: Beyond `LIMITS`.
    """
    report: dict[str, float] = {}
    references = {potential.metadata.dtype: network, "float64": copy.deepcopy(network).double()}
    for probe in PARITY_PROBES:
        block = _probe_block(probe, network.elements, network.cutoff)
        found = potential.evaluate(block)
        for dtype, reference in references.items():
            expected = TorchPotential(reference).evaluate(block)
            scale = max(1.0, float(np.abs(expected.forces).max()))
            for name, difference in differences(found, expected, block).items():
                key = f"{name}/{dtype}"
                report[key] = max(report.get(key, 0.0), difference)
                if not difference <= LIMITS[name] * scale:
                    raise ExportError(
                        f"{name} differs from PyTorch ({dtype}) by {difference:.2e}, above {LIMITS[name] * scale:.1e}"
                    )
    return report


def _probe_block(probe: tuple[int, int, int], elements: tuple[int, ...], cutoff: float) -> GraphBlock:
    """Crystals, the sites of one of them as a molecule, and an atom alone."""
    crystals = probe_structures(elements, *probe, cutoff=cutoff)
    molecule = Structure.from_cartesian(crystals[0].atomic_number, crystals[0].positions)
    alone = Structure.from_cartesian(elements[:1], [[0.0, 0.0, 0.0]])
    block = GraphBlock.from_structures([*crystals, molecule, alone], cutoff)
    if block.n_edges[: len(crystals)].min() == 0:
        raise ExportError(f"the probes have no neighbours within {cutoff} angstrom: nothing would be checked")
    return block


def differences(a: Evaluation, b: Evaluation, block: GraphBlock) -> dict[str, float]:
    """Largest differences of energy per atom, forces and stress."""
    return {
        "energy": float(np.abs((a.energy - b.energy) / block.n_atoms).max()),
        "forces": float(np.abs(a.forces - b.forces).max()),
        "stress": float(np.max(np.where(np.isnan(a.stress) & np.isnan(b.stress), 0, np.abs(a.stress - b.stress)))),
    }


def check_determinism(data: bytes) -> None:
    """Run one batch several times with one and with two threads.

    Raises:
        ExportError: Two runs differ in a bit (or, in float64 with different numbers of threads, by more than rounding).
    """
    results: list[Evaluation] = []
    for threads in (1, 2):
        potential = OnnxPotential(data, threads=threads)
        block = _probe_block(PARITY_PROBES[-1], potential.elements, potential.cutoff)
        first, *others = (potential.evaluate(block) for _ in range(REPEATS))
        if not all(_equal(first, other) for other in others):
            raise ExportError(f"two runs of the same batch differ ({threads} threads)")
        results.append(first)
    one, two = results
    if potential.metadata.dtype == "float64":
        if max(differences(one, two, block).values()) > FLOAT64_THREAD_DIFFERENCE * np.abs(one.forces).max():
            raise ExportError("runs with one and with two threads differ by more than rounding")
    elif not _equal(one, two):
        raise ExportError("runs with one and with two threads differ")


def _equal(a: Evaluation, b: Evaluation) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for name in ("energy", "forces", "stress")
    )


def torch_dtype_name(network: EquivariantNetwork) -> str:
    """As a name, float32 or float64."""
    return "float64" if network.dtype == torch.float64 else "float32"
