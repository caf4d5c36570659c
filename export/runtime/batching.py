"""Evaluation of the structures of a block in batches; a batch that does not fit into memory is halved."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
from numpy.typing import NDArray

from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.neighbor_table import evaluation_groups
from ...pipeline.graphs.potential import Evaluation, Potential
from ...pipeline.memory import is_out_of_memory
from ...pipeline.runs.options import DEFAULT_SLOTS

Batch = tuple[NDArray[np.int64], Evaluation | None]


def evaluate_batches(block: GraphBlock, rows: NDArray[np.int64], potential: Potential) -> Iterator[Batch]:
    """Evaluate some structures of a block; the results of a structure do not depend on the others.

    Args:
        block: Block of structures.
        rows: int64[n], rows of the structures to evaluate; the potential must cover their elements.
        potential: Potential; its attribute `slots`, if there is one, limits the size of a batch. Its attribute
            `in_flight` is the number of batches to evaluate at a time, so that the host builds the tables of one batch
            while a GPU computes another; by default, one.

    Yields:
        The rows of a batch and their evaluation, or the row of a structure that does not fit into memory and None.
    """
    slots = int(getattr(potential, "slots", DEFAULT_SLOTS))
    some = block if np.array_equal(rows, np.arange(len(block))) else block.take(rows)
    groups = [rows[group] for group, _ in evaluation_groups(some, potential.cutoff, slots)]
    if not groups:
        return
    # Sorted by batch, so that each batch is a view.
    order = np.concatenate(groups)
    ordered = block.take(order)
    ends = np.cumsum([len(batch) for batch in groups]).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    in_flight = int(getattr(potential, "in_flight", 1))
    if in_flight > 1 and len(spans) > 1:
        evaluated = _overlapping(ordered, spans, potential, in_flight)
    else:
        evaluated = (part for start, stop in spans for part in _halving(ordered, start, stop, potential))
    for begin, end, found in evaluated:
        yield order[begin:end], found


def _overlapping(
    block: GraphBlock, spans: Iterable[tuple[int, int]], potential: Potential, in_flight: int
) -> Iterator[tuple[int, int, Evaluation | None]]:
    """Evaluate several batches at a time, and yield them in order."""
    pending: deque[tuple[int, int, Future[Evaluation]]] = deque()

    def first() -> Iterator[tuple[int, int, Evaluation | None]]:
        start, stop, future = pending.popleft()
        try:
            found = future.result()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            yield start, stop, found
            return
        # Alone, so that it does not depend on the other batches whether a structure fits into memory.
        wait([other for _, _, other in pending])
        yield from _halving(block, start, stop, potential)

    with ThreadPoolExecutor(in_flight) as pool:
        for start, stop in spans:
            pending.append((start, stop, pool.submit(potential.evaluate, block.between(start, stop))))
            if len(pending) == in_flight:
                yield from first()
        while pending:
            yield from first()


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
    # Outside of the except clause, because the error keeps the memory of the failed batch allocated.
    if stop - start == 1:
        yield start, stop, None
        return
    middle = (start + stop + 1) // 2
    yield from _halving(block, start, middle, potential)
    yield from _halving(block, middle, stop, potential)
