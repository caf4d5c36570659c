"""Structures per second of `screen`, from the command to the finished dataset, beside the bare runtime.

    python tests/benchmarks/screen_rate.py DATA_FOLDER [--candidates 200000] [--crystals 20000] [--scratch FOLDER]

Candidates are ions substituted into the crystals of mp_20_val.csv.gz by `equiscreen generate`, scored with an untrained
network of the preset `small` (that changes no time); crystals are those of mp_20_val.csv.gz, strained, each as often as
it takes, scored with 7net-0. `equiscreen screen` is run as a user would, with one worker for each core; the memory is
that of its own process, without the workers, looked at four times a second. The bare runtime is as many processes with
one thread each, which hold all graphs in memory and do nothing but evaluate them: once with the time that their tables
take, once (as if those were there already) without. Prints what `screen_rate.txt` keeps.
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
LOOK_EVERY_S = 0.25


def equiscreen(*words: object) -> list[str]:
    """The command line of a verb."""
    return [sys.executable, "-m", "equiscreen", *map(str, words)]


def run(*words: object) -> None:
    """Run a verb without its words."""
    subprocess.run(equiscreen(*words), check=True, capture_output=True)


def small_model(out: Path) -> Path:
    """An untrained network of the preset `small` that knows all elements."""
    torch.manual_seed(0)
    statistics = DataStatistics((0.0,) * len(ELEMENTS), (1.0,) * len(ELEMENTS), 30.0)
    network = EquivariantNetwork(NetworkConfig(preset="small", cutoff=CUTOFF), ELEMENTS, statistics).eval()
    out.write_bytes(lower_and_check([network], ModelCard())[0].SerializeToString())
    return out


def sevennet(folder: Path) -> Path:
    """7net-0."""
    import_weights("7net-0", folder / "7net-0.ckpt")
    export_onnx(folder / "7net-0.ckpt", folder / "7net-0.onnx")
    return folder / "7net-0.onnx"


def watched(words: list[str]) -> tuple[float, list[float]]:
    """Seconds that a command takes, and the resident memory of its own process in MB, as it went on."""
    begin = time.perf_counter()
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    memory = []
    while process.poll() is None:
        try:
            memory.append(psutil.Process(process.pid).memory_info().rss / 1e6)
        except psutil.NoSuchProcess:
            break
        time.sleep(LOOK_EVERY_S)
    if process.wait():
        sys.exit(process.returncode)
    return time.perf_counter() - begin, memory


def evaluate_share(store: Path, model: Path, share: int, of: int, ready: Any, found: Any) -> None:
    """Evaluate every part of a store whose turn it is, all of them read before: the body of a process."""
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
        potential.evaluate(blocks[0].take(range(min(50, len(blocks[0])))))  # loads compiled code
    in_runtime = 0.0
    ready.wait()
    begin = time.perf_counter()
    for block in blocks:
        potential.evaluate(block)
    found.put((sum(map(len, blocks)), time.perf_counter() - begin, in_runtime))


def bare_rates(store: Path, model: Path) -> tuple[float, float]:
    """Structures per second of all processes together: with their tables, and in the runtime alone."""
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
    """Screen a store and print how that compares."""
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
    print(
        f"  bare runtime with its tables    {with_tables:10,.1f} structures/s; the screen has {rate / with_tables:.1%}"
    )
    print(f"  bare runtime without            {alone:10,.1f} structures/s; the screen has {rate / alone:.1%}")
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
