"""Configuration of a network, and its presets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ...pipeline.graphs.neighbor_table import INPUT_NAMES
from ...pipeline.graphs.potential import SPREAD
from .head import HeadConfig, Section

Symmetry = Literal["o3", "natural", "so3"]
Preset = Literal["small", "medium", "large"]
Activation = Literal["silu", "ssp", "tanh", "abs", "relu", "elu", "sigmoid", "mish"]
# Energies of edges must vanish at the cutoff, so these activations are zero at zero.
EdgeActivation = Literal["silu", "ssp", "tanh", "mish"]
SelfConnection = Literal["linear", "element", "none"]
# Scalar channels, highest degree of the features and harmonics, correlation order. Their cost is listed in
# docs/training.md.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"channels": 16, "l_max": 2, "correlation": 2, "radial_hidden": 16},
    "medium": {"channels": 32, "l_max": 2, "correlation": 3, "radial_hidden": 32},
    "large": {"channels": 64, "l_max": 3, "correlation": 3, "radial_hidden": 64},
}
# Limits for imported networks, whose sizes come from a file; far beyond every published network.
MAX_WIDTH, MAX_LAYERS, MAX_DEGREE = 4_096, 32, 6
# Products of three features have a hundred times more terms at degree 6 than at the usual degree 3.
MAX_PRODUCT_DEGREE = 4
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
# Names that scores and stores already use for other purposes.
RESERVED_HEADS = frozenset(
    (
        *("energy", "forces", "stress", "virial", "energy_per_atom", "max_force", "formula", "n_atoms", "status"),
        *("structure_id", "source", "source_index", *INPUT_NAMES),
    )
)


class Architecture(Section):
    """Settings shared by all architectures.

    Attributes:
        symmetry: Symmetry of the network, which determines the irreps of its features: ``o3``, ``natural`` or ``so3``;
            see `NetworkConfig`.
        cutoff: Cutoff radius (angstrom).
        energy: Whether the network predicts an energy, with forces and stress.
        heads: Heads that predict other properties, by name.
    """

    symmetry: Symmetry = "natural"
    cutoff: float | None = Field(default=None, gt=0)
    energy: bool = True
    heads: dict[str, HeadConfig] = Field(default_factory=dict)


class NetworkConfig(Architecture):
    """Configuration of an `EquivariantNetwork`.

    Attributes:
        preset: ``small``, ``medium`` or ``large``: sets the defaults of `hidden_irreps`, `l_max`, `radial_hidden` and
            `correlation`.
        symmetry: ``natural``: features with the parity of the spherical harmonics (0e, 1o, 2e, ...), equivariant under
            rotations and mirrors; ``o3``: features of both parities, which pseudoscalars, axial vectors and similar
            tensors need; ``so3``: parity is not tracked, so predictions for mirror images may differ.
        cutoff: Cutoff radius (angstrom); None uses the cutoff of the store, or the smallest cutoff of several stores.
        hidden_irreps: Features of an atom between interactions, in e3nn's notation (multiplicity, l, parity).
        l_max: Highest degree of the spherical harmonics.
        n_interactions: Number of interaction layers.
        basis: Radial basis from which the learned radial functions are built: ``chebyshev`` or ``bessel``.
        n_basis: Number of radial basis functions.
        envelope_power: Power p of the polynomial envelope that takes the radial basis to zero at the cutoff (Gasteiger
            et al., ICLR 2020).
        n_radial: Number of learned radial functions per degree; the channels are divided among them.
        radial_hidden: Hidden width of the radial perceptron.
        correlation: Highest order of the products of an atom's density with itself (body order minus one).
        nonlinearity: Nonlinearity after each interaction: ``none``, ``gate`` (each channel is gated by its own scalar)
            or ``mix`` (a perceptron on all scalars computes a term for each scalar and a factor for each other
            channel).
        readout_hidden: Hidden width of the last energy readout.
        energy: Whether the network predicts an energy, with forces and stress.
        heads: Heads that predict other properties, by name.
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
    def _from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset", "medium") not in PRESETS:
            return values
        preset = {k: v for k, v in PRESETS[values.get("preset", "medium")].items() if k in cls.model_fields}
        return {**preset, **values}

    @model_validator(mode="after")
    def _valid_irreps(self) -> Self:
        from .validation import check_network, hidden_irreps, is_reserved  # noqa: PLC0415 - e3nn takes a second to import

        irreps = self.hidden_irreps or hidden_irreps(
            self.symmetry, PRESETS[self.preset]["channels"], min(self.l_max, PRESETS[self.preset]["l_max"])
        )
        object.__setattr__(self, "hidden_irreps", check_network(self.symmetry, irreps, self.l_max, self.heads))
        if not self.energy and not self.heads:
            raise ValueError("the network predicts nothing; set `energy: true` or add a head")
        for name in self.heads:
            reserved = name in RESERVED_HEADS or name.endswith(SPREAD) or is_reserved(name)
            if reserved or not name.isidentifier():
                raise ValueError(
                    f"a head cannot be named {name!r}: the name is reserved or not a Python identifier; choose another "
                    "name"
                )
        return self


