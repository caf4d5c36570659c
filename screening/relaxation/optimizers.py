"""Optimizers for one structure: FIRE, and L-BFGS with bounded steps that are undone when the energy rises.

The coordinates are one row per atom and three rows for the strain, scaled as in `screening.relaxation.batched`.
Optimizers treat all rows alike: they receive the energy and its gradient, and return the step to take. Coordinates are
relative to the current geometry, which changes with every step; steps are small enough that the history of earlier
steps remains valid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


class Optimizer(StrEnum):
    """Optimization algorithm of a relaxation."""

    LBFGS = "lbfgs"
    FIRE = "fire"


class Descent(Protocol):
    """Optimizer of one structure."""

    def step(self, energy: float, gradient: Rows) -> Rows:
        """Compute the next step, relative to the current point.

        Args:
            energy: Energy of the current point, eV.
            gradient: Gradient of the energy: float64[n, 3], eV/angstrom.

        Returns:
            The step: float64[n, 3], angstrom.
        """
        ...


def bounded(step: Rows, longest: float) -> Rows:
    """Scale a step down so that none of its rows is longer than a limit.

    Args:
        step: float64[n, 3], angstrom.
        longest: Largest norm of a row, angstrom.
    """
    largest = float(np.sqrt(np.einsum("ij,ij->i", step, step).max()))
    return step if largest <= longest else step * (longest / largest)


@dataclass
class Fire:
    """FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006)) with the constants of the paper.

    Attributes:
        longest: Largest step of one row, angstrom.
        time_step: Current time step of the dynamics with unit masses, angstrom/sqrt(eV).
        mixing: Current weight of the gradient's direction in the velocity.
        downhill: Number of steps downhill since the last reset.
        velocity: Current velocities: float64[n, 3], sqrt(eV); None before the first step.
    """

    longest: float = 0.2
    time_step: float = 0.1
    mixing: float = 0.1
    downhill: int = 0
    velocity: Rows | None = None

    LONGEST_TIME_STEP = 1.0
    PATIENCE = 5

    def step(self, energy: float, gradient: Rows) -> Rows:  # noqa: ARG002 - FIRE uses the gradient only
        """See `Descent`."""
        velocity = np.zeros_like(gradient) if self.velocity is None else self.velocity
        if self.velocity is not None:
            if float(np.vdot(velocity, gradient)) < 0.0:
                share = np.linalg.norm(velocity) / max(float(np.linalg.norm(gradient)), 1e-300)
                velocity = (1.0 - self.mixing) * velocity - self.mixing * share * gradient
                self.downhill += 1
                if self.downhill > self.PATIENCE:
                    self.time_step = min(self.time_step * 1.1, self.LONGEST_TIME_STEP)
                    self.mixing *= 0.99
            else:
                velocity = np.zeros_like(gradient)
                self.downhill, self.mixing = 0, 0.1
                self.time_step *= 0.5
        self.velocity = velocity - self.time_step * gradient
        return bounded(self.time_step * self.velocity, self.longest)


@dataclass
class Lbfgs:
    """L-BFGS (Nocedal, Math. Comp. 35, 773 (1980)) without a line search.

    The length of a step is bounded. The bound grows while the energy falls. When the energy rises, the step is undone,
    the history is cleared, and a shorter step is taken instead.

    Attributes:
        longest: Largest step of one row, angstrom.
        tolerance: Largest rise of the energy that counts as rounding, eV.
        memory: Number of steps in the history.
        stiffness: Stiffness assumed for a step without history, eV/angstrom^2.
        bound: Current upper bound of the step of one row, angstrom.
        steps: Steps of the history, float64[n, 3] each, angstrom.
        changes: Change of the gradient along each of these steps, float64[n, 3] each, eV/angstrom.
        last_step: The last step: float64[n, 3], angstrom; None before the first step.
        last_gradient: Gradient at the point that the last step started from: float64[n, 3], eV/angstrom; None before
            the first step.
        last_energy: Energy at the point that the last step started from, eV.
    """

    longest: float = 0.2
    tolerance: float = 1e-4
    memory: int = 12
    stiffness: float = 25.0
    bound: float = 0.1
    steps: list[Rows] = field(default_factory=list)
    changes: list[Rows] = field(default_factory=list)
    last_step: Rows | None = None
    last_gradient: Rows | None = None
    last_energy: float = np.inf

    SHORTEST = 1e-4  # angstrom; steps this short are never undone

    def step(self, energy: float, gradient: Rows) -> Rows:
        """See `Descent`."""
        back: Rows | float = 0.0
        if self.last_step is not None and self.last_gradient is not None:
            length = float(np.sqrt(np.einsum("ij,ij->i", self.last_step, self.last_step).max()))
            if energy > self.last_energy + self.tolerance and length > self.SHORTEST:
                back = -self.last_step
                self.bound = max(0.25 * length, self.SHORTEST)
                self.steps.clear()
                self.changes.clear()
                gradient, energy = self.last_gradient, self.last_energy
            else:
                self._remember(self.last_step, gradient - self.last_gradient)
                self.bound = min(1.5 * self.bound, self.longest)
        forward = bounded(self._direction(gradient), self.bound)
        self.last_step, self.last_gradient, self.last_energy = forward, gradient, energy
        return back + forward

    def _remember(self, step: Rows, change: Rows) -> None:
        """Add a step and the change of the gradient to the history, if the curvature along the step is positive."""
        if float(np.vdot(step, change)) > 1e-8 * float(np.vdot(step, step)):
            self.steps.append(step)
            self.changes.append(change)
            del self.steps[: -self.memory], self.changes[: -self.memory]

    def _direction(self, gradient: Rows) -> Rows:
        """Return minus the approximate inverse Hessian times the gradient (two-loop recursion): float64[n, 3]."""
        out = -gradient
        pairs = list(zip(self.steps, self.changes, strict=True))
        shares = []
        for step, change in reversed(pairs):
            share = float(np.vdot(step, out)) / float(np.vdot(step, change))
            out = out - share * change
            shares.append(share)
        if pairs:
            step, change = pairs[-1]
            out = out * (float(np.vdot(step, change)) / float(np.vdot(change, change)))
        else:
            out = out / self.stiffness
        for (step, change), share in zip(pairs, reversed(shares), strict=True):
            out = out + (share - float(np.vdot(change, out)) / float(np.vdot(step, change))) * step
        return out
