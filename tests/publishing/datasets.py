"""Scores datasets with the columns of a hull, and ids that are hostile to web pages and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.store.schema import STRUCTURE, ArraySpec, flags
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening.chemistry.composition import formulas
from equiscreen.screening.dataset.scores import SCORES_SCHEMA, STATUS_MEANINGS, STRUCTURE_ARRAYS
from equiscreen.screening.dataset.subset import Subset
from numpy.typing import NDArray

HOSTILE = ("<script>alert(1)</script>", "../../etc/passwd", '"><img src=x onerror=alert(2)>', "=1+1", "a/b c\n%2e")
# A folder of this machine in the attributes, which must not be published.
PRIVATE = "/home/somebody/private"
ALLOYS = (13, 29, 79)
_BLOCK = 8_192
_FLOATS = {
    "energy_per_atom": "eV/atom",
    "max_force": "eV/angstrom",
    "energy_above_hull": "eV/atom",
    "formation_energy_per_atom": "eV/atom",
}


def write_dataset(folder: Path, count: int, seed: int = 0) -> Path:
    """Write scores of random alloys with their graph store; the first ids are hostile."""
    images = []
    for place, structure in enumerate(probe_structures(ALLOYS, count, seed)):
        atoms = structure.to_ase()
        atoms.info["name"] = f"c{place}"
        images.append(atoms)
    ase.io.write(folder / "c.extxyz", images, format="extxyz")
    featurize(folder / "c.extxyz", folder / "g.zarr", cutoff=4.0, scheduler="threads", id_field="name")
    graphs = GraphStore(folder / "g.zarr")
    block = graphs.block(0, len(graphs), labels=False)
    ids = [*HOSTILE, *graphs.column("structure_id").tolist()[len(HOSTILE) :]][: len(graphs)]
    stores = {"path": str(folder / "g.zarr"), "store_hash": graphs.store_hash}
    write_scores(folder / "s.zarr", ids, formulas(block).tolist(), block.n_atoms, {"graph_store": stores}, seed)
    return folder / "s.zarr"


def write_scores(
    path: Path, ids: Sequence[str], texts: Sequence[str], n_atoms: NDArray[Any], attrs: dict[str, Any], seed: int = 0
) -> None:
    """Write scores with random energies, a few percent of which are missing."""
    rng = np.random.default_rng(seed)
    specs = [
        *(spec for spec in STRUCTURE_ARRAYS if spec.name != "status"),
        ArraySpec("status", (STRUCTURE,), "uint8", flags(STATUS_MEANINGS)),
        *(ArraySpec(name, (STRUCTURE,), "float64", {"units": unit}) for name, unit in _FLOATS.items()),
        ArraySpec("stress", (STRUCTURE, "cartesian", "cartesian_2"), "float64", {"units": "eV/angstrom^3"}),
    ]
    subset = Subset(path.with_suffix(".parts"), path, specs)
    for start in range(0, len(ids), _BLOCK):
        stop = min(start + _BLOCK, len(ids))
        size = stop - start
        floats = {name: rng.normal(0.1, 0.2, size) for name in _FLOATS}
        floats["energy_above_hull"][rng.random(size) < 0.05] = np.nan
        subset.write(
            {
                "structure_id": _text(ids[start:stop]),
                "formula": _text(texts[start:stop]),
                "n_atoms": np.asarray(n_atoms[start:stop], dtype=np.int32),
                "volume": rng.normal(100.0, 9.0, size),
                "source": _text(["c.extxyz"] * size),
                "source_index": np.arange(start, stop),
                "status": np.where(rng.random(size) < 0.05, 4, 0).astype(np.uint8),
                "stress": rng.normal(size=(size, 3, 3)),
                **floats,
            }
        )
    command = f"equiscreen screen {PRIVATE}/c.extxyz --out=s3://me:secret@host/s.zarr"
    facts = {"schema": SCORES_SCHEMA, "kind": "relaxed", "model": {"path": f"{PRIVATE}/7net-0.onnx"}}
    subset.finish({**facts, "command": command, **attrs})


def _text(values: Sequence[str]) -> NDArray[Any]:
    return np.array(list(values), dtype=np.dtypes.StringDType())
