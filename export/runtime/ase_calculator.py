"""Exported models as ASE calculators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from ...pipeline.structures.structure import Structure
from .onnx_potential import OnnxPotential


class OnnxCalculator(Calculator):  # type: ignore[misc]  # ASE is untyped
    """An exported model as an ASE calculator.

    Energies are in eV and forces in eV/angstrom. Stresses are in eV/angstrom^3, in ASE's order and sign; they are
    defined only for crystals that are periodic in all three directions. The attribute `outputs` holds the model's other
    outputs, by name.

    Example:
        >>> from ase.build import bulk
        >>> from equiscreen.export import OnnxCalculator
        >>> atoms = bulk("Cu")
        >>> atoms.calc = OnnxCalculator("model.onnx")
        >>> atoms.get_stress().shape, bool(abs(atoms.get_potential_energy()) < 0.1)
        ((6,), True)

    Args:
        model: Path of an ONNX file exported by equiscreen, or a loaded potential.
        threads: Number of ONNX Runtime threads if `model` is a path; None uses all cores.

    Raises:
        ModelFileError: The file cannot be read or is not a model exported by equiscreen.
        ValueError: The model does not predict energies.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 - as ASE's own do

    def __init__(self, model: str | Path | OnnxPotential, *, threads: int | None = None) -> None:
        super().__init__()
        self.outputs: dict[str, Any] = {}
        self.potential = model if isinstance(model, OnnxPotential) else OnnxPotential.load(model, threads=threads)
        if "energy" not in {spec.name for spec in self.potential.outputs}:
            raise ValueError(
                f"{'the model' if model is self.potential else model} does not predict energies, which ASE requires; "
                "use a model that predicts energies"
            )
        made = {spec.name for spec in self.potential.outputs}
        self.implemented_properties = [x for x in type(self).implemented_properties if x in {*made, "free_energy"}]

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate the model; called by ASE.

        Raises:
            PropertyNotImplementedError: A stress is requested for a structure that is not periodic in all three
                directions, or from a model without stress.
            InvalidStructureError: The structure is invalid, for example with two atoms at one position or a flat cell.
            UnknownElementError: The model does not cover an element.
        """
        super().calculate(atoms, properties, system_changes)
        found = self.potential.evaluate_structures([Structure.from_ase(self.atoms)])
        self.results: dict[str, Any] = {
            "energy": float(found.energy[0]),
            "free_energy": float(found.energy[0]),
        }
        if "forces" in self.implemented_properties:
            self.results["forces"] = found.forces
        # Kept out of `results`, where scripts expect only the properties that ASE knows.
        self.outputs = {
            spec.name: found.properties[spec.name][0] if spec.per == "structure" else found.properties[spec.name]
            for spec in self.potential.outputs
            if spec.name in found.properties
        }
        if np.isfinite(found.stress).all():
            self.results["stress"] = full_3x3_to_voigt_6_stress(found.stress[0])
        elif "stress" in properties:
            raise PropertyNotImplementedError(
                "stress requires a crystal that is periodic in all three directions, and a model that predicts stress"
            )
