"""Settings of a MACE network, under the names that mace-torch uses, from a module or from a file of settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ...pipeline.bounded_yaml import load_yaml
from ...pipeline.errors import CheckpointError
from ...pipeline.suggestions import problem_text
from ..config.network import MAX_LAYERS, MAX_PRODUCT_DEGREE, MAX_WIDTH
from .records.record import Record

MODELS = ("MACE", "ScaleShiftMACE")


class Block(NamedTuple):
    """What an interaction block is made of; the attributes are those of `MaceConfig`."""

    residual: bool = False
    density: bool = False
    nonlinear: bool = False


INTERACTIONS = {
    "RealAgnosticInteractionBlock": Block(),
    "RealAgnosticResidualInteractionBlock": Block(residual=True),
    "RealAgnosticDensityInteractionBlock": Block(density=True),
    "RealAgnosticDensityResidualInteractionBlock": Block(residual=True, density=True),
    "RealAgnosticResidualNonLinearInteractionBlock": Block(residual=True, nonlinear=True),
}
# Readouts after the last interaction; the others are linear.
READOUTS = {"NonLinearReadoutBlock": "perceptron", "NonLinearBiasReadoutBlock": "biased"}
BASES = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
TRANSFORMS = {"AgnesiTransform": "Agnesi", "SoftTransform": "Soft"}
MAX_ELEMENTS = 118

Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]


class MaceSettings(BaseModel):
    """Settings of a MACE network.

    Settings have the names of the arguments of `mace.modules.models.MACE` (mace-torch 0.3.16), where these exist.

    Attributes:
        family: Always ``mace``.
        model: ``MACE`` or ``ScaleShiftMACE``.
        r_max: Cutoff radius (angstrom).
        num_bessel: Number of radial basis functions, of any kind.
        num_polynomial_cutoff: Power of the envelope.
        max_ell: Highest degree of the spherical harmonics.
        interaction_cls_first: Block of the first interaction.
        interaction_cls: Block of all other interactions.
        num_interactions: Number of interactions.
        hidden_irreps: Features after all interactions but the last, which keeps the first irrep only.
        edge_irreps: Features that senders pass on in all interactions but the first; None for all.
        MLP_irreps: Hidden scalars of the last readout, for each head.
        gate: Activation of the last readout.
        avg_num_neighbors: Number by which the sum over neighbours is divided.
        atomic_numbers: Atomic numbers in the order of the weights.
        correlation: Highest order of products: one number for all interactions, or one for each.
        radial_type: Radial basis.
        radial_MLP: Hidden widths of the radial perceptrons.
        pair_repulsion: Whether there is a ZBL repulsion.
        distance_transform: Transform of distances.
        apply_cutoff: Whether the envelope multiplies the radial basis, not the learned radial functions.
        use_last_readout_only: Whether only the last interaction has a readout.
        use_agnostic_product: Whether all elements share the weights of the products.
        use_so3: Not supported: features without parity.
        use_edge_irreps_first: Whether senders pass on only the scalars of `edge_irreps` in the first interaction.
        readout_cls: Block of the last readout.
        keep_last_layer_irreps: Not supported: more than the first irrep after the last interaction.
        use_reduced_cg: Ignored, because the coupling matrices are read from the file.
        heads: Names of the heads.
        path_order: Order of the radial functions: ``created``, by the irreps of sender and harmonics, or ``sorted``,
            by the irrep of the result, as in all recent versions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Literal["mace"] = "mace"
    model: Literal["MACE", "ScaleShiftMACE"] = "ScaleShiftMACE"
    r_max: float = Field(gt=0, le=100)
    num_bessel: Width
    num_polynomial_cutoff: int = Field(ge=2, le=12)
    max_ell: int = Field(ge=0, le=MAX_PRODUCT_DEGREE)
    interaction_cls_first: str
    interaction_cls: str = "RealAgnosticResidualInteractionBlock"
    num_interactions: int = Field(ge=1, le=MAX_LAYERS)
    hidden_irreps: str
    edge_irreps: str | None = None
    MLP_irreps: str = "16x0e"
    gate: str | None = "silu"
    avg_num_neighbors: float = Field(gt=0)
    atomic_numbers: tuple[Annotated[int, Field(ge=1, le=MAX_ELEMENTS)], ...] = Field(min_length=1)
    correlation: Annotated[int, Field(ge=1, le=3)] | tuple[Annotated[int, Field(ge=1, le=3)], ...]
    radial_type: Literal["bessel", "gaussian", "chebyshev"] = "bessel"
    radial_MLP: tuple[Width, ...] = Field(  # noqa: N815 - its name in MACE
        default=(64, 64, 64), min_length=1, max_length=MAX_LAYERS
    )
    pair_repulsion: bool = False
    distance_transform: Literal["None", "Agnesi", "Soft"] = "None"
    apply_cutoff: bool = True
    use_last_readout_only: bool = False
    use_agnostic_product: bool = False
    use_so3: Literal[False] = False
    use_edge_irreps_first: bool = False
    readout_cls: Literal["NonLinearReadoutBlock", "NonLinearBiasReadoutBlock"] = "NonLinearReadoutBlock"
    keep_last_layer_irreps: Literal[False] = False
    use_reduced_cg: bool = False
    heads: tuple[str, ...] = Field(default=("Default",), min_length=1, max_length=1000)
    path_order: Literal["created", "sorted"] = "sorted"

    @field_validator("interaction_cls_first", "interaction_cls")
    @classmethod
    def _known_block(cls, name: str) -> str:
        if name not in INTERACTIONS:
            raise ValueError(f"{name} is not supported; only {', '.join(INTERACTIONS)} are")
        return name

    @field_validator("gate")
    @classmethod
    def _known_gate(cls, name: str | None) -> str | None:
        if name != "silu":
            raise ValueError(f"{name} is not supported; only silu is")
        return name

    @field_validator("atomic_numbers", "heads")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("contains duplicates")
        return values

    @classmethod
    def checked(cls, values: Mapping[str, Any], where: str | Path) -> Self:
        """Validate settings.

        Raises:
            CheckpointError: A setting is unknown, invalid or not supported; the message names the setting.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            problems = "; ".join(problem_text(item, "setting", cls.model_fields, {}) for item in error.errors()[:3])
            raise CheckpointError(f"{where}: unsupported architecture: {problems}") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML or JSON file of settings.

        Raises:
            CheckpointError: The file cannot be read, or a setting is unknown, invalid or not supported.
        """
        try:
            content = load_yaml(Path(path))
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror}); give a YAML or JSON file of settings"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        if not isinstance(content, dict) or content.get("family") != "mace":
            raise CheckpointError(f"{path} does not contain `family: mace`; add this line if it holds MACE settings")
        return cls.checked(content, path)


