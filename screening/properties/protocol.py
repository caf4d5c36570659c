"""Definition of a property: the cells that it needs for a material, and the values that it computes from them.

A property is a frozen dataclass whose fields are its settings. It never calls a model. `Property.stages` is a
generator: it yields `Cells` to evaluate (or to relax), receives their results, may yield further cells that depend on
these, and returns an `Outcome`:

    def stages(self, material):
        results = yield Cells(displaced_cells(material.structure))
        return Outcome(values={"my_value": fit(results)})

The run drives the generators of many materials and properties side by side and evaluates their cells together
(`evaluation.run_stages`), so a generator may depend on nothing but its material and the results. It may raise
`OutcomeError` to end with a status other than ok. For a cell that has no graph, or for which the model predicts numbers
that are not finite, an `OutcomeError` is raised at the `yield`; unless `stages` handles it, it ends the property of its
material. So `stages` sees valid results only.

Every value that a property returns belongs to an array that it declares: `Property.arrays` with one row per structure
(values that an outcome lacks are NaN, zero, false or empty), and `Property.tables` with any number of rows per
structure, such as force constants. Tables with the same first dim have the same number of rows for a structure; the
dataset holds this number as ``n_<dim>``, and the rows of all structures one after another.

A property whose last step is long and needs no model, such as a thermal conductivity, sets `Property.has_finish` and
does this step in `Property.finish`. It runs as a task of its own for each material, after all cells are evaluated; an
interrupted run repeats only the tasks that had not ended.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.store.schema import ArraySpec, flags, structure_array
from ...pipeline.structures.structure import Structure
from ..relaxation.batched import RelaxSettings

# Statuses of a property, and of a material. A material has the status of its relaxation or, if that is ok, of its first
# property that is not ok.
PROPERTY_STATUSES = (
    "ok",
    "imaginary_modes",
    "symmetry_changed",
    "not_relaxed",
    "not_applicable",
    "too_large",
    "failed",
)
OK, IMAGINARY_MODES, SYMMETRY_CHANGED, NOT_RELAXED, NOT_APPLICABLE, TOO_LARGE, FAILED = range(len(PROPERTY_STATUSES))


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells of one material that a property needs evaluated.

    Attributes:
        structures: The cells.
        relaxation: How to relax each of them first; None evaluates them as they are.
    """

    structures: Sequence[Structure]
    relaxation: RelaxSettings | None = None


@dataclass(frozen=True, slots=True)
class CellResult:
    """Result for one cell.

    Attributes:
        structure: The cell, relaxed if that was requested.
        energy: Total energy, eV.
        forces: Forces on the atoms: float64[n_atoms, 3], eV/angstrom.
        stress: Stress tensor (1/V) dE/d(strain): float64[3, 3], eV/angstrom^3.
        converged: Whether the relaxation converged, if one was requested.
        evaluations: Number of evaluations.
    """

    structure: Structure
    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64]
    converged: bool = True
    evaluations: int = 1


