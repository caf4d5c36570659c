"""CPU time per edge of exported files of one network, such as before and after a change of the export.

    python tests/benchmarks/graph_rate.py BEFORE.onnx AFTER.onnx --data DATA_FOLDER [--structures 200] [--turns 9]

The files evaluate the same crystals of mp_20_val.csv.gz on one thread, in batches of 2,000 neighbour slots whose tables
are made beforehand. They take turns batch by batch, in an order that is reversed from turn to turn, and only the CPU
time of this process counts, so that other programs disturb the ratio little. The first file is measured against itself,
too. Prints the text of `graph_rate.txt`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from engines_in_turn import crystals
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.graphs.neighbor_table import neighbor_table
from pretrained import header

SLOTS = 2000


def main(files: list[Path], data: Path, count: int, turns: int) -> None:
    """Measure the files."""
    potentials = [OnnxPotential.load(file, threads=1, slots=SLOTS) for file in (*files, files[0])]
    names = [*(file.name for file in files), f"{files[0].name} again"]
    cutoff = potentials[0].cutoff
    graphs = [GraphBlock.from_structures([Structure.from_ase(atoms)], cutoff) for atoms in crystals(data, count)]
    graphs.sort(key=lambda graph: len(graph.neighbor))
    edges = sum(len(graph.neighbor) for graph in graphs)
    groups: dict[int, list[GraphBlock]] = {}
    begin = 0
    for graph in graphs:
        groups.setdefault(begin // SLOTS, []).append(graph)
        begin += len(graph.neighbor)
    tables = [neighbor_table(GraphBlock.concatenate(group), cutoff, "float32").arrays() for group in groups.values()]
    print(f"{header()}\n{count} crystals, {edges:,} edges, {len(tables)} batches, {turns} turns", flush=True)
    results = [[potential.run_table(table) for table in tables] for potential in potentials]
    seconds = np.zeros((turns, len(potentials)))
    for turn in range(turns):
        order = range(len(potentials)) if turn % 2 == 0 else range(len(potentials))[::-1]
        for table in tables:
            for place in order:
                begin = time.process_time()
                potentials[place].run_table(table)
                seconds[turn, place] += time.process_time() - begin
    for place, name in enumerate(names):
        ratios = seconds[:, 0] / seconds[:, place]
        differences = {
            key: max(
                float(np.abs(mine[key] - first[key]).max())
                for mine, first in zip(results[place], results[0], strict=True)
            )
            for key in results[0][0]
        }
        print(
            f"{name}: {edges / np.median(seconds[:, place]):,.0f} edges per CPU second, "
            f"{np.median(ratios):.3f} times as many as the first ({ratios.min():.3f} to {ratios.max():.3f}); largest "
            "differences " + ", ".join(f"{key} {value:.1e}" for key, value in differences.items()),
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--structures", type=int, default=200)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    main(options.files, options.data, options.structures, options.turns)
