"""Equivariant networks, trained on graph stores.

`layers` and `networks` hold the architectures; `data`, `training` and `evaluation` fit and test them; `pretrained`
imports published weights.
"""

from typing import TYPE_CHECKING

from ..pipeline.lazy_names import lazy_names

if TYPE_CHECKING:
    from .checkpoint import load_checkpoint, load_members, save_checkpoint
    from .config.config import Config
    from .networks.equivariant import EquivariantNetwork
    from .pretrained.load import load_pretrained
    from .training.ensemble import EnsembleReport, train_ensemble
    from .training.references import RefitReport, refit_references
    from .training.repeat import repeat
    from .training.train import TrainingReport, train

__all__ = [
    "Config",
    "EnsembleReport",
    "EquivariantNetwork",
    "RefitReport",
    "TrainingReport",
    "load_checkpoint",
    "load_members",
    "load_pretrained",
    "refit_references",
    "repeat",
    "save_checkpoint",
    "train",
    "train_ensemble",
]

if not TYPE_CHECKING:  # otherwise a type checker would accept any name
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Config": ".config.config",
            "EnsembleReport": ".training.ensemble",
            "EquivariantNetwork": ".networks.equivariant",
            "RefitReport": ".training.references",
            "TrainingReport": ".training.train",
            "load_checkpoint": ".checkpoint",
            "load_members": ".checkpoint",
            "load_pretrained": ".pretrained.load",
            "refit_references": ".training.references",
            "repeat": ".training.repeat",
            "save_checkpoint": ".checkpoint",
            "train": ".training.train",
            "train_ensemble": ".training.ensemble",
        },
        **dict.fromkeys(("EnsembleReport", "TrainingReport", "repeat", "train", "train_ensemble"), ("lightning",)),
    )
