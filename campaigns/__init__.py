"""Whole campaigns, from a model's name and a folder of crystals to a ranked list.

`models` turns the name of published weights into an ONNX file, `references` gathers reference phases, `ranking` runs
the steps of `screening` one after the other, and `distillation` trains a small network on the predictions of a large
one. This package builds on `screening`, which accepts a model only as a file. It imports PyTorch only to export weights
and to train.
"""

from typing import TYPE_CHECKING

from ..pipeline.lazy_names import lazy_names

if TYPE_CHECKING:
    from .distillation.distill import distill
    from .distillation.report import DistillReport
    from .distillation.settings import DistillSettings
    from .models.resolve import model_file
    from .ranking import rank
    from .settings import RankSettings

__all__ = ["DistillReport", "DistillSettings", "RankSettings", "distill", "model_file", "rank"]

if not TYPE_CHECKING:  # otherwise a type checker would accept any name
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "DistillReport": ".distillation.report",
            "DistillSettings": ".distillation.settings",
            "RankSettings": ".settings",
            "distill": ".distillation.distill",
            "model_file": ".models.resolve",
            "rank": ".ranking",
        },
        distill=("e3nn", "lightning", "torch"),
    )
