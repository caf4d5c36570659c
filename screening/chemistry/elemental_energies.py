"""Elemental reference energies for formation energies, by energy scheme.

The table beside this module holds the total energy per atom of the stable phase of 89 elements:

- ``mp-uncorrected``: the elemental reference entries of the Materials Project (GGA; CC-BY-4.0), as collected by
  Matbench Discovery (Riebesell et al., Nature Machine Intelligence 7, 836, 2025; MIT). MP2020 does not correct
  elements, so these energies also serve ``mp2020-corrected``.
- ``matpes-pbe`` and ``r2scan``: MatPES (Kaplan et al., arXiv:2503.04070), as distributed with MatCalc 0.7.0 (BSD-3).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...pipeline.energy_schemes import CORRECTED, MATPES_PBE, R2SCAN, UNCORRECTED

_TABLE = Path(__file__).with_name("elemental_energies.csv")
_MATPES = "MatPES, Kaplan et al., arXiv:2503.04070; from MatCalc 0.7.0, BSD-3"
SOURCES = {
    UNCORRECTED: "Materials Project, CC-BY-4.0; from Matbench Discovery, MIT",
    MATPES_PBE: _MATPES,
    R2SCAN: _MATPES,
}


@dataclass(frozen=True, slots=True)
class ElementalEnergy:
    """The reference energy of an element.

    Attributes:
        energy: Total energy, eV/atom.
        name: Id of the reference phase in its database.
    """

    energy: float
    name: str


def elemental_energies(scheme: str) -> Mapping[str, ElementalEnergy]:
    """Return the reference energies of an energy scheme, by symbol; empty for a scheme without any, such as ``own``.

    Example:
        >>> elemental_energies("mp-uncorrected")["Cu"]
        ElementalEnergy(energy=-4.09920667, name='mp-30')
    """
    return _read().get(UNCORRECTED if scheme == CORRECTED else scheme, {})


@cache
def _read() -> Mapping[str, Mapping[str, ElementalEnergy]]:
    found: dict[str, dict[str, ElementalEnergy]] = {scheme: {} for scheme in SOURCES}
    with _TABLE.open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["scheme"]][row["element"]] = ElementalEnergy(float(row["energy_per_atom"]), row["id"])
    return found
