"""Edges per second of a MACE of MP-0-medium's shape on one CPU thread: the exported file and mace-torch.

    python tests/benchmarks/mace_rate.py make --out FOLDER            in the environment of mace-torch
    python tests/benchmarks/mace_rate.py theirs --data DATA --out FOLDER [--batches 1 2 4 8] [--structures 200]
    python tests/benchmarks/mace_rate.py ours --data DATA --out FOLDER [--slots 500 1000 2000 4000] [--structures 200]

The weights are random: 128x0e + 128x1o, harmonics to degree 3, correlation 3, 89 elements, two interactions, cutoff 6
angstrom. `make` writes the file `medium.model` with mace-torch (see tests/oracles/mace.py for its environment);
`ours` imports and exports it, with all checks, before it measures. Both sides evaluate energies, forces and stresses of
the first crystals of mp_20_val.csv.gz in float32, on one thread, at each batch size, and print the rate of the best.
Graphs are built beforehand on both sides. Run both in turn, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

# The elements of the Materials Project's models: all up to plutonium without polonium to radium.
ELEMENTS = [number for number in range(1, 95) if number not in {84, 85, 86, 87, 88}]
CUTOFF = 6.0
ROUNDS = 3


def crystals(data: Path, count: int) -> list[Atoms]:
    """The first crystals of mp_20_val.csv.gz."""
    with gzip.open(data / "mp/mp_20_val.csv.gz", "rt") as file:
        rows = [row for _, row in zip(range(count), csv.DictReader(file), strict=False)]
    return [ase.io.read(io.StringIO(row["cif"]), format="cif") for row in rows]


def best(name: str, runs: dict[int, Callable[[], object]], edges: int) -> None:
    """Print the rate of each batch size, and the best."""
    rates = {}
    for size, run in runs.items():
        run()
        seconds = []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        rates[size] = edges / min(seconds)
        print(f"{name}, batch {size}: {rates[size]:,.0f} edges/s", flush=True)
    size = max(rates, key=lambda size: rates[size])
    print(f"{name}, best: {rates[size]:,.0f} edges/s at batch {size}")


def make(out: Path) -> None:
    """Write the file with mace-torch."""
    import torch  # noqa: PLC0415 - of another environment
    from e3nn import o3  # noqa: PLC0415
    from mace import modules  # noqa: PLC0415

    torch.manual_seed(0)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=10,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps("128x0e + 128x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(ELEMENTS)),
        avg_num_neighbors=60.0,
        atomic_numbers=ELEMENTS,
        correlation=3,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=0.8,
        atomic_inter_shift=0.0,
    )
    torch.save(model, out / "medium.model")


def theirs(structures: Sequence[Atoms], out: Path, sizes: Sequence[int]) -> None:
    """Measure mace-torch."""
    import torch  # noqa: PLC0415 - of another environment
    from mace.calculators import MACECalculator  # noqa: PLC0415
    from mace.tools import torch_geometric  # noqa: PLC0415

    torch.set_num_threads(1)
    calculator = MACECalculator(model_paths=str(out / "medium.model"), device="cpu", default_dtype="float32")
    model = calculator.models[0]
    for parameter in model.parameters():
        parameter.requires_grad = False
    graphs = [calculator._atoms_to_batch(atoms).to_data_list()[0] for atoms in structures]
    graphs.sort(key=lambda graph: graph.edge_index.shape[1])
    edges = sum(graph.edge_index.shape[1] for graph in graphs)

    def run(batches: Sequence[Any]) -> None:
        for batch in batches:
            model(batch.clone().to_dict(), compute_stress=True)

    batches = {size: [*torch_geometric.dataloader.DataLoader(graphs, batch_size=size, shuffle=False)] for size in sizes}
    best("mace-torch eager", {size: lambda some=some: run(some) for size, some in batches.items()}, edges)


def ours(structures: Sequence[Atoms], out: Path, sizes: Sequence[int]) -> None:
    """Import, export and measure our file."""
    from equiscreen.export import OnnxPotential, export_onnx  # noqa: PLC0415 - of this environment
    from equiscreen.model.pretrained.load import import_weights  # noqa: PLC0415
    from equiscreen.pipeline import GraphBlock, Structure  # noqa: PLC0415

    target = out / "medium.onnx"
    if not target.exists():
        print(import_weights(out / "medium.model", out / "medium.ckpt", overwrite=True))
        print(export_onnx(out / "medium.ckpt", target))
    potential = OnnxPotential.load(target, threads=1)
    block = GraphBlock.from_structures([Structure.from_ase(atoms) for atoms in structures], CUTOFF)

    def run(slots: int) -> None:
        potential.slots = slots
        potential.evaluate(block)

    best("equiscreen", {size: lambda size=size: run(size) for size in sizes}, int(block.n_edges.sum()))


def main() -> None:
    """Run one side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("make", "theirs", "ours"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--structures", type=int, default=200)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--slots", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    words = parser.parse_args()
    if words.side == "make":
        make(words.out)
        return
    structures = crystals(words.data, words.structures)
    if words.side == "theirs":
        theirs(structures, words.out, words.batches)
    else:
        ours(structures, words.out, words.slots)


if __name__ == "__main__":
    main()
