"""Real crystals of known symmetry, with lattice constants from the literature."""

from __future__ import annotations

from ase.spacegroup import crystal
from equiscreen.pipeline import Structure

Site = tuple[float, float, float]

# Elements of the crystals below.
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
# Edges and angles, and one site per orbit. BaTiO3 is cubic above 393 K and tetragonal below. Quartz is the other
# enantiomer of the structure of Levien et al., American Mineralogist 65, 920 (1980).
_CELLS: dict[str, tuple[float, ...]] = {
    "rutile": (4.594, 4.594, 2.959, 90, 90, 90),
    "perovskite": (4.006, 4.006, 4.006, 90, 90, 90),
    "zincblende": (5.409, 5.409, 5.409, 90, 90, 90),
    "wurtzite": (3.250, 3.250, 5.207, 90, 90, 120),
    "tetragonal perovskite": (3.992, 3.992, 4.036, 90, 90, 90),
    "quartz": (4.916, 4.916, 5.4054, 90, 90, 120),
    "FeSi": (4.489, 4.489, 4.489, 90, 90, 90),
    "ullmannite": (5.933, 5.933, 5.933, 90, 90, 90),
}
_SITES: dict[str, list[tuple[str, Site]]] = {
    "rutile": [("Ti", (0, 0, 0)), ("O", (0.3053, 0.3053, 0))],
    "perovskite": [("Ba", (0, 0, 0)), ("Ti", (0.5, 0.5, 0.5)), ("O", (0.5, 0.5, 0))],
    "zincblende": [("Zn", (0, 0, 0)), ("S", (0.25, 0.25, 0.25))],
    "wurtzite": [("Zn", (1 / 3, 2 / 3, 0)), ("O", (1 / 3, 2 / 3, 0.382))],
    "tetragonal perovskite": [
        ("Ba", (0, 0, 0)),
        ("Ti", (0.5, 0.5, 0.522)),
        ("O", (0.5, 0.5, 0.977)),
        ("O", (0.5, 0, 0.488)),
    ],
    "quartz": [("Si", (0.4697, 0, 1 / 3)), ("O", (0.4133, 0.2672, 1 / 3 - 0.1188))],
    "FeSi": [("Fe", (0.1358, 0.1358, 0.1358)), ("Si", (0.844, 0.844, 0.844))],
    "ullmannite": [("Ni", (-0.024, -0.024, -0.024)), ("Sb", (0.625, 0.625, 0.625)), ("S", (0.390, 0.390, 0.390))],
}


def prototype(name: str) -> Structure:
    """Build one of the crystals in `GROUPS`."""
    symbols, sites = zip(*_SITES[name], strict=True)
    number = GROUPS[name][1]
    return Structure.from_ase(crystal(symbols, sites, spacegroup=number, cellpar=_CELLS[name]))


def mirrored(structure: Structure) -> Structure:
    """Return the inverted structure."""
    return Structure.from_fractional(structure.atomic_number, -structure.cell, structure.frac_coord)
