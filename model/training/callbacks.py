"""Lightning callbacks (saving, early stopping, log lines) and the trainer that runs them."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import FileStore  # type: ignore[attr-defined] # documented, but not in __all__

from ...pipeline.errors import ConfigError, detail
from ...pipeline.runs.progress import LINE_EVERY_S, shows_progress
from ..config.training import TrainingConfig
from .schedule import RunningMean

# File in the run folder through which the processes of a training run find each other.
RENDEZVOUS = "processes"
_LOOPBACK = ("lo", "lo0")
LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


class Recovery(Checkpoint):
    """Saves the state at the end of each epoch, and periodically within epochs.

    It is a `Checkpoint` so that Lightning calls it after all other callbacks, whose state it saves.

    Args:
        path: Path of the checkpoint, which is replaced atomically.
        minutes: Time between two saves within an epoch.
    """

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.seconds = path, 60 * minutes
        self._last = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Save the state if a save is due; with several processes, the clock of the first process decides for all."""
        due = time.monotonic() - self._last >= self.seconds
        if trainer.world_size > 1:
            due = bool(trainer.strategy.broadcast(due))
        if due and batch_idx + 1 < trainer.num_training_batches:
            self._save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Save the state of the run at the end of an epoch."""
        if trainer.state.fn == "fit":
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._last = time.monotonic()


class Best(ModelCheckpoint):
    """Keeps the weights with the smallest validation loss, even after the run folder was moved.

    Args:
        path: Path of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent, filename=path.stem, monitor="validation/loss", enable_version_counter=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with names of files instead of their paths on this machine."""
        found = super().state_dict()
        named = {name: Path(value).name for name, value in found.items() if name.endswith("_model_path")}
        best = {Path(path).name: score for path, score in found["best_k_models"].items()}
        return {**found, **named, "best_k_models": best, "dirpath": ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the record of the best weights, which Lightning's own method discards if the folder was renamed."""

        def relocated(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        moved = {name: relocated(value) for name, value in state_dict.items() if name.endswith("_model_path")}
        best = {relocated(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


class Patience(EarlyStopping):
    """Stops after a number of epochs without improvement; a stopped run does not continue when it is resumed.

    Args:
        epochs: Number of epochs without improvement.
    """

    def __init__(self, epochs: int) -> None:
        # Check before the state is saved, which happens at the end of the validation.
        super().__init__("validation/loss", patience=epochs, check_on_train_epoch_end=False)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """End the training at once if early stopping had already ended the run."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class EpochLines(Callback):
    """Prints a line with the validation loss and errors: after every epoch on a terminal, at intervals in a log.

    Args:
        units: Units of the outputs, by name.
        every_s: Minimum time between two lines, in seconds.
    """

    def __init__(self, units: Mapping[str, str], every_s: float = LINE_EVERY_S) -> None:
        self.units, self.every_s = dict(units), every_s
        self._last = time.monotonic()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Print a line of progress if one is due."""
        if not trainer.is_global_zero or time.monotonic() - self._last < self.every_s:
            return
        self._last = time.monotonic()
        found = {name: float(trainer.callback_metrics[f"validation/{name}_mae"]) for name in self.units}
        errors = ", ".join(f"{name} {found[name]:.4g} {unit}".rstrip() for name, unit in self.units.items())
        loss = float(trainer.callback_metrics["validation/loss"])
        epoch = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        line = f"train: {epoch}; validation loss {loss:.4g}, MAE {errors}"
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the log line


class LocalProcesses(DDPStrategy):
    """Several processes on this machine, to which no other machine can connect.

    By default PyTorch lets the processes find each other through a server that listens on all interfaces.

    Args:
        rendezvous: File through which the processes find each other instead; its file system must support locks.
    """

    def __init__(self, rendezvous: Path) -> None:
        # Spawn processes, since the user's program need not be a script that can be started again.
        super().__init__(start_method="spawn")
        self.rendezvous = rendezvous

    def setup_distributed(self) -> None:
        """Connect the processes in a group, over the loopback interface; Lightning then uses this group."""
        self.set_world_ranks()
        loopback = next((name for _, name in socket.if_nameindex() if name in _LOOPBACK), None)
        if loopback is not None:  # by default, processes listen on the address of the machine
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
        torch.distributed.init_process_group(
            self._get_process_group_backend(),
            store=FileStore(str(self.rendezvous), self.world_size),
            rank=self.global_rank,
            world_size=self.world_size,
            timeout=self._timeout,
            device_id=None if self.root_device.type == "cpu" else self.root_device,
        )
        super().setup_distributed()


def make_trainer(
    folder: Path, config: TrainingConfig, units: Mapping[str, str], *, progress: bool | None
) -> lightning.Trainer:
    """Build Lightning's trainer for a run.

    Args:
        folder: Run folder.
        config: Settings of the training.
        units: Units of the outputs, for log lines.
        progress: Whether to show progress; None shows it on a terminal and in a notebook.

    Raises:
        ConfigError: The machine does not have the requested devices.
    """
    # Buffers are constants, and averaging would round integer buffers.
    callbacks: list[Callback] = [
        WeightAveraging(use_buffers=False, avg_fn=RunningMean(config.ema_decay)),
        Best(folder / BEST),
        Recovery(folder / LAST, config.checkpoint_minutes),
    ]
    if config.early_stop_epochs is not None:
        callbacks.append(Patience(config.early_stop_epochs))
    shown = shows_progress(progress)
    bar = shown and sys.stderr.isatty()
    if bar:
        callbacks.append(RichProgressBar())
    if shown:
        callbacks.append(EpochLines(units, every_s=0.0 if bar else LINE_EVERY_S))
    cuda = torch.cuda.is_available()  # Lightning's "auto" would pick a GPU without float64 on some machines
    accelerator = ("cuda" if cuda else "cpu") if config.accelerator == "auto" else config.accelerator
    try:
        return _trainer(folder, config, accelerator, callbacks, bar=bar)
    except MisconfigurationException as error:
        raise ConfigError(
            f"training.accelerator {accelerator} with training.devices {config.devices} is not available on this "
            f"machine ({detail(error)}); change these settings"
        ) from error


def _trainer(
    folder: Path, config: TrainingConfig, accelerator: str, callbacks: list[Callback], *, bar: bool
) -> lightning.Trainer:
    log = _next_log(folder)
    return lightning.Trainer(
        accelerator=accelerator,
        devices=config.devices,
        strategy=LocalProcesses(folder / RENDEZVOUS) if config.devices > 1 else "auto",
        max_epochs=config.max_epochs,
        max_time=None if config.max_minutes is None else {"minutes": config.max_minutes},  # type: ignore[dict-item]
        inference_mode=False,  # forces are gradients, in validation too
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=[
            CSVLogger(folder, name="log", version=log),
            TensorBoardLogger(folder, name="tensorboard", version=log),
        ],
        callbacks=callbacks,
        enable_progress_bar=bar,
        enable_model_summary=False,
        log_every_n_steps=1,
    )


def _next_log(folder: Path) -> str:
    """Return the name of a new log; a resumed run starts a new log, so that none is overwritten."""
    known = [path.name for path in (folder / "log").glob("part-*")]
    return f"part-{len(known):03d}"


def silence_lightning() -> None:
    """Silence Lightning's notices permanently, in a process that does nothing else."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch.optim.lr_scheduler")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's notices about devices and data loaders within the context."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", module="torch.optim.lr_scheduler")
            yield
    finally:
        logger.setLevel(level)
