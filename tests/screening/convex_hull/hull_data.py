"""Scores datasets for the tests of hulls: structures of the Materials Project with given energies."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.graphs.offsets import offsets_of
from equiscreen.pipeline.runs.parts import PartKey, write_part
from equiscreen.pipeline.store.compaction import Compaction, create_arrays, finish_store, shard_tasks, write_shard
from equiscreen.pipeline.store.row_sources import PartRows
from equiscreen.pipeline.store.schema import STRUCTURE, ArraySpec, flags
from equiscreen.screening.chemistry.composition import formulas
from equiscreen.screening.dataset.scores import SCORES_SCHEMA, STATUS_MEANINGS, STRUCTURE_ARRAYS

VALIDATION = "mp/mp_20_val.csv.gz"
ELEMENTS = "mp/mp_elemental_reference_entries.json.gz"


@lru_cache(maxsize=1)
def rows_of_mp(data: Path) -> list[dict[str, str]]:
    with gzip.open(data / VALIDATION, "rt", newline="") as file:
        return list(csv.DictReader(file))


def elements_of_mp(data: Path) -> dict[str, float]:
    """Energy of each element (eV/atom)."""
    with gzip.open(data / ELEMENTS, "rt") as file:
        entries = json.load(file)
    return {symbol: entry["energy"] / sum(entry["composition"].values()) for symbol, entry in entries.items()}


def graphs_of(rows: Sequence[Mapping[str, str]], folder: Path) -> GraphStore:
    """A graph store of crystals, in the given order and with their ids."""
    with (folder / "crystals.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "cif"])
        table.writerows((row["material_id"], row["cif"]) for row in rows)
    featurize(folder / "crystals.csv", folder / "g.zarr", cutoff=5.0, scheduler="threads", id_field="id")
    return GraphStore(folder / "g.zarr")


def write_scores(
    path: Path,
    graphs: GraphStore,
    energy: np.ndarray[Any, Any],
    *,
    scheme: str = "mp-uncorrected",
    relaxed: bool = True,
    status: Sequence[int] | None = None,
    meanings: tuple[str, ...] = STATUS_MEANINGS,
    members: np.ndarray[Any, Any] | None = None,
    ids: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    kind: str | None = None,
    extra: Sequence[tuple[ArraySpec, np.ndarray[Any, Any]]] = (),
) -> Path:
    """Write a scores dataset with given total energies (eV) of the first structures of a graph store.

    It has the `extra` arrays, too.
    """
    size = len(energy)
    block = graphs.block(0, size, labels=False)
    specs = [spec for spec in STRUCTURE_ARRAYS if spec.name != "status"]
    specs += [ArraySpec("status", (STRUCTURE,), "uint8", flags(meanings))]
    specs += [ArraySpec(name, (STRUCTURE,), "float64") for name in ("energy", "energy_per_atom")]
    arrays = {
        "structure_id": graphs.column("structure_id", 0, size).tolist() if ids is None else list(ids),
        "source": graphs.column("source", 0, size).tolist(),
        "source_index": graphs.column("source_index", 0, size),
        "formula": formulas(block).tolist() if names is None else list(names),
        "n_atoms": block.n_atoms,
        "volume": block.volume,
        "status": np.zeros(size, np.uint8) if status is None else np.array(status, dtype=np.uint8),
        "energy": energy,
        "energy_per_atom": energy / block.n_atoms,
    }
    if members is not None:
        arrays["energy_members"] = members
        specs.append(ArraySpec("energy_members", (STRUCTURE, "member"), "float64", {}, (members.shape[1],)))
    arrays |= {spec.name: values for spec, values in extra}
    specs += [spec for spec, _ in extra]
    folder = path.with_suffix(".parts")
    folder.mkdir()
    manifest = write_part(folder, PartKey(0, 0, size), arrays, {"read": size}, {})
    rows = offsets_of([size])
    work = Compaction(path, tuple(specs), (PartRows(folder, manifest.key, {}),), {STRUCTURE: rows}, None, None, rows)
    create_arrays(work)
    digests = {key: value for task in shard_tasks(work) for key, value in write_shard(task).items()}
    attrs: dict[str, Any] = {
        "schema": SCORES_SCHEMA,
        "graph_store": {"path": str(graphs.path), "store_hash": graphs.store_hash},
        "model": {"energy_scheme": scheme, "weights_sha256": "w"},
        **({"kind": kind or "relaxed"} if relaxed else {}),
    }
    finish_store(path, digests, attrs)
    return path
