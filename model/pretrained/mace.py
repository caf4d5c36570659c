"""Conversion of MACE (Batatia et al., NeurIPS 2022; arXiv:2401.00096).

A `.model` file is a pickled module, read as records; a state dict with a file of settings holds the same numbers.
Conventions that differ from equiscreen's, and how they are converted:

- linear maps of e3nn divide by the square root of the number of input channels: folded into the weights, as are the
  mean number of neighbours, the prefactor of Bessel functions and the moments of activations;
- matrices of an element are weights of a tensor product with the one-hot vector of the element;
- radial functions follow the order of the paths, which depends on the version: reordered;
- non-linear interactions embed the elements of sender and receiver, and map the embeddings in the first layer of their
  perceptrons: folded into tables; the bias of the last layer becomes its last row;
- 3j symbols come from e3nn 0.4.4, and their signs differ from the installed e3nn: the file holds the symbols of the
  convolutions, and the sign is folded into the radial functions;
- products are sums over all paths of couplings that the file holds; they are rewritten exactly in equiscreen's basis of
  all distinct products, which also takes care of their signs;
- a head is one column of the readouts, with its own reference energies, scale and shift: one is chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from e3nn.math import normalize2mom
from torch import Tensor
from torch.nn.functional import silu

from ...pipeline.errors import CheckpointError, detail
from ..config.network import MaceConfig, RepulsionConfig
from ..equivariance.irreps import SCALAR, Irrep
from ..equivariance.irreps import Path as IrrepPath
from ..equivariance.symmetric_couplings import symmetrised
from ..equivariance.tensors import parsed
from ..layers.symmetric_contraction import SymmetricContraction
from ..networks.mace import MaceInteraction, MaceNetwork
from ..networks.nequip import with_gates
from ..statistics import DataStatistics
from .e3nn_weights import ordered_columns, sign_of_3j
from .mace_settings import INTERACTIONS, READOUTS, MaceSettings, settings_of
from .records.saved_module import read_module, root_class

# Tolerance relative to the largest coupling; a float32 file rounds couplings to 6e-8 of the largest.
_COUPLING_ERROR = 1e-5


def read_mace(path: str | Path, head: str | None) -> tuple[MaceNetwork, str]:
    """Build the network of a `.model` file.

    Args:
        path: The file.
        head: Name of the head to use; None uses the only head.

    Returns:
        The network, in the dtype of the file, and the name of the head, "" if there is only one.

    Raises:
        CheckpointError: The file is damaged or names something that is not allowed, its architecture is not supported,
            `head` does not exist or is None although there are several heads, or weights are not finite.
    """
    if root_class(path).endswith(".LAMMPS_MLIAP_MACE"):
        raise CheckpointError(
            f"{path} is a file for LAMMPS's ML-IAP, whose network was converted to cuEquivariance; import the .model "
            "file that it was made from"
        )
    module = read_module(path, ("mace.",))
    try:
        settings, state = settings_of(module, path), dict(module.tensors())
    except CheckpointError:
        raise
    except Exception as error:  # records of another version can lack anything
        raise CheckpointError(
            f"{path} is damaged, or was written by an unsupported version of MACE ({detail(error)}); copy or download "
            "it again, or try a newer version of equiscreen"
        ) from error
    return from_mace(settings, state, head, path)


def from_mace(
    settings: MaceSettings, state: Mapping[str, Tensor], head: str | None, path: str | Path
) -> tuple[MaceNetwork, str]:
    """Build the network of a state dict.

    Args:
        settings: Settings of the network.
        state: Weights and constants, named as in the `state_dict` of MACE's module.
        head: As in `read_mace`.
        path: Path of the file, for error messages.

    Returns:
        As in `read_mace`.

    Raises:
        CheckpointError: The weights do not fit the settings or are not finite, or `head` does not exist or is None
            although there are several heads.
    """
    chosen = _head(settings, head, path)
    for name, x in state.items():
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise CheckpointError(
                f"{path} is damaged: the weights {name} contain NaN or infinite numbers; copy or download it again"
            )
    try:
        return _Reader(settings, state, chosen).network(), (head or "") if len(settings.heads) > 1 else ""
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except KeyError as error:
        raise CheckpointError(
            f"{path}: the weights {error} are missing; check that the settings belong to this file"
        ) from error
    except Exception as error:  # shapes that do not fit fail in many ways
        raise CheckpointError(
            f"{path}: the weights do not fit the settings ({detail(error)}); check that they belong together"
        ) from error


def _head(settings: MaceSettings, head: str | None, path: str | Path) -> int:
    names = ", ".join(settings.heads)
    if head is None:
        if len(settings.heads) > 1:
            raise CheckpointError(f"{path} has several heads; choose `--modality` from {names}")
        return 0
    if head not in settings.heads:
        raise CheckpointError(f"{path} has no head {head}; choose `--modality` from {names}")
    return settings.heads.index(head)


class _Reader:
    """Converts the weights of a file to equiscreen's convention, all in float64.

    Args:
        settings: Settings of the network.
        state: Weights and constants.
        head: Index of the head.
    """

    def __init__(self, settings: MaceSettings, state: Mapping[str, Tensor], head: int) -> None:
        self.settings, self.state, self.head = settings, state, head
        numbers = settings.atomic_numbers
        self.elements = sorted(numbers)
        self.order = torch.tensor([numbers.index(number) for number in self.elements])
        self.n_elements, self.n_heads = len(numbers), len(settings.heads)
        self.activation, self.gate = float(normalize2mom(silu).cst), float(normalize2mom(torch.sigmoid).cst)
        self.prefactor = 1.0
        if settings.radial_type == "bessel":
            self.prefactor = float(self.read("radial_embedding.bessel_fn.prefactor"))

    def read(self, name: str) -> Tensor:
        """Return one tensor, in float64."""
        return self.state[name].double()

    def network(self) -> MaceNetwork:
        """Build the network with its weights, in the dtype of the file."""
        network = MaceNetwork(self.config(), self.elements, self.statistics(), torch.float64)
        channels = network.config.channels
        embedding = self.read("node_embedding.linear.weight").view(self.n_elements, channels)
        embedding = embedding[self.order] / math.sqrt(self.n_elements)
        weights = {"embedding": embedding, **self.pair_functions(network)}
        for layer in range(self.settings.num_interactions):
            weights |= self.interaction(layer, network.interaction(layer), embedding)
        places = [place for place, kind in enumerate(network.config.readouts) if kind != "none"]
        for number, layer in enumerate(places):
            weights |= {
                f"readouts.{layer}.{name}": x
                for name, x in self.readout(number, network.config.readouts[layer], channels).items()
            }
        network.load_state_dict(weights)
        return network.to(self.state["node_embedding.linear.weight"].dtype).eval()

    def config(self) -> MaceConfig:
        """Return the configuration of the network."""
        settings = self.settings
        hidden = parsed(settings.hidden_irreps)
        channels = sum(mul for mul, ir in hidden if ir == SCALAR)
        if any(mul != channels for mul, _ in hidden):
            raise CheckpointError("unsupported architecture: hidden_irreps has different numbers of channels")
        count = settings.num_interactions
        every, last = " + ".join(str(ir) for _, ir in hidden), str(hidden[0][1])
        blocks = [INTERACTIONS[settings.interaction_cls_first], *[INTERACTIONS[settings.interaction_cls]] * (count - 1)]
        readouts = ["none" if settings.use_last_readout_only else "linear"] * (count - 1)
        readouts.append("linear" if count == 1 else READOUTS[settings.readout_cls])
        correlation = settings.correlation
        repulsion = self.repulsion() if settings.pair_repulsion else None
        values: dict[str, Any] = {
            "symmetry": "natural" if all(ir.p == (-1) ** ir.l for _, ir in hidden) else "o3",
            "cutoff": settings.r_max,
            "channels": channels,
            "hidden_irreps": (*[every] * (count - 1), last),
            "edge_irreps": settings.edge_irreps or "",
            "edge_irreps_first": settings.use_edge_irreps_first and settings.edge_irreps is not None,
            "l_max": settings.max_ell,
            "correlation": (correlation,) * count if isinstance(correlation, int) else correlation,
            "residual": tuple(block.residual for block in blocks),
            "density": tuple(block.density for block in blocks),
            "nonlinear": tuple(block.nonlinear for block in blocks) if any(block.nonlinear for block in blocks) else (),
            "basis": settings.radial_type,
            "n_basis": settings.num_bessel,
            "radial_hidden": settings.radial_MLP,
            "envelope_power": settings.num_polynomial_cutoff,
            "envelope_on": "basis" if settings.apply_cutoff else "functions",
            "transform": settings.distance_transform.lower(),
            "repulsion": repulsion,
            "readouts": tuple(readouts),
            "readout_hidden": sum(mul for mul, _ in parsed(settings.MLP_irreps)),
        }
        transform = "radial_embedding.distance_transform"
        if settings.distance_transform == "Agnesi":
            values["agnesi"] = tuple(float(self.read(f"{transform}.{name}")) for name in "apq")
        if settings.distance_transform == "Soft":
            values["steepness"] = float(self.read(f"{transform}.alpha"))
        try:
            return MaceConfig(**values)
        except ValueError as error:
            raise CheckpointError(f"unsupported architecture: {detail(error)}") from error

    def repulsion(self) -> RepulsionConfig:
        """Return the constants of the ZBL repulsion."""
        read = {name: self.read(f"pair_repulsion_fn.{name}") for name in ("a_prefactor", "a_exp", "c", "p")}
        return RepulsionConfig(
            length=float(read["a_prefactor"]),
            exponent=float(read["a_exp"]),
            weights=tuple(read["c"].tolist()),
            envelope_power=int(read["p"]),
        )

    def statistics(self) -> DataStatistics:
        """Return the reference energies and scales of the head."""
        references = self.of_head(self.read("atomic_energies_fn.atomic_energies").view(-1, self.n_elements))[self.order]
        scale, shift = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
        if self.settings.model == "ScaleShiftMACE":
            scale, shift = (self.of_head(self.read(f"scale_shift.{name}").view(-1)) for name in ("scale", "shift"))
        return DataStatistics(tuple((references + shift).tolist()), (float(scale),) * self.n_elements)

    def of_head(self, values: Tensor) -> Tensor:
        """Return the row of the head; older files have one row for all heads."""
        if len(values) not in {1, self.n_heads}:
            raise CheckpointError(
                f"the constants belong to {len(values)} heads, but the settings name {self.n_heads}; check that the "
                "settings belong to this file"
            )
        return values[self.head if len(values) > 1 else 0]

    def pair_functions(self, network: MaceNetwork) -> dict[str, Tensor]:
        """Return constants of the radial basis, the distance transform and the ZBL repulsion, by parameter name."""
        radial, out = "radial_embedding", {}
        if network.config.basis == "bessel":
            out["basis.frequencies"] = self.read(f"{radial}.bessel_fn.bessel_weights")
        if network.config.basis == "gaussian":
            out["basis.centres"] = self.read(f"{radial}.bessel_fn.gaussian_weights")
        if network.transform is not None:
            out["transform.radii"] = self.read(f"{radial}.distance_transform.covalent_radii")[self.elements]
        if network.repulsion is not None:
            out["repulsion.radii"] = self.read("pair_repulsion_fn.covalent_radii")[self.elements]
        return out

    def interaction(self, layer: int, ours: MaceInteraction, embedding: Tensor) -> dict[str, Tensor]:
        """Return all weights of an interaction, by parameter name.

        Args:
            layer: Number of the interaction.
            ours: equiscreen's interaction, whose shapes the weights must have.
            embedding: float64[n_elements, channels], features before the first interaction.
        """
        name, product, target = f"interactions.{layer}", f"products.{layer}", f"interactions.{layer}"
        convolution = ours.convolution
        out = linear_weights(self.read(f"{name}.linear_up.weight"), ours.channels_in, convolution.channels)
        weights = {f"{target}.send.weights.{irrep}": matrix for irrep, matrix in out.items()}
        out = linear_weights(self.read(f"{product}.linear.weight"), ours.channels_out, ours.channels_out)
        weights |= {f"{target}.update.weights.{irrep}": matrix for irrep, matrix in out.items()}
        weights[f"{target}.contraction.weights"] = self.contraction(product, ours)
        if ours.nonlinear is not None:
            return weights | self.nonlinear(layer, ours, embedding)
        out = linear_weights(self.read(f"{name}.linear.weight"), convolution.channels_out, ours.channels_total)
        norm = 1.0 if ours.density is not None else self.settings.avg_num_neighbors
        weights |= {f"{target}.mix.weights.{irrep}": matrix / norm for irrep, matrix in out.items()}
        if ours.density is not None:
            density = self.read(f"{name}.density_fn.layer0.weight")
            weights[f"{target}.density"] = density * self.prefactor / math.sqrt(len(density))
        for place, matrix in enumerate(self.radial(name, ours)):
            weights[f"{target}.convolution.radial.{place}"] = matrix
        return weights | self.by_element(layer, ours, embedding)

    def nonlinear(self, layer: int, ours: MaceInteraction, embedding: Tensor) -> dict[str, Tensor]:
        """Return the weights of a non-linear interaction that other interactions do not have, by parameter name."""
        name, total, convolution = f"interactions.{layer}", ours.channels_total, ours.convolution
        target, perceptron, density = f"{name}.nonlinear", f"{name}.conv_tp_weights.net", f"{name}.density_fn.net"
        place = 3 * len(self.settings.radial_MLP)
        bias = self.read(f"{perceptron}.{place}.bias").unsqueeze(0)
        last = torch.cat([self.read(f"{perceptron}.{place}.weight").T, bias])
        weights = {
            **self.element_perceptron(name, perceptron, f"{target}.radial", len(self.settings.radial_MLP)),
            **self.element_perceptron(name, density, f"{target}.density", 1),
            f"{name}.convolution.radial.0": self.in_our_order(name, last, ours),
            f"{target}.density_weight": self.read(f"{density}.3.weight").T,
            f"{target}.density_bias": self.read(f"{density}.3.bias"),
            f"{target}.alpha": self.read(f"{name}.alpha"),
            f"{target}.beta": self.read(f"{name}.beta"),
        }
        gated, senders = with_gates(total), convolution.channels
        linear = {
            f"{name}.mix": linear_weights(self.read(f"{name}.linear_1.weight"), convolution.channels_out, gated),
            f"{target}.own": linear_weights(self.read(f"{name}.linear_res.weight"), senders, gated),
            f"{target}.update": {
                irrep: matrix * (self.activation if irrep == SCALAR else self.gate)
                for irrep, matrix in linear_weights(self.read(f"{name}.linear_2.weight"), total, total).items()
            },
        }
        skip = linear_weights(self.read(f"{name}.skip_tp.weight"), ours.channels_in, ours.channels_out)
        if layer:
            linear[f"{name}.skip"] = skip
        else:
            weights[f"{name}.skip_table"] = embedding @ skip[SCALAR] / math.sqrt(embedding.shape[1])
        for module, matrices in linear.items():
            weights |= {f"{module}.weights.{irrep}": matrix for irrep, matrix in matrices.items()}
        return weights

    def element_perceptron(self, name: str, prefix: str, target: str, depth: int) -> dict[str, Tensor]:
        """Return the weights of the hidden layers of a perceptron of both elements, by parameter name.

        Args:
            name: Name of the interaction.
            prefix: Name of the perceptron's layers in the file.
            target: Name of our perceptron.
            depth: Number of hidden layers.
        """
        matrices = [self.read(f"{prefix}.{3 * place}.weight").T for place in range(depth)]
        biases = [self.read(f"{prefix}.{3 * place}.bias") for place in range(depth)]
        embedded = []
        for one in ("source", "target"):
            table = self.read(f"{name}.{one}_embedding.weight").view(self.n_elements, -1)
            embedded.append(table[self.order] / math.sqrt(self.n_elements))
        width = embedded[0].shape[1]
        basis, source, receiver = torch.split(matrices[0], [self.settings.num_bessel, width, width])
        out = {
            f"{target}.weights.0": basis * self.prefactor,
            f"{target}.senders": embedded[0] @ source,
            f"{target}.receivers": embedded[1] @ receiver + biases[0],
        }
        for place in range(depth):
            out[f"{target}.gains.{place}"] = self.read(f"{prefix}.{3 * place + 1}.weight")
            out[f"{target}.shifts.{place}"] = self.read(f"{prefix}.{3 * place + 1}.bias")
            if place:
                out[f"{target}.weights.{place}"] = matrices[place]
                out[f"{target}.biases.{place - 1}"] = biases[place]
        return out

    def radial(self, name: str, ours: MaceInteraction) -> list[Tensor]:
        """Return the matrices of the radial perceptron, with the columns of the last in the order of `ours`."""
        count = len(self.settings.radial_MLP) + 1
        matrices = [self.read(f"{name}.conv_tp_weights.layer{place}.weight") for place in range(count)]
        gains = [self.prefactor, *[self.activation] * (count - 1)]
        matrices = [m * gain / math.sqrt(len(m)) for m, gain in zip(matrices, gains, strict=True)]
        return [*matrices[:-1], self.in_our_order(name, matrices[-1], ours)]

    def in_our_order(self, name: str, last: Tensor, ours: MaceInteraction) -> Tensor:
        """Reorder the columns of the last matrix of a radial perceptron, and multiply them by the signs of the file."""
        convolution = ours.convolution
        signs = [self.sign(f"{name}.conv_tp", path) for path in convolution.paths]
        theirs = convolution.paths
        if self.settings.path_order == "sorted":
            theirs = sorted(theirs, key=lambda path: path.out)
        return ordered_columns(last, theirs, convolution.paths, convolution.channels, signs)

    def sign(self, prefix: str, path: IrrepPath) -> float:
        """Return the sign of the 3j symbols of the file, relative to the installed e3nn."""
        degrees = (path.left.l, path.right.l, path.out.l)
        if min(degrees) > 0 and not any(name.endswith(f"_w3j_{'_'.join(map(str, degrees))}") for name in self.state):
            raise CheckpointError(f"the 3j symbols of {degrees} are missing")
        return sign_of_3j(self.state, prefix, path)

    def by_element(self, layer: int, ours: MaceInteraction, embedding: Tensor) -> dict[str, Tensor]:
        """Return each element's matrices or, in a residual first interaction, their products with the embedding."""
        prefix = f"interactions.{layer}"
        flat, begin, matrices = self.read(f"{prefix}.skip_tp.weight"), 0, {}
        into = ours.channels_in if ours.residual else ours.channels_total
        out = ours.channels_out if ours.residual else ours.channels_total
        for irrep, channels in into.items():
            if irrep in out:
                shape = (channels, self.n_elements, out[irrep])
                matrix = flat[begin : begin + math.prod(shape)].view(shape).transpose(0, 1)[self.order]
                matrices[irrep] = matrix / math.sqrt(channels * self.n_elements)
                begin += math.prod(shape)
        if begin != len(flat):
            raise CheckpointError(f"{prefix}.skip_tp.weight has {len(flat)} numbers instead of {begin}")
        if ours.residual and not layer:
            return {f"{prefix}.skip_table": torch.bmm(embedding.unsqueeze(1), matrices[SCALAR]).squeeze(1)}
        return {f"{prefix}.by_element.{irrep}": matrix for irrep, matrix in matrices.items()}

    def contraction(self, product: str, ours: MaceInteraction) -> Tensor:
        """Return the weights of the products, float64[n_elements, products, channels]."""
        contraction = ours.contraction
        out = torch.zeros(contraction.weights.shape, dtype=torch.float64)
        for place, irrep in enumerate(contraction.irreps_out):
            prefix = f"{product}.symmetric_contractions.contractions.{place}"
            highest = contraction.correlation
            for order in range(1, highest + 1):
                name = "weights_max" if order == highest else f"weights.{highest - order - 1}"
                couplings = self.read(f"{prefix}.U_matrix_{order}")
                weights = self.read(f"{prefix}.{name}")
                if self.settings.use_agnostic_product:
                    weights = weights.expand(self.n_elements, -1, -1)
                rewrite_products(contraction, irrep, couplings, weights[self.order], out)
        return out

    def readout(self, number: int, kind: str, channels: int) -> dict[str, Tensor]:
        """Return the weights of a readout for the head, by name; `number` counts the readouts of the file."""
        name = f"readouts.{number}"
        if kind == "linear":
            matrix = self.read(f"{name}.linear.weight").view(channels, self.n_heads)
            return {"weights.0": matrix[:, self.head : self.head + 1] / math.sqrt(channels)}
        matrix = self.read(f"{name}.linear_1.weight").view(channels, -1)
        width = matrix.shape[1] // self.n_heads
        here = slice(self.head * width, (self.head + 1) * width)
        last = self.read(f"{name}.linear_2.weight").view(width * self.n_heads, self.n_heads)
        # Both layers divide by the width over all heads, although only the scalars of one head are not zero.
        gain = self.activation / math.sqrt(len(last))
        first, energy = matrix[:, here] / math.sqrt(channels), last[here, self.head : self.head + 1] * gain
        if kind == "perceptron":
            return {"weights.0": first, "weights.1": energy}
        middle = self.read(f"{name}.linear_mid.weight").view(len(last), len(last))
        return {
            "weights.0": first,
            "weights.1": middle[here, here] * gain,
            "weights.2": energy,
            "biases.0": self.read(f"{name}.linear_mid.bias")[here],
            "biases.1": self.read(f"{name}.linear_2.bias")[self.head : self.head + 1],
        }


