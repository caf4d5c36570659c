"""Neumann's principle: a predicted tensor has the symmetry of its crystal, and no more than that requires."""

from __future__ import annotations

import numpy as np
import pytest
from equiscreen.conformance.laws import evaluate
from equiscreen.model.config.config import Config
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline.errors import ConfigError
from equiscreen.pipeline.structures.symmetry import find_symmetry, point_group

from .networks import EVERY_HEAD, EVERY_HIDDEN, network_of
from .prototypes import CENTROSYMMETRIC, CHIRAL, GROUPS, PROTOTYPE_ELEMENTS, mirrored, prototype
from .tensors import Array, turned

HEADS = {
    **{name: EVERY_HEAD[name] for name in ("handedness", "polarity", "permittivity", "gyration", "octopole")},
    **{name: EVERY_HEAD[name] for name in ("piezo", "stiffness")},
}
# Float64 rounding of numbers of order one, after sums over some fifty neighbours.
ROUNDING = 1e-11


@pytest.fixture(scope="module")
def potential() -> TorchPotential:
    """An untrained network with 0o, 1o, 1e, 2e, 2o, 3o and 4e."""
    settings = {"symmetry": "o3", "hidden_irreps": EVERY_HIDDEN, "l_max": 4, "correlation": 2, "energy": False}
    return TorchPotential(network_of({**settings, "heads": HEADS}, elements=PROTOTYPE_ELEMENTS))


def tensors(potential: TorchPotential, name: str) -> dict[str, Array]:
    """Evaluate the heads for a prototype."""
    return {head: values[0] for head, values in evaluate(potential, [prototype(name)]).properties.items()}


@pytest.mark.parametrize("name", list(GROUPS))
def test_the_prototypes_have_the_groups_that_are_said(name: str) -> None:
    structure, (order, number) = prototype(name), GROUPS[name]
    found = find_symmetry(structure, 1e-3)
    assert found is not None
    assert found.number == number
    operations = point_group(structure)
    assert len(operations) == order
    assert (np.linalg.det(operations).min() > 0) == (name in CHIRAL)
    if name == "quartz":
        image = find_symmetry(mirrored(structure), 1e-3)
        assert image is not None
        assert image.number == 154


@pytest.mark.parametrize("name", list(GROUPS))
def test_predicted_tensors_have_the_symmetry_of_their_crystal(potential: TorchPotential, name: str) -> None:
    found = tensors(potential, name)
    for operation in point_group(prototype(name)):
        for head, kind in HEADS.items():
            values = found[head]
            # The scale is at least one, since components that symmetry forbids are zero up to rounding.
            difference = np.abs(turned(values[None], kind, operation)[0] - values).max()
            assert difference <= ROUNDING * max(1.0, np.abs(values).max()), head


@pytest.mark.parametrize("name", list(GROUPS))
def test_tensors_of_odd_rank_vanish_in_centrosymmetric_crystals_only(potential: TorchPotential, name: str) -> None:
    # All point groups without inversion are piezoelectric, except 432, which does not occur here.
    piezo = np.abs(tensors(potential, name)["piezo"]).max()
    assert piezo <= ROUNDING if name in CENTROSYMMETRIC else piezo > 1e-6


def test_zincblende_has_the_one_piezoelectric_constant_of_its_group(potential: TorchPotential) -> None:
    piezo = tensors(potential, "zincblende")["piezo"]
    e14 = piezo[0, 3]
    allowed = np.zeros((3, 6))
    allowed[[0, 1, 2], [3, 4, 5]] = e14
    assert abs(e14) > 1e-6
    assert np.abs(piezo - allowed).max() <= ROUNDING


def test_only_polar_crystals_have_a_vector(potential: TorchPotential) -> None:
    for name in GROUPS:
        vector = tensors(potential, name)["polarity"]
        polar = name in ("wurtzite", "tetragonal perovskite")
        assert np.abs(vector[:2]).max() <= ROUNDING, name
        assert (abs(vector[2]) > 1e-6) if polar else (abs(vector[2]) <= ROUNDING), name


@pytest.mark.parametrize("name", ["zincblende", "perovskite", "FeSi", "ullmannite"])
def test_cubic_crystals_are_isotropic_at_rank_two_and_not_at_rank_four(potential: TorchPotential, name: str) -> None:
    """With harmonics up to l = 2 only, every cubic crystal would have a Zener ratio of one."""
    found = tensors(potential, name)
    permittivity = found["permittivity"]
    assert np.abs(permittivity - np.eye(3) * permittivity[0, 0]).max() <= ROUNDING
    c = found["stiffness"]
    anisotropy = c[0, 0] - c[0, 1] - 2 * c[3, 3]
    assert abs(anisotropy) > 1e-6 * np.abs(c).max()
    assert np.abs(c[:3, 3:]).max() <= ROUNDING


def test_a_network_that_could_only_be_isotropic_is_refused() -> None:
    content = {"network": {"l_max": 3, "heads": {"stiffness": {"tensor": "elastic"}}}}
    with pytest.raises(ConfigError, match=r"heads.stiffness contains l = 4.*set `l_max: 4`"):
        Config.parse(content, "network.yaml")
