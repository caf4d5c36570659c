"""Exported models as ASE calculators, so that scripts for ASE can use them."""

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
    """An exported model as a calculator of ASE.

    Energies are in eV, forces in eV/angstrom; stresses are in eV/angstrom^3 in ASE's order and sign, and exist for
    crystals that are periodic in all three directions. The attribute `outputs` holds the model's others, by name.

    Example:
        >>> atoms.calc = OnnxCalculator("model.onnx")  # doctest: +SKIP
        >>> atoms.get_potential_energy()  # doctest: +SKIP

    Args:
        model: An ONNX file of ours, or a potential that is loaded already.
        threads: Of ONNX Runtime, for a file; None takes all cores. A potential has its own.

    Raises:
        ModelFileError: No model of ours.
        ValueError: A model without an energy.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 - as ASE's own do

    def __init__(self, model: str | Path | OnnxPotential, *, threads: int | None = None) -> None:
        super().__init__()
        self.outputs: dict[str, Any] = {}
        self.potential = model if isinstance(model, OnnxPotential) else OnnxPotential.load(model, threads=threads)
        if "energy" not in {spec.name for spec in self.potential.outputs}:
            raise ValueError(f"{model}: a model without an energy")
        made = {spec.name for spec in self.potential.outputs}
        self.implemented_properties = [x for x in type(self).implemented_properties if x in {*made, "free_energy"}]

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate; what ASE calls.

        Raises:
            PropertyNotImplementedError: A stress of what is not periodic in all three directions.
            InvalidStructureError: Atoms on one place, a flat cell, and the like.
            UnknownElementError: An element that the model does not know.
        """
        super().calculate(atoms, properties, system_changes)
        found = self.potential.evaluate_structures([Structure.from_ase(self.atoms)])
        self.results: dict[str, Any] = {
            "energy": float(found.energy[0]),
            "free_energy": float(found.energy[0]),
        }
        if "forces" in self.implemented_properties:
            self.results["forces"] = found.forces
        # Apart from `results`, in which scripts expect what ASE knows.
        self.outputs = {
            spec.name: found.properties[spec.name][0] if spec.per == "structure" else found.properties[spec.name]
            for spec in self.potential.outputs
            if spec.name in found.properties
        }
        if np.isfinite(found.stress).all():
            self.results["stress"] = full_3x3_to_voigt_6_stress(found.stress[0])
        elif "stress" in properties:
            raise PropertyNotImplementedError(
                "a stress needs a crystal that is periodic in all three directions, and a model with one"
            )
