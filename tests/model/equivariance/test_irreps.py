"""Algebra of irreps: harmonics and products against e3nn, and the features of every layer against Wigner matrices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sympy.physics.wigner
import torch
from e3nn import o3
from equiscreen.model.data.batches import table_tensors
from equiscreen.model.equivariance.irreps import (
    ChannelwiseProduct,
    Irrep,
    IrrepsLinear,
    Path,
    SphericalHarmonics,
    coupling,
    product_paths,
)
from equiscreen.model.equivariance.tensors import all_irreps, natural_irreps
from equiscreen.model.layers.messages import Slots
from equiscreen.model.layers.scatter_free import gather_rows, gather_senders
from equiscreen.model.layers.table import Table
from equiscreen.pipeline import GraphBlock
from equiscreen.pipeline.structures.random_crystals import probe_structures
from scipy.spatial.transform import Rotation

from ...conformance.networks import EVERY_KIND, network_of
from ...conformance.tensors import wigner
from ...conftest import CUTOFF, ELEMENTS


@pytest.mark.parametrize("l_max", [0, 1, 2, 3, 5])
def test_harmonics_are_those_of_e3nn(l_max: int) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=-1)
    expected = o3.spherical_harmonics(list(range(l_max + 1)), vectors, normalize=False, normalization="component")
    assert torch.allclose(SphericalHarmonics(l_max).double()(vectors), expected, atol=1e-13)


@pytest.fixture
def _float64() -> Iterator[None]:
    """Set the default dtype to float64, in which e3nn computes constants; a later cast would keep them rounded."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


BOTH = [Irrep(degree, parity) for degree in range(4) for parity in (1, -1)]
SIDES = {
    "different": (["0e", "1o", "2e"], ["1o", "1e"], BOTH, False),
    "alike": (["0e", "1o", "2e"], ["0e", "1o", "2e"], BOTH[:6], False),
    "to pseudoscalars too": (["0o", "1e", "1o"], ["0o", "1e", "1o"], BOTH[:2], False),
    "to scalars": (["0e", "1o", "2e"], ["0e", "1o", "2e"], BOTH[:1], False),
    "square": (["0e", "1o", "2e"], ["0e", "1o", "2e"], BOTH, True),
    "square of both parities": (["0e", "1e", "1o", "2o"], ["0e", "1e", "1o", "2o"], BOTH, True),
}


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("sides", SIDES)
def test_products_are_those_of_e3nn(sides: str) -> None:
    left, right, out, square = SIDES[sides]
    left, right = [Irrep(ir) for ir in left], [Irrep(ir) for ir in right]
    product = ChannelwiseProduct(left, right, out, channels=3, square=square).double()
    a = {ir: torch.randn(5, ir.dim, 3, dtype=torch.float64) for ir in left}
    b = a if square else {ir: torch.randn(5, ir.dim, 3, dtype=torch.float64) for ir in right}
    found = product(a, b)
    if square:  # skipped paths vanish, or are present with both sides exchanged
        missing = set(product_paths(left, right, out)) - set(product.paths)
        assert missing
        for path in missing - {Path(path.right, path.left, path.out) for path in product.paths}:
            theirs = o3.FullTensorProduct(o3.Irreps([(1, path.left)]), o3.Irreps([(1, path.right)]), [path.out])
            assert theirs(a[path.left][:, :, 0], b[path.right][:, :, 0]).abs().max() < 1e-12
    seen: dict[Irrep, int] = {}
    for path in product.paths:
        theirs = o3.FullTensorProduct(o3.Irreps([(1, path.left)]), o3.Irreps([(1, path.right)]), [path.out])
        start = seen.get(path.out, 0)
        seen[path.out] = start + 3
        for channel in range(3):
            expected = theirs(a[path.left][:, :, channel], b[path.right][:, :, channel])
            mine = found[path.out][:, :, start + channel]
            assert torch.allclose(mine, expected, rtol=0, atol=1e-12), path
    assert seen == product.channels_out


def test_linear_maps_mix_channels_of_one_irrep_only() -> None:
    linear = IrrepsLinear({Irrep("0e"): 2, Irrep("1o"): 3}, {Irrep("1o"): 4, Irrep("2e"): 1}).double()
    found = linear({Irrep("0e"): torch.randn(5, 1, 2).double(), Irrep("1o"): torch.randn(5, 3, 3).double()})
    assert list(found) == [Irrep("1o")]
    assert found[Irrep("1o")].shape == (5, 3, 4)


