"""Make the candidates of this example: 36 pairs of metals in six structures with equal amounts of both."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import ase.io
import numpy as np
from ase.data import atomic_numbers, covalent_radii
from equiscreen.pipeline.generation.prototypes import load_prototypes

EARLY = ("Al", "Sc", "Ti", "Zr")
LATE = ("Fe", "Co", "Ni", "Cu", "Ru", "Rh", "Pd", "Ag", "Pt")
# Strukturbericht symbols of the structures, by AFLOW label: CsCl, AuCu, CuTi, AuCd, NaTl and CrB.
STRUCTURES = {
    "AB_cP2_221_b_a": "B2",
    "AB_tP2_123_a_d": "L10",
    "AB_tP4_129_c_c": "B11",
    "AB_oP4_51_e_f": "B19",
    "AB_cF16_227_a_b": "B32",
    "AB_oC8_63_c_c": "B33",
}


def main() -> None:
    """Write ``candidates.extxyz`` beside this script."""
    prototypes = {name: structure.to_ase() for name, structure in load_prototypes() if name in STRUCTURES}
    found = []
    for pair, (label, name) in product(product(EARLY, LATE), STRUCTURES.items()):
        # The two kinds of site differ in some structures, so each pair is placed on them both ways.
        for metals in (pair, pair[::-1]) if name in ("B11", "B19", "B33") else (pair,):
            atoms = prototypes[label].copy()
            _, kinds = np.unique(atoms.numbers, return_inverse=True)
            volume = sum(covalent_radii[[atomic_numbers[metal] for metal in metals]] ** 3) / 2
            usual = np.mean(covalent_radii[atoms.numbers] ** 3)
            atoms.symbols = [metals[kind] for kind in kinds]
            atoms.set_cell(atoms.cell * (volume / usual) ** (1 / 3), scale_atoms=True)
            atoms.info["structure_id"] = f"{name}-{''.join(metals)}"
            found.append(atoms)
    ase.io.write(Path(__file__).with_name("candidates.extxyz"), found, format="extxyz")


if __name__ == "__main__":
    main()
