"""Conversion of checkpoints of SevenNet (Park et al., J. Chem. Theory Comput. 20, 4857 (2024)).

Conventions that differ from equiscreen's, and how they are converted:

- linear maps of e3nn divide by the square root of the number of input channels: folded into the weights;
- activations are divided by the square root of their second moment, which e3nn estimates from samples: folded into the
  next maps;
- Bessel functions have a prefactor 2 / cutoff, which is folded into the radial perceptron, and trained frequencies,
  which are kept;
- the sum over neighbours is divided by a trained or fitted number: folded into the next map;
- radial functions of a convolution follow the order of its paths, sorted by the irrep they end in since version 0.11:
  reordered;
- some files were trained with 3j symbols of the opposite sign, and hold them: the sign is folded into the radial
  functions;
- a linear readout is two maps with nothing in between: merged into one;
- the fidelity ("modality") is a one-hot vector beside the scalars: one fidelity is chosen and becomes biases;
- a self-connection that is a tensor product with the one-hot vector of the element: a matrix for each element;
- without `is_parity` every irrep is even;
- irreps that no path ends in, which `irreps_manual` allows, are zero: dropped, with their gates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from ...pipeline.errors import CheckpointError
from ..config.network import MAX_DEGREE, MAX_LAYERS, NequipConfig
from ..equivariance.irreps import SCALAR, Irrep
from ..equivariance.tensors import harmonic_irreps, parsed
from ..layers.activations import ACTIVATIONS
from ..networks.nequip import ODD_SCALAR, NequipNetwork, channels_after
from ..statistics import DataStatistics
from .e3nn_weights import (
    InteractionShape,
    activation_gain,
    check_finite,
    e3nn_element_matrices,
    e3nn_matrices,
    e3nn_paths,
    gate_gains,
    nonzero_irreps,
    ordered_columns,
    sign_of_3j,
)

# The newest version whose files are known. A newer one may compute something else from the same weights.
NEWEST = (0, 13)
# For each setting, the values that our network supports and SevenNet's default.
SUPPORTED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "_model_type": (("E3_equivariant_model",), "E3_equivariant_model"),
    "interaction_type": (("nequip",), "nequip"),
    "self_connection_type": (("nequip", "linear"), "nequip"),
    "act_radial": (("silu", "relu", "tanh", "abs", "ssp", "sigmoid", "elu"), "silu"),
    "readout_fcn_activation": (("silu", "relu", "tanh", "abs", "ssp", "sigmoid", "elu"), "relu"),
}
EVEN_ACTIVATIONS, ODD_ACTIVATIONS = ("silu", "ssp"), ("tanh", "abs")
BASIS_SETTINGS = {"radial_basis_name", "bessel_basis_num", "trainable_coeff", "cutoff_length"}
ENVELOPE_SETTINGS = {"cutoff_function_name", "poly_cut_p_value", "cutoff_on", "cutoff_length"}
ENVELOPES = {"poly_cut": "polynomial", "XPLOR": "xplor"}
SELF_CONNECTIONS = {"nequip": "element", "linear": "linear"}
OLD_NAMES = {
    "EdgeEmbedding": "edge_embedding",
    "reducing nn input to hidden": "reduce_input_to_hidden",
    "reducing nn hidden to energy": "reduce_hidden_to_energy",
    "rescale atomic energy": "rescale_atomic_energy",
}


def from_sevennet(content: Mapping[str, Any], modality: str, path: str | Path) -> NequipNetwork:
    """Build the network of a SevenNet checkpoint.

    Args:
        content: Content of the file.
        modality: Fidelity to use, from `modality_name`.
        path: Path of the file, for error messages.

    Returns:
        The network in float64.

    Raises:
        CheckpointError: The architecture is not supported, or the file is from a newer version of SevenNet.
        KeyError, RuntimeError, TypeError, ValueError: The file is damaged.
    """
    settings, state = content["config"], _renamed(content["model_state_dict"])
    version = _version(settings, path)
    _check(settings, path)
    check_finite(state, path)
    shapes = _shapes(settings, sorted_paths=version >= (0, 11))
    config = _architecture(settings, state, shapes)
    chosen = int(settings["_modal_map"][modality]) if modality else None
    numbers = {int(z): int(place) for z, place in settings["_type_map"].items()}
    elements = sorted(numbers)
    order = torch.tensor([numbers[z] for z in elements])
    reader = _Reader(config, settings, state, shapes, chosen)
    readout, constant = reader.readout()
    shift, scale = (_by_element(state[f"rescale_atomic_energy.{name}"], chosen, order) for name in ("shift", "scale"))
    statistics = DataStatistics(tuple((shift + scale * constant).tolist()), tuple(scale.tolist()))
    network = NequipNetwork(config, elements, statistics, torch.float64)
    weights = {
        "basis.frequencies": state["edge_embedding.basis_function.coeffs"].double(),
        **readout,
        **reader.first(order),
    }
    for layer in range(len(shapes)):
        weights |= reader.interaction(layer, network, order)
    network.load_state_dict(weights)
    return network.eval()


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of versions before 0.10 to their current names."""
    out = {}
    for name, tensor in state.items():
        module, _, rest = name.partition(".")
        module = OLD_NAMES.get(module, module.replace(" ", "_"))
        out[f"{module}.{rest.replace('denumerator', 'denominator')}"] = tensor
    return out


