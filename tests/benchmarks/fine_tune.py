"""Errors of 7net-0 on molecules and on crystals, before and after the recipe of docs/tutorials/fine_tune.md.

    python tests/benchmarks/fine_tune.py DATA_FOLDER [--structures 16] [--epochs 8] [--threads 2] [--scratch FOLDER]

New domain: frames of acetylacetone at 300 K (BOTNet, Batatia et al., arXiv:2205.06643; MIT), which 7net-0, a model of
inorganic crystals, hardly knows. A few frames are used for training, and as many of the last frames for the test. Their
energies have another zero, so the reference energies are fitted, and the mean error of the energies is subtracted, in
all rows of the table. Old domain: the intermetallics of the demo with at most six atoms, strained and displaced,
labelled by 7net-0 itself; two thirds are used for the replay and one third for the test, in which an error is a change
of the model. For the crystals of that third as they are in the Materials Project, formation energies are also compared
with DFT. The benchmark takes a few minutes and prints the text of `fine_tune.txt`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from equiscreen.demo.published import CRYSTALS
from equiscreen.model import Config, load_checkpoint, train
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.pretrained.load import import_weights
from equiscreen.pipeline import GraphBlock, GraphStore, Structure, featurize
from equiscreen.pipeline.errors import EquiscreenError
from equiscreen.screening.chemistry.elemental_energies import elemental_energies

MODEL, CUTOFF, SEED, MOST_ATOMS = "7net-0", 5.0, 0, 6
TRAINING: dict[str, Any] = {"batch_size": 2, "split": {"by": "structure", "validation": 0.1}}
FROZEN = ["sent", "interactions.0", "interactions.1"]
# Name of each run, with its learning rate, whether it replays the old domain, and what is frozen.
RUNS: dict[str, tuple[float, bool, list[str]]] = {
    "learning rate 0.01": (0.01, False, []),
    "learning rate 0.0005": (0.0005, False, []),
    "0.0001": (0.0001, False, []),
    "0.0001, replay": (0.0001, True, []),
    "0.0001, replay, frozen parts": (0.0001, True, FROZEN),
    "0.00003, replay": (0.00003, True, []),
    "0.00003": (0.00003, False, []),
}


def molecules(data: Path, count: int, folder: Path) -> tuple[Path, Path]:
    """Make graph stores of molecules, one to train on and one for the test."""
    frames = ase.io.read(data / "acac/train_300K.xyz", ":")
    stores = []
    for name, some in (("new", frames[: 20 * count : 20]), ("new_test", frames[-4 * count :: 4])):
        source, store = folder / f"{name}.extxyz", folder / f"{name}.zarr"
        ase.io.write(source, some, format="extxyz")
        featurize(source, store, cutoff=CUTOFF, scheduler="threads")
        stores.append(store)
    return stores[0], stores[1]


def replay(potential: TorchPotential, crystals: Sequence[Atoms], path: Path) -> Path:
    """Make a graph store of crystals, strained and displaced, labelled by a model."""
    rng, images = np.random.default_rng(SEED), []
    for crystal in crystals:
        atoms = crystal.copy()
        strain = rng.normal(0, 0.01, (3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        found = potential.evaluate(GraphBlock.from_structures([Structure.from_ase(atoms)], CUTOFF))
        labels = {"energy": float(found.energy[0]), "forces": found.forces, "stress": found.stress[0]}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        images.append(atoms)
    ase.io.write(path.with_suffix(".extxyz"), images, format="extxyz")
    featurize(path.with_suffix(".extxyz"), path, cutoff=CUTOFF, scheduler="threads")
    return path


def errors(potential: TorchPotential, store: Path) -> tuple[float, float]:
    """Mean absolute errors of energies (meV/atom), with the mean error removed, and of forces (meV/angstrom)."""
    graphs = GraphStore(store)
    block = graphs.block(0, len(graphs))
    found = potential.evaluate(block)
    energy = (found.energy - block.structure_labels["energy"]) / block.n_atoms
    return 1e3 * float(np.abs(energy - energy.mean()).mean()), 1e3 * float(
        np.abs(found.forces - block.atom_labels["forces"]).mean()
    )


def error_of_formation(potential: TorchPotential, crystals: Sequence[Atoms]) -> float:
    """Mean absolute error of formation energies against the Materials Project, meV/atom."""
    found = potential.evaluate(GraphBlock.from_structures([Structure.from_ase(atoms) for atoms in crystals], CUTOFF))
    elements = elemental_energies("mp-uncorrected")
    pure = np.array([sum(elements[symbol].energy for symbol in atoms.symbols) for atoms in crystals])
    sizes = np.array([len(atoms) for atoms in crystals])
    known = [atoms.info["materials_project_eV_per_atom"] for atoms in crystals]
    return 1e3 * float(np.abs((found.energy - pure) / sizes - known).mean())


def line(name: str, potential: TorchPotential, new: Path, old: Path, crystals: Sequence[Atoms], seconds: float) -> str:
    """A row of the table."""
    numbers = [*errors(potential, new), *errors(potential, old), error_of_formation(potential, crystals)]
    text = "".join(f"{number:>{width}.1f}" for number, width in zip(numbers, (12, 8, 13, 8, 11), strict=True))
    return f"{name:<30}{text}{seconds:>6.0f}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--structures", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=Path("fine-tune"))
    words = parser.parse_args()
    folder = words.scratch
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "start.ckpt").exists():
        import_weights(MODEL, folder / "start.ckpt")
    start = TorchPotential(load_checkpoint(folder / "start.ckpt")[0])
    crystals = [atoms for atoms in ase.io.read(CRYSTALS, ":") if len(atoms) <= MOST_ATOMS]
    shuffled = [crystals[place] for place in np.random.default_rng(SEED).permutation(len(crystals))]
    third = len(crystals) // 3
    kept, held = shuffled[third:], shuffled[:third]
    new, new_test = molecules(words.data, words.structures, folder)
    old, old_test = replay(start, kept, folder / "old.zarr"), replay(start, held, folder / "old_test.zarr")
    versions = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "torch", "sevenn"))
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {words.threads} threads, "
        f"Python {platform.python_version()}, {versions}"
    )
    print(
        f"{MODEL}; new: {words.structures} molecules, tested on {words.structures} others; old: "
        f"{len(kept)} intermetallics for the replay, tested on {len(held)} others"
    )
    print(f"{words.epochs} epochs, {json.dumps(TRAINING)}, frozen parts: {', '.join(FROZEN)}")
    print("mean absolute errors: energies in meV/atom, forces in meV/angstrom")
    print(f"{'':<30}{'new: energy':>12}{'forces':>8}{'old: energy':>13}{'forces':>8}{'formation':>11}{'s':>6}")
    print(line("before", start, new_test, old_test, held, 0), flush=True)
    for number, (name, (rate, with_old, freeze)) in enumerate(RUNS.items()):
        fine_tune = {"checkpoint": str(folder / "start.ckpt"), "freeze": freeze}
        training = {**TRAINING, "learning_rate": rate, "max_epochs": words.epochs, "threads": words.threads}
        config = Config.parse({"training": {**training, "fine_tune": fine_tune}}, "fine_tune")
        begin = time.monotonic()
        try:
            train([new, old] if with_old else new, folder / f"run-{number}", config)
        except EquiscreenError as error:
            print(f"{name:<30}  {str(error).partition(';')[0]}", flush=True)
            continue
        seconds = time.monotonic() - begin
        tuned = TorchPotential(load_checkpoint(folder / f"run-{number}/model.ckpt")[0])
        print(line(name, tuned, new_test, old_test, held, seconds), flush=True)


if __name__ == "__main__":
    main()
