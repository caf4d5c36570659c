"""A network as one ONNX file, and the runtime that evaluates the file.

`OnnxPotential` needs only ONNX Runtime. `export_onnx` needs PyTorch, `OnnxCalculator` ASE and `OnnxModel` TorchSim;
they
are imported on first use.
"""

from typing import Any

from .runtime.onnx_potential import OnnxPotential

__all__ = ["OnnxCalculator", "OnnxModel", "OnnxPotential", "export_onnx"]


def __getattr__(name: str) -> Any:
    if name == "export_onnx":
        from .exporter import export_onnx

        return export_onnx
    if name == "OnnxCalculator":
        from .runtime.ase_calculator import OnnxCalculator

        return OnnxCalculator
    if name == "OnnxModel":
        from .torchsim_model import OnnxModel

        return OnnxModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