def _version(settings: Mapping[str, Any], path: str | Path) -> tuple[int, ...]:
    version = tuple(int(part) for part in str(settings["version"]).split(".")[:2])
    if version > NEWEST:
        newest = ".".join(map(str, NEWEST))
        raise CheckpointError(
            f"{path} is from SevenNet {settings['version']}, but only versions up to {newest} are supported; "
            "try a newer version of equiscreen"
        )
    return version


def _check(settings: Mapping[str, Any], path: str | Path) -> None:
    """Check that the choices of `SUPPORTED` are supported, and that the basis and envelope have no unknown settings.

    Raises:
        CheckpointError: A setting is unknown or not supported.
    """
    values = {name: _setting(settings, name) for name in SUPPORTED}
    known = {name: supported for name, (supported, _) in SUPPORTED.items()}
    for name in ("act_gate", "act_scalar"):
        for kind, supported in (("e", EVEN_ACTIVATIONS), ("o", ODD_ACTIVATIONS)):
            values[f"{name} {kind}"], known[f"{name} {kind}"] = _activation(settings, name, kind), supported
    basis, envelope = settings["radial_basis"], settings["cutoff_function"]
    values["radial_basis_name"], known["radial_basis_name"] = basis["radial_basis_name"], ("bessel",)
    values["cutoff_function_name"] = envelope["cutoff_function_name"]
    known["cutoff_function_name"] = tuple(ENVELOPES)
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            if one not in known[name]:
                choices = ", ".join(map(repr, known[name]))
                raise CheckpointError(f"{path}: unsupported architecture: {name} is {one!r}, not one of {choices}")
    for section, names in ((basis, BASIS_SETTINGS), (envelope, ENVELOPE_SETTINGS)):
        if unknown := sorted(section.keys() - names):
            raise CheckpointError(
                f"{path}: unsupported architecture: unknown setting {unknown[0]}; docs/pretrained.md "
                "lists what can be imported"
            )


def _setting(settings: Mapping[str, Any], name: str) -> Any:
    """Return a setting of `SUPPORTED`, or SevenNet's default if the setting is missing or None."""
    value = settings.get(name)
    return SUPPORTED[name][1] if value is None else value


def _activation(settings: Mapping[str, Any], name: str, parity: str) -> str:
    default = {"e": "silu", "o": "tanh"}
    return str((settings.get(name) or default).get(parity, default[parity]))


