"""Where ONNX Runtime computes: on the CPU, or on a GPU by CUDA."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ...pipeline.errors import DeviceError

CPU = "cpu"
AUTO = "auto"
_CUDA, _ON_CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_CURE = (
    "install onnxruntime-gpu in place of onnxruntime (pip uninstall onnxruntime; pip install 'equiscreen[gpu]'), or "
    "say cpu, or auto to take the CPU where there is no GPU"
)

Provider = str | tuple[str, dict[str, Any]]


def providers(device: str) -> list[Provider]:
    """What ONNX Runtime is told to compute with.

    Args:
        device: ``cpu``; ``cuda`` or ``cuda:1``; or ``auto``, a GPU if there is one.

    Raises:
        DeviceError: A word that is none of these, or a GPU where ONNX Runtime knows none.
    """
    kind, _, number = device.partition(":")
    if device == CPU:
        return [_ON_CPU]
    if kind not in ("cuda", AUTO) or (number and not (kind == "cuda" and number.isdecimal())):
        raise DeviceError(f"{device!r} is no device: say cpu, cuda, cuda:1 and so on, or auto")
    import onnxruntime  # noqa: PLC0415 - an extra

    if _CUDA not in onnxruntime.get_available_providers():
        if device == AUTO:
            return [_ON_CPU]
        raise DeviceError(f"{device}: this ONNX Runtime knows no GPU: {_CURE}")
    onnxruntime.preload_dlls()
    # TF32 has 10 bits of mantissa, too few for forces. Memory grows as it is needed, not to the next power of two.
    options = {"device_id": int(number or 0), "use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"}
    return [(_CUDA, options), _ON_CPU]


def check_providers(found: Sequence[str], chosen: Sequence[Provider], device: str) -> None:
    """See that ONNX Runtime took the GPU that it was told to take: where it cannot, it goes on with the CPU.

    Raises:
        DeviceError: It did not.
    """
    if len(chosen) == 1 or _CUDA in found:
        return
    if device != AUTO:
        raise DeviceError(f"{device}: ONNX Runtime found no GPU that it can use: {_CURE}")
    warnings.warn("ONNX Runtime found no GPU that it can use: the CPU computes", RuntimeWarning, stacklevel=3)


def device_kind(device: str) -> str:
    """Kind of device that results may depend on: ``cpu``, ``cuda``, or ``auto`` where each worker decides.

    Args:
        device: As for `providers`.
    """
    return device.partition(":")[0]
