"""Networks as ONNX files, and the runtime that scores with them.

Scoring needs ONNX Runtime only; `export_onnx` is loaded when it is asked for, since it needs PyTorch.
"""

from typing import Any

from .runtime import OnnxPotential
from .scores import open_scores
from .screening import screen

__all__ = ["OnnxPotential", "export_onnx", "open_scores", "screen"]


def __getattr__(name: str) -> Any:
    if name == "export_onnx":
        from .exporting import export_onnx

        return export_onnx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
