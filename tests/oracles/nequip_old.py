"""Results of the oldest NequIP whose checkpoints are read: ``python -m tests.oracles.nequip_old``, with nequip 0.7.1.

As for the newest version (`tests.oracles.nequip`), but only a network with and one without parity, as checkpoints.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import nequip
import numpy as np
import torch
from ase.neighborlist import primitive_neighbor_list
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from numpy.typing import NDArray

from .structures import NUMBERS, SYMBOLS, Case, structures

FOLDER = Path(__file__).parent / "nequip_old"
CUTOFF = 4.0
# The order of the types differs from that of the atomic numbers.
TYPES = ["Cu", "H", "Si", "O", "C"]
COMMON: dict[str, Any] = {
    "seed": 5,
    "model_dtype": "float64",
    "type_names": TYPES,
    "r_max": CUTOFF,
    "num_bessels": 5,
    "polynomial_cutoff_p": 6,
    "radial_mlp_depth": 1,
    "radial_mlp_width": 6,
    "avg_num_neighbors": 2.5,
    "per_type_energy_scales": 0.8,
    "per_type_energy_shifts": -2.0,
    "num_features": 4,
    "num_layers": 3,
}
NETWORKS: list[dict[str, Any]] = [{"l_max": 1, "parity": True}, {"l_max": 2, "parity": False}]


def graph(case: Case) -> dict[str, torch.Tensor]:
    """Input of NequIP for one structure."""
    cell = case.cell if any(case.pbc) else 100 * np.eye(3)
    i, j, shifts = primitive_neighbor_list("ijS", case.pbc, cell, case.positions, CUTOFF, self_interaction=False)
    places = {number: TYPES.index(symbol) for number, symbol in zip(NUMBERS, SYMBOLS, strict=True)}
    return {
        "pos": torch.tensor(case.positions),
        "cell": torch.tensor(cell).view(1, 3, 3),
        "edge_index": torch.tensor(np.array([i, j])),
        "edge_cell_shift": torch.tensor(shifts, dtype=torch.float64).reshape(-1, 3),
        "atom_types": torch.tensor([places[number] for number in case.numbers.tolist()]),
        "batch": torch.zeros(len(case.numbers), dtype=torch.int64),
        "num_atoms": torch.tensor([len(case.numbers)]),
    }


def evaluated(model: torch.nn.Module) -> dict[str, NDArray[np.float64]]:
    """Energies (eV), forces (eV/angstrom) and stresses (eV/angstrom^3; of crystals) of all structures."""
    energies, forces, stresses = [], [], []
    for case in structures():
        out = model(graph(case))
        energies.append(float(out["total_energy"].detach()))
        forces.append(out["forces"].detach().numpy())
        stress = out["stress"].detach().numpy().reshape(3, 3)
        stresses.append(stress if all(case.pbc) else np.full((3, 3), np.nan))
    return {"energy": np.array(energies), "forces": np.concatenate(forces), "stress": np.array(stresses)}


def main() -> None:
    """Write all files anew."""
    warnings.simplefilter("ignore")
    set_global_state(allow_tf32=False)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    for number, network in enumerate(NETWORKS):
        config = {**COMMON, **network}
        model = NequIPGNNModel(**config).eval()
        torch.manual_seed(number)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if not name.endswith((".scales", ".shifts")):
                    noise = torch.randn_like(weight)
                    weight.copy_((weight + 0.1 * noise if "bessel" in name else noise).to(torch.bfloat16))
        results = evaluated(model)
        info = {
            "versions": {"nequip": nequip.__version__},
            "training_module": {"_target_": "nequip.train.NequIPLightningModule"},
        }
        content = {
            "hyper_parameters": {"model": {"_target_": "nequip.model.NequIPGNNModel", **config}, "info_dict": info},
            "state_dict": {f"model.sole_model.{name}": x for name, x in model.state_dict().items()},
        }
        torch.save(content, FOLDER / f"{number:02d}.ckpt")
        np.savez_compressed(FOLDER / f"{number:02d}.npz", **results)
        print(f"{number:02d}: largest force {np.abs(results['forces']).max():.2g} eV/angstrom")


if __name__ == "__main__":
    main()
