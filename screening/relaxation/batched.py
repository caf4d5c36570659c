"""Relaxation of many structures at once, atoms and cell together, with one potential in one process.

A structure is described relative to where it stands: by displacements of its atoms and by a symmetric strain that
carries atoms and cell along. Its gradient is minus the forces and the virial. The strain is multiplied by a length, so
that all coordinates are lengths and about equally stiff: a crystal resists a strain with some 15 eV for each atom, and
a displacement of one atom with some 10 eV/angstrom^2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError, InvalidStructureError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.neighbor_list import MAX_EDGES, NeighborList, neighbor_list
from ...pipeline.graphs.potential import Evaluation, Potential
from ...pipeline.structures.structure import Structure
from .optimizers import Descent, Fire, Lbfgs, Optimizer
from .symmetry import SymmetricSteps

GPA = 0.006241509074460763  # eV/angstrom^3 (CODATA 2018, as in ase.units)
RELAX_STATUSES = ("ok", "unknown_element", "not_finite", "not_converged", "exploded", "too_large")
OK, UNKNOWN_ELEMENT, NOT_FINITE, NOT_CONVERGED, EXPLODED, TOO_LARGE = range(len(RELAX_STATUSES))
# Relative volumes beyond which a crystal is no longer the one that was given.
LEAST_VOLUME, LARGEST_VOLUME = 0.25, 4.0
EDGES_IN_FLIGHT = 32_768
LONGEST_STEP = 0.2  # angstrom
LONGEST_STRAIN = 0.05  # of one step
RATTLED_LENGTH = 5.0  # angstrom, of what a rattle strains by as much as it displaces atoms
# eV for each atom. Two relaxations to the same minimum differ by less, with the default `fmax` and `smax`.
RATTLE_GAIN = 1e-3
# Rounding of an energy in float32 networks, eV for each atom.
ENERGY_ROUNDING = 2e-6

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class RelaxSettings:
    """How structures are relaxed.

    Attributes:
        fmax: Largest force on an atom of a relaxed structure, eV/angstrom.
        smax: Largest component of the stress besides the pressure, GPa. None measures the cell as ASE's
            FrechetCellFilter does: rows of the virial divided by the number of atoms, against `fmax`.
        max_steps: Evaluations of one structure; as many again after a rattle.
        optimizer: How it goes downhill.
        pressure: Of the surroundings, GPa.
        fix_cell: Move atoms only. So it is for whatever is not periodic in three directions.
        fix_symmetry: Keep the space group that is found within `symprec`.
        symprec: How far sites may be from where symmetry wants them, angstrom.
        rattle: Displace a relaxed structure by normal random numbers of this standard deviation, in angstrom, strain it
            a little, and relax it again: a symmetric structure may stand on a saddle. What comes of it counts if it is
            lower by more than `RATTLE_GAIN`. 0 does not.
        seed: Of these displacements.
        skin: Neighbours are searched so much further than the cutoff, and again when one could have come within it,
            angstrom.
        max_edges: Structures with more within cutoff and skin are too large.
        trajectory: Keep all points.
    """

    fmax: float = 0.05
    smax: float | None = 0.1
    max_steps: int = 500
    optimizer: Optimizer = Optimizer.LBFGS
    pressure: float = 0.0
    fix_cell: bool = False
    fix_symmetry: bool = False
    symprec: float = 0.05
    rattle: float = 0.0
    seed: int = 0
    skin: float = 0.3
    max_edges: int = MAX_EDGES
    trajectory: bool = False

    def __post_init__(self) -> None:
        if self.fmax <= 0 or (self.smax is not None and self.smax <= 0) or self.max_steps < 1:
            raise ConfigError("fmax, smax and max_steps have to be positive")
        if self.rattle < 0 or self.skin < 0:
            raise ConfigError("rattle and skin cannot be negative")
        if self.rattle and self.fix_symmetry:
            raise ConfigError("a rattle breaks the symmetry that is to be kept: say one of them")
        if self.fix_cell and self.pressure:
            raise ConfigError("a pressure has nothing to act on if the cell is fixed")


@dataclass(frozen=True, slots=True)
class Frame:
    """One point of a relaxation.

    Attributes:
        structure: There.
        energy: eV.
        forces: float64[n_atoms, 3], eV/angstrom.
        stress: float64[3, 3], eV/angstrom^3.
    """

    structure: Structure
    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Relaxed:
    """How the relaxation of one structure went.

    Attributes:
        status: Place in `RELAX_STATUSES`.
        first: As it was given; None if it could not be evaluated.
        last: The relaxed one, or the last point; None likewise. Of a structure that exploded, the first.
        n_steps: Evaluations.
        frames: All points in between, if they were to be kept.
        saddle: Where it rested before it was displaced and went lower; None if it was not, or went nowhere lower.
        rattled_energy: Energy where it came to rest after the displacement, eV; NaN without.
        reason: Why it failed, empty if it did not.
    """

    status: int
    first: Frame | None
    last: Frame | None
    n_steps: int
    frames: tuple[Frame, ...] = ()
    saddle: Frame | None = None
    rattled_energy: float = float("nan")
    reason: str = ""


def relax_structures(
    structures: Iterable[tuple[Key, Structure]],
    potential: Potential,
    settings: RelaxSettings | None = None,
    *,
    edges_in_flight: int = EDGES_IN_FLIGHT,
) -> Iterator[tuple[Key, Relaxed]]:
    """Relax structures, several at a time; one that is done makes room for the next.

    What becomes of a structure does not depend on those beside it, but for rounding.

    Args:
        structures: With a name for each, an integer if they are rattled: it is part of the seed.
        potential: With energy, forces and stress.
        settings: None takes the defaults.
        edges_in_flight: Structures are taken up until those in flight have so many edges.

    Yields:
        Name and result, in the order in which they are done.

    Raises:
        ConfigError: The potential has no forces or no stress.
    """
    chosen = settings or RelaxSettings()
    made = {spec.name for spec in potential.outputs}
    if absent := {"energy", "forces", "stress"} - made:
        raise ConfigError(f"a relaxation needs {', '.join(sorted(absent))}, which the model does not have")
    waiting, flying = iter(structures), list[tuple[Key, _Relaxation]]()
    while True:
        while sum(one.n_edges for _, one in flying) < edges_in_flight and (following := next(waiting, None)):
            key, structure = following
            try:
                flying.append((key, _Relaxation(structure, potential, chosen, key)))
            except _Ended as ended:
                yield key, ended.result
        if not flying:
            return
        found = _evaluated(GraphBlock.concatenate([one.block() for _, one in flying]), potential)
        moving = flying
        flying = []
        for (key, one), frame in zip(moving, found, strict=True):
            try:
                one.advance(*frame)
            except _Ended as ended:
                yield key, ended.result
            else:
                flying.append((key, one))


def _evaluated(block: GraphBlock, potential: Potential) -> Iterator[tuple[float, Any, Any]]:
    """Energy, forces and stress of each structure.

    Energies are a product of matrices, in which one NaN reaches all structures of a batch: those are tried alone.
    """
    found = potential.evaluate(block)
    for row, (begin, count) in enumerate(zip(block.atom_start.tolist(), block.n_atoms.tolist(), strict=True)):
        part: Evaluation = found
        place, atoms = row, slice(begin, begin + count)
        if not np.isfinite(found.energy[row]) or not np.isfinite(found.forces[atoms]).all():
            part, place, atoms = potential.evaluate(block.take([row])), 0, slice(0, count)
        yield float(part.energy[place]), part.forces[atoms], part.stress[place]


class _Ended(Exception):  # noqa: N818 - no error: the end of a relaxation, also a good one
    def __init__(self, result: Relaxed) -> None:
        super().__init__()
        self.result = result


@dataclass
class _Graph:
    """Neighbours within cutoff and skin, and where atoms and cell were when they were searched."""

    neighbors: NeighborList
    cell: NDArray[np.float64]
    frac_coord: NDArray[np.float64]

    def holds(self, cell: NDArray[np.float64], frac: NDArray[np.float64], cutoff: float, skin: float) -> bool:
        """Whether no pair that was beyond cutoff and skin can be within the cutoff now.

        Positions are those of the search, deformed with the cell, and displaced by at most u: a distance is at least
        the smallest stretch of the deformation times what it was, less 2 u.
        """
        stretch = np.linalg.svd(np.linalg.solve(self.cell, cell), compute_uv=False)[-1]
        moved = (frac - self.frac_coord) @ cell
        largest = np.sqrt(np.einsum("ij,ij->i", moved, moved).max())
        return bool(stretch * (cutoff + skin) - 2.0 * largest >= cutoff)


@dataclass
class _Relaxation:
    """One structure under way.

    Attributes:
        structure: As it was given.
        potential: What it is relaxed with.
        settings: How.
        key: Its name, part of the seed.
    """

    structure: Structure
    potential: Potential
    settings: RelaxSettings
    key: Any
    n_steps: int = 0
    last_step: int = 0
    first: Frame | None = None
    frames: list[Frame] = field(default_factory=list)
    saddle: Frame | None = None
    rattled: bool = False

    def __post_init__(self) -> None:
        if not np.isin(self.structure.atomic_number, self.potential.elements).all():
            raise self._failed(UNKNOWN_ELEMENT, "an element that the model does not know")
        self.cell, self.frac = self.structure.cell.copy(), self.structure.frac_coord.copy()
        self.moves_cell = bool(self.structure.pbc.all()) and not self.settings.fix_cell
        self.strain_length = 2.0 * np.sqrt(len(self.structure))  # angstrom
        self.symmetric = SymmetricSteps(self.structure, self.settings.symprec) if self.settings.fix_symmetry else None
        self.descent = self._descent()
        self.last_step = self.settings.max_steps
        self._search(TOO_LARGE)

    @property
    def n_edges(self) -> int:
        """Within cutoff and skin."""
        return len(self.graph.neighbors.neighbor)

    def _descent(self) -> Descent:
        if self.settings.optimizer is Optimizer.FIRE:
            return Fire(LONGEST_STEP)
        return Lbfgs(LONGEST_STEP, tolerance=ENERGY_ROUNDING * len(self.structure))

    def _search(self, status: int) -> None:
        """Find the neighbours anew.

        Raises:
            _Ended: With that status, if they are too many or atoms have come too close.
        """
        here = Structure(self.structure.atomic_number, self.cell, self.frac, self.structure.pbc)
        reach = self.potential.cutoff + self.settings.skin
        try:
            found = neighbor_list(here, reach, max_edges=self.settings.max_edges)
        except InvalidStructureError as error:
            raise self._failed(status, str(error)) from error
        self.graph = _Graph(found, self.cell.copy(), self.frac.copy())

    def block(self) -> GraphBlock:
        """Its graph as it stands; edges beyond the cutoff are left out when tables are made of it."""
        near = self.graph.neighbors
        return GraphBlock(
            n_atoms=np.array([len(self.structure)], dtype=np.int32),
            n_edges=np.array([len(near.neighbor)], dtype=np.int32),
            cell=self.cell[None],
            pbc=self.structure.pbc[None],
            atomic_number=self.structure.atomic_number,
            frac_coord=self.frac,
            n_neighbors=near.n_neighbors,
            neighbor=near.neighbor,
            image=near.image,
        )

    def advance(self, energy: float, forces: NDArray[np.float64], stress: NDArray[np.float64]) -> None:
        """Take one step.

        Args:
            energy: Here, eV.
            forces: float64[n_atoms, 3], eV/angstrom.
            stress: float64[3, 3], eV/angstrom^3.

        Raises:
            _Ended: There is none to take.
        """
        self.n_steps += 1
        finite = np.isfinite(energy) and np.isfinite(forces).all()
        if not finite or (self.moves_cell and not np.isfinite(stress).all()):
            raise self._failed(NOT_FINITE, "the model gives no finite numbers")
        frame = Frame(self._here(), energy, forces.copy(), stress.copy())
        if self.first is None:
            self.first = frame
        if self.settings.trajectory:
            self.frames.append(frame)
        if self._converged(frame):
            if not self.settings.rattle or self.rattled:
                raise self._done(OK, frame)
            self._rattle(frame)
        elif self.n_steps >= self.last_step:
            raise self._done(NOT_CONVERGED, frame)
        else:
            self._step(frame)
        if not self.graph.holds(self.cell, self.frac, self.potential.cutoff, self.settings.skin):
            self._search(EXPLODED)

    def _here(self) -> Structure:
        """The structure as it stands, wrapped into its cell."""
        numbers, pbc = self.structure.atomic_number, self.structure.pbc
        try:
            return Structure.from_fractional(numbers, self.cell, self.frac, pbc)
        except InvalidStructureError as error:
            raise self._failed(EXPLODED, str(error)) from error

    def _virial(self, frame: Frame) -> NDArray[np.float64]:
        """V (stress + pressure), float64[3, 3], eV."""
        pressure = self.settings.pressure * GPA * np.eye(3)
        virial: NDArray[np.float64] = frame.structure.volume * ((frame.stress + frame.stress.T) / 2 + pressure)
        return virial

    def _converged(self, frame: Frame) -> bool:
        fmax = self.settings.fmax
        if _longest(frame.forces) > fmax:
            return False
        if not self.moves_cell:
            return True
        virial = self._virial(frame)
        if self.settings.smax is None:
            return _longest(virial / len(self.structure)) <= fmax
        return bool(np.abs(virial).max() <= self.settings.smax * GPA * frame.structure.volume)

    def _step(self, frame: Frame) -> None:
        gradient = -frame.forces
        energy = frame.energy
        if self.moves_cell:
            energy += self.settings.pressure * GPA * frame.structure.volume
            gradient = np.concatenate([gradient, self._virial(frame) / self.strain_length])
        if self.symmetric is not None:
            gradient = self.symmetric.projected(gradient, self.cell)
        step = self.descent.step(energy, gradient)
        self._move(step[: len(self.structure)], step[len(self.structure) :] / self.strain_length)

    def _move(self, displacement: NDArray[np.float64], strain: NDArray[np.float64]) -> None:
        """Displace atoms, then strain everything."""
        self.frac = self.frac + np.linalg.solve(self.cell.T, displacement.T).T
        if not len(strain):
            return
        largest = float(np.abs(strain).max())
        if largest > LONGEST_STRAIN:
            strain = strain * (LONGEST_STRAIN / largest)
        self.cell = self.cell @ _exponential(strain)
        ratio = abs(np.linalg.det(self.cell)) / self.structure.volume
        if not LEAST_VOLUME < ratio < LARGEST_VOLUME:
            raise self._failed(EXPLODED, f"its volume became {ratio:.2f} times what it was")

    def _rattle(self, frame: Frame) -> None:
        """Displace a relaxed structure, by the same for the same seed and name."""
        self.saddle, self.rattled = frame, True
        self.last_step = self.n_steps + self.settings.max_steps
        rng = np.random.default_rng((self.settings.seed, int(self.key)))
        displacement = rng.normal(0.0, self.settings.rattle, self.frac.shape)
        strain = rng.normal(0.0, self.settings.rattle / RATTLED_LENGTH, (3, 3)) if self.moves_cell else np.zeros((0, 3))
        self.descent = self._descent()
        self._move(displacement - displacement.mean(axis=0), (strain + strain.T) / 2 if len(strain) else strain)

    def _done(self, status: int, frame: Frame) -> _Ended:
        """The end of one that was evaluated; what a rattle has led to counts if it is lower."""
        saddle, rattled_energy = None, float("nan")
        if self.saddle is not None:
            rattled_energy = frame.energy
            if status == OK and frame.energy < self.saddle.energy - RATTLE_GAIN * len(self.structure):
                saddle = self.saddle
            else:
                frame, status = self.saddle, OK
        frames = tuple(self.frames)
        return _Ended(Relaxed(status, self.first, frame, self.n_steps, frames, saddle, rattled_energy))

    def _failed(self, status: int, reason: str) -> _Ended:
        """The end of one that leaves nothing better than where it began, or, if it was rattled, where it rested."""
        if self.saddle is not None:
            return _Ended(Relaxed(OK, self.first, self.saddle, self.n_steps, tuple(self.frames)))
        return _Ended(Relaxed(status, self.first, self.first, self.n_steps, tuple(self.frames), reason=reason))


def _longest(rows: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.einsum("ij,ij->i", rows, rows).max()))


def _exponential(strain: NDArray[np.float64]) -> NDArray[np.float64]:
    """The exponential of a symmetric matrix: float64[3, 3]."""
    values, vectors = np.linalg.eigh((strain + strain.T) / 2)
    out: NDArray[np.float64] = (vectors * np.exp(values)) @ vectors.T
    return out
