"""Helpers shared by the benchmarks of imported networks: engines that run in turn, each in a process of its own."""

from __future__ import annotations

import csv
import gzip
import io
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms

# Every eighth structure, in order of size; this sample serves to choose the batch size.
SAMPLE = slice(4, None, 8)
LIMIT = 900  # seconds for one engine and turn
# The elements of models trained on the Materials Project: all up to plutonium except polonium to radium.
ELEMENTS = [number for number in range(1, 95) if number not in {84, 85, 86, 87, 88}]


def crystals(data: Path, count: int) -> list[Atoms]:
    """The first crystals of mp_20_val.csv.gz."""
    with gzip.open(data / "mp/mp_20_val.csv.gz", "rt") as file:
        rows = [row for _, row in zip(range(count), csv.DictReader(file), strict=False)]
    return [ase.io.read(io.StringIO(row["cif"]), format="cif") for row in rows]


def measure(
    name: str,
    run: Callable[[list[Any], int], object],
    graphs: list[Any],
    edges: Sequence[int],
    batches: Sequence[int],
) -> None:
    """Print the rate of each batch size on a sample, and the rate of the best batch size on all graphs.

    Args:
        name: Name of the engine.
        run: Evaluates graphs in batches of a size.
        graphs: Graphs, sorted by size.
        edges: Number of edges of each graph.
        batches: Batch sizes to try.
    """
    rates = {}
    for size in batches:
        run(graphs[SAMPLE], size)  # compiles, allocates
        begin = time.perf_counter()
        run(graphs[SAMPLE], size)
        rates[size] = sum(edges[SAMPLE]) / (time.perf_counter() - begin)
        print(f"  {name}, batch {size}, sample: {rates[size]:,.0f} edges/s", flush=True)
    size = max(rates, key=lambda size: rates[size])
    begin = time.perf_counter()
    run(graphs, size)
    print(f"{name} {sum(edges) / (time.perf_counter() - begin):.0f} edges/s at batch {size}", flush=True)


def measure_file(name: str, file: Path, structures: Sequence[Atoms], cutoff: float, slots: Sequence[int]) -> None:
    """Measure an ONNX file, in the environment of equiscreen.

    Args:
        name: Name of the engine.
        file: The file.
        structures: Structures to evaluate.
        cutoff: Cutoff radius (angstrom).
        slots: Numbers of neighbour slots per table to try.
    """
    from equiscreen.export import OnnxPotential  # noqa: PLC0415 - other engines have environments without it
    from equiscreen.pipeline import GraphBlock, Structure  # noqa: PLC0415

    potential = OnnxPotential.load(file, threads=1)

    def run(some: list[GraphBlock], size: int) -> None:
        potential.slots = size
        potential.evaluate(GraphBlock.concatenate(some))

    graphs = [GraphBlock.from_structures([Structure.from_ase(atoms)], cutoff) for atoms in structures]
    graphs.sort(key=lambda graph: len(graph.neighbor))
    measure(name, run, graphs, [len(graph.neighbor) for graph in graphs], slots)


def compare(commands: Mapping[str, Sequence[str | Path]], turns: int) -> None:
    """Run the engines in turn on one thread, and print their rates and how much faster the first one is.

    Args:
        commands: Command of each engine by its name; the command ends with a line of `measure`.
        turns: Number of turns.
    """
    rates: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(turns):
        for name, command in commands.items():
            if turn and not rates[name]:
                continue  # failed in the first turn
            try:
                done = subprocess.run(
                    [*map(str, command)],
                    capture_output=True,
                    check=True,
                    timeout=LIMIT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                last = (error.stderr or b"").decode(errors="replace").strip()[-300:]
                print((error.stdout or b"").decode(), end="")
                print(f"{name}: failed or took longer than {LIMIT} s: {last}", flush=True)
                continue
            printed = done.stdout.decode()
            print(printed, end="", flush=True)
            rates[name].append(float(printed.splitlines()[-1].rsplit(" edges/s", 1)[0].split()[-1]))
    first = next(iter(rates))
    for name, found in rates.items():
        if not found:
            continue
        ratios = [ours / theirs for ours, theirs in zip(rates[first], found, strict=True)]
        print(
            f"{name}: {min(found):,.0f} to {max(found):,.0f} edges/s; "
            f"{first} is {min(ratios):.2f} to {max(ratios):.2f} times as fast"
        )
