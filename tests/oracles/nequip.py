"""Results of NequIP: ``python -m tests.oracles.nequip``, in an environment with the package nequip 0.19.1.

Everything is computed in float64. One network is also trained for two epochs, saved as a checkpoint and packaged; of
the package, only the members that hold no source code are kept.

Some models are also kept as the TorchScript archives that `nequip-compile` writes. The command itself refuses to write
them with PyTorch 2.10 and later, but its function `save_torchscript_model` still works.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import nequip
import numpy as np
import torch
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from hydra.utils import get_method
from nequip.model import ModelFromPackage
from nequip.model.inference_models.torchscript import save_torchscript_model
from nequip.utils.global_state import set_global_state

from .archives import compressed
from .grid import pairwise_grid
from .nequip_graphs import evaluated, graph
from .structures import SYMBOLS

FOLDER = Path(__file__).parent / "nequip"
CUTOFF = 4.0
# The types are not in the order of the atomic numbers.
TYPES = ["Cu", "H", "Si", "O", "C"]
ZBL = {"_target_": "nequip.nn.pair_potential.ZBL", "chemical_species": TYPES, "units": "metal"}
CHOICES: dict[str, list[dict[str, Any]]] = {
    "irreps": [
        {"l_max": 1, "parity": True, "num_features": 4, "num_layers": 3},
        {"l_max": 2, "parity": False, "num_features": [5, 3, 2], "num_layers": 3},
        {"l_max": 3, "parity": True, "num_features": [4, 2, 2, 1], "num_layers": 2},
        {"l_max": 0, "parity": False, "num_features": [6], "num_layers": 2},
        {"preset": "S", "num_features": [5, 4], "type_embed_num_features": 4},
        {
            "feature_irreps_hidden": ["5x0e+3x1o", "4x0e+2x0o+3x1o+2x1e+2x2e", "4x0e+2x0o+3x1o+2x1e+2x2e", "4x0e"],
            "irreps_edge_sh": "0e+1o+2e",
            "radial_mlp_depth": [1, 1, 1, 1],
            "radial_mlp_width": [6, 6, 6, 6],
            "type_embed_num_features": 3,
        },
    ],
    "radial": [
        {"radial_mlp_depth": 1, "radial_mlp_width": 6},
        {"radial_mlp_depth": 2, "radial_mlp_width": 5},
        {"radial_mlp_depth": 0},
    ],
    "basis": [
        {"num_bessels": 5, "polynomial_cutoff_p": 6},
        {"num_bessels": 4, "polynomial_cutoff_p": 5, "bessel_trainable": True},
    ],
    "embedding": [{}, {"type_embed_num_features": 7}],
    "connections": [
        {},
        {"convnet_sc": False},
        {"learnable_shift": True},
        {"convnet_resnet": True},
        {"convnet_sc": False, "convnet_resnet": True},
    ],
    "neighbours": [
        {"avg_num_neighbors": 2.5},
        {"avg_num_neighbors": dict(zip(TYPES, (1.5, 2.0, 2.5, 1.25, 3.0), strict=True))},
    ],
    "activations": [
        {},
        {
            "convnet_nonlinearity_scalars": {"e": "ssp", "o": "tanh"},
            "convnet_nonlinearity_gates": {"e": "ssp", "o": "abs"},
        },
        {
            "convnet_nonlinearity_scalars": {"e": "silu", "o": "tanh"},
            "convnet_nonlinearity_gates": {"e": "tanh", "o": "tanh"},
        },
    ],
    "readout": [
        {},
        {"readout_mlp_hidden_layers_depth": 2, "readout_mlp_hidden_layers_width": 5},
        {"readout_mlp_hidden_layers_depth": 1, "readout_mlp_nonlinearity": "mish"},
        {"readout_mlp_hidden_layers_depth": 1, "readout_mlp_nonlinearity": "tanh"},
        {"readout_mlp_hidden_layers_depth": 1, "readout_mlp_nonlinearity": "ssp"},
        {"readout_mlp_hidden_layers_depth": 1, "readout_mlp_nonlinearity": None},
    ],
    "scales": [
        {"per_type_energy_scales": 0.8, "per_type_energy_shifts": -2.0},
        {
            "per_type_energy_scales": dict(zip(TYPES, (0.8, 0.5, 0.7, 0.9, 0.6), strict=True)),
            "per_type_energy_shifts": dict(zip(TYPES, (-1.0, -2.5, -2.0, -1.5, -3.0), strict=True)),
            "per_type_energy_shifts_trainable": True,
        },
        {},
    ],
    "pairs": [{}, {"pair_potential": ZBL}, {"pair_potential": {**ZBL, "polynomial_cutoff_p": 8.0}}],
}
# Models that are also kept as TorchScript archives.
SCRIPTS = (1, 11, 17)
# Odd scalars arise in the third interaction, and influence the energy only after three more.
DEEP = {"irreps": {"l_max": 1, "parity": True, "num_features": 4, "num_layers": 6}}


def settings_of(row: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Configuration of a model, as NequIP saves it."""
    config: dict[str, Any] = {"seed": 5, "model_dtype": "float64", "type_names": TYPES, "r_max": CUTOFF}
    for setting in reversed(row.values()):  # the irreps come last: they may set other things, too
        config |= copy.deepcopy(setting)
    kind = "Preset" if "preset" in config else "Full" if "irreps_edge_sh" in config else ""
    return {"_target_": f"nequip.model.{kind}NequIPGNNModel", **config}


