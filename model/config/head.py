"""Configuration of a head."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of the configuration: immutable, and without keys that do not exist."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class HeadConfig(Section):
    """A property that the network predicts besides the energy, of each structure or of each atom.

    Attributes:
        tensor: What it is: one of `heads.TENSORS` (scalar, vector, symmetric, elastic, ...), or a formula of indices in
            e3nn's notation, ``ij=ji``.
        irreps: Instead of `tensor`: its irreps, for labels that are given as their components in e3nn's order.
        pseudo: Whether a mirror changes its sign beyond what its indices do.
        per: What has one.
        extensive: Of a structure: the sum over atoms; otherwise their mean.
        transform: ``log`` predicts the logarithm of a positive number, the matrix logarithm of a positive tensor.
        label: Its name in the stores; the head's own name if None.
        shape: Of one of them; None takes the label's. An axis of 6 is a symmetric pair of indices in Voigt's notation.
        channels: Width of its features.
    """

    tensor: str = "scalar"
    irreps: str | None = None
    pseudo: bool = False
    per: Literal["structure", "atom"] = "structure"
    extensive: bool = False
    transform: Literal["none", "log"] = "none"
    label: str | None = None
    shape: tuple[int, ...] | None = None
    channels: int = Field(default=16, ge=1)
