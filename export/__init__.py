"""Networks as ONNX files, and the runtime that scores with them.

Scoring needs ONNX Runtime only; `export_onnx`, which needs PyTorch, and `OnnxCalculator`, which needs ASE, are loaded
when they are asked for.
"""

from typing import Any

from .runtime import OnnxPotential
from .scores import open_scores
from .screening import screen

__all__ = ["OnnxCalculator", "OnnxPotential", "export_onnx", "open_scores", "screen"]


def __getattr__(name: str) -> Any:
    if name == "export_onnx":
        from .exporting import export_onnx

        return export_onnx
    if name == "OnnxCalculator":
        from .calculator import OnnxCalculator

        return OnnxCalculator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
