"""Several batches at a time give what one at a time gives, also where memory is short."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from equiscreen.export import OnnxPotential
from equiscreen.export.runtime.batching import evaluate_batches
from equiscreen.export.runtime.ensemble import Ensemble
from equiscreen.pipeline import GraphBlock
from equiscreen.pipeline.errors import TableSizeError
from equiscreen.pipeline.graphs.neighbor_table import table_widths
from equiscreen.pipeline.graphs.potential import Evaluation
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening.scoring.worker import TimedPotential

from ...conftest import CUTOFF, ELEMENTS
from .altered_models import altered


@pytest.fixture(scope="module")
def potential(exported: Callable[[str], Path]) -> OnnxPotential:
    return OnnxPotential.load(exported("float32"), threads=1)


@pytest.fixture(scope="module")
def block() -> GraphBlock:
    return GraphBlock.from_structures(probe_structures(ELEMENTS, 20, seed=8), CUTOFF)


class Watched:
    """A potential that counts its evaluations and has little memory.

    Args:
        potential: Evaluates.
        in_flight: Number of batches at a time.
        memory: Number of atoms that fit into memory at a time, over all evaluations.
    """

    slots = 500

    def __init__(self, potential: OnnxPotential, in_flight: int, memory: int = 10_000) -> None:
        self.potential, self.in_flight, self.memory = potential, in_flight, memory
        self.cutoff, self.elements, self.outputs = potential.cutoff, potential.elements, potential.outputs
        self.lock, self.atoms, self.running, self.most = threading.Lock(), 0, 0, 0

    def evaluate(self, block: GraphBlock) -> Evaluation:
        """Evaluate, if there is memory."""
        atoms = len(block.atomic_number)
        with self.lock:
            if self.atoms + atoms > self.memory:
                raise MemoryError("out of memory")
            self.atoms, self.running = self.atoms + atoms, self.running + 1
            self.most = max(self.most, self.running)
        try:
            return self.potential.evaluate(block)
        finally:
            with self.lock:
                self.atoms, self.running = self.atoms - atoms, self.running - 1


def results(potential: Watched, block: GraphBlock) -> dict[int, float | None]:
    """Energy by row; None if the structure does not fit into memory."""
    out: dict[int, float | None] = {}
    for rows, found in evaluate_batches(block, np.arange(len(block)), potential):
        energies = [None] * len(rows) if found is None else found.energy.tolist()
        assert not out.keys() & set(rows.tolist())
        out |= zip(rows.tolist(), energies, strict=True)
    return out


@pytest.mark.parametrize("in_flight", [2, 3])
def test_the_number_of_batches_at_a_time_changes_no_bit(
    potential: OnnxPotential, block: GraphBlock, in_flight: int
) -> None:
    one, several = Watched(potential, 1), Watched(potential, in_flight)
    assert list(results(several, block).items()) == list(results(one, block).items())
    assert (one.most, len(results(one, block))) == (1, 20)
    assert several.most <= in_flight


def test_batches_overlap(potential: OnnxPotential, block: GraphBlock) -> None:
    together = threading.Barrier(2)

    class Meeting(Watched):
        """Its first two evaluations wait for one another."""

        calls = 0

        def evaluate(self, block: GraphBlock) -> Evaluation:
            with self.lock:
                self.calls += 1
                meets = self.calls <= 2
            if meets:
                together.wait(timeout=60)
            return super().evaluate(block)

    assert len(results(Meeting(potential, 2), block)) == 20


@pytest.mark.parametrize("memory", [4, 12, 30])
def test_what_fits_into_memory_does_not_depend_on_the_batches_beside_it(
    potential: OnnxPotential, block: GraphBlock, memory: int
) -> None:
    alone = results(Watched(potential, 1, memory), block)
    assert results(Watched(potential, 2, memory), block) == alone
    assert {row for row, energy in alone.items() if energy is None} == {
        *np.flatnonzero(block.n_atoms > memory).tolist()
    }


def test_the_time_of_batches_that_overlap_counts_once(potential: OnnxPotential, block: GraphBlock) -> None:
    timed = TimedPotential(Ensemble([potential], ["m.onnx"]))
    assert timed.in_flight == 1
    timed.in_flight, timed.slots = 2, 500
    begin = time.perf_counter()
    done = [rows for rows, _ in evaluate_batches(block, np.arange(len(block)), timed)]
    assert len(done) > 2
    assert 0 < timed.seconds <= time.perf_counter() - begin


def test_another_error_ends_the_evaluation(potential: OnnxPotential, block: GraphBlock) -> None:
    class Broken(Watched):
        """A potential that fails."""

        def evaluate(self, block: GraphBlock) -> Evaluation:
            raise ZeroDivisionError(len(block))

    with pytest.raises(ZeroDivisionError):
        results(Broken(potential, 2), block)


def test_a_cpu_evaluates_one_batch_at_a_time(potential: OnnxPotential) -> None:
    assert potential.in_flight == 1


def test_no_tensor_has_more_elements_than_kernels_can_count(
    potential: OnnxPotential, block: GraphBlock, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    """A model whose largest tensor allows 200 slots divides batches, and refuses structures that need more."""
    model = altered(exported("float32"), tmp_path / "wide.onnx", elements_per_slot=2**31 / 200)
    wide = OnnxPotential.load(model, threads=1)
    assert wide.slots == wide.most_slots == 199  # 200 slots would need 2^31 elements, one more than fits into 32 bits
    slots = block.n_atoms * table_widths(block, CUTOFF)
    fitting, every = slots <= wide.most_slots, np.arange(len(block))
    assert 0 < fitting.sum() < len(block)
    expected = potential.evaluate(block).energy
    evaluated = np.full(len(block), np.nan)
    for rows, found in evaluate_batches(block, every, wide):
        evaluated[rows] = np.nan if found is None else found.energy
    assert np.array_equal(evaluated, np.where(fitting, expected, np.nan), equal_nan=True)
    with pytest.raises(TableSizeError, match=r"would need a tensor of more than 2\^31 elements .*; use a smaller cell"):
        wide.evaluate(block.take(np.flatnonzero(~fitting)[:1]))
