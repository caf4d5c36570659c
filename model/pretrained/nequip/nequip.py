"""Conversion of checkpoints and packages of NequIP (Batzner et al., Nat. Commun. 13, 2453 (2022)), from version 0.7 on.

`files` opens them. Conventions that differ from equiscreen's, and how they are converted:

- linear maps and tensor products of e3nn divide by the square root of the number of input channels, and perceptrons
  multiply their weights by a gain: folded into the weights;
- activations of the gate are divided by the square root of their second moment: folded into the next maps;
- Bessel functions have a prefactor 2 / cutoff, which is folded into the radial perceptron, and frequencies in units of
  pi / cutoff;
- the features that an atom sends are divided by the square root of the mean number of neighbours: folded into the
  preceding map; if there is one number for each element, it becomes a factor of the element;
- the self-connection is a tensor product with the embedding of the element: a matrix for each element;
- before 0.16, networks without parity have even irreps only (so3); since then they have natural parity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from ...config.network import MAX_DEGREE, MAX_LAYERS, NequipConfig
from ...equivariance.irreps import SCALAR, Irrep
from ...equivariance.tensors import natural_irreps, parsed
from ...layers.activations import ACTIVATIONS
from ...networks.nequip import ODD_SCALAR, NequipNetwork
from ..e3nn_weights import (
    InteractionShape,
    e3nn_element_matrices,
    e3nn_matrices,
    e3nn_paths,
    gate_gains,
    ordered_columns,
    sign_of_3j,
)
from ..records.record import Record
from .files import NequipFile, irreps_of

# The first version in which networks without parity have features of natural parity.
NATURAL_PARITY = (0, 16)
BUILDERS = {
    f"nequip.model.{name}"
    for name in (
        *("NequIPGNNModel", "NequIPGNNEnergyModel", "PresetNequIPGNNModel"),
        *("FullNequIPGNNModel", "FullNequIPGNNEnergyModel"),
    )
}
# Layers, degree and channels of the presets of `PresetNequIPGNNModel`; the rest follows from the weights.
PRESETS: dict[str, dict[str, Any]] = {
    "S": {"num_layers": 2, "l_max": 1, "num_features": [128, 64]},
    "M": {"num_layers": 4, "l_max": 2, "num_features": [128, 64, 32]},
    "L": {"num_layers": 6, "l_max": 3, "num_features": [128, 64, 32, 32]},
    "XL": {"num_layers": 6, "l_max": 4, "num_features": [320, 96, 64, 32, 32]},
}
# Settings that are read, that follow from the weights, or that do not change what the network computes.
SETTINGS = {
    *("_target_", "preset", "type_names", "r_max", "l_max", "parity", "num_layers", "num_features"),
    *("feature_irreps_hidden", "irreps_edge_sh", "polynomial_cutoff_p", "avg_num_neighbors", "pair_potential"),
    *("convnet_sc", "convnet_resnet", "learnable_shift", "readout_mlp_nonlinearity"),
    *("convnet_nonlinearity_type", "convnet_nonlinearity_scalars", "convnet_nonlinearity_gates"),
    *("per_edge_type_cutoff", "categorical_graph_field_embed"),
    *("seed", "model_dtype", "compile_mode", "do_derivatives", "type_embed_num_features"),
    *("radial_mlp_depth", "radial_mlp_width", "num_bessels", "bessel_trainable"),
    *("readout_mlp_hidden_layers_depth", "readout_mlp_hidden_layers_width"),
    *("per_type_energy_scales", "per_type_energy_shifts"),
    *("per_type_energy_scales_trainable", "per_type_energy_shifts_trainable"),
}
DEFAULT_ACTIVATIONS = {"e": "silu", "o": "tanh"}
GATE_ACTIVATIONS = {"silu": "silu", "tanh": "tanh", "abs": "abs", "ShiftedSoftPlus": "ssp", "shifted_softplus": "ssp"}
MODULES = re.compile(
    r"(type_embed|spharm|edge_norm|bessel_encode|factor|layer\d+_convnet|per_atom_energy_readout"
    r"|per_type_energy_scale_shift|pair_potential|total_energy_sum)"
)


@dataclass(frozen=True)
class NequipLayer:
    """An interaction of a file.

    Attributes:
        out: Number of channels of each irrep after the gate, in the order of the file.
        connected: Whether an atom's own features are added before the gate.
        residual: Whether the features before the interaction are added to the features after the gate.
    """

    out: Mapping[Irrep, int]
    connected: bool
    residual: bool


@dataclass(frozen=True)
class NequipContent:
    """Settings of the network in a file, and the file with its weights.

    Attributes:
        file: The file.
        cutoff: Cutoff radius (angstrom).
        harmonics: Irreps of the spherical harmonics.
        layers: Interactions.
        power: Power of the polynomial envelope.
        activations: Activations of even scalars, odd scalars and gates.
        readout_activation: Activation of the readout; None and "None" are linear, but have different gains.
        mean_neighbors: Mean number of neighbours, for all elements or by type; None if messages are not divided by it.
        radial_activation: Activation of the radial perceptrons.
        one_hot: Whether the self-connection multiplies by the one-hot vector of the type, not by its embedding.
    """

    file: NequipFile
    cutoff: float
    harmonics: Sequence[Irrep]
    layers: Sequence[NequipLayer]
    power: float
    activations: tuple[str, str, str]
    readout_activation: str | None
    mean_neighbors: float | Sequence[float] | None
    radial_activation: str = "silu"
    one_hot: bool = False

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Weights by name, starting with the name of the module."""
        return self.file.state