def linear_weights(flat: Tensor, into: Mapping[Irrep, int], out: Mapping[Irrep, int]) -> dict[Irrep, Tensor]:
    """Split the flat weights of `e3nn.o3.Linear` into weights of `IrrepsLinear`, which has the same normalisation.

    Args:
        flat: Flat weights.
        into: Number of input channels of each irrep.
        out: Number of output channels of each irrep.

    Raises:
        CheckpointError: The number of weights is wrong.
    """
    shapes = {irrep: (channels, out[irrep]) for irrep, channels in into.items() if irrep in out}
    sizes = [math.prod(shape) for shape in shapes.values()]
    if sum(sizes) != len(flat):
        raise CheckpointError(f"a linear map has {len(flat)} weights instead of {sum(sizes)}")
    parts = torch.split(flat, sizes)
    return {irrep: part.view(shape) for (irrep, shape), part in zip(shapes.items(), parts, strict=True)}


def rewrite_products(
    contraction: SymmetricContraction, irrep: Irrep, couplings: Tensor, weights: Tensor, out: Tensor
) -> None:
    """Express products that use other coupling matrices in the basis of equiscreen's products.

    Args:
        contraction: Contraction whose products are the basis.
        irrep: Irrep of the products.
        couplings: float64[(2 l + 1,) components of each factor, products]; the first axis is missing for scalars.
        weights: float64[n_elements, products, channels].
        out: float64[n_elements, products of the basis, channels], to which the weights are added.

    Raises:
        CheckpointError: The couplings are not combinations of equiscreen's.
    """
    if irrep.l == 0:
        couplings = couplings.unsqueeze(0)
    irreps, order = contraction.irreps_in, couplings.dim() - 2
    ends = list(itertools.accumulate((ir.dim for ir in irreps), initial=0))
    spans = {ir: slice(begin, begin + ir.dim) for ir, begin in zip(irreps, ends, strict=False)}
    limit = _COUPLING_ERROR * float(couplings.abs().max())
    for factors in itertools.combinations_with_replacement(irreps, order):
        orders = itertools.permutations(range(order))
        arrangements = {tuple(factors[place] for place in places): places for places in orders}
        given = torch.zeros(irrep.dim, *(ir.dim for ir in factors), couplings.shape[-1], dtype=torch.float64)
        for arrangement, places in arrangements.items():
            block = couplings[(slice(None), *(spans[ir] for ir in arrangement))]
            given = given + block.permute(0, *(places.index(axis) + 1 for axis in range(order)), order + 1)
        given = symmetrised(given, factors).flatten(0, -2)
        rows = [row for row, one in enumerate(contraction.couplings) if (one.factors, one.out) == (factors, irrep)]
        basis = [symmetrised(contraction.couplings[row].tensor, factors).flatten() for row in rows]
        if not basis:
            rest = given
        else:
            matrix = torch.stack(basis, dim=1)
            shares = torch.linalg.lstsq(matrix, given, driver="gelsd").solution
            rest = given - matrix @ shares
            out[:, rows] += torch.einsum("rk,zkc->zrc", shares, weights)
        if float(rest.abs().max()) > limit:
            names = " x ".join(map(str, factors))
            raise CheckpointError(f"the coupling matrices of {names} to {irrep} follow another convention")
