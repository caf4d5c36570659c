"""Equivariant networks, trained on graph stores."""

from .checkpoint import load_checkpoint, load_members, save_checkpoint
from .config import Config
from .ensemble_training import EnsembleReport, train_ensemble
from .network import EquivariantNetwork
from .pretrained import load_pretrained
from .repeating import repeat
from .training import TrainingReport, train

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
