"""What a network learns that knows nothing of rotations: a perceptron on the raw coordinates of one molecule.

Part of `data_efficiency.py`, which trains it on the same frames for as many steps. Its input are the Cartesian
coordinates, less their mean, atoms in the order of the file; forces are the gradient of its energy. It is trained

- ``as they stand``: on the frames of the file;
- ``turned to the first``: on the same, each turned as near as it comes to the first (Kabsch, Acta Cryst. A 32, 922
  (1976)), which takes the tumbling of the molecule out of the data;
- ``turned at random``: augmented, every molecule turned at random in every step; once with as many steps as the others
  and once with ten times as many.

Each is tested on held-out frames in the form that it was trained on, and on copies of them turned at random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.flop_counter import FlopCounterMode

WIDTH = 186  # two hidden layers so wide have as many parameters as the networks that it stands beside
LEARNING_RATE = 3e-3  # 1e-3 and 1e-2 end within 1 % of it on the frames as they stand and turned at random
ENERGY_WEIGHT = 4.0  # of the energy per atom, beside 1 of the forces: equiscreen's default
EMA_DECAY = 0.99
LARGEST_GRADIENT = 10.0
WARMUP_STEPS = 100
VALIDATIONS = 16  # in a training: as many as the other networks have
AS_THEY_STAND, TURNED_TO_FIRST, TURNED_AT_RANDOM = "as they stand", "turned to the first", "turned at random"
# How the frames are given, and how many times as many steps.
VARIANTS = {
    "plain, as they stand": (AS_THEY_STAND, 1),
    "plain, turned to the first": (TURNED_TO_FIRST, 1),
    "plain, turned at random": (TURNED_AT_RANDOM, 1),
    "plain, turned at random, 10 x steps": (TURNED_AT_RANDOM, 10),
}


@dataclass(frozen=True)
class Frames:
    """Conformations of one molecule.

    Attributes:
        numbers: int[n_atoms], atomic numbers.
        positions: float64[n, n_atoms, 3], angstrom, the mean of each frame at the origin.
        forces: float64[n, n_atoms, 3], eV/angstrom.
        energy: float64[n], eV.
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    forces: NDArray[np.float64]
    energy: NDArray[np.float64]

    @classmethod
    def read(cls, path: Path) -> Frames:
        """All frames of an extxyz file.

        Raises:
            SystemExit: Their atoms are not the same in the same order.
        """
        frames = ase.io.read(path, ":")
        numbers = frames[0].numbers
        if any(not np.array_equal(atoms.numbers, numbers) for atoms in frames):
            raise SystemExit(f"{path}: not the same atoms in the same order in all frames")
        positions = np.array([atoms.positions - atoms.positions.mean(0) for atoms in frames])
        forces = np.array([atoms.get_forces() for atoms in frames])
        return cls(numbers, positions, forces, np.array([atoms.get_potential_energy() for atoms in frames]))

    def __len__(self) -> int:
        return len(self.energy)

    def take(self, rows: NDArray[np.int64]) -> Frames:
        """Some of them."""
        return replace(self, positions=self.positions[rows], forces=self.forces[rows], energy=self.energy[rows])

    def turned(self, rotations: Rotation) -> Frames:
        """Each by a rotation of its own."""
        matrices = rotations.as_matrix().transpose(0, 2, 1)
        return replace(self, positions=self.positions @ matrices, forces=self.forces @ matrices)

    def to_first(self, first: NDArray[np.float64]) -> Rotation:
        """The rotation of each frame that brings it nearest to float64[n_atoms, 3], whose mean is the origin."""
        return Rotation.concatenate([Rotation.align_vectors(first, frame)[0] for frame in self.positions])


