"""Learning rate schedule, and moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config.training import TrainingConfig


class Schedule:
    """Factor of the learning rate at each step: a warm-up, then a cosine decay to zero or reductions on plateaus.

    Its attributes are plain numbers, which `torch.optim.lr_scheduler.LambdaLR` saves in checkpoints.

    Args:
        config: Settings of the training.
        total: Number of steps of the whole training.
    """

    def __init__(self, config: TrainingConfig, total: int) -> None:
        self.cosine = config.schedule == "cosine"
        self.factor, self.patience = config.plateau_factor, config.plateau_epochs
        self.total, self.warmup = total, min(config.warmup_steps, total // 10)
        self.scale, self.best, self.waited = 1.0, math.inf, 0

    def __call__(self, step: int) -> float:
        """Return the factor of the learning rate at a step; steps are counted from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if not self.cosine:
            return self.scale
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))))

    def validated(self, loss: float) -> None:
        """Record a validation loss, on which reductions on plateaus depend."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.scale, self.waited = self.scale * self.factor, 0


class RunningMean:
    """Exponential moving average that forgets faster at first, so that it does not lag behind in a short training run.

    Args:
        decay: Fraction that is kept at each step.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, mean: Tensor, value: Tensor, updates: Tensor) -> Tensor:
        """Return the moving average after a step."""
        n = float(updates)
        return torch.lerp(mean, value, 1 - min(self.decay, (1 + n) / (10 + n)))
