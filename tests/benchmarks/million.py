"""Generate and featurize a million candidates: rate, memory of the client, bytes per structure in the store.

    python tests/benchmarks/million.py DATA_FOLDER [--counts 100000 1000000] [--scratch FOLDER]

`equiscreen generate` makes the candidates by substituting ions in the crystals of mp_20_val.csv.gz. `equiscreen
featurize` runs as on the command line, with one worker per core; the memory of its main process, without the workers,
is sampled twice a second. Prints the text of `million.txt`.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from equiscreen.pipeline import GraphStore


def equiscreen(*arguments: object) -> list[str]:
    """An equiscreen command line."""
    return [sys.executable, "-m", "equiscreen", *map(str, arguments)]


def watched(command: list[str]) -> tuple[float, list[float]]:
    """Run time of a command in seconds, and samples of the resident memory of its main process in GB."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    memory = []
    while process.poll() is None:
        try:
            memory.append(psutil.Process(process.pid).memory_info().rss / 1e9)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.5)
    if process.wait():
        sys.exit(process.returncode)
    return time.perf_counter() - begin, memory


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "numba", "zarr", "distributed"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, {packages}", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        scratch = Path(name)
        prototypes = scratch / "prototypes.zarr"
        subprocess.run(
            equiscreen("featurize", arguments.data / "mp/mp_20_val.csv.gz", "--out", prototypes),
            check=True,
            capture_output=True,
        )
        for count in arguments.counts:
            source, out = scratch / f"{count}.parquet", scratch / f"{count}.zarr"
            generate = equiscreen("generate", prototypes, "--out", source, "--count", count, "--seed", 0)
            subprocess.run(generate, check=True, stderr=subprocess.DEVNULL)
            seconds, memory = watched(equiscreen("featurize", source, "--out", out))
            store = GraphStore(out)
            size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
            atoms, edges = np.mean(store.n_atoms), np.mean(store.n_edges)
            halves = max(memory[: len(memory) // 2]), max(memory[len(memory) // 2 :])
            print(
                f"{count:,} candidates: {count / seconds:,.0f} structures/s including start and shutdown; client at "
                f"most {halves[0]:.2f} GB in the first half, {halves[1]:.2f} GB in the second; "
                f"{size / len(store):,.0f} bytes/structure of {atoms:.1f} atoms and {edges:.0f} edges, "
                f"{10 * size / store.n_atoms.sum():,.0f} for 10 atoms",
                flush=True,
            )


if __name__ == "__main__":
    main()
