"""Crystals whose symmetry is known: real ones, with lattice constants from the literature."""

from __future__ import annotations

from collections.abc import Sequence

from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal
from equiscreen.pipeline import Structure

# All elements of the crystals below.
PROTOTYPE_ELEMENTS = (8, 14, 16, 22, 26, 28, 30, 51, 56)

CENTROSYMMETRIC = ("rutile", "perovskite")
CHIRAL = ("quartz", "FeSi", "ullmannite")
ACHIRAL = ("rutile", "perovskite", "zincblende", "wurtzite", "tetragonal perovskite")
# Order of the point group and number of the space group.
GROUPS = {
    "rutile": (16, 136),
    "perovskite": (48, 221),
    "zincblende": (24, 216),
    "wurtzite": (12, 186),
    "tetragonal perovskite": (8, 99),
    "quartz": (6, 152),
    "FeSi": (12, 198),
    "ullmannite": (12, 198),
}


def prototype(name: str) -> Structure:
    """One of `GROUPS`."""
    return Structure.from_ase(_atoms(name))


def mirrored(structure: Structure) -> Structure:
    """The image under inversion."""
    return Structure.from_fractional(structure.atomic_number, -structure.cell, structure.frac_coord)


def _atoms(name: str) -> Atoms:
    match name:
        case "zincblende":
            return bulk("ZnS", "zincblende", a=5.409)
        case "wurtzite":
            return bulk("ZnO", "wurtzite", a=3.250, c=5.207, u=0.382)
        case "rutile":
            return _crystal(["Ti", "O"], [(0, 0, 0), (0.3053, 0.3053, 0)], 136, (4.594, 4.594, 2.959, 90, 90, 90))
        case "perovskite":  # BaTiO3 above 393 K
            sites = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)]
            return _crystal(["Ba", "Ti", "O"], sites, 221, (4.006, 4.006, 4.006, 90, 90, 90))
        case "tetragonal perovskite":  # and below
            sites = [(0, 0, 0), (0.5, 0.5, 0.522), (0.5, 0.5, 0.977), (0.5, 0, 0.488)]
            return _crystal(["Ba", "Ti", "O", "O"], sites, 99, (3.992, 3.992, 4.036, 90, 90, 90))
        case "quartz":  # Levien et al., American Mineralogist 65, 920 (1980), as the other enantiomer
            sites = [(0.4697, 0, 1 / 3), (0.4133, 0.2672, 1 / 3 - 0.1188)]
            return _crystal(["Si", "O"], sites, 152, (4.916, 4.916, 5.4054, 90, 90, 120))
        case "FeSi":
            return _crystal(["Fe", "Si"], [(0.1358,) * 3, (0.844,) * 3], 198, (4.489, 4.489, 4.489, 90, 90, 90))
        case "ullmannite":
            sites = [(-0.024,) * 3, (0.625,) * 3, (0.390,) * 3]
            return _crystal(["Ni", "Sb", "S"], sites, 198, (5.933, 5.933, 5.933, 90, 90, 90))
    raise ValueError(name)


def _crystal(
    symbols: Sequence[str], sites: Sequence[Sequence[float]], number: int, cell: Sequence[float]
) -> Atoms:
    return crystal(symbols, sites, spacegroup=number, cellpar=cell)
