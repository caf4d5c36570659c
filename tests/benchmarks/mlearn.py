"""Validation errors on an mlearn file (Zuo et al. 2020), in PyTorch and from the exported file.

    python tests/benchmarks/mlearn.py DATA_FOLDER [--element Si] [--epochs 100]

Runs the command line as a user would: featurize with the shipped mapping, train with a fifth held out, export. Then the
held-out structures are evaluated once more, with PyTorch and with ONNX Runtime, against the DFT labels and against each
other. Prints what `mlearn_si.txt` keeps.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml
from equiscreen.export import OnnxPotential
from equiscreen.model import load_checkpoint
from equiscreen.model.potential import TorchPotential
from equiscreen.pipeline import GraphBlock, GraphStore
from equiscreen.pipeline.potential import Evaluation


def say(folder: Path, *words: str | Path) -> None:
    """Run one command of equiscreen and print what it prints."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "equiscreen", *map(str, words)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    printed = done.stdout.strip().replace(f"{folder}/", "")
    print(f"$ equiscreen {words[0]}  ({time.monotonic() - begin:.0f} s)\n  {printed}", flush=True)


def mean_errors(found: Evaluation, block: GraphBlock) -> str:
    """Mean absolute errors against the labels."""
    energy = np.abs((found.energy - block.structure_labels["energy"]) / block.n_atoms).mean()
    forces = np.abs(found.forces - block.atom_labels["forces"]).mean()
    stress = np.nanmean(np.abs(found.stress - block.structure_labels["stress"]))
    return (
        f"energy {1e3 * energy:.2f} meV/atom, forces {1e3 * forces:.1f} meV/angstrom, "
        f"stress {1e3 * stress:.3f} meV/angstrom^3"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--element", default="Si")
    parser.add_argument("--epochs", type=int, default=100)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "torch", "onnxruntime", "e3nn"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, {packages}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = {"training": {"validation_fraction": 0.2, "max_epochs": arguments.epochs, "batch_size": 4}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        print(f"config.yaml: {config}; everything else is default")
        store, run, model = folder / "graphs.zarr", folder / "run", folder / "model.onnx"
        source = arguments.data / f"mlearn/{arguments.element}.json.gz"
        say(folder, "featurize", source, "--labels", "mlearn", "--out", store)
        say(folder, "train", store, "--out", run, "--config", folder / "config.yaml")
        say(folder, "export", run, "--out", model)
        graphs = GraphStore(store)
        held_out = np.load(run / "split.npz")["validation"]
        block = graphs.block(0, len(graphs)).take(held_out)
        network, _ = load_checkpoint(run / "model.ckpt")
        found = {"PyTorch": TorchPotential(network).evaluate(block), "ONNX": OnnxPotential.load(model).evaluate(block)}
        for name, evaluation in found.items():
            print(f"{name:<8} on the {len(held_out)} held-out structures: MAE {mean_errors(evaluation, block)}")
        a, b = found["PyTorch"], found["ONNX"]
        print(
            f"largest difference between the two: energy {np.abs((a.energy - b.energy) / block.n_atoms).max():.1e} "
            f"eV/atom, forces {np.abs(a.forces - b.forces).max():.1e} eV/angstrom, "
            f"stress {np.nanmax(np.abs(a.stress - b.stress)):.1e} eV/angstrom^3"
        )


if __name__ == "__main__":
    main()
