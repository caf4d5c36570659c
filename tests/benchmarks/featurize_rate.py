"""Structures per second of `featurize`, in one process, beside a loop with pymatgen that finds the same neighbours.

    python tests/benchmarks/featurize_rate.py DATA_FOLDER [--rows 2000]

Both read the first rows of mp_20_val.csv.gz, parse the CIFs and find all neighbours within 5 angstrom. equiscreen also
validates, hashes and writes its part. Prints what `featurize_rate.txt` keeps.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import platform
import tempfile
import time
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path

from equiscreen.pipeline import LabelMapping, ReadOptions
from equiscreen.pipeline.partition import FeaturizeSettings, FeaturizeTask, featurize_partition
from equiscreen.pipeline.sources import find_files, make_plan
from pymatgen.core import Structure

CUTOFF = 5.0


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "pymatgen", "gemmi", "vesin"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, {packages}")
    source = arguments.data / "mp/mp_20_val.csv.gz"

    plan = make_plan(find_files([source]), arguments.rows)
    settings = FeaturizeSettings(CUTOFF, LabelMapping(), ReadOptions(), None)
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.perf_counter()
        receipts = [featurize_partition(FeaturizeTask(p, settings, Path(scratch))) for p in plan.partitions]
        ours = time.perf_counter() - begin
    edges = sum(receipt.counts["edge"] for receipt in receipts)

    begin = time.perf_counter()
    theirs_edges = 0
    with gzip.open(source, "rt", newline="") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in islice(csv.DictReader(file), arguments.rows):
            theirs_edges += len(Structure.from_str(row["cif"], "cif").get_neighbor_list(CUTOFF)[0])
    theirs = time.perf_counter() - begin

    print(
        f"equiscreen  {arguments.rows / ours:8,.0f} structures/s, {edges:,} edges (read, validate, graph, hash, write)"
    )
    print(f"pymatgen    {arguments.rows / theirs:8,.0f} structures/s, {theirs_edges:,} edges (read, graph)")
    print(f"ratio       {theirs / ours:8.1f}")


if __name__ == "__main__":
    main()
