"""Networks as ONNX files, and the runtime that scores with them.

Scoring needs ONNX Runtime only; `export_onnx`, which needs PyTorch, `OnnxCalculator`, which needs ASE, and `OnnxModel`,
which needs TorchSim, are loaded when they are asked for.
"""

from typing import Any

from .filescreen import screen_files
from .relaxation import RelaxSettings, relax_structures
from .relaxing import relax
from .runtime import OnnxPotential
from .scores import open_scores
from .screening import screen

__all__ = [
    "OnnxCalculator",
    "OnnxModel",
    "OnnxPotential",
    "RelaxSettings",
    "export_onnx",
    "open_scores",
    "relax",
    "relax_structures",
    "screen",
    "screen_files",
]


def __getattr__(name: str) -> Any:
    if name == "export_onnx":
        from .exporting import export_onnx

        return export_onnx
    if name == "OnnxCalculator":
        from .calculator import OnnxCalculator

        return OnnxCalculator
    if name == "OnnxModel":
        from .torchsim import OnnxModel

        return OnnxModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