def built(config: dict[str, Any]) -> torch.nn.Module:
    """Build a model, with random weights of few digits, which compress well."""
    given = copy.deepcopy(config)
    model: torch.nn.Module = get_method(given.pop("_target_"))(**given).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith((".scales", ".shifts")):
                # Several splines overlap, so their weights are smaller than those of other maps.
                noise = torch.randn_like(weight) * (0.1 if "class_embed" in name else 1.0)
                weight.copy_((weight + 0.1 * noise if "bessel" in name else noise).to(torch.bfloat16))
    return model


TRAINED = {
    "run": ["train"],
    "data": {
        "_target_": "nequip.data.datamodule.ASEDataModule",
        "seed": 1,
        "train_file_path": "data.extxyz",
        "val_file_path": "data.extxyz",
        "transforms": [
            {
                "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
                "model_type_names": list(SYMBOLS),
                "chemical_species_to_atom_type_map": {symbol: symbol for symbol in SYMBOLS},
            },
            {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": CUTOFF},
        ],
        "train_dataloader": {"_target_": "torch.utils.data.DataLoader", "batch_size": 4},
        "val_dataloader": {"_target_": "torch.utils.data.DataLoader", "batch_size": 4},
        "stats_manager": {
            "_target_": "nequip.data.CommonDataStatisticsManager",
            "dataloader_kwargs": {"batch_size": 4},
            "type_names": list(SYMBOLS),
        },
    },
    "trainer": {
        "_target_": "lightning.Trainer",
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "callbacks": [{"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "out", "save_last": True}],
    },
    "training_module": {
        "_target_": "nequip.train.EMALightningModule",
        "loss": {
            "_target_": "nequip.train.EnergyForceLoss",
            "per_atom_energy": True,
            "coeffs": {"total_energy": 1.0, "forces": 1.0},
        },
        "val_metrics": {
            "_target_": "nequip.train.EnergyForceMetrics",
            "coeffs": {"total_energy_mae": 1.0, "forces_mae": 1.0},
        },
        "train_metrics": "${training_module.val_metrics}",
        "test_metrics": "${training_module.val_metrics}",
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
        "model": {
            "_target_": "nequip.model.NequIPGNNModel",
            "seed": 3,
            "model_dtype": "float32",
            "type_names": list(SYMBOLS),
            "r_max": CUTOFF,
            "num_layers": 3,
            "l_max": 1,
            "parity": True,
            "num_features": [6, 4],
            "type_embed_num_features": 5,
            "radial_mlp_depth": 1,
            "radial_mlp_width": 8,
            "num_bessels": 6,
            "bessel_trainable": True,
            "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
            "per_type_energy_shifts": "${training_data_stats:per_atom_energy_mean}",
            "per_type_energy_scales": "${training_data_stats:per_type_forces_rms}",
            "per_type_energy_shifts_trainable": True,
            "pair_potential": {**ZBL, "chemical_species": list(SYMBOLS)},
        },
    },
}


def write(folder: Path, number: int, config: dict[str, Any], versions: dict[str, str], *, scripted: bool) -> None:
    """Write the settings, weights and results of a model with random weights, and perhaps its TorchScript archive."""
    torch.manual_seed(number)
    model = built(config)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    weights = {
        name: value if "scale_shift" in name or "_rmax_recip" in name else value.astype(np.float32)
        for name, value in state.items()
        if not any(constant in name for constant in ("w3j", "output_mask"))
    }
    results = evaluated(model, partial(graph, types=TYPES, cutoff=CUTOFF))
    stem = folder / f"{number:02d}"
    np.savez_compressed(f"{stem}.npz", **weights, **{f"result {name}": value for name, value in results.items()})
    written = {"model": config, "versions": versions}
    stem.with_suffix(".json").write_text(json.dumps(written, indent=1) + "\n")
    if scripted:
        archive = stem.with_suffix(".nequip.pth")
        save_torchscript_model(model, model.metadata, str(archive), "cpu")
        archive.write_bytes(compressed(archive.read_bytes()))
    print(f"{number:02d}: largest force {np.abs(results['forces']).max():.2g} eV/angstrom")


def train(folder: Path, settings: dict[str, Any]) -> None:
    """Train a network for two epochs on random labels; write ``out/last.ckpt`` and ``out/last.nequip.zip``."""
    rng, images = np.random.default_rng(0), []
    for _ in range(12):
        cell = 4.6 * np.eye(3) + rng.normal(0, 0.1, (3, 3))
        atoms = Atoms("CuOSiCH", rng.uniform(0, 4.5, (5, 3)), cell=cell, pbc=True)
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal() - 10, forces=rng.normal(0, 1, (5, 3)))
        images.append(atoms)
    ase.io.write(folder / "data.extxyz", images)
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))
    scripts = Path(sys.executable).parent
    words = ("-cp", str(folder), "-cn", "train", "hydra.run.dir=.")
    subprocess.run([scripts / "nequip-train", *words], cwd=folder, check=True)
    package = ("build", "out/last.ckpt", "out/last.nequip.zip")
    subprocess.run([scripts / "nequip-package", *package], cwd=folder, check=True)


