"""Structures per second of `featurize` on one core, from a file to a finished store, and of a loop over pymatgen.

    python tests/benchmarks/featurize_rate.py DATA_FOLDER [--rows 100000] [--peer-rows 5000] [--scratch FOLDER]

The crystals of mp_20_val.csv.gz are repeated as often as needed; every copy has a different strain, so that none is a
duplicate. equiscreen reads, validates, finds all neighbours within 5 angstrom, hashes, writes and compacts, all in one
process on one core. The loop is what a careful user would write: `Structure.from_str`, pymatgen's compiled neighbour
list, and a Zarr write every 1,000 structures. Prints the text of `featurize_rate.txt`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import platform
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import zarr
from equiscreen.pipeline import featurize
from pymatgen.core import Structure

CUTOFF = 5.0
WRITE_EVERY = 1000
_EDGE = re.compile(r"^(_cell_length_[abc]\s+)(\S+)", re.MULTILINE)


def strained_rows(source: Path, count: int) -> Iterator[dict[str, str]]:
    """Rows of a CSV with a CIF column, repeated `count` times with longer cells each time."""
    for copy in range(count):
        with gzip.open(source, "rt", newline="") as file:
            for place, row in enumerate(csv.DictReader(file)):
                factor = 1 + 1e-3 * copy + 1e-8 * place
                cif = _EDGE.sub(lambda m, f=factor: f"{m[1]}{float(m[2]) * f:.8f}", row["cif"])  # type: ignore[misc]
                yield {"material_id": f"{row['material_id']}-{copy}", "cif": cif}


def write_rows(source: Path, out: Path, count: int) -> None:
    """Write the first `count` strained rows as CSV."""
    with gzip.open(out, "wt", newline="", compresslevel=1) as file:
        writer = csv.DictWriter(file, ["material_id", "cif"])
        writer.writeheader()
        writer.writerows(islice(strained_rows(source, count), count))


def pymatgen_loop(source: Path, out: Path, rows: int) -> tuple[float, int]:
    """Run time in seconds, and number of edges, of the loop that a careful user would write."""
    root = zarr.open_group(out, mode="w")
    kinds = {"lattice": ("f8", (3, 3)), "number": ("u1", ()), "frac": ("f8", (3,)), "i": ("i4", ()), "j": ("i4", ())}
    kinds |= {"image": ("i2", (3,)), "n_atoms": ("i4", ()), "n_edges": ("i4", ())}
    arrays = {
        name: root.create_array(name, shape=(0, *inner), dtype=dtype, chunks=(65536, *inner))
        for name, (dtype, inner) in kinds.items()
    }
    waiting: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
    edges = 0

    def write() -> None:
        for name, values in waiting.items():
            arrays[name].append(np.concatenate(values).astype(kinds[name][0]))
            values.clear()

    begin = time.perf_counter()
    with gzip.open(source, "rt", newline="") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for done, row in enumerate(islice(csv.DictReader(file), rows), start=1):
            structure = Structure.from_str(row["cif"], "cif")
            i, j, image, _ = structure.get_neighbor_list(CUTOFF)
            found = {"lattice": structure.lattice.matrix[None], "number": structure.atomic_numbers}
            found |= {"frac": structure.frac_coords, "i": i, "j": j, "image": image}
            found |= {"n_atoms": [len(structure)], "n_edges": [len(i)]}
            for name, values in found.items():
                waiting[name].append(np.asarray(values))
            edges += len(i)
            if done % WRITE_EVERY == 0:
                write()
        if waiting["n_atoms"]:
            write()
    return time.perf_counter() - begin, edges


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--peer-rows", type=int, default=5_000)
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # everything below, threads included, runs on one core
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("equiscreen", "pymatgen-core", "gemmi", "numba", "zarr")
    )
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, {packages}")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        scratch = Path(name)
        source = scratch / "rows.csv.gz"
        write_rows(arguments.data / "mp/mp_20_val.csv.gz", source, arguments.rows)
        theirs, their_edges = pymatgen_loop(source, scratch / "peer.zarr", arguments.peer_rows)
        featurize(source, scratch / "warm.zarr", scheduler="threads", limit=100)  # loads the compiled code
        begin = time.perf_counter()
        report = featurize(source, scratch / "ours.zarr", cutoff=CUTOFF, scheduler="threads")
        ours = time.perf_counter() - begin
        edges = int(zarr.open_array(scratch / "ours.zarr" / "n_edges", mode="r")[: arguments.peer_rows].sum())
    our_rate, their_rate = report.read / ours, arguments.peer_rows / theirs
    print(report.__str__().split(": ", 1)[1])
    print(f"equiscreen  {our_rate:8,.0f} structures/s, {edges:,} edges in the first {arguments.peer_rows:,}")
    print(f"pymatgen    {their_rate:8,.0f} structures/s, {their_edges:,} edges in the same")
    print(f"ratio       {our_rate / their_rate:8.1f}")


if __name__ == "__main__":
    main()
