"""Results of deployed NequIP networks: ``python -m tests.oracles.nequip_deploy``, with the package nequip 0.6.2.

Each network is deployed by `nequip-deploy` from a training folder that holds its configuration and random weights, and
evaluated in float64.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from nequip.model import model_from_config
from nequip.scripts import deploy
from nequip.scripts.train import default_config
from nequip.utils import Config

from .archives import compressed
from .nequip_graphs import evaluated, graph
from .structures import Case

FOLDER = Path(__file__).parent / "nequip_deploy"
CUTOFF = 4.0
# The types are not in the order of the atomic numbers.
TYPES = ["Cu", "H", "Si", "O", "C"]
COMMON = {
    "default_dtype": "float64",
    "model_dtype": "float64",
    "allow_tf32": False,
    "seed": 5,
    "type_names": TYPES,
    "chemical_symbol_to_type": {symbol: place for place, symbol in enumerate(TYPES)},
    "r_max": CUTOFF,
    "num_basis": 5,
    "invariant_layers": 1,
    "invariant_neurons": 6,
    "avg_num_neighbors": 2.5,
    "per_species_rescale_shifts": -2.0,
    "global_rescale_scale": 0.8,
}
SSP = {"nonlinearity_scalars": {"e": "ssp", "o": "tanh"}, "nonlinearity_gates": {"e": "ssp", "o": "abs"}}
NETWORKS: list[dict[str, Any]] = [
    {"l_max": 1, "parity": True, "num_features": 4, "num_layers": 3},
    {"l_max": 2, "parity": False, "num_features": 3, "num_layers": 2, "use_sc": False, "invariant_layers": 2, **SSP},
    {
        "chemical_embedding_irreps_out": "5x0e",
        "feature_irreps_hidden": "4x0e+2x0o+3x1o+2x1e+2x2e",
        "irreps_edge_sh": "0e+1o+2e",
        "conv_to_output_hidden_irreps_out": "3x0e",
        "num_layers": 4,
        "avg_num_neighbors": None,
        "PolynomialCutoff_p": 5,
        "global_rescale_scale": None,
        "per_species_rescale_scales": [0.8, 0.5, 0.7, 0.9, 0.6],
        "per_species_rescale_shifts": [-1.0, -2.5, -2.0, -1.5, -3.0],
        "nonlinearity_gates": {"e": "tanh", "o": "tanh"},
    },
    {"l_max": 1, "parity": False, "num_features": 4, "num_layers": 4, "BesselBasis_trainable": False},
]


def graph_of(case: Case) -> dict[str, torch.Tensor]:
    """Input of this version of NequIP for one structure, without a batch axis."""
    given = graph(case, TYPES, CUTOFF)
    return {
        **{name: given[name] for name in ("pos", "edge_index", "edge_cell_shift")},
        "cell": given["cell"].view(3, 3),
        "atom_types": given["atom_types"].view(-1, 1),
    }


def built(config: dict[str, Any]) -> torch.nn.Module:
    """Build a model, with random weights of few digits, which compress well."""
    model = model_from_config(Config.from_dict(config), initialize=True).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            weight.copy_((weight + 0.1 * noise if "bessel" in name else noise).to(torch.bfloat16))
    return model


def deployed(config: dict[str, Any], model: torch.nn.Module) -> bytes:
    """The file that `nequip-deploy` writes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "config.yaml").write_text(yaml.safe_dump(config))
        torch.save(model.state_dict(), place / "best_model.pth")
        deploy.main(["build", "--train-dir", folder, str(place / "model.pth")])
        return compressed((place / "model.pth").read_bytes())


def main() -> None:
    """Write all files anew."""
    torch.set_default_dtype(torch.float64)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    for number, network in enumerate(NETWORKS):
        torch.manual_seed(number)
        config = {**default_config, "device": "cpu", **COMMON, **network}
        # This setting holds tuples, which YAML would convert to lists.
        del config["_jit_fusion_strategy"]
        model = built(config)
        results = evaluated(model, graph_of)
        np.savez_compressed(FOLDER / f"{number:02d}.npz", **results)
        (FOLDER / f"{number:02d}.pth").write_bytes(deployed(config, model))
        print(f"{number:02d}: largest force {np.abs(results['forces']).max():.2g} eV/angstrom")


if __name__ == "__main__":
    main()
