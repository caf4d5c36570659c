"""Training from a graph store with Lightning: loss on energy, forces and stress, running mean of weights, resume."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from ..pipeline.errors import ConfigError, EquiscreenError, OutputExistsError
from ..pipeline.lock import locked
from ..pipeline.parts import write_text_atomically
from ..pipeline.staging import check_place
from ..pipeline.store import GraphStore
from .checkpoint import ModelCard, save_checkpoint
from .config import Config, TrainingConfig
from .data import Batch, StructureBatches, fit_statistics, of_elements, split, with_energy
from .network import DataStatistics, EquivariantNetwork

UNITS = {"energy": "eV/atom", "forces": "eV/angstrom", "stress": "eV/angstrom^3"}
LINE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training ended with.

    Attributes:
        checkpoint: The model.
        validation: Mean absolute errors on the validation structures, in the units of `UNITS`; NaN without labels.
        n_training, n_validation: Structures.
        epochs: Trained in all.
        seconds: Of this call.
    """

    checkpoint: Path
    validation: dict[str, float]
    n_training: int
    n_validation: int
    epochs: int
    seconds: float

    def __str__(self) -> str:
        errors = ", ".join(f"{name} {value:.4g} {UNITS[name]}" for name, value in self.validation.items())
        return (
            f"{self.checkpoint}: {self.epochs} epochs on {self.n_training:,} structures in {self.seconds:.0f} s; "
            f"validation MAE on {self.n_validation:,}: {errors}"
        )


