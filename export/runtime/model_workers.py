"""Workers that have loaded the models of a run, and the check that they compute on one kind of device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Self, TypeVar

from distributed import get_worker

from ...pipeline.errors import DeviceError
from ...pipeline.runs.cluster import declares, this_worker
from ...pipeline.runs.failure_policy import run_tasks
from ...pipeline.runs.parts import computed_on
from ...pipeline.store.writer import StoreRun
from .dask_plugin import ModelPlugin
from .onnx_potential import OnnxPotential
from .providers import resource_of

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ModelWorkers:
    """The workers of a run that have loaded its models.

    On one kind of device and instruction set, results do not depend on the workers to the last bit. Therefore all parts
    of a run are computed on one kind: that of the parts of earlier runs or, without any, that of the first worker.

    Attributes:
        resource: Resource that these workers declare; None if all workers are among them.
        computes_on: What they compute on; None if kinds may be mixed.
        names: Name of the worker plugin that holds each model.
    """

    resource: str | None
    computes_on: str | None
    names: tuple[str, ...]

    @classmethod
    def of(cls, run: StoreRun, models: Mapping[str, str | Path], earlier: Iterable[str] = ()) -> Self:
        """Load models on the workers of a run.

        If some worker declares the resource of the device (GPU or CPU), only workers that declare it get tasks.

        Args:
            run: The run in progress.
            models: Path of each model file, by its SHA-256.
            earlier: What the existing rows, to which this run adds others, were computed on.

        Raises:
            ModelFileError: A file cannot be read, or has changed since the run began.
            DeviceError: A worker does not have the device; or the parts of earlier runs were computed on several kinds
                of devices.
        """
        options = run.options
        wanted = resource_of(options.device)
        resource = wanted if wanted is not None and declares(run.client, wanted) else None
        names = []
        for sha256, path in models.items():
            plugin = ModelPlugin(Path(path).resolve(), sha256, options.slots, options.device, resource)
            names.append(plugin.name)
            run.client.register_plugin(plugin)
        if options.allow_mixed_devices:
            return cls(resource, None, tuple(names))
        kinds = sorted({*earlier, *computed_on(run.resumed)})
        if len(kinds) > 1:
            raise DeviceError(
                f"{run.staging.out}: earlier parts were computed on different devices ({'; '.join(kinds)}), whose "
                "results differ by rounding; use --allow-mixed-devices, or --overwrite to start again"
            )
        if not kinds:
            kinds = list(run_tasks(run.client, _computes_on, names[:1], note=run.bar.note, resource=resource))
        return cls(resource, kinds[0], tuple(names))

    def bound(self, function: Callable[[Task], Result]) -> OnOneDevice[Task, Result]:
        """Return the function of a task, which first checks what its worker computes on."""
        return OnOneDevice(function, self.names[0], self.computes_on)


@dataclass(frozen=True, slots=True)
class OnOneDevice(Generic[Task, Result]):
    """The function of a task that runs only on workers with one kind of device.

    Attributes:
        function: Processes one task.
        name: Name of a worker plugin that holds a model.
        computes_on: What the worker must compute on; None accepts everything.
    """

    function: Callable[[Task], Result]
    name: str
    computes_on: str | None

    @property
    def __name__(self) -> str:
        """Name of the function, which Dask's dashboard shows."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def __call__(self, task: Task) -> Result:
        """Check what this worker computes on, and process a task.

        Raises:
            DeviceError: The other parts of the run are computed on another kind of device or instruction set.
        """
        found = _computes_on(self.name)
        if self.computes_on not in (None, found):
            raise DeviceError(
                f"{this_worker()} computes on {found}, but the other parts of this run on {self.computes_on}, and "
                "results differ by rounding; use workers of one kind, or --allow-mixed-devices"
            )
        return self.function(task)


def loaded_model(name: str) -> OnnxPotential:
    """Return the model that a plugin of this worker holds."""
    potential: OnnxPotential = get_worker().plugins[name].potential
    return potential


def _computes_on(name: str) -> str:
    return loaded_model(name).computes_on
