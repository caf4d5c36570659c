"""Act one: its candidates, its ranking, and known compounds at the top of the ranking."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from ase import Atoms
from equiscreen.demo.alloys import PROTOTYPES
from equiscreen.demo.composition import element_fractions
from equiscreen.demo.intermetallics import elemental_volume, intermetallics, write_intermetallics
from equiscreen.demo.phases import PhaseList, rank_phases
from equiscreen.demo.published import COLUMNS, run_published
from equiscreen.pipeline import GraphBlock, LabelMapping, Structure, featurize
from equiscreen.screening import screen

from ..conftest import CUTOFF


@pytest.fixture(scope="module")
def candidates() -> list[Atoms]:
    return list(intermetallics(("Al", "Cu")))


@pytest.fixture(scope="module")
def screened(
    exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, xr.Dataset, PhaseList]:
    """Two metals scored by an untrained network: the laws of the ranking hold for any energies."""
    folder = tmp_path_factory.mktemp("phases")
    write_intermetallics(folder / "c.extxyz", ("Al", "Cu"))
    graphs = folder / "c.zarr"
    featurize(
        folder / "c.extxyz",
        graphs,
        cutoff=CUTOFF,
        labels=LabelMapping(columns=COLUMNS),
        dedup="crystal",
        scheduler="threads",
    )
    scores = screen(graphs, exported("float32"), folder / "s.zarr", scheduler="threads")
    return graphs, scores, rank_phases(graphs, scores)


def test_every_order_of_the_elements_is_there_once(candidates: list[Atoms]) -> None:
    names = [atoms.info["structure_id"] for atoms in candidates]
    assert len(set(names)) == len(names)
    binary = {name for name in names if "-Al-Cu-" in name}
    assert {name.replace("-Al-Cu-", "-Cu-Al-") for name in binary} <= set(names)
    labels = {name.split("-")[0] for name in names}
    assert labels < PROTOTYPES
    assert PROTOTYPES - labels == {label for label in PROTOTYPES if len(re.findall("[A-Z]", label.split("_")[0])) > 2}


def test_volumes_are_those_of_the_elements_times_the_ratio(candidates: list[Atoms]) -> None:
    for atoms in candidates:
        own = sum(elemental_volume(number) for number in atoms.numbers)
        assert atoms.get_volume() == pytest.approx(atoms.info["relative_volume"] * own, rel=1e-10)
    # Densities from handbooks: 2.70 g/cm3 for Al, 4.51 for Ti, 19.3 for W.
    for number, mass, density in ((13, 26.98, 2.70), (22, 47.87, 4.51), (74, 183.84, 19.3)):
        assert elemental_volume(number) == pytest.approx(mass / density / 0.60221, rel=0.01)
    with pytest.raises(ValueError, match="Ga is"):
        elemental_volume(31)


def test_fractions_add_up(candidates: list[Atoms]) -> None:
    block = GraphBlock.from_structures([Structure.from_ase(atoms) for atoms in candidates[:200:7]], 2.0)
    fractions = element_fractions(block, [13, 29])
    assert np.allclose(fractions.sum(axis=1), 1)
    for atoms, share in zip(candidates[:200:7], fractions, strict=True):
        assert share[0] == pytest.approx(np.mean(atoms.numbers == 13))


def test_one_phase_for_each_formula_and_structure_type(screened: tuple[Path, xr.Dataset, PhaseList]) -> None:
    _, scores, phases = screened
    found = [phase for system in phases.systems.values() for phase in system]
    assert len({(phase.formula, phase.strukturbericht) for phase in found}) == len(found)
    energies = (
        scores.drop_vars("stress").to_dataframe().groupby(["formula", "strukturbericht"])["energy_per_atom"].min()
    )
    assert len(found) == len(energies)
    for phase in found:
        assert phase.energy == energies[phase.formula, phase.strukturbericht]


def test_formation_energies_rank_and_the_elements_are_zero(screened: tuple[Path, xr.Dataset, PhaseList]) -> None:
    _, _, phases = screened
    assert list(phases.systems) == [("Al",), ("Cu",), ("Al", "Cu")]
    for metal, reference in phases.elements.items():
        assert reference.formation_energy == 0
        assert phases.systems[(metal,)][0] == reference
    for system in phases.systems.values():
        assert all(first.formation_energy <= second.formation_energy for first, second in pairwise(system))
    aluminium, copper = (phases.elements[metal].energy for metal in ("Al", "Cu"))
    for phase in phases.systems[("Al", "Cu")]:
        if phase.formula == "AlCu3":
            assert phase.formation_energy == pytest.approx(phase.energy - aluminium / 4 - copper * 3 / 4)


def test_the_list_is_that_of_the_scored(screened: tuple[Path, xr.Dataset, PhaseList]) -> None:
    graphs, scores, phases = screened
    lowest = phases.systems[("Al", "Cu")][0]
    lost = scores["formula"].values == lowest.formula
    again = rank_phases(graphs, scores.assign(status=scores["status"].where(~lost, 2)))
    left = [phase for phase in phases.systems[("Al", "Cu")] if phase.formula != lowest.formula]
    assert again.systems[("Al", "Cu")] == tuple(left)


def test_an_element_without_a_reliable_energy_takes_its_compounds_along(
    screened: tuple[Path, xr.Dataset, PhaseList],
) -> None:
    graphs, scores, phases = screened
    lost = scores["formula"].values == "Al"
    again = rank_phases(graphs, scores.assign(status=scores["status"].where(~lost, 4)))
    assert again.elements == {"Cu": phases.elements["Cu"]}
    assert again.systems == {("Cu",): phases.systems[("Cu",)]}


@pytest.mark.slow
def test_published_weights_find_the_compounds_of_nickel_and_aluminium(tmp_path: Path) -> None:
    report = run_published(tmp_path, metals=("Al", "Ni"), scheduler="threads")
    assert report.candidates.read == report.candidates.stored + report.candidates.duplicate
    assert report.phases.elements["Al"].strukturbericht == report.phases.elements["Ni"].strukturbericht == "A1"
    phases = report.phases.systems[("Al", "Ni")]
    assert (phases[0].formula, phases[0].strukturbericht) == ("AlNi", "B2")
    # The Materials Project has -0.659 eV/atom for B2 AlNi (mp-1487); calorimetry of L1_2 AlNi3 gave -41.3 to -42.3
    # kJ/mol of atoms, -0.43 to -0.44 eV (doi:10.1007/BF02648485).
    assert phases[0].formation_energy == pytest.approx(-0.66, abs=0.03)
    gamma_prime = min((phase for phase in phases if phase.formula == "AlNi3"), key=lambda phase: phase.formation_energy)
    assert gamma_prime.strukturbericht == "L1_2"
    assert gamma_prime.formation_energy == pytest.approx(-0.43, abs=0.03)
    text = str(report)
    assert "Nothing is relaxed" in text
    assert "other known phases of these metals are not included" in text
