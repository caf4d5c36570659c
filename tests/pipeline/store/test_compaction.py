"""Tasks that write the shards of a store: together they cover all rows, and each carries only what it needs."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from equiscreen.pipeline.runs.parts import PartKey
from equiscreen.pipeline.store.compaction import Compaction, shard_tasks
from equiscreen.pipeline.store.row_sources import PartRows
from equiscreen.pipeline.store.schema import EDGE, STRUCTURE, ArraySpec

PART = 4_096
SPECS = (
    ArraySpec("n_atoms", (STRUCTURE,), "int32"),
    ArraySpec("status", (STRUCTURE,), "uint8"),
    ArraySpec("receiver", (EDGE,), "int32"),
)


def test_a_task_carries_the_sources_of_its_shard_alone() -> None:
    """Some parts are empty, as after deduplication, and parts cross the ends of shards."""
    rng = np.random.default_rng(5)
    structures = np.where(rng.random(2_000) < 0.1, 0, rng.integers(1, PART, 2_000))
    rows = {
        STRUCTURE: np.concatenate([[0], np.cumsum(structures)]),
        EDGE: np.concatenate([[0], np.cumsum(370 * structures)]),
    }
    sources = tuple(PartRows(Path("parts"), PartKey(number, 0, PART), {}) for number in range(2_000))
    covered = {spec.name: 0 for spec in SPECS}
    for task in shard_tasks(Compaction(Path("store"), SPECS, sources, rows, None, None, rows[STRUCTURE])):
        work = task.compaction
        offsets = work.source_rows[task.dim]
        assert offsets[0] <= task.begin < task.end <= offsets[-1]
        # The first and the last source have rows of the shard.
        assert task.begin < offsets[1]
        assert offsets[-2] < task.end
        numbers = [source.key.number for source in work.sources]
        assert numbers == list(range(numbers[0], numbers[0] + len(offsets) - 1))
        assert np.array_equal(offsets, rows[task.dim][numbers[0] : numbers[-1] + 2])
        for spec in work.specs:
            assert covered[spec.name] == task.begin
            covered[spec.name] = task.end
        assert len(pickle.dumps(task)) < 100_000
    assert covered == {"n_atoms": rows[STRUCTURE][-1], "status": rows[STRUCTURE][-1], "receiver": rows[EDGE][-1]}
