"""Tasks of a screen on a Dask worker: scoring a part, or copying rows of existing scores."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import zarr
from distributed import get_worker

from ...export.runtime.dispersion import Dispersion, DispersionCorrected, with_dispersion
from ...export.runtime.ensemble import Ensemble
from ...pipeline.errors import EquiscreenError, input_changed
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.potential import Evaluation, OutputSpec, Potential
from ...pipeline.runs.parts import COMPUTED_ON, DivisibleTask, PartArray, PartKey, PartManifest, write_part
from ...pipeline.store.graph_store import GraphStore, open_root
from ...pipeline.store.row_sources import opened
from ..dataset.scores import CARRIED, SCORES_SCHEMA
from ..plausibility import Plausibility
from .score import ScoreLimits, score_block, status_counts


@dataclass(frozen=True, slots=True)
class ScreenTask(DivisibleTask):
    """Scoring of one part.

    Attributes:
        start, stop: Structures of the graph store that belong to the part.
        store: Path or URL of the graph store.
        store_hash: Hash of the graph store when the run began.
        columns: Input columns to copy from the graph store.
        models: Names of the worker plugins that hold the models.
        dispersion: Dispersion correction that is added to the models, if any.
        limits: Limits on what is scored.
        plausibility: Bounds outside of which a structure is ``extrapolating``.
        folder: Folder of the parts.
    """

    start: int
    stop: int
    store: Path | str
    store_hash: str
    columns: tuple[str, ...]
    models: tuple[str, ...]
    dispersion: Dispersion | None
    limits: ScoreLimits
    plausibility: Plausibility
    folder: Path


@dataclass(frozen=True, slots=True)
class CopyTask:
    """Copy of some rows of the existing scores, in a run that appends to them.

    Attributes:
        number: Number of the part.
        start, stop: Rows of the scores.
        scores: Path or URL of the scores.
        scores_hash: Hash of the scores when the run began.
        names: Arrays to copy.
        folder: Folder of the parts.
    """

    number: int
    start: int
    stop: int
    scores: Path | str
    scores_hash: str
    names: tuple[str, ...]
    folder: Path

    @property
    def key(self) -> PartKey:
        """Key of the part."""
        return PartKey(self.number, 0, self.stop - self.start)

    def split(self) -> Sequence[CopyTask]:
        """Return no tasks, since a copy is not divided."""
        return ()

    def skipped(self) -> CopyTask:
        """Raise an error, since rows cannot be skipped.

        Raises:
            EquiscreenError: Always; workers died while they copied rows, and no row may be lost.
        """
        raise EquiscreenError(
            f"{self.scores}: the workers that read these scores died, perhaps because they ran out of memory; free "
            "some memory and run the same command again"
        )


class TimedPotential:
    """A potential that adds up the time during which at least one evaluation runs.

    Args:
        potential: Potential to evaluate.

    Attributes:
        slots: Neighbour slots per batch.
        in_flight: Number of batches to evaluate at a time.
        seconds: Time spent on evaluations so far, seconds.
    """

    def __init__(self, potential: Ensemble | DispersionCorrected) -> None:
        self._potential = potential
        self.slots, self.in_flight = potential.slots, potential.in_flight
        self.seconds = 0.0
        self._lock, self._running, self._began = threading.Lock(), 0, 0.0

    @property
    def cutoff(self) -> float:
        """Cutoff of the potential, angstrom."""
        return self._potential.cutoff

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the potential supports."""
        return self._potential.elements

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """Outputs of the potential."""
        return self._potential.outputs

    def evaluate(self, block: GraphBlock) -> Evaluation:
        """Evaluate all outputs for all structures of a block."""
        with self._lock:
            if self._running == 0:
                self._began = time.perf_counter()
            self._running += 1
        try:
            return self._potential.evaluate(block)
        finally:
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    self.seconds += time.perf_counter() - self._began


def screen_part(task: ScreenTask | CopyTask) -> PartManifest:
    """Score or copy the structures of one part: the body of a Dask task, on a worker with a `ModelPlugin` per model."""
    return _copy(task) if isinstance(task, CopyTask) else _score(task)


def _score(task: ScreenTask) -> PartManifest:
    began = time.perf_counter()
    plugins = [get_worker().plugins[name] for name in task.models]
    ensemble = Ensemble([plugin.potential for plugin in plugins], [str(p.model) for p in plugins])
    potential = TimedPotential(with_dispersion(ensemble, task.dispersion))
    graphs = opened(str(task.store), task.store_hash)
    first, last = task.start + task.begin, task.start + task.end
    arrays: dict[str, PartArray]
    if task.skip:
        arrays = _skipped_rows(graphs.block(first, last, labels=False), potential, task.limits)
    else:
        arrays = dict(score_block(graphs.block(first, last, labels=False), potential, task.limits, task.plausibility))
    arrays.update(_carried(graphs, task.columns, first, last))
    notes = {
        "status": list(status_counts(np.asarray(arrays["status"])).values()),
        COMPUTED_ON: plugins[0].potential.computes_on,
        "seconds": 0.0,
        "evaluating": potential.seconds,
    }
    counts = {"read": last - first}
    notes["seconds"] = time.perf_counter() - began
    return write_part(task.folder, task.key, arrays, counts, notes)


def _skipped_rows(block: GraphBlock, potential: Potential, limits: ScoreLimits) -> dict[str, PartArray]:
    """Return the rows of structures that killed their worker, with the status ``too_large``."""
    return dict(
        score_block(block, potential, replace(limits, max_edges=-1))
    )  # every structure has more edges than this


def _carried(graphs: GraphStore, columns: Sequence[str], start: int, stop: int) -> dict[str, PartArray]:
    """Return the identifiers, sources and input columns of structures."""
    found = {name: graphs.column(name, start, stop) for name in (*CARRIED, *columns)}
    return {name: values.tolist() if values.dtype.kind == "T" else values for name, values in found.items()}


def _copy(task: CopyTask) -> PartManifest:
    root = _opened_scores(str(task.scores), task.scores_hash)
    arrays: dict[str, PartArray] = {}
    for name in task.names:
        array = root[name]
        assert isinstance(array, zarr.Array)  # noqa: S101 - for the type checker
        values = np.asarray(array[task.start : task.stop])
        arrays[name] = values.tolist() if values.dtype.kind in "TO" else values
    notes = {"status": list(status_counts(np.asarray(arrays["status"])).values()), "seconds": 0.0, "evaluating": 0.0}
    return write_part(task.folder, task.key, arrays, {"read": task.stop - task.start}, notes)


@lru_cache(maxsize=2)
def _opened_scores(path: str, scores_hash: str) -> zarr.Group:
    root = open_root(path, SCORES_SCHEMA)
    if root.attrs.get("store_hash") != scores_hash:
        raise input_changed(path)
    return root