def nequip_network(file: NequipFile) -> NequipNetwork:
    """Build the network of a checkpoint, a package or a TorchScript archive.

    Returns:
        The network in float64.

    Raises:
        CheckpointError: The architecture is not supported.
        KeyError, RuntimeError, ValueError: The file is damaged, or follows an unknown convention.
    """
    return build_network(_configured(file) if file.modules is None else _packaged(file, file.modules))


def _configured(file: NequipFile) -> NequipContent:
    """Read the settings of a checkpoint."""
    settings = file.check_settings(BUILDERS, SETTINGS)
    for name in ("per_edge_type_cutoff", "categorical_graph_field_embed"):
        if settings.get(name) is not None:
            raise file.unsupported(name, "is set")
    kind = settings.get("convnet_nonlinearity_type", "gate")
    if kind != "gate":
        raise file.unsupported("convnet_nonlinearity_type", f"is {kind!r}")
    neighbors = settings.get("avg_num_neighbors")
    if isinstance(neighbors, Mapping):
        neighbors = [float(neighbors[name]) for name in settings["type_names"]]
    scalars, gates = (
        settings.get(f"convnet_nonlinearity_{name}", DEFAULT_ACTIVATIONS) for name in ("scalars", "gates")
    )
    harmonics, layers = _configured_layers(settings, natural=file.version >= NATURAL_PARITY)
    return NequipContent(
        file,
        float(settings["r_max"]),
        harmonics,
        layers,
        float(settings.get("polynomial_cutoff_p", 6)),
        (scalars["e"], scalars["o"], gates["e"]),
        settings.get("readout_mlp_nonlinearity", "silu"),
        neighbors,
    )


def _configured_layers(settings: Mapping[str, Any], *, natural: bool) -> tuple[list[Irrep], list[NequipLayer]]:
    """Return the irreps of the harmonics and the interactions, by the rules of NequIP's builders."""
    preset = PRESETS[str(settings["preset"]).upper()] if "preset" in settings else {}
    merged = {"num_layers": 4, "l_max": 1, "num_features": 32, "parity": "preset" not in settings, **preset, **settings}
    if "feature_irreps_hidden" in settings:
        hidden = [_channels(irreps) for irreps in settings["feature_irreps_hidden"]]
        harmonics = [ir for _, ir in parsed(str(o3.Irreps(settings["irreps_edge_sh"])))]
    else:
        degree, layers = (int(merged[name]) for name in ("l_max", "num_layers"))
        widths, degrees = merged["num_features"], range(min(degree, MAX_DEGREE + 1) + 1)
        widths = [int(widths)] * len(degrees) if isinstance(widths, int) else [int(width) for width in widths]
        harmonics = natural_irreps(degrees[-1])
        if merged["parity"]:
            every = [(degree, parity) for degree in degrees for parity in (1, -1)]
            every = every if natural else sorted(every, key=lambda kind: -kind[1])
        else:
            harmonics = harmonics if natural else [Irrep(degree, 1) for degree in degrees]
            every = [(ir.l, ir.p) for ir in harmonics]
        inner = {Irrep(degree, parity): widths[degree] for degree, parity in every}
        hidden = [*[inner] * (min(layers, MAX_LAYERS + 1) - 1), {SCALAR: widths[0]}]
    connected, shifted = settings.get("convnet_sc", True), settings.get("learnable_shift", False)
    made, into = [], {SCALAR: 1}
    for number, channels in enumerate(hidden):
        reached = {irrep for left in into for right in harmonics for irrep in left * right}
        # NequIP lists scalars first.
        kept = [ir for ir in channels if ir in reached]
        out = {ir: channels[ir] for ir in sorted(kept, key=lambda ir: ir.l > 0)}
        residual = settings.get("convnet_resnet", False) and [*out.items()] == [*into.items()]
        made.append(NequipLayer(out, connected and (number > 0 or shifted), residual and (number > 0 or shifted)))
        into = out
    return harmonics, made