class PlainNetwork(nn.Module):
    """Energies from coordinates.

    Args:
        n_atoms: Of the molecule.
        mean: Of the energies, eV.
        scale: Of energies, eV.
    """

    def __init__(self, n_atoms: int, mean: float, scale: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3 * n_atoms, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)])
        self.mean, self.scale = mean, scale

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies above the mean, float[n], and forces, float[n, n_atoms, 3], of float[n, n_atoms, 3]."""
        positions = positions.detach().requires_grad_()
        features = positions.flatten(1)
        for layer in self.layers[:-1]:
            features = silu(layer(features))
        energy = self.scale * self.layers[-1](features).squeeze(1)
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=self.training)
        return energy, -gradient


def loss_of(network: PlainNetwork, frames: Frames) -> Tensor:
    """Squared errors of energies per atom and of forces, weighted as the other networks' are."""
    energy, forces = network(torch.from_numpy(frames.positions).float())
    above = torch.from_numpy(frames.energy - network.mean).float()
    per_atom = ((energy - above) / frames.positions.shape[1]) ** 2
    return ENERGY_WEIGHT * per_atom.mean() + ((forces - torch.from_numpy(frames.forces).float()) ** 2).mean()


def force_error(network: PlainNetwork, frames: Frames, rotations: Rotation | None = None) -> float:
    """Mean absolute error of the force components, eV/angstrom; of frames turned, in the axes that they had before."""
    given = frames if rotations is None else frames.turned(rotations)
    _, forces = network(torch.from_numpy(given.positions).float())
    found = forces.detach().double().numpy()
    if rotations is not None:
        found @= rotations.as_matrix()
    return float(np.abs(found - frames.forces).mean())


def fitted(
    training: Frames, validation: Frames, steps: int, batch: int, rng: np.random.Generator, *, turn: bool
) -> Any:
    """The running mean of the weights that was best on the validation frames.

    Args:
        training: Frames to train on.
        validation: Frames to validate on.
        steps: Of Adam.
        batch: Frames in a step.
        rng: Of order and rotations; the weights come from PyTorch's.
        turn: Turn every frame at random in every step.
    """
    network = PlainNetwork(len(training.numbers), float(training.energy.mean()), float(training.forces.std()))
    mean = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    warmup = min(WARMUP_STEPS, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (warmup + 1), 0.5 + 0.5 * np.cos(np.pi * step / steps))
    )
    best, kept = np.inf, {name: x.clone() for name, x in mean.module.state_dict().items()}
    order = np.zeros(0, dtype=np.int64)
    for step in range(1, steps + 1):
        if len(order) < batch:
            order = np.concatenate([order, rng.permutation(len(training))])
        frames, order = training.take(order[:batch]), order[batch:]
        loss = loss_of(network, frames.turned(Rotation.random(batch, rng)) if turn else frames)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        mean.update_parameters(network)
        if step % max(1, steps // VALIDATIONS) == 0:
            error = float(loss_of(mean.module.eval(), validation).detach())
            if error < best:
                best, kept = error, {name: x.clone() for name, x in mean.module.state_dict().items()}
    network.load_state_dict(kept)
    return network.eval()


def train_plain(
    variant: str, training: Frames, validation: Frames, test: Frames, steps: int, batch: int, seed: int
) -> dict[str, float]:
    """Train one variant and test it: errors, number of parameters, operations."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    how, times = VARIANTS[variant]
    rotations = Rotation.random(len(test), rng)
    if how == TURNED_TO_FIRST:
        first = training.positions[0]
        training, validation, test = (x.turned(x.to_first(first)) for x in (training, validation, test))
    elif how == TURNED_AT_RANDOM:
        validation = validation.turned(Rotation.random(len(validation), rng))
    network = fitted(training, validation, times * steps, batch, rng, turn=how == TURNED_AT_RANDOM)
    with FlopCounterMode(display=False) as counter:
        network(torch.from_numpy(test.positions[:1]).float())
    return {
        "forces": force_error(network, test),
        "forces_turned": force_error(network, test, rotations),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "flops": counter.get_total_flops(),
    }


def tumbling(frames: Frames) -> str:
    """How far the frames are turned against the first."""
    angle = np.degrees(frames.to_first(frames.positions[0])[1:].magnitude())
    return f"mean {angle.mean():.0f}, {np.percentile(angle, 10):.0f} to {np.percentile(angle, 90):.0f} for 80 % of them"
