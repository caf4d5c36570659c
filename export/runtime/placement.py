"""Placement of a model's nodes on a GPU or the CPU, read from ONNX Runtime's profile of a run.

A node without a kernel for the GPU runs on the CPU without an error, and its tensors are copied there and back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...pipeline.errors import DeviceError

CUDA_PROVIDER, CPU_PROVIDER = "CUDAExecutionProvider", "CPUExecutionProvider"
SMALL = 100  # elements; ONNX Runtime's own limit for constants of shape arithmetic
_INTEGERS = frozenset({"int32", "int64", "bool"})
_READ_SIZES = frozenset({"Shape", "Size"})  # they read the sizes of their inputs, not the elements
_FROM_HOST, _TO_HOST = "MemcpyFromHost", "MemcpyToHost"
_NAMED = 5


@dataclass(frozen=True, slots=True)
class NodeRun:
    """One node in a profile.

    Attributes:
        name: Name of the node.
        operator: Type of the node.
        provider: Execution provider that ran the node.
        inputs: Element type and number of elements of each input.
        outputs: The same for each output.
    """

    name: str
    operator: str
    provider: str
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]

    @property
    def small_integers(self) -> bool:
        """Whether the node handles only integers (at most `SMALL` in each tensor), as arithmetic with sizes does."""
        tensors = self.outputs if self.operator in _READ_SIZES else (*self.inputs, *self.outputs)
        return all(kind in _INTEGERS and elements <= SMALL for kind, elements in tensors)

    def __str__(self) -> str:
        kind, elements = max(self.outputs, key=lambda tensor: tensor[1], default=("", 0))
        return f"{self.name} ({self.operator}, {kind}, {elements} elements)"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the nodes of a model ran.

    Attributes:
        on_device: Number of nodes that ran on the requested device.
        shape_arithmetic: Number of nodes on the CPU that only compute with sizes; ONNX Runtime keeps them there by
            design.
        misplaced: Other nodes on the CPU, and copies of tensors between device and host, except of a few sizes to the
            device.
    """

    on_device: int
    shape_arithmetic: int
    misplaced: tuple[NodeRun, ...]


def read_profile(text: str) -> list[NodeRun]:
    """Read the nodes from a profile of one or several runs; each node is returned once.

    Args:
        text: Content of the file that `InferenceSession.end_profiling` wrote.

    Raises:
        ValueError: The text is not a profile, or describes no node.
    """
    found: dict[str, NodeRun] = {}
    for event in json.loads(text):
        values = event.get("args", {})
        if event.get("cat") == "Node" and "op_name" in values and "provider" in values:
            name = event["name"].removesuffix("_kernel_time")
            inputs, outputs = (_tensors(values.get(f"{side}_type_shape", [])) for side in ("input", "output"))
            found[name] = NodeRun(name, values["op_name"], values["provider"], inputs, outputs)
    if not found:
        raise ValueError("the profile describes no node")
    return list(found.values())


def _tensors(described: Iterable[Mapping[str, list[int]]]) -> tuple[tuple[str, int], ...]:
    return tuple((kind, math.prod(sizes)) for tensor in described for kind, sizes in tensor.items())


def judge_placement(nodes: Iterable[NodeRun], provider: str = CUDA_PROVIDER) -> Placement:
    """Divide the nodes of a profile into those that ran where they should and those that are misplaced.

    Args:
        nodes: Nodes of the profile.
        provider: Execution provider that should run the model.
    """
    on_device, arithmetic, misplaced = 0, 0, []
    for node in nodes:
        copies = node.operator in (_FROM_HOST, _TO_HOST)
        if node.operator == _TO_HOST or (copies and not node.small_integers):
            misplaced.append(node)
        elif node.provider == provider and not copies:
            on_device += 1
        elif node.small_integers:
            arithmetic += 1
        else:
            misplaced.append(node)
    return Placement(on_device, arithmetic, tuple(misplaced))


def check_placement(placement: Placement, name: str, device: str) -> None:
    """Reject a model of which a part ran on the CPU although a GPU was requested.

    Args:
        placement: Where the nodes ran.
        name: Name of the model file, for the message.
        device: The requested device, for the message.

    Raises:
        DeviceError: Nodes other than shape arithmetic ran on the CPU, or tensors were copied between GPU and CPU.
    """
    if not placement.misplaced:
        return
    named = [str(node) for node in placement.misplaced[:_NAMED]]
    others = len(placement.misplaced) - len(named)
    raise DeviceError(
        f"{name}: {len(placement.misplaced)} nodes run on the CPU or copy tensors between CPU and GPU: "
        f"{', '.join(named)}{f' and {others} others' if others else ''}; export the model again with the default "
        f"--opset, upgrade onnxruntime-gpu, or choose {device}+cpu to accept this"
    )


def finished_placement(session: Any, provider: str = CUDA_PROVIDER) -> Placement:
    """End the profiling of a session that has run a batch, delete its profile, and judge where the nodes ran.

    Args:
        session: `onnxruntime.InferenceSession` with profiling enabled.
        provider: Execution provider that should run the model.
    """
    path = Path(session.end_profiling())
    text = path.read_text(encoding="utf-8")
    path.unlink()
    return judge_placement(read_profile(text), provider)