def _channels(irreps: Any) -> dict[Irrep, int]:
    pairs = parsed(str(o3.Irreps(irreps).simplify()))
    if len({irrep for _, irrep in pairs}) < len(pairs):
        raise ValueError(f"the irreps {irreps} contain an irrep twice")
    return {irrep: channels for channels, irrep in pairs}


def _packaged(file: NequipFile, network: Record) -> NequipContent:
    """Read the settings of a package from its modules."""
    for name, module in network.children().items():
        if not MODULES.fullmatch(name):
            raise file.unsupported(f"{name} ({module.kind})", "is unknown")
    norm, embed, bessel = (network.child(name) for name in ("edge_norm", "type_embed", "bessel_encode"))
    if norm.fields["_per_edge_type"]:
        raise file.unsupported("per_edge_type_cutoff", "is set")
    if embed.fields.get("do_categorical_graph_field_embed"):
        raise file.unsupported("categorical_graph_field_embed", "is set")
    spherical = network.child("spharm", "sh")
    if not spherical.fields["normalize"] or spherical.fields["normalization"] != "component":
        raise file.unsupported("spharm", "does not normalise its harmonics")
    layers, activations = [], {"e": "silu", "o": "tanh", "gate": "silu"}
    for number in range(sum(name.startswith("layer") for name in network.children())):
        layer = network.child(f"layer{number}_convnet")
        gate = layer.child("equivariant_nonlin")
        if gate.name != "Gate":
            raise file.unsupported("convnet_nonlinearity_type", f"is {gate.name}")
        scalars, gated = (_irreps(gate.fields[f"irreps_{kind}"]) for kind in ("scalars", "gated"))
        for (irrep, _), module in zip(
            scalars.items(), gate.child("act_scalars", "acts").children().values(), strict=True
        ):
            activations["e" if irrep.p == 1 else "o"] = _function(module, file)
        for module in gate.child("act_gates", "acts").children().values():
            activations["gate"] = _function(module, file)
        connected = "sc" in layer.child("conv").children()
        layers.append(NequipLayer({**scalars, **gated}, connected, bool(layer.fields["resnet"])))
    return NequipContent(
        file,
        float(norm.fields["r_max"]),
        [*_irreps(network.child("spharm").fields["irreps_edge_sh"])],
        layers,
        float(bessel.child("cutoff").fields["p"]),
        (activations["e"], activations["o"], activations["gate"]),
        file.activation_of("readout_mlp_nonlinearity", "per_atom_energy_readout", "mlp_module"),
        _packaged_neighbors(network, file.state),
    )


def _irreps(record: Record) -> dict[Irrep, int]:
    """Return the number of channels of each irrep of a recorded `e3nn.o3.Irreps`."""
    channels: dict[Irrep, int] = {}
    for count, kind in irreps_of(record):
        if kind in channels:
            raise ValueError(f"the irreps of the gate contain {kind} twice")
        channels[kind] = count
    return channels


def _function(module: Record, file: NequipFile) -> str:
    """Return the name of the function of a recorded `normalize2mom`."""
    function = module.fields["f"]
    name = str(getattr(function, "kind", function)).rpartition(".")[2]
    if name not in GATE_ACTIVATIONS:
        raise file.unsupported("convnet_nonlinearity", f"is {name}")
    return GATE_ACTIVATIONS[name]


