"""Networks as PyTorch modules: presets, outputs, radial functions and constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from e3nn.o3 import Irrep
from equiscreen.model.config.network import PRESETS, NetworkConfig
from equiscreen.model.data.batches import table_tensors
from equiscreen.model.layers.radial import RadialBasis, _bessel, polynomial_envelope
from equiscreen.model.layers.sine import sine
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.statistics import DataStatistics
from equiscreen.pipeline import GraphBlock
from equiscreen.pipeline.structures.random_crystals import probe_structures
from hypothesis import given
from hypothesis import strategies as st

from ...conformance.networks import (
    ALLEGRO,
    EVERY_HEAD,
    EVERY_KIND,
    NATURAL_HEADS,
    NEQUIP,
    NETWORKS,
    allegro_of,
    nequip_of,
    network_of,
)
from ...conftest import CUTOFF, ELEMENTS

PRESET_IRREPS = {
    ("small", "natural"): "16x0e + 8x1o + 4x2e",
    ("medium", "natural"): "32x0e + 16x1o + 8x2e",
    ("large", "natural"): "64x0e + 32x1o + 16x2e + 8x3o",
    ("small", "so3"): "16x0e + 8x1e + 4x2e",
    ("small", "o3"): "16x0e + 4x0o + 8x1o + 2x1e + 4x2e + 2x2o",
    ("medium", "o3"): "32x0e + 8x0o + 16x1o + 4x1e + 8x2e + 2x2o",
}


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, ...]:
    return table_tensors(
        GraphBlock.from_structures(probe_structures(ELEMENTS, 3, seed=4), CUTOFF), CUTOFF, torch.float64
    )


@pytest.mark.parametrize(("preset", "symmetry"), list(PRESET_IRREPS))
def test_presets_have_the_irreps_that_are_documented(preset: Any, symmetry: Any) -> None:
    config = NetworkConfig(preset=preset, symmetry=symmetry)
    assert config.hidden_irreps == PRESET_IRREPS[preset, symmetry]
    assert config.correlation == PRESETS[preset]["correlation"]


def test_without_a_cutoff_there_is_no_network() -> None:
    with pytest.raises(ValueError, match="cutoff"):
        EquivariantNetwork(NetworkConfig(), ELEMENTS, DataStatistics((0.0,) * 3, (1.0,) * 3))


@pytest.mark.parametrize(
    "settings",
    [EVERY_KIND, {"energy": False, "heads": NATURAL_HEADS}, {}],
    ids=["every head", "heads only", "energy only"],
)
def test_outputs_are_what_forward_returns(settings: dict[str, Any], inputs: tuple[torch.Tensor, ...]) -> None:
    network = network_of(settings)
    found = network(*inputs)
    assert len(found) == len(network.outputs)
    rows = {"structure": 3, "atom": len(inputs[0])}
    for spec, values in zip(network.outputs, found, strict=True):
        assert values.shape == (rows[spec.per], *spec.shape), spec.name
        assert values.dtype == torch.float64
    names = [spec.name for spec in network.outputs]
    assert names == [*(["energy", "forces", "stress"] if network.config.energy else []), *network.config.heads]


def test_heads_of_float32_networks_are_summed_in_float64(inputs: tuple[torch.Tensor, ...]) -> None:
    single = network_of({"heads": NATURAL_HEADS}, dtype=torch.float32)
    found = single(inputs[0], inputs[1].float(), *inputs[2:])
    assert {spec.name: values.dtype for spec, values in zip(single.outputs, found, strict=True)} == {
        spec.name: torch.float32 if spec.name == "forces" else torch.float64 for spec in single.outputs
    }
    # Constants in the units of the labels survive a cast to float32 and back.
    doubled = single.double()
    exact = network_of({"heads": NATURAL_HEADS})
    assert torch.equal(doubled.reference_energies, exact.reference_energies)
    for name in NATURAL_HEADS:
        assert torch.equal(doubled.heads[name].element_shifts, exact.heads[name].element_shifts)


def test_the_last_interaction_makes_what_the_heads_read() -> None:
    heads = {"piezo": EVERY_HEAD["piezo"]}
    network = network_of(
        {"symmetry": "o3", "hidden_irreps": "2x0e + 2x1o", "l_max": 3, "correlation": 2, "heads": heads}
    )
    made = network.interactions[-1].channels_out
    assert {Irrep("1o"), Irrep("2o"), Irrep("3o")} <= set(made)
    assert Irrep("2e") not in made


def test_a_training_network_keeps_the_graph_of_its_gradients(inputs: tuple[torch.Tensor, ...]) -> None:
    network = network_of({"heads": NATURAL_HEADS, "correlation": 2}).train()
    found = network.predict(*inputs)
    assert found.forces is not None
    loss = (found.forces**2).sum() + sum((x**2).sum() for x in found.heads.values())
    loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


# --- radial functions -------------------------------------------------------------------------------------------------


def radial_basis(**settings: Any) -> RadialBasis:
    return RadialBasis(NetworkConfig(cutoff=CUTOFF, **settings), CUTOFF).double()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 2e-15), (torch.float32, 1e-6)])
def test_sines_are_sines_without_calling_sine(dtype: torch.dtype, rounding: float) -> None:
    x = torch.linspace(-40, 40, 20_001, dtype=torch.float64)
    given = x.to(dtype).requires_grad_()
    found = sine(given)
    (slope,) = torch.autograd.grad(found.sum(), given, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), given)
    exact = given.detach().double()
    # The slope is the sine of the angle plus a quarter turn, and that sum is rounded.
    assert (found - torch.sin(exact)).abs().max() < rounding
    assert (slope - torch.cos(exact)).abs().max() < 5 * rounding
    assert (curvature + torch.sin(exact)).abs().max() < 10 * rounding


def test_bessel_functions_are_sines_over_the_distance() -> None:
    u = torch.linspace(1e-3, 1, 2_001, dtype=torch.float64).unsqueeze(1)
    n = torch.arange(1, 9, dtype=torch.float64)
    expected = math.sqrt(2) * torch.sin(n * math.pi * u) / u
    assert ((_bessel(u, 8) - expected).abs() * u).max() < 1e-14


@pytest.mark.parametrize("power", [2, 3, 5, 6, 12])
def test_the_envelope_ends_with_two_derivatives_of_zero(power: int) -> None:
    u = torch.tensor([1e-9, 0.5, 1 - 1e-12, 1.0, 1.5], dtype=torch.float64, requires_grad=True)
    envelope = polynomial_envelope(u, power)
    (first,) = torch.autograd.grad(envelope.sum(), u, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), u)
    value, first = envelope.detach(), first.detach()
    assert value[0] == pytest.approx(1)
    # The third derivative is p (p + 1) (p + 2): what it adds over the last 1e-12, and rounding of terms of this size.
    assert value[2:].abs().max() < 1e-12
    assert first[2:].abs().max() < 1e-11
    assert second[2:].abs().max() < 1e-8
    assert value[1] > 0
    assert first[1] < 0


@pytest.mark.parametrize("basis", ["chebyshev", "bessel"])
@given(st.floats(1.0, 3.0))
def test_radial_functions_vanish_beyond_the_cutoff(basis: str, beyond: float) -> None:
    radial = radial_basis(basis=basis)
    distance = torch.full((1, 1, 1), CUTOFF * beyond, dtype=torch.float64)
    for functions in radial(distance):
        assert not functions.any()


def test_chebyshev_polynomials_are_cosines_of_multiples() -> None:
    radial = radial_basis()
    angles = torch.linspace(0, math.pi, 50, dtype=torch.float64)
    u = (1 - torch.cos(angles)) / 2
    kept: list[torch.Tensor] = []
    radial.perceptrons[0].register_forward_pre_hook(lambda _module, given: kept.append(given[0]))
    radial((u * CUTOFF).view(-1, 1, 1))
    expected = (
        torch.stack([torch.cos(n * angles) for n in range(radial.n_basis)], dim=1)
        * polynomial_envelope(u, radial.envelope_power)[:, None]
    )
    assert np.allclose(kept[0][:, 0].detach(), expected, atol=1e-13)


@pytest.mark.parametrize("kind", ["natural, correlation 3", "bessel", *NEQUIP, *ALLEGRO])
def test_gradients_of_forces_by_weights_are_those_of_finite_differences(kind: str) -> None:
    """Training on forces and stresses relies on these second derivatives."""
    made = allegro_of if kind in ALLEGRO else nequip_of if kind in NEQUIP else network_of
    network = made({**ALLEGRO, **NEQUIP, **NETWORKS}[kind])
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 3, seed=8, max_atoms=5), CUTOFF)
    table = table_tensors(block, CUTOFF, torch.float64)
    rng = torch.Generator().manual_seed(2)
    weights = list(network.parameters())
    direction = [torch.randn(x.shape, generator=rng, dtype=torch.float64) * x.abs().mean() for x in weights]

    def loss() -> torch.Tensor:
        found = network.predict(*table)
        assert found.forces is not None
        assert found.virial is not None
        return (found.forces**2).sum() + found.virial.sum()

    network.train()
    slopes = torch.autograd.grad(loss(), weights, allow_unused=True)
    slope = sum(float((s * d).sum()) for s, d in zip(slopes, direction, strict=True) if s is not None)
    step, values = 1e-5, []
    before = [x.detach().clone() for x in weights]
    for factor in (-2, -1, 1, 2):
        with torch.no_grad():
            for x, start, d in zip(weights, before, direction, strict=True):
                x.copy_(start + factor * step * d)
        values.append(float(loss().detach()))
    difference = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    assert slope == pytest.approx(difference, rel=1e-6)
