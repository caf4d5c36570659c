"""Conversion of checkpoints and packages of NequIP (Batzner et al., Nat. Commun. 13, 2453 (2022)), from version 0.7 on.

A checkpoint (`.ckpt`) holds the weights and the settings that the network was built from. A package (`.nequip.zip`)
holds the built modules, and is read as records: its settings are attributes of the modules, so it does not matter
whether they were trained from scratch or from another file. Conventions that differ from ours, and how they are
converted:

- linear maps and tensor products of e3nn divide by the square root of the number of input channels, perceptrons
  multiply their weights by a gain: folded into the weights;
- activations of the gate are divided by the square root of their second moment: folded into the next maps;
- Bessel functions have a prefactor 2 / cutoff, which is folded into the radial perceptron, and frequencies in units of
  pi / cutoff;
- what an atom sends is divided by the square root of the mean number of neighbours: folded into the preceding map; if
  there is one number for each element, it becomes a factor of the element;
- the self-connection is a tensor product with the embedding of the element: a matrix for each element;
- before 0.16, networks without parity have even irreps only (so3); since then they have natural parity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from ase.data import atomic_numbers
from e3nn import o3
from torch import Tensor

from ...pipeline.errors import CheckpointError
from ..config.network import MAX_DEGREE, MAX_LAYERS, NequipConfig
from ..equivariance.irreps import SCALAR, Irrep
from ..equivariance.tensors import natural_irreps, parsed
from ..layers.activations import ACTIVATIONS
from ..networks.nequip import COULOMB, ODD_SCALAR, NequipNetwork
from ..statistics import DataStatistics
from .e3nn_weights import (
    InteractionShape,
    check_finite,
    e3nn_element_matrices,
    e3nn_matrices,
    e3nn_paths,
    gate_gains,
    ordered_columns,
    sign_of_3j,
)
from .records.package import ModulePackage
from .records.record import Record

# The newest versions of NequIP and of its packages whose files are known.
NEWEST, NEWEST_PACKAGE = (0, 19), 2
# The first version in which networks without parity have features of natural parity.
NATURAL_PARITY = (0, 16)
METADATA = "model/package_metadata.txt"
INERT = ("nequip.", "allegro.")
BUILDERS = {
    f"nequip.model.{name}"
    for name in (
        *("NequIPGNNModel", "NequIPGNNEnergyModel", "PresetNequIPGNNModel"),
        *("FullNequIPGNNModel", "FullNequIPGNNEnergyModel"),
    )
}
TRAINERS = {
    f"nequip.train.{name}"
    for name in ("NequIPLightningModule", "EMALightningModule", "ConFIGLightningModule", "EMAConFIGLightningModule")
}
# Degree and channels of the presets of `PresetNequIPGNNModel`; the weights tell the rest.
PRESETS: dict[str, dict[str, Any]] = {
    "S": {"num_layers": 2, "l_max": 1, "num_features": [128, 64]},
    "M": {"num_layers": 4, "l_max": 2, "num_features": [128, 64, 32]},
    "L": {"num_layers": 6, "l_max": 3, "num_features": [128, 64, 32, 32]},
    "XL": {"num_layers": 6, "l_max": 4, "num_features": [320, 96, 64, 32, 32]},
}
# Settings that are read, that the weights tell, or that do not change what the network computes.
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
READOUT_ACTIVATIONS = {"SiLU": "silu", "Mish": "mish", "ShiftedSoftplus": "ssp", "Tanh": "tanh", "Identity": "None"}
MODULES = re.compile(
    r"(type_embed|spharm|edge_norm|bessel_encode|factor|layer\d+_convnet|per_atom_energy_readout"
    r"|per_type_energy_scale_shift|pair_potential|total_energy_sum)"
)


@dataclass(frozen=True)
class _Layer:
    """An interaction of a file.

    Attributes:
        out: Number of channels of each irrep after the gate, in the order of the file.
        connected: Whether an atom's own features are added before the gate.
        residual: Whether the features before the interaction are added to those after the gate.
    """

    out: Mapping[Irrep, int]
    connected: bool
    residual: bool


@dataclass(frozen=True)
class _Content:
    """What a file says about its network.

    Attributes:
        types: Names of the atom types, in the order of the weights.
        cutoff: Cutoff radius (angstrom).
        harmonics: Irreps of the spherical harmonics.
        layers: Interactions.
        power: Power of the polynomial envelope.
        activations: Activations of even scalars, odd scalars and gates.
        readout_activation: Activation of the readout; None and "None" are linear, but have different gains.
        mean_neighbors: Mean number of neighbours, for all elements or by type; None if messages are not divided by it.
        repulsion: Power of the envelope of the pair repulsion; None without it.
        state: Weights by name, starting with the name of the module.
    """

    types: Sequence[str]
    cutoff: float
    harmonics: Sequence[Irrep]
    layers: Sequence[_Layer]
    power: float
    activations: tuple[str, str, str]
    readout_activation: str | None
    mean_neighbors: float | Sequence[float] | None
    repulsion: float | None
    state: Mapping[str, Tensor]


def from_nequip_checkpoint(content: Mapping[str, Any], path: str | Path) -> NequipNetwork:
    """Build the network of a checkpoint, with averaged weights if it has them.

    Args:
        content: Content of the file.
        path: Path of the file, for error messages.

    Returns:
        The network in float64.

    Raises:
        CheckpointError: The architecture is not supported, or the file is from a newer version of NequIP.
    """
    settings, info = dict(content["hyper_parameters"]["model"]), content["hyper_parameters"]["info_dict"]
    version = _version(info["versions"]["nequip"], path)
    trainer = info.get("training_module", {}).get("_target_")
    if trainer not in TRAINERS:
        raise CheckpointError(
            f"{path}: the training module {trainer} is not supported; package the model with `nequip-package`, and "
            "import the package"
        )
    target = settings.get("_target_")
    if target not in BUILDERS:
        raise CheckpointError(
            f"{path}: unsupported architecture: _target_ is {target}; if it is a fine-tuned or modified NequIP "
            "network, package it with `nequip-package`, and import the package"
        )
    if unknown := sorted(settings.keys() - SETTINGS):
        raise CheckpointError(f"{path}: unsupported architecture: unknown setting {unknown[0]}")
    for name in ("per_edge_type_cutoff", "categorical_graph_field_embed"):
        if settings.get(name) is not None:
            raise _unsupported(path, name, "is set")
    kind = settings.get("convnet_nonlinearity_type", "gate")
    if kind != "gate":
        raise _unsupported(path, "convnet_nonlinearity_type", f"is {kind!r}")
    neighbors = settings.get("avg_num_neighbors")
    if isinstance(neighbors, Mapping):
        neighbors = [float(neighbors[name]) for name in settings["type_names"]]
    scalars, gates = (
        settings.get(f"convnet_nonlinearity_{name}", DEFAULT_ACTIVATIONS) for name in ("scalars", "gates")
    )
    harmonics, layers = _configured_layers(settings, natural=version >= NATURAL_PARITY)
    made = _Content(
        [str(name) for name in settings["type_names"]],
        float(settings["r_max"]),
        harmonics,
        layers,
        float(settings.get("polynomial_cutoff_p", 6)),
        (scalars["e"], scalars["o"], gates["e"]),
        settings.get("readout_mlp_nonlinearity", "silu"),
        neighbors,
        _configured_repulsion(settings.get("pair_potential"), settings["type_names"], path),
        _trained(content["state_dict"], settings, path),
    )
    return _network(made, path)


def from_nequip_package(path: str | Path) -> NequipNetwork:
    """Build the network of a package.

    Returns:
        The network in float64.

    Raises:
        CheckpointError: The file is damaged or unsafe, its architecture is not supported, or it is from a newer version
            of NequIP.
    """
    package_file = ModulePackage(Path(path), INERT)
    metadata = yaml.safe_load(package_file.text(METADATA))
    package = int(metadata["package_version_id"])
    if package > NEWEST_PACKAGE:
        raise CheckpointError(
            f"{path}: package version {package}, but only versions up to {NEWEST_PACKAGE} are supported; try a newer "
            "version of equiscreen"
        )
    _version(metadata["versions"]["nequip"], path)
    models = package_file.unpickled("model/eager_model.pkl")
    if list(models.children()) != ["sole_model"]:
        raise CheckpointError(f"{path}: contains the models {', '.join(models.children())}; package each separately")
    graph = models.child("sole_model")
    network = graph.child("model")
    while network.name != "SequentialGraphNetwork":
        if network.name not in {"ForceStressOutput", "GraphModel"}:
            raise _unsupported(path, network.kind, "is unknown")
        network = next(iter(network.children().values()))
    for name, module in network.children().items():
        if not MODULES.fullmatch(name):
            raise _unsupported(path, f"{name} ({module.kind})", "is unknown")
    state = {name: tensor.detach() for name, tensor in network.tensors()}
    return _network(_packaged(network, graph.fields["type_names"], state, path), path)


def _version(text: Any, path: str | Path) -> tuple[int, ...]:
    version = tuple(int(part) for part in str(text).split(".")[:2])
    if version > NEWEST:
        newest = ".".join(map(str, NEWEST))
        raise CheckpointError(
            f"{path}: from NequIP {text}, but only versions up to {newest} are supported; try a newer version of "
            "equiscreen"
        )
    return version


def _unsupported(path: str | Path, name: str, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: unsupported architecture: {name} {what}")


def _configured_layers(settings: Mapping[str, Any], *, natural: bool) -> tuple[list[Irrep], list[_Layer]]:
    """Spherical harmonics and interactions, by the rules of NequIP's builders."""
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
        made.append(_Layer(out, connected and (number > 0 or shifted), residual and (number > 0 or shifted)))
        into = out
    return harmonics, made


