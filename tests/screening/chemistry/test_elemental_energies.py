"""Energies of the elements that come with the package."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from ase.data import atomic_numbers
from equiscreen.pipeline.energy_schemes import SCHEMES
from equiscreen.screening.chemistry.elemental_energies import SOURCES, elemental_energies


def test_energies_are_those_of_the_materials_project(data: Path) -> None:
    with gzip.open(data / "mp/mp_elemental_reference_entries.json.gz") as file:
        entries = json.load(file)
    energies = elemental_energies("mp-uncorrected")
    assert len(energies) == len(entries) == 89
    for symbol, entry in entries.items():
        expected = (entry["energy"] + entry["correction"]) / sum(entry["composition"].values())
        assert energies[symbol].energy == pytest.approx(expected, abs=1e-9)
        assert energies[symbol].name == entry["data"]["material_id"]


def test_a_scheme_has_energies_of_all_its_elements_or_of_none() -> None:
    for scheme in SCHEMES:
        energies = elemental_energies(scheme)
        assert len(energies) == (0 if scheme in {"omat24", "own"} else 89)
        assert set(energies) <= set(atomic_numbers)
    assert elemental_energies("mp2020-corrected") == elemental_energies("mp-uncorrected")
    assert set(SOURCES) <= set(SCHEMES)
