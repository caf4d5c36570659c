"""The laws, for networks in PyTorch."""

from __future__ import annotations

import pytest
from equiscreen.model.potential import TorchPotential

from ..conftest import small_network
from .laws import PotentialLaws

NETWORKS = {
    "natural": {},
    "o3": {"hidden_irreps": "3x0e + 2x0o + 2x1o + 2x1e + 2x2e + 2x2o", "n_interactions": 3},
    "deep": {"hidden_irreps": "4x0e + 2x1o", "n_interactions": 3, "correlation": 2, "l_max": 3},
    "shallow": {"hidden_irreps": "4x0e", "n_interactions": 1, "correlation": 1, "l_max": 0},
}


@pytest.fixture(params=list(NETWORKS), scope="module")
def torch_network(request: pytest.FixtureRequest) -> TorchPotential:
    return TorchPotential(small_network(**NETWORKS[request.param]))


class TestEagerFloat64(PotentialLaws):
    @pytest.fixture
    def potential(self, torch_network: TorchPotential) -> TorchPotential:
        return torch_network


class TestEagerFloat32(PotentialLaws):
    tolerance = 2e-5
    float64 = False

    @pytest.fixture
    def potential(self) -> TorchPotential:
        return TorchPotential(small_network().float())
