"""How the outputs of a potential must transform with their structures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..pipeline.graphs.potential import SPREAD, OutputSpec

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OutputKind:
    """How one output transforms.

    Attributes:
        turned: Function of values, float64[n, *shape], and of a rotation or rotoinversion, float64[3, 3], that returns
            the values of the rotated structures.
        extensive: Whether the value of a structure is proportional to its number of cells.
    """

    turned: Callable[[Array, Array], Array]
    extensive: bool = False


def _turned_forces(forces: Array, turn: Array) -> Array:
    return forces @ turn.T


def _turned_stress(stress: Array, turn: Array) -> Array:
    return turn @ stress @ turn.T


# Kinds that are known by name; the kinds of other outputs must be stated.
ENERGY_KINDS: Mapping[str, OutputKind] = {
    "energy": OutputKind(lambda energy, turn: energy, extensive=True),  # noqa: ARG005
    "forces": OutputKind(_turned_forces),
    "stress": OutputKind(_turned_stress),
}


@dataclass(frozen=True, slots=True)
class Change:
    """A transformation of a structure.

    Attributes:
        turn: float64[3, 3], a rotation or a rotoinversion; None keeps the orientation.
        atoms: int[n_new_atoms], index of the original atom of each new atom; None keeps the atoms.
        copies: Number of original cells in the new cell.
    """

    turn: Array | None = None
    atoms: NDArray[np.int64] | None = None
    copies: int = 1


def expected(
    before: Mapping[str, Array], outputs: Iterable[OutputSpec], kinds: Mapping[str, OutputKind], change: Change
) -> dict[str, Array]:
    """Compute the expected outputs of transformed structures.

    An output of unknown kind is left out where its value cannot be predicted: after a rotation and, if it is a property
    of the whole structure, in a supercell. The spread of an ensemble is the standard deviation of each component. It
    does not transform as a tensor, so after a rotation only the spreads of scalars are kept.
    """
    known = {**ENERGY_KINDS, **kinds}
    found = {}
    for spec in outputs:
        name = spec.name.removesuffix(SPREAD)
        kind, values = known.get(name), before[spec.name]
        if kind is None and (change.turn is not None or (spec.per == "structure" and change.copies > 1)):
            continue
        if kind is not None and change.turn is not None:
            if name != spec.name and spec.shape:
                continue
            values = kind.turned(values, change.turn)
            values = values if name == spec.name else np.abs(values)
        if spec.per == "atom" and change.atoms is not None:
            values = values[change.atoms]
        found[spec.name] = values * (change.copies if kind is not None and kind.extensive else 1)
    return found
