"""Scores of the structures of a graph block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...export.runtime.batching import evaluate_batches
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.offsets import starts
from ...pipeline.graphs.potential import Evaluation, Potential
from ..chemistry.composition import formulas
from ..dataset.scores import (
    EXTRAPOLATING,
    NOT_FINITE,
    OK,
    SOURCES,
    STATUS_MEANINGS,
    STRUCTURE_ARRAYS,
    TOO_LARGE,
    UNKNOWN_ELEMENT,
    property_outputs,
    score_arrays,
)
from ..partial_periodicity import PartialStress
from ..plausibility import Plausibility

# A structure is evaluated as a whole. For energy, forces and stress, an edge takes 42 kB with 7net-0
# (tests/benchmarks/pretrained_size.txt): this many edges take up to 4.2 GB.
MAX_SCORED_EDGES = 100_000


@dataclass(frozen=True, slots=True)
class ScoreLimits:
    """Limits beyond which a structure is not scored, or its scores are unreliable.

    Attributes:
        max_edges: Structures with more edges than this in the graph store are too large, and not scored.
        min_distance: Shortest interatomic distance, angstrom; structures with closer atoms are scored, with the status
            ``extrapolating``. None applies only the bounds of `screening.plausibility`.
        allow_extrapolation: Whether implausible structures (`screening.plausibility`) count as ok.
    """

    max_edges: int = MAX_SCORED_EDGES
    min_distance: float | None = None
    allow_extrapolation: bool = False


def score_block(
    block: GraphBlock,
    potential: Potential,
    limits: ScoreLimits | None = None,
    plausibility: Plausibility | None = None,
) -> dict[str, NDArray[Any]]:
    """Compute the rows of the scores dataset for a block of structures.

    Args:
        block: Structures to score.
        potential: Potential that evaluates them; structures with elements that it does not support are not scored.
        limits: Limits on what is scored; None uses the defaults.
        plausibility: Bounds outside of which a structure is ``extrapolating``; None skips these checks.

    Returns:
        Arrays by name, one row per structure. Scores are NaN unless the status is ok or extrapolating.
    """
    limits = limits or ScoreLimits()
    n = len(block)
    status = _first_status(block, potential, limits)
    arrays: dict[str, NDArray[Any]] = {
        spec.name: np.full(spec.shape(n), np.nan)
        for spec in score_arrays(potential.outputs)
        if spec not in STRUCTURE_ARRAYS
    }
    wanted = [spec for spec in property_outputs(potential.outputs) if spec.defined == "always"]
    checked = [arrays[name] for name in ("energy", "max_force", *(spec.name for spec in wanted)) if name in arrays]

    def score(some: NDArray[np.int64]) -> NDArray[np.int64]:
        """Evaluate some rows, fill in their scores, and return the rows whose scores are not finite."""
        bad = [some[:0]]
        for rows, found in evaluate_batches(block, some, potential):
            if found is None:
                status[rows] = TOO_LARGE
                continue
            pbc, n_atoms = block.pbc[rows], block.n_atoms[rows]
            for name, values in _arrays_from(block.cell[rows], pbc, n_atoms, found, arrays).items():
                arrays[name][rows] = values
            finite = [np.isfinite(values[rows]).reshape(len(rows), -1).all(axis=1) for values in checked]
            if "stress" in arrays:
                finite.append(np.isfinite(found.stress).all(axis=(1, 2)) | ~pbc.all(axis=1))
            bad.append(rows[~np.all(finite, axis=0)])
        return np.concatenate(bad)

    evaluate_ok_rows(status, score)
    for values in arrays.values():
        values[(status == NOT_FINITE) | (status == TOO_LARGE)] = np.nan
    status[_doubtful(block, np.flatnonzero(status == OK), arrays, limits, plausibility)] = EXTRAPOLATING
    return {
        **arrays,
        "formula": formulas(block),
        "n_atoms": block.n_atoms,
        "volume": np.where(block.pbc.all(axis=1), block.volume, np.nan),
        "status": status,
    }


def evaluate_ok_rows(status: NDArray[np.uint8], evaluate: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> None:
    """Evaluate the rows whose status is ok, and set the status of those whose results are not finite.

    The energies of a batch come from a matrix product, in which one NaN spreads to all structures, so rows whose
    results are not finite are evaluated again, each alone.

    Args:
        status: Status of each row; changed in place.
        evaluate: Evaluates some rows, and returns those whose results are not finite.
    """
    bad = evaluate(np.flatnonzero(status == OK))
    still_bad = [evaluate(np.array([row])) for row in bad.tolist()]
    status[np.concatenate([np.zeros(0, dtype=np.int64), *still_bad])] = NOT_FINITE


def _first_status(block: GraphBlock, potential: Potential, limits: ScoreLimits) -> NDArray[np.uint8]:
    """Return the statuses that are known before the evaluation: uint8[n_structures]."""
    status = np.full(len(block), OK, dtype=np.uint8)
    status[block.n_edges > limits.max_edges] = TOO_LARGE
    status[block.atom_structure[~np.isin(block.atomic_number, potential.elements)]] = UNKNOWN_ELEMENT
    return status


def _doubtful(
    block: GraphBlock,
    rows: NDArray[np.int64],
    arrays: Mapping[str, NDArray[Any]],
    limits: ScoreLimits,
    plausibility: Plausibility | None,
) -> NDArray[np.int64]:
    """Return those of some rows whose scores cannot be trusted: int64[n].

    Args:
        block: The structures.
        rows: int64[n], rows that were evaluated.
        arrays: Scores of all rows.
        limits: Limits on what is scored.
        plausibility: Bounds of the model; None skips them.
    """
    some = block if len(rows) == len(block) else block.take(rows)
    doubtful = np.zeros(len(rows), dtype=bool)
    if plausibility is not None and not limits.allow_extrapolation:
        unknown = np.full(len(block), np.nan)
        energy, force = (arrays.get(name, unknown)[rows] for name in ("energy", "max_force"))
        doubtful |= plausibility.are_implausible(some, energy, force)
    if limits.min_distance is not None:
        doubtful |= _shortest_distance(some) < limits.min_distance
    return rows[doubtful]


def _shortest_distance(block: GraphBlock) -> NDArray[np.float64]:
    """Return shortest interatomic distances: float64[n_structures], angstrom; inf without atoms within the cutoff."""
    out = np.full(len(block), np.inf)
    some = np.flatnonzero(block.n_edges)
    if len(some):
        distances = np.linalg.norm(block.displacements(), axis=1)
        out[some] = np.minimum.reduceat(distances, block.edge_start[some])
    return out


def _arrays_from(
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    n_atoms: NDArray[np.integer],
    found: Evaluation,
    names: Iterable[str],
) -> dict[str, NDArray[np.float64]]:
    """Return the arrays of the scores, from the evaluation of some structures.

    Args:
        cell: float64[n, 3, 3], lattice vectors as rows, angstrom.
        pbc: bool[n, 3], which lattice vectors are periodic.
        n_atoms: int[n], number of atoms.
        found: Evaluation of the structures.
        names: Names of the arrays.
    """
    values, partial = found.arrays(), PartialStress.of(cell, pbc, found.stress, found.virial)
    known = {"stress": partial.stress, "in_plane_virial": partial.in_plane, "axial_virial": partial.axial}
    out = {}
    for name in names:
        value = known[name] if name in known else values[SOURCES.get(name, name)]
        if name == "energy_per_atom":
            value = value / n_atoms
        elif name.startswith("max_force"):
            value = np.maximum.reduceat(np.linalg.norm(value, axis=1), starts(n_atoms))
        out[name] = value
    return out


def status_counts(status: NDArray[np.uint8]) -> dict[str, int]:
    """Return the number of structures with each status, by the name of the status."""
    counts = np.bincount(status, minlength=len(STATUS_MEANINGS))
    return {meaning: int(count) for meaning, count in zip(STATUS_MEANINGS, counts, strict=True)}
