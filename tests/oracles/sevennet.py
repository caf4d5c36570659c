"""Results of SevenNet: ``python -m tests.oracles.sevennet``, in an environment with the package sevenn 0.13.

Everything is computed in float64. SevenNet itself always computes in float32, because it casts its one-hot vectors to
float32; this script replaces them.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import sevenn
import torch
from ase.neighborlist import primitive_neighbor_list
from numpy.typing import NDArray
from torch import Tensor

from .grid import pairwise_grid
from .structures import NUMBERS, Case, structures

warnings.simplefilter("ignore")
from sevenn import _keys as KEY  # noqa: E402, N812 - after its warnings are silenced
from sevenn._const import DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG  # noqa: E402
from sevenn.model_build import build_E3_equivariant_model  # noqa: E402
from sevenn.nn.node_embedding import OnehotEmbedding  # noqa: E402

FOLDER = Path(__file__).parent / "sevennet"
CUTOFF = 4.0
POLYNOMIAL = {"cutoff_function_name": "poly_cut", "poly_cut_p_value": 6}
MODAL = {"use_modality": True, "_modal_map": {"A": 0, "B": 1}, "_number_of_modalities": 2, "default_modal": "A"}
EVERYWHERE = dict.fromkeys(
    (f"use_modal_{part}" for part in ("node_embedding", "self_inter_intro", "self_inter_outro", "output_block")), True
)
MANUAL = "4x0e+3x0o+2x1o+3x1e+2x2e"
# The first combination is SevenNet's default.
CHOICES: dict[str, list[dict[str, Any]]] = {
    "parity": [{"is_parity": True}, {"is_parity": False}],
    "self connection": [
        {"self_connection_type": "nequip"},
        {"self_connection_type": "linear"},
        {"self_connection_type": ["linear", "nequip", "linear"]},
    ],
    "scalars": [
        {"act_scalar": {"e": "silu", "o": "tanh"}},
        {"act_scalar": {"e": "ssp", "o": "abs"}},
        {"act_scalar": {"e": "ssp", "o": "tanh"}},
    ],
    "gates": [{"act_gate": {"e": "silu", "o": "tanh"}}, {"act_gate": {"e": "ssp", "o": "abs"}}],
    "radial": [{"act_radial": name} for name in ("silu", "tanh", "ssp", "sigmoid", "elu", "relu", "abs")],
    "readout": [
        {"readout_as_fcn": False},
        *(
            {"readout_as_fcn": True, "readout_fcn_hidden_neurons": widths, "readout_fcn_activation": name}
            for widths, name in (([5, 4], "ssp"), ([6], "relu"), ([5], "tanh"))
        ),
    ],
    "degrees": [{"lmax": 1}, {"lmax": 2}, {"lmax": 2, "lmax_node": 1}, {"lmax": 1, "lmax_edge": 3}],
    "layers": [{"num_convolution_layer": 3}, {"num_convolution_layer": 2}],
    "channels": [{"channel": 4}, {"channel": 3, "manual": True}],
    "envelope": [
        {"cutoff_function": POLYNOMIAL},
        {"cutoff_function": {**POLYNOMIAL, "poly_cut_p_value": 5}},
        {"cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 3.4}},
    ],
    "bias": [{"use_bias_in_linear": False}, {"use_bias_in_linear": True}],
    "harmonics": [{"_normalize_sph": True}, {"_normalize_sph": False}],
    "scales": [
        {"per element": False},
        {"per element": True},
        {**MODAL, **EVERYWHERE, "use_modal_wise_shift": True},
        {**MODAL, "use_modal_self_inter_outro": True, "use_modal_wise_shift": True, "use_modal_wise_scale": True},
    ],
}
# Odd scalars arise in the third interaction, and influence the energy only after three more.
DEEP = [
    {"layers": {"num_convolution_layer": 6}, "scalars": {"act_scalar": {"e": "silu", "o": x}}} for x in ("tanh", "abs")
]


def in_float64(self: OnehotEmbedding, data: dict[str, Tensor]) -> dict[str, Tensor]:
    """One-hot vectors in float64; the original casts them to float32."""
    numbers = data[self.key_x]
    vectors = torch.nn.functional.one_hot(numbers, self.num_classes).double()
    places = ((self.key_output, vectors), (self.key_additional_output, vectors), (self.key_save, numbers))
    return data | {key: value for key, value in places if key is not None}


def settings_of(row: dict[str, dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    """Configuration of a model, as SevenNet saves it."""
    config = copy.deepcopy(DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG)
    for setting in row.values():
        config |= setting
    layers = config["num_convolution_layer"]
    if isinstance(config["self_connection_type"], list):
        config["self_connection_type"] = config["self_connection_type"][:layers]
    if config.pop("manual", False):
        last = "4x0e+2x0o" if config["is_parity"] and not config["readout_as_fcn"] else "4x0e"
        manual = MANUAL if config["is_parity"] else "4x0e+3x1e+2x2e"
        config["irreps_manual"] = ["4x0e", *[manual] * (layers - 1), last]
    shape = () if config.pop("per element", None) is False else (len(NUMBERS),)
    modal = (2,) if config.get("use_modality") else ()
    for name, key, mean in (("shift", "use_modal_wise_shift", -2.0), ("scale", "use_modal_wise_scale", 1.5)):
        sizes = (*(modal if config.get(key) else ()), *shape)
        config[name] = (mean + rng.uniform(-0.5, 0.5, sizes)).tolist()
        config.setdefault(key, False)
    # Harmonics of degree l grow as r^l unless they are evaluated for unit vectors.
    growth = 1 if config["_normalize_sph"] else 4.0 ** max(config["lmax"], config["lmax_edge"])
    return config | {
        "cutoff": CUTOFF,
        "weight_nn_hidden_neurons": [6, 5],
        "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 5},
        "conv_denominator": [growth * float(x) for x in rng.uniform(0.8, 1.6, layers)],
        "_number_of_species": len(NUMBERS),
        "_type_map": {number: place for place, number in enumerate(sorted(NUMBERS, key=str))},
        "_model_type": "E3_equivariant_model",
        "version": sevenn.__version__,
    }


def graph(case: Case) -> dict[str, Tensor]:
    """Input of SevenNet for one structure."""
    cell = case.cell if any(case.pbc) else np.eye(3)
    i, j, vectors = primitive_neighbor_list("ijD", case.pbc, cell, case.positions, CUTOFF, self_interaction=False)
    return {
        KEY.NODE_FEATURE: torch.tensor(case.numbers),
        KEY.ATOMIC_NUMBERS: torch.tensor(case.numbers),
        KEY.EDGE_IDX: torch.tensor(np.array([i, j])),
        KEY.EDGE_VEC: torch.tensor(vectors).reshape(-1, 3),
        KEY.CELL_VOLUME: torch.tensor([abs(np.linalg.det(cell))]),
        KEY.NUM_ATOMS: torch.tensor([len(case.numbers)]),
        KEY.BATCH: torch.zeros(len(case.numbers), dtype=torch.int64),
    }


def evaluated(model: torch.nn.Module, modality: int | None) -> dict[str, NDArray[np.float64]]:
    """Energies (eV), forces (eV/angstrom) and stresses (eV/angstrom^3; of crystals) of all structures."""
    energies, forces, stresses = [], [], []
    for case in structures():
        data = graph(case)
        if modality is not None:
            data[KEY.MODAL_TYPE] = torch.tensor([modality])
        out = model(data)
        energies.append(float(out[KEY.PRED_TOTAL_ENERGY].detach()))
        forces.append(out[KEY.PRED_FORCE].detach().numpy())
        xx, yy, zz, xy, yz, zx = (-out[KEY.PRED_STRESS].detach().numpy()).reshape(6)
        stress = np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]])
        stresses.append(stress if all(case.pbc) else np.full((3, 3), np.nan))
    return {"energy": np.array(energies), "forces": np.concatenate(forces), "stress": np.array(stresses)}


def moderate(model: torch.nn.Module, modality: int | None) -> None:
    """Reduce the scale until energies, forces and stresses are as in real materials, which float32 resolves well."""
    rescale = model.get_submodule("rescale_atomic_energy")
    shift = rescale.shift.detach().clone()
    with torch.no_grad():
        rescale.shift.zero_()
    found = evaluated(model, modality)
    atoms = np.array([len(case.numbers) for case in structures()])
    energy, force, stress = found["energy"] / atoms, found["forces"], np.nan_to_num(found["stress"])
    factor = min(1, 2 / np.abs(energy).max(), 1 / np.abs(force).max(), 0.05 / np.abs(stress).max())
    with torch.no_grad():
        rescale.scale.copy_((rescale.scale * factor).float())
        rescale.shift.copy_(shift)


def main() -> None:
    """Write all files anew."""
    torch.set_default_dtype(torch.float64)
    OnehotEmbedding.forward = in_float64
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    grid = pairwise_grid(CHOICES)
    for number, row in enumerate([*grid, *({**grid[0], **deep} for deep in DEEP)]):
        torch.manual_seed(number)
        config = settings_of(row, np.random.default_rng(number))
        model = build_E3_equivariant_model(copy.deepcopy(config)).eval()
        model.eval_modal_map = False  # the fidelity is given by its number
        chosen = number % 2 if config.get("use_modality") else None
        with torch.no_grad():
            for name, weight in model.named_parameters():
                # Weights with few digits, which compress well; those that are one or a frequency are changed a little.
                noise = torch.randn_like(weight)
                small = "bias" in name or "basis_function" in name or "rescale" in name
                value = weight + 0.1 * noise if small or "denominator" in name else noise
                weight.copy_(value.to(torch.bfloat16))
        moderate(model, chosen)
        weights = {
            name: value.numpy().astype(np.float32)
            for name, value in model.state_dict().items()
            if "_w3j" not in name and "output_mask" not in name
        }
        results = {f"result {name}": value for name, value in evaluated(model, chosen).items()}
        stem = FOLDER / f"{number:02d}"
        np.savez_compressed(f"{stem}.npz", **weights, **results)
        modality = [*MODAL["_modal_map"]][chosen] if chosen is not None else None
        written = {"modality": modality, "config": {**config, "_type_map": [*config["_type_map"].items()]}}
        stem.with_suffix(".json").write_text(json.dumps(written, indent=1) + "\n")
        forces = np.abs(results["result forces"]).max()
        print(f"{number:02d}: largest force {forces:.2g} eV/angstrom", row["degrees"], row["layers"])


if __name__ == "__main__":
    main()
