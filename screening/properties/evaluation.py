"""Evaluation of the cells of many materials together, in batches, with one potential in one process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ...pipeline.errors import InvalidStructureError, detail
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.potential import Potential
from ...pipeline.structures.structure import Structure
from ..plausibility import Plausibility
from ..relaxation.batched import EDGES_IN_FLIGHT, RelaxSettings, evaluate_each, relax_structures
from ..relaxation.batched import NOT_CONVERGED as RELAXATION_NOT_CONVERGED
from ..relaxation.batched import OK as RELAXED
from ..relaxation.batched import TOO_LARGE as RELAXATION_TOO_LARGE
from .protocol import FAILED, TOO_LARGE, CellResult, Cells, Outcome, OutcomeError, Stages

Key = TypeVar("Key", bound=Hashable)
NOT_FINITE = "the model predicts values that are not finite"


def evaluate(potential: Potential, cells: Sequence[Structure]) -> list[CellResult]:
    """Evaluate cells in batches.

    The result of a cell does not depend on the other cells, on their order, or on the size of the batch.

    Args:
        potential: Potential with energy, forces and stress.
        cells: Structures of elements that the potential supports.

    Returns:
        The result of each cell, in order.

    Raises:
        OutcomeError: The results of a cell are not finite, or the cell has no graph, for example because it has
            too many edges.
    """
    found = dict(_evaluated(enumerate(cells), potential))
    results = []
    for place in range(len(cells)):
        one = found[place]
        if isinstance(one, OutcomeError):
            raise one
        results.append(one)
    return results


def run_stages(
    started: Mapping[Key, Stages], potential: Potential, plausibility: Plausibility | None = None
) -> dict[Key, Outcome]:
    """Drive the generators of some properties of some materials until all have returned.

    In each round, the cells that all of them wait for are evaluated together.

    Args:
        started: Generators from `Property.stages`, by any key. If a generator raises an error other than
            `OutcomeError`, its outcome has the status ``failed``, so that one material cannot end a run.
        potential: Potential with energy, forces and stress.
        plausibility: Bounds for relaxations of cells; None uses the bounds of the potential.

    Returns:
        The outcome of each generator, by key.
    """
    plausibility = plausibility or Plausibility.of(potential)
    outcomes: dict[Key, Outcome] = {}
    waiting: dict[Key, Cells] = {}
    evaluations: Counter[Key] = Counter()

    def resume(key: Key, results: list[CellResult] | OutcomeError | None) -> None:
        try:
            if isinstance(results, OutcomeError):
                waiting[key] = started[key].throw(results)
            else:
                # The first value that is sent to a generator must be None.
                waiting[key] = started[key].send(results)  # type: ignore[arg-type]
        except StopIteration as end:
            outcomes[key] = end.value
        except OutcomeError as error:
            outcomes[key] = Outcome(error.status, note=error.note)
        except Exception as error:  # noqa: BLE001 - the fault of one material must not end the run
            outcomes[key] = Outcome(FAILED, note=f"{type(error).__name__}: {detail(error)}")

    for key in started:
        resume(key, None)
    while waiting:
        wanted = dict(waiting)
        waiting.clear()
        found = _results(wanted, potential, plausibility)
        for key, cells in wanted.items():
            results = [found.pop((key, place)) for place in range(len(cells.structures))]
            faults = [one for one in results if isinstance(one, OutcomeError)]
            evaluations[key] += sum(one.evaluations for one in results if isinstance(one, CellResult))
            resume(key, faults[0] if faults else [one for one in results if isinstance(one, CellResult)])
    return {key: replace(outcome, evaluations=evaluations[key]) for key, outcome in outcomes.items()}


def _results(
    wanted: Mapping[Key, Cells], potential: Potential, plausibility: Plausibility
) -> dict[tuple[Key, int], CellResult | OutcomeError]:
    """Return the results of all requested cells, by the key of their generator and their place among its cells."""
    found: dict[tuple[Key, int], CellResult | OutcomeError] = {}
    kinds: dict[RelaxSettings | None, list[tuple[tuple[Key, int], Structure]]] = {}
    for key, cells in wanted.items():
        pairs = [((key, place), structure) for place, structure in enumerate(cells.structures)]
        kinds.setdefault(cells.relaxation, []).extend(pairs)
    for settings, some in kinds.items():
        if settings is None:
            found.update(_evaluated(some, potential))
        else:
            found.update(_relaxed(some, potential, settings, plausibility))
    return found


def _evaluated(
    cells: Iterable[tuple[Key, Structure]], potential: Potential
) -> Iterator[tuple[Key, CellResult | OutcomeError]]:
    """Yield the key and result of each cell, evaluated as it is."""
    batch: list[tuple[Key, Structure, GraphBlock]] = []
    edges = 0
    for key, structure in cells:
        try:
            block = GraphBlock.from_structures([structure], potential.cutoff)
        except InvalidStructureError as error:
            yield key, OutcomeError(TOO_LARGE, str(error))
            continue
        batch.append((key, structure, block))
        edges += len(block.neighbor)
        if edges >= EDGES_IN_FLIGHT:
            yield from _batch_results(batch, potential)
            batch, edges = [], 0
    if batch:
        yield from _batch_results(batch, potential)


def _batch_results(
    batch: Sequence[tuple[Key, Structure, GraphBlock]], potential: Potential
) -> Iterator[tuple[Key, CellResult | OutcomeError]]:
    found = evaluate_each(GraphBlock.concatenate([block for _, _, block in batch]), potential)
    for (key, structure, _), result in zip(batch, found, strict=True):
        if result is None:
            yield key, OutcomeError(TOO_LARGE, "the structure does not fit into memory")
            continue
        energy, forces, stress, _ = result
        finite = np.isfinite(energy) and np.isfinite(forces).all()
        if finite and structure.pbc.all():
            finite = bool(np.isfinite(stress).all())
        if finite:
            yield key, CellResult(structure, energy, forces.copy(), stress.copy())
        else:
            yield key, OutcomeError(FAILED, NOT_FINITE)


def _relaxed(
    cells: Iterable[tuple[Key, Structure]], potential: Potential, settings: RelaxSettings, plausibility: Plausibility
) -> Iterator[tuple[Key, CellResult | OutcomeError]]:
    """Yield the key and result of each cell after its relaxation."""
    for key, found in relax_structures(cells, potential, settings, plausibility=plausibility):
        last = found.last
        if found.status not in (RELAXED, RELAXATION_NOT_CONVERGED) or last is None:
            status = TOO_LARGE if found.status == RELAXATION_TOO_LARGE else FAILED
            yield key, OutcomeError(status, found.reason)
        else:
            converged = found.status == RELAXED
            yield key, CellResult(last.structure, last.energy, last.forces, last.stress, converged, found.n_steps)
