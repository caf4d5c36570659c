"""The algebra: harmonics and products against e3nn, and every layer's features against Wigner matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from e3nn import o3
from equiscreen.export.probes import probe_structures
from equiscreen.model.data import table_tensors
from equiscreen.model.gather import gather_senders
from equiscreen.model.irreps import ChannelwiseProduct, Irrep, IrrepsLinear, SphericalHarmonics, natural_irreps
from equiscreen.model.network import Interaction
from equiscreen.pipeline import GraphBlock

from ..conftest import CUTOFF, ELEMENTS, small_network


@pytest.mark.parametrize("l_max", [0, 1, 2, 3, 5])
def test_harmonics_are_those_of_e3nn(l_max: int) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=-1)
    expected = o3.spherical_harmonics(list(range(l_max + 1)), vectors, normalize=False, normalization="component")
    assert torch.allclose(SphericalHarmonics(l_max).double()(vectors), expected, atol=1e-13)


def test_products_are_those_of_e3nn() -> None:
    left, right = [Irrep("0e"), Irrep("1o"), Irrep("2e")], [Irrep("1o"), Irrep("1e")]
    out = [Irrep(degree, parity) for degree in range(4) for parity in (1, -1)]
    product = ChannelwiseProduct(left, right, out, channels=3).double()
    a = {ir: torch.randn(5, ir.dim, 3, dtype=torch.float64) for ir in left}
    b = {ir: torch.randn(5, ir.dim, 3, dtype=torch.float64) for ir in right}
    found = product(a, b)
    seen: dict[Irrep, int] = {}
    for path in product.paths:
        theirs = o3.FullTensorProduct(o3.Irreps([(1, path.left)]), o3.Irreps([(1, path.right)]), [path.out]).double()
        start = seen.get(path.out, 0)
        seen[path.out] = start + 3
        for channel in range(3):
            expected = theirs(a[path.left][:, :, channel], b[path.right][:, :, channel])
            mine = found[path.out][:, :, start + channel]
            assert torch.allclose(mine, expected, atol=1e-12), path
    assert seen == product.channels_out


def test_linear_maps_mix_channels_of_one_irrep_only() -> None:
    linear = IrrepsLinear({Irrep("0e"): 2, Irrep("1o"): 3}, {Irrep("1o"): 4, Irrep("2e"): 1}).double()
    found = linear({Irrep("0e"): torch.randn(5, 1, 2).double(), Irrep("1o"): torch.randn(5, 3, 3).double()})
    assert list(found) == [Irrep("1o")]
    assert found[Irrep("1o")].shape == (5, 3, 4)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("hidden", ["3x0e + 2x1o + 2x2e", "3x0e + 2x0o + 2x1o + 2x1e + 2x2e"])
def test_features_of_every_layer_turn_by_their_wigner_matrices(hidden: str, mirror: bool) -> None:
    network = small_network(hidden, n_interactions=3)
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 3, seed=4), CUTOFF)
    # By angles: e3nn's way from a matrix to angles is an arc cosine, which keeps half the digits. Its generators of
    # rotation have torch's default dtype.
    angles = tuple(torch.tensor(a, dtype=torch.float64) for a in (0.4, 1.1, -2.3))
    inversions = torch.tensor(1 if mirror else 0)
    turn = o3.angles_to_matrix(*angles) * (-1 if mirror else 1)
    torch.set_default_dtype(torch.float64)
    try:
        wigner_matrices = {ir: ir.D_from_angles(*angles, inversions) for _, ir in o3.Irreps(hidden)}
    finally:
        torch.set_default_dtype(torch.float32)
    inputs = table_tensors(block, CUTOFF, torch.float64)
    turned = (inputs[0], inputs[1] @ turn.T, *inputs[2:])
    features: list[dict[Irrep, torch.Tensor]] = []
    for layer in network.interactions:
        assert isinstance(layer, Interaction)
        layer.register_forward_hook(lambda _module, _inputs, out: features.append(out))
    network(*inputs)
    network(*turned)
    before, after = features[:3], features[3:]
    seen = set()
    for a, b in zip(before, after, strict=True):
        assert a.keys() == b.keys()
        for irrep in a:
            wigner = wigner_matrices[irrep]
            expected = torch.einsum("ij,njc->nic", wigner, a[irrep])
            largest = float(a[irrep].detach().abs().max())
            assert torch.allclose(b[irrep], expected, rtol=0, atol=1e-10 * largest + 1e-14), irrep
            if largest > 1e-6:
                seen.add(irrep)
    assert seen == {ir for _, ir in o3.Irreps(hidden)}, "a feature is always zero"


def test_gathering_along_the_table_has_the_gradients_of_indexing() -> None:
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 4, seed=2), CUTOFF)
    _, vectors, neighbors, reverse, *_ = table_tensors(block, CUTOFF, torch.float64)
    padding = vectors[..., :1] == 2 * CUTOFF
    assert padding.any()
    x = torch.randn(len(neighbors), 4, dtype=torch.float64, requires_grad=True)
    # As in a network, what padding slots hold is multiplied by zero.
    weight = torch.randn(*neighbors.shape, 4, dtype=torch.float64) * ~padding

    def second_order(gathered: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (first,) = torch.autograd.grad((gathered**3 * weight).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), x)
        return first, second

    for mine, plain in zip(
        second_order(gather_senders(x, neighbors, reverse)), second_order(x[neighbors]), strict=True
    ):
        assert torch.allclose(mine, plain, atol=1e-12)


def test_natural_irreps() -> None:
    assert [str(ir) for ir in natural_irreps(3)] == ["0e", "1o", "2e", "3o"]
    assert np.sum([ir.dim for ir in natural_irreps(3)]) == 16
