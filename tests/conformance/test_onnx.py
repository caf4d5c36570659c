"""The laws, for exported files in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from equiscreen.export import OnnxPotential
from equiscreen.export.probes import probe_structures
from equiscreen.pipeline import GraphBlock

from ..conftest import ELEMENTS
from .laws import PotentialLaws


class TestOnnxFloat64(PotentialLaws):
    @pytest.fixture
    def potential(self, exported: Callable[[str], Path]) -> OnnxPotential:
        return OnnxPotential.load(exported("float64"))


class TestOnnxFloat32(PotentialLaws):
    tolerance = 2e-5
    float64 = False

    @pytest.fixture
    def potential(self, exported: Callable[[str], Path]) -> OnnxPotential:
        return OnnxPotential.load(exported("float32"))

    def test_a_hundred_runs_with_one_and_two_threads_agree_bitwise(self, exported: Callable[[str], Path]) -> None:
        # One table of several thousand slots: enough for ONNX Runtime to divide it among its threads.
        potentials = [OnnxPotential.load(exported("float32"), threads=n, slots=50_000) for n in (1, 2)]
        block = GraphBlock.from_structures(probe_structures(ELEMENTS, 40, seed=8), potentials[0].cutoff)
        assert block.n_edges.sum() > 4_000
        first = potentials[0].evaluate(block)
        for potential in potentials:
            for _ in range(100):
                again = potential.evaluate(block)
                for name in ("energy", "forces", "stress"):
                    assert np.array_equal(getattr(first, name), getattr(again, name))
