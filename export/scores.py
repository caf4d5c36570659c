"""Scores: what a screen leaves, a labelled dataset with one row per structure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..pipeline.block import GraphBlock, starts
from ..pipeline.potential import Evaluation, OutputSpec, Potential
from ..pipeline.schema import CARTESIAN, CARTESIAN_2, STRUCTURE, TEXT, VOIGT_NOTE, ArraySpec, flags, tensor_dims
from ..pipeline.store import open_root
from .batches import evaluate_batches
from .compositions import formula_text

SCORES_SCHEMA = "equiscreen-scores/1"
STATUS_MEANINGS = ("ok", "unknown_element", "not_finite", "too_large", "extrapolating")
OK, UNKNOWN_ELEMENT, NOT_FINITE, TOO_LARGE, EXTRAPOLATING = range(len(STATUS_MEANINGS))
_NUMBERS = 256  # an atomic number is a byte
# A structure is evaluated in one piece, for which an edge takes 34 kB with 7net-0 and 3.4 kB with the preset `small`
# (energy, forces and stress): so many take 3.4 GB.
MAX_SCORED_EDGES = 100_000
MEMBERS_ARRAY, MEMBER = "energy_members", "member"
COORDINATES = ("structure_id", "formula", "n_atoms", "volume", "status", "source", "source_index")


def _spec(name: str, dtype: str, description: str, units: str = "", *more_dims: str) -> ArraySpec:
    attrs = {"description": description, **({"units": units} if units else {})}
    return ArraySpec(name, (STRUCTURE, *more_dims), dtype, attrs)


ENERGY_ARRAYS = (
    _spec("energy", "float64", "total energy", "eV"),
    _spec("energy_per_atom", "float64", "energy divided by the number of atoms", "eV/atom"),
    _spec("max_force", "float64", "largest norm of the force on an atom", "eV/angstrom"),
    _spec(
        "stress",
        "float64",
        "stress (1/V) dE/d(strain), positive under tension as in ASE; NaN unless periodic in three directions",
        "eV/angstrom^3",
        CARTESIAN,
        CARTESIAN_2,
    ),
)
SPREAD_ARRAYS = (
    _spec("energy_std", "float64", "standard deviation of the total energy among the members of the ensemble", "eV"),
    _spec(
        "max_force_std",
        "float64",
        "largest norm of the standard deviations of the components of a force among the members of the ensemble",
        "eV/angstrom",
    ),
)
# What is there beside the outputs that become arrays as they stand.
_KNOWN = frozenset(spec.name for spec in (*ENERGY_ARRAYS, *SPREAD_ARRAYS)) | {MEMBERS_ARRAY, "stress_std"}
# The outputs that arrays of other names are made of.
SOURCES = {"energy_per_atom": "energy", "max_force": "forces", "max_force_std": "forces_std"}
STRUCTURE_ARRAYS = (
    _spec("structure_id", TEXT, "name of the structure in its source"),
    _spec("formula", TEXT, "reduced chemical formula"),
    _spec("n_atoms", "int32", "number of atoms", "1"),
    _spec("volume", "float64", "volume of the cell; NaN unless periodic in three directions", "angstrom^3"),
    ArraySpec("status", (STRUCTURE,), "uint8", {"description": "how scoring went", **flags(STATUS_MEANINGS)}),
    _spec("source", TEXT, "file that the structure came from"),
    _spec("source_index", "int64", "place in that file, from 0", "1"),
)


@dataclass(frozen=True, slots=True)
class ScoreLimits:
    """Which structures are not scored, and which scores are doubtful.

    Attributes:
        max_edges: Structures with more edges in the graph store are too large.
        min_distance: Angstrom; where two atoms are closer, the model extrapolates. None looks at no distances.
    """

    max_edges: int = MAX_SCORED_EDGES
    min_distance: float | None = None


def score_arrays(outputs: Sequence[OutputSpec]) -> tuple[ArraySpec, ...]:
    """Arrays of the scores of a model; outputs per atom, but for the forces, have no place in them."""
    names = {spec.name for spec in outputs}
    known = [spec for spec in (*ENERGY_ARRAYS, *SPREAD_ARRAYS) if SOURCES.get(spec.name, spec.name) in names]
    members = [_members_array(spec.shape) for spec in outputs if spec.name == MEMBERS_ARRAY]
    return (*known, *members, *(_property_array(spec) for spec in property_outputs(outputs)), *STRUCTURE_ARRAYS)


def property_outputs(outputs: Sequence[OutputSpec]) -> list[OutputSpec]:
    """Outputs that become arrays of their own as they stand."""
    return [spec for spec in outputs if spec.per == "structure" and spec.name not in _KNOWN]


def _members_array(shape: tuple[int, ...]) -> ArraySpec:
    attrs = {"description": "total energy, by each member of the ensemble", "units": "eV"}
    return ArraySpec(MEMBERS_ARRAY, (STRUCTURE, MEMBER), "float64", attrs, shape)


def _property_array(spec: OutputSpec) -> ArraySpec:
    description = spec.name.replace("_", " ") + ("" if spec.defined == "always" else f"; NaN but for {spec.defined}")
    dims = tensor_dims(STRUCTURE, spec.name, spec.shape)
    if "voigt" in dims:
        description += VOIGT_NOTE
    attrs = {"description": description, **({"units": spec.unit} if spec.unit else {})}
    return ArraySpec(spec.name, dims, "float64", attrs, spec.shape)


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


def formulas(block: GraphBlock) -> NDArray[np.str_]:
    """Reduced formulas, metals first."""
    # One number for each element of each structure: they sort by structure, then by element.
    found, counts = np.unique(block.atom_structure * _NUMBERS + block.atomic_number, return_counts=True)
    owner, numbers = np.divmod(found, _NUMBERS)
    begin = np.searchsorted(owner, np.arange(len(block)))
    counts = counts // np.gcd.reduceat(counts, begin)[owner] if len(block) else counts
    ends = [*begin[1:].tolist(), len(found)]
    every, of_each = numbers.tolist(), counts.tolist()
    pieces = zip(begin.tolist(), ends, strict=False)
    return np.array([formula_text(tuple(every[i:j]), tuple(of_each[i:j])) for i, j in pieces], dtype=np.str_)


def open_scores(path: str | Path) -> xr.Dataset:
    """Open a scores dataset.

    Raises:
        StoreError: Missing, unfinished, or no scores.
    """
    open_root(path, SCORES_SCHEMA)
    scores: xr.Dataset = xr.open_zarr(path)
    return scores


def status_counts(status: NDArray[np.uint8]) -> dict[str, int]:
    """How many structures have which status."""
    counts = np.bincount(status, minlength=len(STATUS_MEANINGS))
    return {meaning: int(count) for meaning, count in zip(STATUS_MEANINGS, counts, strict=True)}
