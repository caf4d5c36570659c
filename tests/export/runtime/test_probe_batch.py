"""The batch in a model file that tests it on a GPU: it passes the file's own results and catches other ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from equiscreen.export import OnnxPotential
from equiscreen.export.runtime.probe_batch import ProbeBatch
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.errors import DeviceError, ModelFileError
from equiscreen.pipeline.graphs.potential import Evaluation


@pytest.fixture(scope="module")
def potential(exported: Callable[[str], Path]) -> OnnxPotential:
    return OnnxPotential.load(exported("float32"), threads=1)


@pytest.fixture
def batch(potential: OnnxPotential) -> ProbeBatch:
    assert potential.metadata.probe_batch is not None
    return ProbeBatch.from_json(potential.metadata.probe_batch, "m.onnx")


def test_the_file_gives_its_own_results(potential: OnnxPotential, batch: ProbeBatch) -> None:
    assert len(batch.structures) == 6
    assert batch.limits == {"energy": 1e-5, "forces": 1e-4, "stress": 1e-5}
    assert np.isfinite(batch.outputs["energy"]).all()
    found = batch.check(potential, "m.onnx", "cpu")
    assert {*found} == {"energy", "forces", "stress"}
    assert max(found.values()) < 1e-6  # zero where the file was exported; another CPU rounds differently
    assert (potential.placement, potential.gpu_differences) == (None, {})


def test_a_batch_survives_json_to_the_last_bit(potential: OnnxPotential) -> None:
    slab = Structure.from_cartesian([13, 29], [[0.1, 0.2, 0.3], [1 / 3, 2.4, 0.1]], np.eye(3) * 7, (True, True, False))
    batch = ProbeBatch.of(potential, [slab], {"energy": 1e-5, "stress": 1e-5})
    again = ProbeBatch.from_json(json.loads(json.dumps(batch.to_json())), "m.onnx")
    assert np.isnan(batch.outputs["stress"]).all()
    for name, values in batch.outputs.items():
        assert np.array_equal(values, again.outputs[name], equal_nan=True)
    for name in ("atomic_number", "cell", "frac_coord", "pbc"):
        assert np.array_equal(getattr(slab, name), getattr(again.structures[0], name))
    assert again.check(potential, "m.onnx", "cpu") == {"energy": 0.0}


@pytest.mark.parametrize("output", ["energy", "forces", "stress"])
def test_another_result_is_refused(potential: OnnxPotential, batch: ProbeBatch, output: str) -> None:
    moved = batch.outputs[output].copy()
    moved[-1] += 2 * batch.limits[output] * (len(batch.structures[-1]) if output == "energy" else 1)
    other = replace(batch, outputs={**batch.outputs, output: moved})
    with pytest.raises(DeviceError, match=rf"m\.onnx: {output} on cuda differs from the CPU by .* above the limit"):
        other.check(potential, "m.onnx", "cuda")


def test_results_that_are_not_numbers_are_refused(potential: OnnxPotential, batch: ProbeBatch) -> None:
    absent = np.full_like(batch.outputs["energy"], np.nan)
    other = replace(
        batch, outputs={**batch.outputs, "energy": np.where(np.arange(6) == 0, absent, batch.outputs["energy"])}
    )
    with pytest.raises(DeviceError, match="energy on cuda differs from the CPU by nan"):
        other.check(potential, "m.onnx", "cuda")


def test_results_that_change_from_run_to_run_are_refused(potential: OnnxPotential, batch: ProbeBatch) -> None:
    class Unsteady:
        """The potential with one force whose last bits change."""

        cutoff, elements, outputs, runs = potential.cutoff, potential.elements, potential.outputs, 0

        def evaluate(self, block: GraphBlock) -> Evaluation:
            found, self.runs = potential.evaluate(block), self.runs + 1
            found.forces[0, 0] += 1e-12 * self.runs
            return found

    with pytest.raises(DeviceError, match="two evaluations of one batch on cuda differ in forces"):
        batch.check(Unsteady(), "m.onnx", "cuda")


@pytest.mark.parametrize(
    "change",
    [
        {"structures": [{"numbers": [13]}]},
        {"structures": [{"numbers": [0], "cell": [[1, 0, 0]] * 3, "coordinates": [[0, 0, 0]], "pbc": [True] * 3}]},
        {"outputs": {"energy": "much"}},
        {"outputs": {"charge": [1.0]}},
        {"limits": None},
    ],
)
def test_a_damaged_batch_is_an_error(batch: ProbeBatch, change: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match=r"m\.onnx: the probe batch cannot be read; export the model again"):
        ProbeBatch.from_json({**batch.to_json(), **change}, "m.onnx")


def test_results_for_other_structures_are_an_error(potential: OnnxPotential, batch: ProbeBatch) -> None:
    with pytest.raises(ModelFileError, match="the probe batch does not match the outputs"):
        replace(batch, structures=batch.structures[:3]).check(potential, "m.onnx", "cuda")
