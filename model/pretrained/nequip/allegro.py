"""Conversion of checkpoints and packages of Allegro (Musaelian et al., Nat. Commun. 14, 579 (2023)), from 0.7 on.

`files` opens them. Conventions that differ from equiscreen's, and how they are converted:

- perceptrons multiply their weights by gains, and Bessel functions have a prefactor 1 / pi: folded into the weights;
- the scalars of an edge are the input of two linear maps, which are folded into the perceptron before them;
- sums over edges are divided by the square root of the mean number of neighbours, and energies by the square root of 2:
  folded into the weights of the edges and the readout; if there is one number for each element, it becomes a factor of
  the element;
- the file holds the coupling coefficients: their signs are folded into the weights of the products.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from ...config.network import MAX_DEGREE, MAX_LAYERS, AllegroConfig
from ...equivariance.irreps import SCALAR, Irrep, Path, coupling
from ...equivariance.tensors import harmonic_irreps, natural_irreps, parsed
from ...networks.allegro import AllegroNetwork, edge_paths
from ..records.record import Record
from .files import LINEAR, NequipFile, irreps_of

BUILDERS = {f"allegro.model.{full}Allegro{energy}Model" for full in ("", "Full") for energy in ("", "Energy")}
# Settings that are read, that follow from the weights, or that do not change what the network computes.
SETTINGS = {
    *("_target_", "type_names", "r_max", "per_edge_type_cutoff", "l_max", "parity", "num_layers"),
    *("irreps_edge_sh", "tensor_track_allowed_irreps", "radial_chemical_embed", "avg_num_neighbors", "pair_potential"),
    *("scalar_embed_mlp_nonlinearity", "allegro_mlp_nonlinearity", "readout_mlp_nonlinearity"),
    *("weight_individual_irreps", "forward_normalize"),
    *("seed", "model_dtype", "compile_mode", "do_derivatives", "radial_chemical_embed_dim"),
    *("scalar_embed_mlp_hidden_layers_depth", "scalar_embed_mlp_hidden_layers_width"),
    *("allegro_mlp_hidden_layers_depth", "allegro_mlp_hidden_layers_width", "tp_path_channel_coupling"),
    *("readout_mlp_hidden_layers_depth", "readout_mlp_hidden_layers_width"),
    *("num_scalar_features", "num_tensor_features", "per_type_energy_scales", "per_type_energy_shifts"),
    *("per_type_energy_scales_trainable", "per_type_energy_shifts_trainable"),
}
RADIAL_SETTINGS = {
    "allegro.nn.TwoBodyBesselScalarEmbed": {"num_bessels", "bessel_trainable", "polynomial_cutoff_p"},
    "allegro.nn.TwoBodySplineScalarEmbed": {"num_splines", "spline_span"},
}
# Perceptrons: the setting of the activation, and the module. The perceptrons of all layers have the same activation.
PERCEPTRONS = {
    "scalar_embed_mlp_nonlinearity": "scalar_embed_mlp.mlp_module",
    "allegro_mlp_nonlinearity": "allegro.latents.0",
    "readout_mlp_nonlinearity": "edge_readout.mlp_module",
}
ACTIVATIONS = ("silu", "mish", "ssp", "tanh", *LINEAR)
MODULES = re.compile(
    r"(edge_norm|radial_chemical_embed|scalar_embed_mlp|tensor_embed|allegro|edge_readout|edge_eng_sum"
    r"|per_type_energy_scale_shift|cutoff|pair_potential|total_energy_sum)"
)
# Tolerance of coupling coefficients, which a float32 file rounds.
COUPLING_ERROR = 1e-5


@dataclass(frozen=True)
class _Content:
    """Settings of the network in a file, and the file with its weights.

    Attributes:
        file: The file.
        cutoff: Cutoff radius (angstrom).
        by_pair: Whether there is a cutoff for each pair of types.
        harmonics: Irreps of the spherical harmonics.
        layers: Irreps of the features of an edge after each layer.
        power: Power of the polynomial envelope of the Bessel functions.
        activations: Activations of the perceptrons in `PERCEPTRONS`; None and "None" are linear, but have different
            gains.
        mean_neighbors: Mean number of neighbours, for all elements or by type.
        by_degree: Whether edges have a weight for each degree of the harmonics, rather than one weight for all degrees.
        forward: Whether the weights of a checkpoint are normalised by the widths of their inputs, rather than of their
            outputs.
    """

    file: NequipFile
    cutoff: float
    by_pair: bool
    harmonics: Sequence[Irrep]
    layers: Sequence[Sequence[Irrep]]
    power: float
    activations: Sequence[str | None]
    mean_neighbors: float | Sequence[float]
    by_degree: bool
    forward: bool

    def perceptron(self, name: str, activation: str | None = None) -> list[Tensor]:
        """Return the matrices of a perceptron, or of a linear map, with its gains folded in."""
        return self.file.perceptron(name, activation, forward=self.forward)

    @property
    def spline(self) -> bool:
        """Whether the radial basis consists of splines."""
        return "radial_chemical_embed.spline.class_embed.weight" in self.file.state


def allegro_network(file: NequipFile) -> AllegroNetwork:
    """Build the network of a checkpoint, a package or a TorchScript archive.

    Returns:
        The network in float64.

    Raises:
        CheckpointError: The architecture is not supported.
        KeyError, RuntimeError, ValueError: The file is damaged, or follows an unknown convention.
    """
    content = _configured(file) if file.modules is None else _packaged(file, file.modules)
    for name, activation in zip(PERCEPTRONS, content.activations, strict=True):
        if activation not in ACTIVATIONS:
            raise file.unsupported(name, f"is {activation!r}")
    return _network(content)


def _configured(file: NequipFile) -> _Content:
    """Read the settings of a checkpoint."""
    settings = file.check_settings(BUILDERS, SETTINGS)
    radial = settings["radial_chemical_embed"]
    known = RADIAL_SETTINGS.get(radial.get("_target_"))
    if known is None:
        raise file.unsupported("radial_chemical_embed", f"is {radial.get('_target_')}")
    if unknown := sorted(radial.keys() - known - {"_target_"}):
        raise file.unsupported("radial_chemical_embed", f"has the unknown setting {unknown[0]}")
    neighbors = settings["avg_num_neighbors"]
    if isinstance(neighbors, Mapping):
        neighbors = [float(neighbors[name]) for name in settings["type_names"]]
    harmonics, tracked = _configured_irreps(settings)
    return _Content(
        file,
        float(settings["r_max"]),
        settings.get("per_edge_type_cutoff") is not None,
        harmonics,
        tracked_irreps(harmonics, tracked, min(int(settings.get("num_layers", 2)), MAX_LAYERS + 1)),
        float(radial.get("polynomial_cutoff_p", 6)),
        [settings.get(name, "silu") for name in PERCEPTRONS],
        neighbors,
        bool(settings.get("weight_individual_irreps", True)),
        bool(settings.get("forward_normalize", True)),
    )


def _configured_irreps(settings: Mapping[str, Any]) -> tuple[list[Irrep], list[Irrep]]:
    """Return the irreps of the spherical harmonics, and the irreps that features of edges may have."""
    if "irreps_edge_sh" not in settings:
        degree = min(int(settings["l_max"]), MAX_DEGREE + 1)
        harmonics = natural_irreps(degree)
        if not settings.get("parity", True):
            return harmonics, harmonics
        return harmonics, [Irrep(irrep.l, parity) for irrep in harmonics for parity in (1, -1)]
    harmonics = settings["irreps_edge_sh"]
    if isinstance(harmonics, int):
        harmonics = o3.Irreps.spherical_harmonics(min(harmonics, MAX_DEGREE + 1))
    texts = (str(o3.Irreps(irreps)) for irreps in (harmonics, settings["tensor_track_allowed_irreps"]))
    first, second = ([irrep for _, irrep in parsed(text)] for text in texts)
    return first, second


def tracked_irreps(harmonics: Sequence[Irrep], tracked: Sequence[Irrep], layers: int) -> list[list[Irrep]]:
    """Return the irreps of the features of an edge after each layer, by Allegro's rules.

    Args:
        harmonics: Irreps of the spherical harmonics.
        tracked: Irreps that features may have.
        layers: Number of layers.
    """

    def produced(irreps: Sequence[Irrep]) -> set[Irrep]:
        return {out for left in irreps for right in harmonics for out in left * right}

    after, before = [], harmonics
    for layer in range(layers):
        before = [irrep for irrep in ([SCALAR] if layer == layers - 1 else tracked) if irrep in produced(before)]
        after.append(before)
    # Features that do not lead to scalars in the end are left out.
    for layer in range(layers - 2, -1, -1):
        after[layer] = [irrep for irrep in after[layer] if produced([irrep]) & {*after[layer + 1]}]
    return after


def _packaged(file: NequipFile, network: Record) -> _Content:
    """Read the settings of a package from its modules."""
    for name, module in network.children().items():
        if not MODULES.fullmatch(name):
            raise file.unsupported(f"{name} ({module.kind})", "is unknown")
    norm, embed, radial, allegro = (
        network.child(name) for name in ("edge_norm", "tensor_embed", "radial_chemical_embed", "allegro")
    )
    kinds = {"SequentialGraphNetwork": ["bessel_encode", "type_embed"], "TwoBodySplineScalarEmbed": ["spline"]}
    if kinds.get(radial.name) != list(radial.children()):
        raise file.unsupported("radial_chemical_embed", f"is {radial.kind}")
    spherical = embed.child("sh")
    if not spherical.fields["normalize"] or spherical.fields["normalization"] != "component":
        raise file.unsupported("tensor_embed", "does not normalise its harmonics")
    products = list(allegro.child("tps").children().values())
    for product in products:
        if product.name != "Contracter" or product.fields.get("irrep_normalization") != "component":
            raise file.unsupported("allegro", f"has products of the kind {product.kind}")
    harmonics = [irrep for _, irrep in irreps_of(products[0].fields["irreps_in2"])]
    power = radial.child("bessel_encode", "cutoff").fields["p"] if "bessel_encode" in radial.children() else 6
    return _Content(
        file,
        float(norm.fields["r_max"]),
        bool(norm.fields["_per_edge_type"]),
        harmonics,
        [[irrep for _, irrep in irreps_of(product.fields["irreps_out"])] for product in products],
        float(power),
        [file.activation_of(name, *module.split(".")) for name, module in PERCEPTRONS.items()],
        _packaged_neighbors(file, products[0]),
        by_degree=bool(allegro.child("_env_weighter").fields["weight_individual_irreps"]),
        forward=True,
    )


def _packaged_neighbors(file: NequipFile, product: Record) -> float | list[float]:
    """Return the mean number of neighbours, which versions before 0.8.3 store in the products."""
    factors = file.state.get("allegro.avg_num_neighbors_norm.norm_const")
    if factors is None:
        return float(product.fields["scatter_factor"]) ** -2
    numbers = [float(number) for number in (1 / factors.double() ** 2).flatten()]
    return numbers[0] if len(numbers) == 1 else numbers


def _network(content: _Content) -> AllegroNetwork:
    """Build the network, with its weights."""
    file = content.file
    numbers, order = file.elements()
    perceptrons = [
        content.perceptron(name, activation)
        for name, activation in zip(PERCEPTRONS.values(), content.activations, strict=True)
    ]
    config = _architecture(content, perceptrons)
    network = AllegroNetwork(config, numbers, file.statistics(order), torch.float64)
    mean = content.mean_neighbors
    by_type = isinstance(mean, Sequence)
    factors = torch.tensor(mean if by_type else [mean], dtype=torch.float64) ** -0.5
    common = 1.0 if by_type else float(factors)
    weights = {f"embedding.{name}": x for name, x in _embedding(content, order).items()}
    if by_type:
        weights["sum_scales"] = factors[order]
    embedding, _, readout = perceptrons
    (tensor,) = content.perceptron("tensor_embed.env_embed_linear")
    (projection,) = file.perceptron("allegro.first_layer_env_embed_projection", None)  # always normalised by inputs
    projection = torch.cat([_weighting(projection, config, content, common), tensor], dim=1)
    weights |= _matrices("perceptron", [*embedding[:-1], embedding[-1] @ projection])
    weights |= _matrices("readout", [*readout[:-1], readout[-1] * (common / math.sqrt(2))])
    for layer in range(len(content.layers)):
        name = f"interactions.{layer}"
        paths = network.interaction(layer).paths
        weights[f"{name}.weights"] = _products(content, layer, paths, config.channel_weights)
        *hidden, last = content.perceptron(f"allegro.latents.{layer}", content.activations[1])
        weights |= _matrices(f"{name}.perceptron", [*hidden, _weighting(last, config, content, common)])
    network.load_state_dict(weights)
    return network.eval()


def _matrices(name: str, matrices: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}.weights.{place}": matrix for place, matrix in enumerate(matrices)}


def _weighting(matrix: Tensor, config: AllegroConfig, content: _Content, factor: float) -> Tensor:
    """Return the map to scalars and, except after the last layer, to the weights of the next sum over edges.

    Args:
        matrix: float64[inputs, scalars + weights], the map of the file.
        config: Configuration of the network.
        content: Content of the file.
        factor: Factor that multiplies the weights.
    """
    scalars, sums = torch.split(matrix, [config.scalars, matrix.shape[1] - config.scalars], dim=1)
    if not content.by_degree:
        sums = torch.repeat_interleave(sums, config.l_max + 1, dim=1)
    return torch.cat([scalars, sums * factor], dim=1)


def _embedding(content: _Content, order: Tensor) -> dict[str, Tensor]:
    """Return the weights of the radial basis and the elements."""
    name, state = "radial_chemical_embed", content.file.state
    if content.spline:
        n, count = len(order), state[f"{name}.spline.lower"].numel()
        splines = state[f"{name}.spline.class_embed.weight"].double().view(n, n, -1, count)
        return {"splines": splines[order][:, order]}
    (radial,) = content.perceptron(f"{name}.type_embed.basis_linear")
    return {
        "frequencies": state[f"{name}.bessel_encode.bessel_weights"].double().flatten() * math.pi,
        "radial": radial / math.pi,
        "receiver": state[f"{name}.type_embed.center_embed.weight"].double()[order],
        "sender": state[f"{name}.type_embed.neighbor_embed.weight"].double()[order],
    }


def _products(content: _Content, layer: int, paths: Sequence[Path], by_channel: bool) -> Tensor:
    """Return the weights of the products of a layer: float64[channels or 1, paths]."""
    name, state = f"allegro.tps.{layer}", content.file.state
    weights = state[f"{name}.weights"].double().reshape(-1 if by_channel else 1, len(paths))
    before = content.layers[layer - 1] if layer else content.harmonics
    if edge_paths(before, content.harmonics, content.layers[layer]) != list(paths):
        raise ValueError(f"the paths of layer {layer} are in an unknown order")
    stored = state.get(f"{name}.w3j")
    if stored is None:
        return weights
    sizes = [sum(irrep.dim for irrep in irreps) for irreps in (before, content.harmonics, content.layers[layer])]
    if stored.numel() != len(paths) * math.prod(sizes):  # only equal components are multiplied and stored
        stored = torch.diag_embed(stored.double().view(len(paths), sizes[0], sizes[2]).transpose(1, 2)).movedim(1, 3)
    stored = stored.double().view(len(paths), *sizes)
    places = [_slices(irreps) for irreps in (before, content.harmonics, content.layers[layer])]
    signs = []
    for block, path in zip(stored, paths, strict=True):
        left, right, out = (
            place[irrep] for place, irrep in zip(places, (path.left, path.right, path.out), strict=True)
        )
        signs.append(_sign(block[left, right, out], path))
    return weights * torch.tensor(signs, dtype=torch.float64)


def _slices(irreps: Sequence[Irrep]) -> dict[Irrep, slice]:
    """Return the slice of components of each irrep."""
    ends = itertools.accumulate(irrep.dim for irrep in irreps)
    return {irrep: slice(end - irrep.dim, end) for irrep, end in zip(irreps, ends, strict=True)}


def _sign(stored: Tensor, path: Path) -> float:
    """Return the sign of the coefficients of a path in the file, relative to equiscreen's.

    Raises:
        ValueError: The coefficients differ by more than a sign.
    """
    ours = coupling(path)
    for sign in (1.0, -1.0):
        if torch.allclose(stored, sign * ours, atol=COUPLING_ERROR):
            return sign
    raise ValueError(f"the 3j symbols of {path.left} x {path.right} to {path.out} follow another convention")


def _architecture(content: _Content, perceptrons: Sequence[Sequence[Tensor]]) -> AllegroConfig:
    file, state, l_max = content.file, content.file.state, len(content.harmonics) - 1
    symmetry = "so3" if l_max and all(irrep.p == 1 for irrep in content.harmonics) else "natural"
    if list(content.harmonics) != harmonic_irreps(l_max, symmetry):
        raise file.unsupported("irreps_edge_sh", f"is {' + '.join(map(str, content.harmonics))}")
    if any(irrep not in harmonic_irreps(irrep.l, symmetry) for irreps in content.layers for irrep in irreps):
        symmetry = "o3"
    channels = state["tensor_embed.env_embed_linear.mlp.0.weight"].shape[1] // (l_max + 1)
    sums = channels * (l_max + 1 if content.by_degree else 1)
    products = state["allegro.tps.0.weights"]
    paths = edge_paths(content.harmonics, content.harmonics, content.layers[0])
    hidden = [tuple(matrix.shape[1] for matrix in matrices[:-1]) for matrices in perceptrons]
    basis = f"radial_chemical_embed.{'spline.lower' if content.spline else 'bessel_encode.bessel_weights'}"
    settings: dict[str, Any] = {
        "symmetry": symmetry,
        "cutoff": content.cutoff,
        "pair_cutoffs": _pair_cutoffs(content) if content.by_pair else {},
        "l_max": l_max,
        "edge_irreps": tuple(" + ".join(str(irrep) for irrep in irreps) for irreps in content.layers),
        "scalars": state["allegro.first_layer_env_embed_projection.mlp.0.weight"].shape[1] - sums,
        "channels": channels,
        "radial": "spline" if content.spline else "bessel",
        "n_basis": state[basis].numel(),
        "embedding": len(perceptrons[0][0]),
        "channel_weights": products.ndim == (2 if len(paths) > 1 else 1),
        "sum_scales": isinstance(content.mean_neighbors, Sequence),
        "pair_repulsion": file.repulsion(
            *(("cutoff", "cutoff") if content.spline else ("radial_chemical_embed", "bessel_encode", "cutoff"))
        ),
    }
    if content.spline:
        settings["spline_span"] = round(-float(state[basis].min()) * state[basis].numel())
    else:
        settings["envelope_power"] = file.whole_number("polynomial_cutoff_p", content.power)
    for name, widths, activation in zip(("embedding", "latent", "readout"), hidden, content.activations, strict=True):
        settings |= {f"{name}_hidden": widths, f"{name}_activation": activation if widths else "silu"}
    return AllegroConfig.model_validate(settings)


def _pair_cutoffs(content: _Content) -> dict[str, dict[str, float]]:
    """Return the cutoffs by receiver and sender, where they are less than the largest."""
    types = content.file.types
    # Rounded to 12 digits, since the file holds reciprocals.
    inverse = content.file.state["edge_norm._rmax_recip"].double().view(len(types), len(types))
    radii = [[float(f"{1 / x:.12g}") for x in row] for row in inverse.tolist()]
    rows = {
        name: {other: radius for other, radius in zip(types, row, strict=True) if radius < content.cutoff}
        for name, row in zip(types, radii, strict=True)
    }
    return {name: row for name, row in rows.items() if row}