class NequipConfig(Architecture):
    """Configuration of a NequIP-type network.

    Attributes:
        family: Always ``nequip``.
        symmetry: ``so3`` if features have no parity, or if activations mix parities.
        energy: Always true; these networks have no heads.
        cutoff: Cutoff radius (angstrom).
        embedding: Number of scalars in the initial embedding of an atom.
        hidden_irreps: Features of an atom after each interaction; the last are scalars.
        l_max: Highest degree of the spherical harmonics.
        unit_vectors: Whether the spherical harmonics are evaluated for unit vectors; otherwise degree l grows as the
            l-th power of the distance in angstrom, as in the first SevenNet-0.
        n_basis: Number of Bessel functions.
        radial_hidden: Hidden widths of the perceptrons that turn the Bessel functions into radial functions.
        envelope: Envelope that takes the radial functions to zero at the cutoff: ``polynomial`` (Gasteiger et al., ICLR
            2020) or ``xplor`` (the switching function used in molecular dynamics codes).
        envelope_power: Power of the polynomial envelope.
        envelope_onset: Distance at which ``xplor`` begins to fall (angstrom); required for ``xplor``.
        sender_scales: Whether the features that an atom sends are multiplied by a factor that depends on its element.
        self_connections: How each interaction adds an atom's own features: by a linear map (``linear``), by a linear
            map for each element (``element``), or not at all (``none``); empty means ``linear`` everywhere. Before the
            first interaction the features depend only on the element, so ``linear`` and ``element`` are equivalent
            there.
        residual: Whether an interaction that keeps the irreps adds its gated features to its input features.
        layer_norm: Whether features are divided by their root mean square before the gate.
        activation: Activation of even scalars.
        odd_activation: Activation of odd scalars; ``abs`` makes them even, so mirror symmetry is lost.
        gate_activation: Activation of the gates of all other irreps.
        radial_activation: Activation of the radial perceptrons.
        readout_hidden: Hidden widths of the perceptron that turns the last scalars into an energy.
        readout_activation: Activation of the readout perceptron.
        pair_repulsion: Power of the polynomial envelope of the screened Coulomb repulsion between nuclei (Ziegler,
            Biersack and Littmark, 1985), which is added to the energy; None leaves it out.
    """

    family: Literal["nequip"] = "nequip"
    energy: Literal[True] = True
    cutoff: float = Field(gt=0)
    embedding: int = Field(ge=1, le=MAX_WIDTH)
    hidden_irreps: tuple[str, ...] = Field(min_length=1, max_length=MAX_LAYERS)
    l_max: int = Field(ge=0, le=MAX_DEGREE)
    unit_vectors: bool = True
    n_basis: int = Field(default=8, ge=1, le=MAX_WIDTH)
    radial_hidden: tuple[Width, ...] = Field(default=(64, 64), max_length=MAX_LAYERS)
    envelope: Literal["polynomial", "xplor"] = "polynomial"
    envelope_power: int = Field(default=6, ge=2, le=12)
    envelope_onset: float | None = None
    sender_scales: bool = False
    self_connections: tuple[SelfConnection, ...] = ()
    residual: bool = False
    layer_norm: bool = False
    activation: Activation = "silu"
    odd_activation: Literal["tanh", "abs"] = "tanh"
    gate_activation: Activation = "silu"
    radial_activation: Activation = "silu"
    readout_hidden: tuple[Width, ...] = Field(default=(), max_length=MAX_LAYERS)
    readout_activation: Activation = "silu"
    pair_repulsion: int | None = Field(default=None, ge=2, le=12)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_irreps()
        if self.heads:
            raise ValueError("NequIP-type networks cannot have heads; remove `heads`")
        if self.envelope == "xplor" and not (self.envelope_onset and 0 < self.envelope_onset < self.cutoff):
            raise ValueError("envelope_onset must lie between 0 and the cutoff")
        if self.self_connections and len(self.self_connections) != len(self.hidden_irreps):
            raise ValueError("self_connections must name one kind for each interaction")
        if self.symmetry != "so3" and self.odd_activation == "abs" and any("0o" in text for text in self.hidden_irreps):
            raise ValueError("odd_activation: abs makes odd scalars even, so set `symmetry: so3`, or choose tanh")
        return self

    def _check_irreps(self) -> None:
        from ..equivariance.tensors import harmonic_irreps, parsed  # noqa: PLC0415 - e3nn takes a second to import

        layers = [[ir for _, ir in parsed("1x0e")]]
        for text in self.hidden_irreps:
            irreps = parsed(text)
            if sum(mul for mul, _ in irreps) > MAX_WIDTH or any(ir.l > MAX_DEGREE for _, ir in irreps):
                raise ValueError(
                    f"hidden_irreps {text}: at most {MAX_WIDTH} channels and degree {MAX_DEGREE} are supported"
                )
            kinds = [str(ir) for _, ir in irreps]
            if len(set(kinds)) != len(kinds) or "0e" not in kinds:
                raise ValueError(f"hidden_irreps {text} must contain 0e, and no irrep may appear twice")
            layers.append([ir for _, ir in irreps])
        if kinds != ["0e"]:
            raise ValueError("hidden_irreps: the last interaction must produce scalars only")
        harmonics = harmonic_irreps(self.l_max, "natural" if self.tracks_parity else "so3")
        for text, before, after in zip(self.hidden_irreps, layers, layers[1:], strict=False):
            made = {ir for left in before for right in harmonics for ir in left * right}
            if not made.issuperset(after):
                raise ValueError(f"hidden_irreps {text}: the interaction cannot produce all these irreps; remove some")

    @property
    def tracks_parity(self) -> bool:
        """Whether irreps are labelled with their parity; otherwise all are labelled even."""
        return self.symmetry != "so3" or any("o" in text for text in self.hidden_irreps)


