"""Edges per second of the default network with energy, forces and stress: ONNX Runtime and PyTorch, in one run.

    python tests/benchmarks/runtime_rate.py

The network is untrained, which does not affect the times; the structures are the demo's alloys. The settings alternate
for several rounds and the best time of each counts, since the machine may be busy with other things. Prints the text of
`runtime_rate.txt`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch
from equiscreen.demo.alloys import make_alloy, prototypes
from equiscreen.export import OnnxPotential
from equiscreen.export.exporter import lower_and_check
from equiscreen.model.checkpoint import ModelCard
from equiscreen.model.config.network import NetworkConfig
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.statistics import DataStatistics
from equiscreen.pipeline import GraphBlock, Structure

ELEMENTS = (13, 28, 29, 46, 47, 78, 79)
CUTOFF = 5.0
STRUCTURES = 300
REPEATS = 4
SLOTS = (1_024, 2_048, 4_096, 8_192, 32_768)
THREADS = (1, 2)


def alloys() -> GraphBlock:
    """Graphs of `STRUCTURES` alloys of the demo."""
    library = prototypes()
    made = []
    for number in range(STRUCTURES):
        rng = np.random.default_rng((5, number))
        made.append(Structure.from_ase(make_alloy(library[sorted(library)[number % len(library)]], rng)))
    return GraphBlock.from_structures(made, CUTOFF)


def main() -> None:
    """Run the benchmark."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "torch", "onnxruntime"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, {packages}")
    torch.manual_seed(0)
    block = alloys()
    n_edges = int(block.n_edges.sum())
    statistics = DataStatistics((0.0,) * len(ELEMENTS), (1.0,) * len(ELEMENTS), n_edges / len(block.atomic_number))
    network = EquivariantNetwork(NetworkConfig(cutoff=CUTOFF), ELEMENTS, statistics).eval()
    data = lower_and_check([network], ModelCard())[0].SerializeToString()
    print(f"{STRUCTURES} alloys, {len(block.atomic_number):,} atoms, {n_edges:,} edges; {network.config.hidden_irreps}")
    runs: dict[tuple[str, int, int], Callable[[], object]] = {}
    for threads in THREADS:
        for slots in SLOTS:
            potential = OnnxPotential(data, threads=threads, slots=slots)
            runs["ONNX Runtime", threads, slots] = lambda p=potential: p.evaluate(block)
            eager = TorchPotential(network, slots=slots)
            runs["PyTorch", threads, slots] = lambda p=eager: p.evaluate(block)
    best = dict.fromkeys(runs, np.inf)
    for _ in range(REPEATS):
        for key, run in runs.items():
            torch.set_num_threads(key[1])
            begin = time.perf_counter()
            run()
            best[key] = min(best[key], time.perf_counter() - begin)
    print(
        f"{'':<14}{'threads':>8}" + "".join(f"{slots:>10,}" for slots in SLOTS) + "   slots per table; thousand edges/s"
    )
    for name in ("PyTorch", "ONNX Runtime"):
        for threads in THREADS:
            rates = [n_edges / best[name, threads, slots] / 1e3 for slots in SLOTS]
            print(f"{name:<14}{threads:>8}" + "".join(f"{rate:>10.1f}" for rate in rates))
    for threads in THREADS:
        times = {name: min(best[name, threads, slots] for slots in SLOTS) for name in ("PyTorch", "ONNX Runtime")}
        print(f"{threads} threads, best of each: ONNX Runtime {times['PyTorch'] / times['ONNX Runtime']:.2f}x PyTorch")


if __name__ == "__main__":
    main()
