"""Conversion of Nequix (Koker and Smidt, arXiv:2508.16067), from its PyTorch or its JAX files.

Both formats begin with a line of JSON that holds the settings. After this line comes a PyTorch file, or arrays in
NumPy's format in the order of the model's leaves. Conventions that differ from equiscreen's, and their conversion:

- linear maps on irreps divide by the square root of the number of input channels: folded into the weights;
- activations of the gate, but not of the radial perceptron, are divided by the square root of their second moment:
  folded into the next maps;
- Bessel functions have a prefactor 2 / cutoff: folded into the radial perceptron;
- sums are divided by the square root of the mean number of neighbours: folded into the next map;
- PyTorch and JAX files order radial functions by the irrep that a path ends in: reordered;
- PyTorch files hold the 3j symbols, whose sign depends on the version of e3nn: folded into the radial functions;
- energies are readout times scale, plus shift, plus the reference energy of the element.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import silu

from ...pipeline.errors import CheckpointError, detail
from ..config.network import MAX_LAYERS, NequipConfig
from ..equivariance.irreps import SCALAR
from ..equivariance.tensors import parsed
from ..networks.nequip import NequipNetwork, channels_after, with_gates
from ..statistics import DataStatistics
from .e3nn_weights import e3nn_matrices, ordered_columns, sign_of_3j

MAX_SETTINGS_BYTES = 1 << 20
ARRAY_MARK = b"\x93NUMPY"
KNOWN = {
    *("cutoff", "atomic_numbers", "scale", "shift", "hidden_irreps", "lmax", "n_layers"),
    *("radial_basis_size", "radial_mlp_size", "radial_mlp_layers", "radial_polynomial_p", "layer_norm"),
    *("avg_n_neighbors", "index_weights"),
}


def read_nequix(path: str | Path) -> NequipNetwork:
    """Build the network of a Nequix file.

    Returns:
        The network in float32.

    Raises:
        CheckpointError: The file is damaged or not a Nequix file, or its architecture is not supported.
    """
    with Path(path).open("rb") as file:
        line = file.readline(MAX_SETTINGS_BYTES)
        rest = file.read()
    try:
        settings = json.loads(line)
        missing = sorted(KNOWN - {*settings})
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a Nequix file: its first line holds no settings; download it again"
        ) from error
    if missing:
        raise CheckpointError(
            f"{path}: unsupported architecture: the setting {missing[0]} is missing; "
            "docs/pretrained.md lists what can be imported"
        )
    if settings["index_weights"]:
        raise CheckpointError(
            f"{path}: unsupported architecture: index_weights is true; docs/pretrained.md lists what can be imported"
        )
    try:
        config = _architecture(settings)
        state = (
            _arrays(rest, config)
            if rest.startswith(ARRAY_MARK)
            else torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True)
        )
        return _network(settings, config, state)
    except Exception as error:  # torch and NumPy raise many kinds of errors for a truncated file
        raise CheckpointError(
            f"{path} is damaged, or has an unsupported architecture ({detail(error)}); copy or download it again"
        ) from error


def _architecture(settings: Mapping[str, Any]) -> NequipConfig:
    hidden = parsed(settings["hidden_irreps"])
    last = " + ".join(f"{mul}x{ir}" for mul, ir in hidden if ir == SCALAR)
    layers, depth = (min(int(settings[name]), MAX_LAYERS + 1) for name in ("n_layers", "radial_mlp_layers"))
    return NequipConfig(
        symmetry="natural",
        cutoff=float(settings["cutoff"]),
        embedding=len(settings["atomic_numbers"]),
        hidden_irreps=(*[" + ".join(f"{mul}x{ir}" for mul, ir in hidden)] * (layers - 1), last),
        l_max=int(settings["lmax"]),
        n_basis=int(settings["radial_basis_size"]),
        radial_hidden=(int(settings["radial_mlp_size"]),) * depth,
        envelope="polynomial",
        envelope_power=int(settings["radial_polynomial_p"]),
        layer_norm=bool(settings["layer_norm"]),
    )


def _arrays(data: bytes, config: NequipConfig) -> dict[str, Tensor]:
    """Read the arrays of a JAX file under the names of a PyTorch file; matrices of several irreps are concatenated."""
    leaves = _weights(data)

    def read(count: int = 1) -> Tensor:
        arrays = [torch.from_numpy(leaf) for leaf in itertools.islice(leaves, count)]
        if len(arrays) < count:
            raise ValueError("fewer arrays than the settings describe")
        return torch.cat([array.flatten() for array in arrays]) if count > 1 else arrays[0]

    state = {"atom_energies": read()}
    into = 1
    for layer, channels in enumerate(channels_after(config)):
        prefix, out = f"layers.{layer}", len(channels)
        for place in range(len(config.radial_hidden) + 1):
            state[f"{prefix}.radial_mlp.layers.{place}.weights"] = read()
        state[f"{prefix}.linear_1.weight"] = read(into).flatten()
        state[f"{prefix}.linear_2.weight"] = read(out).flatten()
        state[f"{prefix}.skip.weight"] = read(min(into, out)).flatten()
        for place in range(out if config.layer_norm else 0):
            state[f"{prefix}.layer_norm.affine_weight.{place}"] = read()
        into = out
    state["readout.weight"] = read()
    if next(leaves, None) is not None:
        raise ValueError("more arrays than the settings describe")
    return state


def _weights(data: bytes) -> Iterator[NDArray[Any]]:
    """Yield the arrays of a JAX file, without the scalars between and after them.

    Equinox also writes the Python numbers of a model (settings of its modules) as arrays without dimensions. They
    depend on the version of e3nn-jax. Like Nequix, this module reads the settings from the first line instead.
    """
    file = io.BytesIO(data)
    while data.startswith(ARRAY_MARK, file.tell()):
        leaf = np.load(file, allow_pickle=False)
        if leaf.ndim:
            yield leaf
        elif leaf.dtype.kind not in "biuf":
            raise ValueError(f"unexpected scalar of type {leaf.dtype}")
    if file.read().strip():
        raise ValueError("unexpected data after the arrays")


def _network(settings: Mapping[str, Any], config: NequipConfig, state: Mapping[str, Tensor]) -> NequipNetwork:
    numbers = settings["atomic_numbers"]
    if len(set(numbers)) != len(numbers):
        raise ValueError("atomic_numbers: contains duplicates")
    order = torch.tensor(sorted(range(len(numbers)), key=lambda place: numbers[place]))
    references = state["atom_energies"].double()[order] + float(settings["shift"])
    statistics = DataStatistics(tuple(references.tolist()), (float(settings["scale"]),) * len(numbers))
    network = NequipNetwork(config, [int(numbers[place]) for place in order], statistics, torch.float64)
    gain = _activation_gain()
    channels = channels_after(config)
    (readout,) = e3nn_matrices(state["readout.weight"], channels[-1], {SCALAR: 1}).values()
    weights = {"basis.frequencies": network.basis.frequencies.detach(), "readout": readout * gain}
    into = {SCALAR: config.embedding}
    for layer, made in enumerate(channels):
        theirs, ours = f"layers.{layer}", f"interactions.{layer}"
        wide = with_gates(made)
        convolution = network.convolution(layer)
        send = e3nn_matrices(state[f"{theirs}.linear_1.weight"], into, into)
        skip = e3nn_matrices(state[f"{theirs}.skip.weight"], into, wide)
        mix = e3nn_matrices(state[f"{theirs}.linear_2.weight"], convolution.channels_out, wide)
        norm = settings["avg_n_neighbors"] ** -0.5
        weights |= {f"{ours}.mix.{irrep}": matrix * norm for irrep, matrix in mix.items()}
        weights[f"{ours}.mix_bias"] = torch.zeros(wide[SCALAR], dtype=torch.float64)
        if layer:
            weights |= {f"{ours}.send.{irrep}": matrix * gain for irrep, matrix in send.items()}
            weights |= {f"{ours}.skip.{irrep}": matrix * gain for irrep, matrix in skip.items()}
            weights[f"{ours}.send_bias"] = torch.zeros(into[SCALAR], dtype=torch.float64)
        else:  # elements are one-hot vectors, so the rows of the matrices are their images
            weights |= {"sent": send[SCALAR][order], f"{ours}.skip_table": skip[SCALAR][order]}
        if config.layer_norm:
            for place, irrep in enumerate(wide):
                weights[f"{ours}.norm.{irrep}"] = state[f"{theirs}.layer_norm.affine_weight.{place}"].double()
        count = len(config.radial_hidden) + 1
        radial = [state[f"{theirs}.radial_mlp.layers.{place}.weights"].double() for place in range(count)]
        radial[0] = radial[0] * (2 / config.cutoff)
        signs = [sign_of_3j(state, f"{theirs}.tp", path) for path in convolution.paths]
        by_result = sorted(convolution.paths, key=lambda path: path.out)
        radial[-1] = ordered_columns(radial[-1], by_result, convolution.paths, into, signs)
        weights |= {f"{ours}.convolution.radial.{place}": matrix for place, matrix in enumerate(radial)}
        into = made
    network.load_state_dict(weights)
    return network.to(torch.float32).eval()


def _activation_gain() -> float:
    """Return the inverse root of SiLU's second moment, averaged over normal quantiles as in Nequix."""
    shares = torch.linspace(-1, 1, 1_000_003, dtype=torch.float64)[1:-1]
    return float((silu(math.sqrt(2) * torch.erfinv(shares)) ** 2).mean() ** -0.5)
