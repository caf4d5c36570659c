"""A network as one ONNX file, and the runtime that evaluates the file.

`OnnxPotential` needs only ONNX Runtime; `export_onnx` also needs PyTorch, `OnnxCalculator` ASE and `OnnxModel`
TorchSim. If a new layer uses an operator that has no translation yet, add one to `aten_operators`.
"""

from typing import TYPE_CHECKING

from ..pipeline.lazy_names import lazy_names

if TYPE_CHECKING:
    from .exporter import export_onnx
    from .runtime.ase_calculator import OnnxCalculator
    from .runtime.onnx_potential import OnnxPotential
    from .torchsim_model import OnnxModel

__all__ = [
    "OnnxCalculator",
    "OnnxModel",
    "OnnxPotential",
    "export_onnx",
]

if not TYPE_CHECKING:  # otherwise a type checker would accept any name
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "OnnxCalculator": ".runtime.ase_calculator",
            "OnnxModel": ".torchsim_model",
            "OnnxPotential": ".runtime.onnx_potential",
            "export_onnx": ".exporter",
        },
        OnnxModel=("torch", "torch_sim"),
        export_onnx=("e3nn", "onnx", "onnxruntime", "scipy", "torch"),
    )
