"""Small MACE checkpoints with random weights, and what mace-torch predicts with them, for tests/model/pretrained.

    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 PYTHON -m tests.oracles.mace

PYTHON is the interpreter of an environment with mace-torch only, which pins an old e3nn, whose constants PyTorch only
loads with this variable; `make oracles` makes the environment and runs this script in it. The checkpoints cover all
possible pairs of values in `SETTINGS`, and then all in `NONLINEAR`, the settings of multi-head models. The weights are
random, scaled so that features are at most one and forces as in real data; those of the first checkpoint are then
trained for some steps. The folder `mace` beside this file receives

- `settings.json`: the settings of each checkpoint, as `equiscreen import --config` reads them;
- `NUMBER.npz`: its state dict, and under `expected.` the energies, forces and stresses of all structures for the last
  head, computed in float64 whatever the dtype of the weights;
- `structures.npz`: the twelve structures;
- `module.model`: one checkpoint as mace-torch itself writes it;
- `nonlinear.model`: one of `NONLINEAR`, likewise, but compressed;
- `NUMBER-KIND.pt`: some checkpoints as TorchScript archives, in the forms that `mace_run_train`,
  `mace_create_lammps_model` and CP2K's script write.

Chebyshev polynomials get a derivative here: PyTorch has none, and mace-torch 0.3.16 silently treats the basis as a
constant, so that its forces are not the gradient of its energies.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from e3nn import o3
from e3nn.util import jit
from e3nn.util.jit import compile_mode
from mace import modules
from mace.calculators import LAMMPS_MACE, MACECalculator
from mace.modules.radial import ChebychevBasis
from numpy.typing import NDArray

from .archives import compressed

ELEMENTS = (1, 8, 13, 29)
CUTOFF = 3.6
SEED = 5
STEPS = 20
# Largest forces (eV/angstrom) and stresses (eV/angstrom^3) as in real data; rounding errors grow with them.
LARGEST = (2.0, 0.05)
# The checkpoint whose file is kept as it is: the smallest with several heads and vectors.
MODULE = 1
# Checkpoints that are also kept as TorchScript archives: as compiled networks, or for LAMMPS or CP2K.
SCRIPTS = {0: "compiled", 1: "lammps", 4: "cp2k"}
Setting = dict[str, Any]

# Values of each setting, the usual one first. Names are those of `MaceSettings`.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "model": ("ScaleShiftMACE", "MACE"),
    "interaction_cls_first": (
        "RealAgnosticResidualInteractionBlock",
        "RealAgnosticDensityInteractionBlock",
        "RealAgnosticInteractionBlock",
        "RealAgnosticDensityResidualInteractionBlock",
    ),
    "interaction_cls": (
        "RealAgnosticResidualInteractionBlock",
        "RealAgnosticDensityResidualInteractionBlock",
        "RealAgnosticInteractionBlock",
    ),
    "hidden_irreps": ("4x0e + 4x1o", "4x0e", "4x0e + 4x1o + 4x2e"),
    "max_ell": (2, 3, 1),
    "correlation": (3, 2, 1),
    "num_interactions": (2, 1, 3),
    "radial_type": ("bessel", "gaussian", "chebyshev"),
    "distance_transform": ("Agnesi", "None", "Soft"),
    "pair_repulsion": (False, True),
    "heads": (("Default",), ("pbe", "r2scan", "dft")),
    "apply_cutoff": (True, False),
    "use_last_readout_only": (False, True),
    "use_agnostic_product": (False, True),
    "edge_irreps": (None, "2x0e + 3x1o"),
    "dtype": ("float32", "float64"),
}

# Values of the settings that the multi-head models MACE-MH-0 and MACE-MH-1 introduced, those of MACE-MH-1 first.
NONLINEAR: dict[str, tuple[Any, ...]] = {
    "interaction_cls_first": (
        "RealAgnosticResidualNonLinearInteractionBlock",
        "RealAgnosticDensityInteractionBlock",
    ),
    "interaction_cls": (
        "RealAgnosticResidualNonLinearInteractionBlock",
        "RealAgnosticDensityResidualInteractionBlock",
    ),
    "readout_cls": ("NonLinearBiasReadoutBlock", "NonLinearReadoutBlock"),
    "edge_irreps": ("2x0e + 3x1o", None),
    "use_edge_irreps_first": (True, False),
    "apply_cutoff": (False, True),
    "use_agnostic_product": (True, False),
    "use_last_readout_only": (True, False),
    "heads": (("pbe", "r2scan", "dft"), ("Default",)),
    "hidden_irreps": ("4x0e + 4x1o", "4x0e + 4x1o + 4x2e"),
    "num_interactions": (2, 1, 3),
    "pair_repulsion": (True, False),
    "dtype": ("float32", "float64"),
}
# The same for all checkpoints of `NONLINEAR`.
NONLINEAR_FIXED: Setting = {
    "model": "ScaleShiftMACE",
    "max_ell": 2,
    "correlation": 2,
    "radial_type": "bessel",
    "distance_transform": "Agnesi",
}

# The same for all checkpoints.
FIXED: Setting = {
    "family": "mace",
    "r_max": CUTOFF,
    "num_bessel": 6,
    "num_polynomial_cutoff": 5,
    "MLP_irreps": "3x0e",
    "avg_num_neighbors": 9.5,
    "atomic_numbers": ELEMENTS,
    "radial_MLP": [8, 7],
}


def structures() -> list[Atoms]:
    """Crystals, a cell smaller than the cutoff, a skewed cell, a slab, molecules, and every element once."""
    rng = np.random.default_rng(SEED)

    def rattled(atoms: Atoms) -> Atoms:
        atoms.positions += rng.normal(0, 0.07, atoms.positions.shape)
        return atoms

    cell = [[3.1, 0.0, 0.0], [2.4, 2.6, 0.0], [-1.9, 1.2, 3.3]]
    skewed = Atoms("AlO", scaled_positions=[[0, 0, 0], [0.4, 0.5, 0.6]], cell=cell, pbc=True)
    every = Atoms(numbers=ELEMENTS, positions=[[0, 0, 0], [1.0, 0.2, 0.1], [2.3, 1.5, 0.2], [0.4, 2.2, 1.6]])
    every.cell, every.pbc = np.diag([4.6, 4.4, 4.2]), True
    return [
        rattled(bulk("Al", cubic=True)),
        rattled(bulk("CuO", "rocksalt", a=4.3, cubic=True)),
        rattled(bulk("AlCu", "cesiumchloride", a=2.95) * (2, 1, 1)),
        bulk("Cu"),
        skewed,
        rattled(fcc111("Al", (1, 1, 3), vacuum=6.0, periodic=False)),
        molecule("H2O"),
        rattled(molecule("H2O2")),
        Atoms("Cu"),
        Atoms("Cu2", [[0, 0, 0], [1.4, 0.3, 0.2]]),
        Atoms("HO", [[0, 0, 0], [0.75, 0.1, 0.0]]),
        every,
    ]


def grid(choices: dict[str, tuple[Any, ...]]) -> Iterator[Setting]:
    """Yield settings, chosen greedily, until each possible pair of values has occurred; the usual ones come first."""
    names, rng = list(choices), random.Random(SEED)
    pairs = {
        ((one, x), (other, y))
        for one, other in itertools.combinations(names, 2)
        for x, y in itertools.product(choices[one], choices[other])
        if possible({one: x, other: y})
    }
    chosen = {name: values[0] for name, values in choices.items()}
    while True:
        yield chosen
        pairs -= covered(chosen)
        if not pairs:
            return
        rows, missing = [], sorted(pairs, key=repr)
        for _ in range(400):
            row = {name: rng.choice(values) for name, values in choices.items()} | dict(rng.choice(missing))
            rows += [row] if possible(row) else []
        chosen = max(rows, key=lambda row: len(covered(row) & pairs))


def covered(setting: Setting) -> set[tuple[Any, Any]]:
    """Pairs of values that a combination of settings contains."""
    return set(itertools.combinations(setting.items(), 2))


def possible(setting: Setting) -> bool:
    """Whether settings are compatible: some need a second interaction, vectors, or transformed distances below one."""
    one, first_edges = setting.get("num_interactions") == 1, setting.get("use_edge_irreps_first")
    usual = [choices["interaction_cls"][0] for choices in (SETTINGS, NONLINEAR)]
    needs_more = setting.get("use_last_readout_only") or setting.get("edge_irreps") or first_edges
    needs_more = needs_more or setting.get("interaction_cls", usual[0]) not in usual
    chebyshev = setting.get("radial_type") == "chebyshev"
    return not (
        (one and needs_more)
        or (first_edges and setting.get("edge_irreps", "") is None)
        or (setting.get("edge_irreps") and setting.get("hidden_irreps") == "4x0e")
        or (chebyshev and setting.get("distance_transform", "Agnesi") != "Agnesi")
    )


def build(setting: Setting) -> torch.nn.Module:
    """Build a MACE with random weights, in float64."""
    heads, rng = setting["heads"], np.random.default_rng(SEED)
    blocks = modules.interaction_classes
    given: dict[str, Any] = {
        **{name: setting[name] for name in setting if name not in {"model", "dtype", "family"}},
        "num_elements": len(ELEMENTS),
        "interaction_cls_first": blocks[setting["interaction_cls_first"]],
        "interaction_cls": blocks[setting["interaction_cls"]],
        "atomic_energies": rng.normal(-2, 1, (len(heads), len(ELEMENTS))),
        "gate": torch.nn.functional.silu,
        "use_reduced_cg": False,
    }
    if "readout_cls" in setting:
        given["readout_cls"] = modules.readout_classes[setting["readout_cls"]]
    for name in ("hidden_irreps", "MLP_irreps", "edge_irreps"):
        given[name] = o3.Irreps(setting[name]) if setting[name] else None
    if setting["model"] == "ScaleShiftMACE":
        several = len(heads) > 1
        given["atomic_inter_scale"] = rng.uniform(0.5, 0.9, len(heads)) if several else 0.7
        given["atomic_inter_shift"] = rng.uniform(-0.2, 0.2, len(heads)) if several else 0.1
    torch.manual_seed(SEED)
    model = getattr(modules, setting["model"])(**given)
    shake(model)
    calculator = MACECalculator(models=[model], device="cpu", default_dtype="float64", head=heads[-1])
    batches = [calculator._atoms_to_batch(atoms).to_dict() for atoms in structures()]
    for product in model.products:
        found: list[torch.Tensor] = []
        hook = product.linear.register_forward_hook(lambda _, __, out, found=found: found.append(out.detach()))
        for batch in batches:
            model(batch, compute_force=False)
        hook.remove()
        product.linear.weight.data /= torch.cat(found).abs().max()
    expected = predictions(model, heads[-1])
    largest = max(np.abs(expected["forces"]).max() / LARGEST[0], np.nanmax(np.abs(expected["stress"])) / LARGEST[1])
    for readout in model.readouts:
        last = readout.linear_2 if hasattr(readout, "linear_2") else readout.linear
        last.weight.data /= max(1.0, largest)
    return model


def shake(model: torch.nn.Module) -> None:
    """Draw those weights that are the same in all new networks, or nearly zero, so that their conversion is tested."""
    rng = np.random.default_rng(SEED)
    for name, weight in model.named_parameters():
        shape = tuple(weight.shape)
        if name.endswith(("source_embedding.weight", "target_embedding.weight")):
            weight.data = torch.tensor(rng.normal(0, 1, shape))
        elif name.endswith((".alpha", ".beta")):
            weight.data = torch.tensor(rng.uniform(1, 3))
        elif ".net." in name and name.endswith(".weight") and weight.dim() == 1:
            weight.data = torch.tensor(rng.uniform(0.5, 1.5, shape))
        elif (name.startswith("readouts.") and name.endswith(".bias")) or (".net." in name and weight.dim() == 1):
            weight.data = torch.tensor(rng.normal(0, 0.3, shape))


def train(model: torch.nn.Module, head: str) -> None:
    """Fit the network to its own energies with noise, by some steps of Adam."""
    calculator = MACECalculator(models=[model], device="cpu", default_dtype="float64", head=head)
    batches = [calculator._atoms_to_batch(atoms).to_dict() for atoms in structures()]
    noise = np.random.default_rng(SEED).normal(0, 0.05, len(batches))
    targets = predictions(model, head)["energy"] / [len(atoms) for atoms in structures()] + noise
    for parameter in model.parameters():
        parameter.requires_grad = True
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for batch, target in zip(batches, targets, strict=True):
            energy = model(batch, training=True, compute_force=False)["energy"] / len(batch["batch"])
            ((energy - target) ** 2).sum().backward()
        optimizer.step()


def with_derivative(basis: ChebychevBasis, x: torch.Tensor) -> torch.Tensor:
    """Chebyshev polynomials of degrees from 1, by their recurrence."""
    functions = [torch.ones_like(x), x]
    for _ in range(1, basis.num_basis):
        functions.append(2 * x * functions[-1] - functions[-2])
    return torch.cat(functions[1:], dim=-1)


def predictions(model: torch.nn.Module, head: str) -> dict[str, NDArray[np.float64]]:
    """Energies, forces and stresses of all structures, by MACE's own calculator in float64."""
    calculator = MACECalculator(models=[model], device="cpu", default_dtype="float64", head=head)
    energies, forces, stresses = [], [], []
    for atoms in structures():
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
        stresses.append(atoms.get_stress(voigt=False) if atoms.pbc.all() else np.full((3, 3), np.nan))
    return {"energy": np.array(energies), "forces": np.concatenate(forces), "stress": np.array(stresses)}


