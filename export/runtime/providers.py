"""ONNX Runtime execution providers: the CPU, or a GPU with CUDA."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ...pipeline.errors import DeviceError
from .placement import CPU_PROVIDER, CUDA_PROVIDER

CPU = "cpu"
AUTO = "auto"
# Appended to a device: nodes without a kernel for the GPU may run on the CPU.
_WITH_CPU = "+cpu"
_CURE = (
    "install onnxruntime-gpu instead of onnxruntime (pip uninstall onnxruntime; pip install 'equiscreen[gpu]'), or "
    "choose cpu, or auto, which uses the CPU if there is no GPU"
)

Provider = str | tuple[str, dict[str, Any]]


def providers(device: str) -> list[Provider]:
    """Return the execution providers of ONNX Runtime for a device.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``, which uses a GPU if there is one. With ``+cpu`` appended,
            such as ``cuda+cpu``, parts of the model may run on the CPU; see `export.runtime.placement`.

    Raises:
        DeviceError: The device is unknown, or a GPU is requested but ONNX Runtime cannot use one.
    """
    kind, _, number = device.removesuffix(_WITH_CPU).partition(":")
    if device == CPU:
        return [CPU_PROVIDER]
    if kind not in ("cuda", AUTO) or (number and not (kind == "cuda" and number.isdecimal())):
        raise DeviceError(f"unknown device {device!r}; choose cpu, cuda, cuda:N or auto")
    import onnxruntime  # noqa: PLC0415 - an extra

    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        if kind == AUTO:
            return [CPU_PROVIDER]
        raise DeviceError(f"{device}: this ONNX Runtime does not support GPUs; {_CURE}")
    onnxruntime.preload_dlls()
    # TF32 has a mantissa of 10 bits, too few for forces. Memory grows as needed, not to the next power of two.
    options = {"device_id": int(number or 0), "use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"}
    return [(CUDA_PROVIDER, options), CPU_PROVIDER]


def check_providers(found: Sequence[str], chosen: Sequence[Provider], device: str) -> None:
    """Check that ONNX Runtime uses the requested GPU and has not fallen back to the CPU; for ``auto``, only warn.

    Args:
        found: Names of the providers that ONNX Runtime uses.
        chosen: Providers from `providers`.
        device: As in `providers`.

    Raises:
        DeviceError: A GPU was requested explicitly, and ONNX Runtime fell back to the CPU.
    """
    if len(chosen) == 1 or CUDA_PROVIDER in found:
        return
    if device.removesuffix(_WITH_CPU) != AUTO:
        raise DeviceError(f"{device}: ONNX Runtime found no GPU that it can use; {_CURE}")
    warnings.warn("ONNX Runtime found no GPU that it can use; falling back to the CPU", RuntimeWarning, stacklevel=3)


def device_kind(device: str) -> str:
    """Return the kind of device that results may depend on: ``cpu``, ``cuda``, or ``auto`` if each worker decides.

    It ends in ``+cpu`` if parts of the model may run on the CPU.

    Args:
        device: As in `providers`.
    """
    return device.removesuffix(_WITH_CPU).partition(":")[0] + (_WITH_CPU if allows_cpu_nodes(device) else "")


def allows_cpu_nodes(device: str) -> bool:
    """Whether parts of a model may run on the CPU although the model runs on a GPU.

    Args:
        device: As in `providers`.
    """
    return device.endswith(_WITH_CPU)
