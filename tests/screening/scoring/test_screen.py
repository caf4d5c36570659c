"""Screening: scores equal those of the network, with units, statuses and provenance; no structure is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import xarray as xr
from equiscreen.cli.terminal.describe import describe
from equiscreen.export import OnnxPotential
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphBlock, GraphStore, LabelMapping, featurize
from equiscreen.pipeline.errors import ModelFileError, OutputExistsError, StoreError
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import open_scores, screen
from equiscreen.screening.dataset.parts import cut
from equiscreen.screening.dataset.scores import NOT_FINITE, OK, STATUS_MEANINGS, UNKNOWN_ELEMENT
from equiscreen.screening.scoring.score import score_block
from equiscreen.screening.scoring.screen import cut_screen, estimate, summary
from hypothesis import given, settings
from hypothesis import strategies as st

from ...conftest import CUTOFF, ELEMENTS, small_network


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graph store of 30 crystals that the model supports, one with uranium, and a molecule."""
    folder = tmp_path_factory.mktemp("candidates")
    images = [s.to_ase() for s in probe_structures(ELEMENTS, 30, seed=60)]
    images.insert(7, probe_structures([92, 29], 1, seed=61)[0].to_ase())
    images[7].numbers[0] = 92
    images.append(ase.Atoms("Cu2", positions=[[0, 0, 0], [2.2, 0, 0]]))
    for place, atoms in enumerate(images):
        atoms.info.update(structure_id=f"c{place}", batch=f"b{place % 3}")
    ase.io.write(folder / "c.extxyz", images)
    mapping = LabelMapping(columns=("batch",))
    featurize(folder / "c.extxyz", folder / "c.zarr", cutoff=5.0, labels=mapping, scheduler="threads")
    return folder / "c.zarr"


def test_scores_are_the_networks_with_units_and_provenance(
    candidates: Path, exported: Callable[[str], Path], network: EquivariantNetwork, tmp_path: Path
) -> None:
    model = exported("float32")
    scores = screen(candidates, model, tmp_path / "s.zarr", scheduler="threads")
    graphs = GraphStore(candidates)
    known = np.array([i for i in range(32) if i != 7])
    block = graphs.block(0, 32).take(known)
    expected = TorchPotential(network).evaluate(block)
    assert np.allclose(scores["energy"].values[known], expected.energy, rtol=0, atol=1e-4)
    per_atom = scores["energy_per_atom"].values[known]
    assert np.allclose(per_atom, expected.energy / block.n_atoms, rtol=0, atol=1e-5)
    largest = np.maximum.reduceat(np.linalg.norm(expected.forces, axis=1), block.atom_start)
    assert np.allclose(scores["max_force"].values[known], largest, atol=1e-4)
    assert np.allclose(scores["stress"].values[known], expected.stress, atol=1e-5, equal_nan=True)

    assert scores["status"].values.tolist() == [1 if i == 7 else 0 for i in range(32)]
    assert np.isnan(scores["energy"].values[7])
    assert np.isnan(scores["stress"].values[31]).all()
    assert np.isnan(scores["volume"].values[31])
    assert scores["structure_id"].values.tolist() == [f"c{i}" for i in range(32)]
    assert scores["batch"].values.tolist()[:4] == ["b0", "b1", "b2", "b0"]
    assert scores["formula"].values[31] == "Cu"
    assert {"structure_id", "formula", "n_atoms", "volume", "status", "batch"} <= set(scores.coords)
    assert scores["energy"].attrs["units"] == "eV"
    assert scores["stress"].attrs["units"] == "eV/angstrom^3"
    assert scores.attrs["graph_store"] == {
        "path": f"../{candidates.parent.name}/{candidates.name}",
        "store_hash": graphs.store_hash,
    }
    assert scores.attrs["model"]["sha256"] == OnnxPotential.load(model).sha256
    assert scores.attrs["status_counts"] == {
        meaning: {0: 31, 1: 1}.get(i, 0) for i, meaning in enumerate(STATUS_MEANINGS)
    }
    assert "31 ok, 1 unknown element" in summary(scores, "s.zarr")
    assert json.dumps(describe(tmp_path / "s.zarr"))
    xr.testing.assert_identical(open_scores(tmp_path / "s.zarr"), scores)


def test_a_model_that_looks_further_than_the_graphs_is_refused(exported: Callable[[str], Path], tmp_path: Path) -> None:
    ase.io.write(tmp_path / "c.extxyz", [s.to_ase() for s in probe_structures(ELEMENTS, 2, seed=1)])
    featurize(tmp_path / "c.extxyz", tmp_path / "c.zarr", cutoff=CUTOFF - 0.5, scheduler="threads")
    with pytest.raises(ModelFileError, match=r"featurize .* --model"):
        screen(tmp_path / "c.zarr", exported("float32"), tmp_path / "s.zarr", scheduler="threads")


