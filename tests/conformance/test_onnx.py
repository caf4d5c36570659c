"""Conformance of exported files in ONNX Runtime to the potential laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from equiscreen.conformance.outputs import OutputKind
from equiscreen.export import OnnxPotential
from equiscreen.export.exporter import lower_and_check
from equiscreen.model.checkpoint import ModelCard
from equiscreen.model.networks.base import Network
from equiscreen.pipeline import GraphBlock
from equiscreen.pipeline.graphs.potential import Potential
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ..conftest import ELEMENTS, traced_once
from .laws import NetworkLaws
from .networks import ALLEGRO, EVERY_HEAD, MACE, NEQUIP, allegro_of, mace_of, nequip_of, network_of
from .tensors import kinds_of

# Narrow and with one interaction, cheap enough for tests that run often.
SMALL: dict[str, Any] = {
    "symmetry": "o3",
    "hidden_irreps": "2x0e + 2x1o",
    "n_interactions": 1,
    "correlation": 2,
    "n_radial": 2,
    "heads": {name: EVERY_HEAD[name] for name in ("total", "dipole", "spin", "permittivity")},
}
# Pseudoscalars need a second interaction: the simplest product that is odd under inversion has three vectors.
LARGER = {
    **SMALL,
    "hidden_irreps": "2x0e + 2x1o + 2x1e",
    "n_interactions": 2,
    "heads": {
        name: EVERY_HEAD[name]
        for name in ("handedness", "charge", "hardness", "shielding", "born", "gyration", "several")
    },
}
CHIRAL = {
    **SMALL,
    "symmetry": "so3",
    "hidden_irreps": "2x0e + 2x1e",
    "l_max": 1,
    "heads": {name: EVERY_HEAD[name] for name in ("gap", "polarity")},
}

# Of NequIP's kind, with one interaction less and no more than degree 2; as they are in `networks` they are slow.
FEWER_PATHS = {
    "sevennet": ("3x0e + 2x1e + 2x2e", "3x0e"),
    "nequix": ("3x0e + 2x1o + 2x2e", "3x0e"),
    "nequip": ("3x0e + 2x1o + 2x2e", "3x0e + 2x1o + 2x2e", "3x0e"),
}
SHORT: dict[str, dict[str, Any]] = {
    kind: {**NEQUIP[kind], "hidden_irreps": irreps, "l_max": 2} for kind, irreps in FEWER_PATHS.items()
}
WHOLE = {f"whole {kind}": settings for kind, settings in NEQUIP.items()}


def potential_of(settings: Mapping[str, Any]) -> OnnxPotential:
    """Export a network as float64 and load it."""
    return loaded(network_of(settings))


def loaded(network: Network) -> OnnxPotential:
    """Export a network and load it."""
    with traced_once():
        model, _ = lower_and_check([network], ModelCard("so3" if network.config.symmetry == "so3" else "o3"))
    return OnnxPotential(model.SerializeToString())


@pytest.fixture(scope="session")
def small() -> OnnxPotential:
    return potential_of(SMALL)


@pytest.fixture(scope="session")
def chiral() -> OnnxPotential:
    return potential_of(CHIRAL)


@pytest.fixture(scope="session")
def larger() -> OnnxPotential:
    return potential_of(LARGER)


@pytest.fixture(
    params=[
        *(pytest.param(kind, marks=[] if kind == "nequip" else pytest.mark.slow) for kind in SHORT),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in WHOLE),
    ],
    scope="session",
)
def nequip_potential(request: pytest.FixtureRequest) -> OnnxPotential:
    return loaded(nequip_of((SHORT | WHOLE)[request.param]))


@pytest.fixture(
    params=[kind if kind == "soft" else pytest.param(kind, marks=pytest.mark.slow) for kind in MACE], scope="session"
)
def mace_potential(request: pytest.FixtureRequest) -> OnnxPotential:
    return loaded(mace_of(MACE[request.param]))


@pytest.fixture(
    params=[kind if kind == "oam" else pytest.param(kind, marks=pytest.mark.slow) for kind in ALLEGRO], scope="session"
)
def allegro_potential(request: pytest.FixtureRequest) -> OnnxPotential:
    return loaded(allegro_of(ALLEGRO[request.param]))


class TestOnnxFloat64(NetworkLaws):
    @pytest.fixture
    def potential(self, exported: Callable[[str], Path]) -> Potential:
        return OnnxPotential.load(exported("float64"))


class TestOnnxHeads(NetworkLaws):
    @pytest.fixture
    def potential(self, small: OnnxPotential) -> Potential:
        return small

    @pytest.fixture
    def kinds(self) -> Mapping[str, OutputKind]:
        return kinds_of(SMALL["heads"])


@pytest.mark.slow
class TestOnnxManyHeads(NetworkLaws):
    @pytest.fixture
    def potential(self, larger: OnnxPotential) -> Potential:
        return larger

    @pytest.fixture
    def kinds(self) -> Mapping[str, OutputKind]:
        return kinds_of(LARGER["heads"])


class TestOnnxWithoutParity(NetworkLaws):
    reflections = False

    @pytest.fixture
    def potential(self, chiral: OnnxPotential) -> Potential:
        return chiral

    @pytest.fixture
    def kinds(self) -> Mapping[str, OutputKind]:
        return kinds_of(CHIRAL["heads"])


class TestOnnxNequip(NetworkLaws):
    isolated = None
    near_the_cutoff = (1e-2, 5e-2)

    @pytest.fixture(autouse=True)
    def _kind(self, nequip_potential: OnnxPotential) -> None:
        self.reflections = nequip_potential.metadata.symmetry != "so3"

    @pytest.fixture
    def potential(self, nequip_potential: OnnxPotential) -> Potential:
        return nequip_potential


class TestOnnxMace(NetworkLaws):
    isolated = None

    @pytest.fixture
    def potential(self, mace_potential: OnnxPotential) -> Potential:
        return mace_potential


class TestOnnxAllegro(NetworkLaws):
    @pytest.fixture
    def potential(self, allegro_potential: OnnxPotential) -> Potential:
        return allegro_potential


class TestOnnxFloat32(NetworkLaws):
    tolerance = 2e-5
    float64 = False

    @pytest.fixture
    def potential(self, exported: Callable[[str], Path]) -> Potential:
        return OnnxPotential.load(exported("float32"))

    def test_a_hundred_runs_with_one_and_two_threads_agree_bitwise(self, exported: Callable[[str], Path]) -> None:
        # One table of several thousand slots, large enough for ONNX Runtime to divide it among threads.
        potentials = [OnnxPotential.load(exported("float32"), threads=n, slots=50_000) for n in (1, 2)]
        block = GraphBlock.from_structures(probe_structures(ELEMENTS, 40, seed=8), potentials[0].cutoff)
        assert block.n_edges.sum() > 4_000
        first = potentials[0].evaluate(block)
        for potential in potentials:
            for _ in range(100):
                again = potential.evaluate(block)
                for name in ("energy", "forces", "stress"):
                    assert np.array_equal(getattr(first, name), getattr(again, name))
