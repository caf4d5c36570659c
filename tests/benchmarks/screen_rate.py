"""Structures per second of `screen`, from the command to the finished dataset, and of the bare runtime.

    python tests/benchmarks/screen_rate.py DATA_FOLDER [--candidates 200000] [--crystals 20000] [--scratch FOLDER]

Candidates are made by `equiscreen generate`, which substitutes ions in the crystals of mp_20_val.csv.gz, and scored
with an untrained network of the preset `small` (training does not affect the times). Crystals are strained copies of
those of mp_20_val.csv.gz, scored with 7net-0. `equiscreen screen` runs as on the command line, with one worker per
core; the memory of its main process, without the workers, is sampled four times a second. The bare runtime is the same
number of single-threaded processes, which hold all graphs in memory and only evaluate them; its rate is given with and
without the time to build the tables. Prints the text of `screen_rate.txt`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from equiscreen.export import OnnxPotential
from equiscreen.export.exporter import export_onnx, lower_and_check
from equiscreen.model.checkpoint import ModelCard
from equiscreen.model.config.network import NetworkConfig
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.pretrained.load import import_weights
from equiscreen.model.statistics import DataStatistics
from equiscreen.pipeline import GraphStore
from equiscreen.screening import open_scores
from equiscreen.screening.scoring.screen import cut_screen
from featurize_rate import write_rows

CUTOFF = 5.0
ELEMENTS = tuple(range(1, 95))
SAMPLE_INTERVAL_S = 0.25


def equiscreen(*arguments: object) -> list[str]:
    """An equiscreen command line."""
    return [sys.executable, "-m", "equiscreen", *map(str, arguments)]


def run(*arguments: object) -> None:
    """Run an equiscreen command and discard its output."""
    subprocess.run(equiscreen(*arguments), check=True, capture_output=True)


def small_model(out: Path) -> Path:
    """Write an untrained network of the preset `small` for the first 94 elements."""
    torch.manual_seed(0)
    statistics = DataStatistics((0.0,) * len(ELEMENTS), (1.0,) * len(ELEMENTS), 30.0)
    network = EquivariantNetwork(NetworkConfig(preset="small", cutoff=CUTOFF), ELEMENTS, statistics).eval()
    out.write_bytes(lower_and_check([network], ModelCard())[0].SerializeToString())
    return out


def sevennet(folder: Path) -> Path:
    """Export 7net-0."""
    import_weights("7net-0", folder / "7net-0.ckpt")
    export_onnx(folder / "7net-0.ckpt", folder / "7net-0.onnx")
    return folder / "7net-0.onnx"


def watched(command: list[str]) -> tuple[float, list[float]]:
    """Run time of a command in seconds, and samples of the resident memory of its main process in MB."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    memory = []
    while process.poll() is None:
        try:
            memory.append(psutil.Process(process.pid).memory_info().rss / 1e6)
        except psutil.NoSuchProcess:
            break
        time.sleep(SAMPLE_INTERVAL_S)
    if process.wait():
        sys.exit(process.returncode)
    return time.perf_counter() - begin, memory


def evaluate_share(store: Path, model: Path, share: int, of: int, ready: Any, found: Any) -> None:
    """Body of a process: read its share of the parts of a store, then evaluate them."""
    graphs, potential = GraphStore(store), OnnxPotential.load(model, threads=1)
    parts = cut_screen(graphs.n_edges)[share::of]
    blocks = []
    for start, stop in parts:
        block = graphs.block(start, stop, labels=False)
        unknown = block.atom_structure[~np.isin(block.atomic_number, potential.elements)]
        blocks.append(block.take(np.setdiff1d(np.arange(len(block)), unknown)))
    in_runtime = 0.0
    run_table = potential.run_table

    def timed(arrays: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal in_runtime
        begin = time.perf_counter()
        out = run_table(arrays)
        in_runtime += time.perf_counter() - begin
        return out

    potential.run_table = timed  # type: ignore[method-assign]
    if blocks:
        potential.evaluate(blocks[0].take(range(min(50, len(blocks[0])))))  # loads the compiled code
    in_runtime = 0.0
    ready.wait()
    begin = time.perf_counter()
    for block in blocks:
        potential.evaluate(block)
    found.put((sum(map(len, blocks)), time.perf_counter() - begin, in_runtime))


def bare_rates(store: Path, model: Path) -> tuple[float, float]:
    """Structures per second of all processes together: with the building of tables, and in the runtime alone."""
    processes = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    ready, found = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=evaluate_share, args=(store, model, share, processes, ready, found))
        for share in range(processes)
    ]
    for worker in workers:
        worker.start()
    results = [found.get() for _ in workers]
    for worker in workers:
        worker.join()
    total, seconds, in_runtime = (sum(values) for values in zip(*results, strict=True))
    return processes * total / seconds, processes * total / in_runtime


def report(name: str, store: Path, model: Path, scratch: Path) -> None:
    """Screen a store, and print the rates of the screen and of the bare runtime."""
    out = scratch / f"{model.stem}.scores.zarr"
    seconds, memory = watched(equiscreen("screen", store, "--model", model, "--out", out))
    scores = open_scores(out)
    size, timing = scores.sizes["structure"], scores.attrs["timing"]
    with_tables, alone = bare_rates(store, model)
    rate = size / seconds
    middle = len(memory) // 2
    edges = GraphStore(store).n_edges
    print(f"{size:,} {name} of {edges.mean():.0f} edges; {model.stem}; {scores.attrs['status_counts']}")
    print(f"  screen, command to dataset      {rate:10,.1f} structures/s, {seconds:.1f} s")
    print(f"  bare runtime, with tables       {with_tables:10,.1f} structures/s; screen: {rate / with_tables:.1%}")
    print(f"  bare runtime, without tables    {alone:10,.1f} structures/s; screen: {rate / alone:.1%}")
    print(f"  {timing['core_hours']:.4f} core-hours, input stall {timing['input_stall']:.2%}")
    print(
        f"  memory of the client at most {max(memory[:middle]):.0f} MB in the first half, {max(memory[middle:]):.0f} "
        "MB in the second",
        flush=True,
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--candidates", type=int, default=200_000)
    parser.add_argument("--crystals", type=int, default=20_000)
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "onnxruntime", "zarr", "distributed"))
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {packages}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        scratch = Path(name)
        source = arguments.data / "mp/mp_20_val.csv.gz"
        if arguments.candidates:
            prototypes, made = scratch / "prototypes.zarr", scratch / "candidates.parquet"
            run("featurize", source, "--out", prototypes)
            run("generate", prototypes, "--out", made, "--count", arguments.candidates, "--seed", 0)
            run("featurize", made, "--out", scratch / "candidates.zarr", "--cutoff", CUTOFF)
            report("candidates", scratch / "candidates.zarr", small_model(scratch / "small.onnx"), scratch)
        if arguments.crystals:
            write_rows(source, scratch / "rows.csv.gz", arguments.crystals)
            run("featurize", scratch / "rows.csv.gz", "--out", scratch / "crystals.zarr", "--cutoff", CUTOFF)
            report("crystals", scratch / "crystals.zarr", sevennet(scratch), scratch)


if __name__ == "__main__":
    main()
