"""Comparison of a student with its teacher on crystals that were held out: errors and speed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...export.runtime.onnx_potential import OnnxPotential
from ...pipeline.errors import ConfigError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.store.graph_store import GraphStore
from .settings import LABEL_STATUS, LEAST_GROUPS, VARIANT
from .variants import AS_GIVEN

_BLOCK = 256  # structures read at a time
# The rate is measured on at most this many crystals, in this many rounds in which teacher and student alternate; a
# round of a model takes at least this long, in seconds.
RATE_CRYSTALS, RATE_ROUNDS, LEAST_ROUND = 64, 5, 0.2


@dataclass(frozen=True, slots=True)
class Errors:
    """Differences between student and teacher on some structures.

    Attributes:
        structures: Number of structures.
        energy_mae, energy_rmse, energy_max: Mean absolute, root mean square and largest difference of the energies,
            eV/atom.
        forces_mae: Mean absolute difference of the components of the forces, eV/angstrom.
        stress_mae: Mean absolute difference of the components of the stress, eV/angstrom^3; NaN without crystals that
            are periodic in three directions.
    """

    structures: int
    energy_mae: float
    energy_rmse: float
    energy_max: float
    forces_mae: float
    stress_mae: float

    def __str__(self) -> str:
        return (
            f"energy {1e3 * self.energy_mae:.1f} meV/atom (RMSE {1e3 * self.energy_rmse:.1f}, largest "
            f"{1e3 * self.energy_max:.1f}), forces {1e3 * self.forces_mae:.0f} meV/angstrom, stress "
            f"{1e3 * self.stress_mae:.2f} meV/angstrom^3"
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """Speed of teacher and student on one thread: energy, forces and stress of the same held-out crystals.

    Attributes:
        crystals: Number of crystals.
        edges: Number of their edges within the student's cutoff.
        teacher, student: Structures per second, medians over the rounds.
        ratio: Median over the rounds of the student's rate divided by the teacher's.
        lowest, highest: Smallest and largest of these ratios.
    """

    crystals: int
    edges: int
    teacher: float
    student: float
    ratio: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return (
            f"{self.student:,.1f} structures/s, teacher {self.teacher:,.1f}: {self.ratio:.1f} times as fast "
            f"({self.lowest:.1f} to {self.highest:.1f} in {RATE_ROUNDS} rounds)"
        )


def comparable_crystals(labelled: GraphStore, held_out: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the held-out crystals, as they were given, on which student and teacher can be compared: int64[n].

    Args:
        labelled: Graph store of labelled structures.
        held_out: bool[n_structures], held-out structures that the student covers.

    Raises:
        ConfigError: There is none.
    """
    rows = np.flatnonzero(held_out & (labelled.column(VARIANT) == AS_GIVEN) & (labelled.column(LABEL_STATUS) == "ok"))
    if not len(rows):
        raise not_comparable(labelled)
    return rows


def not_comparable(labelled: GraphStore) -> ConfigError:
    """Return the error that a student could not be validated on, or compared on, any held-out crystal."""
    return ConfigError(
        f"{labelled.path}: no held-out crystal can be compared, since each has no labels or has an element that occurs "
        f"in no crystal to train on; a distillation needs at least {LEAST_GROUPS} crystals that differ (in "
        "composition, without --hold-out-by structure) and share their elements: add crystals of these elements, or "
        "hold out others with --seed"
    )


def held_out_errors(
    labelled: GraphStore, held_out: NDArray[np.bool_], student: OnnxPotential
) -> tuple[Errors, Errors | None]:
    """Compare a student with its teacher's labels on held-out structures.

    Args:
        labelled: Graph store of labelled structures.
        held_out: bool[n_structures], structures whose crystals were not trained on.
        student: The student.

    Returns:
        Errors on the crystals as they were given, and on their variants; None if there are no variants.

    Raises:
        ConfigError: None of the held-out crystals has labels and consists of elements that the student covers.
    """
    crystals = comparable_crystals(labelled, held_out)
    is_variant = labelled.column(VARIANT) != AS_GIVEN
    variants = np.flatnonzero(held_out & is_variant & (labelled.column(LABEL_STATUS) == "ok"))
    return _errors(labelled, crystals, student), _errors(labelled, variants, student) if len(variants) else None


def _errors(labelled: GraphStore, rows: NDArray[np.int64], student: OnnxPotential) -> Errors:
    energy, forces, stress = [], [], []
    for block in _blocks(labelled, rows):
        found = student.evaluate(block)
        energy.append((found.energy - block.structure_labels["energy"]) / block.n_atoms)
        forces.append(np.abs(found.forces - block.atom_labels["forces"]).ravel())
        difference = np.abs(found.stress - block.structure_labels["stress"]).ravel()
        stress.append(difference[np.isfinite(difference)])
    wrong, components = np.concatenate(energy), np.concatenate(stress)
    return Errors(
        structures=len(rows),
        energy_mae=float(np.abs(wrong).mean()),
        energy_rmse=float(np.sqrt(np.square(wrong).mean())),
        energy_max=float(np.abs(wrong).max()),
        forces_mae=float(np.concatenate(forces).mean()),
        stress_mae=float(components.mean()) if len(components) else float("nan"),
    )


def _blocks(store: GraphStore, rows: NDArray[np.int64]) -> list[GraphBlock]:
    """Read scattered structures, at most `_BLOCK` rows of the store at a time."""
    out = []
    for number in np.unique(rows // _BLOCK).tolist():
        start = number * _BLOCK
        here = rows[(rows >= start) & (rows < start + _BLOCK)]
        out.append(store.block(start, min(start + _BLOCK, len(store))).take(here - start))
    return out


def rates(labelled: GraphStore, held_out: NDArray[np.bool_], teacher: OnnxPotential, student: OnnxPotential) -> Rates:
    """Measure how fast teacher and student evaluate held-out crystals, in turn, from graphs in memory.

    Args:
        labelled: Graph store of labelled structures, with at least one held-out crystal.
        held_out: bool[n_structures], structures whose crystals were not trained on.
        teacher: The teacher, on one thread.
        student: The student, on one thread.
    """
    rows = comparable_crystals(labelled, held_out)
    rows = rows[np.linspace(0, len(rows) - 1, min(RATE_CRYSTALS, len(rows))).astype(int)]
    block = GraphBlock.concatenate(_blocks(labelled, rows))
    seconds = np.array([[_seconds(one, block) for one in (teacher, student)] for _ in range(RATE_ROUNDS)])
    ratio = seconds[:, 0] / seconds[:, 1]
    near = np.linalg.norm(block.displacements(), axis=1) < student.cutoff
    found = len(rows) / np.median(seconds, axis=0)
    return Rates(
        crystals=len(rows),
        edges=int(near.sum()),
        teacher=float(found[0]),
        student=float(found[1]),
        ratio=float(np.median(ratio)),
        lowest=float(ratio.min()),
        highest=float(ratio.max()),
    )


def _seconds(potential: OnnxPotential, block: GraphBlock) -> float:
    """Return the mean wall time of an evaluation, seconds."""
    potential.evaluate(block)  # allocates memory
    begin = time.perf_counter()
    count = 0
    while time.perf_counter() - begin < LEAST_ROUND or not count:
        potential.evaluate(block)
        count += 1
    return (time.perf_counter() - begin) / count
