"""Errors on the mlearn sets (Zuo et al., J. Phys. Chem. A 124, 731 (2020)), from PyTorch and from the exported file.

    python tests/benchmarks/mlearn.py DATA_FOLDER --work FOLDER [--elements Li Mo Si Ge] [--threads 2]

Runs the command line as a user would: featurize with the shipped mapping, train with a fifth of every group held out,
export. Then the held-out structures, a half of which chose the weights and a half of which was not looked at, are
evaluated with PyTorch and with ONNX Runtime against the DFT labels and against each other. The same command takes up
what was cut off and does not repeat what is done. Prints what `mlearn.txt` keeps.

GAP's and MTP's errors are those that the paper publishes for its own models and test sets.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from equiscreen.export import OnnxPotential
from equiscreen.model import load_checkpoint
from equiscreen.model.potential import TorchPotential
from equiscreen.pipeline import GraphStore
from equiscreen.pipeline.potential import Evaluation

# Force MAE in eV/angstrom, energy MAE in meV/atom.
PUBLISHED = {
    "Li": {"GAP": (0.01, 0.49), "MTP": (0.01, 0.49)},
    "Mo": {"GAP": (0.09, 2.24), "MTP": (0.09, 2.83)},
    "Si": {"GAP": (0.07, 2.91), "MTP": (0.06, 2.21)},
    "Ge": {"GAP": (0.05, 2.06), "MTP": (0.05, 1.79)},
}
CONFIG: dict[str, Any] = {
    "training": {
        "batch_size": 4,
        "split": {"by": "stratified", "key": "group", "validation": 0.1, "test": 0.1},
    }
}
# As many as fit into the time on two cores.
EPOCHS = {"Li": 200, "Mo": 200, "Si": 200, "Ge": 200}
NETWORK: dict[str, dict[str, Any]] = {}
LOSS: dict[str, dict[str, Any]] = {}


def say(*words: str | Path) -> float:
    """Run one command of equiscreen; the seconds that it took."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "equiscreen", *map(str, words)]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        raise SystemExit(f"failed: equiscreen {' '.join(map(str, words))}")
    return time.monotonic() - begin


def run(element: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything for one element; what is done already is left as it is."""
    folder = arguments.work / element
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "result.json"
    if result.exists():
        done: dict[str, Any] = json.loads(result.read_text())
        return done
    store, trained, model = folder / "graphs.zarr", folder / "run", folder / "model.onnx"
    if not store.exists():
        say("featurize", arguments.data / f"mlearn/{element}.json.gz", "--labels", "mlearn", "--out", store)
    network = {"network": NETWORK.get(element, {})}
    config = {**network, "training": {**CONFIG["training"], "loss": LOSS.get(element, {})}}
    config["training"] |= {"max_epochs": arguments.epochs or EPOCHS[element], "threads": arguments.threads}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if not (trained / "model.ckpt").exists():
        seconds = say("train", store, "--out", trained, "--config", folder / "config.yaml")
        (folder / "seconds.json").write_text(json.dumps(seconds))
    if not model.exists():
        say("export", trained, "--out", model)
    out = {"config": config, "seconds": json.loads((folder / "seconds.json").read_text())}
    out |= compare(store, trained, model)
    result.write_text(json.dumps(out, indent=1))
    return out


def compare(store: Path, trained: Path, model: Path) -> dict[str, Any]:
    """Errors of both on what was held out, and their difference."""
    graphs, rows = GraphStore(store), np.load(trained / "split.npz")
    whole = graphs.block(0, len(graphs))
    network, _ = load_checkpoint(trained / "model.ckpt")
    potentials = {"PyTorch": TorchPotential(network), "ONNX": OnnxPotential.load(model)}
    out: dict[str, Any] = {}
    for subset in ("validation", "test"):
        block = whole.take(rows[f"{subset}_0"])
        found = {name: potential.evaluate(block) for name, potential in potentials.items()}
        out[subset] = {name: errors(evaluation, block) for name, evaluation in found.items()}
        a, b = found["PyTorch"], found["ONNX"]
        out[f"{subset} difference"] = [
            float(np.abs((a.energy - b.energy) / block.n_atoms).max()),
            float(np.abs(a.forces - b.forces).max()),
            float(np.nanmax(np.abs(a.stress - b.stress))),
        ]
    out["counts"] = [len(rows[f"{name}_0"]) for name in ("training", "validation", "test")]
    return out


def errors(found: Evaluation, block: Any) -> list[float]:
    """Mean absolute errors of energy (eV/atom), forces (eV/angstrom) and stress (eV/angstrom^3)."""
    return [
        float(np.abs((found.energy - block.structure_labels["energy"]) / block.n_atoms).mean()),
        float(np.abs(found.forces - block.atom_labels["forces"]).mean()),
        float(np.nanmean(np.abs(found.stress - block.structure_labels["stress"]))),
    ]


def report(element: str, result: dict[str, Any]) -> None:
    """Print one element."""
    print(f"\n{element}: {result['counts']} structures to train, validate and test on; {result['seconds']:.0f} s")
    print(f"  {result['config']}")
    print(f"  {'':<28}{'energy meV/atom':>16}{'forces eV/angstrom':>20}{'stress meV/angstrom^3':>23}")
    for subset in ("validation", "test"):
        for name, (energy, forces, stress) in result[subset].items():
            print(f"  {f'{subset}, {name}':<28}{1e3 * energy:>16.2f}{forces:>20.4f}{1e3 * stress:>23.3f}")
    for name, (forces, energy) in PUBLISHED[element].items():
        print(f"  {f'{name}, published':<28}{energy:>16.2f}{forces:>20.2f}")
    weights = np.array(result["counts"][1:])
    both = np.average([result[x]["ONNX"] for x in ("validation", "test")], axis=0, weights=weights)
    forces, energy = PUBLISHED[element]["GAP"]
    print(
        f"  of the fifth that was held out, relative to GAP: energy {1e3 * both[0] / energy:.2f}, "
        f"forces {both[1] / forces:.2f}"
    )
    difference = np.max([result["validation difference"], result["test difference"]], axis=0)
    print(
        f"  ONNX Runtime and PyTorch differ at most by {difference[0]:.1e} eV/atom, {difference[1]:.1e} eV/angstrom, "
        f"{difference[2]:.1e} eV/angstrom^3"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--elements", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--epochs", type=int, help="instead of those that take up to 30 minutes")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "torch", "onnxruntime", "e3nn"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, {packages}")
    for element in arguments.elements:
        report(element, run(element, arguments))


if __name__ == "__main__":
    main()
