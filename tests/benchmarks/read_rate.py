"""Structures per second that one process on one core reads in random order: blocks of graphs, and padded tables.

    python tests/benchmarks/read_rate.py DATA_FOLDER [--structures 100000] [--scratch FOLDER]

The store holds copies of the crystals of mp_20_val and mpts_52_val, each copy with different cell lengths (by up to 2
%), with a cutoff of 5 angstrom. For comparison, the same structures are read one by one, and from a format in which
training sets of graphs are often kept: one pickled dict of arrays per structure (positions, edge_index int64[2, n],
cell offsets) in LMDB. All files are in the page cache. If `zarrs` is installed, the same reading is timed with its
codec pipeline, and damaged chunks are read with both. Each rate is the best of five passes, since other work on the
machine can only slow a pass down. Prints the text of `read_rate.txt`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import itertools
import os
import pickle
import platform
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import zarr
from equiscreen.pipeline import GraphBlock, GraphStore, LabelMapping, featurize, neighbor_table
from equiscreen.pipeline.errors import StoreError
from equiscreen.pipeline.store.epoch_reader import EpochReader

CUTOFF = 5.0
STRAIN = 0.02
BATCH = 64
PASSES = 5
ONE_BY_ONE, IN_LMDB, FLIPS = 300, 20_000, 200
SOURCES = ("mp/mp_20_val.csv.gz", "mp/mpts_52_val.csv.gz")
ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
_LENGTH = re.compile(r"(_cell_length_[abc]\s+)([0-9.]+)")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--structures", type=int, default=100_000)
    parser.add_argument("--scratch", type=Path, help="folder in which to keep the store for later runs")
    arguments = parser.parse_args()
    names = ("equiscreen", "zarr", "numcodecs", "numba", "numpy", "lmdb")
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, one core of {os.cpu_count()}, "
        f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in names)}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        scratch = arguments.scratch or Path(temporary)
        scratch.mkdir(exist_ok=True)
        store = make_store(arguments.data, scratch, arguments.structures)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        measure(store, arguments.data, Path(temporary))


def make_store(data: Path, scratch: Path, structures: int) -> Path:
    """Featurize strained copies of the crystals, unless the store exists."""
    store = scratch / f"{structures}.zarr"
    if not store.exists():
        source = scratch / "strained.csv"
        rng = np.random.default_rng(0)
        with source.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("material_id", "cif", "energy"))
            for row, copy in itertools.islice(crystals(data), structures):
                factors = iter(1 + rng.uniform(-STRAIN, STRAIN, 3) * (copy > 0))
                cif = _LENGTH.sub(lambda match, f=factors: f"{match[1]}{float(match[2]) * next(f):.8f}", row["cif"])
                writer.writerow((f"{row['material_id']}-{copy}", cif, row["formation_energy_per_atom"]))
        labels = LabelMapping().with_inline(["energy=energy[eV]"])
        featurize(source, store, cutoff=CUTOFF, labels=labels)
    return store


def crystals(data: Path) -> Iterator[tuple[dict[str, str], int]]:
    """Yield the rows of the sources endlessly, each with the number of the copy."""
    for copy in itertools.count():
        for name in SOURCES:
            with gzip.open(data / name, "rt", newline="") as file:
                yield from ((row, copy) for row in csv.DictReader(file))


def measure(store: Path, data: Path, scratch: Path) -> None:
    """Print all rates."""
    graphs = GraphStore(store)
    n = len(graphs)
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    print(
        f"{n:,} structures, {graphs.n_atoms.mean():.1f} atoms and {graphs.n_edges.mean():.0f} edges each, "
        f"{size / n:.0f} bytes each on disk"
    )
    neighbor_table(graphs.block(0, 1), CUTOFF, np.float64)  # compiles, or loads the compiled code
    neighbor_table(graphs.block(0, 1), CUTOFF, np.float32)

    before = peak_memory()
    plain = rate(lambda epoch: blocks(graphs, epoch, labels=()))
    peak = peak_memory() - before
    single = rate(lambda epoch: one_by_one(graphs, epoch))
    print(f"one by one (store.block)       {single:10,.0f} structures/s")
    pickled = rate(reader_of_lmdb(graphs, scratch))
    print(f"pickled dicts in LMDB, joined  {pickled:10,.0f} structures/s, {lmdb_size(scratch):.0f} bytes each on disk")
    print(f"shuffled blocks                {plain:10,.0f} structures/s, {plain / single:.0f} x one by one, ", end="")
    print(f"{plain / pickled:.1f} x LMDB; {peak:.0f} MB of memory")
    labelled = rate(lambda epoch: blocks(graphs, epoch, labels=("energy",)))
    print(f"shuffled blocks with energies  {labelled:10,.0f} structures/s")
    for dtype in (np.float64, np.float32):
        tabled = rate(lambda epoch, dtype=dtype: tables(graphs, epoch, dtype=dtype))
        print(f"padded tables of {BATCH}, {dtype.__name__} {tabled:10,.0f} structures/s, from store to table")
    if importlib.util.find_spec("zarrs"):
        measure_zarrs(store, plain, data, scratch)


def rate(one_pass: Callable[[int], int]) -> float:
    """Structures per second in the best of `PASSES` passes."""
    rates = []
    for epoch in range(PASSES):
        begin = time.perf_counter()
        count = one_pass(epoch)
        rates.append(count / (time.perf_counter() - begin))
    return max(rates)


def peak_memory() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def blocks(graphs: GraphStore, epoch: int, labels: tuple[str, ...]) -> int:
    """Read all structures, shuffled, in blocks of 1024; returns their number."""
    return sum(len(rows) for rows in EpochReader([graphs], shuffle=(0, epoch), labels=labels).blocks(1024))


def tables(graphs: GraphStore, epoch: int, dtype: type[np.floating] = np.float64) -> int:
    """Read shuffled batches of structures of similar size, and lay each out as a table; returns the number read."""
    count = 0
    batches = EpochReader([graphs], shuffle=(0, epoch), labels=("energy",)).batches(structures=BATCH)
    for rows in batches:
        neighbor_table(rows.block, CUTOFF, dtype)
        count += len(rows)
    return count


def one_by_one(graphs: GraphStore, epoch: int) -> int:
    """Read some structures one by one in random order; returns their number."""
    for row in np.random.default_rng(epoch).permutation(len(graphs))[:ONE_BY_ONE].tolist():
        graphs.block(row, row + 1, labels=False)
    return ONE_BY_ONE


def reader_of_lmdb(graphs: GraphStore, scratch: Path) -> Callable[[int], int]:
    """Write structures as pickled dicts; returns a function that reads them in random order and joins each batch."""
    count = min(IN_LMDB, len(graphs))
    rows = np.random.default_rng(7).permutation(len(graphs))[:count]
    with lmdb.open(str(scratch / "lmdb"), map_size=1 << 34) as database, database.begin(write=True) as transaction:
        key = 0
        for taken in EpochReader([graphs], [np.isin(np.arange(len(graphs)), rows)], labels=False).blocks():
            for place in range(len(taken)):
                transaction.put(b"%d" % key, pickle.dumps(as_dict(taken.block.take([place])), protocol=5))
                key += 1
    environment = lmdb.open(str(scratch / "lmdb"), readonly=True, lock=False)

    def read(epoch: int) -> int:
        order = np.random.default_rng(epoch).permutation(count)
        with environment.begin() as transaction:
            for begin in range(0, count, BATCH):
                some = order[begin : begin + BATCH].tolist()
                joined([pickle.loads(transaction.get(b"%d" % key)) for key in some])  # noqa: S301 - written above
        return count

    return read


def lmdb_size(scratch: Path) -> float:
    """Bytes on disk per structure."""
    return (scratch / "lmdb/data.mdb").stat().st_blocks * 512 / IN_LMDB


def as_dict(block: GraphBlock) -> dict[str, Any]:
    """One graph, as in training databases."""
    return {
        "atomic_numbers": block.atomic_number.astype(np.int64),
        "pos": (block.frac_coord @ block.cell[0]).astype(np.float32),
        "cell": block.cell.astype(np.float32),
        "edge_index": np.stack([block.sender, block.receiver]),
        "cell_offsets": block.image.astype(np.int16),
    }


def joined(graphs: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch as one graph, with concatenated arrays and shifted indices."""
    n_atoms = np.array([len(graph["pos"]) for graph in graphs])
    first = np.cumsum(n_atoms) - n_atoms
    batch = {name: np.concatenate([graph[name] for graph in graphs]) for name in graphs[0] if name != "edge_index"}
    shifted = [graph["edge_index"] + start for graph, start in zip(graphs, first, strict=True)]
    return {**batch, "edge_index": np.concatenate(shifted, axis=1), "batch": np.repeat(np.arange(len(graphs)), n_atoms)}