def _shapes(settings: Mapping[str, Any], *, sorted_paths: bool) -> list[InteractionShape]:
    """Return the irreps of each interaction."""
    parity = settings.get("is_parity", True)
    l_edge = min(_degree(settings, "lmax_edge"), MAX_DEGREE + 1)
    l_node = min(_degree(settings, "lmax_node"), MAX_DEGREE + 1)
    harmonics = harmonic_irreps(l_edge, "natural" if parity else "so3")
    layers = min(int(settings["num_convolution_layer"]), MAX_LAYERS + 1)
    manual = settings.get("irreps_manual") or None
    into = dict(_channels(manual[0])) if manual else {SCALAR: int(settings["channel"])}
    shapes = []
    for layer in range(layers):
        last = layer == layers - 1
        made = sorted({irrep for left in into for right in harmonics for irrep in left * right})
        out = _channels(manual[layer + 1]) if manual else {}
        highest = max(irrep.l for irrep in out) if manual else 0 if last else l_node
        made = [irrep for irrep in made if irrep.l <= highest and (irrep.p == 1 or not last)]
        out = out or dict.fromkeys(made, int(settings["channel"]))
        shapes.append(InteractionShape(into, out, e3nn_paths([*into], harmonics, made, by_result=sorted_paths)))
        into = out
    return shapes


def _degree(settings: Mapping[str, Any], name: str) -> int:
    degree = int(settings.get(name, -1))
    return degree if degree > 0 else int(settings["lmax"])


def _channels(irreps: Any) -> dict[Irrep, int]:
    """Return the number of channels of each irrep.

    Raises:
        ValueError: An irrep occurs twice.
    """
    pairs = parsed(str(irreps))
    channels = {irrep: channels for channels, irrep in pairs}
    if len(channels) < len(pairs):
        raise ValueError(f"irreps_manual: {irreps} contains an irrep twice")
    return channels


def _architecture(
    settings: Mapping[str, Any], state: Mapping[str, Tensor], shapes: Sequence[InteractionShape]
) -> NequipConfig:
    kept = nonzero_irreps(shapes)
    kept[-1] = {SCALAR: kept[-1][SCALAR]}
    odd = _activation(settings, "act_scalar", "o")
    mixes_parity = odd == "abs" and any(ODD_SCALAR in irreps for irreps in kept)
    envelope = settings["cutoff_function"]
    connections = _setting(settings, "self_connection_type")
    if isinstance(connections, str):
        connections = [connections] * len(shapes)
    hidden = settings.get("readout_fcn_hidden_neurons", (30, 30)) if settings.get("readout_as_fcn") else ()
    return NequipConfig.model_validate(
        {
            "symmetry": "o3" if settings.get("is_parity", True) and not mixes_parity else "so3",
            "cutoff": float(settings["cutoff"]),
            "embedding": shapes[0].into[SCALAR],
            "hidden_irreps": tuple(" + ".join(f"{mul}x{ir}" for ir, mul in irreps.items()) for irreps in kept),
            "l_max": _degree(settings, "lmax_edge"),
            "unit_vectors": bool(settings.get("_normalize_sph", False)),
            "n_basis": len(state["edge_embedding.basis_function.coeffs"]),
            "radial_hidden": tuple(settings["weight_nn_hidden_neurons"]),
            "envelope": ENVELOPES[envelope["cutoff_function_name"]],
            "envelope_power": int(envelope.get("poly_cut_p_value", 6)),
            "envelope_onset": envelope.get("cutoff_on"),
            "self_connections": tuple(SELF_CONNECTIONS[kind] for kind in connections),
            "activation": _activation(settings, "act_scalar", "e"),
            "odd_activation": odd,
            "gate_activation": _activation(settings, "act_gate", "e"),
            "radial_activation": _setting(settings, "act_radial"),
            "readout_hidden": tuple(hidden),
            "readout_activation": _setting(settings, "readout_fcn_activation") if hidden else "silu",
        }
    )


def modality_name(settings: Mapping[str, Any], requested: str | None, path: str | Path) -> str:
    """Return the requested fidelity, or the file's default; "" if the file has only one.

    Raises:
        CheckpointError: The file does not have the requested fidelity, or none is requested and it has no default.
    """
    known = settings.get("_modal_map") or {}
    if not settings.get("use_modality") or not known:
        if requested is not None:
            raise CheckpointError(f"{path} has only one fidelity; remove `--modality`")
        return ""
    name = requested or settings.get("default_modal")
    if name not in known:
        lacking = f"fidelity {name}" if name else "default fidelity"
        raise CheckpointError(f"{path} has no {lacking}; choose `--modality` from {', '.join(sorted(known))}")
    return str(name)


