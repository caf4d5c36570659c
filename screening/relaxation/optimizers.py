"""How one structure goes downhill: FIRE, and L-BFGS with a bounded step that goes back when the energy rises.

A point is described by a row for each atom and three rows for the strain, as `relaxation` scales them. Optimizers know
neither: they are told energy and gradient, and say what step to take. The frame moves along with the structure; steps
are small enough for what is remembered of earlier ones to hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


class Optimizer(StrEnum):
    """How a relaxation goes downhill."""

    LBFGS = "lbfgs"
    FIRE = "fire"


class Descent(Protocol):
    """The optimizer of one structure."""

    def step(self, energy: float, gradient: Rows) -> Rows:
        """Where to go from here, relative to the last point that it was told of.

        Args:
            energy: Here, eV.
            gradient: float64[n, 3], eV/angstrom.

        Returns:
            float64[n, 3], angstrom.
        """
        ...


def bounded(step: Rows, longest: float) -> Rows:
    """A step shortened as a whole so that none of its rows is longer than that."""
    largest = float(np.sqrt(np.einsum("ij,ij->i", step, step).max()))
    return step if largest <= longest else step * (longest / largest)


@dataclass
class Fire:
    """FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006)) with the constants of the paper.

    Attributes:
        longest: Of the step of one row, angstrom.
    """

    longest: float = 0.2
    time_step: float = 0.1
    mixing: float = 0.1
    downhill: int = 0
    velocity: Rows | None = None

    LONGEST_TIME_STEP = 1.0
    PATIENCE = 5

    def step(self, energy: float, gradient: Rows) -> Rows:  # noqa: ARG002 - FIRE goes by the forces alone
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

    The step is bounded. The bound grows while the energy falls; when it rises, the step is taken back and a shorter one
    is tried, with nothing remembered.

    Attributes:
        longest: Of the step of one row, angstrom.
        tolerance: Rises of the energy up to here are rounding, eV.
        memory: Steps that are remembered.
        stiffness: Of the first step, eV/angstrom^2.
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

    SHORTEST = 1e-4  # angstrom; steps that are this short are taken, whatever becomes of the energy

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
        """Keep a step and how it changed the gradient, if the energy curves upwards along it."""
        if float(np.vdot(step, change)) > 1e-8 * float(np.vdot(step, step)):
            self.steps.append(step)
            self.changes.append(change)
            del self.steps[: -self.memory], self.changes[: -self.memory]

    def _direction(self, gradient: Rows) -> Rows:
        """Minus the approximate inverse Hessian times the gradient, by the two loops of Nocedal."""
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