def settings_of(module: Record, where: str | Path) -> MaceSettings:
    """Return the settings of a MACE network that was pickled or saved as TorchScript.

    Raises:
        CheckpointError: The module is not a MACE network that predicts an energy, or a setting is not supported; the
            message names the class or setting.
    """
    if module.name not in MODELS:
        dipoles = " (it predicts dipoles or other tensors, which are not supported for MACE networks)"
        raise CheckpointError(
            f"{where}: {module.name} is not supported; only {' and '.join(MODELS)} are"
            + (dipoles if "Dip" in module.name or "Diel" in module.name else "")
        )
    for name in ("joint_embedding", "embedding_readout", "les", "cueq_config", "oeq_config"):
        if module.get(name) is not None:
            raise CheckpointError(
                f"{where}: unsupported architecture: {name} is set; docs/pretrained.md lists what can be imported"
            )
    interactions, products = _numbered(module["interactions"]), _numbered(module["products"])
    first, last = interactions[0], interactions[-1]
    others = {one.name for one in interactions[1:]}
    if len(others) > 1:
        raise CheckpointError(
            f"{where}: unsupported architecture: interactions of several kinds: {', '.join(sorted(others))}; "
            "docs/pretrained.md lists what can be imported"
        )
    values: dict[str, Any] = {
        "model": module.name,
        # Converted through the shortest decimal number, so that 6.1 in float32 does not become 6.0999999.
        "r_max": float(str(module["r_max"].numpy())),
        "max_ell": max(degree for _, degree, _ in _irreps(first["target_irreps"])),
        "interaction_cls_first": first.name,
        "num_interactions": len(interactions),
        "hidden_irreps": irreps_text(products[0]["linear"]["irreps_out"]),
        "avg_num_neighbors": float(first["avg_num_neighbors"]),
        "atomic_numbers": [int(number) for number in module["atomic_numbers"].tolist()],
        "correlation": [_correlation(product) for product in products],
        "pair_repulsion": module.get("pair_repulsion_fn") is not None,
        "use_agnostic_product": bool(products[0].get("use_agnostic_product", False)),
        "use_so3": bool(module.get("use_so3", False)),
        "use_edge_irreps_first": _edge_irreps(first) is not None,
        "keep_last_layer_irreps": len(_irreps(products[-1]["linear"]["irreps_out"])) > 1,
        "path_order": _path_order(last, where),
        **_radial_settings(module["radial_embedding"], first["conv_tp_weights"]),
        **_readout_settings(module, len(interactions), where),
    }
    values["edge_irreps"] = _edge_irreps(last)
    if others:
        values["interaction_cls"] = others.pop()
    return MaceSettings.checked(values, where)


