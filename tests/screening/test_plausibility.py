"""Implausible structures are marked, whatever their energy; real crystals and structures that relax to them are not."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import ase
import ase.build
import numpy as np
import pytest
from ase.data import covalent_radii
from equiscreen.export import OnnxPotential
from equiscreen.export.runtime.ensemble import Ensemble
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.readers.cif import structure_from_cif
from equiscreen.screening.dataset.scores import EXTRAPOLATING, OK
from equiscreen.screening.plausibility import LARGEST_FORCE, SHORTEST_OF_RADII, SHORTEST_OF_TRAINING, Plausibility
from equiscreen.screening.relaxation.batched import RELAX_STATUSES, Relaxed, RelaxSettings, relax_structures
from equiscreen.screening.scoring.score import ScoreLimits, score_block
from hypothesis import given, settings
from hypothesis import strategies as st

from ..export.runtime.altered_models import altered


@pytest.fixture(scope="module")
def potential(sevennet_model: Path) -> OnnxPotential:
    return OnnxPotential.load(sevennet_model, threads=1)


def crystal(name: str, structure: str, a: float) -> Structure:
    return Structure.from_ase(ase.build.bulk(name, structure, a=a))


def pair(symbols: str, distance: float, edge: float = 8.0) -> Structure:
    """Two atoms at some distance in a cubic cell; lengths in angstrom."""
    numbers = ase.Atoms(symbols).numbers
    return Structure.from_cartesian(numbers, [[0, 0, 0], [0, 0, distance]], np.eye(3) * edge, pbc=True)


def scored(structures: Sequence[Structure], potential: OnnxPotential, limits: ScoreLimits | None = None) -> list[int]:
    block = GraphBlock.from_structures(structures, potential.cutoff)
    found: list[int] = score_block(block, potential, limits, Plausibility.of(potential))["status"].tolist()
    return found


def relaxed(structures: Sequence[Structure], potential: OnnxPotential, **changes: object) -> list[Relaxed]:
    found = dict(relax_structures(enumerate(structures), potential, RelaxSettings(**changes)))  # type: ignore[arg-type]
    return [found[place] for place in range(len(structures))]


@given(st.integers(1, 94), st.integers(1, 94), st.floats(0.11, 1.0))
@settings(deadline=None, max_examples=50)
def test_the_bound_of_a_pair_is_that_of_the_training_data_where_it_is_known(one: int, other: int, share: float) -> None:
    radii = SHORTEST_OF_RADII * (covalent_radii[one] + covalent_radii[other])
    for known, bound in (({}, radii), ({(min(one, other), max(one, other)): 1.7}, SHORTEST_OF_TRAINING * 1.7)):
        distance = share * 2.0 * bound
        if distance <= 0.1:  # no graph has such atoms
            continue
        structure = Structure.from_cartesian([one, other], [[0, 0, 0], [0, 0, distance]])
        (doubt,) = Plausibility(known, {}).doubts(GraphBlock.from_structures([structure], 6.0))
        assert bool(doubt) == (distance < bound)


def test_own_networks_know_their_training_data(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """The shortest pair that counts is that of the file, and the longest of several files."""
    for name, distances in (("a", {"Al-Cu": 2.5}), ("b", {"Al-Cu": 3.0, "Cu-Cu": 2.0})):
        altered(exported("float32"), tmp_path / f"{name}.onnx", minimum_distances=distances)
    structures = [pair("AlCu", 2.4), pair("AlCu", 2.6), pair("CuCu", 1.7), pair("AlAl", 2.4)]
    for names, bad in (("a", []), ("b", [0, 1, 2]), ("ab", [0, 1, 2])):
        potential = Ensemble.load([tmp_path / f"{name}.onnx" for name in names], threads=1)
        block = GraphBlock.from_structures(structures, potential.cutoff)
        doubts = Plausibility.of(potential).doubts(block)
        assert [place for place, doubt in enumerate(doubts) if doubt] == bad


def test_what_is_too_dense_is_extrapolating_and_what_is_real_is_not(potential: OnnxPotential) -> None:
    nonsense = [crystal("Cu", "fcc", a) for a in (0.9, 1.3, 1.6, 2.2)]
    nonsense += [crystal("Si", "diamond", 2.2), pair("SiSi", 0.38), pair("OO", 0.5), pair("CuAl", 0.3)]
    real = [crystal("Cu", "fcc", 3.6), crystal("Si", "diamond", 5.4), crystal("NaCl", "rocksalt", 5.6)]
    real += [crystal("NaCl", "rocksalt", 9.0), pair("HH", 0.74), pair("OO", 1.2), crystal("W", "bcc", 3.2)]
    assert scored(nonsense, potential) == [EXTRAPOLATING] * len(nonsense)
    assert scored(real, potential) == [OK] * len(real)
    assert scored(nonsense[:1], potential, ScoreLimits(allow_extrapolation=True)) == [OK]


def test_a_relaxation_is_judged_by_its_end(potential: OnnxPotential) -> None:
    """Large initial forces and a long way are no reason for doubt; an endless fall in energy counts as an explosion."""
    start = [pair("OO", 0.7), crystal("NaCl", "rocksalt", 9.0), crystal("NaCl", "rocksalt", 3.6)]
    block = GraphBlock.from_structures(start[:1], potential.cutoff)
    assert np.linalg.norm(potential.evaluate(block).forces, axis=1).max() > LARGEST_FORCE
    found = relaxed([*start, crystal("Cu", "fcc", 0.9), pair("CuCu", 0.3, 4.0)], potential)
    assert [RELAX_STATUSES[one.status] for one in found] == ["ok"] * 3 + ["exploded"] * 2
    energies = [one.last.energy for one in found if one.last is not None]
    assert energies[1] == pytest.approx(energies[2], abs=1e-3)  # rock salt, from both sides
    assert "energy fell" in found[3].reason


def test_what_ends_as_nonsense_is_extrapolating(potential: OnnxPotential) -> None:
    """A criterion that everything meets: the given structure is the result."""
    easy = {"fmax": 1e12, "smax": 1e12}
    dense = crystal("Cu", "fcc", 2.2)
    (one,) = relaxed([dense], potential, **easy)
    assert RELAX_STATUSES[one.status] == "extrapolating"
    assert "eV/atom relative to isolated atoms" in one.reason
    (allowed,) = relaxed([dense], potential, allow_extrapolation=True, **easy)
    assert RELAX_STATUSES[allowed.status] == "ok"
    (rattled,) = relaxed([dense], potential, rattle=0.05, **easy)
    assert (RELAX_STATUSES[rattled.status], rattled.n_steps) == ("extrapolating", 1)


@pytest.mark.slow
def test_no_crystal_of_the_materials_project_is_extrapolating(potential: OnnxPotential, data: Path) -> None:
    with gzip.open(data / "mp/mp_20_val.csv.gz", "rt") as file:
        texts = [row["cif"] for row in islice(csv.DictReader(file), 2000)]
    structures = [structure_from_cif(text)[0] for text in texts]
    known = [one for one in structures if np.isin(one.atomic_number, potential.elements).all()]
    assert scored(known, potential) == [OK] * len(known)
