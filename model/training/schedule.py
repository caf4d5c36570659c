"""The learning rate over a training, and the running mean of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config.training import TrainingConfig


class Schedule:
    """The factor of the learning rate after each step: a warm-up, then a cosine to nothing or steps at plateaus.

    Its attributes are plain numbers, which `torch.optim.lr_scheduler.LambdaLR` keeps in checkpoints.

    Args:
        config: Kind and lengths.
        total: Steps of the whole training.
    """

    def __init__(self, config: TrainingConfig, total: int) -> None:
        self.cosine = config.schedule == "cosine"
        self.factor, self.patience = config.plateau_factor, config.plateau_epochs
        self.total, self.warmup = total, min(config.warmup_steps, total // 10)
        self.scale, self.best, self.waited = 1.0, math.inf, 0

    def __call__(self, step: int) -> float:
        """The factor of a step, from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if not self.cosine:
            return self.scale
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))))

    def validated(self, loss: float) -> None:
        """Take note of a validation."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.scale, self.waited = self.scale * self.factor, 0


class RunningMean:
    """An exponential mean that forgets fast while it is young, so as not to hold back a short training.

    Args:
        decay: Share that is kept at each step.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, mean: Tensor, value: Tensor, updates: Tensor) -> Tensor:
        """The next mean."""
        n = float(updates)
        return torch.lerp(mean, value, 1 - min(self.decay, (1 + n) / (10 + n)))
