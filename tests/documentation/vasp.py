"""A stand-in for VASP: it reads POSCAR in the current folder and writes vasprun.xml, with energies of a pair potential.

The file holds what readers of vasprun.xml look for, in the order in which VASP writes it.
"""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.units import GPa
from numpy.typing import ArrayLike

KBAR = 0.1 * GPa
_STEP = """ <calculation>
  <scstep><energy>
   <i name="e_fr_energy">{energy:.8f}</i><i name="e_wo_entrp">{energy:.8f}</i><i name="e_0_energy">{energy:.8f}</i>
  </energy></scstep>
  <structure><crystal><varray name="basis">{cell}</varray></crystal>
  <varray name="positions">{positions}</varray></structure>
  <varray name="forces">{forces}</varray>
  <varray name="stress">{stress}</varray>
  <energy>
   <i name="e_fr_energy">{energy:.8f}</i><i name="e_wo_entrp">{energy:.8f}</i><i name="e_0_energy">{energy:.8f}</i>
  </energy>
 </calculation>
"""


def rows(values: ArrayLike) -> str:
    """Rows of numbers as VASP writes them."""
    return "".join(f"<v>{' '.join(f'{value:.8f}' for value in row)}</v>" for row in np.asarray(values))


def vasprun(images: list[Atoms]) -> str:
    """The text of vasprun.xml for some ionic steps, which have a calculator."""
    first = images[0]
    atoms = "".join(f"<rc><c>{symbol}</c><c>1</c></rc>" for symbol in first.symbols)
    lines = [
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n',
        ' <generator><i name="program" type="string">vasp </i></generator>\n',
        ' <kpoints><varray name="kpointlist"><v>0 0 0</v></varray><varray name="weights"><v>1</v></varray></kpoints>\n',
        f' <atominfo><array name="atoms"><set>{atoms}</set></array></atominfo>\n',
        f' <structure name="initialpos"><crystal><varray name="basis">{rows(first.cell)}</varray></crystal>',
        f'<varray name="positions">{rows(first.get_scaled_positions())}</varray></structure>\n',
    ]
    for image in images:
        stress = -image.get_stress(voigt=False) / KBAR
        lines.append(
            _STEP.format(
                energy=image.get_potential_energy(),
                cell=rows(image.cell),
                positions=rows(image.get_scaled_positions()),
                forces=rows(image.get_forces()),
                stress=rows(stress),
            )
        )
    return "".join([*lines, "</modeling>\n"])


def main() -> None:
    """Calculate two steps in the current folder."""
    images = []
    for step in range(2):
        atoms = ase.io.read("POSCAR")
        atoms.rattle(0.02 * step, seed=step)
        atoms.calc = LennardJones(sigma=2.2, epsilon=0.3, rc=6.0)
        images.append(atoms)
    Path("vasprun.xml").write_text(vasprun(images))


if __name__ == "__main__":
    main()
