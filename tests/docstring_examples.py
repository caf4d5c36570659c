"""Files that the examples in docstrings use: a pytest plugin for `make docs-test`.

Each example runs in a folder of its own. The folder holds, among others, four crystals of Al and Cu (`crystals.extxyz`,
`candidates.zarr`), a small network that has learned EMT's energies of such crystals (`training.zarr`, `run`,
`model.onnx`), and its results for the four crystals (`scores.zarr`, `relaxed.zarr`, `relaxed.hull.zarr`, `best`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from equiscreen.export import export_onnx
from equiscreen.model import Config, train, train_ensemble
from equiscreen.pipeline import featurize
from equiscreen.screening import hull, relax, screen, select

from .optional_packages import has_torch_sim

IN_PROCESS = "threads"
CONFIG = {
    "network": {"hidden_irreps": "8x0e + 4x1o", "n_interactions": 1, "n_radial": 4, "correlation": 2},
    "training": {"max_epochs": 40, "threads": 1},
}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the module that cannot be imported without TorchSim."""
    return True if collection_path.name == "torchsim_model.py" and not has_torch_sim() else None


def crystals() -> list[Atoms]:
    """The elements and two ordered alloys, close to their lattice constants in EMT."""
    ordered = bulk("Cu", cubic=True, a=3.72)
    ordered.symbols[0] = "Al"
    found = [bulk("Al", a=4.0), bulk("Cu", a=3.6), bulk("AlCu", "cesiumchloride", a=2.97), ordered]
    for atoms in found:
        atoms.info["structure_id"] = atoms.get_chemical_formula(mode="metal")
    return found


def labelled(atoms: Atoms) -> Atoms:
    """A crystal with EMT's energy, forces and stress."""
    atoms.calc = EMT()
    atoms.get_forces()
    atoms.get_stress()
    return atoms


def training_set(count: int) -> list[Atoms]:
    """Strained and rattled copies of the crystals."""
    rng, images = np.random.default_rng(0), []
    for number in range(count):
        atoms = crystals()[number % 4].repeat(2 if number % 4 < 2 else 1)
        strain = rng.normal(0, 0.03, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
        atoms.info["structure_id"] = f"training-{number}"
        images.append(labelled(atoms))
    return images


@pytest.fixture(scope="session")
def _examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of which each example gets a copy."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ase.io.write("crystals.extxyz", [labelled(atoms) for atoms in crystals()], format="extxyz")
        ase.io.write("training.extxyz", training_set(40), format="extxyz")
        Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
        Path("quick.yaml").write_text(yaml.safe_dump({**CONFIG, "training": {"max_epochs": 1, "threads": 1}}))
        energies = [f"{atoms.symbols},{labelled(atoms).get_potential_energy():.6f}" for atoms in crystals()[:2]]
        Path("known.csv").write_text(
            "".join(["formula,energy_per_atom,scheme\n", *(f"{line},own\n" for line in energies)])
        )
        Path("vasp.csv").write_text("".join(["structure_id,energy\n", *(f"{line}\n" for line in energies)]))
        featurize("crystals.extxyz", "candidates.zarr", scheduler=IN_PROCESS)
        featurize("training.extxyz", "training.zarr", scheduler=IN_PROCESS)
        train("training.zarr", "run", Config.load("config.yaml"))
        train_ensemble("training.zarr", "ensemble", Config.load("quick.yaml"), members=2)
        export_onnx("run", "model.onnx")
        export_onnx("ensemble/member-0", "fast.onnx")
        screen("candidates.zarr", "model.onnx", "scores.zarr", scheduler=IN_PROCESS)
        relax("candidates.zarr", "model.onnx", "relaxed.zarr", scheduler=IN_PROCESS)
        hull("relaxed.zarr", "known.csv")
        select("relaxed.hull.zarr", "best")
    return folder


@pytest.fixture(autouse=True)
def _in_a_copy(_examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each example in a copy of the folder."""
    shutil.copytree(_examples, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EQUISCREEN_CACHE", str(tmp_path / "cache"))
