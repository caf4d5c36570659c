"""Whole campaigns, from a model's name and a folder of crystals to a ranked list.

`models` turns the name of published weights into an ONNX file, `references` gathers reference phases, and `ranking`
runs the steps of `screening` one after the other. This package builds on `screening`, which accepts a model only
as a file. It imports PyTorch only to export weights.
"""

from typing import TYPE_CHECKING

from ..pipeline.lazy_names import lazy_names

if TYPE_CHECKING:
    from .models.resolve import model_file
    from .ranking import rank
    from .settings import RankSettings

__all__ = ["RankSettings", "model_file", "rank"]

if not TYPE_CHECKING:  # otherwise a type checker would accept any name
    __getattr__, __dir__ = lazy_names(
        __name__,
        {"RankSettings": ".settings", "model_file": ".models.resolve", "rank": ".ranking"},
    )
