"""Scores datasets for tests of selections: real crystals with the columns of a hull."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from equiscreen.pipeline import GraphStore, Structure, featurize
from equiscreen.pipeline.store.schema import STRUCTURE, TEXT, ArraySpec, flags
from equiscreen.screening.chemistry.composition import formulas
from equiscreen.screening.dataset.scores import SCORES_SCHEMA, STRUCTURE_ARRAYS
from equiscreen.screening.dataset.subset import Subset

VALIDATION = "mp/mp_20_val.csv.gz"
# Statuses of a relaxation, in a different order from those of a screen.
STATUSES = ("ok", "unknown_element", "not_finite", "not_converged", "exploded", "too_large", "extrapolating")


def graphs_of_mp(data: Path, folder: Path, count: int) -> GraphStore:
    """Make a graph store of the first crystals of the validation set, with their ids."""
    with gzip.open(data / VALIDATION, "rt", newline="") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(count), strict=False)]
    with (folder / "crystals.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "cif"])
        table.writerows((row["material_id"], row["cif"]) for row in rows)
    return featurized(folder / "crystals.csv", folder / "g.zarr")


def featurized(source: Path, out: Path) -> GraphStore:
    featurize(source, out, cutoff=4.0, scheduler="threads", id_field="id")
    return GraphStore(out)


def structures_of(graphs: GraphStore) -> list[Structure]:
    block = graphs.block(0, len(graphs), labels=False)
    return [block.structure(row) for row in range(len(graphs))]


def scored_columns(graphs: GraphStore, seed: int = 0) -> dict[str, Any]:
    """Make columns of a hull with random numbers; one structure in twenty has failed."""
    size = len(graphs)
    rng = np.random.default_rng(seed)
    block = graphs.block(0, size, labels=False)
    failed = rng.random(size) < 0.05
    above = np.where(failed, np.nan, np.abs(rng.normal(0.05, 0.1, size)))
    energy = np.where(failed, np.nan, rng.normal(-5.0, 1.0, size) * block.n_atoms)
    return {
        "structure_id": graphs.column("structure_id").tolist(),
        "source": graphs.column("source").tolist(),
        "source_index": graphs.column("source_index"),
        "formula": formulas(block).tolist(),
        "n_atoms": block.n_atoms,
        "volume": block.volume,
        "status": np.where(failed, rng.integers(1, len(STATUSES), size), 0).astype(np.uint8),
        "energy": energy,
        "energy_per_atom": energy / block.n_atoms,
        "energy_std": np.abs(rng.normal(0.0, 0.1, size)),
        "max_force": np.abs(rng.normal(0.0, 1.0, size)),
        "stress": rng.normal(size=(size, 3, 3)),
        "energy_above_hull": above,
        "energy_above_hull_std": np.abs(rng.normal(0.0, 0.05, size)),
    }


def write_dataset(
    path: Path, graphs: GraphStore, columns: Mapping[str, Any], attrs: Mapping[str, Any] | None = None
) -> Path:
    """Write a scores dataset of the first structures of a store."""
    known = {spec.name: spec for spec in STRUCTURE_ARRAYS}
    known["status"] = ArraySpec("status", (STRUCTURE,), "uint8", flags(STATUSES))
    known["stress"] = ArraySpec("stress", (STRUCTURE, "cartesian", "cartesian_2"), "float64")
    for name in ("energy_per_atom", "energy_above_hull"):
        known[name] = ArraySpec(name, (STRUCTURE,), "float64", {"units": "eV/atom"})
    specs = []
    arrays = {}
    for name, values in columns.items():
        text = isinstance(values, list)
        specs.append(known.get(name, ArraySpec(name, (STRUCTURE,), TEXT if text else str(values.dtype))))
        arrays[name] = np.array(values, dtype=np.dtypes.StringDType()) if text else values
    subset = Subset(path.with_suffix(".parts"), path, specs)
    subset.write(arrays)
    subset.finish(
        {
            "schema": SCORES_SCHEMA,
            "kind": "relaxed",
            "graph_store": {"path": str(graphs.path), "store_hash": graphs.store_hash},
            "model": {"energy_scheme": "mp-uncorrected"},
            **(attrs or {}),
        }
    )
    return path


def ids(found: Any) -> Sequence[str]:
    return [str(name) for name in found["structure_id"].values.tolist()]
