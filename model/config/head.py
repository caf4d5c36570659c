"""Configuration of a head."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of the configuration. Sections are immutable and reject unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class HeadConfig(Section):
    """Configuration of a head, which predicts a property of structures or atoms other than energies, forces and stress.

    Attributes:
        tensor: Kind of tensor: a name from `model.equivariance.tensors.TENSORS` (scalar, vector, symmetric, elastic,
            ...) or an index formula in e3nn's notation such as ``ij=ji``.
        irreps: Irreps of the property, instead of `tensor`, for labels given as irrep components in e3nn's order.
        pseudo: Whether a mirror flips the sign in addition to the transformation of the indices.
        per: ``structure`` if each structure has a value, ``atom`` if each atom has one.
        extensive: Whether the value of a structure is the sum over its atoms; otherwise it is their mean.
        transform: ``log`` predicts the logarithm of a positive number, or the matrix logarithm of a positive tensor.
        label: Name of the label in the stores; None uses the name of the head.
        shape: Shape of one value; None uses the shape of the label. An axis of length 6 is a symmetric pair of indices
            in Voigt notation.
        channels: Number of channels of the head's features.
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
