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
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from .config import TrainingConfig
from .schedule import RunningMean

LINE_EVERY_S = 10.0
LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


class Recovery(Callback):
    """Saves the state in the middle of an epoch now and then; at its end `ModelCheckpoint` does.

    Args:
        path: Of the checkpoint, which is replaced whole.
        minutes: Between two.
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
            trainer.save_checkpoint(self.path)
            self._last = time.monotonic()


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
    """
    # Buffers are constants, some of them integers, which an average would round.
    callbacks: list[Callback] = [
        WeightAveraging(use_buffers=False, avg_fn=RunningMean(config.ema_decay)),
        Recovery(folder / LAST, config.checkpoint_minutes),
        ModelCheckpoint(
            (folder / BEST).parent,
            filename=Path(BEST).stem,
            monitor="validation/loss",
            save_last=True,
            enable_version_counter=False,
        ),
    ]
    if config.early_stop_epochs is not None:
        callbacks.append(EarlyStopping("validation/loss", patience=config.early_stop_epochs))
    bar = progress and sys.stderr.isatty()
    if bar:
        callbacks.append(RichProgressBar())
    elif progress:
        callbacks.append(EpochLines(units))
    log = _next_log(folder)
    return lightning.Trainer(
        accelerator=config.accelerator,
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
