"""Cost of the presets: parameters, and structures per second in training and evaluation.

    python tests/benchmarks/presets.py DATA_FOLDER [--threads 1]

The structures are those of the mlearn Si set (62 atoms, 1,680 edges within 5 angstrom on average), in batches of four,
with a loss on energy, forces and stress. Only the steps are timed, not the reading of the structures. Prints the text
of `presets.txt`.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from equiscreen.model.config.network import NetworkConfig
from equiscreen.model.config.training import LossConfig
from equiscreen.model.data.batches import Batch, StructureBatches
from equiscreen.model.data.fit_statistics import fit_statistics
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.training.allocator import keep_freed_memory
from equiscreen.model.training.losses import residuals, total_loss
from equiscreen.pipeline import GraphStore, LabelMapping, featurize

CUTOFF = 5.0
BATCHES = 12
ROUNDS = 3
CASES = [
    ("small", "natural"),
    ("medium", "natural"),
    ("large", "natural"),
    ("medium", "o3"),
    ("medium", "so3"),
]


def rate(work: Callable[[Batch], object], batches: list[Batch]) -> float:
    """Structures per second, the best of `ROUNDS` rounds."""
    best = 0.0
    work(batches[0])
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for batch in batches:
            work(batch)
        best = max(best, sum(map(len, batches)) / (time.perf_counter() - begin))
    return best


def measure(network: EquivariantNetwork, batches: list[Batch]) -> tuple[float, float]:
    """Structures per second in training and in evaluation."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        counts = {name: torch.isfinite(label).sum() for name, label in batch.labels.items()}
        found = residuals(network, network.predict(*batch.inputs), batch)
        total_loss(found, LossConfig(), counts).backward()
        optimizer.step()

    training = rate(step, batches)
    network.eval()
    return training, rate(lambda batch: network(*batch.inputs), batches)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as every training does
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, "
        f"torch {version('torch')}, {arguments.threads} thread(s), float32, batches of 4"
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "g.zarr"
        featurize(
            arguments.data / "mlearn/Si.json.gz",
            path,
            cutoff=CUTOFF,
            labels=LabelMapping.load("mlearn"),
            scheduler="threads",
        )
        store = GraphStore(path)
        chosen = [np.ones(len(store), dtype=bool)]
        batches = list(StructureBatches([store], chosen, {}, 4, CUTOFF, torch.float32, energy=True, shuffle=(0, 0)))[
            :BATCHES
        ]
        elements, statistics = fit_statistics([store], chosen, CUTOFF, energy=True, heads={}, energy_scale="global")
    print(f"{'preset':<8}{'symmetry':<10}{'parameters':>12}{'trained/s':>11}{'evaluated/s':>13}  hidden irreps")
    for preset, symmetry in CASES:
        torch.manual_seed(0)
        config = NetworkConfig.model_validate({"preset": preset, "symmetry": symmetry, "cutoff": CUTOFF})
        network = EquivariantNetwork(config, elements, statistics).train()
        count = sum(parameter.numel() for parameter in network.parameters())
        training, evaluation = measure(network, batches)
        print(
            f"{preset:<8}{symmetry:<10}{count:>12,}{training:>11.1f}{evaluation:>13.1f}  {config.hidden_irreps}",
            flush=True,
        )


if __name__ == "__main__":
    main()
