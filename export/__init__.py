"""Networks as ONNX files, and the runtime that scores with them.

Scoring needs ONNX Runtime only; `export_onnx`, which needs PyTorch, `OnnxCalculator`, which needs ASE, and `OnnxModel`,
which needs TorchSim, are loaded when they are asked for.
"""

from typing import Any

from .cascade import CascadeSettings, cascade
from .comparison import compare, join_energies
from .convex_hull import hull
from .filescreen import screen_files
from .parity import calibration, parity
from .relaxation import RelaxSettings, relax_structures
from .relaxing import relax
from .report import report
from .runtime import OnnxPotential
from .scores import open_scores
from .screening import screen
from .selection import select
from .tables import to_parquet

__all__ = [
    "CascadeSettings",
    "OnnxCalculator",
    "OnnxModel",
    "OnnxPotential",
    "RelaxSettings",
    "calibration",
    "cascade",
    "compare",
    "export_onnx",
    "hull",
    "join_energies",
    "open_scores",
    "parity",
    "relax",
    "relax_structures",
    "report",
    "screen",
    "screen_files",
    "select",
    "to_parquet",
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