def _packaged_neighbors(network: Record, state: Mapping[str, Tensor]) -> float | list[float] | None:
    """Return the mean number of neighbours, which versions of NequIP store in three different places."""
    convolution = network.child("layer0_convnet", "conv")
    factors = state.get("layer0_convnet.conv.avg_num_neighbors_norm.norm_const")
    if factors is not None:
        numbers = (1 / factors.double() ** 2).flatten().tolist()
        return float(numbers[0]) if len(numbers) == 1 else [float(number) for number in numbers]
    if convolution.fields.get("scatter_norm_factor") is not None:
        return float(convolution.fields["scatter_norm_factor"]) ** -2
    number = convolution.fields.get("avg_num_neighbors")
    return None if number is None else float(number)


def build_network(content: NequipContent) -> NequipNetwork:
    """Build the network, with its weights.

    Returns:
        The network in float64.

    Raises:
        CheckpointError: The architecture is not supported.
        KeyError, RuntimeError, ValueError: The file is damaged, or follows an unknown convention.
    """
    file, state = content.file, content.state
    numbers, order = file.elements()
    shapes = _shapes(content)
    if content.layers[0].residual:
        raise file.unsupported("convnet_resnet", "with learnable_shift is set")
    if content.activations[1] == "abs" and any(ODD_SCALAR in shape.out for shape in shapes):
        raise file.unsupported("convnet_nonlinearity_scalars o", "is 'abs', which makes odd scalars even")
    network = NequipNetwork(_architecture(content, shapes), numbers, file.statistics(order), torch.float64)
    gains = gate_gains(
        {ir for shape in shapes for ir in shape.out}, *(ACTIVATIONS[name] for name in content.activations)
    )
    embedding = state["type_embed.embed_module.weight"].double()[order]
    weights = {"basis.frequencies": state["bessel_encode.bessel_weights"].double().flatten() * math.pi / content.cutoff}
    *hidden, readout = file.perceptron("per_atom_energy_readout.mlp_module", content.readout_activation)
    first, *_ = matrices = [*hidden, readout]
    matrices[0] = first * gains[SCALAR]
    weights |= {"readout": matrices[-1], **{f"readout_hidden.{place}": m for place, m in enumerate(matrices[:-1])}}
    for layer, shape in enumerate(shapes):
        weights |= _interaction(content, layer, shape, _kept(shapes)[layer], network, embedding, order, gains)
    network.load_state_dict(weights)
    return network.eval()


def _shapes(content: NequipContent) -> list[InteractionShape]:
    into: Mapping[Irrep, int] = {SCALAR: content.state["type_embed.embed_module.weight"].shape[1]}
    shapes = []
    for layer in content.layers:
        shapes.append(
            InteractionShape(into, layer.out, e3nn_paths([*into], content.harmonics, layer.out, by_result=False))
        )
        into = layer.out
    return shapes


def _kept(shapes: Sequence[InteractionShape]) -> list[Mapping[Irrep, int]]:
    """Return the features after each interaction; after the last, only the scalars that the readout uses."""
    return [*(shape.out for shape in shapes[:-1]), {SCALAR: shapes[-1].out[SCALAR]}]


