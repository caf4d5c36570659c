"""Scores of a block of structures."""

from __future__ import annotations

from collections.abc import Iterable
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

# A structure is evaluated in one piece, for which an edge takes 34 kB with 7net-0 and 3.4 kB with the preset `small`
# (energy, forces and stress): so many take 3.4 GB.
MAX_SCORED_EDGES = 100_000


@dataclass(frozen=True, slots=True)
class ScoreLimits:
    """Which structures are not scored, and which scores are doubtful.

    Attributes:
        max_edges: Structures with more edges in the graph store are too large.
        min_distance: Angstrom; where two atoms are closer, the model extrapolates. None looks at no distances.
    """

    max_edges: int = MAX_SCORED_EDGES
    min_distance: float | None = None


def score_block(
    block: GraphBlock,
    potential: Potential,
    limits: ScoreLimits | None = None,
    window: tuple[int, int] | None = None,
) -> dict[str, NDArray[Any]]:
    """Rows of the scores for a block; NaN where the status is neither ok nor extrapolating.

    Args:
        block: Any structures.
        potential: Evaluates those of its elements.
        limits: On what is scored; None takes the defaults.
        window: Rows from the first number up to the second alone, with the same bits as among all others; a row by
            itself is evaluated by itself.
    """
    limits = limits or ScoreLimits()
    begin, end = window or (0, len(block))
    if window is not None and end - begin == 1:
        block, window, begin, end = block.take([begin]), None, 0, 1
    n = len(block)
    status = _first_status(block, potential, limits)
    arrays: dict[str, NDArray[Any]] = {
        spec.name: np.full(spec.shape(n), np.nan)
        for spec in score_arrays(potential.outputs)
        if spec not in STRUCTURE_ARRAYS
    }
    wanted = [spec for spec in property_outputs(potential.outputs) if spec.defined == "always"]
    checked = [arrays[name] for name in ("energy", "max_force", *(spec.name for spec in wanted)) if name in arrays]

    def score(some: NDArray[np.int64], among: tuple[int, int] | None = None) -> NDArray[np.int64]:
        """Fill in these rows; returns those that are not finite."""
        bad = [some[:0]]
        for rows, found in evaluate_batches(block, some, potential, among):
            if found is None:
                status[rows] = TOO_LARGE
                continue
            for name, values in _scored(block.n_atoms[rows], found, arrays).items():
                arrays[name][rows] = values
            finite = [np.isfinite(values[rows]).reshape(len(rows), -1).all(axis=1) for values in checked]
            bad.append(rows[~np.all(finite, axis=0)])
        return np.concatenate(bad)

    # Energies are a product of matrices, in which one NaN reaches all structures of a batch: each is tried alone.
    again = [score(np.array([row])) for row in score(np.flatnonzero(status == OK), window).tolist()]
    status[np.concatenate([np.zeros(0, dtype=np.int64), *again])] = NOT_FINITE
    for values in arrays.values():
        values[(status == NOT_FINITE) | (status == TOO_LARGE)] = np.nan
    if limits.min_distance is not None:
        status[(status == OK) & (_shortest(block) < limits.min_distance)] = EXTRAPOLATING
    part = block if window is None else block.take(range(begin, end))
    return {
        **{name: values[begin:end] for name, values in arrays.items()},
        "formula": formulas(part),
        "n_atoms": part.n_atoms,
        "volume": np.where(part.pbc.all(axis=1), part.volume, np.nan),
        "status": status[begin:end],
    }


def _first_status(block: GraphBlock, potential: Potential, limits: ScoreLimits) -> NDArray[np.uint8]:
    """What is known before anything is evaluated."""
    status = np.full(len(block), OK, dtype=np.uint8)
    status[block.n_edges > limits.max_edges] = TOO_LARGE
    status[block.atom_structure[~np.isin(block.atomic_number, potential.elements)]] = UNKNOWN_ELEMENT
    return status


def _shortest(block: GraphBlock) -> NDArray[np.float64]:
    """float64[n_structures], the shortest distance between two atoms, angstrom; inf where none is within the cutoff."""
    out = np.full(len(block), np.inf)
    some = np.flatnonzero(block.n_edges)
    if len(some):
        distances = np.linalg.norm(block.displacements(), axis=1)
        out[some] = np.minimum.reduceat(distances, block.edge_start[some])
    return out


def _scored(n_atoms: NDArray[np.int32], found: Evaluation, names: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """Some arrays of the scores, from an evaluation of structures of so many atoms."""
    values = found.arrays()
    out = {}
    for name in names:
        value = values[SOURCES.get(name, name)]
        if name == "energy_per_atom":
            value = value / n_atoms
        elif name.startswith("max_force"):
            value = np.maximum.reduceat(np.linalg.norm(value, axis=1), starts(n_atoms))
        out[name] = value
    return out


def status_counts(status: NDArray[np.uint8]) -> dict[str, int]:
    """How many structures have which status."""
    counts = np.bincount(status, minlength=len(STATUS_MEANINGS))
    return {meaning: int(count) for meaning, count in zip(STATUS_MEANINGS, counts, strict=True)}
