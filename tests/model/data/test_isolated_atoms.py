"""Isolated atoms give the reference energies, and crystals of one atom do not."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from equiscreen.model import train
from equiscreen.model.checkpoint import load_checkpoint
from equiscreen.model.config.config import Config
from equiscreen.model.data.isolated_atoms import energies_of_isolated_atoms, isolated_atoms
from equiscreen.pipeline import GraphStore, LabelMapping, featurize
from equiscreen.pipeline.errors import ConfigError
from equiscreen.pipeline.structures.random_crystals import probe_structures

CUTOFF = 4.0
CONFIG = {
    "network": {"hidden_irreps": "4x0e + 2x1o", "n_interactions": 1, "l_max": 1, "correlation": 1, "cutoff": CUTOFF},
    "training": {"max_epochs": 1, "batch_size": 8, "split": {"validation": 0.2}},
}


def labelled(atoms: ase.Atoms, energy: float, **info: object) -> ase.Atoms:
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((len(atoms), 3)))
    atoms.info.update(info)
    return atoms


def store_of(folder: Path, images: list[ase.Atoms]) -> GraphStore:
    ase.io.write(folder / "in.extxyz", images)
    columns = LabelMapping(columns=("config_type",) if any("config_type" in one.info for one in images) else ())
    featurize(folder / "in.extxyz", folder / "g.zarr", cutoff=CUTOFF + 1, scheduler="threads", labels=columns)
    return GraphStore(folder / "g.zarr")


def test_what_is_isolated(tmp_path: Path) -> None:
    box = [2.1 * CUTOFF] * 3
    images = [
        labelled(ase.Atoms("H"), -1.0),
        labelled(ase.Atoms("O", cell=box, pbc=True), -2.0),
        labelled(ase.Atoms("N", cell=[[8.5, 0, 0], [0, 8.5, 0], [4.3, 4.2, 6.0]], pbc=True), -3.0),
        labelled(ase.Atoms("C", cell=[5.0] * 3, pbc=True), -4.0, config_type="IsolatedAtom"),
        labelled(ase.build.bulk("Cs", "bcc", a=6.1), -0.9),  # nearest neighbour at 5.3 angstrom
        labelled(ase.Atoms("C", cell=[1.9 * CUTOFF] * 3, pbc=True), -5.0),
        labelled(ase.Atoms("H", cell=[3.0, 0, 0], pbc=(True, False, False)), -6.0),
    ]
    store = store_of(tmp_path, images)
    found = isolated_atoms([store], [np.ones(len(store), dtype=bool)], CUTOFF)
    expected = [True, True, True, True, False, False, False]
    assert found[0].tolist() == expected
    assert energies_of_isolated_atoms([store], found) == {1: -1.0, 6: -4.0, 7: -3.0, 8: -2.0}


@pytest.mark.parametrize("name", ["IsolatedAtom", "isolated_atom"])
def test_a_marked_atom_needs_no_column(name: str, tmp_path: Path) -> None:
    """The label of the data set counts, whether or not the user keeps its column."""
    images = [
        labelled(ase.Atoms("C", cell=[5.0] * 3, pbc=True), -4.0, config_type=name),
        labelled(ase.Atoms("C", cell=[5.1] * 3, pbc=True), -4.5, config_type="bulk"),
        labelled(ase.Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], cell=[9.0] * 3, pbc=True), -9.0, config_type=name),
    ]
    ase.io.write(tmp_path / "in.extxyz", images)
    featurize(tmp_path / "in.extxyz", tmp_path / "g.zarr", cutoff=CUTOFF + 1, scheduler="threads")
    store = GraphStore(tmp_path / "g.zarr")
    found = isolated_atoms([store], [np.ones(len(store), dtype=bool)], CUTOFF)
    assert found[0].tolist() == [True, False, False]
    assert energies_of_isolated_atoms([store], found) == {6: -4.0}


SKEWED = [[9.0, 0, 0], [27.0, 9.0, 0], [27.5, 27.3, 9.0]]  # of which the reduced cell is nearly cubic


@pytest.mark.parametrize("cell", [SKEWED, SKEWED[::-1], (-np.array(SKEWED)).tolist()])
@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, True, True), (True, False, False)])
def test_the_nearest_image_in_any_cell(cell: list[list[float]], pbc: tuple[bool, ...], tmp_path: Path) -> None:
    """Left-handed and skewed cells, also of slabs and chains, against a search among many images."""
    images = np.array([image for image in product(range(-8, 9), repeat=3) if any(image)])
    lattice = np.array(cell)
    nearest = np.linalg.norm(images[(images[:, ~np.array(pbc)] == 0).all(axis=1)] @ lattice, axis=1).min()
    store = store_of(tmp_path, [labelled(ase.Atoms("H", cell=lattice, pbc=pbc), -1.0)])
    for cutoff, expected in ((nearest / 2 - 1e-6, True), (nearest / 2 + 1e-6, False)):
        assert isolated_atoms([store], [np.ones(1, dtype=bool)], cutoff)[0].tolist() == [expected]


def test_two_energies_of_one_element_are_named(tmp_path: Path) -> None:
    store = store_of(tmp_path, [labelled(ase.Atoms("H"), -1.0, name="a"), labelled(ase.Atoms("H"), -1.5, cell=None)])
    found = isolated_atoms([store], [np.ones(len(store), dtype=bool)], CUTOFF)
    with pytest.raises(ConfigError, match=r"isolated atom H has two energies, -1 eV \(.*and -1.5 eV"):
        energies_of_isolated_atoms([store], found)


def test_they_are_the_reference_energies_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [labelled(s.to_ase(), float(rng.normal(-20, 5))) for s in probe_structures((13, 29), 20, 1)]
    alone = {"Al": -1.25, "Cu": -3.5}
    images += [labelled(ase.Atoms(symbol), energy) for symbol, energy in alone.items()]
    store = store_of(tmp_path, images)
    train([store.path], tmp_path / "run", Config.parse(CONFIG, "test"))
    network, _ = load_checkpoint(tmp_path / "run" / "model.ckpt")
    assert network.elements == (13, 29)
    assert network.statistics.reference_energies == (-1.25, -3.5)
    with np.load(tmp_path / "run" / "split.npz") as split:
        rows = np.concatenate([split["training_0"], split["validation_0"], split["test_0"]])
    assert sorted(rows.tolist()) == list(range(20))
