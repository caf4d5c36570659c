"""The configuration of a network and of its training: one YAML file, every key with a default.

docs/training.md explains every key to people; a test keeps it complete.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from ..pipeline.errors import ConfigError
from ..pipeline.tables import INPUT_NAMES

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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class HeadConfig(_Section):
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


class Architecture(_Section):
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
    heads: dict[str, HeadConfig] = {}


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
        from .symmetry import check_network, hidden_irreps, is_reserved  # noqa: PLC0415 - e3nn takes a second to import

        irreps = self.hidden_irreps or hidden_irreps(
            self.symmetry, PRESETS[self.preset]["channels"], min(self.l_max, PRESETS[self.preset]["l_max"])
        )
        object.__setattr__(self, "hidden_irreps", check_network(self.symmetry, irreps, self.l_max, self.heads))
        if not self.energy and not self.heads:
            raise ValueError("neither an energy nor a head: nothing to predict")
        for name in self.heads:
            reserved = name in RESERVED_HEADS or name.endswith("_std") or is_reserved(name)
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
        from .symmetry import parsed  # noqa: PLC0415 - e3nn takes a second to import

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


class TermConfig(_Section):
    """One term of the loss; in YAML a number alone is its weight.

    Attributes:
        weight: Of the mean over all labelled components.
        kind: ``squared``; ``absolute``; ``huber``, squared below `delta` and absolute beyond.
        delta: In the unit of the term.
    """

    weight: float = Field(default=1.0, ge=0)
    kind: Literal["squared", "absolute", "huber"] = "squared"
    delta: float = Field(default=0.01, gt=0)


def _term(value: Any) -> Any:
    return {"weight": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


Term = Annotated[TermConfig, BeforeValidator(_term)]


class LossConfig(_Section):
    """Terms of the loss; a label that is absent does not count.

    The errors are those of the energy per atom in eV, of the force components in eV/angstrom and of the stress
    components in eV/angstrom^3; those of a head are the components of its irreps in units of their spread in the
    training set (of the logarithm, where it is transformed).

    Attributes:
        heads: By name; a head that is not named has the weight 1.
    """

    energy: Term = TermConfig(weight=4.0)
    forces: Term = TermConfig(weight=1.0)
    stress: Term = TermConfig(weight=200.0)
    heads: dict[str, Term] = {}


class SplitConfig(_Section):
    """Which structures are held out.

    Attributes:
        by: ``structure``: at random. ``composition``: whole reduced formulas at random. ``group``: whole groups with
            one value of the column `key` at random. ``stratified``: at random within each group. ``time``: the latest
            by the column `key`.
        key: A column of the stores (`featurize --column`).
        validation: Share of the structures that are validated on while training.
        test: Share that is looked at once, at the end.
        seed: Of the random numbers; members of an ensemble share it.
    """

    by: Literal["structure", "composition", "group", "stratified", "time"] = "structure"
    key: str | None = None
    validation: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.key is None) != (self.by in ("structure", "composition")):
            raise ValueError("`key`, a column of the stores, belongs to group, stratified and time, and they need it")
        if self.validation + self.test >= 1:
            raise ValueError("validation and test leave nothing to train on")
        return self


class FineTuneConfig(_Section):
    """From where weights are taken instead of at random.

    Attributes:
        checkpoint: A model.ckpt, or a run folder; its architecture replaces `network`, but for new heads.
        freeze: Beginnings of names of parameters that do not change: ``embedding``, ``radial``, ``interactions.0``, ...
        references: ``fit`` fits the reference energies anew, to what the checkpoint leaves of the new labels; ``keep``.
    """

    checkpoint: Path | None = None
    freeze: tuple[str, ...] = ()
    references: Literal["fit", "keep"] = "fit"


class TrainingConfig(_Section):
    """How the network is trained.

    Attributes:
        seed: Of weights and order.
        max_epochs, max_minutes: Training ends at whichever comes first; None sets no limit of time.
        batch_size: Structures in a step, of all processes together.
        learning_rate: Highest; it warms up over the first `warmup_steps`.
        schedule: ``cosine`` to nothing, or ``plateau``: times `plateau_factor` after `plateau_epochs` without a better
            validation.
        weight_decay: Of AdamW; 0 is Adam.
        ema_decay: Of the running mean of the weights that is validated and kept.
        gradient_clip: Largest norm of the gradient.
        loss: Terms and weights.
        split: What is held out.
        fine_tune: From a checkpoint.
        dtype: Of weights and features; energies are summed in float64 in any case.
        threads: Of PyTorch, in each process; None takes all cores.
        devices: Processes that share each batch: GPUs, or processes of the CPU.
        accelerator: ``auto`` takes a GPU if there is one.
        energy_scale: ``global``, or one for each ``element``.
        checkpoint_minutes: At least so often the state is saved; a killed run repeats no more.
        early_stop_epochs: Stop after so many epochs without improvement; None goes on.
    """

    seed: int = Field(default=0, ge=0, lt=2**31)
    max_epochs: int = Field(default=200, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-2, gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    schedule: Literal["cosine", "plateau"] = "cosine"
    plateau_factor: float = Field(default=0.5, gt=0, lt=1)
    plateau_epochs: int = Field(default=20, ge=1)
    weight_decay: float = Field(default=0.0, ge=0)
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    gradient_clip: float = Field(default=10.0, gt=0)
    loss: LossConfig = LossConfig()
    split: SplitConfig = SplitConfig()
    fine_tune: FineTuneConfig = FineTuneConfig()
    dtype: Literal["float32", "float64"] = "float32"
    threads: int | None = Field(default=None, ge=1)
    devices: int = Field(default=1, ge=1)
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    energy_scale: Literal["global", "element"] = "global"
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    early_stop_epochs: int | None = Field(default=None, ge=1)


def _family(network: Any) -> str:
    family = network.get("family") if isinstance(network, dict) else getattr(network, "family", None)
    return "nequip" if family == "nequip" else "own"


class Config(_Section):
    """All of it.

    Attributes:
        network: The architecture; that of imported weights stands in run folders of trainings that began with them.
        training: All else.
    """

    network: Annotated[
        Annotated[NetworkConfig, Tag("own")] | Annotated[NequipConfig, Tag("nequip")], Discriminator(_family)
    ] = NetworkConfig()
    training: TrainingConfig = TrainingConfig()

    def starting_from(self, checkpoint: str | Path) -> Self:
        """The same, to be fine-tuned from a checkpoint or run folder."""
        fine_tune = self.training.fine_tune.model_copy(update={"checkpoint": Path(checkpoint)})
        training = self.training.model_copy(update={"fine_tune": fine_tune})
        return self.model_copy(update={"training": training})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML file.

        Raises:
            ConfigError: Missing, not YAML, or with a key or value that does not exist.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(errors="replace"))
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: no such file") from error
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
        return cls.parse(content or {}, str(path))

    @classmethod
    def parse(cls, content: Any, where: str) -> Self:
        """Check a configuration given as plain values; `where` is named in errors.

        Raises:
            ConfigError: A key or value that does not exist.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = "; ".join(_problem(cls, item["loc"], item["type"], item["msg"]) for item in error.errors())
            raise ConfigError(f"{where}: {problems}") from error


def _problem(model: type[BaseModel], place: tuple[int | str, ...], kind: str, message: str) -> str:
    """One mistake; a key that does not exist is told with the one that was probably meant."""
    if place[:1] == ("network",) and place[1:2] in {("own",), ("nequip",)}:
        place = (*place[:1], *place[2:])  # which of the kinds of networks it is
    name = ".".join(map(str, place))
    if kind != "extra_forbidden":
        return f"{name}: {message.removeprefix('Value error, ')}" if name else message.removeprefix("Value error, ")
    for key in place[:-1]:
        field = model.model_fields.get(str(key))  # None: the name of a head, whose section was found already
        if field is not None and (section := _section(field.annotation)) is not None:
            model = section
    near = get_close_matches(str(place[-1]), model.model_fields, 1)
    known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(model.model_fields)}"
    return f"{name}: no such key; {known}"


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation names, also as the values of a dictionary."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part)) is not None), None)
