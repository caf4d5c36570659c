"""A network without rotational symmetry: a perceptron on the Cartesian coordinates of one molecule.

`data_efficiency.py` trains it on the same frames and for the same number of steps as the equivariant networks. Its
input is the Cartesian coordinates minus their mean, with the atoms in the order of the file; the forces are the
negative gradient of the energy. The training sets are

- ``unrotated``: the frames of the file;
- ``aligned``: the same frames, each rotated to match the first as closely as possible (Kabsch, Acta Cryst. A 32, 922
  (1976)), which removes the tumbling of the molecule from the data;
- ``augmented``: the same frames, each rotated at random in every step; once with as many steps as the other variants
  and once with ten times as many.

Each variant is tested on held-out frames in the form that it was trained on, and on randomly rotated copies of them.
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

WIDTH = 186  # two hidden layers of this width have as many parameters as the equivariant networks
LEARNING_RATE = 3e-3  # with 1e-3 and 1e-2 the errors differ by less than 1 %, unrotated and augmented
ENERGY_WEIGHT = 4.0  # weight of the energy per atom; forces have weight 1, as in equiscreen's defaults
EMA_DECAY = 0.99
LARGEST_GRADIENT = 10.0
WARMUP_STEPS = 100
VALIDATIONS = 16  # per training, as for the other networks
UNROTATED, ALIGNED, AUGMENTED = "unrotated", "aligned", "augmented"
# Form of the training frames, and factor on the number of steps.
VARIANTS = {
    "plain, unrotated": (UNROTATED, 1),
    "plain, aligned": (ALIGNED, 1),
    "plain, augmented": (AUGMENTED, 1),
    "plain, augmented, 10 x steps": (AUGMENTED, 10),
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
        """Read all frames of an extxyz file.

        Raises:
            SystemExit: The frames differ in their atoms or in the order of the atoms.
        """
        frames = ase.io.read(path, ":")
        numbers = frames[0].numbers
        if any(not np.array_equal(atoms.numbers, numbers) for atoms in frames):
            raise SystemExit(f"{path}: the frames differ in their atoms or in the order of the atoms")
        positions = np.array([atoms.positions - atoms.positions.mean(0) for atoms in frames])
        forces = np.array([atoms.get_forces() for atoms in frames])
        return cls(numbers, positions, forces, np.array([atoms.get_potential_energy() for atoms in frames]))

    def __len__(self) -> int:
        return len(self.energy)

    def take(self, rows: NDArray[np.int64]) -> Frames:
        """The frames in the given rows."""
        return replace(self, positions=self.positions[rows], forces=self.forces[rows], energy=self.energy[rows])

    def rotated(self, rotations: Rotation) -> Frames:
        """The frames, each rotated by its own rotation."""
        matrices = rotations.as_matrix().transpose(0, 2, 1)
        return replace(self, positions=self.positions @ matrices, forces=self.forces @ matrices)

    def alignment(self, target: NDArray[np.float64]) -> Rotation:
        """Rotations that align each frame with `target`, float64[n_atoms, 3] with its mean at the origin."""
        return Rotation.concatenate([Rotation.align_vectors(target, frame)[0] for frame in self.positions])


class PlainNetwork(nn.Module):
    """Perceptron from coordinates to the energy.

    Args:
        n_atoms: Number of atoms of the molecule.
        mean: Mean of the energies, eV.
        scale: Scale of the energies, eV.
    """

    def __init__(self, n_atoms: int, mean: float, scale: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3 * n_atoms, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)])
        self.mean, self.scale = mean, scale

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies relative to the mean, float[n], and forces, float[n, n_atoms, 3], at the given positions."""
        positions = positions.detach().requires_grad_()
        features = positions.flatten(1)
        for layer in self.layers[:-1]:
            features = silu(layer(features))
        energy = self.scale * self.layers[-1](features).squeeze(1)
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=self.training)
        return energy, -gradient


def loss_of(network: PlainNetwork, frames: Frames) -> Tensor:
    """Squared errors of energies per atom and of forces, weighted as for the other networks."""
    energy, forces = network(torch.from_numpy(frames.positions).float())
    above = torch.from_numpy(frames.energy - network.mean).float()
    per_atom = ((energy - above) / frames.positions.shape[1]) ** 2
    return ENERGY_WEIGHT * per_atom.mean() + ((forces - torch.from_numpy(frames.forces).float()) ** 2).mean()


def force_error(network: PlainNetwork, frames: Frames, rotations: Rotation | None = None) -> float:
    """Force MAE in eV/angstrom; with `rotations`, of the rotated frames, in the axes before the rotation."""
    inputs = frames if rotations is None else frames.rotated(rotations)
    _, forces = network(torch.from_numpy(inputs.positions).float())
    found = forces.detach().double().numpy()
    if rotations is not None:
        found @= rotations.as_matrix()
    return float(np.abs(found - frames.forces).mean())


def fitted(
    training: Frames, validation: Frames, steps: int, batch: int, rng: np.random.Generator, *, augment: bool
) -> Any:
    """Train a network; returns the running mean of the weights with the smallest validation loss.

    Args:
        training: Training frames.
        validation: Validation frames.
        steps: Number of steps of Adam.
        batch: Frames per step.
        rng: Generator of order and rotations; the weights come from PyTorch's generator.
        augment: Rotate every frame at random in every step.
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
        loss = loss_of(network, frames.rotated(Rotation.random(batch, rng)) if augment else frames)
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
    """Train one variant and test it; returns errors, number of parameters and operations."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    form, times = VARIANTS[variant]
    rotations = Rotation.random(len(test), rng)
    if form == ALIGNED:
        first = training.positions[0]
        training, validation, test = (x.rotated(x.alignment(first)) for x in (training, validation, test))
    elif form == AUGMENTED:
        validation = validation.rotated(Rotation.random(len(validation), rng))
    network = fitted(training, validation, times * steps, batch, rng, augment=form == AUGMENTED)
    with FlopCounterMode(display=False) as counter:
        network(torch.from_numpy(test.positions[:1]).float())
    return {
        "forces": force_error(network, test),
        "forces_turned": force_error(network, test, rotations),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "flops": counter.get_total_flops(),
    }


def tumbling(frames: Frames) -> str:
    """Angles of rotation between the first frame and the others, in degrees, as text."""
    angle = np.degrees(frames.alignment(frames.positions[0])[1:].magnitude())
    return f"mean {angle.mean():.0f}, {np.percentile(angle, 10):.0f} to {np.percentile(angle, 90):.0f} for 80 % of them"
