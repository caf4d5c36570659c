"""Cost of making the results of a relaxation independent of the other structures in its batch.

    OMP_NUM_THREADS=1 python tests/benchmarks/relax_batches.py --data DATA_FOLDER [--structures 200] [--model M.onnx]
        [--scratch FOLDER]

Crystals of mp_20_val.csv.gz, rattled by 0.1 angstrom and strained by 3 %, are relaxed in this process, in the parts
that a worker of `equiscreen relax` gets, with 7net-0 on one thread. Each part is relaxed twice, in alternating order:
with tables whose structures have equal widths, as `relax` makes them, and with tables of any structures. The rates are
structures per second of CPU time, so that other processes disturb them less. Then the crystals are relaxed in another
order, which changes the last digits of the results with mixed tables. Prints the text of `relax_batches.txt`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.graphs import potential as graph_potential
from equiscreen.pipeline.graphs.neighbor_table import evaluation_groups, groups_by_size
from equiscreen.screening.dataset.parts import cut
from equiscreen.screening.relaxation.batched import Relaxed, RelaxSettings, relax_structures
from equiscreen.screening.relaxation.relax import PART_EDGES, PART_STRUCTURES
from pretrained import crystals, exported, header, kept_folder

MODEL = "7net-0"
Groups = Callable[[GraphBlock, float, int], Iterator[tuple[np.ndarray, int]]]


def mixed_groups(block: GraphBlock, _: float, slots: int) -> Iterator[tuple[np.ndarray, int]]:
    """Groups of any structures, in tables as wide as the widest."""
    return ((rows, 1) for rows in groups_by_size(block.n_atoms, block.max_neighbors, slots))


WAYS: dict[str, Groups] = {"equal widths": evaluation_groups, "mixed widths": mixed_groups}


def relaxed(structures: Sequence[tuple[int, Structure]], potential: OnnxPotential, way: str) -> dict[int, Relaxed]:
    """Relax some structures with default settings, in tables whose groups one of `WAYS` makes."""
    graph_potential.evaluation_groups = WAYS[way]  # type: ignore[assignment]
    return dict(relax_structures(structures, potential, RelaxSettings()))


def in_parts(structures: Sequence[Structure], rows: Sequence[int], cutoff: float) -> list[list[tuple[int, Structure]]]:
    """Divide structures, in the order of `rows`, into the parts of a run."""
    edges = GraphBlock.from_structures([structures[row] for row in rows], cutoff).n_edges
    return [
        [(row, structures[row]) for row in rows[start:stop]] for start, stop in cut(edges, PART_EDGES, PART_STRUCTURES)
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--structures", type=int, default=200)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--scratch", type=Path)
    words = parser.parse_args()
    with kept_folder(words.scratch) as folder:
        model = words.model or exported(MODEL, folder)
        structures = list(crystals(words.data, words.structures, 0.1, 0.03).values())
    potential = OnnxPotential.load(model, threads=1)
    print(header())
    print(f"{len(structures)} crystals, {sum(map(len, structures)):,} atoms", flush=True)
    seconds, steps = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0)
    found = {way: dict[int, Relaxed]() for way in WAYS}
    for number, part in enumerate(in_parts(structures, range(len(structures)), potential.cutoff)):
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            begin = time.process_time()
            done = relaxed(part, potential, way)
            seconds[way] += time.process_time() - begin
            steps[way] += sum(one.n_steps for one in done.values())
            found[way] |= done
    for way, spent in seconds.items():
        print(f"{way}: {len(structures) / spent:.2f} structures/s, {steps[way] / len(structures):.1f} evaluations each")
    equal, mixed = seconds.values()
    print(f"seconds of CPU time, equal / mixed widths: {equal / mixed:.3f}", flush=True)
    order = np.random.default_rng(0).permutation(len(structures)).tolist()
    for way in WAYS:
        again = dict[int, Relaxed]()
        for part in in_parts(structures, order, potential.cutoff):
            again |= relaxed(part, potential, way)
        pairs = [(found[way][row].last, again[row].last) for row in range(len(structures))]
        differences = [abs(a.energy - b.energy) / len(a.structure) for a, b in pairs if a is not None and b is not None]
        print(
            f"{way}: in another order, {sum(x > 0 for x in differences)} of {len(structures)} energies differ, by up "
            f"to {max(differences) * 1e3:.3g} meV/atom"
        )


if __name__ == "__main__":
    main()
