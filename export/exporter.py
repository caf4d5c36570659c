"""Export of a checkpoint to one checked ONNX file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import onnx
import torch

from ..model.checkpoint import ModelCard, find_checkpoints, load_members
from ..model.networks.base import Network
from ..model.networks.ensemble import check_members
from ..model.networks.reflection import MirrorAveraged
from ..model.statistics import joint_minimum_distances
from ..pipeline.atomic import atomic_path
from ..pipeline.errors import ExportError
from ..pipeline.graphs.potential import OutputSpec, with_spread
from ..pipeline.runs.staging import ONNX, check_file
from .checks import check_agreement, check_determinism, check_structure, probe_batch, torch_dtype_name
from .cuda_placement import cpu_nodes
from .ensemble_graph import join
from .graph_builder import OPSET, OPSETS
from .lowering import lower
from .memory import table_memory
from .probes import LIMITS, UNITS, Probes
from .runtime.file_validation import with_checksum
from .runtime.metadata import ModelMetadata
from .runtime.onnx_potential import OnnxPotential
from .symmetry_checks import check_laws


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Result of an export.

    Attributes:
        path: Path of the ONNX file.
        metadata: Metadata stored in the file, including the results of the checks.
        nodes: Number of nodes of the graph.
        size_bytes: Size of the file (bytes).
        seconds: Time for the translation to ONNX, the checks and writing the file (seconds).
        cpu_operators: Operators, other than shape arithmetic, that ONNX Runtime would run on the CPU if the file is
            evaluated on a GPU; see `export.cuda_placement`.
    """

    path: Path
    metadata: ModelMetadata
    nodes: int
    size_bytes: int
    seconds: float
    cpu_operators: tuple[str, ...] = ()

    def __str__(self) -> str:
        parity = ", ".join(
            f"{spec.name} {self.metadata.parity[f'{spec.name}/{self.metadata.dtype}']:.1e} "
            f"{'eV/atom' if spec.name.startswith('energy') else spec.unit}".rstrip()
            for spec in self.metadata.outputs
        )
        laws, probes = [], self.metadata.probes
        for limit in self.metadata.limits:
            name, unit = limit.split()
            found = [value for law, value in self.metadata.laws.items() if law.startswith(f"{name}/")]
            laws += [f"{name} {max(found):.1e} {unit}"] if found else []
        symmetry = (
            f"; largest violations of symmetry on {probes['structures']:.0f} structures, with forces up to "
            f"{probes['forces eV/angstrom']:.2g} eV/angstrom: {', '.join(laws)}"
            if laws
            else ""
        )
        return (
            f"{self.path}: {self.nodes} nodes, {self.size_bytes / 1e6:.2f} MB, {self.seconds:.0f} s without start-up; "
            f"no scatter with a reduction; largest differences from PyTorch: {parity}{symmetry}"
            + (f"; on a GPU, the CPU may run {', '.join(self.cpu_operators)}" if self.cpu_operators else "")
        )