def train(
    store: str | Path,
    out: str | Path,
    config: Config | None = None,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> TrainingReport:
    """Train a network on a graph store with energies, and forces and stresses where it has them.

    A training that was stopped goes on from its last epoch when it is called again with the same arguments.

    Args:
        store: Graph store.
        out: Run folder; the model becomes ``model.ckpt`` in it.
        config: Of network and training.
        limit: Use only the first structures.
        overwrite: Begin anew in an existing folder.
        progress: Show progress on standard error.

    Raises:
        ConfigError: The store does not fit the configuration.
        OutputExistsError: The folder holds a finished run, or one with another configuration.
    """
    begin = time.monotonic()
    graphs = GraphStore(store)
    settings = _with_cutoff(config or Config(), graphs)
    folder = Path(out)
    _open_run(folder, settings, graphs, limit, overwrite=overwrite)
    with locked(folder / "lock"):
        return _train(graphs, folder, settings, limit, begin, progress=progress)


def _train(
    graphs: GraphStore, folder: Path, settings: Config, limit: int | None, begin: float, *, progress: bool
) -> TrainingReport:
    lightning.seed_everything(settings.training.seed, verbose=False)
    torch.set_num_threads(settings.training.threads or torch.get_num_threads())
    used, held_out, elements, statistics = _prepare(graphs, settings, limit)
    np.savez(folder / "split.npz", training=np.flatnonzero(used), validation=np.flatnonzero(held_out))
    dtype = torch.float64 if settings.training.dtype == "float64" else torch.float32
    network = EquivariantNetwork(settings.network, elements, statistics, dtype)
    module = TrainingModule(network, settings.training, graphs, used, held_out)
    with _quiet_lightning():
        trainer = _trainer(folder, settings.training, progress=progress)
        last = folder / "checkpoints" / "last.ckpt"
        try:
            trainer.fit(module, ckpt_path=last if last.exists() else None, weights_only=True)
        except SystemExit as error:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from error
        _load_best(module, trainer)
        trainer.validate(module, verbose=False)
    errors = {name: float(trainer.callback_metrics[f"validation/{name}_mae"]) for name in UNITS}
    card = ModelCard(training_data=graphs.store_hash, validation={f"{k} {UNITS[k]}": v for k, v in errors.items()})
    save_checkpoint(folder / "model.ckpt", network, card)
    return TrainingReport(
        folder / "model.ckpt",
        errors,
        int(used.sum()),
        int(held_out.sum()),
        trainer.current_epoch,
        time.monotonic() - begin,
    )


def _prepare(
    graphs: GraphStore, settings: Config, limit: int | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[int, ...], DataStatistics]:
    """Structures to train on and to validate on, and what the network takes from the former.

    Structures without an energy are left out, and those to validate on with an element that is not trained on.
    """
    usable = with_energy(graphs)
    if limit is not None:
        usable[limit:] = False
    held_out = split(usable, settings.training.validation_fraction, settings.training.seed)
    used = usable & ~held_out
    cutoff = settings.network.cutoff or graphs.cutoff
    elements, statistics = fit_statistics(graphs, used, cutoff)
    held_out &= of_elements(graphs, elements)
    if not held_out.any():
        raise ConfigError(f"{graphs.path}: no validation structure is made of elements that are trained on")
    return used, held_out, elements, statistics


class TrainingModule(lightning.LightningModule):
    """Steps, losses and data of a training, for Lightning.

    Args:
        network: What is trained.
        config: How.
        store: The structures.
        training: bool[n_structures], those to train on.
        validation: bool[n_structures], those to validate on.
    """

    def __init__(
        self,
        network: EquivariantNetwork,
        config: TrainingConfig,
        store: GraphStore,
        training: NDArray[np.bool_],
        validation: NDArray[np.bool_],
    ) -> None:
        super().__init__()
        self.network, self.config = network, config
        self._data = (store, training, validation)
        self._sums: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingModule:
        """A copy of the weights for the running mean; the data is shared."""
        return TrainingModule(copy.deepcopy(self.network, memo), self.config, *self._data)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Another order in every epoch, the same in every run."""
        store, training, _ = self._data
        order = (self.config.seed, self.trainer.current_epoch)
        return self._loader(store, training, order)

    def val_dataloader(self) -> DataLoader[Batch]:
        """In the order of the store."""
        store, _, validation = self._data
        return self._loader(store, validation, None)

    def _loader(self, store: GraphStore, chosen: NDArray[np.bool_], order: tuple[int, int] | None) -> DataLoader[Batch]:
        batches = StructureBatches(
            store, chosen, self.config.batch_size, self.network.cutoff, self.network.dtype, order
        )
        return DataLoader(batches, batch_size=None)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Move all tensors of a batch."""
        return Batch(
            tuple(x.to(device) for x in batch.inputs),
            *(x.to(device) for x in (batch.energy, batch.forces, batch.stress, batch.n_atoms)),
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch.

        Raises:
            EquiscreenError: It is not finite.
        """
        loss = self._loss(self._errors(batch))
        if not torch.isfinite(loss):
            raise EquiscreenError(
                f"the loss became {loss.item()} in epoch {self.current_epoch}, batch {batch_idx}: "
                "check the labels, or lower training.learning_rate"
            )
        self.log("training/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.energy))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin new sums."""
        self._sums = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Add up the errors of one batch."""
        for name, errors in self._errors(batch).items():
            for kind, value in (("absolute", errors.abs()), ("square", errors**2), ("count", torch.ones_like(errors))):
                key = f"{name}/{kind}"
                self._sums[key] = self._sums.get(key, torch.zeros(())) + value.detach().double().sum()

    def on_validation_epoch_end(self) -> None:
        """Log mean errors over all validation structures."""
        loss = torch.zeros((), dtype=torch.float64)
        for name, weight in self._weights().items():
            count = self._sums[f"{name}/count"]
            self.log(f"validation/{name}_mae", self._sums[f"{name}/absolute"] / count)
            if count > 0:
                loss = loss + weight * self._sums[f"{name}/square"] / count
        self.log("validation/loss", loss)

    def configure_optimizers(self) -> Any:
        """Adam, with a warm-up and a cosine to zero over all steps."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate, amsgrad=True)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warmup = min(self.config.warmup_steps, total // 10)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return 0.5 * (1 + float(np.cos(np.pi * min(1.0, (step - warmup) / max(1, total - warmup)))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _weights(self) -> dict[str, float]:
        loss = self.config.loss
        return {"energy": loss.energy, "forces": loss.forces, "stress": loss.stress}

    def _errors(self, batch: Batch) -> dict[str, Tensor]:
        """Errors of what is labelled: energy per atom, force and stress components, each as one flat tensor."""
        energy, forces, stress = self.network(*batch.inputs)
        pairs = {
            "energy": (energy / batch.n_atoms, batch.energy / batch.n_atoms),
            "forces": (forces, batch.forces),
            "stress": (stress, batch.stress),
        }
        labelled = {name: torch.isfinite(label) for name, (_, label) in pairs.items()}
        return {name: found[labelled[name]] - label[labelled[name]] for name, (found, label) in pairs.items()}

    def _loss(self, errors: dict[str, Tensor]) -> Tensor:
        # A batch may lack what has weight; its gradient is zero then, but has to be one.
        loss = torch.stack([error.double().sum() for error in errors.values()]).sum() * 0.0
        for name, weight in self._weights().items():
            if weight and errors[name].numel():
                loss = loss + weight * errors[name].double().square().mean()
        return loss


class _EpochLines(Callback):
    """One line of errors now and then, for logs."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        if trainer.state.fn != "fit" or time.monotonic() - self._last < LINE_EVERY_S:
            return
        self._last = time.monotonic()
        metrics = trainer.callback_metrics
        errors = ", ".join(f"{name} {float(metrics[f'validation/{name}_mae']):.4g} {UNITS[name]}" for name in UNITS)
        line = f"train: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}; validation MAE {errors}"
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - a log line is what it is for


def _trainer(folder: Path, config: TrainingConfig, *, progress: bool) -> lightning.Trainer:
    checkpoints = ModelCheckpoint(
        folder / "checkpoints", filename="best", monitor="validation/loss", save_last=True, enable_version_counter=False
    )
    # Buffers are constants, some of them integers, which an average would round.
    callbacks: list[Callback] = [
        checkpoints,
        WeightAveraging(use_buffers=False, avg_fn=_running_mean(config.ema_decay)),
    ]
    if config.early_stop_epochs is not None:
        callbacks.append(EarlyStopping("validation/loss", patience=config.early_stop_epochs))
    bar = progress and sys.stderr.isatty()
    if bar:
        callbacks.append(RichProgressBar())
    elif progress:
        callbacks.append(_EpochLines())
    return lightning.Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=config.max_epochs,
        max_time=None if config.max_minutes is None else {"minutes": config.max_minutes},  # type: ignore[dict-item]
        gradient_clip_val=config.gradient_clip,
        inference_mode=False,  # forces are gradients, in validation too
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=CSVLogger(folder, name="", version="log"),
        callbacks=callbacks,
        enable_progress_bar=bar,
        enable_model_summary=False,
        log_every_n_steps=1,
    )


def _running_mean(decay: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """An exponential mean that forgets fast while it is young, so as not to hold back a short training."""

    def average(mean: Tensor, value: Tensor, updates: Tensor) -> Tensor:
        n = float(updates)
        return torch.lerp(mean, value, 1 - min(decay, (1 + n) / (10 + n)))

    return average


def _load_best(module: TrainingModule, trainer: lightning.Trainer) -> None:
    path = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    module.load_state_dict(torch.load(path, map_location=module.device, weights_only=True)["state_dict"])


def _with_cutoff(config: Config, store: GraphStore) -> Config:
    """The configuration with the store's cutoff where none is set."""
    cutoff = config.network.cutoff or store.cutoff
    if cutoff > store.cutoff:
        raise ConfigError(
            f"network.cutoff {cutoff} is above the {store.cutoff} angstrom of {store.path}; lower it, or "
            f"run `equiscreen featurize ... --cutoff {cutoff}`"
        )
    return config.model_copy(update={"network": config.network.model_copy(update={"cutoff": cutoff})})


def _open_run(folder: Path, config: Config, store: GraphStore, limit: int | None, *, overwrite: bool) -> None:
    """Make the run folder, or find that the unfinished run in it is this one."""
    check_place(folder.resolve(), [store.path])
    mark = folder / "run.json"
    if folder.exists() and not mark.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder}: exists and is no run; choose another --out")
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    if (folder / "model.ckpt").exists():
        raise OutputExistsError(f"{folder}: holds a finished run; choose another --out, or say --overwrite")
    identity = {"config": config.model_dump(mode="json"), "store": store.store_hash, "limit": limit}
    if mark.exists() and json.loads(mark.read_text()) != identity:
        raise OutputExistsError(
            f"{folder}: an unfinished run with another configuration or store; use the same to resume it, or say "
            "--overwrite"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(mark, json.dumps(identity, indent=1))
    (folder / "config.yaml").write_text(yaml.safe_dump(identity["config"], sort_keys=False))


@contextmanager
def _quiet_lightning() -> Iterator[None]:
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
