"""Errors on the mlearn sets (Zuo et al., J. Phys. Chem. A 124, 731 (2020)), with PyTorch and with the exported file.

    python tests/benchmarks/mlearn.py DATA_FOLDER --work FOLDER [--elements Li Mo Si Ge] [--threads 2]

Runs the command line as a user would: featurize with the built-in mapping, train with a fifth of every group held out,
export. The held-out structures (one half selected the weights, the other half was not used) are then evaluated with
PyTorch and with ONNX Runtime, and compared with the DFT labels and with each other. Running the same command again
resumes interrupted work and does not repeat finished work. Prints the text of `mlearn.txt`, and draws `mlearn.png`
beside this file if all elements are requested.

The errors of GAP and MTP are those that the paper publishes for its own models and test sets.
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

import matplotlib as mpl
import numpy as np
import yaml
from equiscreen.export import OnnxPotential
from equiscreen.model import load_checkpoint
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphStore
from equiscreen.pipeline.graphs.potential import Evaluation
from matplotlib import pyplot as plt

mpl.use("agg")
# Force MAE in eV/angstrom, energy MAE in meV/atom.
PUBLISHED = {
    "Li": {"GAP": (0.01, 0.49), "MTP": (0.01, 0.49)},
    "Mo": {"GAP": (0.09, 2.24), "MTP": (0.09, 2.83)},
    "Si": {"GAP": (0.07, 2.91), "MTP": (0.06, 2.21)},
    "Ge": {"GAP": (0.05, 2.06), "MTP": (0.05, 1.79)},
}
TRAINING: dict[str, Any] = {
    "batch_size": 4,
    "split": {"by": "stratified", "key": "group", "validation": 0.1, "test": 0.1},
}
EPOCHS = 200  # a quarter of an hour for each element on one core


def equiscreen(*arguments: str | Path) -> float:
    """Run one equiscreen command; returns its run time in seconds."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "equiscreen", *map(str, arguments)]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        raise SystemExit(f"failed: equiscreen {' '.join(map(str, arguments))}")
    return time.monotonic() - begin


def run(element: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all steps for one element; finished steps are skipped."""
    folder = arguments.work / element
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "result.json"
    if result.exists():
        done: dict[str, Any] = json.loads(result.read_text())
        return done
    store, trained, model = folder / "graphs.zarr", folder / "run", folder / "model.onnx"
    if not store.exists():
        equiscreen("featurize", arguments.data / f"mlearn/{element}.json.gz", "--labels", "mlearn", "--out", store)
    config = {"training": {**TRAINING, "max_epochs": arguments.epochs, "threads": arguments.threads}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if not (trained / "model.ckpt").exists():
        seconds = equiscreen("train", store, "--out", trained, "--config", folder / "config.yaml")
        (folder / "seconds.json").write_text(json.dumps(seconds))
    if not model.exists():
        equiscreen("export", trained, "--out", model)
    out = {"config": config, "seconds": json.loads((folder / "seconds.json").read_text())}
    out |= compare(store, trained, model)
    result.write_text(json.dumps(out, indent=1))
    return out


def compare(store: Path, trained: Path, model: Path) -> dict[str, Any]:
    """Errors of PyTorch and ONNX Runtime on the held-out structures, and their differences."""
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


def held_out(result: dict[str, Any]) -> Any:
    """Errors on all held-out structures: energy (eV/atom), forces (eV/angstrom), stress (eV/angstrom^3)."""
    errors = [result[name]["ONNX"] for name in ("validation", "test")]
    return np.average(errors, axis=0, weights=result["counts"][1:])


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the errors next to the published ones."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    places = np.arange(len(found))
    for axis, (place, factor, unit) in zip(
        axes, ((1, 1, "force error (eV/angstrom)"), (0, 1e3, "energy error (meV/atom)")), strict=True
    ):
        bars = {"equiscreen": [held_out(result)[place] * factor for result in found.values()]}
        for name in ("GAP", "MTP"):
            bars[f"{name}, published"] = [PUBLISHED[element][name][1 - place] for element in found]
        for shift, (name, heights) in zip((-0.27, 0, 0.27), bars.items(), strict=True):
            axis.bar(places + shift, heights, 0.25, label=name)
        axis.set_xticks(places, list(found))
        axis.set_ylabel(unit)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def report(element: str, result: dict[str, Any]) -> None:
    """Print the results of one element."""
    print(f"\n{element}: {result['counts']} training, validation and test structures; {result['seconds']:.0f} s")
    print(f"  {result['config']}")
    print(f"  {'':<28}{'energy meV/atom':>16}{'forces eV/angstrom':>20}{'stress meV/angstrom^3':>23}")
    for subset in ("validation", "test"):
        for name, (energy, forces, stress) in result[subset].items():
            print(f"  {f'{subset}, {name}':<28}{1e3 * energy:>16.2f}{forces:>20.4f}{1e3 * stress:>23.3f}")
    for name, (forces, energy) in PUBLISHED[element].items():
        print(f"  {f'{name}, published':<28}{energy:>16.2f}{forces:>20.2f}")
    both = held_out(result)
    forces, energy = PUBLISHED[element]["GAP"]
    print(f"  held-out structures, relative to GAP: energy {1e3 * both[0] / energy:.2f}, forces {both[1] / forces:.2f}")
    difference = np.max([result["validation difference"], result["test difference"]], axis=0)
    print(
        f"  ONNX Runtime and PyTorch differ by at most {difference[0]:.1e} eV/atom, {difference[1]:.1e} eV/angstrom, "
        f"{difference[2]:.1e} eV/angstrom^3"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--elements", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "torch", "onnxruntime", "e3nn"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, {packages}")
    found = {}
    for element in arguments.elements:
        found[element] = run(element, arguments)
        report(element, found[element])
    if found.keys() == PUBLISHED.keys():
        draw(found, Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
