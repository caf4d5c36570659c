"""Several models at once: mean, spread and energies are those of the members; incompatible models are rejected."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from equiscreen.export import OnnxPotential
from equiscreen.export.runtime.ensemble import Ensemble
from equiscreen.pipeline import GraphBlock, GraphStore, featurize
from equiscreen.pipeline.errors import ModelFileError
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import open_scores, screen, screen_files
from equiscreen.screening.label_comparison import calibration, labels_and_predictions
from equiscreen.screening.scoring.score import score_block
from hypothesis import given, settings
from hypothesis import strategies as st

from ...conftest import CUTOFF, ELEMENTS, write_extxyz
from ...export.runtime.altered_models import altered

FACTORS = (1.0, 1.03, 0.98)


@pytest.fixture(scope="module")
def models(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [altered(exported("float32"), folder / f"m{i}.onnx", factor) for i, factor in enumerate(FACTORS)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    source = write_extxyz(folder / "c.extxyz", 14, seed=210)
    featurize(source, folder / "c.zarr", cutoff=CUTOFF, scheduler="threads")
    return folder / "c.zarr"


@pytest.mark.parametrize("count", [2, 3])
def test_scores_are_mean_and_spread_of_the_members(models: list[Path], store: Path, tmp_path: Path, count: int) -> None:
    some = models[:count]
    scores = screen(store, some, tmp_path / "s.zarr", scheduler="threads")
    block = GraphStore(store).block(0, 14)
    each = [OnnxPotential.load(path, threads=1).evaluate(block) for path in some]
    energies = np.stack([found.energy for found in each], axis=1)
    assert np.ptp(energies, axis=1).min() > 1e-4
    assert scores["energy_members"].dims == ("structure", "member")
    assert scores["energy_members"].attrs["units"] == "eV"
    assert np.array_equal(scores["energy_members"].values, energies)
    assert np.allclose(scores["energy"].values, energies.mean(axis=1), rtol=1e-12)
    assert np.allclose(scores["energy_std"].values, energies.std(axis=1, ddof=1), rtol=1e-9, atol=1e-12)
    forces = np.stack([found.forces for found in each])
    of_atoms = np.linalg.norm(forces.std(axis=0, ddof=1), axis=1)
    assert np.allclose(scores["max_force_std"].values, np.maximum.reduceat(of_atoms, block.atom_start), rtol=1e-9)
    provenance = scores.attrs["model"]
    assert (provenance["members"], provenance["energy_scheme"]) == (count, "own")
    assert [file["path"] for file in provenance["files"]] == [path.name for path in some]
    assert len({file["sha256"] for file in provenance["files"]} | {provenance["sha256"]}) == count + 1
    error, spread = calibration(scores)
    label, prediction = labels_and_predictions(scores)
    assert np.array_equal(error, prediction - label)
    assert np.allclose(spread, scores["energy_std"].values / block.n_atoms)


def test_one_model_in_a_list_is_that_model(models: list[Path], store: Path, tmp_path: Path) -> None:
    one = screen(store, models[0], tmp_path / "a.zarr", scheduler="threads").load()
    listed = screen(store, models[:1], tmp_path / "b.zarr", scheduler="threads").load()
    assert one.assign_attrs(timing=None, seal=None).identical(listed.assign_attrs(timing=None, seal=None))
    assert "energy_members" not in one


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 1000), count=st.integers(1, 5), place=st.integers(0, 4))
def test_an_element_that_one_member_does_not_know_is_unknown_to_all(
    models: list[Path], seed: int, count: int, place: int
) -> None:
    crystals = probe_structures(ELEMENTS, count, seed, max_atoms=6)
    members = [OnnxPotential.load(path, threads=1) for path in models[:2]]
    object.__setattr__(members[place % 2].metadata, "elements", (13, 29))
    found = score_block(GraphBlock.from_structures(crystals, CUTOFF), Ensemble(members, ["a", "b"]))
    gold = [79 in crystal.atomic_number for crystal in crystals]
    assert (found["status"] == 1).tolist() == gold
    assert np.isnan(found["energy_members"]).all(axis=1).tolist() == gold
    assert np.isnan(found["energy_std"]).tolist() == gold


def test_models_that_do_not_go_together_are_refused(models: list[Path], store: Path, tmp_path: Path) -> None:
    other = altered(models[1], tmp_path / "o.onnx", energy_scheme="omat24")
    without = altered(models[1], tmp_path / "w.onnx", outputs=[{"name": "energy", "per": "structure", "shape": []}])
    ensemble = altered(models[1], tmp_path / "e.onnx", members=4)
    for wrong, message in [
        (other, r"o\.onnx: the energies follow the scheme omat24, but the energies of .*m0\.onnx follow own"),
        (without, r"w\.onnx predicts energy, .*m0\.onnx predicts energy, forces, stress"),
        (ensemble, r"e\.onnx is already an ensemble"),
        (models[0], r"m0\.onnx is the same model as .*m0\.onnx"),
    ]:
        with pytest.raises(ModelFileError, match=message):
            screen(store, [models[0], wrong], tmp_path / "s.zarr", scheduler="threads")
    with pytest.raises(ModelFileError, match="there is no model"):
        screen(store, [], tmp_path / "s.zarr", scheduler="threads")
    assert not list(tmp_path.glob("s.zarr*"))


def test_files_are_featurized_with_the_widest_cutoff_of_the_models(
    models: list[Path], store: Path, tmp_path: Path
) -> None:
    narrow = altered(models[1], tmp_path / "n.onnx", cutoff=CUTOFF - 1.0)
    scores = screen_files(
        store.with_name("c.extxyz"), [narrow, models[0]], tmp_path / "s.zarr", scheduler="threads", limit=3
    )
    assert GraphStore(tmp_path / "s.graphs.zarr").cutoff == CUTOFF
    assert scores["energy_members"].shape == (3, 2)


def test_several_models_and_limits_from_the_command_line(
    models: list[Path], store: Path, tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    out, some = tmp_path / "s.zarr", ["--model", models[0], "--model", models[1]]
    words: list[str | Path] = [store, *some, "--max-edges", "400", "--min-distance", "1.5", "--scheduler", "threads"]
    done = command_line("screen", *words, "--out", out, "--limit", "9")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: 9 structures (")
    assert "core-hours, input stall" in done.stdout
    done = command_line("screen", *words, "--out", out, "--append")
    assert done.returncode == 0, done.stderr
    scores, edges = open_scores(out), GraphStore(store).n_edges
    assert scores["energy_members"].shape == (14, 2)
    assert (scores["status"].values == 3).tolist() == (edges > 400).tolist()
    settings = {"slots", "limit", "device", "max_edges", "min_distance", "allow_extrapolation"}
    assert settings == set(scores.attrs["settings"])
    assert scores.attrs["command"].endswith("--min-distance 1.5 --scheduler threads --append")