@dataclass(frozen=True, slots=True)
class BornCharges:
    """Born effective charges and dielectric tensor, for the splitting of longitudinal and transverse optical modes.

    Attributes:
        charges: Charge tensor of each atom of the crystal: float64[n_atoms, 3, 3], e. The first index is the
            direction of the polarization, the second index the direction of the displacement.
        dielectric: Electronic part of the dielectric tensor: float64[3, 3].
    """

    charges: NDArray[np.float64]
    dielectric: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Material:
    """A material whose properties are computed.

    Attributes:
        structure: The relaxed crystal.
        energy: Its total energy, eV.
        forces: Its forces: float64[n_atoms, 3], eV/angstrom.
        stress: Its stress tensor: float64[3, 3], eV/angstrom^3.
        symprec: Tolerance of searches for symmetry: largest distance of a site from its symmetric position, angstrom.
        born: Born charges of its atoms, if they are known.
    """

    structure: Structure
    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64]
    symprec: float
    born: BornCharges | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a property for one material.

    Attributes:
        status: Index into `PROPERTY_STATUSES`.
        values: Values by name of the array.
        tables: Rows by name of the table.
        note: Why the status is not ok.
        derived: A new structure that the property has found.
        evaluations: Number of evaluations; `evaluation.run_stages` counts them.
    """

    status: int = OK
    values: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, NDArray[Any] | list[str]] = field(default_factory=dict)
    note: str = ""
    derived: CellResult | None = None
    evaluations: int = 0


class OutcomeError(Exception):
    """Ends a property of one material without values.

    Args:
        status: Index into `PROPERTY_STATUSES`.
        note: The reason, as text.
    """

    def __init__(self, status: int, note: str) -> None:
        super().__init__(note)
        self.status, self.note = status, note


@dataclass(frozen=True, slots=True)
class Workload:
    """Expected cost of computing a property of one material.

    Attributes:
        cells: Number of cells.
        atoms: Number of atoms in all evaluations of all cells.
    """

    cells: int
    atoms: int


Stages = Generator[Cells, list[CellResult], Outcome]


class Property(ABC):
    """A property of crystals; see the module's description.

    Attributes:
        name: Name of the property, as in ``--what``.
        has_finish: Whether `finish` computes some of its arrays and tables in a task of its own.
        libraries: Packages of the extra ``properties`` that it imports.
    """

    name: ClassVar[str]
    has_finish: ClassVar[bool] = False
    libraries: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def arrays(self) -> tuple[ArraySpec, ...]:
        """Arrays with one row per structure, besides ``<name>_status``."""

    @property
    def tables(self) -> tuple[ArraySpec, ...]:
        """Arrays with any number of rows per structure."""
        return ()

    @abstractmethod
    def workload(self, n_atoms: int) -> Workload:
        """Estimate the cost for a crystal with a given number of atoms, whatever its structure."""

    @abstractmethod
    def stages(self, material: Material) -> Stages:
        """Yield the cells that are needed, receive their results, and return the outcome.

        Raises:
            OutcomeError: The property cannot be computed for this material.
        """

    def finish(self, material: Material, found: Mapping[str, Any]) -> Outcome:
        """Do the last, long step with what `stages` returned.

        Args:
            material: The material.
            found: Row of each of the property's arrays, and rows of each of its tables, by name.

        Returns:
            The outcome; its values and tables replace those that `stages` returned.

        Raises:
            OutcomeError: The property cannot be computed for this material.
        """
        raise NotImplementedError


def status_array(owner: Property) -> ArraySpec:
    """Return the definition of the array that holds the status of a property."""
    return structure_array(
        f"{owner.name}_status", "uint8", f"outcome of the property {owner.name}", **flags(PROPERTY_STATUSES)
    )


def table_array(name: str, dim: str, description: str, units: str, *dims: str) -> ArraySpec:
    """Return the definition of a float64 table of a property.

    Args:
        name: Name of the table.
        dim: First dim, along which a structure has any number of rows.
        description: What the table holds.
        units: Unit of the values.
        *dims: Further dims.
    """
    return ArraySpec(name, (dim, *dims), "float64", {"description": description, "units": units})


def check_numbers(settings: Property, zero_allowed: Sequence[str] = ()) -> None:
    """Check that all floating-point settings of a property are finite and positive.

    Args:
        settings: Property whose settings are checked.
        zero_allowed: Names of settings that may also be zero.

    Raises:
        ConfigError: A setting is out of range.
    """
    for one in fields(settings):  # type: ignore[arg-type]  # every property is a dataclass
        value = getattr(settings, one.name)
        can_be_zero = one.name in zero_allowed
        if isinstance(value, float) and not (math.isfinite(value) and (value > 0 or (can_be_zero and value == 0))):
            sign = "non-negative" if can_be_zero else "positive"
            raise ConfigError(f"{one.name} is {value}; it must be a finite {sign} number")


def check_crystal(structure: Structure) -> None:
    """Check that a structure is periodic in three directions.

    Raises:
        OutcomeError: The structure is a molecule, a chain or a slab.
    """
    if not structure.pbc.all():
        kind = ("a molecule", "a chain", "a slab")[int(structure.pbc.sum())]
        raise OutcomeError(NOT_APPLICABLE, f"{kind} has no such property; it is defined for crystals only")


def check_installed(needed_by: str, libraries: Sequence[str]) -> None:
    """Check that libraries are installed, without importing them.

    Args:
        needed_by: What needs them, for the message.
        libraries: Names of the packages.

    Raises:
        ConfigError: A library is missing.
    """
    for library in libraries:
        if find_spec(library) is None:
            raise ConfigError(
                f"{needed_by} needs {library}, which is not installed: pip install 'equiscreen[properties]'"
            )
