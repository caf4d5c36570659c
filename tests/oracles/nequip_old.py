"""Results of the oldest NequIP whose checkpoints are read: ``python -m tests.oracles.nequip_old``, with nequip 0.7.1.

As for the newest version (`tests.oracles.nequip`), but only for two checkpoints: a network with and one without parity.
"""

from __future__ import annotations

import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import nequip
import numpy as np
import torch
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state

from .nequip_graphs import evaluated, graph

FOLDER = Path(__file__).parent / "nequip_old"
CUTOFF = 4.0
# The types are not in the order of the atomic numbers.
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
        results = evaluated(model, partial(graph, types=TYPES, cutoff=CUTOFF))
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
