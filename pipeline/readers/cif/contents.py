"""What a data block states about the content of its cell: formula and Z, multiplicities, volume and density."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import gemmi

from .elements import is_element
from .tags import Tags, number

_TERM = re.compile(r"([A-Z][a-z]?)(\d*\.?\d*)")
_FORMULA = re.compile(r"(?:[A-Z][a-z]?\d*\.?\d*\s*)+")
# Relative tolerances: larger than the rounding of printed cells, and about as large as the effect of one missing
# hydrogen atom in a light molecule.
_VOLUME_TOLERANCE = 0.05
_DENSITY_TOLERANCE = 0.05
# Relative tolerance of formulas with fractional amounts, which chemical analyses round.
_FRACTION_TOLERANCE = 0.02
# Relative tolerance of F(000), which may contain the real part of anomalous scattering.
_ELECTRON_TOLERANCE = 0.05
_GRAMS_PER_CM3 = 1.66053907  # one dalton per cubic angstrom


@dataclass(frozen=True, slots=True)
class Contents:
    """What a data block states about the content of its cell; NaN for every quantity that it does not give.

    Attributes:
        formula: Atoms of a formula unit, or of the cell as pymatgen writes it, by atomic number.
        units: Number of formula units in the cell.
        volume: Volume of the cell, angstrom^3.
        density: Calculated density, g/cm^3.
        mass: Mass of a formula unit, dalton.
        electrons: Number of electrons in the cell; some files add other contributions to the scattering.
    """

    formula: Mapping[int, float] = field(default_factory=dict)
    units: float = math.nan
    volume: float = math.nan
    density: float = math.nan
    mass: float = math.nan
    electrons: float = math.nan

    def contradiction(self, numbers: Sequence[int], volume: float) -> str:
        """Return what contradicts the atoms of a cell; an empty string if nothing does.

        Args:
            numbers: Atomic numbers of all atoms in the cell.
            volume: Volume of the cell, angstrom^3.
        """
        found = dict(Counter(numbers))
        if self.formula:
            if not any(_agrees(found, wanted) for wanted in self._expected(found)):
                units = f", Z = {self.units:g}" if self.units > 0 else ""
                return f"the cell holds {_text(found)}, but the formula is {_text(self.formula)}{units}"
        elif self.units > 0 and any(count % self.units for count in found.values()):
            return f"the cell holds {_text(found)}, which are not {self.units:g} formula units (Z)"
        if self.volume > 0 and abs(self.volume / volume - 1) > _VOLUME_TOLERANCE:
            return f"the cell has a volume of {volume:.2f} angstrom^3, but the file states {self.volume:g}"
        if self.density > 0:
            density = _mass(numbers) * _GRAMS_PER_CM3 / volume
            if abs(density / self.density - 1) > _DENSITY_TOLERANCE:
                return f"the atoms give a density of {density:.3f} g/cm^3, but the file states {self.density:g}"
        return "" if self.formula else self._of_units(numbers)

    def _of_units(self, numbers: Sequence[int]) -> str:
        """Return what contradicts the mass of a formula unit or the number of electrons; empty if nothing does."""
        mass = _mass(numbers) / self.units if self.units > 0 else 0.0
        if mass and self.mass > 0 and abs(mass / self.mass - 1) > _DENSITY_TOLERANCE:
            return f"a formula unit has a mass of {mass:.1f} dalton, but the file states {self.mass:g}"
        if self.electrons > 0 and abs(sum(numbers) / self.electrons - 1) > _ELECTRON_TOLERANCE:
            return f"the atoms have {sum(numbers)} electrons, but the file states {self.electrons:g} (F_000)"
        return ""

    @property
    def confirms(self) -> bool:
        """Whether the stated content, if the atoms agree with it, proves that no atom is missing."""
        whole = (bool(self.formula) or self.mass > 0) and self.units > 0
        return whole or self.density > 0 or self.electrons > 0

    def _expected(self, found: Mapping[int, int]) -> list[dict[int, float]]:
        if not self.units > 0:
            total = sum(self.formula.values())
            factor = sum(found.values()) / total if total else 0.0
            return [{number: count * factor for number, count in self.formula.items()}]
        whole = all(count % self.units == 0 for count in self.formula.values())
        of_cell = [dict(self.formula)] if whole else []  # pymatgen writes the formula of the cell
        return [{number: count * self.units for number, count in self.formula.items()}, *of_cell]


def read_contents(block: gemmi.cif.Block, tags: Tags) -> Contents:
    """Read what a data block states about the content of its cell."""
    formula = "_chemical_formula_sum"
    return Contents(
        parse_formula(tags.text(block, formula)) if formula in tags.names else {},
        tags.number(block, "_cell_formula_units_z"),
        tags.number(block, "_cell_volume"),
        tags.number(block, "_exptl_crystal_density_diffrn"),
        tags.number(block, "_chemical_formula_weight"),
        tags.number(block, "_exptl_crystal_f_000"),
    )


@lru_cache(maxsize=4096)
def parse_formula(text: str) -> Mapping[int, float]:
    """Return the atoms of a plain formula, by atomic number; empty if the formula cannot be parsed."""
    words = " ".join(text.split())
    if not _FORMULA.fullmatch(words):
        return {}
    counts: dict[int, float] = {}
    for symbol, count in _TERM.findall(words):
        element = "H" if symbol in ("D", "T") else symbol
        if not is_element(element):
            return {}
        number = int(gemmi.Element(element).atomic_number)
        counts[number] = counts.get(number, 0.0) + (float(count) if count.strip(".") else 1.0)
    return counts if all(counts.values()) else {}


def multiplicity_contradiction(stated: Sequence[str], generated: Sequence[int], order: int) -> str:
    """Return what contradicts the stated numbers of equivalent sites; an empty string if nothing does.

    Some programs write the order of the site's symmetry instead, which is accepted.

    Args:
        stated: Stated multiplicity of each listed site, as written.
        generated: Number of atoms that each site generates.
        order: Number of operations.
    """
    values = {text: number(text) for text in {*stated}}
    known = [(at, values[text], made) for at, (text, made) in enumerate(zip(stated, generated, strict=True), start=1)]
    known = [one for one in known if not math.isnan(one[1])]
    if all(one == made for _, one, made in known) or all(one * made == order for _, one, made in known):
        return ""
    site, one, made = next(found for found in known if found[1] != found[2])
    return f"site {site} has a stated multiplicity of {one:g}, but the symmetry generates {made} atoms from it"


def _agrees(found: Mapping[int, int], wanted: Mapping[int, float]) -> bool:
    if found == wanted:
        return True
    if found.keys() != wanted.keys():
        return False
    for element, count in wanted.items():
        whole = abs(count - round(count)) < 1e-6
        if abs(found[element] - count) > (1e-6 if whole else _FRACTION_TOLERANCE * count):
            return False
    return True


def _mass(numbers: Sequence[int]) -> float:
    """Return the total mass of atoms with these atomic numbers, dalton."""
    return float(sum(gemmi.Element(number).weight for number in numbers))


def _text(counts: Mapping[int, float]) -> str:
    return " ".join(f"{gemmi.Element(number).name}{count:g}" for number, count in counts.items())
