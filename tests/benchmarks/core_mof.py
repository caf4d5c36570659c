"""Featurize the whole CoRE MOF database: 23,845 CIFs in three tar.xz archives, with up to thousands of atoms each.

    pip download --no-deps core-mof==2019.1
    python tests/benchmarks/core_mof.py core_mof-2019.1-py3-none-any.whl [--scratch FOLDER]

Prints the text of `core_mof.txt`. CoRE MOF: Chung et al., J. Chem. Eng. Data 64, 5985 (2019), CC-BY-4.0.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tarfile
import tempfile
import zipfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
from equiscreen.pipeline import GraphStore, featurize


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "gemmi", "numba", "zarr"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, {packages}", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        scratch = Path(name)
        with zipfile.ZipFile(arguments.wheel) as wheel:
            archives = sorted(member for member in wheel.namelist() if member.endswith(".tar.xz"))
            files = [Path(wheel.extract(member, scratch)) for member in archives]
        members = 0
        for file in files:
            with tarfile.open(file) as archive:
                members += sum(member.name.endswith(".cif") for member in archive)
        report = featurize(files, scratch / "mof.zarr")
        store = GraphStore(scratch / "mof.zarr")
        failed = pq.read_table(scratch / "mof.zarr" / "failures.parquet").num_rows
        print(str(report).removeprefix(f"{report.path}: "))
        print(
            f"{members:,} CIFs in the archives; {failed:,} rows in failures.parquet; cells of {store.n_atoms.min()} to "
            f"{store.n_atoms.max():,} atoms, {store.n_atoms.mean():,.0f} on average; {store.n_edges.sum():,} edges"
        )
        if report.read != members or report.failed != failed:
            sys.exit("not every file is accounted for")


if __name__ == "__main__":
    main()
