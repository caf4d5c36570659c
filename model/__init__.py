"""Equivariant networks, trained on graph stores."""

from .checkpoint import load_checkpoint, load_members, save_checkpoint
from .config.config import Config
from .networks.equivariant import EquivariantNetwork
from .pretrained.load import load_pretrained
from .training.ensemble import EnsembleReport, train_ensemble
from .training.repeat import repeat
from .training.train import TrainingReport, train

__all__ = [
    "Config",
    "EnsembleReport",
    "EquivariantNetwork",
    "TrainingReport",
    "load_checkpoint",
    "load_members",
    "load_pretrained",
    "repeat",
    "save_checkpoint",
    "train",
    "train_ensemble",
]
