"""ASE's EMT as a potential, so that results can be compared with those of ASE."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import PropertyNotImplementedError
from equiscreen.pipeline import GraphBlock
from equiscreen.pipeline.graphs.potential import ENERGY_OUTPUTS, Evaluation, OutputSpec

ELEMENTS = (13, 28, 29, 46, 47, 78, 79)


@dataclass
class EmtPotential:
    """ASE's EMT as a `Potential`; records the size of every batch."""

    cutoff: float = 5.0
    elements: tuple[int, ...] = ELEMENTS
    outputs: tuple[OutputSpec, ...] = ENERGY_OUTPUTS
    evaluated: list[int] = field(default_factory=list)

    def evaluate(self, block: GraphBlock) -> Evaluation:
        self.evaluated.append(len(block))
        energies, forces, stresses = [], [], []
        for row in range(len(block)):
            atoms = block.structure(row).to_ase()
            atoms.calc = EMT()
            energies.append(atoms.get_potential_energy())
            forces.append(atoms.get_forces())
            try:
                stresses.append(atoms.get_stress(voigt=False))
            except PropertyNotImplementedError:
                stresses.append(np.full((3, 3), np.nan))
        return Evaluation(np.array(energies), np.concatenate(forces), np.array(stresses))