@compile_mode("script")
class CP2K_MACE(torch.nn.Module):  # noqa: N801 - the name of CP2K's own class
    """A network and the head to use, in the form of CP2K's `create_cp2k_model.py`."""

    def __init__(self, model: torch.nn.Module, head: str) -> None:
        super().__init__()
        self.model = model
        for name in ("atomic_numbers", "r_max", "num_interactions"):
            self.register_buffer(name, getattr(model, name))
        self.register_buffer("head", torch.tensor([model.heads.index(head)]))

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, Optional[torch.Tensor]]:  # noqa: UP045 - TorchScript
        """Evaluate the network for the head."""
        data["head"] = self.head
        return self.model(data, compute_virials=True, compute_displacement=True)


def script(model: torch.nn.Module, kind: str, head: str) -> bytes:
    """A TorchScript archive of a network."""
    model = copy.deepcopy(model)
    wrapped = {
        "compiled": lambda: model,
        "lammps": lambda: LAMMPS_MACE(model, head=head),
        "cp2k": lambda: CP2K_MACE(model, head),
    }
    stream = io.BytesIO()
    torch.jit.save(jit.compile(wrapped[kind]()), stream)
    return compressed(stream.getvalue())


def main(folder: Path) -> None:
    """Write all files."""
    ChebychevBasis.forward = with_derivative
    torch.set_default_dtype(torch.float64)
    made = structures()
    arrays = {name: np.concatenate([getattr(atoms, name) for atoms in made]) for name in ("numbers", "positions")}
    cells = {
        "cells": np.array([np.array(atoms.cell) for atoms in made]),
        "pbc": np.array([atoms.pbc for atoms in made]),
    }
    np.savez_compressed(folder / "structures.npz", atoms=[len(atoms) for atoms in made], **arrays, **cells)
    files = []
    plain = len(usual := list(grid(SETTINGS)))
    multihead = [{**NONLINEAR_FIXED, **setting} for setting in grid(NONLINEAR)]
    for place, chosen in enumerate([*usual, *multihead]):
        setting = {**FIXED, **chosen}
        model = build(setting)
        if not place:
            train(model, setting["heads"][-1])
        model = model.to(getattr(torch, setting["dtype"]))
        state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        if place == MODULE:
            torch.save(model, folder / "module.model")
        if place == plain:
            stream = io.BytesIO()
            torch.save(model, stream)
            (folder / "nonlinear.model").write_bytes(compressed(stream.getvalue()))
        if place in SCRIPTS:
            content = script(model, SCRIPTS[place], setting["heads"][-1])
            (folder / f"{place}-{SCRIPTS[place]}.pt").write_bytes(content)
        expected = predictions(model, setting["heads"][-1])
        print(place, {name: value for name, value in chosen.items() if value != SETTINGS.get(name, [None])[0]})
        print(f"largest force {np.abs(expected['forces']).max():.3g} eV/angstrom", flush=True)
        found = {f"expected.{name}": value for name, value in expected.items()}
        np.savez_compressed(folder / f"{place}.npz", **state, **found)
        files.append({name: value for name, value in setting.items() if name != "dtype"})
    lines = ",\n".join(json.dumps(setting) for setting in files)
    (folder / "settings.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(Path(__file__).parent / "mace")
