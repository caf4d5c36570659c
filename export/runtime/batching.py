"""Evaluating structures of a block batch by batch; a batch for which there is not enough memory is halved."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.neighbor_table import groups_by_size
from ...pipeline.graphs.potential import Evaluation, Potential
from ...pipeline.memory import is_out_of_memory
from ...pipeline.runs.options import DEFAULT_SLOTS

Batch = tuple[NDArray[np.int64], Evaluation | None]


def evaluate_batches(
    block: GraphBlock, rows: NDArray[np.int64], potential: Potential, window: tuple[int, int] | None = None
) -> Iterator[Batch]:
    """Evaluate some structures of a block.

    Args:
        block: Structures.
        rows: int64[n], those that the potential can evaluate.
        potential: Its `slots`, if it has any, limit a batch.
        window: Leave out batches without structures from the first of these numbers up to the second. Batches are the
            same with and without it, and so are results, to the last bit.

    Yields:
        Rows of a batch, and what was found; None for a structure for which memory does not suffice by itself.
    """
    slots = int(getattr(potential, "slots", DEFAULT_SLOTS))
    groups = [rows[group] for group in groups_by_size(block.n_atoms[rows], block.max_neighbors[rows], slots)]
    if window is not None:
        groups = [batch for batch in groups if ((batch >= window[0]) & (batch < window[1])).any()]
    if not groups:
        return
    # In the order of the batches, so that each is a view.
    order = np.concatenate(groups)
    ordered, start = block.take(order), 0
    for batch in groups:
        for begin, end, found in _halving(ordered, start, start + len(batch), potential):
            yield order[begin:end], found
        start += len(batch)


def _halving(
    block: GraphBlock, start: int, stop: int, potential: Potential
) -> Iterator[tuple[int, int, Evaluation | None]]:
    try:
        found = potential.evaluate(block.between(start, stop))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        yield start, stop, found
        return
    # Outside of the clause: the error holds on to what the failed batch had allocated.
    if stop - start == 1:
        yield start, stop, None
        return
    middle = (start + stop + 1) // 2
    yield from _halving(block, start, middle, potential)
    yield from _halving(block, middle, stop, potential)
