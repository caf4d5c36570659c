"""What Lightning calls during a training besides its steps: saving, log lines, the trainer itself."""

from __future__ import annotations

import logging
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

from ...pipeline.errors import ConfigError, detail
from ...pipeline.runs.progress import LINE_EVERY_S
from ..config.training import TrainingConfig
from .schedule import RunningMean

LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


class Recovery(Checkpoint):
    """Saves the state at the end of each epoch, and within epochs now and then.

    It is a `Checkpoint` so that Lightning calls it behind all others, whose state it saves.

    Args:
        path: Of the checkpoint, which is replaced whole.
        minutes: Between two within an epoch.
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
        """Save, if it is time; with several processes all have to, and the first one's clock decides."""
        due = time.monotonic() - self._last >= self.seconds
        if trainer.world_size > 1:
            due = bool(trainer.strategy.broadcast(due))
        if due and batch_idx + 1 < trainer.num_training_batches:
            self._save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Save at the end of an epoch."""
        if trainer.state.fn == "fit":
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._last = time.monotonic()


class Best(ModelCheckpoint):
    """Keeps the weights with the smallest validation loss, in a run folder that may be moved.

    Args:
        path: Of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent, filename=path.stem, monitor="validation/loss", enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best so far; Lightning's own forgets it where the folder has another name."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        moved = {name: here(value) for name, value in state_dict.items() if name.endswith("_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


class Patience(EarlyStopping):
    """Stops after some epochs without improvement, and does not go on when a stopped run is taken up.

    Args:
        epochs: How many.
    """

    def __init__(self, epochs: int) -> None:
        # Before the state is saved, which is at the end of the validation.
        super().__init__("validation/loss", patience=epochs, check_on_train_epoch_end=False)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Stop at once, if it had stopped."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class EpochLines(Callback):
    """One line of errors now and then, for logs.

    Args:
        units: Of the outputs.
    """

    def __init__(self, units: Mapping[str, str]) -> None:
        self.units = dict(units)
        self._last = time.monotonic()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Print, if it is time."""
        if not trainer.is_global_zero or time.monotonic() - self._last < LINE_EVERY_S:
            return
        self._last = time.monotonic()
        found = {name: float(trainer.callback_metrics[f"validation/{name}_mae"]) for name in self.units}
        errors = ", ".join(f"{name} {found[name]:.4g} {unit}".rstrip() for name, unit in self.units.items())
        line = f"train: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}; validation MAE {errors}"
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - a log line is what it is for


def make_trainer(
    folder: Path, config: TrainingConfig, units: Mapping[str, str], *, progress: bool
) -> lightning.Trainer:
    """Lightning's trainer for a run.

    Args:
        folder: Of the run.
        config: Of the training.
        units: Of the outputs, for log lines.
        progress: Show it.

    Raises:
        ConfigError: Devices that the machine does not have.
    """
    # Buffers are constants, some of them integers, which an average would round.
    callbacks: list[Callback] = [
        WeightAveraging(use_buffers=False, avg_fn=RunningMean(config.ema_decay)),
        Best(folder / BEST),
        Recovery(folder / LAST, config.checkpoint_minutes),
    ]
    if config.early_stop_epochs is not None:
        callbacks.append(Patience(config.early_stop_epochs))
    bar = progress and sys.stderr.isatty()
    if bar:
        callbacks.append(RichProgressBar())
    elif progress:
        callbacks.append(EpochLines(units))
    cuda = torch.cuda.is_available()  # Lightning's "auto" would take a GPU without float64 on other machines
    accelerator = ("cuda" if cuda else "cpu") if config.accelerator == "auto" else config.accelerator
    try:
        return _trainer(folder, config, accelerator, callbacks, bar=bar)
    except MisconfigurationException as error:
        raise ConfigError(f"training.accelerator {accelerator}, devices {config.devices}: {detail(error)}") from error


def _trainer(
    folder: Path, config: TrainingConfig, accelerator: str, callbacks: list[Callback], *, bar: bool
) -> lightning.Trainer:
    log = _next_log(folder)
    return lightning.Trainer(
        accelerator=accelerator,
        devices=config.devices,
        # Spawned processes, since a user's program may be no script that can be started again.
        strategy="ddp_spawn" if config.devices > 1 else "auto",
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
    """Each call of a run has a log of its own, so that none is lost."""
    known = [path.name for path in (folder / "log").glob("part-*")]
    return f"part-{len(known):03d}"


def silence_lightning() -> None:
    """For good, in a process that does nothing else."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch.optim.lr_scheduler")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's notices on devices and data loaders."""
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
