"""Equivariant networks, trained on a graph store."""

from .checkpoint import load_checkpoint, save_checkpoint
from .config import Config
from .network import EquivariantNetwork
from .training import TrainingReport, train

__all__ = ["Config", "EquivariantNetwork", "TrainingReport", "load_checkpoint", "save_checkpoint", "train"]
