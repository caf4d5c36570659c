"""Dask worker plugin that holds the ONNX Runtime session of a model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin

from ...pipeline.errors import ModelFileError
from .onnx_potential import OnnxPotential, read_model


class ModelPlugin(WorkerPlugin):  # type: ignore[misc]
    """Loads a model once per worker, including workers that start later.

    The plugin carries the content of the file, since workers need not see the folders of the process that starts a run.

    Args:
        model: Path of the ONNX file.
        sha256: SHA-256 of the file when the run began.
        slots: Number of neighbour slots per batch; see `OnnxPotential`.
        device: Device on which the model runs; see `export.runtime.providers.providers`.
        resource: Resource without which a worker gets no tasks and loads no model; None loads it on all workers.

    Raises:
        ModelFileError: The file cannot be read, or has changed since the run began.
    """

    idempotent = True

    def __init__(self, model: Path, sha256: str, slots: int | None, device: str, resource: str | None = None) -> None:
        self.model, self.sha256, self.slots, self.device = model, sha256, slots, device
        self.resource = resource
        # A worker may serve several runs, whose settings differ.
        self.name = f"equiscreen-{sha256}-{slots}-{device}-{resource}"
        self.data = read_model(model)
        if hashlib.sha256(self.data).hexdigest() != sha256:
            raise ModelFileError(f"{model}: the file has changed since the run began; restore the file")
        self.potential: OnnxPotential | None = None

    def setup(self, worker: Any) -> None:
        """Load the model when a worker starts, unless the worker lacks the resource of the run.

        Raises:
            ModelFileError: ONNX Runtime is not installed on the worker, or cannot load the model.
            DeviceError: The worker does not have this device.
        """
        data, self.data = self.data, b""
        if self.resource is not None and self.resource not in worker.state.total_resources:
            return
        self.potential = OnnxPotential(
            data, str(self.model), threads=worker.state.nthreads, slots=self.slots, device=self.device
        )
