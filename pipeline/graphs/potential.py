"""The interface of every potential, in PyTorch or ONNX: energies, forces, stresses and other properties of graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UnknownElementError
from .graph_block import GraphBlock
from .neighbor_table import evaluation_groups, neighbor_table
from .offsets import ragged_rows

# Suffix of an output that holds the standard deviation of another output over the members of an ensemble.
SPREAD = "_std"

Defined = Literal["always", "crystals", "molecules"]


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output of a potential.

    Attributes:
        name: Name of the output.
        per: Whether there is one value per "structure" or per "atom".
        shape: Shape of one value.
        unit: Unit of the values.
        defined: Structures for which the output is defined; it is NaN for all others. Crystals are periodic in all
            three directions, molecules in none.
    """

    name: str
    per: Literal["structure", "atom"]
    shape: tuple[int, ...] = ()
    unit: str = ""
    defined: Defined = "always"


ENERGY_OUTPUTS = (
    OutputSpec("energy", "structure", (), "eV"),
    OutputSpec("forces", "atom", (3,), "eV/angstrom"),
    OutputSpec("stress", "structure", (3, 3), "eV/angstrom^3", "crystals"),
)


def with_spread(outputs: Sequence[OutputSpec]) -> tuple[OutputSpec, ...]:
    """Return the outputs of an ensemble: all means, then the standard deviations over the members.

    The standard deviations are sample standard deviations, with n - 1 in the denominator.
    """
    return (*outputs, *(replace(spec, name=f"{spec.name}{SPREAD}") for spec in outputs))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results for a block of structures, in the block's order.

    Attributes:
        energy: float64[n_structures], eV. Energy, forces and stress are NaN if the potential does not predict them.
        forces: float64[n_atoms, 3], eV/angstrom.
        stress: float64[n_structures, 3, 3], eV/angstrom^3; NaN unless all three directions are periodic.
        properties: Other outputs, by name: float64[n_structures or n_atoms, *shape].
        virial: float64[n_structures, 3, 3], derivative of the energy with respect to strain, eV; for slabs and chains,
            only its part in the periodic directions is meaningful. None if it is unknown.
    """

    energy: NDArray[np.float64]
    forces: NDArray[np.float64]
    stress: NDArray[np.float64]
    properties: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    virial: NDArray[np.float64] | None = None

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return all outputs by name."""
        return {"energy": self.energy, "forces": self.forces, "stress": self.stress, **self.properties}


class Potential(Protocol):
    """A model that evaluates graphs."""

    @property
    def cutoff(self) -> float:
        """Cutoff of the graphs, angstrom."""
        ...

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers of the supported elements."""
        ...

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """The outputs that the potential predicts."""
        ...

    def evaluate(self, block: GraphBlock) -> Evaluation:
        """Compute all outputs for all structures of a block."""
        ...


RunTable = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


def evaluate_in_buckets(
    block: GraphBlock,
    potential: Potential,
    dtype: np.dtype[Any],
    slots: int,
    run: RunTable,
) -> Evaluation:
    """Evaluate a block bucket by bucket, with little padding and bounded memory.

    On one kind of device and instruction set, the results of a structure have the same bits regardless of the other
    structures in the block, because its table always has the same width; see
    `pipeline.graphs.neighbor_table.evaluation_groups`.

    Args:
        block: Graphs to evaluate.
        potential: The potential, for its elements, cutoff and outputs.
        dtype: Floating-point type of the model.
        slots: Largest number of neighbour slots of a bucket.
        run: Maps the arrays of one table, by name, to the outputs, by name.

    Raises:
        UnknownElementError: The block contains an element that the model does not support.
        InvalidStructureError: As for `pipeline.graphs.neighbor_table.neighbor_table`.
    """
    present: list[int] = np.flatnonzero(np.bincount(block.atomic_number)).tolist()
    unknown = sorted(set(present).difference(potential.elements))
    if unknown:
        raise UnknownElementError(
            f"the model does not support the elements {unknown} (atomic numbers); remove the structures that contain "
            "them, or use another model"
        )
    found = _empty(block, (*ENERGY_OUTPUTS, *potential.outputs))
    for rows, width in evaluation_groups(block, potential.cutoff, slots):
        atoms = ragged_rows(block.atom_start[rows], block.n_atoms[rows])
        # A block that is already one bucket is not copied: screens request one bucket at a time.
        bucket = block if np.array_equal(rows, np.arange(len(block))) else block.take(rows)
        if len(bucket.atomic_number) == 1:
            # ONNX Runtime computes matrix products with one row differently, and sums their terms in a different order.
            bucket = bucket.take([0, 0])
        results = run(neighbor_table(bucket, potential.cutoff, dtype, width).arrays())
        for spec in potential.outputs:
            places = rows if spec.per == "structure" else atoms
            found[spec.name][places] = results[spec.name][: len(places)]
    virial = found["stress"] * block.volume[:, None, None]  # the volume of a slab is 1 in a neighbour table
    for spec in potential.outputs:
        undefined = without_meaning(block.pbc, spec.defined)
        if undefined.any():
            found[spec.name][undefined if spec.per == "structure" else undefined[block.atom_structure]] = np.nan
    return Evaluation(found.pop("energy"), found.pop("forces"), found.pop("stress"), found, virial)


def without_meaning(pbc: NDArray[np.bool_], defined: Defined) -> NDArray[np.bool_]:
    """Return whether a property is undefined for each structure: bool[n_structures]."""
    if defined == "always":
        return np.zeros(len(pbc), dtype=bool)
    return np.asarray(~pbc.all(axis=1) if defined == "crystals" else pbc.any(axis=1))


def _empty(block: GraphBlock, specs: Sequence[OutputSpec]) -> dict[str, NDArray[np.float64]]:
    rows = {"structure": len(block), "atom": len(block.atomic_number)}
    return {spec.name: np.full((rows[spec.per], *spec.shape), np.nan) for spec in specs}
