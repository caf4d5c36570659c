"""Tasks of a computation of properties on a Dask worker: the materials of one part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...export.runtime.dispersion import Dispersion, with_dispersion
from ...export.runtime.model_workers import loaded_model
from ...pipeline.runs.parts import COMPUTED_ON, DivisibleTask, PartArray, PartManifest, write_part
from ...pipeline.store.schema import ATOM, EDGE, STRUCTURE
from ..dataset.scores import RELAXATION_STATUS
from ..relaxation import batched
from ..relaxation.batched import Frame, Relaxed
from ..relaxation.output import final_structures, graph_rows, kept_status, score_rows
from .inputs import RowsOnDisk
from .lattice_dynamics.phonons import Phonons
from .materials import Computed, Protocol, compute_materials
from .output import property_rows, status_rows, table_counts
from .protocol import PROPERTY_STATUSES, TOO_LARGE, BornCharges, Outcome

_KILLED = "its worker died: out of memory, or a crash"


@dataclass(frozen=True, slots=True)
class PropertyTask(DivisibleTask):
    """Properties of the materials of one part.

    Attributes:
        rows: Rows of the structures of the part in their stores.
        place: Stores of the structures.
        columns: Columns to copy from the source.
        graph_columns: Input columns to copy from the graph store.
        model: Name of the worker plugin that holds the model.
        dispersion: Dispersion correction that is added to the model, if any.
        protocol: Properties to compute.
        folder: Folder of the parts of the dataset; the manifest in it is written last, and marks the part as complete.
        graphs: Folder of the parts of the graph store.
        followed: Folder of the parts of the graph store of structures that imaginary modes lead to; None if modes are
            not followed.
        born: Born charges of each row; empty if there are none.
    """

    rows: tuple[int, ...]
    place: RowsOnDisk
    columns: tuple[str, ...]
    graph_columns: tuple[str, ...]
    model: str
    dispersion: Dispersion | None
    protocol: Protocol
    folder: Path
    graphs: Path
    followed: Path | None = None
    born: tuple[BornCharges | None, ...] = ()


def property_part(task: PropertyTask) -> PartManifest:
    """Compute the properties of one part: the body of a Dask task, on a worker with a `ModelPlugin`."""
    began = time.process_time()
    rows = np.array(task.rows[task.begin : task.end], dtype=np.int64)
    block = task.place.block(rows)
    given = [block.structure(row) for row in range(len(block))]
    properties = task.protocol.properties
    network = loaded_model(task.model)
    if task.skip:
        killed = Relaxed(batched.TOO_LARGE, None, None, 0, reason=_KILLED)
        computed = [Computed.without_properties(killed, Outcome(TOO_LARGE, note=_KILLED), properties)]
    else:
        potential = with_dispersion(network, task.dispersion)
        computed = compute_materials(given, potential, task.protocol, task.born[task.begin : task.end])
    relaxed = [one.relaxed for one in computed]
    scores: dict[str, PartArray] = score_rows(block, relaxed, task.protocol.relaxation)
    scores[RELAXATION_STATUS] = scores["status"]
    scores |= property_rows(properties, [one.outcomes for one in computed])
    scores |= status_rows(computed, np.asarray(scores["space_group"] != scores["space_group_initial"]))
    graphs = graph_rows(final_structures(given, relaxed), relaxed, task.place.graph_store.cutoff)
    graphs["status"] |= kept_status(np.asarray(task.place.graph_columns(["status"], rows)["status"]))
    size = len(given)
    counts = {"read": size, STRUCTURE: size, ATOM: len(graphs["atomic_number"]), EDGE: len(graphs["neighbor"])}
    columns = task.place.graph_columns(task.graph_columns, rows)
    write_part(task.graphs, task.key, {**graphs, **columns}, counts, {})
    if task.followed is not None:
        _write_followed(task, task.followed, rows, computed)
    notes = {
        "status": np.bincount(np.asarray(scores["status"]), minlength=len(PROPERTY_STATUSES)).tolist(),
        COMPUTED_ON: network.computes_on,
        "evaluations": sum(
            one.relaxed.n_steps + sum(found.evaluations for found in one.outcomes.values()) for one in computed
        ),
        "cpu_seconds": time.process_time() - began,
    }
    counts |= table_counts(properties, scores)
    return write_part(task.folder, task.key, {**scores, **task.place.columns(task.columns, rows)}, counts, notes)


def _write_followed(task: PropertyTask, folder: Path, rows: NDArray[np.int64], computed: Sequence[Computed]) -> None:
    """Write the structures that imaginary modes lead to; there is no part without such a structure.

    Args:
        task: The task.
        folder: Folder of their parts.
        rows: int64[n], rows of the materials in their stores.
        computed: Results of the materials.
    """
    outcomes = [one.outcomes[Phonons.name] for one in computed]
    found = {place: one.derived for place, one in enumerate(outcomes) if one.derived is not None}
    if not found:
        return
    unknown = np.full((3, 3), np.nan)
    relaxed = [
        Relaxed(batched.OK, None, Frame(one.structure, one.energy, one.forces, one.stress, unknown), 0)
        for one in found.values()
    ]
    graphs = graph_rows([one.structure for one in found.values()], relaxed, task.place.graph_store.cutoff)
    columns = task.place.graph_columns(["status"], rows[list(found)])
    graphs["status"] |= kept_status(np.asarray(columns.pop("status")))
    parents = columns["structure_id"]
    gains = [outcomes[place].values["followed_energy_gain"] for place in found]
    columns |= {
        "structure_id": [f"{parent}-followed" for parent in parents],
        "followed_from": list(parents),
        "energy_gain": [f"{gain:.6f}" for gain in gains],
    }
    size = len(found)
    counts = {"read": size, STRUCTURE: size, ATOM: len(graphs["atomic_number"]), EDGE: len(graphs["neighbor"])}
    write_part(folder, task.key, {**graphs, **columns}, counts, {})