TRIPLES = [
    (a, b, c)
    for a, b, c in itertools.combinations_with_replacement(range(5), 3)
    if a + b >= c and (a, b, c) != (0, 0, 0)
]


def complex_components(degree: int) -> np.ndarray:
    """Return the matrix from e3nn's real components to sympy's complex ones, complex128[2 l + 1, 2 l + 1].

    These are the usual real harmonics with the poles on y instead of z: x, y, z take the place of y, z, x. That is a
    rotation, which leaves invariants unchanged.
    """
    out = np.zeros((2 * degree + 1,) * 2, dtype=complex)
    for m in range(1, degree + 1):
        sign = (-1) ** m
        out[degree + m, [degree + m, degree - m]] = np.array([sign, 1j * sign]) / np.sqrt(2)
        out[degree - m, [degree + m, degree - m]] = np.array([1, -1j]) / np.sqrt(2)
    out[degree, degree] = 1
    return out


@pytest.mark.parametrize("degrees", TRIPLES, ids=str)
def test_couplings_are_the_3j_symbols_of_sympy(degrees: tuple[int, int, int]) -> None:
    symbols = np.zeros([2 * degree + 1 for degree in degrees])
    for place in itertools.product(*(range(-degree, degree + 1) for degree in degrees)):
        if sum(place) == 0:
            index = tuple(m + degree for m, degree in zip(place, degrees, strict=True))
            symbols[index] = float(sympy.physics.wigner.wigner_3j(*degrees, *place))
    a, b, c = (complex_components(degree) for degree in degrees)
    real = np.einsum("ijk,ia,jb,kc->abc", symbols, a, b, c)
    if sum(degrees) % 2:  # a product of an odd number of imaginary components
        real = real / 1j
    assert np.abs(real.imag).max() < 1e-14
    left, right, out = (Irrep(degree, (-1) ** degree) for degree in degrees)
    parity = left.p * right.p
    mine = coupling(Path(left, right, Irrep(out.l, parity))).numpy() / np.sqrt(out.dim)
    # The 3j symbol of real components is defined only up to a sign.
    assert min(np.abs(mine - sign * real.real).max() for sign in (1, -1)) < 1e-13


@pytest.mark.parametrize("degrees", TRIPLES, ids=str)
def test_couplings_are_invariant_and_keep_the_variance(degrees: tuple[int, int, int]) -> None:
    turn = Rotation.random(rng=np.random.default_rng(1)).as_matrix()
    left, right, out = (Irrep(degree, 1) for degree in degrees)
    matrix = coupling(Path(left, right, out)).numpy()
    a, b, c = (wigner(degree, 1, turn) for degree in degrees)
    assert np.abs(np.einsum("ijk,ia,jb,kc->abc", matrix, a, b, c) - matrix).max() < 1e-12
    # Components of unit variance give components of unit variance.
    assert np.allclose(np.einsum("ija,ijb->ab", matrix, matrix), np.eye(out.dim), atol=1e-13)


