"""Exports of many kinds of networks; each export runs all its checks, among them agreement with PyTorch and symmetries.

A handful of combinations that covers presets, symmetries, heads, outputs, dtypes and opsets pairwise always runs; the
full product of presets, symmetries, heads and dtypes is slow.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from equiscreen.export import OnnxPotential
from equiscreen.export.exporter import export_onnx, lower_and_check
from equiscreen.export.graph_builder import OPSETS
from equiscreen.model.checkpoint import ModelCard, save_checkpoint
from equiscreen.model.config.network import PRESETS
from equiscreen.model.networks.base import Network
from equiscreen.model.networks.reflection import mirror_violation
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphBlock
from equiscreen.pipeline.errors import ConfigError, ExportError
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening.dataset.scores import score_arrays
from equiscreen.screening.scoring.score import score_block

from ..conformance.networks import EVERY_HEAD, NEQUIP, nequip_of, network_of
from ..conftest import ELEMENTS, traced_once

SYMMETRIES = ("natural", "o3", "so3")
HIDDEN = {"natural": "2x0e + 2x1o", "o3": "2x0e + 2x1o + 1x1e", "so3": "2x0e + 2x1e"}
HEADS = {
    "none": {},
    "scalar": {"gap": EVERY_HEAD["gap"], "charge": EVERY_HEAD["charge"]},
    "tensor": {"permittivity": EVERY_HEAD["permittivity"]},
}
# The smallest networks of the architectures in `NEQUIP`. tests/conformance/test_onnx.py exports larger ones.
SMALLEST = {
    "sevennet": {**NEQUIP["sevennet"], "hidden_irreps": ("2x0e + 2x1e", "2x0e + 2x1e", "2x0e"), "l_max": 1},
    "nequix": {**NEQUIP["nequix"], "hidden_irreps": ("2x0e + 2x1o", "2x0e"), "l_max": 1},
}
# Preset, symmetry, heads, outputs, dtype, opset. Most combinations of values of any two columns occur.
HANDFUL = [
    ("small", "natural", "none", None, "float32", 17),
    pytest.param("medium", "o3", "scalar", ("energy",), "float64", 23, marks=pytest.mark.slow),
    pytest.param("large", "so3", "tensor", ("energy", "permittivity"), "float32", 20, marks=pytest.mark.slow),
    pytest.param("small", "o3", "tensor", ("forces", "stress"), "float64", 18, marks=pytest.mark.slow),
    pytest.param("sevennet", "so3", "none", ("energy", "forces"), "float32", 23, marks=pytest.mark.slow),
    pytest.param("nequix", "natural", "none", ("energy",), "float64", 17, marks=pytest.mark.slow),
]


def narrow(kind: str, symmetry: str, heads: str, dtype: str, **depth: int) -> Network:
    """A network with the depth and the degrees of a preset, or of its own depth, but with few channels."""
    cast: torch.dtype = getattr(torch, dtype)
    if kind in NEQUIP:
        return nequip_of(SMALLEST[kind], cast)
    preset = PRESETS[kind]
    shape = {key: preset[key] for key in ("l_max", "correlation", "n_interactions") if key in preset} | depth
    settings: dict[str, Any] = {"symmetry": symmetry, "hidden_irreps": HIDDEN[symmetry], "heads": HEADS[heads]}
    return network_of({**shape, **settings}, dtype=cast)


@pytest.mark.parametrize(("kind", "symmetry", "heads", "outputs", "dtype", "opset"), HANDFUL)
def test_networks_of_many_kinds_export(
    kind: str, symmetry: str, heads: str, outputs: tuple[str, ...] | None, dtype: str, opset: int
) -> None:
    network = narrow(kind, symmetry, heads, dtype, n_interactions=1)
    card = ModelCard("so3" if symmetry == "so3" else "o3")
    model, metadata = lower_and_check([network], card, outputs, opset)
    names = outputs or tuple(spec.name for spec in network.outputs)
    assert [value.name for value in model.graph.output] == list(names)
    assert [spec.name for spec in metadata.outputs] == list(names)
    assert {key.partition("/")[0] for key in metadata.laws} == {*names}
    assert [(x.domain, x.version) for x in model.opset_import] == [("", opset)]
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "symmetry", "heads", "dtype"),
    list(itertools.product(PRESETS, SYMMETRIES, HEADS, ("float32", "float64"))),
)
def test_the_whole_grid(preset: str, symmetry: str, heads: str, dtype: str) -> None:
    _, metadata = lower_and_check(
        [narrow(preset, symmetry, heads, dtype)], ModelCard("so3" if symmetry == "so3" else "o3")
    )
    assert metadata.laws


def test_energies_by_themselves_are_those_of_the_whole_model_and_take_fewer_nodes() -> None:
    network = narrow("small", "natural", "none", "float32", n_interactions=1)
    with traced_once():
        whole, alone = (lower_and_check([network], ModelCard(), outputs)[0] for outputs in (None, ["energy"]))
    assert len(alone.graph.node) < 0.5 * len(whole.graph.node)
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 5, seed=3), network.cutoff)
    potential = OnnxPotential(alone.SerializeToString())
    found, expected = potential.evaluate(block), OnnxPotential(whole.SerializeToString()).evaluate(block)
    assert np.array_equal(found.energy, expected.energy)
    assert np.isnan(found.forces).all()
    assert np.isnan(found.stress).all()
    names = {spec.name for spec in score_arrays(potential.outputs)}
    assert {"energy", "energy_per_atom"} < names
    assert not {"max_force", "stress"} & names
    rows = score_block(block, potential)
    assert (rows["status"] == 0).all()
    assert np.array_equal(rows["energy"], expected.energy)


def test_outputs_and_opsets_that_do_not_exist_are_told() -> None:
    network = narrow("small", "natural", "none", "float32")
    with pytest.raises(ExportError, match=r"no output energies; choose from energy, forces, stress"):
        lower_and_check([network], ModelCard(), ["energies"])
    with pytest.raises(ExportError, match="no outputs are requested"):
        lower_and_check([network], ModelCard(), [])
    assert 20 in OPSETS


@pytest.mark.slow
def test_the_mean_with_the_mirror_image_knows_parity(tmp_path: Path) -> None:
    network = narrow("sevennet", "so3", "none", "float32")
    alone = mirror_violation(TorchPotential(network), network.config)
    assert alone["forces eV/angstrom"] > 1e-4
    save_checkpoint(tmp_path / "m.ckpt", network, ModelCard("so3", mirror_violation=alone))
    with traced_once():
        export_onnx(tmp_path / "m.ckpt", tmp_path / "m.onnx", average_mirror=True)
    potential = OnnxPotential.load(tmp_path / "m.onnx", threads=1)
    assert potential.metadata.symmetry == "o3"
    assert not potential.metadata.mirror_violation
    assert "forces/mirrored" in potential.metadata.laws
    assert mirror_violation(potential, network.config)["forces eV/angstrom"] < 1e-2 * alone["forces eV/angstrom"]
    save_checkpoint(tmp_path / "n.ckpt", narrow("nequix", "natural", "none", "float32"), ModelCard())
    with pytest.raises(ConfigError, match="already respects mirror symmetry"):
        export_onnx(tmp_path / "n.ckpt", tmp_path / "n.onnx", average_mirror=True)