class RepulsionConfig(Section):
    """Constants of a screened repulsion of the nuclei (Ziegler, Biersack and Littmark, 1985).

    Attributes:
        length: Screening length: a number of Bohr radii, divided by the sum of both nuclear charges, each raised to the
            power `exponent`.
        exponent: Power of the nuclear charges.
        weights: Weights of the four exponentials.
        envelope_power: Power of the polynomial envelope, which ends at the sum of the covalent radii.
    """

    length: float = Field(default=0.4543, gt=0)
    exponent: float = 0.3
    weights: tuple[float, float, float, float] = (0.1818, 0.5099, 0.2802, 0.02817)
    envelope_power: int = Field(default=5, ge=2, le=12)


class MaceConfig(Architecture):
    """Configuration of a MACE network (Batatia et al., NeurIPS 2022).

    Attributes:
        family: Always ``mace``.
        energy: Always true; these networks have no heads.
        cutoff: Cutoff radius (angstrom).
        channels: Number of channels of every irrep of an atom's features.
        hidden_irreps: Irreps of an atom's features after each interaction, without numbers of channels.
        edge_irreps: Features that senders pass on in all interactions but the first; empty means `hidden_irreps`.
        edge_irreps_first: Whether senders pass on only the scalars of `edge_irreps` in the first interaction;
            otherwise, they pass on all scalars.
        l_max: Highest degree of the spherical harmonics, and of the sum over neighbours.
        correlation: Highest order of the products of the sum over neighbours with itself, for each interaction.
        residual: For each interaction, whether the atom's own features are multiplied by a matrix of its element and
            added to the result. Otherwise, the matrix of the element multiplies the sum over neighbours.
        density: For each interaction, whether the sum over neighbours is divided by a learned density.
        nonlinear: For each interaction, whether its radial functions depend on the elements of both atoms, and the sum
            over neighbours is gated; its residual matrix is then the same for all elements. Empty means none.
        basis: Radial basis from which the learned radial functions are built.
        n_basis: Number of radial basis functions.
        radial_hidden: Hidden widths of the radial perceptrons.
        envelope_power: Power of the polynomial envelope (Gasteiger et al., ICLR 2020).
        envelope_on: What the envelope multiplies: the ``basis``, or the learned ``functions``.
        transform: Transform of distances by the covalent radii of both atoms, before the basis: ``none``, ``agnesi``
            or ``soft``.
        agnesi: Parameters a, p and q of the Agnesi transform.
        steepness: Steepness of the soft transform.
        repulsion: Repulsion of the nuclei; None leaves it out.
        readouts: How the energy is computed from the scalars after each interaction: ``linear``, ``perceptron``,
            ``biased`` (a perceptron with two hidden layers and biases) or ``none``.
        readout_hidden: Hidden width of the perceptron.
    """

    family: Literal["mace"] = "mace"
    energy: Literal[True] = True
    cutoff: float = Field(gt=0)
    channels: int = Field(ge=1, le=MAX_WIDTH)
    hidden_irreps: tuple[str, ...] = Field(min_length=1, max_length=MAX_LAYERS)
    edge_irreps: str = ""
    edge_irreps_first: bool = False
    l_max: int = Field(ge=0, le=MAX_PRODUCT_DEGREE)
    correlation: tuple[Annotated[int, Field(ge=1, le=3)], ...]
    residual: tuple[bool, ...]
    density: tuple[bool, ...]
    nonlinear: tuple[bool, ...] = ()
    basis: Literal["bessel", "gaussian", "chebyshev"] = "bessel"
    n_basis: int = Field(default=8, ge=1, le=MAX_WIDTH)
    radial_hidden: tuple[Annotated[int, Field(ge=1, le=MAX_WIDTH)], ...] = Field(
        default=(64, 64, 64), min_length=1, max_length=MAX_LAYERS
    )
    envelope_power: int = Field(default=5, ge=2, le=12)
    envelope_on: Literal["basis", "functions"] = "basis"
    transform: Literal["none", "agnesi", "soft"] = "none"
    agnesi: tuple[float, float, float] = (1.0805, 4.5791, 0.9183)
    steepness: float = Field(default=4.0, gt=0)
    repulsion: RepulsionConfig | None = None
    readouts: tuple[Literal["linear", "perceptron", "biased", "none"], ...]
    readout_hidden: int = Field(default=16, ge=1, le=MAX_WIDTH)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("correlation", "residual", "density", "readouts", *(["nonlinear"] if self.nonlinear else [])):
            if len(getattr(self, name)) != len(self.hidden_irreps):
                raise ValueError(f"{name} must have one value for each of the {len(self.hidden_irreps)} interactions")
        if set(self.readouts) == {"none"}:
            raise ValueError(
                "all readouts are none, so nothing would be predicted; set one of them to linear or perceptron"
            )
        if any(
            gated and (mixed or not own)
            for gated, mixed, own in zip(self.nonlinear, self.density, self.residual, strict=False)
        ):
            raise ValueError("nonlinear interactions must be residual, without density")
        if self.basis == "gaussian" and self.n_basis < 2:
            raise ValueError("n_basis must be at least 2 for Gaussians")
        if self.heads:
            raise ValueError("MACE networks cannot have heads; remove `heads`")
        return self

    @model_validator(mode="after")
    def _valid_irreps(self) -> Self:
        from ..equivariance.tensors import parsed  # noqa: PLC0415 - e3nn takes a second to import

        senders = {"0e"}
        for place, text in enumerate(self.hidden_irreps):
            kinds = _checked_kinds(text, parsed(text))
            if any(mul != 1 for mul, _ in parsed(text)):
                raise ValueError(
                    f"hidden_irreps: {text} has a multiplicity other than 1; give the number of channels as `channels`"
                )
            senders |= set(kinds) if place + 1 < len(self.hidden_irreps) else set()
        if self.edge_irreps and not set(_checked_kinds(self.edge_irreps, parsed(self.edge_irreps))) <= senders:
            raise ValueError(
                f"edge_irreps {self.edge_irreps} must be among the hidden irreps before the last interaction"
            )
        if self.edge_irreps_first and "0e" not in self.edge_irreps:
            raise ValueError("edge_irreps_first requires edge_irreps with scalars (0e)")
        return self


