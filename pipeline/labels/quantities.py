"""Quantities: the shape, unit and axes of a label."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

from ..structures.symmetry import Axis

Component = Literal["xx", "yy", "zz", "xy", "xz", "yz", "yx", "zx", "zy"]
# ASE's order of Voigt components.
ASE_VOIGT: tuple[Component, ...] = ("xx", "yy", "zz", "yz", "xz", "xy")
# Labels with a fixed meaning; `KNOWN_QUANTITIES` defines their units and shapes.
ENERGY, FORCES, STRESS = "energy", "forces", "stress"
PER_ATOM_SUFFIX = "/atom"
AXES: dict[int, Axis] = {3: "cartesian", 6: "voigt"}


class Quantity(BaseModel):
    """The quantity that a label holds: a number or a tensor, per structure or per atom.

    Example:
        >>> from equiscreen.pipeline import LabelMapping, LabelRule, Quantity
        >>> dielectric = Quantity(shape=(3, 3), description="dielectric tensor")
        >>> rules = (LabelRule(path="e_total", unit=""),)
        >>> LabelMapping(labels={"eps": rules}, quantities={"eps": dielectric}).quantity("eps").shape
        (3, 3)

    Attributes:
        per: Whether there is one value per structure or per atom.
        shape: Shape of one value: [] for a number, [3] for a vector, [3, 3], or [6, 6] for an elastic tensor in Voigt
            notation.
        unit: Unit in the store; by default the unit of the first rule.
        tensor: Whether axes of length 3 and 6 rotate with the crystal, so that its symmetry constrains the values.
        description: Description written to the store.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    per: Literal["structure", "atom"] = "structure"
    shape: tuple[PositiveInt, ...] = ()
    unit: str | None = None
    tensor: bool = True
    description: str = ""

    @property
    def turns(self) -> bool:
        """Whether the quantity is a tensor of the whole crystal, which rotates with it."""
        return self.per == "structure" and self.tensor and bool(self.shape) and set(self.shape) <= {3, 6}


KNOWN_QUANTITIES = {
    ENERGY: Quantity(unit="eV", description="total energy"),
    FORCES: Quantity(per="atom", shape=(3,), unit="eV/angstrom", description="forces"),
    STRESS: Quantity(
        shape=(3, 3), unit="eV/angstrom**3", description="stress (1/V) dE/d(strain), positive under tension as in ASE"
    ),
}
