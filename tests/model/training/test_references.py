"""Refitting reference energies: another zero of energy is taken over, and nothing else changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from equiscreen.conformance.laws import evaluate
from equiscreen.model import load_checkpoint, refit_references, train
from equiscreen.model.checkpoint import ModelCard, save_ensemble
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline.errors import ConfigError, OutputExistsError
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ...conftest import ELEMENTS
from ..conftest import small_config
from ..labelled import images, stored

TINY = {"hidden_irreps": "4x0e + 2x1o", "n_radial": 2, "correlation": 2}
SHIFTS = {13: 100.0, 29: -250.0}


@pytest.fixture(scope="module")
def start(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on alloys of three metals."""
    run = tmp_path_factory.mktemp("start") / "run"
    train(store, run, small_config(TINY, max_epochs=3))
    return run


@pytest.fixture(scope="module")
def shifted(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alloys of two of the metals, whose energies are those of the network with another zero for each element."""
    structures = probe_structures(tuple(SHIFTS), 20, seed=91, max_atoms=8)
    atoms = images(structures, emt=True)
    found = evaluate(TorchPotential(load_checkpoint(start / "model.ckpt")[0]), structures)
    for image, energy in zip(atoms, found.energy, strict=True):
        image.calc.results["energy"] = energy + sum(SHIFTS[int(z)] for z in image.numbers)
    return stored(tmp_path_factory.mktemp("shifted") / "g.zarr", atoms)


def test_only_reference_energies_change(start: Path, shifted: Path, tmp_path: Path) -> None:
    report = refit_references(start, shifted, tmp_path / "new.ckpt", scheme="r2scan")
    (old, before), (new, card) = (load_checkpoint(path) for path in (start / "model.ckpt", report.checkpoint))
    assert all(torch.equal(old.state_dict()[name], value) for name, value in new.state_dict().items())
    difference = np.subtract(new.statistics.reference_energies, old.statistics.reference_energies)
    assert difference == pytest.approx([SHIFTS.get(element, 0.0) for element in new.elements], abs=1e-4)
    assert new.statistics.energy_scales == old.statistics.energy_scales
    structures = probe_structures(ELEMENTS, 6, seed=95)
    a, b = (evaluate(TorchPotential(network), structures) for network in (old, new))
    assert np.array_equal(a.forces, b.forces)
    assert np.array_equal(a.stress, b.stress, equal_nan=True)
    assert (report.refitted, report.kept, report.n_structures, report.n_skipped) == (("Al", "Cu"), ("Au",), 20, 0)
    assert report.before > 50
    assert report.after < 1e-4
    assert "reference energies of Al, Cu fitted to 20 structures, energies r2scan; energy MAE" in str(report)
    assert (before.energy_scheme, card.energy_scheme) == ("own", "r2scan")
    assert card.validation.keys() == before.validation.keys() - {"energy eV/atom"}
    assert card.origin["reference_energies"].startswith("fitted to ")


def test_structures_with_other_elements_are_skipped_and_counted(start: Path, tmp_path: Path) -> None:
    structures = [*probe_structures((13, 79), 4, seed=92, max_atoms=6), *probe_structures((46,), 2, seed=93)]
    mixed = stored(tmp_path / "mixed.zarr", images(structures, emt=True))
    report = refit_references(start, mixed, tmp_path / "new.ckpt")
    assert (report.refitted, report.kept) == (("Al", "Au"), ("Cu",))
    assert (report.n_structures, report.n_skipped) == (4, 2)
    assert "skipped 2 structures with other elements" in str(report)


def test_a_mistake_is_named(start: Path, shifted: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.ckpt"
    with pytest.raises(ConfigError, match="unknown --scheme pbe; choose one of mp-uncorrected"):
        refit_references(start, shifted, out, scheme="pbe")
    near = stored(tmp_path / "near.zarr", images(probe_structures(ELEMENTS, 3, seed=96, max_atoms=6)), cutoff=4.0)
    with pytest.raises(ConfigError, match=r"near\.zarr: the cutoff of 4\.0 angstrom is smaller than the network's"):
        refit_references(start, near, out)
    bare = stored(tmp_path / "bare.zarr", images(probe_structures(ELEMENTS, 3, seed=96, max_atoms=6)))
    other = stored(tmp_path / "other.zarr", images(probe_structures((46, 78), 3, seed=96, max_atoms=6), emt=True))
    for store in (bare, other):
        with pytest.raises(ConfigError, match="no structure has an energy and only elements that"):
            refit_references(start, store, out)
    with pytest.raises(OutputExistsError, match=r"model\.ckpt"):
        refit_references(start / "model.ckpt", shifted, start / "model.ckpt", overwrite=True)
    for member in ("member-0", "member-1"):
        shutil.copytree(start, tmp_path / "both" / member)
    save_ensemble(tmp_path / "both", ["member-0", "member-1"], ModelCard())
    with pytest.raises(ConfigError, match=r"both is an ensemble; refit its members"):
        refit_references(tmp_path / "both", shifted, out)
    assert not out.exists()
