"""Lightning module of the training: loss, gradients, optimiser, and errors on the validation structures."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor

from ...pipeline.errors import EquiscreenError
from ...pipeline.labels.quantities import ENERGY
from ...pipeline.memory import is_out_of_memory
from ..config.training import TrainingConfig
from ..data.batches import Batch, StructureBatches
from ..data.training_data import TrainingData
from ..evaluation.metrics import predictions_and_labels
from ..networks.base import Network
from .allocator import give_back_memory, keep_freed_memory
from .callbacks import silence_lightning
from .finetune import is_by_element, is_by_pair
from .losses import Residual, penalty, residuals, term_of, total_loss
from .schedule import Schedule

# A label more than this many times as large as the median is considered a mistake.
BY_FAR = 1e6


class _Loader:
    """Batches of one epoch; a run that was stopped within an epoch skips the batches that it has already processed."""

    def __init__(self, batches: StructureBatches, length: int) -> None:
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class TrainingModule(lightning.LightningModule):
    """Training with manual optimisation: in a single process, a batch that does not fit into memory is split.

    Args:
        network: Network to train.
        config: Settings of the training.
        data: Data to train on.
    """

    def __init__(self, network: Network, config: TrainingConfig, data: TrainingData) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.config, self.data = network, config, data
        self.parts = 1
        self._done = 0
        # Rows of the elements that occur only in replayed structures.
        self._other_elements: list[int] = []
        if data.replay is not None:
            learned = {int(number) for store in data.stores for number in store.elements}
            self._other_elements = [row for row, element in enumerate(network.elements) if element not in learned]
        self._resumed = (0, 0)  # epoch and number of batches that were processed before an interruption
        self._sums: dict[str, Tensor] = {}
        self._wrong = ""
        self._before: tuple[Batch, dict[str, Residual]] | None = None
        self._spent = 0.0
        self._batches: StructureBatches | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingModule:
        """Copy the weights for the moving average; the data is shared."""
        return TrainingModule(copy.deepcopy(self.network, memo), self.config, self.data)

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Set up memory, logging and threads in each process."""
        keep_freed_memory()
        if self.trainer.world_size > 1:
            silence_lightning()
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)

    def train_dataloader(self) -> _Loader:
        """Return batches in an order that differs between epochs but not between runs."""
        epoch, done = self._resumed
        # Lightning also calls this before it knows which epoch it resumes, to count the batches.
        skip = done if self.trainer.current_epoch == epoch else 0
        self._batches = self._share("training", (self.config.seed, self.trainer.current_epoch), skip)
        return _Loader(self._batches, len(self._batches) + skip)

    def val_dataloader(self) -> _Loader:
        """Return batches in the order of the stores."""
        batches = self._share("validation", None, 0)
        return _Loader(batches, len(batches))

    def _share(self, subset: str, order: tuple[int, int] | None, skip: int) -> StructureBatches:
        share = (self.trainer.global_rank, self.trainer.world_size)
        return self.data.batches(subset, self.network, self.config, shuffle=order, share=share, skip=skip)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Move all tensors of a batch to a device."""
        return batch.to(device)

    def on_train_epoch_start(self) -> None:
        """Reset the time spent on training steps."""
        self._spent = 0.0

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the weights with the gradient of one batch.

        Raises:
            EquiscreenError: The loss or its gradient is not finite, or there is not enough memory.
        """
        begin = time.monotonic()
        optimizer = self.optimizers()
        loss = self._gradients(batch, optimizer)  # type: ignore[arg-type]
        self._leave_other_elements()
        norm = torch.nn.utils.clip_grad_norm_(self._trainable_parameters(), self.config.gradient_clip)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise EquiscreenError(self._describe_divergence(batch, batch_idx, loss))
        optimizer.step()  # type: ignore[union-attr]
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self._done = batch_idx + 1
        self._spent += time.monotonic() - begin
        self.log("training/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))

    def _trainable_parameters(self) -> list[torch.nn.Parameter]:
        # Sorted, since the optimiser identifies weights by position and a run may resume with its heads reordered.
        named = sorted(self.network.named_parameters(), key=lambda item: item[0])
        return [parameter for _, parameter in named if parameter.requires_grad]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        parameters = self._trainable_parameters()
        if not self.config.relative_rate:
            return [{"params": parameters}]
        # A resumed run gets its learning rates from the state of the optimiser.
        sizes = [float(parameter.detach().square().mean().sqrt()) or 1.0 for parameter in parameters]
        return [
            {"params": [parameter], "lr": self.config.learning_rate * size}
            for parameter, size in zip(parameters, sizes, strict=True)
        ]

    def _leave_other_elements(self) -> None:
        """Clear the gradients of the weights of elements that occur only in replayed structures.

        Few batches contain these elements, and in the first steps their gradients are noise. Adam, which divides by the
        size of gradients, would turn each of them into a large step.
        """
        if not self._other_elements:
            return
        for name, parameter in self.network.named_parameters():
            if parameter.grad is None:
                continue
            if is_by_element(name) or is_by_pair(name):
                parameter.grad[self._other_elements] = 0.0
            if is_by_pair(name):
                parameter.grad[:, self._other_elements] = 0.0

    def _gradients(self, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        """Compute the loss of a batch over all processes, and accumulate its gradients."""
        while True:
            optimizer.zero_grad()
            try:
                return self._backward(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(batch, optimizer, error)

    def _backward(self, batch: Batch) -> Tensor:
        counts = self._global_counts(batch)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        seen: dict[str, Residual] = {}
        for part in batch.split(self.parts):
            found = residuals(self.network, self.network.predict(*part.inputs), part)
            loss = total_loss(found, self.config.loss, counts)
            # Lightning averages gradients over processes, but here they are parts of one sum.
            self.manual_backward(loss * self.trainer.world_size)
            total += loss.detach()
            seen = {name: Residual(x.error.detach(), x.known, x.per_atom) for name, x in found.items()}
        if torch.isfinite(total):
            self._before = (batch, seen) if self.parts == 1 else None
        return self._sum_over_processes(total)

    def _global_counts(self, batch: Batch) -> dict[str, Tensor]:
        names = sorted(batch.labels)
        counts = torch.stack([torch.isfinite(batch.labels[name]).sum() for name in names]).double()
        return dict(zip(names, self._sum_over_processes(counts), strict=True))

    def _sum_over_processes(self, value: Tensor) -> Tensor:
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(value)
        return value

    def _halve(self, batch: Batch, optimizer: torch.optim.Optimizer, error: Exception) -> None:
        if self.trainer.world_size > 1:
            raise EquiscreenError(
                f"out of memory in one process (number of structures: {len(batch)}); lower training.batch_size, or set "
                "training.devices to 1, which splits batches as needed"
            ) from error
        if self.parts >= len(batch):
            raise EquiscreenError(
                f"out of memory even for one structure at a time: {self.data.names(batch, range(len(batch)))}; "
                "leave out the largest structures, or use a machine with more memory"
            ) from error
        self.parts *= 2
        optimizer.zero_grad()
        give_back_memory()
        line = f"train: out of memory; batches are now processed in {self.parts} parts, with the same results"
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - printed where progress is shown

    def _describe_divergence(self, batch: Batch, batch_idx: int, loss: Tensor) -> str:
        """Describe which structure made the loss or its gradient infinite or NaN; epochs and batches count from 1."""
        where = f"the loss became {loss.item():.3g} in epoch {self.current_epoch + 1}, batch {batch_idx + 1}"
        if torch.isfinite(loss):
            where = f"the gradient became infinite or NaN in epoch {self.current_epoch + 1}, batch {batch_idx + 1}"
        rows = np.flatnonzero(np.concatenate([self._not_finite(part) for part in batch.split(len(batch))]))
        if 0 < len(rows) < len(batch):
            return f"{where}, caused by {self.data.names(batch, rows.tolist())}; check the labels and distances"
        # A label of 1e30 corrupts references and scales, so that other structures can fail before its own structure.
        hint = largest_label(self.data, self.network, self.config)
        if not hint and self._before is not None:
            last, seen = self._before
            worst = int(np.argmax(by_structure(last, seen, torch.abs)))
            when = "in this step" if last is batch else "in the previous step"
            hint = f"; {when}, the largest error was in {self.data.names(last, [worst])}"
        return f"{where}{hint}; check the labels, or lower training.learning_rate"

    def _not_finite(self, batch: Batch) -> NDArray[np.float64]:
        """Count the non-finite errors of each structure: float64[G].

        Pass one structure at a time: in a larger batch, sums over atoms spread a NaN to other structures.
        """
        return by_structure(batch, self._errors(batch), lambda x: (~torch.isfinite(x)).double())

    def on_train_epoch_end(self) -> None:
        """Log times and the learning rate."""
        waited = 0.0 if self._batches is None else self._batches.waited_s
        self.log("training/seconds", self._spent + waited)
        self.log("training/waited_seconds", waited)
        group = self.optimizers().param_groups[0]  # type: ignore[union-attr]
        self.log("learning_rate", self.config.learning_rate * group["lr"] / group["initial_lr"])

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of the validation errors."""
        self._sums = {}
        self._wrong = ""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Add the errors of one batch to the sums of the validation errors."""
        for part in batch.split(self.parts):
            found = self.network.predict(*part.inputs)
            errors = residuals(self.network, found, part)
            self._note_non_finite(part, errors)
            for name, residual in errors.items():
                term = term_of(self.config.loss, name)
                self._add(f"{name}/penalty", penalty(residual.error, term).sum())
                self._add(f"{name}/terms", residual.known.sum())
            for name, (value, label) in predictions_and_labels(self.network, found, part).items():
                known = torch.isfinite(label)
                self._add(f"{name}/absolute", torch.where(known, value - label, 0.0).abs().sum())
                self._add(f"{name}/count", known.sum())

    def _note_non_finite(self, batch: Batch, errors: Mapping[str, Residual]) -> None:
        squares = torch.stack([residual.error.square().sum() for residual in errors.values()])
        if not self._wrong and not torch.isfinite(squares).all():
            each = [by_structure(part, self._errors(part), torch.square) for part in batch.split(len(batch))]
            rows = np.flatnonzero(~np.isfinite(np.concatenate(each)))
            self._wrong = self.data.names(batch, rows.tolist())

    def _errors(self, batch: Batch) -> dict[str, Residual]:
        with torch.enable_grad():
            return residuals(self.network, self.network.predict(*batch.inputs), batch)

    def _add(self, key: str, value: Tensor) -> None:
        self._sums[key] = self._sums.get(key, torch.zeros((), device=value.device)) + value.detach().double()

    def on_validation_epoch_end(self) -> None:
        """Log mean errors over all validation structures of all processes.

        Raises:
            EquiscreenError: The loss is not finite, so epochs cannot be compared.
        """
        names = sorted(self._sums)
        sums = dict(
            zip(names, self._sum_over_processes(torch.stack([self._sums[name] for name in names])), strict=True)
        )
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for name in (spec.name for spec in self.network.outputs):
            self.log(f"validation/{name}_mae", sums[f"{name}/absolute"] / sums[f"{name}/count"])
            if sums[f"{name}/terms"] > 0:
                loss += term_of(self.config.loss, name).weight * sums[f"{name}/penalty"] / sums[f"{name}/terms"]
        if not torch.isfinite(loss):
            by = f", caused by {self._wrong}" if self._wrong else ""
            raise EquiscreenError(
                f"the validation loss became {loss.item():.3g} in epoch {self.current_epoch + 1}{by}; check the "
                "labels, or lower training.learning_rate"
            )
        self.log("validation/loss", loss)
        if self.trainer.training or self.trainer.validating:
            self._schedule().validated(float(loss))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Configure AdamW with a schedule that is updated every step."""
        optimizer = torch.optim.AdamW(
            self._parameter_groups(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            amsgrad=True,
        )
        total = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule(self.config, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _schedule(self) -> Schedule:
        schedule: Schedule = self.lr_schedulers().lr_lambdas[0]  # type: ignore[union-attr]
        return schedule

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the position in the epoch and the number of parts per batch."""
        checkpoint["batches_done"] = self._done
        checkpoint["batch_parts"] = self.parts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume after the batches that have been processed."""
        self._resumed = (int(checkpoint["epoch"]), int(checkpoint["batches_done"]))
        self.parts = int(checkpoint["batch_parts"])


def by_structure(
    batch: Batch, found: Mapping[str, Residual], measure: Callable[[Tensor], Tensor]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Sum a measure of the errors of each structure: float64[G].

    Args:
        batch: Batch with G structures.
        found: Errors of each quantity, by name.
        measure: Function applied to each error before the sum.
    """
    out = torch.zeros(len(batch), dtype=torch.float64)
    structure = batch.input("structure").cpu()
    for residual in found.values():
        values = measure(residual.error.detach()).double().cpu().reshape(len(residual.error), -1).sum(1)
        out = out.index_add(0, structure, values) if residual.per_atom else out + values
    return out.numpy()


def largest_label(data: TrainingData, network: Network, config: TrainingConfig) -> str:
    """Describe the training label that is by far the largest of its kind; empty if none stands out."""
    sizes: dict[str, list[NDArray[np.float64]]] = {}
    place: list[tuple[Batch, int]] = []
    for batch in data.batches("training", network, config):
        place += [(batch, row) for row in range(len(batch))]
        for name in batch.labels:
            sizes.setdefault(name, []).append(_label_sizes(batch, name))
    largest, hint = BY_FAR, ""
    for name, parts in sizes.items():
        size = np.concatenate(parts)
        if not size.any():
            continue
        worst = int(size.argmax())
        ratio = size[worst] / np.median(size[size > 0])
        if ratio > largest:
            batch, row = place[worst]
            largest, hint = ratio, f"; by far the largest label is {name} of {data.names(batch, [row])}"
    return hint


def _label_sizes(batch: Batch, name: str) -> NDArray[np.float64]:
    """Return the largest absolute number in each structure's label, float64[G]; 0 without a label.

    Energies are per atom.
    """
    values = batch.labels[name].cpu().abs()
    values = torch.where(torch.isfinite(values), values, 0.0).reshape(len(values), -1).amax(1)
    if len(values) != len(batch):  # one label per atom
        values = torch.zeros(len(batch), dtype=values.dtype).scatter_reduce(
            0, batch.input("structure").cpu(), values, "amax"
        )
    return (values / batch.n_atoms.cpu() if name == ENERGY else values).numpy()
