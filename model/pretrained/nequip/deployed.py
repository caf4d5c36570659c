"""TorchScript archives of NequIP before version 0.7: files of `nequip-deploy`.

Conventions that differ from later versions, and how they are converted:

- the self-connection is a tensor product with the one-hot vector of the type, and features begin as a linear map of
  this vector;
- radial perceptrons are e3nn's, whose activations are divided by the square root of their second moment;
- frequencies of Bessel functions include the factor pi;
- the readout is two linear maps with nothing in between: merged into one;
- the last interaction also makes features that the readout does not use: dropped, with their gates;
- energies have one scale for all types, in addition to the scale of each type: multiplied.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from ....pipeline.errors import CheckpointError
from ...layers.activations import ACTIVATIONS
from ...networks.nequip import NequipNetwork
from ..e3nn_weights import activation_gain
from ..records.record import Record
from ..records.torchscript import ScriptArchive
from .files import NequipFile, check_version, irreps_of
from .nequip import GATE_ACTIVATIONS, NequipContent, NequipLayer, build_network

VERSION = "nequip_version"
MODULES = re.compile(
    r"(one_hot|spharm_edges|radial_basis|chemical_embedding|layer\d+_convnet|conv_to_output_hidden"
    r"|output_hidden_to_scalar|per_species_rescale|total_energy_sum)"
)
WRAPPERS = ("GraphModel", "StressOutput", "GradientOutput", "PartialForceOutput")


def deployed_network(archive: ScriptArchive, path: str | Path) -> NequipNetwork:
    """Build the network of an archive.

    Returns:
        The network in float64.

    Raises:
        CheckpointError: The architecture is not supported, or the file is from a newer version of NequIP.
        KeyError, RuntimeError, ValueError: The file is damaged, or follows an unknown convention.
    """
    version = check_version({"nequip": archive.extra[VERSION]}, path)
    network, scale = _unwrapped(archive.module, path)
    for name, module in network.children().items():
        if not MODULES.fullmatch(name):
            raise CheckpointError(
                f"{path}: unsupported architecture: {name} ({module.kind}) is unknown; "
                "docs/pretrained.md lists what can be imported"
            )
    types = archive.extra["type_names"].split()
    file = NequipFile(path, types, _translated(network, scale, len(types)), None, None, version)
    basis, cutoff, spherical = (
        network.child(*names.split(".")) for names in ("radial_basis.basis", "radial_basis.cutoff", "spharm_edges.sh")
    )
    for name, module, expected in (("basis", basis, "BesselBasis"), ("cutoff", cutoff, "PolynomialCutoff")):
        if module.name != expected:
            raise file.unsupported(name, f"is {module.name}")
    if not spherical.fields["normalize"] or spherical.fields["normalization"] != "component":
        raise file.unsupported("spharm_edges", "does not normalise its harmonics")
    layers, names = _layers(network, file)
    convolution = network.child("layer0_convnet", "conv")
    neighbors = convolution.get("avg_num_neighbors")
    content = NequipContent(
        file=file,
        cutoff=float(basis["r_max"]),
        harmonics=[irrep for _, irrep in irreps_of(convolution["tp"]["irreps_in2"])],
        layers=layers,
        power=float(cutoff["p"]),
        activations=(names["e"], names["o"], names["gate"]),
        readout_activation=None,
        mean_neighbors=None if neighbors is None else float(neighbors),
        radial_activation=_radial_activation(network),
        one_hot=True,
    )
    return build_network(content)


def _unwrapped(module: Record, path: str | Path) -> tuple[Record, float]:
    """Return the modules that compute the energy, and the scale for all types."""
    scale = 1.0
    while module.name != "SequentialGraphNetwork":
        if module.name == "RescaleOutput":
            if module["shift_by"].numel() and float(module["shift_by"]):
                raise CheckpointError(
                    f"{path}: unsupported architecture: global_rescale_shift is not zero; docs/pretrained.md lists "
                    "what can be imported"
                )
            scale *= float(module["scale_by"]) if module["scale_by"].numel() else 1.0
        elif module.name not in WRAPPERS:
            raise CheckpointError(
                f"{path}: unsupported architecture: {module.name} is unknown; docs/pretrained.md "
                "lists what can be imported"
            )
        module = next(iter(module.children().values()))
    return module, scale


def _radial_activation(network: Record) -> str:
    act = network.child("layer0_convnet", "conv", "fc", "layer0").get("act")
    return "silu" if act is None else _function(act)


def _function(act: Record) -> str:
    """Return the name of an activation."""
    name = str(act["f"].name)
    return GATE_ACTIVATIONS.get(name, name)


def _translated(network: Record, scale: float, count: int) -> dict[str, Tensor]:
    """Return the tensors under the names and with the conventions of later versions."""
    found = {name: tensor.double() for name, tensor in network.tensors() if tensor.is_floating_point()}
    out = {name: x for name, x in found.items() if re.match(r"layer\d+_convnet\.conv\.(linear_|sc\.|tp\.)", name)}
    out["type_embed.embed_module.weight"] = found["chemical_embedding.linear.weight"].view(count, -1) / math.sqrt(count)
    out["bessel_encode.bessel_weights"] = found["radial_basis.basis.bessel_weights"] / math.pi
    gain = activation_gain(ACTIVATIONS[_radial_activation(network)])
    for name, x in found.items():
        match = re.fullmatch(r"(layer\d+_convnet\.conv\.)fc\.layer(\d+)\.weight", name)
        if match:
            out[f"{match[1]}edge_mlp.mlp.{match[2]}.weight"] = x * (gain / math.sqrt(2) if int(match[2]) else 1.0)
    last = found["output_hidden_to_scalar.linear.weight"].view(-1, 1)
    first = found["conv_to_output_hidden.linear.weight"].view(-1, len(last))
    out["per_atom_energy_readout.mlp_module.mlp.0.weight"] = first @ last / math.sqrt(len(last))
    for name, default in (("scales", 1.0), ("shifts", 0.0)):
        x = found.get(f"per_species_rescale.{name}", torch.empty(0))
        values = x if x.numel() else torch.full((1,), default, dtype=torch.float64)
        out[f"per_type_energy_scale_shift.{name}"] = values * scale
    return out


def _layers(network: Record, file: NequipFile) -> tuple[list[NequipLayer], dict[str, str]]:
    """Return the interactions, and the activations of even scalars, odd scalars and gates."""
    layers, names = [], {"e": "silu", "o": "tanh", "gate": "silu"}
    count = sum(name.startswith("layer") for name in network.children())
    for number in range(count):
        layer = network.child(f"layer{number}_convnet")
        gate = layer.child("equivariant_nonlin")
        if gate.name != "Gate":
            raise file.unsupported("nonlinearity_type", f"is {gate.name}")
        if layer["resnet"] and number == count - 1:
            raise file.unsupported("resnet", "is set for the last interaction")
        scalars, gated = ([*irreps_of(gate[f"irreps_{kind}"])] for kind in ("scalars", "gated"))
        acts = gate.child("act_scalars", "acts").children().values()
        for (_, irrep), act in zip(scalars, acts, strict=True):
            names["e" if irrep.p == 1 else "o"] = _function(act)
        for act in gate.child("act_gates", "acts").children().values():
            names["gate"] = _function(act)
        out = {irrep: channels for channels, irrep in (*scalars, *gated)}
        layers.append(NequipLayer(out, "sc" in layer.child("conv").children(), bool(layer["resnet"])))
    return layers, names