class AllegroConfig(Architecture):
    """Configuration of an Allegro network (Musaelian et al., Nat. Commun. 14, 579 (2023)).

    Attributes:
        family: Always ``allegro``.
        symmetry: ``so3`` if features have no parity.
        energy: Always true; these networks have no heads.
        cutoff: Cutoff radius (angstrom).
        pair_cutoffs: Smaller cutoff radii (angstrom), by the symbols of the receiver and of the sender.
        l_max: Highest degree of the spherical harmonics.
        edge_irreps: Features of an edge after each layer, without numbers of channels; the last are scalars.
        scalars: Number of scalars of an edge that the embedding and each layer compute.
        channels: Number of channels of each irrep of an edge's features.
        radial: Radial basis: ``bessel``, multiplied by factors of both elements, or ``spline``, with weights for each
            pair of elements.
        n_basis: Number of radial basis functions.
        spline_span: Support of a spline, in spacings between the splines, minus one.
        envelope_power: Power of the polynomial envelope of the Bessel functions (Gasteiger et al., ICLR 2020).
        embedding: Number of scalars that the radial basis is mapped to.
        embedding_hidden: Hidden widths of the perceptron that acts on these scalars.
        embedding_activation: Activation of this perceptron.
        channel_weights: Whether each channel has its own weights of the products, or all channels share them.
        latent_hidden: Hidden widths of the perceptrons of the layers.
        latent_activation: Activation of these perceptrons.
        readout_hidden: Hidden widths of the perceptron that turns scalars into an edge's energy.
        readout_activation: Activation of this perceptron.
        sum_scales: Whether sums over the edges of an atom are multiplied by a factor that depends on its element.
        pair_repulsion: As in `NequipConfig`.
    """

    family: Literal["allegro"] = "allegro"
    energy: Literal[True] = True
    cutoff: float = Field(gt=0)
    pair_cutoffs: dict[str, dict[str, Annotated[float, Field(gt=0)]]] = Field(default_factory=dict)
    l_max: int = Field(ge=0, le=MAX_DEGREE)
    edge_irreps: tuple[str, ...] = Field(min_length=1, max_length=MAX_LAYERS)
    scalars: int = Field(ge=1, le=MAX_WIDTH)
    channels: int = Field(ge=1, le=MAX_WIDTH)
    radial: Literal["bessel", "spline"] = "bessel"
    n_basis: int = Field(default=8, ge=1, le=MAX_WIDTH)
    spline_span: int = Field(default=12, ge=0, le=MAX_WIDTH)
    envelope_power: int = Field(default=6, ge=2, le=12)
    embedding: int = Field(ge=1, le=MAX_WIDTH)
    embedding_hidden: tuple[Width, ...] = Field(default=(64,), max_length=MAX_LAYERS)
    embedding_activation: EdgeActivation = "silu"
    channel_weights: bool = True
    latent_hidden: tuple[Width, ...] = Field(default=(64,), max_length=MAX_LAYERS)
    latent_activation: EdgeActivation = "silu"
    readout_hidden: tuple[Width, ...] = Field(default=(32,), max_length=MAX_LAYERS)
    readout_activation: EdgeActivation = "silu"
    sum_scales: bool = False
    pair_repulsion: int | None = Field(default=None, ge=2, le=12)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heads:
            raise ValueError("heads: Allegro networks cannot have heads; remove them")
        if self.radial == "bessel" and self.embedding % 2:
            raise ValueError("embedding: must be even, since one half belongs to each of the two elements")
        if self.radial == "spline" and self.spline_span > self.n_basis:
            raise ValueError("spline_span: must not exceed n_basis")
        if any(radius > self.cutoff for row in self.pair_cutoffs.values() for radius in row.values()):
            raise ValueError("pair_cutoffs: must not exceed the cutoff")
        return self

    @model_validator(mode="after")
    def _valid_irreps(self) -> Self:
        from ..equivariance.tensors import harmonic_irreps, parsed  # noqa: PLC0415 - e3nn takes a second to import

        harmonics = harmonic_irreps(self.l_max, "so3" if self.symmetry == "so3" else "natural")
        before = list(harmonics)
        for text in self.edge_irreps:
            irreps = [ir for _, ir in parsed(text)]
            if any(mul != 1 for mul, _ in parsed(text)) or len(set(irreps)) != len(irreps) or str(irreps[0]) != "0e":
                raise ValueError(f"edge_irreps {text} must begin with 0e and contain each irrep once")
            if not {ir for left in before for right in harmonics for ir in left * right}.issuperset(irreps):
                raise ValueError(f"edge_irreps {text}: the layer cannot produce all these irreps; remove some")
            before = irreps
        if len(before) > 1:
            raise ValueError("edge_irreps: the last layer must produce 0e only")
        return self


Imported = NequipConfig | MaceConfig | AllegroConfig
# Configurations of networks that are made only by importing weights, by family.
IMPORTED: dict[str, type[Imported]] = {"nequip": NequipConfig, "mace": MaceConfig, "allegro": AllegroConfig}


def _checked_kinds(text: str, irreps: Sequence[tuple[int, Any]]) -> list[str]:
    """Check irreps of a MACE network, and return them without their multiplicities."""
    kinds = [str(ir) for _, ir in irreps]
    if len(set(kinds)) != len(kinds) or "0e" not in kinds:
        raise ValueError(f"irreps {text} must contain 0e, and no irrep may appear twice")
    if "0o" in kinds:
        raise ValueError(f"irreps {text}: pseudoscalars (0o) are not supported; remove them")
    if any(ir.l > MAX_PRODUCT_DEGREE for _, ir in irreps) or any(mul > MAX_WIDTH for mul, _ in irreps):
        raise ValueError(f"irreps {text}: at most {MAX_WIDTH} channels and degree {MAX_PRODUCT_DEGREE} are supported")
    return kinds
