"""Scores: what a screen leaves, a labelled dataset with one row per structure."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from ase.data import chemical_symbols
from ase.formula import Formula
from numpy.typing import NDArray

from ..pipeline.block import GraphBlock
from ..pipeline.potential import Evaluation, Potential
from ..pipeline.schema import CARTESIAN, CARTESIAN_2, STRUCTURE, TEXT, ArraySpec, flags
from ..pipeline.store import open_root

SCORES_SCHEMA = "equiscreen-scores/1"
STATUS_MEANINGS = ("ok", "unknown_element", "not_finite")
OK, UNKNOWN_ELEMENT, NOT_FINITE = range(len(STATUS_MEANINGS))
COORDINATES = ("structure_id", "formula", "n_atoms", "volume", "status", "source", "source_index")


def _spec(name: str, dtype: str, description: str, units: str = "", *more_dims: str) -> ArraySpec:
    attrs = {"description": description, **({"units": units} if units else {})}
    return ArraySpec(name, (STRUCTURE, *more_dims), dtype, attrs)


SCORE_ARRAYS = (
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
    _spec("structure_id", TEXT, "name of the structure in its source"),
    _spec("formula", TEXT, "reduced chemical formula"),
    _spec("n_atoms", "int32", "number of atoms", "1"),
    _spec("volume", "float64", "volume of the cell; NaN unless periodic in three directions", "angstrom^3"),
    ArraySpec("status", (STRUCTURE,), "uint8", {"description": "how scoring went", **flags(STATUS_MEANINGS)}),
    _spec("source", TEXT, "file that the structure came from"),
    _spec("source_index", "int64", "place in that file, from 0", "1"),
)


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
    energy, max_force, stress = np.full(n, np.nan), np.full(n, np.nan), np.full((n, 3, 3), np.nan)
    status = np.where(all_known, OK, UNKNOWN_ELEMENT).astype(np.uint8)
    if len(rows):
        part = block.take(rows)
        result: Evaluation = potential.evaluate(part)
        energy[rows], stress[rows] = result.energy, result.stress
        max_force[rows] = np.maximum.reduceat(np.linalg.norm(result.forces, axis=1), part.atom_start)
        status[rows[~np.isfinite(energy[rows]) | ~np.isfinite(max_force[rows])]] = NOT_FINITE
    for values in (energy, max_force, stress):
        values[status == NOT_FINITE] = np.nan
    return {
        "energy": energy,
        "energy_per_atom": energy / block.n_atoms,
        "max_force": max_force,
        "stress": stress,
        "formula": formulas(block),
        "n_atoms": block.n_atoms,
        "volume": np.where(block.pbc.all(axis=1), block.volume, np.nan),
        "status": status,
    }


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
