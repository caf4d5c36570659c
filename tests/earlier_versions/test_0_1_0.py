"""Files that version 0.1.0 wrote: stores, scores and models open, and give the numbers that they gave.

The archive holds 14 distorted alloys of Al and Cu with energies by EMT, a network trained on them for two epochs, its
ONNX file, and the scores of the alloys, made by the verbs of 0.1.0 (commit 36ed2c0).
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from equiscreen.conformance.laws import evaluate
from equiscreen.export import OnnxPotential
from equiscreen.model import load_checkpoint
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphBlock, GraphStore
from equiscreen.screening import open_scores, screen

ARCHIVE = Path(__file__).with_name("0.1.0.tar.xz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(path, filter="data")
    return path


def test_a_store_opens_with_its_graphs_as_they_would_be_made_today(folder: Path) -> None:
    store = GraphStore(folder / "alloys.zarr")
    block = store.block(0, len(store))
    again = GraphBlock.from_structures([block.structure(place) for place in range(len(block))], store.cutoff)
    assert len(block) == 14
    assert np.array_equal(block.neighbor, again.neighbor)
    assert np.array_equal(block.image, again.image)


def test_a_checkpoint_and_its_onnx_file_agree(folder: Path) -> None:
    store = GraphStore(folder / "alloys.zarr")
    structure = store.block(0, 1).structure(0)
    network, card = load_checkpoint(folder / "model.ckpt")
    eager, lowered = (
        evaluate(potential, [structure])
        for potential in (TorchPotential(network), OnnxPotential.load(folder / "model.onnx"))
    )
    assert card.training_data == store.store_hash
    assert lowered.energy == pytest.approx(eager.energy, abs=1e-5)
    assert np.abs(lowered.forces - eager.forces).max() < 1e-5


def test_scores_open_and_are_found_again(folder: Path, tmp_path: Path) -> None:
    before = open_scores(folder / "scores.zarr")
    screen(folder / "alloys.zarr", folder / "model.onnx", tmp_path / "scores.zarr", scheduler="threads")
    after = open_scores(tmp_path / "scores.zarr")
    assert before["structure_id"].values.tolist() == after["structure_id"].values.tolist()
    assert np.abs(before["energy"].values - after["energy"].values).max() < 1e-5
    assert np.abs(before["stress"].values - after["stress"].values).max() < 1e-7
