"""Options shared by all runs over a store."""

from __future__ import annotations

from dataclasses import dataclass

# Neighbour slots per batch. In smaller batches, the fixed cost of each ONNX node dominates; in larger ones,
# intermediate arrays no longer fit in the cache (docs/performance.md).
DEFAULT_SLOTS = 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options of a run.

    Attributes:
        scheduler: Dask cluster to work on; see `pipeline.runs.cluster.connect`.
        limit: Process only the first `limit` structures; None processes all.
        overwrite: Replace an existing output, and discard an unfinished run with different settings.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.
        device: Device on which the model runs; see `export.runtime.providers.providers`.
        slots: Neighbour slots per batch of an evaluation; None chooses them: `DEFAULT_SLOTS` on the CPU, by memory on
            a GPU.
        gpus: GPUs of this machine, each of which gets a worker, as CUDA_VISIBLE_DEVICES names them; without any, there
            is a worker per core.
        allow_mixed_devices: Accept workers, and parts of earlier runs, with other kinds of devices.
    """

    scheduler: str | None = None
    limit: int | None = None
    overwrite: bool = False
    progress: bool | None = None
    device: str = "cpu"
    slots: int | None = None
    gpus: tuple[str, ...] = ()
    allow_mixed_devices: bool = False

    @property
    def chosen_slots(self) -> int | None:
        """Neighbour slots per batch; None if each worker chooses them by the memory of its GPU."""
        return self.slots or (DEFAULT_SLOTS if self.device == "cpu" else None)
