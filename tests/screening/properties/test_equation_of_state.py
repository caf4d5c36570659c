"""Equations of state: the fit recovers its own constants, and agrees with the elastic tensor."""

from __future__ import annotations

import ase.build
import numpy as np
import pytest
from equiscreen.pipeline import Structure
from equiscreen.pipeline.errors import ConfigError
from equiscreen.screening.properties.materials import Protocol, compute_materials
from equiscreen.screening.properties.mechanics.equation_of_state import EquationOfState, birch_murnaghan
from equiscreen.screening.properties.presets import PRESETS
from equiscreen.screening.properties.protocol import PROPERTY_STATUSES
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ...emt_potential import EmtPotential


def third_order(volumes: NDArray[np.float64], energy: float, volume: float, bulk: float, slope: float) -> object:
    """The equation as in textbooks."""
    x = (volume / volumes) ** (2 / 3)
    return energy + 9 * volume * bulk / 16 * ((x - 1) ** 3 * slope + (x - 1) ** 2 * (6 - 4 * x))


@given(
    energy=st.floats(-100, 0),
    volume=st.floats(10, 1000),
    bulk=st.floats(0.05, 3),
    slope=st.floats(2, 7),
    place=st.floats(0.98, 1.02),
)
def test_the_fit_recovers_its_constants(energy: float, volume: float, bulk: float, slope: float, place: float) -> None:
    volumes = np.linspace(0.94, 1.06, 9) * volume * place
    found = birch_murnaghan(volumes, third_order(volumes, energy, volume, bulk, slope))  # type: ignore[arg-type]
    assert found is not None
    assert found.volume == pytest.approx(volume, rel=1e-6)
    assert found.energy == pytest.approx(energy, abs=1e-6)
    assert found.bulk_modulus == pytest.approx(bulk, rel=1e-5)
    assert found.derivative == pytest.approx(slope, rel=1e-3)
    assert found.r_squared == pytest.approx(1.0)


def test_without_a_minimum_there_is_no_fit() -> None:
    volumes = np.linspace(0.94, 1.06, 9) * 40
    assert birch_murnaghan(volumes, -0.01 * volumes) is None
    assert birch_murnaghan(volumes, third_order(volumes, 0.0, 60.0, 0.5, 4.0)) is None  # type: ignore[arg-type]


def test_the_bulk_modulus_is_that_of_the_elastic_tensor() -> None:
    """Both describe the same energy surface: K of a cubic crystal is (C11 + 2 C12) / 3."""
    potential = EmtPotential()
    protocol = Protocol.of(PRESETS["default"], ["elastic", "eos"], potential)
    crystals = [Structure.from_ase(ase.build.bulk(symbol)) for symbol in ("Cu", "Al")]
    for found in compute_materials(crystals, potential, protocol):
        assert {PROPERTY_STATUSES[one.status] for one in found.outcomes.values()} == {"ok"}
        eos, elastic = found.outcomes["eos"].values, found.outcomes["elastic"].values
        assert eos["bulk_modulus_eos"] == pytest.approx(elastic["bulk_modulus_vrh"], rel=0.01)
        assert eos["eos_volume"] == pytest.approx(found.relaxed.last.structure.volume, rel=1e-3)  # type: ignore[union-attr]
        assert eos["eos_r_squared"] > 0.9999


def test_volumes_that_make_no_sense_are_refused() -> None:
    for volumes in ((1.0,), (0.9, 0.95, 1.0, 1.05, 9.0)):
        with pytest.raises(ConfigError, match="at least five"):
            EquationOfState(volumes=volumes)
