"""ONNX Runtime execution providers: the CPU, or a GPU with CUDA; and what results depend on besides the model."""

from __future__ import annotations

import os
import platform
import subprocess
import warnings
from collections.abc import Sequence
from typing import Any

from ...pipeline.errors import DeviceError
from ...pipeline.runs.cluster import CPU_RESOURCE, GPU_RESOURCE, IN_PROCESS
from .placement import CPU_PROVIDER, CUDA_PROVIDER

CPU = "cpu"
AUTO = "auto"
# Appended to a device: nodes without a kernel for the GPU may run on the CPU.
_WITH_CPU = "+cpu"
_CURE = (
    "install onnxruntime-gpu instead of onnxruntime (pip uninstall onnxruntime; pip install 'equiscreen[gpu]'), or "
    "choose cpu, or auto, which uses the CPU if there is no GPU"
)

# Instruction sets for which NumPy or ONNX Runtime has kernels of its own, the widest first, and NumPy's names for them:
# since version 2.4, the levels of x86-64.
_INSTRUCTION_SETS = {
    "AVX-512": ("X86_V4", "AVX512F"),
    "AVX2": ("X86_V3", "AVX2"),
    "AVX": ("AVX",),
    "SSE": ("SSE2",),
    "SVE": ("SVE",),
    "NEON": ("NEON",),
}

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


def resource_of(device: str) -> str | None:
    """Return the resource that workers declare if they are meant for a device; None for ``auto``, which any may serve.

    Args:
        device: As in `providers`.
    """
    return {CPU: CPU_RESOURCE, AUTO: None}.get(device_kind(device).removesuffix(_WITH_CPU), GPU_RESOURCE)


def instruction_set() -> str:
    """Return the architecture of this machine and its widest instruction set that NumPy uses, such as "x86_64 AVX2".

    Kernels for other instruction sets add numbers up in another order and fuse other multiplications and additions, so
    their results differ in the last bits. NumPy asks the processor, and leaves out what NPY_DISABLE_CPU_FEATURES names.
    """
    # Only NumPy's own report has it; the module has no types.
    from numpy._core._multiarray_umath import (  # type: ignore[import-not-found]  # noqa: PLC0415
        __cpu_features__,
    )

    for name, features in _INSTRUCTION_SETS.items():
        if next((__cpu_features__[feature] for feature in features if feature in __cpu_features__), False):
            return f"{platform.machine()} {name}"
    return platform.machine()


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; if it is unset, all GPUs."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1"))
    return tuple(line.split(",")[0] for line in _query_gpus("index"))


def gpu_model(device: str) -> str:
    """Return the name and compute capability of a GPU, such as "NVIDIA H100 80GB HBM3 9.0"; "GPU" if unknown.

    Args:
        device: As in `providers`.
    """
    return _about_gpu(device, "name,compute_cap").replace(", ", " ") or "GPU"


def gpu_memory(device: str) -> int:
    """Return the memory of a GPU, bytes; 0 if unknown.

    Args:
        device: As in `providers`.
    """
    return int(_about_gpu(device, "memory.total").partition(" ")[0] or 0) << 20  # such as "81559 MiB"


def _about_gpu(device: str, fields: str) -> str:
    number, gpus = int(device.removesuffix(_WITH_CPU).partition(":")[2] or 0), visible_gpus()
    return "".join(_query_gpus(fields, gpus[number])[:1]) if number < len(gpus) else ""


def _query_gpus(fields: str, gpu: str | None = None) -> list[str]:
    """Ask NVIDIA's driver about one GPU or all; return a line for each, or none if there is no driver."""
    words = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", *([] if gpu is None else ["--id", gpu])]
    try:
        done = subprocess.run(  # noqa: S603 - the words are fixed, but for the name of a GPU
            words, check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def local_gpus(device: str, scheduler: str | None) -> tuple[str, ...]:
    """Return the GPUs that get a worker each if a run works on this machine.

    For ``auto`` and ``cuda``, these are the GPUs that this process may use; none for ``cpu``, for ``cuda:N``, which all
    workers share, for a cluster, whose workers have devices of their own, or if ONNX Runtime does not support GPUs.

    Args:
        device: As in `providers`.
        scheduler: As in `pipeline.runs.cluster.connect`.

    Raises:
        DeviceError: As in `providers`.
    """
    if scheduler not in (None, IN_PROCESS):
        return ()
    every = device_kind(device).removesuffix(_WITH_CPU) in ("cuda", AUTO) and ":" not in device
    return visible_gpus() if len(providers(device)) > 1 and every else ()