def keep_trained(out: Path, folder: Path) -> None:
    """Keep the parts of a trained network that an import reads, and write its results."""
    content = torch.load(out / "last.ckpt", weights_only=True)
    torch.save({key: content[key] for key in ("hyper_parameters", "state_dict")}, folder / "trained.ckpt")
    with (
        zipfile.ZipFile(out / "last.nequip.zip") as old,
        zipfile.ZipFile(folder / "trained.nequip.zip", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            if name.endswith((".storage", "/eager_model.pkl", "/package_metadata.txt", "/config.yaml")):
                new.writestr(zipfile.ZipInfo(name), old.read(name), zipfile.ZIP_DEFLATED)
    model = ModelFromPackage(str(out / "last.nequip.zip"))["sole_model"].eval()
    np.savez_compressed(folder / "trained.npz", **evaluated(model, partial(graph, types=SYMBOLS, cutoff=CUTOFF)))


def write_all(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    versions: dict[str, str],
    trained: dict[str, Any],
    scripts: Collection[int],
) -> None:
    """Write all files of a code anew.

    Args:
        folder: Folder of the files.
        rows: Settings of the models with random weights.
        versions: Versions of the codes.
        trained: Settings of the training.
        scripts: Numbers of the models that are also kept as TorchScript archives.
    """
    warnings.simplefilter("ignore")
    set_global_state(allow_tf32=False)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, row in enumerate(rows):
        write(folder, number, row, versions, scripted=number in scripts)
    with tempfile.TemporaryDirectory() as scratch:
        train(Path(scratch), trained)
        keep_trained(Path(scratch) / "out", folder)


def main() -> None:
    """Write all files anew."""
    grid = pairwise_grid(CHOICES)
    rows = [settings_of(row) for row in [*grid, {**grid[0], **DEEP}]]
    write_all(FOLDER, rows, {"nequip": nequip.__version__}, TRAINED, SCRIPTS)


if __name__ == "__main__":
    main()
