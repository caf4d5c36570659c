"""An ASE calculator as a potential, so that the laws can test it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.calculators.calculator import BaseCalculator

from ..pipeline.errors import EquiscreenError, detail
from ..pipeline.graphs.graph_block import GraphBlock
from ..pipeline.graphs.potential import ENERGY_OUTPUTS, Evaluation, OutputSpec
from ..pipeline.structures.structure import Structure
from .laws import crystals, evaluate, largest_elements, pairs
from .outputs import Array

# If the energy of two atoms differs between these two distances (angstrom), the range of the calculator is unknown.
# Otherwise the two atoms do not interact there, and `_DISTANCES` are searched for the end of their interaction.
_FAR = (20.0, 25.0)
_DISTANCES = np.arange(0.5, _FAR[0], 0.25)


class CalculatorPotential:
    """An ASE calculator as a potential. It computes its own neighbours and ignores those of the graphs.

    Args:
        calculator: Calculator with energies, and with forces and stresses if it offers them.
        elements: Atomic numbers of the elements that are tested.
        tolerance: Relative rounding error of its energies.

    Attributes:
        elements: Atomic numbers of the elements that are tested.
        outputs: Energy, and forces and stress if the calculator offers them.
        reach: Distance beyond which the energy of two atoms no longer changes, angstrom; measured for the elements with
            the largest radii. None if there is no such distance below 20 angstrom.

    Raises:
        EquiscreenError: The calculator cannot compute a crystal, or two atoms in vacuum, of the elements.
    """

    def __init__(self, calculator: BaseCalculator, elements: Sequence[int], tolerance: float) -> None:
        self._calculator = calculator
        self.elements = tuple(elements)
        self.outputs: tuple[OutputSpec, ...] = ENERGY_OUTPUTS
        self.reach: float | None = None
        crystal = crystals(self.elements, np.inf)[0]
        self.outputs = tuple(spec for spec in ENERGY_OUTPUTS if self._offers(spec.name, crystal))
        try:
            self.reach = self._range(tolerance)
        except Exception as error:  # as in _offers
            raise EquiscreenError(
                f"the calculator fails for two atoms in vacuum: {detail(error)} (the laws need a calculator that "
                "supports molecules)"
            ) from error

    @property
    def cutoff(self) -> float:
        """Cutoff of the graphs, angstrom: the reach or, if that is unknown, an arbitrary small number."""
        return self.reach or 1.0

    def evaluate(self, block: GraphBlock) -> Evaluation:
        """Compute energy (eV), forces (eV/angstrom) and stress (eV/angstrom^3) of all structures, one by one."""
        offered = {spec.name for spec in self.outputs}
        energy = np.empty(len(block))
        forces = np.full((len(block.atomic_number), 3), np.nan)
        stress = np.full((len(block), 3, 3), np.nan)
        for index in range(len(block)):
            atoms = block.structure(index).to_ase()
            if hasattr(self._calculator, "reset"):  # otherwise a repeated structure would get the stored results
                self._calculator.reset()
            atoms.calc = self._calculator
            energy[index] = atoms.get_potential_energy()
            if "forces" in offered:
                forces[block.atom_structure == index] = atoms.get_forces()
            if "stress" in offered and block.pbc[index].all():
                stress[index] = atoms.get_stress(voigt=False)
        return Evaluation(energy, forces, stress)

    def _offers(self, output: str, crystal: Structure) -> bool:
        atoms = crystal.to_ase()
        atoms.calc = self._calculator
        get = {"energy": atoms.get_potential_energy, "forces": atoms.get_forces, "stress": atoms.get_stress}[output]
        try:
            get()
        except NotImplementedError:  # ASE's PropertyNotImplementedError is a subclass
            if output != "energy":
                return False
            raise EquiscreenError(
                "the calculator does not predict energies, which the laws need; test another calculator"
            ) from None
        except Exception as error:  # calculators raise exceptions of any type
            raise EquiscreenError(
                f"the calculator fails for a crystal of {atoms.symbols}: {detail(error)} (check --elements)"
            ) from error
        return True

    def _range(self, tolerance: float) -> float | None:
        """Find the end of the interaction of two atoms by bisection."""
        reference, farther = self._pair_energies(_FAR)
        rounding = tolerance * max(1.0, abs(float(reference)))
        interacting = np.abs(self._pair_energies(_DISTANCES) - reference) > rounding
        if abs(farther - reference) > rounding or not interacting.any() or interacting[-1]:
            return None
        inside = float(_DISTANCES[interacting][-1])
        outside = float(_DISTANCES[inside < _DISTANCES][0])
        while outside - inside > 1e-6:  # the laws test 1e-3 angstrom from the cutoff
            middle = (inside + outside) / 2
            if abs(self._pair_energies([middle])[0] - reference) > rounding:
                inside = middle
            else:
                outside = middle
        return outside

    def _pair_energies(self, distances: Sequence[float] | Array) -> Array:
        return evaluate(self, pairs(largest_elements(self.elements), distances)).energy