def _by_element(values: Tensor, modality: int | None, order: Tensor) -> Tensor:
    chosen = values[modality] if values.dim() > 1 and modality is not None else values
    return chosen.double().expand(len(order))[order] if chosen.numel() == 1 else chosen.double()[order]


class _Reader:
    """Reads the weights of a file in equiscreen's convention, all in float64.

    Args:
        config: Configuration of the network.
        settings: Settings of the file.
        state: Weights of the file.
        shapes: Irreps of each interaction in the file.
        modality: Index of the fidelity in the file; None if it has only one.
    """

    def __init__(
        self,
        config: NequipConfig,
        settings: Mapping[str, Any],
        state: Mapping[str, Tensor],
        shapes: Sequence[InteractionShape],
        modality: int | None,
    ) -> None:
        self.settings, self.state, self.modality = settings, state, modality
        self.config, self.shapes, self.kept = config, shapes, channels_after(config)
        self.radial_gain = activation_gain(ACTIVATIONS[config.radial_activation])
        self.gains = gate_gains(
            {irrep for shape in shapes for irrep in shape.out},
            ACTIVATIONS[config.activation],
            ACTIVATIONS[config.odd_activation],
            ACTIVATIONS[config.gate_activation],
        )
        self.bessel = 2 / config.cutoff

    def linear(
        self, name: str, into: Mapping[Irrep, int], out: Mapping[Irrep, int], option: str = ""
    ) -> tuple[dict[Irrep, Tensor], Tensor]:
        """Return the matrices of a linear map, and the bias of the scalars, which includes the fidelity."""
        extra = 0
        if self.modality is not None and option and self.settings.get(option):
            extra = int(self.settings["_number_of_modalities"])
        flat = self.state[f"{name}.linear.weight"].double().flatten()
        matrices = e3nn_matrices(flat, into, out, {**into, SCALAR: into[SCALAR] + extra})
        bias = torch.zeros(out[SCALAR], dtype=torch.float64)
        if extra and self.modality is not None:
            rows = flat[-extra * out[SCALAR] :].view(extra, out[SCALAR])
            bias = rows[self.modality] / math.sqrt(into[SCALAR] + extra)
        stored = self.state.get(f"{name}.linear.bias")
        return matrices, bias if stored is None or not stored.numel() else bias + stored.double().flatten()

    def first(self, order: Tensor) -> dict[str, Tensor]:
        """Return the messages of the first interaction, a row for each element."""
        features, first = self.embedded(order), {SCALAR: self.config.embedding}
        sent, bias = self.linear("0_self_interaction_1", first, first, "use_modal_self_inter_intro")
        return {"sent": features @ sent[SCALAR] + bias}

    def embedded(self, order: Tensor) -> Tensor:
        """Return the features of each element before the first interaction, float64[n_elements, channels]."""
        elements, first = {SCALAR: len(order)}, {SCALAR: self.config.embedding}
        table, bias = self.linear("onehot_to_feature_x", elements, first, "use_modal_node_embedding")
        return table[SCALAR][order] + bias

    def interaction(self, layer: int, network: NequipNetwork, order: Tensor) -> dict[str, Tensor]:
        """Return all weights of an interaction, except the messages of the first."""
        prefix, shape, kept = f"interactions.{layer}", self.shapes[layer], self.kept[layer]
        paths = network.convolution(layer).paths
        denominator = self.state[f"{layer}_convolution.denominator"].double()
        mix, bias = self.linear(
            f"{layer}_self_interaction_2", shape.summed, shape.gate_in, "use_modal_self_inter_outro"
        )
        mix = shape.rows(shape.without_dropped(mix, kept), paths)
        out = {f"{prefix}.mix.{irrep}": matrix / denominator for irrep, matrix in mix.items()}
        out[f"{prefix}.mix_bias"] = bias[shape.kept_columns(kept)]
        for place, matrix in enumerate(self.radial(layer, network)):
            out[f"{prefix}.convolution.radial.{place}"] = matrix
        skip = shape.without_dropped(self.skip(layer, order), kept)
        if not layer:
            features = self.embedded(order)
            table = features @ skip[SCALAR] if skip[SCALAR].dim() == 2 else _rowwise(features, skip[SCALAR])
            return {**out, f"{prefix}.skip_table": table}
        before = self.kept[layer - 1]
        send, bias = self.linear(f"{layer}_self_interaction_1", shape.into, shape.into, "use_modal_self_inter_intro")
        kind = "skip" if self.config.self_connections[layer] == "linear" else "skip_by_element"
        for name, matrices in (("send", send), (kind, skip)):
            out |= {f"{prefix}.{name}.{ir}": m * self.gains[ir] for ir, m in matrices.items() if ir in before}
        return {**out, f"{prefix}.send_bias": bias}

    def skip(self, layer: int, order: Tensor) -> dict[Irrep, Tensor]:
        """Return the matrices of the self-connection, with a leading axis if there is a matrix for each element."""
        shape, name = self.shapes[layer], f"{layer}_self_connection_intro"
        if self.config.self_connections[layer] == "linear":
            return self.linear(name, shape.into, shape.gate_in)[0]
        flat = self.state[f"{name}.fc_tensor_product.weight"].flatten()
        one_hot = torch.eye(len(order), dtype=torch.float64)[order]
        return e3nn_element_matrices(flat, shape.into, one_hot, shape.gate_in)

    def radial(self, layer: int, network: NequipNetwork) -> list[Tensor]:
        """Return the matrices of the radial perceptron, with the columns of the last in the order of `network`."""
        names = [f"{layer}_convolution.weight_nn.layer{place}.weight" for place in range(MAX_LAYERS + 2)]
        matrices = [self.state[name].double() for name in names if name in self.state]
        gains = [self.bessel, *[self.radial_gain] * (len(matrices) - 1)]
        matrices = [m * gain / math.sqrt(len(m)) for m, gain in zip(matrices, gains, strict=True)]
        shape, ours = self.shapes[layer], network.convolution(layer).paths
        signs = [sign_of_3j(self.state, f"{layer}_convolution.convolution", path) for path in ours]
        return [*matrices[:-1], ordered_columns(matrices[-1], shape.paths, ours, shape.into, signs)]

    def readout(self) -> tuple[dict[str, Tensor], float]:
        """Return the weights from the last scalars to the energy, and the constant that biases and the fidelity add."""
        last, gain = self.shapes[-1].out, self.gains[SCALAR]
        if self.settings.get("readout_as_fcn"):
            count = len(self.config.readout_hidden) + 1
            matrices = [self.state[f"readout_FCN.fcn.layer{place}.weight"].double() for place in range(count)]
            gains = [gain, *[activation_gain(ACTIVATIONS[self.config.readout_activation])] * (count - 1)]
            *hidden, final = (m * g / math.sqrt(len(m)) for m, g in zip(matrices, gains, strict=True))
            return {"readout": final, **{f"readout_hidden.{place}": m for place, m in enumerate(hidden)}}, 0.0
        half = {SCALAR: o3.Irreps([(mul, ir) for ir, mul in last.items()]).dim // 2}
        first, bias = self.linear("reduce_input_to_hidden", last, half, "use_modal_output_block")
        second, shift = self.linear("reduce_hidden_to_energy", half, {SCALAR: 1})
        constant = bias @ second[SCALAR] + shift
        return {"readout": first[SCALAR] @ second[SCALAR] * gain}, float(constant.item())


def _rowwise(features: Tensor, matrices: Tensor) -> Tensor:
    """Multiply the features of each element by its own matrix: float64[n, u] and float64[n, u, w] to float64[n, w]."""
    return torch.bmm(features.unsqueeze(1), matrices).squeeze(1)
