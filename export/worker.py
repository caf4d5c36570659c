"""What runs on a Dask worker during a screen: one ONNX session for each worker, and the scoring of one part."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin, get_worker

from ..pipeline.errors import ModelFileError
from ..pipeline.parts import PartKey, Receipt, write_part
from ..pipeline.store import GraphStore
from .runtime import OnnxPotential, read_model
from .scores import score_block, status_counts

CARRIED = ("structure_id", "source", "source_index")


@dataclass(frozen=True, slots=True)
class ScreenTask:
    """The structures of one part, and where it goes.

    Attributes:
        number: Of the part.
        start, stop: Structures of the store.
        store: The graph store.
        columns: Input columns to carry along.
        model_sha256: Names the plugin that holds the session.
        folder: Of the parts.
    """

    number: int
    start: int
    stop: int
    store: Path | str
    columns: tuple[str, ...]
    model_sha256: str
    folder: Path

    @property
    def key(self) -> PartKey:
        """Of its part."""
        return PartKey(self.number, 0, self.stop - self.start)


class ModelPlugin(WorkerPlugin):  # type: ignore[misc]
    """Loads the model once on each worker, also on those that start later.

    Args:
        model: The file.
        sha256: That it had when the run began.
        slots: See `OnnxPotential`.
        device: See `devices.providers`.
    """

    idempotent = True

    def __init__(self, model: Path, sha256: str, slots: int, device: str) -> None:
        self.model, self.sha256, self.slots, self.device = model, sha256, slots, device
        self.name = plugin_name(sha256)
        self.potential: OnnxPotential | None = None

    def setup(self, worker: Any) -> None:
        """Load the model when a worker starts.

        Raises:
            ModelFileError: The file has changed since the run began.
            DeviceError: The worker has no such device.
        """
        data = read_model(self.model)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ModelFileError(f"{self.model}: changed since the run began")
        self.potential = OnnxPotential(
            data, str(self.model), threads=worker.state.nthreads, slots=self.slots, device=self.device
        )


def plugin_name(sha256: str) -> str:
    """Name of the plugin that holds a model."""
    return f"equiscreen-{sha256}"


def screen_part(task: ScreenTask) -> Receipt:
    """Score one part; the body of a Dask task, on a worker with a `ModelPlugin`."""
    potential = get_worker().plugins[plugin_name(task.model_sha256)].potential
    graphs = GraphStore(task.store)
    arrays = score_block(graphs.block(task.start, task.stop, labels=False), potential)
    for name in (*CARRIED, *task.columns):
        values = graphs.column(name, task.start, task.stop)
        arrays[name] = values.tolist() if values.dtype.kind == "T" else values
    statuses = list(status_counts(arrays["status"]).values())
    return write_part(task.folder, task.key, arrays, {"read": task.stop - task.start}, {"status": statuses})
