"""Batched relaxation: many structures at once, atoms and cell together, with one potential in one process.

The coordinates of a structure are relative to its current geometry: the displacements of its atoms, and a symmetric
strain that deforms the cell with its atoms. The gradient consists of the negative forces and the derivative of the
energy with respect to strain, here called the virial. The strain is multiplied by a length, so that all coordinates are
lengths with about the same stiffness: a crystal resists a strain with about 15 eV/atom, and the displacement of one
atom with about 10 eV/angstrom^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...export.runtime.batching import evaluate_batches
from ...pipeline.errors import ConfigError, InvalidStructureError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.neighbor_list import MAX_EDGES, NeighborList, neighbor_list
from ...pipeline.graphs.potential import Evaluation, Potential
from ...pipeline.structures.structure import Structure
from ..partial_periodicity import in_directions
from ..plausibility import BOTTOMLESS, Plausibility, atomic_volume
from .optimizers import Descent, Fire, Lbfgs, Optimizer
from .symmetry import SymmetricSteps

GPA = 0.006241509074460763  # one GPa in eV/angstrom^3 (CODATA 2018, as in ase.units)
RELAX_STATUSES = ("ok", "unknown_element", "not_finite", "not_converged", "exploded", "too_large", "extrapolating")
OK, UNKNOWN_ELEMENT, NOT_FINITE, NOT_CONVERGED, EXPLODED, TOO_LARGE, EXTRAPOLATING = range(len(RELAX_STATUSES))
# Limits of the volume relative to the initial one, beyond which a crystal has collapsed or evaporated. To spare
# crystals that were much too large or too small from the start, a crystal must also exceed the second pair of limits,
# which are relative to the volume of its atoms (`plausibility.atomic_volume`).
LEAST_VOLUME, LARGEST_VOLUME = 0.25, 4.0
LEAST_ATOMIC_VOLUME, LARGEST_ATOMIC_VOLUME = 0.25, 8.0
EDGES_IN_FLIGHT = 32_768
LONGEST_STEP = 0.2  # angstrom
LONGEST_STRAIN = 0.05  # largest component of the strain in one step
RATTLED_LENGTH = 5.0  # angstrom; a rattle strains the cell by its displacement over this length
# Smallest gain from a rattle, eV/atom. With the default `fmax` and `smax`, 49 of 50 relaxations end within 0.7 meV/atom
# of their minimum, so a larger gain is nearly always another minimum. There are exceptions: with 0.05 eV/angstrom and
# 0.1 GPa, 3 of 50 ended up to 12 meV/atom above the minimum, on flat slopes (tests/benchmarks/relax_criterion.txt).
RATTLE_GAIN = 1e-3
# Float32 rounding error of an energy, eV/atom.
ENERGY_ROUNDING = 2e-6
# In the convergence criterion, the stress of a slab or chain refers to this many times the volume of its atoms, as in
# most crystals (`plausibility.atomic_volume`), so that the criterion does not depend on the vacuum.
ATOMIC_VOLUMES = 1.4
CELL_KEPT = "the cell was not relaxed, since the structure is not periodic in three directions"
OTHER_AXES = "the cell was not relaxed, since none of the chosen axes is periodic"
WITHOUT_PRESSURE = "the pressure had no effect, since the structure is not periodic in three directions"
WITHOUT_GROUP = "no space group was preserved, since the structure is not periodic in three directions"
_AXES = "abc"

Key = TypeVar("Key")
Result = tuple[float, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class RelaxSettings:
    """Settings of a relaxation.

    Example:
        >>> from equiscreen.screening import RelaxSettings
        >>> settings = RelaxSettings(fmax=0.01, pressure=10.0, rattle=0.05)
        >>> settings.max_steps
        500

    Attributes:
        fmax: Convergence criterion for the forces: largest force on any atom, eV/angstrom.
        smax: Convergence criterion for the cell: largest component of the sum of stress and external pressure, GPa.
            None uses the criterion of ASE's FrechetCellFilter: no row of the virial, divided by the number of atoms,
            may be longer than `fmax`.
        max_steps: Maximum number of evaluations per structure; a rattle allows this many again.
        optimizer: Optimization algorithm.
        pressure: External pressure, GPa.
        fix_cell: Relax the atoms only, with a fixed cell.
        cell_axes: Lattice vectors in whose directions the cell relaxes, as a string of the letters a, b and c;
            directions that are not periodic are left out. If empty, crystals relax in all directions, and structures
            that are not periodic in three directions keep their cell.
        fix_symmetry: Keep the space group of the initial structure, as found with `symprec`. Only the symmetric part of
            forces and stress then counts for convergence.
        symprec: Tolerance of the search for symmetry: largest distance of a site from its symmetric position, angstrom.
        rattle: Standard deviation of random displacements, angstrom; 0 disables the rattle. A symmetric structure may
            be at a saddle point. A rattle displaces the atoms of a relaxed structure, strains its cell a little, and
            relaxes it again; the result is used if its energy is lower by more than `RATTLE_GAIN` (eV/atom).
        seed: Random seed of the rattle.
        skin: Extra radius of the neighbour search beyond the cutoff, angstrom. The neighbour list is reused until an
            atom from beyond this radius could have come within the cutoff.
        max_edges: Structures with more edges than this within cutoff plus skin are too large.
        trajectory: Whether to keep every point of the relaxation.
        allow_extrapolation: Whether a relaxed structure whose distances, forces or energy are implausible
            (`screening.plausibility`) counts as ok; otherwise its status is ``extrapolating``.

    Raises:
        ConfigError: A value is out of range, or two settings contradict each other.
    """

    fmax: float = 0.02
    smax: float | None = 0.05
    max_steps: int = 500
    optimizer: Optimizer = Optimizer.LBFGS
    pressure: float = 0.0
    fix_cell: bool = False
    cell_axes: str = ""
    fix_symmetry: bool = False
    symprec: float = 0.05
    rattle: float = 0.0
    seed: int = 0
    skin: float = 0.3
    max_edges: int = MAX_EDGES
    trajectory: bool = False
    allow_extrapolation: bool = False

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{one.name} is {value}; it must be a finite number")
        if min(self.fmax, 1.0 if self.smax is None else self.smax, self.max_steps, self.symprec) <= 0:
            raise ConfigError("fmax, smax, max_steps and symprec must be positive")
        if self.rattle < 0 or self.skin < 0:
            raise ConfigError("rattle and skin must not be negative")
        if self.rattle and self.fix_symmetry:
            raise ConfigError("a rattle breaks the symmetry that fix_symmetry keeps; set either rattle or fix_symmetry")
        if self.fix_cell and self.pressure:
            raise ConfigError("pressure has no effect on a fixed cell; set either pressure or fix_cell")
        if not set(self.cell_axes) <= set(_AXES) or len(set(self.cell_axes)) < len(self.cell_axes):
            raise ConfigError(
                f"cell axes {self.cell_axes!r} are invalid; use each of the letters a, b and c at most once"
            )
        if self.cell_axes and (self.fix_cell or self.fix_symmetry):
            raise ConfigError(
                "cell_axes relaxes the cell in some directions, fix_cell in none, and fix_symmetry only as the space "
                "group permits; set only one of them"
            )


@dataclass(frozen=True, slots=True)
class Frame:
    """One point of a relaxation.

    Attributes:
        structure: Structure at this point; lengths in angstrom.
        energy: Total energy, eV.
        forces: Forces on the atoms: float64[n_atoms, 3], eV/angstrom.
        stress: Stress tensor of a crystal: float64[3, 3], eV/angstrom^3.
        virial: Derivative of the energy with respect to strain: float64[3, 3], eV; NaN if it is unknown.
    """

    structure: Structure
    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64]
    virial: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Relaxed:
    """Result of the relaxation of one structure.

    Attributes:
        status: Index into `RELAX_STATUSES`.
        first: The initial structure; None if it could not be evaluated.
        last: The relaxed structure; the last point if it did not converge; the initial structure if it failed, for
            example because it exploded. None if it could not be evaluated.
        n_steps: Number of evaluations.
        frames: All points, first and last included, if the settings ask for a trajectory.
        saddle: The relaxed structure before a rattle led to a lower energy; None without a rattle, or if the rattle did
            not lower the energy.
        rattled_energy: Total energy after the relaxation that follows a rattle, eV; NaN without a rattle.
        reason: Why the relaxation failed, or what makes its result implausible; empty if neither applies.
        remarks: Notes on settings that had no effect, such as a pressure on a slab.
    """

    status: int
    first: Frame | None
    last: Frame | None
    n_steps: int
    frames: tuple[Frame, ...] = ()
    saddle: Frame | None = None
    rattled_energy: float = float("nan")
    reason: str = ""
    remarks: tuple[str, ...] = ()


def relax_structures(
    structures: Iterable[tuple[Key, Structure]],
    potential: Potential,
    settings: RelaxSettings | None = None,
    *,
    plausibility: Plausibility | None = None,
    edges_in_flight: int = EDGES_IN_FLIGHT,
) -> Iterator[tuple[Key, Relaxed]]:
    """Relax structures in batches; when a structure is done, the next one takes its place.

    The result of a structure does not depend on the other structures, on their order, or on the size of the batch.

    Example:
        >>> from ase.build import bulk
        >>> from equiscreen.export import OnnxPotential
        >>> from equiscreen.pipeline import Structure
        >>> from equiscreen.screening import relax_structures
        >>> crystals = [("Cu", Structure.from_ase(bulk("Cu", a=3.65)))]
        >>> for name, relaxed in relax_structures(crystals, OnnxPotential.load("model.onnx")):
        ...     print(name, relaxed.n_steps > 0)
        Cu True

    Args:
        structures: Pairs of a key and a structure.
        potential: Potential with energy, forces and stress.
        settings: Settings of the relaxation; None uses the defaults.
        plausibility: Bounds outside of which a result is meaningless; None uses the bounds of the potential.
        edges_in_flight: Structures are added to the batch until it has this many edges.

    Yields:
        Key and result of each structure, in the order in which the structures finish.

    Raises:
        ConfigError: The potential does not predict energy, forces and stress.
    """
    settings = settings or RelaxSettings()
    predicted = {spec.name for spec in potential.outputs}
    if absent := {"energy", "forces", "stress"} - predicted:
        raise ConfigError(
            f"a relaxation needs {', '.join(sorted(absent))}, which the model does not predict; choose a model with "
            "energy, forces and stress"
        )
    plausibility = plausibility or Plausibility.of(potential)
    waiting, in_flight = iter(structures), list[tuple[Key, _Relaxation]]()
    while True:
        while sum(one.n_edges for _, one in in_flight) < edges_in_flight and (following := next(waiting, None)):
            key, structure = following
            try:
                in_flight.append((key, _Relaxation(structure, potential, settings, plausibility)))
            except _Ended as ended:
                yield key, ended.result
        if not in_flight:
            return
        results = evaluate_each(GraphBlock.concatenate([one.block() for _, one in in_flight]), potential)
        batch, in_flight = in_flight, []
        for (key, one), result in zip(batch, results, strict=True):
            try:
                if result is None:
                    one.reject()
                else:
                    one.advance(*result)
            except _Ended as ended:
                yield key, ended.result
            else:
                in_flight.append((key, one))


def evaluate_each(block: GraphBlock, potential: Potential) -> list[Result | None]:
    """Evaluate the structures of a block in batches; see `evaluate_batches`.

    Energies and stresses of a batch come from matrix products, in which one NaN spreads to all structures: a structure
    without finite results is evaluated again on its own.

    Returns:
        Energy (eV), forces (eV/angstrom), stress (eV/angstrom^3) and virial (eV) of each structure; None if the
        structure does not fit into memory.
    """
    results: list[Result | None] = [None] * len(block)
    for rows, found in evaluate_batches(block, np.arange(len(block)), potential):
        if found is None:
            continue
        ends = np.cumsum(block.n_atoms[rows]).tolist()
        for place, (row, begin, end) in enumerate(zip(rows.tolist(), [0, *ends], ends, strict=False)):
            one = _result(block, row, found, place, slice(begin, end))
            if one is None:
                one = _result(block, row, potential.evaluate(block.take([row])), 0, slice(0, end - begin), finite=False)
            results[row] = one
    return results


def _result(
    block: GraphBlock, row: int, found: Evaluation, place: int, atoms: slice, *, finite: bool = True
) -> Result | None:
    """Return the result of one structure of an evaluation; with `finite`, None if it is not finite."""
    stress = found.stress[place]
    values = (found.energy[place], found.forces[atoms], stress if block.pbc[row].all() else 0.0)
    if finite and not all(np.isfinite(value).all() for value in values):
        return None
    virial = stress * block.volume[row] if found.virial is None else found.virial[place]
    return float(found.energy[place]), found.forces[atoms], stress, virial


class _Ended(Exception):  # noqa: N818 - not an error: the end of a relaxation
    """Raised at the end of a relaxation, successful or not.

    Args:
        result: Result of the relaxation.
    """

    def __init__(self, result: Relaxed) -> None:
        super().__init__()
        self.result = result


@dataclass
class _Graph:
    """A neighbour list within cutoff plus skin, and the geometry that it was made for.

    Attributes:
        neighbors: The neighbour list.
        cell: float64[3, 3], lattice vectors as rows at the time of the search, angstrom.
        frac_coord: float64[n_atoms, 3], fractional coordinates at the time of the search.
    """

    neighbors: NeighborList
    cell: NDArray[np.float64]
    frac_coord: NDArray[np.float64]

    def holds(self, cell: NDArray[np.float64], frac: NDArray[np.float64], cutoff: float, skin: float) -> bool:
        """Return whether the list still contains every pair within the cutoff.

        Since the search, positions have been deformed with the cell and then displaced by at most u. A distance is now
        at least its value at the search times the smallest stretch of the deformation, minus 2 u.

        Args:
            cell: float64[3, 3], current lattice vectors as rows, angstrom.
            frac: float64[n_atoms, 3], current fractional coordinates.
            cutoff: Cutoff of the potential, angstrom.
            skin: Extra radius of the search, angstrom.
        """
        stretch = np.linalg.svd(np.linalg.solve(self.cell, cell), compute_uv=False)[-1]
        moved = (frac - self.frac_coord) @ cell
        largest = np.sqrt(np.einsum("ij,ij->i", moved, moved).max())
        return bool(stretch * (cutoff + skin) - 2.0 * largest >= cutoff)


@dataclass
class _Relaxation:
    """The relaxation of one structure in progress.

    Attributes:
        structure: Initial structure.
        potential: Potential that the structure is relaxed with.
        settings: Settings of the relaxation.
        plausibility: Bounds outside of which a result is meaningless.
        n_steps: Number of evaluations so far.
        last_step: Number of evaluations after which the relaxation stops.
        first: The initial point, once it has been evaluated.
        frames: All points so far, if a trajectory is kept.
        saddle: The point that was relaxed before the rattle.
        rattled: Whether the structure has been rattled.

    Raises:
        _Ended: The structure has unknown elements, too many edges, or atoms that are too close.
    """

    structure: Structure
    potential: Potential
    settings: RelaxSettings
    plausibility: Plausibility
    n_steps: int = 0
    last_step: int = 0
    first: Frame | None = None
    frames: list[Frame] = field(default_factory=list)
    saddle: Frame | None = None
    rattled: bool = False

    def __post_init__(self) -> None:
        if not np.isin(self.structure.atomic_number, self.potential.elements).all():
            raise self._failed(UNKNOWN_ELEMENT, "an element that the model does not support")
        self.cell, self.frac = self.structure.cell.copy(), self.structure.frac_coord.copy()
        self.is_crystal = bool(self.structure.pbc.all())
        self.axes = self._relaxing_axes()
        self.moves_cell = bool(self.axes.any())
        volume = self.initial_volume = abs(np.linalg.det(self.cell))
        self.least_volume, self.largest_volume = LEAST_VOLUME * volume, LARGEST_VOLUME * volume
        atoms = atomic_volume(self.structure.atomic_number)
        self.measure = ATOMIC_VOLUMES * atoms
        if self.is_crystal:
            self.least_volume = min(self.least_volume, LEAST_ATOMIC_VOLUME * atoms)
            self.largest_volume = max(self.largest_volume, LARGEST_ATOMIC_VOLUME * atoms)
        self.strain_length = 2.0 * np.sqrt(len(self.structure))  # angstrom
        self.symmetric = SymmetricSteps(self.structure, self.settings.symprec) if self.settings.fix_symmetry else None
        self.descent = self._new_descent()
        self.last_step = self.settings.max_steps
        self._find_neighbors(TOO_LARGE)

    def _relaxing_axes(self) -> NDArray[np.bool_]:
        """Return the lattice vectors in whose directions the cell relaxes: bool[3]."""
        pbc, chosen = self.structure.pbc, self.settings.cell_axes
        if self.settings.fix_cell or not (chosen or self.is_crystal):
            return np.zeros(3, dtype=bool)
        return np.asarray(pbc & np.array([letter in (chosen or _AXES) for letter in _AXES]))

    @property
    def remarks(self) -> tuple[str, ...]:
        """Notes on settings that have no effect."""
        if self.is_crystal:
            return ()
        kept = self.structure.pbc.any() and not self.moves_cell and not self.settings.fix_cell
        why = OTHER_AXES if self.settings.cell_axes else CELL_KEPT
        told = {why: kept, WITHOUT_PRESSURE: self.settings.pressure, WITHOUT_GROUP: self.settings.fix_symmetry}
        return tuple(remark for remark, holds in told.items() if holds)

    @property
    def n_edges(self) -> int:
        """Number of edges within cutoff plus skin."""
        return len(self.graph.neighbors.neighbor)

    def _new_descent(self) -> Descent:
        """Return an optimizer without history."""
        match self.settings.optimizer:
            case Optimizer.FIRE:
                return Fire(LONGEST_STEP)
            case Optimizer.LBFGS:
                return Lbfgs(LONGEST_STEP, tolerance=ENERGY_ROUNDING * len(self.structure))

    def _find_neighbors(self, status: int) -> None:
        """Make the neighbour list of the current geometry.

        Args:
            status: Status of the structure if the search fails.

        Raises:
            _Ended: There are too many edges, or atoms are too close.
        """
        here = Structure(self.structure.atomic_number, self.cell, self.frac, self.structure.pbc)
        reach = self.potential.cutoff + self.settings.skin
        try:
            found = neighbor_list(here, reach, max_edges=self.settings.max_edges)
        except InvalidStructureError as error:
            raise self._failed(status, str(error)) from error
        self.graph = _Graph(found, self.cell.copy(), self.frac.copy())

    def block(self) -> GraphBlock:
        """Return the graph of the current geometry; neighbour tables made from it skip edges beyond the cutoff."""
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

    def advance(
        self,
        energy: float,
        forces: NDArray[np.float64],
        stress: NDArray[np.float64],
        virial: NDArray[np.float64],
    ) -> None:
        """Take one step of the relaxation.

        Args:
            energy: Energy of the current geometry, eV.
            forces: Forces on the atoms: float64[n_atoms, 3], eV/angstrom.
            stress: Stress tensor: float64[3, 3], eV/angstrom^3.
            virial: Derivative of the energy with respect to strain: float64[3, 3], eV.

        Raises:
            _Ended: The relaxation has converged, failed, or used all its steps.
        """
        self.n_steps += 1
        finite = np.isfinite(energy) and np.isfinite(forces).all()
        if not finite or (self.moves_cell and not np.isfinite(virial).all()):
            raise self._failed(NOT_FINITE, "the model predicts values that are not finite")
        frame = Frame(self._here(), energy, forces.copy(), stress.copy(), np.array(virial))
        if self.first is None:
            self.first = frame
        if self.settings.trajectory:
            self.frames.append(frame)
        (relative,) = self.plausibility.relative_energies(self.block(), np.array([energy])).tolist()
        if relative < BOTTOMLESS:
            raise self._failed(EXPLODED, f"the energy fell to {relative:.6g} eV/atom relative to isolated atoms")
        if self._converged(frame):
            if not self.settings.rattle or self.rattled or self._doubt(frame):
                raise self._done(OK, frame)
            self._rattle(frame)
        elif self.n_steps >= self.last_step:
            raise self._done(NOT_CONVERGED, frame)
        else:
            self._step(frame)
        if not self.graph.holds(self.cell, self.frac, self.potential.cutoff, self.settings.skin):
            self._find_neighbors(EXPLODED)

    def reject(self) -> None:
        """End the relaxation of a structure that does not fit into memory.

        Raises:
            _Ended: Always.
        """
        raise self._failed(TOO_LARGE, "the structure does not fit into memory")

    def _here(self) -> Structure:
        """Return the structure of the current geometry, with atoms wrapped into the cell."""
        numbers, pbc = self.structure.atomic_number, self.structure.pbc
        try:
            return Structure.from_fractional(numbers, self.cell, self.frac, pbc)
        except InvalidStructureError as error:
            raise self._failed(EXPLODED, str(error)) from error

    def _virial(self, frame: Frame) -> NDArray[np.float64]:
        """Return volume times (stress + external pressure), in the directions that relax: float64[3, 3], eV."""
        if not self.is_crystal:  # in vacuum, without pressure
            return in_directions(frame.virial, self.cell, self.axes)[0]
        pressure = self.settings.pressure * GPA * np.eye(3)
        virial: NDArray[np.float64] = frame.structure.volume * ((frame.stress + frame.stress.T) / 2 + pressure)
        return virial if self.axes.all() else in_directions(virial, self.cell, self.axes)[0]

    def _converged(self, frame: Frame) -> bool:
        """Return whether forces and cell meet the convergence criteria.

        If the space group is kept, only the symmetric part of the forces and of the virial counts, as with ASE's
        FixSymmetry: steps cannot reduce the rest, which a model without mirror symmetry has for any crystal.
        """
        fmax = self.settings.fmax
        forces, virial = self._symmetric(frame.forces, self._virial(frame) if self.moves_cell else None)
        if _longest(forces) > fmax:
            return False
        if virial is None:
            return True
        if self.settings.smax is None:
            return _longest(virial / len(self.structure)) <= fmax
        volume = frame.structure.volume if self.is_crystal else self.measure
        return bool(np.abs(virial).max() <= self.settings.smax * GPA * volume)

    def _symmetric(
        self, forces: NDArray[np.float64], virial: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Return forces and virial, or their symmetric parts if the space group is kept."""
        if self.symmetric is None:
            return forces, virial
        parts = self.symmetric.projected(forces if virial is None else np.concatenate([forces, virial]), self.cell)
        return parts[: len(forces)], None if virial is None else parts[len(forces) :]

    def _step(self, frame: Frame) -> None:
        """Move atoms and cell by one step of the optimizer."""
        gradient = -frame.forces
        energy = frame.energy
        if self.moves_cell:
            if self.is_crystal:
                energy += self.settings.pressure * GPA * frame.structure.volume
            gradient = np.concatenate([gradient, self._virial(frame) / self.strain_length])
        if self.symmetric is not None:
            gradient = self.symmetric.projected(gradient, self.cell)
        step = self.descent.step(energy, gradient)
        self._move(step[: len(self.structure)], step[len(self.structure) :] / self.strain_length)

    def _move(self, displacement: NDArray[np.float64], strain: NDArray[np.float64]) -> None:
        """Displace the atoms, then strain the cell with its atoms.

        Args:
            displacement: float64[n_atoms, 3], angstrom.
            strain: Symmetric strain: float64[3, 3], or float64[0, 3] for a fixed cell.

        Raises:
            _Ended: The volume has left its limits.
        """
        self.frac = self.frac + np.linalg.solve(self.cell.T, displacement.T).T
        if not len(strain):
            return
        largest = float(np.abs(strain).max())
        if largest > LONGEST_STRAIN:
            strain = strain * (LONGEST_STRAIN / largest)
        self.cell = self.cell @ _exponential(strain)
        volume = abs(np.linalg.det(self.cell))
        if not self.least_volume < volume < self.largest_volume:
            ratio = volume / self.initial_volume
            raise self._failed(EXPLODED, f"the volume changed by a factor of {ratio:.2f}")

    def _rattle(self, frame: Frame) -> None:
        """Displace the atoms of a relaxed structure and strain its cell.

        The random numbers depend on the seed and the initial structure, but not on its position among other structures.
        """
        self.saddle, self.rattled = frame, True
        self.last_step = self.n_steps + self.settings.max_steps
        own = int.from_bytes(self.structure.content_hash(), "big")
        rng = np.random.default_rng((self.settings.seed, own))
        displacement = rng.normal(0.0, self.settings.rattle, self.frac.shape)
        strain = np.zeros((0, 3))
        if self.moves_cell:
            strain = rng.normal(0.0, self.settings.rattle / RATTLED_LENGTH, (3, 3))
            strain = (strain + strain.T) / 2
            if not self.axes.all():
                strain = in_directions(strain, self.cell, self.axes)[0]
        self.descent = self._new_descent()
        self._move(displacement - displacement.mean(axis=0), strain)

    def _done(self, status: int, frame: Frame) -> _Ended:
        """Return the end of a relaxation that has converged or used all its steps.

        The point reached after a rattle is used if it converged to a lower energy; otherwise, the point before the
        rattle.

        Args:
            status: `OK` or `NOT_CONVERGED`.
            frame: The current point.
        """
        saddle, rattled_energy, doubt = None, float("nan"), self._doubt(frame)
        if doubt:
            status = EXTRAPOLATING
        if self.saddle is not None:
            rattled_energy = frame.energy
            if status == OK and frame.energy < self.saddle.energy - RATTLE_GAIN * len(self.structure):
                saddle = self.saddle
            else:
                frame, status, doubt = self.saddle, OK, ""
        frames = tuple(self.frames)
        return _Ended(
            Relaxed(status, self.first, frame, self.n_steps, frames, saddle, rattled_energy, doubt, self.remarks)
        )

    def _doubt(self, frame: Frame) -> str:
        """Return what makes the current point implausible; empty if nothing does, or if extrapolation is allowed."""
        if self.settings.allow_extrapolation:
            return ""
        found = Evaluation(np.array([frame.energy]), frame.forces, frame.stress[None])
        return self.plausibility.doubts(self.block(), found)[0]

    def _failed(self, status: int, reason: str) -> _Ended:
        """Return the end of a failed relaxation, with the initial structure or, after a rattle, the point before it."""
        if self.saddle is not None:
            return _Ended(Relaxed(OK, self.first, self.saddle, self.n_steps, tuple(self.frames), remarks=self.remarks))
        return _Ended(Relaxed(status, self.first, self.first, self.n_steps, tuple(self.frames), reason=reason))


def _longest(rows: NDArray[np.float64]) -> float:
    """Return the largest norm of the rows of an array, float64[n, 3]."""
    return float(np.sqrt(np.einsum("ij,ij->i", rows, rows).max()))


def _exponential(strain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the exponential of a symmetric matrix: float64[3, 3]."""
    values, vectors = np.linalg.eigh((strain + strain.T) / 2)
    out: NDArray[np.float64] = (vectors * np.exp(values)) @ vectors.T
    return out
