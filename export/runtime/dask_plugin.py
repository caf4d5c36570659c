"""Worker plugin that holds the ONNX Runtime session of a model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin

from ...pipeline.errors import ModelFileError
from .onnx_potential import OnnxPotential, read_model


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
