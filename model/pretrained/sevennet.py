"""Conversion of checkpoints of SevenNet (Park et al., J. Chem. Theory Comput. 20, 4857 (2024)).

Conventions that differ from ours, and how they are converted:

- linear maps of e3nn divide by the square root of the number of input channels: folded into the weights;
- activations are divided by the square root of their second moment, which e3nn estimates from samples: folded into the
  next maps;
- Bessel functions have a prefactor 2 / cutoff, which is folded into the radial perceptron, and trained frequencies,
  which are kept;
- the sum over neighbours is divided by a trained or fitted number: folded into the next map;
- radial functions of a convolution follow the order of its paths, sorted by the irrep they end in since version 0.11:
  reordered;
- some files were trained with 3j symbols of the opposite sign, and hold them: folded into the radial functions;
- the readout is two linear maps with nothing in between: merged into one;
- a fidelity ("modality") is a one-hot vector beside the scalars: one is chosen and becomes biases;
- parity is not tracked: every irrep is even.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from e3nn import o3
from e3nn.math import normalize2mom
from torch import Tensor
from torch.nn.functional import silu

from ...pipeline.errors import CheckpointError
from ..config.network import MAX_DEGREE, MAX_LAYERS, NequipConfig
from ..equivariance.irreps import SCALAR, Irrep
from ..equivariance.irreps import Path as IrrepPath
from ..networks.nequip import NequipNetwork, channels_after, with_gates
from ..statistics import DataStatistics
from .e3nn_weights import e3nn_matrices, ordered_columns, sign_of_3j

# For each setting: the only value that our network supports, and SevenNet's default.
REQUIRED: dict[str, tuple[Any, Any]] = {
    "_model_type": ("E3_equivariant_model", "E3_equivariant_model"),
    "interaction_type": ("nequip", "nequip"),
    "is_parity": (False, True),
    "act_radial": ("silu", "silu"),
    "self_connection_type": ("linear", "nequip"),
    "use_bias_in_linear": (False, False),
    "readout_as_fcn": (False, False),
    "_normalize_sph": (True, False),
    "lmax_edge": (-1, -1),
    "lmax_node": (-1, -1),
}
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

    Raises:
        CheckpointError: The architecture is not supported.
    """
    settings, state = content["config"], _renamed(content["model_state_dict"])
    config = _architecture(settings, state, path)
    chosen = int(settings["_modal_map"][modality]) if modality else None
    numbers = {int(z): int(place) for z, place in settings["_type_map"].items()}
    elements = sorted(numbers)
    order = torch.tensor([numbers[z] for z in elements])
    reader = _Reader(config, settings, state, chosen)
    readout, constant = reader.readout()
    shift, scale = (_by_element(state[f"rescale_atomic_energy.{name}"], chosen, order) for name in ("shift", "scale"))
    statistics = DataStatistics(tuple((shift + scale * constant).tolist()), tuple(scale.tolist()))
    network = NequipNetwork(config, elements, statistics, torch.float64)
    weights = {
        "basis.frequencies": state["edge_embedding.basis_function.coeffs"].double(),
        "readout": readout,
        **reader.first(order),
    }
    for layer in range(len(config.hidden_irreps)):
        weights |= reader.interaction(layer, network)
    network.load_state_dict(weights)
    return network.to(torch.float32).eval()


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of versions before 0.10 to their current names."""
    out = {}
    for name, tensor in state.items():
        module, _, rest = name.partition(".")
        module = OLD_NAMES.get(module, module.replace(" ", "_"))
        out[f"{module}.{rest.replace('denumerator', 'denominator')}"] = tensor
    return out


def _architecture(settings: Mapping[str, Any], state: Mapping[str, Tensor], path: str | Path) -> NequipConfig:
    values = {name: settings.get(name, default) for name, (_, default) in REQUIRED.items()}
    required = {name: value for name, (value, _) in REQUIRED.items()}
    for name in ("act_gate", "act_scalar"):  # for even scalars; there are no odd ones here
        values[name], required[name] = (settings.get(name) or {"e": "silu"})["e"], "silu"
    for name, value in values.items():
        if any(one != required[name] for one in (value if isinstance(value, list) else [value])):
            raise CheckpointError(f"{path}: unsupported architecture: {name} is {value!r}, not {required[name]!r}")
    degree, channels, layers = (int(settings[name]) for name in ("lmax", "channel", "num_convolution_layer"))
    manual = settings.get("irreps_manual") or None
    if manual is None:
        every = " + ".join(f"{channels}x{ell}e" for ell in range(min(degree, MAX_DEGREE + 1) + 1))
        manual = [f"{channels}x0e", *[every] * (min(layers, MAX_LAYERS + 1) - 1), f"{channels}x0e"]
    basis, envelope = settings["radial_basis"], settings["cutoff_function"]
    kinds = {"poly_cut": "polynomial", "XPLOR": "xplor"}
    for section, key, known in ((basis, "radial_basis_name", {"bessel"}), (envelope, "cutoff_function_name", {*kinds})):
        if section[key] not in known:
            raise CheckpointError(f"{path}: unsupported architecture: {key} is {section[key]!r}")
    return NequipConfig(
        symmetry="so3",
        cutoff=float(settings["cutoff"]),
        embedding=o3.Irreps(str(manual[0])).dim,
        hidden_irreps=tuple(str(irreps) for irreps in manual[1:]),
        l_max=degree,
        n_basis=len(state["edge_embedding.basis_function.coeffs"]),
        radial_hidden=tuple(settings["weight_nn_hidden_neurons"]),
        envelope=kinds[envelope["cutoff_function_name"]],
        envelope_power=int(envelope.get("poly_cut_p_value", 6)),
        envelope_onset=envelope.get("cutoff_on"),
    )


def modality_name(settings: Mapping[str, Any], requested: str | None, path: str | Path) -> str:
    """Return the requested fidelity, or the file's default; "" if the file has only one.

    Raises:
        CheckpointError: The file does not have the requested fidelity, or none is requested and it has no default.
    """
    known = settings.get("_modal_map") or {}
    if not settings.get("use_modality") or not known:
        if requested is not None:
            raise CheckpointError(f"{path}: has only one fidelity; drop `--modality`")
        return ""
    name = requested or settings.get("default_modal")
    if name not in known:
        raise CheckpointError(f"{path}: has no fidelity {name}; choose `--modality` from {', '.join(sorted(known))}")
    return str(name)


def _by_element(values: Tensor, modality: int | None, order: Tensor) -> Tensor:
    chosen = values[modality] if values.dim() > 1 and modality is not None else values
    return chosen.double().expand(len(order))[order] if chosen.numel() == 1 else chosen.double()[order]


class _Reader:
    """Reads the weights of a file in our convention, all in float64.

    Args:
        config: Configuration of the network.
        settings: Settings of the file.
        state: Weights of the file.
        modality: Index of the fidelity in the file; None if it has only one.
    """

    def __init__(
        self, config: NequipConfig, settings: Mapping[str, Any], state: Mapping[str, Tensor], modality: int | None
    ) -> None:
        self.settings, self.state, self.modality = settings, state, modality
        self.channels = channels_after(config)
        self.embedding = config.embedding
        self.activation = normalize2mom(silu).cst
        self.version = tuple(int(part) for part in str(settings["version"]).split(".")[:2])
        self.bessel = 2 / config.cutoff

    def linear(
        self, name: str, into: Mapping[Irrep, int], out: Mapping[Irrep, int], option: str = ""
    ) -> tuple[dict[Irrep, Tensor], Tensor]:
        """Matrices of a linear map, and the bias that the fidelity adds to the scalars."""
        extra = 0
        if self.modality is not None and option and self.settings.get(option):
            extra = int(self.settings["_number_of_modalities"])
        flat = self.state[f"{name}.linear.weight"].double()
        matrices = e3nn_matrices(flat, into, out, {**into, SCALAR: into[SCALAR] + extra})
        bias = torch.zeros(out[SCALAR], dtype=torch.float64)
        if extra and self.modality is not None:
            rows = flat[-extra * out[SCALAR] :].view(extra, out[SCALAR])
            bias = rows[self.modality] / math.sqrt(into[SCALAR] + extra)
        return matrices, bias

    def embedded(self, order: Tensor) -> Tensor:
        """Features of each element before the first interaction."""
        elements, first = {SCALAR: len(order)}, {SCALAR: self.embedding}
        table, bias = self.linear("onehot_to_feature_x", elements, first, "use_modal_node_embedding")
        return table[SCALAR][order] + bias

    def first(self, order: Tensor) -> dict[str, Tensor]:
        """Tables of the first interaction, with a row for each element."""
        features, first = self.embedded(order), {SCALAR: self.embedding}
        sent, bias = self.linear("0_self_interaction_1", first, first, "use_modal_self_inter_intro")
        skip, _ = self.linear("0_self_connection_intro", first, self.wide(0))
        return {"sent": features @ sent[SCALAR] + bias, "interactions.0.skip_table": features @ skip[SCALAR]}

    def wide(self, layer: int) -> dict[Irrep, int]:
        """Number of channels of an interaction before its gate."""
        return with_gates(self.channels[layer])

    def interaction(self, layer: int, network: NequipNetwork) -> dict[str, Tensor]:
        """All weights of an interaction, except the tables of the first."""
        prefix = f"interactions.{layer}"
        convolution = network.convolution(layer)
        denominator = self.state[f"{layer}_convolution.denominator"].double()
        mix, bias = self.linear(
            f"{layer}_self_interaction_2", convolution.channels_out, self.wide(layer), "use_modal_self_inter_outro"
        )
        out = {f"{prefix}.mix.{irrep}": matrix / denominator for irrep, matrix in mix.items()}
        out[f"{prefix}.mix_bias"] = bias
        for place, matrix in enumerate(self.radial(layer, convolution.paths)):
            out[f"{prefix}.convolution.radial.{place}"] = matrix
        if layer:
            into = self.channels[layer - 1]
            send, bias = self.linear(f"{layer}_self_interaction_1", into, into, "use_modal_self_inter_intro")
            skip, _ = self.linear(f"{layer}_self_connection_intro", into, self.wide(layer))
            out |= {f"{prefix}.send.{irrep}": matrix * self.activation for irrep, matrix in send.items()}
            out |= {f"{prefix}.skip.{irrep}": matrix * self.activation for irrep, matrix in skip.items()}
            out[f"{prefix}.send_bias"] = bias
        return out

    def radial(self, layer: int, paths: list[IrrepPath]) -> list[Tensor]:
        """Matrices of the radial perceptron; the columns of the last follow the order of our paths."""
        names = [f"{layer}_convolution.weight_nn.layer{place}.weight" for place in range(len(self.state))]
        matrices = [self.state[name].double() for name in names if name in self.state]
        gains = [self.bessel, *[self.activation] * (len(matrices) - 1)]
        matrices = [m * gain / math.sqrt(len(m)) for m, gain in zip(matrices, gains, strict=True)]
        into = self.channels[layer - 1] if layer else {SCALAR: self.embedding}
        signs = [sign_of_3j(self.state, f"{layer}_convolution.convolution", path) for path in paths]
        last = ordered_columns(matrices[-1], paths, into, signs, by_result=self.version >= (0, 11))
        return [*matrices[:-1], last]

    def readout(self) -> tuple[Tensor, float]:
        """Weights from the last scalars to the energy, and the constant that the fidelity adds."""
        last, half = self.channels[-1], {SCALAR: self.channels[-1][SCALAR] // 2}
        hidden, bias = self.linear("reduce_input_to_hidden", last, half, "use_modal_output_block")
        energy, _ = self.linear("reduce_hidden_to_energy", half, {SCALAR: 1})
        return hidden[SCALAR] @ energy[SCALAR] * self.activation, float((bias @ energy[SCALAR]).item())