def test_a_store_of_unknown_elements_gives_no_scores(exported: Callable[[str], Path], tmp_path: Path) -> None:
    ase.io.write(tmp_path / "c.extxyz", [s.to_ase() for s in probe_structures([92], 3, seed=1)])
    featurize(tmp_path / "c.extxyz", tmp_path / "c.zarr", cutoff=CUTOFF, scheduler="threads")
    with pytest.raises(StoreError, match=r"none of the 3 structures could be scored \(3 unknown element"):
        screen(tmp_path / "c.zarr", exported("float32"), tmp_path / "s.zarr", scheduler="threads")
    assert not (tmp_path / "s.zarr").exists()


def test_an_output_that_exists_and_a_limit(candidates: Path, exported: Callable[[str], Path], tmp_path: Path) -> None:
    scores = screen(candidates, exported("float32"), tmp_path / "s.zarr", scheduler="threads", limit=5)
    assert scores.sizes["structure"] == 5
    with pytest.raises(OutputExistsError):
        screen(candidates, exported("float32"), tmp_path / "s.zarr", scheduler="threads")


@pytest.mark.parametrize(("size", "largest"), [(1, 250_000), (1000, 250_000), (2000, 750_000), (20_000, 1_000_000)])
def test_parts_cover_all_structures_and_are_larger_in_large_screens(size: int, largest: int) -> None:
    edges = np.random.default_rng(0).integers(0, 60_000, size).astype(np.int32)
    spans = cut_screen(edges)
    assert spans[0][0] == 0
    assert spans[-1][1] == size
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    sums = [edges[a:b].sum() for a, b in spans]
    assert max(sums) < largest + 60_000
    assert all(found >= largest for found in sums[:-1])


def test_parts_of_small_structures_end_by_their_number() -> None:
    assert cut(np.zeros(10, np.int32), 100, 4) == [(0, 4), (4, 8), (8, 10)]
    assert cut(np.array([100, 99, 1, 5], np.int32), 100, 4) == [(0, 1), (1, 3), (3, 4)]
    assert cut(np.zeros(0, np.int32), 100, 4) == []


def test_estimate(candidates: Path, exported: Callable[[str], Path]) -> None:
    assert estimate(candidates, exported("float32")).structures == 32


@settings(deadline=None, max_examples=15)
@given(order=st.permutations(range(6)), unknown=st.sets(st.integers(0, 5), max_size=6))
def test_rows_follow_their_structures_whatever_stands_beside_them(
    network: EquivariantNetwork, order: list[int], unknown: set[int]
) -> None:
    crystals = probe_structures(ELEMENTS, 6, seed=62, max_atoms=8)
    for place in unknown:
        numbers = np.array([92, *crystals[place].atomic_number[1:]], dtype=np.uint8)
        crystals[place] = replace(crystals[place], atomic_number=numbers)
    block = GraphBlock.from_structures(crystals, CUTOFF)
    potential = TorchPotential(network)
    before, after = score_block(block, potential), score_block(block.take(order), potential)
    assert before["status"].tolist() == [UNKNOWN_ELEMENT if place in unknown else OK for place in range(6)]
    for name, values in before.items():
        if name in ("energy", "energy_per_atom", "max_force", "stress"):
            # Other structures in the batch and other padding: float64 rounding.
            assert np.allclose(after[name], values[order], rtol=0, atol=1e-10, equal_nan=True), name
            assert np.array_equal(np.isnan(values).reshape(6, -1).all(axis=1), before["status"] != OK)
        else:
            assert np.array_equal(after[name], values[order], equal_nan=values.dtype.kind == "f"), name


def test_scores_that_are_not_finite_are_told_and_spread_to_no_other() -> None:
    broken = small_network(correlation=2)
    with torch.no_grad():
        broken.embedding.weight[broken.elements.index(79)] = torch.nan
    with_gold, without = probe_structures((29, 79), 1, seed=63), probe_structures((13, 29), 3, seed=64)
    arrays = score_block(GraphBlock.from_structures([*without, *with_gold], CUTOFF), TorchPotential(broken))
    assert 79 in with_gold[0].atomic_number
    assert arrays["status"].tolist() == [OK, OK, OK, NOT_FINITE]
    assert np.isnan(arrays["energy"]).tolist() == [False, False, False, True]
    assert np.isnan(arrays["stress"][3]).all()
    assert arrays["n_atoms"][3] == len(with_gold[0])
