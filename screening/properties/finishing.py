"""The last, long step of some properties, which needs no model and is one task per material."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...pipeline.errors import detail
from ...pipeline.runs.parts import PartArray, PartKey, PartManifest, read_part, write_part
from ...pipeline.store.schema import ArraySpec
from ...pipeline.structures.structure import Structure
from .output import property_rows, table_counts
from .protocol import FAILED, OK, PROPERTY_STATUSES, TOO_LARGE, Material, Outcome, OutcomeError, Property

_GRAPH_ARRAYS = ("n_atoms", "cell", "pbc", "atomic_number", "frac_coord", "energy", "forces", "stress")
_KILLED = "its worker died in the last step: out of memory, or a crash"


@dataclass(frozen=True, slots=True)
class FinishTask:
    """The last step of the properties of one material.

    Attributes:
        number: Place of the material among all materials of the run.
        source: Key of the part that holds the other results of the material.
        row: Place of the material in that part.
        properties: All properties of the run.
        specs: Arrays of the dataset.
        symprec: Tolerance of searches for symmetry, angstrom.
        parts: Folder of the parts that hold the other results.
        graphs: Folder of the parts of the graph store.
        folder: Folder of the parts that are written; each holds all arrays of one material.
        skip: Whether to skip the step, because it killed its worker.
        given: The other results of the material, for workers that do not see the folders of the parts; None reads them.
    """

    number: int
    source: PartKey
    row: int
    properties: tuple[Property, ...]
    specs: tuple[ArraySpec, ...]
    symprec: float
    parts: Path
    graphs: Path
    folder: Path
    skip: bool = False
    given: tuple[Mapping[str, PartArray], Material] | None = None

    @property
    def key(self) -> PartKey:
        """Key of the part that is written."""
        return PartKey(self.number, 0, 1)

    def split(self) -> Sequence[FinishTask]:
        """Return no tasks, since a material cannot be divided."""
        return ()

    def skipped(self) -> FinishTask:
        """Return the same task without the step."""
        return replace(self, skip=True)

    def carried(self) -> FinishTask:
        """Return the same task with the other results of the material, for workers that do not see their folders."""
        return replace(self, given=(_rows_of(self), _material(self)))


def finish_part(task: FinishTask) -> PartManifest:
    """Do the last step of the properties of one material: the body of a Dask task."""
    began = time.process_time()
    rows = _rows_of(task) if task.given is None else dict(task.given[0])
    notes = []
    for one in task.properties:
        status = f"{one.name}_status"
        if not one.has_finish or int(np.asarray(rows[status])[0]) != OK:
            continue
        found = _own(one, rows)
        outcome = Outcome(TOO_LARGE, note=_KILLED) if task.skip else _finished(one, _material(task), found)
        names = {spec.name for spec in one.tables}
        values = {name: value for name, value in found.items() if name not in names}
        tables = {name: value for name, value in found.items() if name in names}
        whole = replace(outcome, values={**values, **outcome.values}, tables={**tables, **outcome.tables})
        rows |= property_rows([one], [{one.name: whole}])
        if outcome.note:
            notes.append(f"{one.name}: {outcome.note}")
        if outcome.status != OK and int(np.asarray(rows["status"])[0]) == OK:
            rows["status"] = np.array([outcome.status], dtype=np.uint8)
    rows["status_note"] = ["; ".join(filter(None, [*rows["status_note"], *notes]))]
    counts = {"read": 1, **table_counts(task.properties, rows)}
    told = {
        "status": np.bincount(np.asarray(rows["status"]), minlength=len(PROPERTY_STATUSES)).tolist(),
        "cpu_seconds": time.process_time() - began,
    }
    return write_part(task.folder, task.key, rows, counts, told)


def _finished(one: Property, material: Material, found: Mapping[str, Any]) -> Outcome:
    try:
        return one.finish(material, found)
    except OutcomeError as error:
        return Outcome(error.status, note=error.note)
    except Exception as error:  # noqa: BLE001 - the fault of one material must not end the run
        return Outcome(FAILED, note=f"{type(error).__name__}: {detail(error)}")


def _rows_of(task: FinishTask) -> dict[str, PartArray]:
    """Return the rows of the material: one of each array per structure, and any number of each table."""
    arrays = read_part(task.parts, task.source, [spec.name for spec in task.specs])
    rows: dict[str, PartArray] = {}
    for spec in task.specs:
        values = arrays[spec.name]
        counts = arrays.get(f"n_{spec.dims[0]}")
        if counts is None:
            rows[spec.name] = values[task.row : task.row + 1]
        else:
            ends = np.cumsum(np.asarray(counts))
            rows[spec.name] = values[int(ends[task.row] - counts[task.row]) : int(ends[task.row])]
    return rows


def _own(one: Property, rows: Mapping[str, PartArray]) -> dict[str, Any]:
    """Return the material's row of each array of a property, and its rows of each table."""
    found: dict[str, Any] = {spec.name: rows[spec.name][0] for spec in one.arrays}
    return found | {spec.name: rows[spec.name] for spec in one.tables}


def _material(task: FinishTask) -> Material:
    if task.given is not None:
        return task.given[1]
    arrays = {name: np.asarray(values) for name, values in read_part(task.graphs, task.source, _GRAPH_ARRAYS).items()}
    end = int(arrays["n_atoms"][: task.row + 1].sum())
    atoms = slice(end - int(arrays["n_atoms"][task.row]), end)
    structure = Structure(
        arrays["atomic_number"][atoms], arrays["cell"][task.row], arrays["frac_coord"][atoms], arrays["pbc"][task.row]
    )
    return Material(
        structure, float(arrays["energy"][task.row]), arrays["forces"][atoms], arrays["stress"][task.row], task.symprec
    )