def measure_zarrs(store: Path, plain: float, data: Path, scratch: Path) -> None:
    """Time the same reading with the codec pipeline of zarrs, and read damaged chunks with both pipelines."""
    with zarr.config.set(ZARRS):
        graphs = GraphStore(store)
        fast = rate(lambda epoch: blocks(graphs, epoch, labels=()))
    print(
        f"with zarrs {version('zarrs'):8}            {fast:10,.0f} structures/s, {fast / plain:.1f} x zarr; not used:"
    )
    small = scratch / "small.zarr"
    featurize(data / SOURCES[0], small, cutoff=CUTOFF, limit=300, scheduler="threads")
    for name, settings in (("zarrs", ZARRS), ("zarr", {})):
        with zarr.config.set(settings):
            found = outcomes(small, scratch / name)
        print(f"  {FLIPS} reads of a chunk with one bit flipped, {name}: {found}")


def outcomes(store: Path, copy: Path) -> str:
    """Read some structures repeatedly, each time with one bit of an array flipped; returns the outcomes as text."""
    shutil.copytree(store, copy)
    whole = GraphStore(copy).block(0, 200)
    shard = next(path for path in (copy / "neighbor/c").rglob("*") if path.is_file())
    content = shard.read_bytes()
    rng = np.random.default_rng(1)
    counts = {"errors": 0, "right": 0, "wrong numbers": 0}
    for _ in range(FLIPS):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        shard.write_bytes(damaged)
        try:
            same = np.array_equal(GraphStore(copy).block(0, 200).neighbor, whole.neighbor)
            counts["right" if same else "wrong numbers"] += 1
        except StoreError:
            counts["errors"] += 1
    return ", ".join(f"{count} {what}" for what, count in counts.items())


if __name__ == "__main__":
    main()
