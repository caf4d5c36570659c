"""Configuration of a network, with its presets."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ...pipeline.graphs.neighbor_table import INPUT_NAMES
from ...pipeline.graphs.potential import SPREAD
from .head import HeadConfig, Section

Symmetry = Literal["o3", "natural", "so3"]
Preset = Literal["small", "medium", "large"]
# Channels of the scalars, highest degree of features and harmonics, correlation. Cost: docs/training.md.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"channels": 16, "l_max": 2, "correlation": 2, "radial_hidden": 16},
    "medium": {"channels": 32, "l_max": 2, "correlation": 3, "radial_hidden": 32},
    "large": {"channels": 64, "l_max": 3, "correlation": 3, "radial_hidden": 64},
}
# Of imported networks, whose sizes are what a file says: far beyond all that are published.
MAX_WIDTH, MAX_LAYERS, MAX_DEGREE = 4_096, 32, 6
# Names that the scores, and stores, give to other things.
RESERVED_HEADS = frozenset(
    (
        *("energy", "forces", "stress", "virial", "energy_per_atom", "max_force", "formula", "n_atoms", "status"),
        *("structure_id", "source", "source_index", *INPUT_NAMES),
    )
)


class Architecture(Section):
    """What every architecture says.

    Attributes:
        symmetry: Group under which its features transform.
        cutoff: Angstrom.
        energy: Whether there is an energy, with forces and stress.
        heads: Other properties, by name.
    """

    symmetry: Symmetry = "natural"
    cutoff: float | None = Field(default=None, gt=0)
    energy: bool = True
    heads: dict[str, HeadConfig] = Field(default_factory=dict)


class NetworkConfig(Architecture):
    """The architecture. What is not given follows the preset.

    Attributes:
        preset: ``small``, ``medium`` or ``large``.
        symmetry: ``natural``: features of the parity of spherical harmonics (0e, 1o, 2e, ...), O(3) equivariant;
            ``o3``: of both parities, which pseudoscalars, axial vectors and the like need; ``so3``: parity is not
            tracked, and mirror images need not agree.
        cutoff: Angstrom; None takes the store's.
        hidden_irreps: Features of an atom between interactions, in e3nn's notation: multiplicity, l, parity.
        l_max: Highest degree of the spherical harmonics.
        n_interactions: How often atoms look at their neighbours.
        basis: Radial functions that the learned ones are made from.
        n_basis: How many of them.
        envelope_power: Of the polynomial that takes them to zero at the cutoff: p of Gasteiger et al.
        n_radial: Learned radial functions of each degree; channels are divided among them.
        radial_hidden: Width of the perceptron that makes them.
        correlation: Highest order of products of an atom's density with itself (body order minus one).
        nonlinearity: Of the features behind an interaction: ``none``, ``gate`` (each channel by a scalar of its own) or
            ``mix`` (by a perceptron on all scalars).
        readout_hidden: Width of the last readout.
        energy: Whether there is an energy, with forces and stress.
        heads: Other properties, by name.
    """

    preset: Preset = "medium"
    hidden_irreps: str = ""
    l_max: int = Field(default=2, ge=0, le=6)
    n_interactions: int = Field(default=2, ge=1)
    basis: Literal["chebyshev", "bessel"] = "chebyshev"
    n_basis: int = Field(default=8, ge=1)
    envelope_power: int = Field(default=6, ge=2, le=12)
    n_radial: int = Field(default=8, ge=1)
    radial_hidden: int = Field(default=32, ge=1)
    correlation: int = Field(default=3, ge=1, le=3)
    nonlinearity: Literal["none", "gate", "mix"] = "none"
    readout_hidden: int = Field(default=16, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("preset", "medium") not in PRESETS:
            return given
        preset = {k: v for k, v in PRESETS[given.get("preset", "medium")].items() if k in cls.model_fields}
        return {**preset, **given}

    @model_validator(mode="after")
    def _valid_irreps(self) -> Self:
        from .validation import check_network, hidden_irreps, is_reserved  # noqa: PLC0415 - e3nn takes a second to import

        irreps = self.hidden_irreps or hidden_irreps(
            self.symmetry, PRESETS[self.preset]["channels"], min(self.l_max, PRESETS[self.preset]["l_max"])
        )
        object.__setattr__(self, "hidden_irreps", check_network(self.symmetry, irreps, self.l_max, self.heads))
        if not self.energy and not self.heads:
            raise ValueError("neither an energy nor a head: nothing to predict")
        for name in self.heads:
            reserved = name in RESERVED_HEADS or name.endswith(SPREAD) or is_reserved(name)
            if reserved or not name.isidentifier():
                raise ValueError(f"a head cannot be called {name!r}")
        return self


class NequipConfig(Architecture):
    """The architecture of a network of NequIP's kind.

    Attributes:
        family: Always ``nequip``.
        energy: They all have one, and no heads.
        cutoff: Angstrom.
        embedding: Number of scalars that an atom begins with.
        hidden_irreps: Features of an atom behind each interaction; the last are scalars.
        l_max: Highest degree of the spherical harmonics.
        n_basis: Number of Bessel functions.
        radial_hidden: Widths of the perceptrons that make radial functions from them.
        envelope: What takes radial functions to zero at the cutoff: ``polynomial`` (Gasteiger et al., ICLR 2020) or
            ``xplor`` (the switching function of molecular dynamics codes).
        envelope_power: Of the polynomial.
        envelope_onset: Where ``xplor`` begins, angstrom.
        layer_norm: Whether features are divided by their root mean square before they are gated.
    """

    family: Literal["nequip"] = "nequip"
    energy: Literal[True] = True
    cutoff: float = Field(gt=0)
    embedding: int = Field(ge=1, le=MAX_WIDTH)
    hidden_irreps: tuple[str, ...] = Field(min_length=1, max_length=MAX_LAYERS)
    l_max: int = Field(ge=0, le=MAX_DEGREE)
    n_basis: int = Field(default=8, ge=1, le=MAX_WIDTH)
    radial_hidden: tuple[Annotated[int, Field(ge=1, le=MAX_WIDTH)], ...] = Field(
        default=(64, 64), min_length=1, max_length=MAX_LAYERS
    )
    envelope: Literal["polynomial", "xplor"] = "polynomial"
    envelope_power: int = Field(default=6, ge=2, le=12)
    envelope_onset: float | None = None
    layer_norm: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        from ..equivariance.tensors import parsed  # noqa: PLC0415 - e3nn takes a second to import

        for text in self.hidden_irreps:
            irreps = parsed(text)
            if sum(mul for mul, _ in irreps) > MAX_WIDTH or any(ir.l > MAX_DEGREE for _, ir in irreps):
                raise ValueError(f"hidden_irreps {text}: more than {MAX_WIDTH} channels, or degrees over {MAX_DEGREE}")
            kinds = [str(ir) for _, ir in irreps]
            if len(set(kinds)) != len(kinds) or "0e" not in kinds:
                raise ValueError(f"hidden_irreps {text}: needs 0e, and each irrep once")
            if "0o" in kinds:
                raise ValueError(f"hidden_irreps {text}: pseudoscalars have no gate here")
        if kinds != ["0e"]:
            raise ValueError("hidden_irreps: the last interaction makes scalars only")
        if self.heads:
            raise ValueError("heads: networks of this kind have none")
        if self.envelope == "xplor" and not (self.envelope_onset and 0 < self.envelope_onset < self.cutoff):
            raise ValueError("envelope_onset: between 0 and the cutoff, please")
        return self
