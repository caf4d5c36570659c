"""Results of Allegro: ``python -m tests.oracles.allegro``, in an environment with the package nequip-allegro 0.8.3.

As for NequIP (`tests.oracles.nequip`), everything is computed in float64, and one network is trained and packaged.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import allegro
import nequip

from .grid import pairwise_grid
from .nequip import CUTOFF, TRAINED, TYPES, ZBL, write_all
from .structures import SYMBOLS

FOLDER = Path(__file__).parent / "allegro"
BESSEL = {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed"}
SPLINE = {"_target_": "allegro.nn.TwoBodySplineScalarEmbed"}
# Models that are also kept as TorchScript archives.
SCRIPTS = (0, 1)
CHOICES: dict[str, list[dict[str, Any]]] = {
    "irreps": [
        {"l_max": 2, "parity": True, "num_layers": 3},
        {"l_max": 3, "parity": False, "num_layers": 2},
        {"l_max": 1, "parity": True, "num_layers": 1},
    ],
    "latents": [
        {"allegro_mlp_hidden_layers_depth": 1, "allegro_mlp_hidden_layers_width": 7},
        {"allegro_mlp_hidden_layers_depth": 2, "allegro_mlp_hidden_layers_width": 5, "allegro_mlp_nonlinearity": "ssp"},
        {"allegro_mlp_hidden_layers_depth": 2, "allegro_mlp_hidden_layers_width": 6, "allegro_mlp_nonlinearity": None},
        {"allegro_mlp_hidden_layers_depth": 0},
    ],
    "radial": [
        {"radial_chemical_embed": {**BESSEL, "num_bessels": 5, "polynomial_cutoff_p": 6}},
        {"radial_chemical_embed": {**BESSEL, "num_bessels": 4, "polynomial_cutoff_p": 5, "bessel_trainable": True}},
        {"radial_chemical_embed": {**SPLINE, "num_splines": 6, "spline_span": 4}},
    ],
    "embedding": [
        {"scalar_embed_mlp_hidden_layers_depth": 1, "scalar_embed_mlp_hidden_layers_width": 6},
        {
            "radial_chemical_embed_dim": 10,
            "scalar_embed_mlp_hidden_layers_depth": 2,
            "scalar_embed_mlp_hidden_layers_width": 5,
            "scalar_embed_mlp_nonlinearity": "mish",
        },
        {"scalar_embed_mlp_hidden_layers_depth": 0},
    ],
    "readout": [
        {"readout_mlp_hidden_layers_depth": 1, "readout_mlp_hidden_layers_width": 5},
        {
            "readout_mlp_hidden_layers_depth": 2,
            "readout_mlp_hidden_layers_width": 4,
            "readout_mlp_nonlinearity": "ssp",
        },
        {
            "readout_mlp_hidden_layers_depth": 1,
            "readout_mlp_hidden_layers_width": 4,
            "readout_mlp_nonlinearity": "None",
        },
    ],
    "pairs": [{}, {"pair_potential": {**ZBL, "polynomial_cutoff_p": 8.0}}],
    "scales": [
        {"per_type_energy_scales": 0.8, "per_type_energy_shifts": -2.0},
        {
            "per_type_energy_scales": dict(zip(TYPES, (0.8, 0.5, 0.7, 0.9, 0.6), strict=True)),
            "per_type_energy_shifts": dict(zip(TYPES, (-1.0, -2.5, -2.0, -1.5, -3.0), strict=True)),
            "per_type_energy_shifts_trainable": True,
        },
    ],
    "features": [
        {"num_scalar_features": 6, "num_tensor_features": 3},
        {"num_scalar_features": 4, "num_tensor_features": 2},
    ],
    "products": [{}, {"tp_path_channel_coupling": False}],
    "neighbours": [
        {"avg_num_neighbors": 2.5},
        {"avg_num_neighbors": dict(zip(TYPES, (1.5, 2.0, 2.5, 1.25, 3.0), strict=True))},
    ],
    "cutoffs": [{}, {"per_edge_type_cutoff": {"H": 2.5, "Cu": {"O": 3.0, "Cu": 3.5}}}],
    "normalisation": [{}, {"forward_normalize": False}],
}
# Further irreps: scalars only; then, with the full builder, features that are all even, and a choice of features with
# one weight for all degrees.
MORE: list[dict[str, Any]] = [
    {
        "l_max": 0,
        "parity": False,
        "num_layers": 2,
        "per_type_energy_scales": None,
        "per_type_energy_shifts": None,
    },
    {"irreps_edge_sh": "0e+1e+2e", "tensor_track_allowed_irreps": "0e+1e+2e", "num_layers": 3},
    {
        "irreps_edge_sh": "0e+1o+2e",
        "tensor_track_allowed_irreps": "0e+2e+1o+1e",
        "num_layers": 4,
        "weight_individual_irreps": False,
        "avg_num_neighbors": 60.0,
    },
]
TRAINED_MODEL = {
    "_target_": "allegro.model.AllegroModel",
    "seed": 3,
    "model_dtype": "float32",
    "type_names": list(SYMBOLS),
    "r_max": CUTOFF,
    "l_max": 2,
    "parity": True,
    "num_layers": 3,
    "num_scalar_features": 8,
    "num_tensor_features": 4,
    "radial_chemical_embed": {**BESSEL, "num_bessels": 6, "bessel_trainable": True},
    "scalar_embed_mlp_hidden_layers_width": 8,
    "allegro_mlp_hidden_layers_width": 8,
    "readout_mlp_hidden_layers_width": 8,
    "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
    "per_type_energy_shifts": "${training_data_stats:per_atom_energy_mean}",
    "per_type_energy_scales": "${training_data_stats:per_type_forces_rms}",
    "per_type_energy_shifts_trainable": True,
    "pair_potential": {**ZBL, "chemical_species": list(SYMBOLS)},
}


def settings_of(row: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Configuration of a model, as NequIP saves it."""
    config: dict[str, Any] = {"seed": 5, "model_dtype": "float64", "type_names": TYPES, "r_max": CUTOFF}
    for setting in reversed(row.values()):  # the irreps come last: they may set other things, too
        config |= copy.deepcopy(setting)
    builder = "allegro_models.FullAllegroModel" if "irreps_edge_sh" in config else "AllegroModel"
    return {"_target_": f"allegro.model.{builder}", **config}


def main() -> None:
    """Write all files anew."""
    grid = pairwise_grid(CHOICES)
    rows = [settings_of(row) for row in [*grid, *({**grid[0], "irreps": irreps} for irreps in MORE)]]
    versions = {"nequip": nequip.__version__, "allegro": allegro.__version__}
    module = {**TRAINED["training_module"], "model": TRAINED_MODEL}
    write_all(FOLDER, rows, versions, {**TRAINED, "training_module": module}, SCRIPTS)


if __name__ == "__main__":
    main()
