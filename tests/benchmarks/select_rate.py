"""Seconds from a scores dataset of 257,000 rows (the size of the WBM set) to the best 100 structures as CIF files.

    python tests/benchmarks/select_rate.py [--folder DIR]

The crystals are those of mp_20_val.csv.gz (Materials Project), repeated, with random energies above the hull; DIR keeps
the dataset for later runs. The times include everything that the command line does after the start of Python: opening,
filtering, ranking, the columns that a selection adds, and writing. Prints the text of `select_rate.txt`.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.store.schema import STRUCTURE, TEXT, ArraySpec, flags
from equiscreen.screening import compare, select, to_parquet
from equiscreen.screening.chemistry.composition import formulas
from equiscreen.screening.dataset.scores import SCORES_SCHEMA, STATUS_MEANINGS, STRUCTURE_ARRAYS
from equiscreen.screening.dataset.subset import GraphSubset, Subset

ROWS = 257_000
TOP = 100
BLOCK = 8_192
GOAL = 5.0
DATA = Path(__file__).parents[2].parent / "shared" / "data" / "mp" / "mp_20_val.csv.gz"
FILTER = "energy_above_hull < 0.05 and n_atoms <= 20"


def make_dataset(folder: Path) -> Path:
    """Path of a scores dataset of `ROWS` crystals, which is made with its graph store unless the folder has it."""
    if (folder / "s.zarr").exists():
        return folder / "s.zarr"
    featurize(DATA, folder / "mp.zarr", cutoff=5.0, scheduler="threads", id_field="material_id")
    few = GraphStore(folder / "mp.zarr")
    rows = np.arange(ROWS) % len(few)
    subset = GraphSubset(folder / "graph_parts", folder / "g.zarr", few, folder / "g.zarr")
    for start in range(0, ROWS, BLOCK):
        subset.write(rows[start : start + BLOCK])
    subset.finish(ROWS)
    write_scores(folder, few, rows)
    return folder / "s.zarr"


def write_scores(folder: Path, few: GraphStore, rows: np.ndarray[Any, Any]) -> None:
    """Write scores with the columns of a hull."""
    graphs = GraphStore(folder / "g.zarr")
    rng = np.random.default_rng(0)
    block = few.block(0, len(few), labels=False)
    texts = np.array(formulas(block), dtype=np.dtypes.StringDType())
    specs = [spec for spec in STRUCTURE_ARRAYS if spec.name != "status"]
    specs.append(ArraySpec("status", (STRUCTURE,), "uint8", flags(STATUS_MEANINGS)))
    floats = ("energy", "energy_per_atom", "max_force", "energy_above_hull", "formation_energy_per_atom")
    specs += [ArraySpec(name, (STRUCTURE,), "float64") for name in floats]
    specs += [ArraySpec("decomposition", (STRUCTURE,), TEXT)]
    subset = Subset(folder / "score_parts", folder / "s.zarr", specs)
    for start in range(0, ROWS, BLOCK):
        some = rows[start : start + BLOCK]
        size = len(some)
        names = [f"wbm-{row}" for row in range(start, start + size)]
        arrays: dict[str, Any] = {
            "structure_id": np.array(names, dtype=np.dtypes.StringDType()),
            "formula": texts[some],
            "n_atoms": block.n_atoms[some],
            "volume": block.volume[some],
            "source": np.array(["mp_20_val.csv.gz"] * size, dtype=np.dtypes.StringDType()),
            "source_index": some,
            "status": (rng.random(size) < 0.01).astype(np.uint8),
            "decomposition": np.array(["0.5 Al2O3 (mp-1) + 0.5 NiO (mp-2)"] * size, dtype=np.dtypes.StringDType()),
        }
        subset.write({**arrays, **{name: rng.normal(0.1, 0.2, size) for name in floats}})
    stores = {"path": str(graphs.path), "store_hash": graphs.store_hash}
    subset.finish({"schema": SCORES_SCHEMA, "kind": "relaxed", "graph_store": stores, "model": {}})


def timed(label: str, work: Callable[[], Any]) -> float:
    """Run a function once, and print and return its seconds."""
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    print(f"{seconds:8.2f} s  {label}", flush=True)
    return seconds


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "numpy", "zarr", "moyopy", "SMACT"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, {packages}")
    with TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(exist_ok=True)
        scores = make_dataset(folder)
        known = folder / "mp.zarr"
        out = Path(scratch) / "out"
        print(f"{ROWS:,} rows, {FILTER}, the best {TOP}; one run each, the first in a new process")
        first = timed("CIF, all columns", lambda: select(scores, out / "a", FILTER, top=TOP, formats="cif"))
        timed("CIF and the selection's own stores", lambda: select(scores, out / "b", FILTER, top=TOP))
        timed(
            "one per chemical system, charge-neutral by SMACT",
            lambda: select(scores, out / "c", 'charge_neutral == "yes"', top=TOP, per_system=1, formats="cif"),
        )
        timed(
            "at most two per prototype",
            lambda: select(scores, out / "d", FILTER, top=TOP, per_prototype=2, formats="cif"),
        )
        timed(
            "Pareto fronts of two columns",
            lambda: select(scores, out / "e", pareto="energy_above_hull,max_force", top=TOP, formats="cif"),
        )
        timed(
            f"novelty against {len(GraphStore(known)):,} crystals",
            lambda: select(scores, out / "f", FILTER, top=TOP, known=known, formats="cif"),
        )
        timed("VASP input", lambda: select(scores, out / "g", FILTER, top=TOP, formats="vasp"))
        timed("all rows to parquet", lambda: to_parquet(scores, out / "s.parquet"))
        timed("all rows compared with themselves", lambda: compare(scores, scores))
    verdict = "met" if first <= GOAL else "missed"
    print(f"open, filter, rank, {TOP} CIFs: {first:.2f} s; the goal is {GOAL:.0f} s: {verdict}")


if __name__ == "__main__":
    main()