def export_onnx(
    checkpoint: str | Path,
    out: str | Path,
    *,
    outputs: Sequence[str] | None = None,
    float64: bool = False,
    average_mirror: bool = False,
    opset: int = OPSET,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> ExportReport:
    """Export a checkpoint, with forces, stress and all heads, to one ONNX file.

    The file is written only after these checks: the structure of the graph, agreement with PyTorch on new structures
    of different sizes, equal results with one and two threads (in float64, up to rounding), and the symmetries of the
    model.

    Example:
        >>> from equiscreen.export import export_onnx
        >>> report = export_onnx("run", "energy.onnx", outputs=["energy"])
        >>> report.metadata.cutoff
        5.0

    Args:
        checkpoint: Path of a model.ckpt, or of the run folder of a network or an ensemble; an ensemble is also written
            as a single file.
        out: ONNX file to write.
        outputs: Names of the outputs to keep: ``energy``, ``forces``, ``stress`` and heads; None keeps all. Without
            forces and stress, no gradient is computed, and evaluations of 7net-0 take 0.28 times as long.
        float64: Whether the model computes in float64, for checks; this is several times slower.
        average_mirror: Whether to average a network without parity with its mirror image, so that the model respects
            reflections; evaluations take twice as long.
        opset: Version of the ONNX operator set, from 17 to 23; older runtimes need a lower version.
        overwrite: Whether to replace an existing file.
        note: Called with a line about the next step, since each step may take minutes.

    Raises:
        CheckpointError: The checkpoint cannot be read, or the members of the ensemble do not match.
        ConfigError: `average_mirror` is set for a network that has parity or heads.
        ExportError: The network cannot be translated or lacks a requested output, a check failed, or the opset is not
            supported.
        OutputExistsError: The file already exists, is a folder or a URL, or is one of the checkpoints.
    """
    target = check_file(out, find_checkpoints(checkpoint), overwrite=overwrite, begins=ONNX)
    networks, card = load_members(checkpoint, torch.float64 if float64 else None)
    if opset not in OPSETS:
        raise ExportError(f"unsupported opset {opset}; choose one from {OPSETS[0]} to {OPSETS[-1]}")
    if average_mirror:
        networks = [MirrorAveraged(network).eval() for network in networks]
        card = replace(card, symmetry="o3", mirror_violation={}, mirror_structures=0)
    begin = time.monotonic()
    model, metadata = lower_and_check(networks, card, outputs, opset, note)
    data = with_checksum(model.SerializeToString())
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as scratch:
        scratch.write_bytes(data)
    leaving = sorted({node.operator for node in cpu_nodes(model) if not node.shape_arithmetic})
    return ExportReport(
        target, metadata, len(model.graph.node), len(data), time.monotonic() - begin, cpu_operators=tuple(leaving)
    )


def lower_and_check(
    networks: Sequence[Network],
    card: ModelCard,
    wanted: Sequence[str] | None = None,
    opset: int = OPSET,
    note: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> tuple[onnx.ModelProto, ModelMetadata]:
    """Translate a network, or the members of an ensemble, to ONNX, and run all checks.

    Args:
        networks: One network, or the members of an ensemble.
        card: Model card of the networks.
        wanted: Names of the outputs to keep; None keeps all.
        opset: Version of the ONNX operator set.
        note: Called with a line about the next step, since each step may take minutes.

    Returns:
        The ONNX model, with its metadata stored in it, and the metadata.

    Raises:
        CheckpointError: The networks do not form an ensemble.
        ExportError: The network cannot be translated or lacks a requested output, or a check failed.
    """
    note("export: tracing the network")
    network, outputs = networks[0], _kept(networks[0].outputs, wanted)
    names = [spec.name for spec in outputs]
    if len(networks) == 1:
        model = lower(network, names, opset)
    else:
        check_members(networks)
        model, outputs = join([lower(member, names, opset) for member in networks]), with_spread(outputs)
    check_structure(model)
    metadata = ModelMetadata(
        cutoff=network.cutoff,
        elements=network.elements,
        dtype=torch_dtype_name(network),
        outputs=outputs,
        symmetry=card.symmetry,
        energy_scheme=card.energy_scheme,
        training_data=card.training_data,
        weights_sha256=_weights_digest(model),
        parity={},
        validation=dict(card.validation),
        test=dict(card.test),
        equiscreen=version("equiscreen"),
        members=len(networks),
        mirror_violation=dict(card.mirror_violation),
        mirror_structures=card.mirror_structures,
        calibration=dict(card.calibration),
        origin=dict(card.origin),
        minimum_distances=joint_minimum_distances([member.statistics.geometry for member in networks]),
    )
    onnx.helper.set_model_props(model, metadata.to_props())
    data = model.SerializeToString()
    potential = OnnxPotential(data)
    probes = Probes.of(network)
    note("export: comparing with PyTorch")
    parity = check_agreement(networks, potential, probes)
    note("export: checking threads and symmetries")
    check_determinism(data, probes.blocks[-1])
    memory = table_memory(data, probes.blocks[-1], metadata.cutoff, metadata.dtype)
    laws = check_laws(potential, network.config.heads, probes)
    metadata = replace(
        metadata,
        parity=parity,
        laws=laws,
        limits={f"{name} {UNITS[name]}": LIMITS[name] * probes.scale for name in LIMITS if name in names},
        probes={"structures": len(probes.structures), "forces eV/angstrom": probes.force},
        probe_batch=probe_batch(network, potential, probes).to_json(),
        bytes_per_slot=memory.bytes_per_slot,
        elements_per_slot=memory.elements_per_slot,
    )
    onnx.helper.set_model_props(model, metadata.to_props())
    return model, metadata


def _kept(outputs: Sequence[OutputSpec], wanted: Sequence[str] | None) -> tuple[OutputSpec, ...]:
    """Return the requested outputs, in the order of the network.

    Raises:
        ExportError: An output does not exist, or none is requested.
    """
    known = [spec.name for spec in outputs]
    if wanted is None:
        return tuple(outputs)
    if unknown := [name for name in wanted if name not in known]:
        raise ExportError(f"the network has no output {', '.join(unknown)}; choose from {', '.join(known)}")
    if not wanted:
        raise ExportError(f"no outputs are requested; choose from {', '.join(known)}")
    return tuple(spec for spec in outputs if spec.name in wanted)


def _weights_digest(model: onnx.ModelProto) -> str:
    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda t: str(t.name)):
        digest.update(tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()
