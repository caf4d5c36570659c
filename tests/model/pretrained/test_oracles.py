"""Imported networks reproduce the results that tests/oracles holds of their own codes, setting by setting."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from equiscreen.export import OnnxPotential
from equiscreen.export.exporter import lower_and_check
from equiscreen.model.checkpoint import ModelCard
from equiscreen.model.networks.base import Network
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.pretrained.nequip.allegro import allegro_network
from equiscreen.model.pretrained.nequip.files import open_checkpoint
from equiscreen.model.pretrained.nequip.nequip import nequip_network
from equiscreen.model.pretrained.sevennet import from_sevennet, modality_name
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.graphs.potential import Potential
from numpy.typing import NDArray

from ...conftest import ROOT, traced_once
from ...oracles.structures import structures

ORACLES = ROOT / "tests/oracles"
CODES = ("sevennet", "nequip", "allegro")
EVERY = [(code, stem) for code in CODES for stem in sorted(path.stem for path in (ORACLES / code).glob("[0-9]*.npz"))]
# Exported by the tests that run often.
QUICK = {("allegro", "01", torch.float32)}
# Largest differences from the oracles, which are float64: eV/atom, eV/angstrom, eV/angstrom^3. They hold for values of
# up to `USUAL` (a stress of 1.6 GPa), and grow in proportion beyond: the repulsion of a close pair is 190 eV/angstrom.
USUAL = {"energy": 3.0, "forces": 1.0, "stress": 0.01}
LIMITS = {
    torch.float64: {"energy": 1e-10, "forces": 1e-9, "stress": 1e-10},
    torch.float32: {"energy": 1e-6, "forces": 1e-5, "stress": 1e-7},
}
DTYPES = pytest.mark.parametrize("dtype", list(LIMITS), ids=["float64", "float32"])

Results = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Oracle:
    """One set of weights and settings, and the results of its own code.

    Attributes:
        written: Settings.
        state: Weights.
        results: Energies, forces and stresses of `structures`.
    """

    written: dict[str, Any]
    state: dict[str, torch.Tensor]
    results: Results


@cache
def oracle(code: str, stem: str) -> Oracle:
    written = json.loads((ORACLES / code / f"{stem}.json").read_text())
    arrays = dict(np.load(ORACLES / code / f"{stem}.npz"))
    results = {name.split()[1]: arrays.pop(name) for name in [*arrays] if name.startswith("result ")}
    return Oracle(written, {name: torch.from_numpy(array) for name, array in arrays.items()}, results)


def sevennet_content(stem: str) -> dict[str, Any]:
    """Content of a checkpoint as SevenNet writes it."""
    found = oracle("sevennet", stem)
    config = {**found.written["config"], "_type_map": dict(found.written["config"]["_type_map"])}
    return {"config": config, "model_state_dict": found.state}


def nequip_content(code: str, stem: str) -> dict[str, Any]:
    """Content of a checkpoint as NequIP writes it, also for Allegro."""
    found = oracle(code, stem)
    module = {"_target_": "nequip.train.NequIPLightningModule"}
    info = {"versions": found.written["versions"], "training_module": module}
    state = {f"model.sole_model.{name}": tensor for name, tensor in found.state.items()}
    return {"hyper_parameters": {"model": found.written["model"], "info_dict": info}, "state_dict": state}


@cache
def imported(code: str, stem: str) -> Network:
    """The network in float64."""
    if code != "sevennet":
        file = open_checkpoint(nequip_content(code, stem), stem)
        return nequip_network(file) if code == "nequip" else allegro_network(file)
    content, modality = sevennet_content(stem), oracle(code, stem).written["modality"]
    return from_sevennet(content, modality_name(content["config"], modality, stem), stem)


@cache
def block(cutoff: float) -> GraphBlock:
    made = [Structure.from_cartesian(case.numbers, case.positions, case.cell, pbc=case.pbc) for case in structures()]
    return GraphBlock.from_structures(made, cutoff)


def differences(potential: Potential, expected: Results) -> dict[str, float]:
    """Largest differences in energy per atom, forces and stress."""
    graphs = block(potential.cutoff)
    found = potential.evaluate(graphs).arrays()
    out = {name: np.abs(found[name] - expected[name]) for name in expected}
    out["energy"] = out["energy"] / graphs.n_atoms
    return {name: float(np.nanmax(values)) for name, values in out.items()}


def check(potential: Potential, expected: Results, dtype: torch.dtype, factor: float = 1) -> None:
    found = differences(potential, expected)
    assert found.keys() == LIMITS[dtype].keys()
    atoms = {"energy": block(potential.cutoff).n_atoms}
    for name, limit in LIMITS[dtype].items():
        largest = float(np.nanmax(np.abs(expected[name] / atoms.get(name, 1))))
        assert found[name] <= factor * limit * max(1.0, largest / USUAL[name]), name


def exported(network: Network) -> OnnxPotential:
    with traced_once():
        symmetry = "so3" if network.config.symmetry == "so3" else "o3"
        return OnnxPotential(lower_and_check([network], ModelCard(symmetry))[0].SerializeToString())


@DTYPES
@pytest.mark.parametrize(("code", "stem"), EVERY)
def test_the_numbers_of_their_own_code_in_pytorch(code: str, stem: str, dtype: torch.dtype) -> None:
    check(TorchPotential(copy.deepcopy(imported(code, stem)).to(dtype)), oracle(code, stem).results, dtype)


@pytest.mark.parametrize(
    ("code", "stem", "dtype"),
    [
        pytest.param(*case, dtype, marks=[] if (*case, dtype) in QUICK else pytest.mark.slow)
        for case in EVERY
        for dtype in LIMITS
    ],
)
def test_the_numbers_of_their_own_code_in_onnx(code: str, stem: str, dtype: torch.dtype) -> None:
    check(exported(copy.deepcopy(imported(code, stem)).to(dtype)), oracle(code, stem).results, dtype)
