"""The potential to test, made from the options of the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ase.calculators.calculator import BaseCalculator

from ..campaigns.models.resolve import model_file
from ..export.runtime.onnx_potential import OnnxPotential
from ..pipeline.errors import EquiscreenError, detail
from ..pipeline.graphs.potential import Potential
from ..pipeline.structures.elements import atomic_number
from .calculator_potential import CalculatorPotential

# Rounding errors relative to the size of the results; the docstring of `laws` explains them.
FLOAT32, FLOAT64 = 2e-5, 1e-10


@dataclass(frozen=True, slots=True)
class Subject:
    """A potential and the properties that it must have; see the attributes of `laws.PotentialLaws`.

    Attributes:
        name: Name of the model file, or of the calculator.
        potential: The potential.
        elements: Atomic numbers of the elements that are tested.
        tolerance: Largest relative difference due to rounding.
        exact: Whether equal inputs must give equal bits.
        reflections: Whether the potential must be equivariant under reflections.
        cutoff_known: Whether the cutoff of the potential is known.
    """

    name: str
    potential: Potential
    elements: tuple[int, ...]
    tolerance: float
    exact: bool
    reflections: bool = True
    cutoff_known: bool = True

    @property
    def float64(self) -> bool:
        """Whether rounding errors are small enough for finite differences with small steps."""
        return self.tolerance < FLOAT32 / 100

    def describe(self) -> str:
        """Return one line for the header of the report."""
        symmetry = "O(3)" if self.reflections else "SO(3)"
        reach = f"cutoff {self.potential.cutoff:.3f} angstrom" if self.cutoff_known else "no known cutoff"
        return f"{self.name}: {len(self.elements)} elements, {reach}, {symmetry}, tolerance {self.tolerance:g}"


def subject_of_model(model: str, elements: Sequence[int], tolerance: float | None) -> Subject:
    """Load a model as the potential to test.

    Args:
        model: As for `campaigns.model_file`: an ONNX file, a name of published weights, or a checkpoint.
        elements: Atomic numbers to test; empty for all elements of the model.
        tolerance: Relative rounding error; None derives it from the dtype.

    Raises:
        EquiscreenError: There is no such model, or it lacks an element.
    """
    path = model_file(model, progress=True, note=lambda text: print(text, file=sys.stderr))  # noqa: T201
    potential = OnnxPotential.load(path)
    if missing := sorted(set(elements) - set(potential.elements)):
        raise EquiscreenError(
            f"{model}: the model does not cover the atomic numbers {missing}; leave these elements out of --elements"
        )
    return Subject(
        name=path.name,
        potential=potential,
        elements=tuple(elements) or potential.elements,
        tolerance=tolerance or (FLOAT64 if potential.metadata.dtype == "float64" else FLOAT32),
        exact=True,
        reflections=potential.metadata.symmetry != "so3",
    )


def subject_of_calculator(factory: str, elements: Sequence[int], tolerance: float | None) -> Subject:
    """Make an ASE calculator as the potential to test.

    Args:
        factory: ``MODULE:NAME`` of a class or function that makes a calculator without arguments, or of a calculator.
        elements: Atomic numbers to test.
        tolerance: Relative rounding error; None uses 1e-10, as for float64.

    Raises:
        EquiscreenError: No elements are given, or the calculator cannot be made or used.
    """
    if not elements:
        raise EquiscreenError(
            "--calculator needs --elements, such as --elements Al,Cu: an ASE calculator does not state its elements"
        )
    calculator = make_calculator(factory)
    potential = CalculatorPotential(calculator, elements, tolerance or FLOAT64)
    return Subject(
        name=factory,
        potential=potential,
        elements=tuple(elements),
        tolerance=tolerance or FLOAT64,
        exact=False,
        cutoff_known=potential.reach is not None,
    )


def make_calculator(factory: str) -> BaseCalculator:
    """Make the calculator that ``MODULE:NAME`` stands for.

    Raises:
        EquiscreenError: The object cannot be imported or made, or is not a calculator.
    """
    module, _, name = factory.partition(":")
    if not module or not name:
        raise EquiscreenError(f"--calculator {factory} must be MODULE:NAME, such as ase.calculators.emt:EMT")
    try:
        found = getattr(importlib.import_module(module), name)
        made = found() if isinstance(found, type) or not hasattr(found, "get_property") else found
    except Exception as error:  # third-party code may raise anything
        raise EquiscreenError(
            f"--calculator {factory} cannot be imported or created ({type(error).__name__}: {detail(error)}); check "
            "the module and the name"
        ) from error
    if not hasattr(made, "get_property"):
        raise EquiscreenError(
            f"--calculator {factory} creates an object of type {type(made).__name__}, not an ASE calculator; give a "
            "class or function that creates one"
        )
    return made


def parse_elements(text: str) -> tuple[int, ...]:
    """Return the atomic numbers of chemical symbols that are separated by commas.

    Raises:
        EquiscreenError: A symbol does not belong to an element.
    """
    symbols = [symbol.strip() for symbol in text.split(",") if symbol.strip()]
    return tuple(dict.fromkeys(atomic_number(symbol, "--elements") for symbol in symbols))
