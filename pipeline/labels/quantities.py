"""Quantities: shape, unit and axes of a label."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

from ..structures.symmetry import Axis

Component = Literal["xx", "yy", "zz", "xy", "xz", "yz", "yx", "zx", "zy"]
# ASE's order of Voigt components.
ASE_VOIGT: tuple[Component, ...] = ("xx", "yy", "zz", "yz", "xz", "xy")
# Labels whose meaning the network knows: their unit in the store and their shape behind the first dim.
ENERGY, FORCES, STRESS = "energy", "forces", "stress"
PER_ATOM_SUFFIX = "/atom"
AXES: dict[int, Axis] = {3: "cartesian", 6: "voigt"}


class Quantity(BaseModel):
    """What a label is: a number or a tensor, of a structure or of each of its atoms.

    Attributes:
        per: What has one.
        shape: Of one of them: [] a number, [3] a vector, [3, 3], [6, 6] an elastic tensor in Voigt's notation.
        unit: In the store; that of the first rule if absent.
        tensor: Whether axes of 3 and 6 turn with the crystal, so that its symmetry limits what they may hold.
        description: For readers of the store.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    per: Literal["structure", "atom"] = "structure"
    shape: tuple[PositiveInt, ...] = ()
    unit: str | None = None
    tensor: bool = True
    description: str = ""

    @property
    def turns(self) -> bool:
        """Whether it is a tensor of the whole crystal."""
        return self.per == "structure" and self.tensor and bool(self.shape) and set(self.shape) <= {3, 6}


KNOWN_QUANTITIES = {
    ENERGY: Quantity(unit="eV", description="total energy"),
    FORCES: Quantity(per="atom", shape=(3,), unit="eV/angstrom", description="forces"),
    STRESS: Quantity(
        shape=(3, 3), unit="eV/angstrom**3", description="stress (1/V) dE/d(strain), positive under tension as in ASE"
    ),
}
