"""Conformance of networks in PyTorch to the potential laws."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from equiscreen.conformance.laws import crystals, evaluate
from equiscreen.conformance.outputs import OutputKind
from equiscreen.model.equivariance.tensors import TENSORS
from equiscreen.model.networks.ensemble import EnsemblePotential
from equiscreen.model.networks.reflection import mirror_violation
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import Structure
from equiscreen.pipeline.graphs.potential import Potential

from ..conftest import CUTOFF, ELEMENTS
from .laws import NetworkLaws
from .networks import (
    ALLEGRO,
    EVERY_KIND,
    MACE,
    NATURAL_HEADS,
    NEQUIP,
    NETWORKS,
    allegro_of,
    mace_of,
    nequip_of,
    network_of,
)
from .tensors import kinds_of

# Variants whose laws only the slow tests check.
LONG = ("mix", "bessel", "deep")


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in NETWORKS], scope="module"
)
def torch_potential(request: pytest.FixtureRequest) -> TorchPotential:
    return TorchPotential(network_of(NETWORKS[request.param]))


class TestEagerFloat64(NetworkLaws):
    @pytest.fixture(autouse=True)
    def _kind(self, torch_potential: TorchPotential) -> None:
        config = torch_potential.network.config
        self.reflections = config.symmetry != "so3"

    @pytest.fixture
    def potential(self, torch_potential: TorchPotential) -> Potential:
        return torch_potential

    @pytest.fixture
    def kinds(self, torch_potential: TorchPotential) -> Mapping[str, OutputKind]:
        return kinds_of(torch_potential.network.config.heads)


class TestEagerFloat32(NetworkLaws):
    tolerance = 2e-5
    float64 = False

    @pytest.fixture
    def potential(self) -> Potential:
        return TorchPotential(network_of({"heads": NATURAL_HEADS}, dtype=torch.float32))

    @pytest.fixture
    def kinds(self) -> Mapping[str, OutputKind]:
        return kinds_of(NATURAL_HEADS)


@pytest.fixture(params=list(NEQUIP), scope="module")
def nequip_potential(request: pytest.FixtureRequest) -> TorchPotential:
    return TorchPotential(nequip_of(NEQUIP[request.param]))


class TestNequip(NetworkLaws):
    isolated = None  # their skip connections contribute to it
    near_the_cutoff = (1e-2, 5e-2)  # SevenNet's envelope vanishes as the second power, its slope as the first

    @pytest.fixture(autouse=True)
    def _kind(self, nequip_potential: TorchPotential) -> None:
        self.reflections = nequip_potential.network.config.symmetry != "so3"

    @pytest.fixture
    def potential(self, nequip_potential: TorchPotential) -> Potential:
        return nequip_potential


@pytest.fixture(params=list(MACE), scope="module")
def mace_potential(request: pytest.FixtureRequest) -> TorchPotential:
    return TorchPotential(mace_of(MACE[request.param]))


class TestMace(NetworkLaws):
    isolated = None  # the atoms' own features contribute to it

    @pytest.fixture
    def potential(self, mace_potential: TorchPotential) -> Potential:
        return mace_potential


@pytest.fixture(params=list(ALLEGRO), scope="module")
def allegro_potential(request: pytest.FixtureRequest) -> TorchPotential:
    return TorchPotential(allegro_of(ALLEGRO[request.param]))


class TestAllegro(NetworkLaws):
    @pytest.fixture
    def potential(self, allegro_potential: TorchPotential) -> Potential:
        return allegro_potential


@pytest.fixture(scope="module")
def ensemble() -> EnsemblePotential:
    return EnsemblePotential([network_of({"heads": NATURAL_HEADS, "correlation": 2}, seed) for seed in (1, 2)])


class TestEnsemble(NetworkLaws):
    @pytest.fixture
    def potential(self, ensemble: EnsemblePotential) -> Potential:
        return ensemble

    @pytest.fixture
    def kinds(self) -> Mapping[str, OutputKind]:
        return kinds_of(NATURAL_HEADS)


@pytest.mark.parametrize("name", ["natural", "o3", "every head"])
def test_networks_with_parity_know_mirrors(name: str) -> None:
    potential = TorchPotential(network_of(NETWORKS[name]))
    for output, violation in mirror_violation(potential, potential.network.config).items():
        assert violation <= 1e-12, output  # rounding of numbers of order one


def test_networks_without_parity_do_not() -> None:
    potential = TorchPotential(network_of(NETWORKS["so3"]))
    found = mirror_violation(potential, potential.network.config)
    assert len(found) == 6  # all outputs except the dipole, which is undefined for crystals
    for output, violation in found.items():
        # Well above rounding (1e-14) is enough: little of an untrained energy changes under a mirror.
        assert violation > 1e-9, output


def test_the_mirror_violation_is_that_of_the_structures() -> None:
    """The energy difference between mirror images agrees in magnitude with the reported violation."""
    potential = TorchPotential(network_of(NETWORKS["so3"]))
    made = crystals(ELEMENTS, CUTOFF)
    mirrored = [Structure.from_fractional(s.atomic_number, -s.cell, s.frac_coord) for s in made]
    before, after = evaluate(potential, made), evaluate(potential, mirrored)
    atoms = np.array([len(s) for s in made])
    differences = np.abs(before.energy - after.energy) / atoms
    reported = mirror_violation(potential, potential.network.config)["energy eV/atom"]
    assert reported / 30 <= differences.max() <= reported * 30  # different crystals of the same kind


def test_all_kinds_of_heads_are_there() -> None:
    assert {kind.tensor for kind in EVERY_KIND["heads"].values()} >= set(TENSORS)
