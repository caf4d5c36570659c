"""What runs on a Dask worker during a relaxation: one part of the structures."""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from distributed import get_worker

from ...export.runtime.dask_plugin import plugin_name
from ...pipeline.runs.parts import PartKey, PartManifest, write_part
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.schema import ATOM, EDGE, STRUCTURE
from ..dataset.scores import CARRIED
from .batched import RELAX_STATUSES, Relaxed, RelaxSettings, relax_structures
from .output import final_structures, graph_rows, kept_status, score_rows


@dataclass(frozen=True, slots=True)
class RelaxTask:
    """The structures of one part, and where it goes.

    Attributes:
        number: Of the part.
        start, stop: Structures of the store.
        store: The graph store.
        columns: Input columns to carry along.
        model_sha256: Names the plugin that holds the session.
        settings: Of the relaxation.
        folder: Of the parts of the scores dataset; the mark of a part there says that all of it is done.
        graphs: Of the parts of the graph store.
        trajectories: Where trajectories go.
    """

    number: int
    start: int
    stop: int
    store: Path | str
    columns: tuple[str, ...]
    model_sha256: str
    settings: RelaxSettings
    folder: Path
    graphs: Path
    trajectories: Path

    @property
    def key(self) -> PartKey:
        """Of its part."""
        return PartKey(self.number, 0, self.stop - self.start)


def relax_part(task: RelaxTask) -> PartManifest:
    """Relax the structures of one part; the body of a Dask task, on a worker with a `ModelPlugin`."""
    begin = time.process_time()
    potential = get_worker().plugins[plugin_name(task.model_sha256)].potential
    store = GraphStore(task.store)
    block = store.block(task.start, task.stop, labels=False)
    given = [block.structure(row) for row in range(len(block))]
    # The name of a structure is its place in the store: it is part of the seed of a rattle.
    places = range(task.start, task.stop)
    done = dict(relax_structures(zip(places, given, strict=True), potential, task.settings))
    found = [done[place] for place in places]
    carried = {name: store.column(name, task.start, task.stop) for name in (*CARRIED, *task.columns)}
    rows = {name: values.tolist() if values.dtype.kind == "T" else values for name, values in carried.items()}
    scores = score_rows(block, found, task.settings)
    graphs = graph_rows(final_structures(given, found), found, store.cutoff)
    graphs["status"] |= kept_status(store.column("status", task.start, task.stop))
    size = len(given)
    counts = {
        "read": size,
        STRUCTURE: size,
        ATOM: len(graphs["atomic_number"]),
        EDGE: len(graphs["neighbor"]),
    }
    write_part(task.graphs, task.key, {**graphs, **rows}, counts, {})
    if task.settings.trajectory:
        _write_trajectories(task, list(rows["structure_id"]), found)
    notes: dict[str, Any] = {
        "status": np.bincount(scores["status"], minlength=len(RELAX_STATUSES)).tolist(),
        "steps": int(scores["n_steps"].sum()),
        "cpu_seconds": time.process_time() - begin,
    }
    return write_part(task.folder, task.key, {**scores, **rows}, counts, notes)


def _write_trajectories(task: RelaxTask, names: Sequence[str], found: Sequence[Relaxed]) -> None:
    """All points of all structures of the part, one after the other, as extended XYZ."""
    import ase.io  # noqa: PLC0415 - only those who want trajectories need it
    from ase.calculators.singlepoint import SinglePointCalculator  # noqa: PLC0415 - likewise

    images = []
    for name, one in zip(names, found, strict=True):
        for step, frame in enumerate(one.frames):
            atoms = frame.structure.to_ase()
            stress = frame.stress if np.isfinite(frame.stress).all() else None
            atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces, stress=stress)
            atoms.info.update(structure_id=name, step=step)
            images.append(atoms)
    text = io.StringIO()
    if images:
        ase.io.write(text, images, format="extxyz")
    path = task.trajectories / f"part-{task.number:07d}.extxyz"
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    scratch.write_text(text.getvalue())
    scratch.rename(path)