def _architecture(content: NequipContent, shapes: Sequence[InteractionShape]) -> NequipConfig:
    file = content.file
    for name in content.activations:
        if name not in GATE_ACTIVATIONS.values():
            raise file.unsupported("convnet_nonlinearity", f"is {name!r}")
    if content.readout_activation not in {None, "None", "null", "silu", "mish", "ssp", "tanh"}:
        raise file.unsupported("readout_mlp_nonlinearity", f"is {content.readout_activation!r}")
    natural = [ir == natural_irreps(ir.l)[-1] for shape in shapes for ir in shape.out]
    even = [ir.p == 1 for ir in content.harmonics]
    symmetry = "so3" if all(even) and len(even) > 1 else "natural" if all(natural) else "o3"
    perceptrons = [file.perceptron(f"layer{n}_convnet.conv.edge_mlp", "silu") for n in range(len(shapes))]
    radial, *others = [tuple(matrix.shape[1] for matrix in matrices[:-1]) for matrices in perceptrons]
    if any(widths != radial for widths in others):
        raise file.unsupported("radial_mlp_width", "differs between the interactions")
    readout = file.perceptron("per_atom_energy_readout.mlp_module", content.readout_activation)
    even_scalars, odd_scalars, gates = content.activations
    return NequipConfig.model_validate(
        {
            "symmetry": symmetry,
            "cutoff": content.cutoff,
            "embedding": shapes[0].into[SCALAR],
            "hidden_irreps": tuple(" + ".join(f"{mul}x{ir}" for ir, mul in kept.items()) for kept in _kept(shapes)),
            "l_max": content.harmonics[-1].l,
            "n_basis": content.state["bessel_encode.bessel_weights"].numel(),
            "radial_hidden": radial,
            "radial_activation": content.radial_activation,
            "envelope_power": file.whole_number("polynomial_cutoff_p", content.power),
            "sender_scales": isinstance(content.mean_neighbors, Sequence),
            "self_connections": tuple("element" if layer.connected else "none" for layer in content.layers),
            "residual": any(layer.residual for layer in content.layers),
            "activation": even_scalars,
            "odd_activation": odd_scalars,
            "gate_activation": gates,
            "readout_hidden": tuple(matrix.shape[1] for matrix in readout[:-1]),
            "readout_activation": content.readout_activation if len(readout) > 1 else "silu",
            "pair_repulsion": file.repulsion("bessel_encode", "cutoff"),
        }
    )


def _interaction(
    content: NequipContent,
    layer: int,
    shape: InteractionShape,
    kept: Mapping[Irrep, int],
    network: NequipNetwork,
    embedding: Tensor,
    order: Tensor,
    gains: Mapping[Irrep, float],
) -> dict[str, Tensor]:
    """Return all weights of an interaction, by parameter name."""
    state, theirs, ours = content.state, f"layer{layer}_convnet.conv", f"interactions.{layer}"
    paths = network.convolution(layer).paths
    mix = e3nn_matrices(state[f"{theirs}.linear_2.weight"], shape.summed, shape.gate_in)
    mix = shape.rows(shape.without_dropped(mix, kept), paths)
    out = {f"{ours}.mix.{irrep}": matrix for irrep, matrix in mix.items()}
    out[f"{ours}.mix_bias"] = torch.zeros(len(shape.kept_columns(kept)), dtype=torch.float64)
    radial = content.file.perceptron(f"{theirs}.edge_mlp", "silu")
    radial[0] = radial[0] * (2 / content.cutoff)
    products = f"{theirs}.tp_scatter.tp" if f"{theirs}.tp_scatter.tp.weight" in state else f"{theirs}.tp"
    signs = [sign_of_3j(state, products, path) for path in paths]
    radial[-1] = ordered_columns(radial[-1], shape.paths, paths, shape.into, signs)
    out |= {f"{ours}.convolution.radial.{place}": matrix for place, matrix in enumerate(radial)}
    numbers = content.mean_neighbors
    by_type = isinstance(numbers, Sequence)
    factors = torch.tensor(numbers if by_type else [1.0 if numbers is None else numbers], dtype=torch.float64) ** -0.5
    factors = factors[order] if by_type else factors
    send = e3nn_matrices(state[f"{theirs}.linear_1.weight"], shape.into, shape.into)
    skip: dict[Irrep, Tensor] = {}
    if content.layers[layer].connected:
        types = torch.eye(len(order), dtype=torch.float64)[order] if content.one_hot else embedding
        skip = e3nn_element_matrices(state[f"{theirs}.sc.weight"], shape.into, types, shape.gate_in)
        skip = shape.without_dropped(skip, kept)
    if layer == 0:
        out["sent"] = embedding @ send[SCALAR] * factors.unsqueeze(1)
        if skip:
            out[f"{ours}.skip_table"] = torch.bmm(embedding.unsqueeze(1), skip[SCALAR]).squeeze(1)
        return out
    if by_type:
        out[f"{ours}.send_scale"] = factors
    common = 1.0 if by_type else float(factors)
    out |= {f"{ours}.send.{irrep}": matrix * gains[irrep] * common for irrep, matrix in send.items()}
    out |= {f"{ours}.skip_by_element.{irrep}": matrix * gains[irrep] for irrep, matrix in skip.items()}
    return {**out, f"{ours}.send_bias": torch.zeros(shape.into[SCALAR], dtype=torch.float64)}