def _edge_irreps(interaction: Record) -> str | None:
    """Return the features that senders pass on; None if they pass on all features."""
    every = irreps_text(interaction["node_feats_irreps"])
    edges = irreps_text(interaction.get("edge_irreps") or every)
    return edges if edges != every else None


def _radial_settings(radial: Record, perceptron: Record) -> dict[str, Any]:
    """Return the settings of the radial functions."""
    transform = radial.get("distance_transform")
    return {
        "num_bessel": int(radial["out_dim"]),
        "num_polynomial_cutoff": int(radial["cutoff_fn"]["p"]),
        "radial_type": BASES.get(radial["bessel_fn"].name, radial["bessel_fn"].name),
        "radial_MLP": _hidden_widths(perceptron),
        "apply_cutoff": bool(radial.get("apply_cutoff", True)),
        "distance_transform": "None" if transform is None else TRANSFORMS.get(transform.name, transform.name),
    }


def _hidden_widths(perceptron: Record) -> list[int]:
    """Return the widths of the hidden layers of a radial perceptron."""
    if perceptron.name == "RadialMLP":
        matrices = [layer["weight"] for layer in perceptron["net"].children().values() if layer.name == "Linear"]
        return [len(matrix) for matrix in matrices[:-1]]
    return [int(layer["weight"].shape[1]) for layer in perceptron.children().values()][:-1]


def _readout_settings(module: Record, interactions: int, where: str | Path) -> dict[str, Any]:
    """Return the settings of heads and readouts."""
    heads = [str(name) for name in module.get("heads") or ["Default"]]
    readouts = _readouts(module, interactions, where)
    values = {"heads": heads, "use_last_readout_only": len(readouts) < interactions}
    if readouts[-1].name in READOUTS:
        width = int(readouts[-1]["linear_2"]["weight"].numel()) // len(heads) ** 2
        values |= {"MLP_irreps": f"{width}x0e", "gate": _activation(readouts[-1]["non_linearity"])}
        values["readout_cls"] = readouts[-1].name
    return values


def _numbered(modules: Record) -> list[Record]:
    found = modules.children()
    return [found[str(place)] for place in range(len(found))]


def _readouts(module: Record, interactions: int, where: str | Path) -> list[Record]:
    readouts = _numbered(module["readouts"])
    kinds = [one.name for one in readouts]
    # With one interaction, its readout is linear.
    lasts = READOUTS if interactions > 1 else ["LinearReadoutBlock"]
    expected = ["LinearReadoutBlock"] * (interactions - 1) + kinds[-1:]
    if kinds not in (expected, expected[-1:]) or kinds[-1] not in lasts:
        raise CheckpointError(
            f"{where}: unsupported architecture: readouts {', '.join(kinds)}; docs/pretrained.md lists what can be "
            "imported"
        )
    return readouts


def _activation(module: Record) -> str:
    """Return the name of the activation of a readout."""
    acts = [*_numbered(module["acts"])]
    function = acts[0].get("f") if acts else None
    name = getattr(function, "kind", type(function).__name__)
    return str(name).rpartition(".")[2]


def _correlation(product: Record) -> int:
    (*_, contraction) = _numbered(product["symmetric_contractions"]["contractions"])
    return sum(str(name).startswith("U_matrix_") for name in contraction.fields["_buffers"])


def _path_order(interaction: Record, where: str | Path) -> str:
    """Return how the paths of the convolution are ordered; see `MaceSettings.path_order`."""
    instructions = [one.args if isinstance(one, Record) else one for one in interaction["conv_tp"]["instructions"]]
    created = [(one[0], one[1]) for one in instructions]
    results = [one[2] for one in instructions]
    if results == sorted(results):
        return "sorted"
    if created == sorted(created):
        return "created"
    raise CheckpointError(
        f"{where}: unsupported architecture: the convolution paths are in an unknown order; docs/pretrained.md lists "
        "what can be imported"
    )


def irreps_text(irreps: Any) -> str:
    """Return the irreps of a record or a text in e3nn's notation."""
    return " + ".join(f"{mul}x{degree}{'e' if parity > 0 else 'o'}" for mul, degree, parity in _irreps(irreps))


def _irreps(irreps: Any) -> list[tuple[int, int, int]]:
    """Return the multiplicity, degree and parity of each irrep."""
    if isinstance(irreps, str):
        from ..equivariance.tensors import parsed  # noqa: PLC0415 - e3nn takes a second to import

        return [(mul, int(ir.l), int(ir.p)) for mul, ir in parsed(irreps)]
    out = []
    for one in _content(irreps):
        mul, irrep = _content(one)
        degree, parity = _content(irrep)
        out.append((int(mul), int(degree), int(parity)))
    return out


def _content(record: Any) -> Iterable[Any]:
    """Return the content of a pickled subclass of tuple."""
    found: Iterable[Any] = record.args[0] if isinstance(record, Record) else record
    return found
