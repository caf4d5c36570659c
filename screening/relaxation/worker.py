"""Tasks of a relaxation on a Dask worker: relax the structures of one part."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...export.runtime.dispersion import Dispersion, with_dispersion
from ...export.runtime.model_workers import loaded_model
from ...pipeline.atomic import write_text_atomically
from ...pipeline.plain_text import extxyz_text
from ...pipeline.runs.parts import COMPUTED_ON, DivisibleTask, PartManifest, write_part
from ...pipeline.store.row_sources import opened
from ...pipeline.store.schema import ATOM, EDGE, STRUCTURE
from ..dataset.scores import CARRIED
from ..plausibility import Plausibility
from .batched import RELAX_STATUSES, TOO_LARGE, Relaxed, RelaxSettings, relax_structures
from .output import final_structures, graph_rows, kept_status, score_rows, trajectory_name


@dataclass(frozen=True, slots=True)
class RelaxTask(DivisibleTask):
    """Relaxation of the structures of one part.

    Attributes:
        start, stop: Structures of the graph store that belong to the part.
        store: Path or URL of the graph store.
        store_hash: Hash of the graph store when the run began.
        columns: Input columns to copy from the graph store.
        model: Name of the worker plugin that holds the model.
        dispersion: Dispersion correction that is added to the model, if any.
        settings: Settings of the relaxation.
        plausibility: Bounds outside of which a result is meaningless.
        folder: Folder of the parts of the scores dataset; the manifest in it is written last, and marks the part as
            complete.
        graphs: Folder of the parts of the graph store.
        trajectories: Folder of the trajectories.
    """

    start: int
    stop: int
    store: Path | str
    store_hash: str
    columns: tuple[str, ...]
    model: str
    dispersion: Dispersion | None
    settings: RelaxSettings
    plausibility: Plausibility
    folder: Path
    graphs: Path
    trajectories: Path


def relax_part(task: RelaxTask) -> PartManifest:
    """Relax the structures of one part: the body of a Dask task, on a worker with a `ModelPlugin`."""
    began = time.process_time()
    store = opened(str(task.store), task.store_hash)
    first, last = task.start + task.begin, task.start + task.end
    block = store.block(first, last, labels=False)
    given = [block.structure(row) for row in range(len(block))]
    network = loaded_model(task.model)
    if task.skip:
        found = [Relaxed(TOO_LARGE, None, None, 0, reason="the worker process died (out of memory, or a crash)")]
    else:
        potential = with_dispersion(network, task.dispersion)
        rows = range(first, last)
        pairs = zip(rows, given, strict=True)
        done = dict(relax_structures(pairs, potential, task.settings, plausibility=task.plausibility))
        found = [done[row] for row in rows]
    carried = {name: store.column(name, first, last) for name in (*CARRIED, *task.columns)}
    columns = {name: values.tolist() if values.dtype.kind == "T" else values for name, values in carried.items()}
    scores = score_rows(block, found, task.settings)
    graphs = graph_rows(final_structures(given, found), found, store.cutoff)
    graphs["status"] |= kept_status(store.column("status", first, last))
    size = len(given)
    counts = {"read": size, STRUCTURE: size, ATOM: len(graphs["atomic_number"]), EDGE: len(graphs["neighbor"])}
    write_part(task.graphs, task.key, {**graphs, **columns}, counts, {})
    if task.settings.trajectory:
        _write_trajectories(task, list(columns["structure_id"]), found)
    notes: dict[str, Any] = {
        "status": np.bincount(scores["status"], minlength=len(RELAX_STATUSES)).tolist(),
        "remarks": dict(Counter(remark for one in found for remark in one.remarks)),
        COMPUTED_ON: network.computes_on,
        "steps": int(scores["n_steps"].sum()),
        "cpu_seconds": time.process_time() - began,
    }
    return write_part(task.folder, task.key, {**scores, **columns}, counts, notes)


def _write_trajectories(task: RelaxTask, names: Sequence[str], found: Sequence[Relaxed]) -> None:
    """Write all points of the relaxations of a part, in order, as extended XYZ."""
    import ase.io  # noqa: PLC0415 - only trajectories need it
    from ase.calculators.singlepoint import SinglePointCalculator  # noqa: PLC0415 - only trajectories need it

    images = []
    for name, one in zip(names, found, strict=True):
        for step, frame in enumerate(one.frames):
            atoms = frame.structure.to_ase()
            stress = frame.stress if np.isfinite(frame.stress).all() else None
            atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces, stress=stress)
            atoms.info.update(structure_id=extxyz_text(name), step=step)
            images.append(atoms)
    text = io.StringIO()
    if images:
        ase.io.write(text, images, format="extxyz")
    write_text_atomically(task.trajectories / trajectory_name(task.key, task.stop - task.start), text.getvalue())