# Pseudoscalars first appear as products in the second interaction, and the last one produces what the energy reads.
PSEUDO = {
    "symmetry": "o3",
    "hidden_irreps": "3x0e + 2x0o + 2x1o + 2x1e",
    "l_max": 1,
    "correlation": 2,
    "n_interactions": 3,
}
# Networks whose layers have every irrep of their symmetry, up to some degree.
LAYERED: dict[str, dict[str, Any]] = {
    "natural": {"hidden_irreps": "3x0e + 2x1o + 2x2e", "n_interactions": 3},
    "o3": {
        "symmetry": "o3",
        "hidden_irreps": "3x0e + 2x0o + 2x1o + 2x1e + 2x2e + 2x2o + 2x3o + 2x3e",
        "l_max": 3,
        "correlation": 2,
        "n_interactions": 3,
    },
    "every head": EVERY_KIND,
    "gate": {**PSEUDO, "nonlinearity": "gate"},
    "mix": {**PSEUDO, "nonlinearity": "mix"},
    "so3": {"symmetry": "so3", "hidden_irreps": "3x0e + 2x1e + 2x2e", "n_interactions": 3},
}


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("name", list(LAYERED))
def test_features_of_every_layer_turn_by_their_wigner_matrices(name: str, mirror: bool) -> None:
    network = network_of(LAYERED[name])
    if mirror and network.config.symmetry == "so3":
        pytest.skip("this network has no mirror symmetry")
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 3, seed=4), CUTOFF)
    turn = Rotation.random(rng=np.random.default_rng(5)).as_matrix() * (-1 if mirror else 1)
    table = Table(*table_tensors(block, CUTOFF, torch.float64))
    species = network.species_index[table.atomic_number]
    with torch.no_grad():
        before = network.layers(species, table)
        after = network.layers(species, table._replace(vectors=table.vectors @ torch.from_numpy(turn.T)))
    made = [set(layer.channels_out) for layer in network.interactions]
    assert [set(features) for features in before] == made
    # A zero feature would prove nothing.
    hidden = {ir for _, ir in o3.Irreps(network.config.hidden_irreps)}
    assert hidden <= set().union(*made), "a requested irrep is never produced"
    for a, b in zip(before, after, strict=True):
        for irrep, values in a.items():
            matrix = torch.from_numpy(wigner(irrep.l, irrep.p, turn))
            largest = float(values.abs().max())
            assert largest > 1e-6, f"{irrep} is always zero"
            # Ten of float64's sixteen digits.
            assert torch.allclose(b[irrep], torch.einsum("ij,njc->nic", matrix, values), rtol=0, atol=1e-10 * largest)


def test_gathering_along_the_table_has_the_gradients_of_indexing() -> None:
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 4, seed=2), CUTOFF)
    _, vectors, neighbors, reverse, *_ = table_tensors(block, CUTOFF, torch.float64)
    padding = vectors[..., :1] == 2 * CUTOFF
    assert padding.any()
    x = torch.randn(2, len(neighbors), 4, dtype=torch.float64, requires_grad=True)
    # As in a network, values in padding slots are multiplied by zero.
    weight = torch.randn(2, neighbors.numel(), 4, dtype=torch.float64) * ~padding.reshape(-1, 1)

    def second_order(gathered: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (first,) = torch.autograd.grad((gathered**3 * weight).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), x)
        return first, second

    for mine, plain in zip(
        second_order(gather_senders(x, neighbors, reverse)), second_order(x[:, neighbors.reshape(-1)]), strict=True
    ):
        assert torch.allclose(mine, plain, atol=1e-12)


@pytest.mark.parametrize("of_pairs", [False, True])
def test_readings_have_the_gradients_of_indexing(of_pairs: bool) -> None:
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 4, seed=2), CUTOFF)
    table = Table(*table_tensors(block, CUTOFF, torch.float64))
    slots, dim = Slots(table), 3
    index, again, places = (slots.pair, slots.pair_again, slots.pair_places) if of_pairs else slots.senders(dim)
    assert torch.equal(index, again)
    rows = len(table.pair_slot) if of_pairs else len(table.neighbors) * dim
    x = torch.randn(rows, 4, dtype=torch.float64, requires_grad=True)
    padding = (table.vectors[..., 0] == 2 * CUTOFF).unsqueeze(1).expand(index.shape)
    assert padding.any()
    weight = torch.randn(*index.shape, 4, dtype=torch.float64) * ~padding.unsqueeze(-1)

    def second_order(found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (first,) = torch.autograd.grad((found**3 * weight).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), x)
        return first, second

    for mine, plain in zip(second_order(gather_rows(x, index, places)), second_order(x[index]), strict=True):
        assert torch.allclose(mine, plain, atol=1e-12)


def test_irreps_of_each_symmetry() -> None:
    assert [str(ir) for ir in natural_irreps(3)] == ["0e", "1o", "2e", "3o"]
    assert [str(ir) for ir in all_irreps(2, "natural")] == ["0e", "1o", "2e"]
    assert [str(ir) for ir in all_irreps(2, "so3")] == ["0e", "1e", "2e"]
    assert {str(ir) for ir in all_irreps(2, "o3")} == {"0e", "0o", "1e", "1o", "2e", "2o"}


def test_products_of_irreps_multiply_their_parities() -> None:
    everything = all_irreps(2, "o3")
    for path in product_paths(everything, everything, all_irreps(4, "o3")):
        assert path.out.p == path.left.p * path.right.p
        assert abs(path.left.l - path.right.l) <= path.out.l <= path.left.l + path.right.l
