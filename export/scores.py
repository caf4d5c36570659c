"""Scores: what a screen leaves, a labelled dataset with one row per structure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from ase.data import chemical_symbols
from ase.formula import Formula
from numpy.typing import NDArray

from ..pipeline.block import GraphBlock
from ..pipeline.potential import Evaluation, OutputSpec, Potential
from ..pipeline.schema import CARTESIAN, CARTESIAN_2, STRUCTURE, TEXT, VOIGT_NOTE, ArraySpec, flags, tensor_dims
from ..pipeline.store import open_root

SCORES_SCHEMA = "equiscreen-scores/1"
STATUS_MEANINGS = ("ok", "unknown_element", "not_finite")
OK, UNKNOWN_ELEMENT, NOT_FINITE = range(len(STATUS_MEANINGS))
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


def score_arrays(outputs: Sequence[OutputSpec]) -> tuple[ArraySpec, ...]:
    """Arrays of the scores of a model; outputs per atom, but for the forces, have no place in them."""
    names = {spec.name for spec in outputs}
    known = [spec for spec in (*ENERGY_ARRAYS, *SPREAD_ARRAYS) if SOURCES.get(spec.name, spec.name) in names]
    return (*known, *(_property_array(spec) for spec in property_outputs(outputs)), *STRUCTURE_ARRAYS)


def property_outputs(outputs: Sequence[OutputSpec]) -> list[OutputSpec]:
    """Outputs that become arrays of their own as they stand."""
    known = {spec.name for spec in (*ENERGY_ARRAYS, *SPREAD_ARRAYS)} | {"stress_std"}
    return [spec for spec in outputs if spec.per == "structure" and spec.name not in known]


def _property_array(spec: OutputSpec) -> ArraySpec:
    description = spec.name.replace("_", " ") + ("" if spec.defined == "always" else f"; NaN but for {spec.defined}")
    dims = tensor_dims(STRUCTURE, spec.name, spec.shape)
    if "voigt" in dims:
        description += VOIGT_NOTE
    attrs = {"description": description, **({"units": spec.unit} if spec.unit else {})}
    return ArraySpec(spec.name, dims, "float64", attrs, spec.shape)


def score_block(block: GraphBlock, potential: Potential) -> dict[str, NDArray[Any]]:
    """Rows of the scores for a block; NaN where the status is not ok.

    Args:
        block: Any structures.
        potential: Evaluates those of its elements.
    """
    n = len(block)
    known = np.isin(block.atomic_number, potential.elements)
    all_known = np.ones(n, dtype=bool)
    all_known[block.atom_structure[~known]] = False
    rows = np.flatnonzero(all_known)
    status = np.where(all_known, OK, UNKNOWN_ELEMENT).astype(np.uint8)
    arrays: dict[str, NDArray[Any]] = {
        spec.name: np.full(spec.shape(n), np.nan) for spec in score_arrays(potential.outputs) if spec.dtype == "float64"
    }
    wanted = [spec for spec in property_outputs(potential.outputs) if spec.defined == "always"]
    checked = [arrays[name] for name in ("energy", "max_force", *(spec.name for spec in wanted)) if name in arrays]

    def score(some: NDArray[np.int64]) -> NDArray[np.int64]:
        """Fill in these rows; returns those that are not finite."""
        part = block.take(some)
        for name, values in _scored(part, potential.evaluate(part), potential.outputs).items():
            arrays[name][some] = values
        finite = np.all([np.isfinite(values[some]).reshape(len(some), -1).all(axis=1) for values in checked], axis=0)
        return np.asarray(some[~finite], dtype=np.int64)

    if len(rows):
        # Energies are a product of matrices, in which one NaN reaches all structures of a batch: each is tried alone.
        again = [score(np.array([row])) for row in score(rows)]
        status[np.concatenate([rows[:0], *again])] = NOT_FINITE
    for values in arrays.values():
        values[status == NOT_FINITE] = np.nan
    return {
        **arrays,
        "formula": formulas(block),
        "n_atoms": block.n_atoms,
        "volume": np.where(block.pbc.all(axis=1), block.volume, np.nan),
        "status": status,
    }


def _scored(block: GraphBlock, found: Evaluation, outputs: Sequence[OutputSpec]) -> dict[str, NDArray[np.float64]]:
    """What the scores hold of an evaluation."""
    values = found.arrays()
    out = {}
    for name in (spec.name for spec in score_arrays(outputs) if spec.name in values or spec.name in SOURCES):
        value = values[SOURCES.get(name, name)]
        if name == "energy_per_atom":
            value = value / block.n_atoms
        elif name.startswith("max_force"):
            value = np.maximum.reduceat(np.linalg.norm(value, axis=1), block.atom_start)
        out[name] = value
    return out


def formulas(block: GraphBlock) -> NDArray[np.str_]:
    """Reduced formulas, metals first."""
    out = []
    for start, count in zip(block.atom_start, block.n_atoms, strict=True):
        numbers, counts = np.unique(block.atomic_number[start : start + count], return_counts=True)
        divisor = np.gcd.reduce(counts)
        out.append(_formula(tuple(numbers.tolist()), tuple((counts // divisor).tolist())))
    return np.array(out, dtype=np.str_)


@lru_cache(maxsize=1 << 16)
def _formula(numbers: tuple[int, ...], counts: tuple[int, ...]) -> str:
    symbols = {chemical_symbols[number]: count for number, count in zip(numbers, counts, strict=True)}
    return f"{Formula.from_dict(symbols):metal}"


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