def _channels(irreps: Any) -> dict[Irrep, int]:
    pairs = parsed(str(o3.Irreps(irreps).simplify()))
    if len({irrep for _, irrep in pairs}) < len(pairs):
        raise ValueError(f"the irreps {irreps} contain an irrep twice")
    return {irrep: channels for channels, irrep in pairs}


def _configured_repulsion(settings: Mapping[str, Any] | None, types: Sequence[str], path: str | Path) -> float | None:
    if settings is None:
        return None
    target = str(settings.get("_target_"))
    if target != "nequip.nn.pair_potential.ZBL":
        raise _unsupported(path, "pair_potential", f"is {target}")
    if settings.get("units") != "metal":
        raise _unsupported(path, "pair_potential", f"has units {settings.get('units')!r}, not 'metal'")
    if list(settings["chemical_species"]) != list(types):
        raise _unsupported(path, "pair_potential", "has different elements from the atom types")
    return float(settings.get("polynomial_cutoff_p", 6))


def _trained(state: Mapping[str, Any], settings: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """Weights of the network without the names of the modules around it; averaged ones if the file has them."""
    marker = "type_embed.embed_module.weight"
    (prefix,) = {name.removesuffix(marker) for name in state if name.endswith(marker)}
    if not prefix.startswith("model.sole_model."):
        raise CheckpointError(f"{path}: contains several models; only one can be imported")
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    averaged = [tensor for name, tensor in state.items() if re.fullmatch(r"ema\.ema_weights?[._]\d+", name)]
    if not averaged:
        return found
    if not state["ema._extra_state"]["is_holding_ema_weights"]:
        raise CheckpointError(
            f"{path}: saved during validation, when averaged and raw weights are exchanged; use another checkpoint"
        )
    trained = {
        "bessel_encode.bessel_weights": settings.get("bessel_trainable", False),
        "per_type_energy_scale_shift.scales": settings.get("per_type_energy_scales_trainable", False),
        "per_type_energy_scale_shift.shifts": settings.get("per_type_energy_shifts_trainable", False),
    }
    names = [
        name
        for name, x in found.items()
        if x.numel() and trained.get(name, re.search(r"\.weight$|\.weights\.\d+$", name))
    ]
    if [found[name].shape for name in names] != [tensor.shape for tensor in averaged]:
        raise CheckpointError(
            f"{path}: damaged: its averaged weights do not fit its network; copy or download it again"
        )
    return {**found, **dict(zip(names, averaged, strict=True))}


def _packaged(network: Record, types: Sequence[str], state: Mapping[str, Tensor], path: str | Path) -> _Content:
    """Read the settings of a package from its modules."""
    norm, embed, bessel = (network.child(name) for name in ("edge_norm", "type_embed", "bessel_encode"))
    if norm.fields["_per_edge_type"]:
        raise _unsupported(path, "per_edge_type_cutoff", "is set")
    if embed.fields.get("do_categorical_graph_field_embed"):
        raise _unsupported(path, "categorical_graph_field_embed", "is set")
    spherical = network.child("spharm", "sh")
    if not spherical.fields["normalize"] or spherical.fields["normalization"] != "component":
        raise _unsupported(path, "spharm", "does not normalise its harmonics")
    layers, activations = [], {"e": "silu", "o": "tanh", "gate": "silu"}
    for number in range(sum(name.startswith("layer") for name in network.children())):
        layer = network.child(f"layer{number}_convnet")
        gate = layer.child("equivariant_nonlin")
        if gate.name != "Gate":
            raise _unsupported(path, "convnet_nonlinearity_type", f"is {gate.name}")
        scalars, gated = (_irreps(gate.fields[f"irreps_{kind}"]) for kind in ("scalars", "gated"))
        for (irrep, _), module in zip(
            scalars.items(), gate.child("act_scalars", "acts").children().values(), strict=True
        ):
            activations["e" if irrep.p == 1 else "o"] = _function(module, path)
        for module in gate.child("act_gates", "acts").children().values():
            activations["gate"] = _function(module, path)
        connected = "sc" in layer.child("conv").children()
        layers.append(_Layer({**scalars, **gated}, connected, bool(layer.fields["resnet"])))
    return _Content(
        [str(name) for name in types],
        float(norm.fields["r_max"]),
        [*_irreps(network.child("spharm").fields["irreps_edge_sh"])],
        layers,
        float(bessel.child("cutoff").fields["p"]),
        (activations["e"], activations["o"], activations["gate"]),
        _packaged_readout(network, path),
        _packaged_neighbors(network, state),
        _packaged_repulsion(network, types, state, path),
        state,
    )


def _irreps(record: Record) -> dict[Irrep, int]:
    """Number of channels of each irrep of a recorded `e3nn.o3.Irreps`."""
    (pairs,) = record.args or ((),)
    channels: dict[Irrep, int] = {}
    for pair in pairs:
        ((count, irrep),) = pair.args
        ((degree, parity),) = irrep.args
        kind = Irrep(int(degree), int(parity))
        if kind in channels:
            raise ValueError(f"the irreps of the gate contain {kind} twice")
        channels[kind] = int(count)
    return channels


def _function(module: Record, path: str | Path) -> str:
    """Name of the function of a recorded `normalize2mom`."""
    function = module.fields["f"]
    name = str(getattr(function, "kind", function)).rpartition(".")[2]
    if name not in GATE_ACTIVATIONS:
        raise _unsupported(path, "convnet_nonlinearity", f"is {name}")
    return GATE_ACTIVATIONS[name]


def _packaged_readout(network: Record, path: str | Path) -> str | None:
    readout = network.child("per_atom_energy_readout", "mlp_module", "mlp").children().values()
    names = {module.name for module in readout} - {"ScalarLinearLayer"}
    for name in names:
        if name not in READOUT_ACTIVATIONS:
            raise _unsupported(path, "readout_mlp_nonlinearity", f"is {name}")
    return READOUT_ACTIVATIONS[names.pop()] if names else None


def _packaged_neighbors(network: Record, state: Mapping[str, Tensor]) -> float | list[float] | None:
    """Mean number of neighbours; its place has changed twice."""
    convolution = network.child("layer0_convnet", "conv")
    factors = state.get("layer0_convnet.conv.avg_num_neighbors_norm.norm_const")
    if factors is not None:
        numbers = (1 / factors.double() ** 2).flatten().tolist()
        return float(numbers[0]) if len(numbers) == 1 else [float(number) for number in numbers]
    if convolution.fields.get("scatter_norm_factor") is not None:
        return float(convolution.fields["scatter_norm_factor"]) ** -2
    number = convolution.fields.get("avg_num_neighbors")
    return None if number is None else float(number)


def _packaged_repulsion(
    network: Record, types: Sequence[str], state: Mapping[str, Tensor], path: str | Path
) -> float | None:
    module = network.children().get("pair_potential")
    if module is None:
        return None
    if module.name != "ZBL":
        raise _unsupported(path, "pair_potential", f"is {module.kind}")
    if not math.isclose(float(state["pair_potential._qqr2exesquare"]), COULOMB / 2, rel_tol=1e-6):
        raise _unsupported(path, "pair_potential", "has units other than 'metal'")
    if state["pair_potential.atomic_numbers"].tolist() != [atomic_numbers.get(name) for name in types]:
        raise _unsupported(path, "pair_potential", "has different elements from the atom types")
    cutoff = module.children().get("cutoff") or network.child("bessel_encode", "cutoff")
    return float(cutoff.fields["p"])


def _network(content: _Content, path: str | Path) -> NequipNetwork:
    """Build the network, with its weights."""
    check_finite(content.state, path)
    for name in content.types:
        if atomic_numbers.get(name, 0) < 1:
            raise CheckpointError(f"{path}: the atom type {name} is not an element; such networks cannot be imported")
    numbers = [atomic_numbers[name] for name in content.types]
    if len(set(numbers)) < len(numbers):
        raise ValueError("type_names: contains duplicates")
    order = torch.tensor(sorted(range(len(numbers)), key=lambda place: numbers[place]))
    shapes = _shapes(content)
    if content.layers[0].residual:
        raise _unsupported(path, "convnet_resnet", "with learnable_shift is set")
    if content.activations[1] == "abs" and any(ODD_SCALAR in shape.out for shape in shapes):
        raise _unsupported(path, "convnet_nonlinearity_scalars o", "is 'abs', which makes odd scalars even")
    state = content.state
    scale = _by_type(state["per_type_energy_scale_shift.scales"], order, 1.0)
    shift = _by_type(state["per_type_energy_scale_shift.shifts"], order, 0.0)
    statistics = DataStatistics(tuple(shift.tolist()), tuple(scale.tolist()))
    config = _architecture(content, shapes, path)
    network = NequipNetwork(config, [numbers[place] for place in order], statistics, torch.float64)
    gains = gate_gains(
        {ir for shape in shapes for ir in shape.out}, *(ACTIVATIONS[name] for name in content.activations)
    )
    embedding = state["type_embed.embed_module.weight"].double()[order]
    weights = {"basis.frequencies": state["bessel_encode.bessel_weights"].double().flatten() * math.pi / content.cutoff}
    *hidden, readout = _perceptron(state, "per_atom_energy_readout.mlp_module", content.readout_activation)
    first, *_ = matrices = [*hidden, readout]
    matrices[0] = first * gains[SCALAR]
    weights |= {"readout": matrices[-1], **{f"readout_hidden.{place}": m for place, m in enumerate(matrices[:-1])}}
    for layer, shape in enumerate(shapes):
        weights |= _interaction(content, layer, shape, network, embedding, order, gains)
    network.load_state_dict(weights)
    return network.eval()


def _by_type(values: Tensor, order: Tensor, default: float) -> Tensor:
    flat = values.double().flatten()
    if not flat.numel():
        return torch.full((len(order),), default, dtype=torch.float64)
    return flat.expand(len(order)) if flat.numel() == 1 else flat[order]


def _shapes(content: _Content) -> list[InteractionShape]:
    into: Mapping[Irrep, int] = {SCALAR: content.state["type_embed.embed_module.weight"].shape[1]}
    shapes = []
    for layer in content.layers:
        shapes.append(
            InteractionShape(into, layer.out, e3nn_paths([*into], content.harmonics, layer.out, by_result=False))
        )
        into = layer.out
    return shapes


def _architecture(content: _Content, shapes: Sequence[InteractionShape], path: str | Path) -> NequipConfig:
    for name, power in (("polynomial_cutoff_p", content.power), ("pair_potential p", content.repulsion or 0.0)):
        if power != int(power):
            raise _unsupported(path, name, f"is {power}, not an integer")
    for name in content.activations:
        if name not in GATE_ACTIVATIONS.values():
            raise _unsupported(path, "convnet_nonlinearity", f"is {name!r}")
    if content.readout_activation not in {None, "None", "null", "silu", "mish", "ssp", "tanh"}:
        raise _unsupported(path, "readout_mlp_nonlinearity", f"is {content.readout_activation!r}")
    natural = [ir == natural_irreps(ir.l)[-1] for shape in shapes for ir in shape.out]
    even = [ir.p == 1 for ir in content.harmonics]
    symmetry = "so3" if all(even) and len(even) > 1 else "natural" if all(natural) else "o3"
    perceptrons = [_perceptron(content.state, f"layer{n}_convnet.conv.edge_mlp", "silu") for n in range(len(shapes))]
    radial, *others = [tuple(matrix.shape[1] for matrix in matrices[:-1]) for matrices in perceptrons]
    if any(widths != radial for widths in others):
        raise _unsupported(path, "radial_mlp_width", "differs between the interactions")
    readout = _perceptron(content.state, "per_atom_energy_readout.mlp_module", content.readout_activation)
    even_scalars, odd_scalars, gates = content.activations
    return NequipConfig.model_validate(
        {
            "symmetry": symmetry,
            "cutoff": content.cutoff,
            "embedding": shapes[0].into[SCALAR],
            "hidden_irreps": tuple(" + ".join(f"{mul}x{ir}" for ir, mul in shape.out.items()) for shape in shapes),
            "l_max": content.harmonics[-1].l,
            "n_basis": content.state["bessel_encode.bessel_weights"].numel(),
            "radial_hidden": radial,
            "envelope_power": int(content.power),
            "sender_scales": isinstance(content.mean_neighbors, Sequence),
            "self_connections": tuple("element" if layer.connected else "none" for layer in content.layers),
            "residual": any(layer.residual for layer in content.layers),
            "activation": even_scalars,
            "odd_activation": odd_scalars,
            "gate_activation": gates,
            "readout_hidden": tuple(matrix.shape[1] for matrix in readout[:-1]),
            "readout_activation": content.readout_activation if len(readout) > 1 else "silu",
            "pair_repulsion": None if content.repulsion is None else int(content.repulsion),
        }
    )


def _perceptron(state: Mapping[str, Tensor], name: str, activation: str | None) -> list[Tensor]:
    """Matrices of a perceptron with its gains folded in; one matrix if it is linear."""
    found = {
        int(match[1]): tensor.double()
        for key, tensor in state.items()
        if (match := re.fullmatch(re.escape(name) + r"\.mlp\.(?:weights\.)?(\d+)(?:\.weight)?", key))
    }
    matrices = [found[place] for place in sorted(found)]
    gains = [1.0, *[1.0 if activation is None else math.sqrt(2)] * (len(matrices) - 1)]
    matrices = [m * gain / math.sqrt(len(m)) for m, gain in zip(matrices, gains, strict=True)]
    if activation in {None, "None", "null"} and len(matrices) > 1:
        return [torch.linalg.multi_dot(matrices)]
    return matrices


def _interaction(
    content: _Content,
    layer: int,
    shape: InteractionShape,
    network: NequipNetwork,
    embedding: Tensor,
    order: Tensor,
    gains: Mapping[Irrep, float],
) -> dict[str, Tensor]:
    """All weights of an interaction."""
    state, theirs, ours = content.state, f"layer{layer}_convnet.conv", f"interactions.{layer}"
    paths = network.convolution(layer).paths
    mix = shape.rows(e3nn_matrices(state[f"{theirs}.linear_2.weight"], shape.summed, shape.gate_in), paths)
    out = {f"{ours}.mix.{irrep}": matrix for irrep, matrix in mix.items()}
    out[f"{ours}.mix_bias"] = torch.zeros(shape.gate_in[SCALAR], dtype=torch.float64)
    radial = _perceptron(state, f"{theirs}.edge_mlp", "silu")
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
        skip = e3nn_element_matrices(state[f"{theirs}.sc.weight"], shape.into, embedding, shape.gate_in)
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
