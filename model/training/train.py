"""Training from graph stores: one resumable call from labelled structures to a checkpoint."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from ...pipeline.energy_schemes import OWN
from ...pipeline.errors import ConfigError, EquiscreenError
from ...pipeline.runs.progress import shows_progress
from ...pipeline.store.graph_store import GraphStore, check_unchanged
from ...pipeline.store.labelling_model import LabellingModel
from ...pipeline.store.row_sources import absolute
from ...pipeline.store.schema import GRAPH_SCHEMA
from ..checkpoint import MODEL_FILE, ModelCard, find_checkpoints, save_checkpoint
from ..config.config import Config
from ..config.training import TrainingConfig
from ..data.replay import REPLAY, open_replay
from ..data.splits import SUBSETS
from ..data.training_data import open_stores
from ..evaluation.metrics import Comparison, compare, error_units, mae_by_name
from ..evaluation.plots import Parity, Subset, learning_curves, parity_plots
from ..networks.reflection import MIRROR_STRUCTURES, mirror_violation
from ..networks.torch_potential import TorchPotential
from .callbacks import BEST, LAST, RENDEZVOUS, make_trainer, quiet_lightning
from .finetune import architecture, starting_network
from .lightning_module import TrainingModule
from .run_folder import Recipe, join_logs, opened_run
from .setup import Prepared, prepare

HELD_OUT: tuple[Subset, ...] = ("validation", "test")


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """Result of a training run.

    Example:
        >>> from equiscreen.model import Config, train
        >>> report = train("training.zarr", "new", Config.load("quick.yaml"))
        >>> report.n_training, report.n_validation, report.units["forces"]
        (36, 4, 'eV/angstrom')

    Attributes:
        checkpoint: Path of the model.
        validation: Mean absolute errors on the validation structures, by output; NaN without labels.
        test: Mean absolute errors on the test structures, by output; empty if there are none.
        before: Mean absolute errors on the validation structures before fine-tuning, with the checkpoint's weights and
            refitted reference energies (unless `references` is ``keep``), of the outputs that the checkpoint predicts;
            empty without fine-tuning.
        drift: Mean absolute differences from the network before fine-tuning on replayed structures that are held out,
            by output; empty without replay.
        units: Units of the errors, by output.
        n_training, n_validation, n_test: Number of structures in each subset.
        n_replayed, n_held_out: Number of replayed structures that were trained on, and that were held out.
        epochs: Number of epochs, including epochs before an interruption.
        seconds: Duration of this call (seconds).
    """

    checkpoint: Path
    validation: Mapping[str, float]
    test: Mapping[str, float]
    before: Mapping[str, float]
    drift: Mapping[str, float]
    units: Mapping[str, str]
    n_training: int
    n_validation: int
    n_test: int
    n_replayed: int
    n_held_out: int
    epochs: int
    seconds: float

    def __str__(self) -> str:
        replayed = f" and {self.n_replayed:,} replayed structures" if self.n_replayed else ""
        before = f" (before fine-tuning: {self._format_errors(self.before)})" if self.before else ""
        tested = f"; test MAE on {self.n_test:,}: {self._format_errors(self.test)}" if self.test else ""
        drift = ""
        if self.drift:
            changes = self._format_errors(self.drift)
            drift = f"; mean change on {self.n_held_out:,} replayed structures that were held out: {changes}"
        return (
            f"{self.checkpoint}: {self.epochs} epochs on {self.n_training:,} structures{replayed} in "
            f"{self.seconds:.0f} s; validation MAE on {self.n_validation:,}: {self._format_errors(self.validation)}"
            f"{before}{tested}{drift}"
        )

    def _format_errors(self, errors: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {value:.4g} {self.units[name]}".rstrip() for name, value in errors.items())


def train(
    stores: str | Path | Sequence[str | Path],
    out: str | Path,
    config: Config | None = None,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> TrainingReport:
    """Train a network on graph stores with energies, forces and stresses, or labels of its heads.

    An interrupted run resumes when `train` is called again with the same arguments. With the same number of threads, it
    ends with the same weights to the last bit. PyTorch's seed and number of threads are set for the whole process.

    Example:
        >>> from equiscreen.model import Config, train
        >>> train("training.zarr", "new", Config.load("quick.yaml")).epochs
        1

    Args:
        stores: One graph store or several.
        out: Run folder; the model is written to ``model.ckpt`` in it.
        config: Configuration of network and training; None uses the defaults.
        limit: Number of structures to use from the beginning of each store; None uses all.
        overwrite: Whether to replace a finished run, or an unfinished run with different settings or stores.
        progress: Whether to show progress on standard error; None shows it only on a terminal or in a notebook.

    Raises:
        ConfigError: The stores or this machine do not fit the configuration.
        OutputExistsError: The folder holds a finished or a different run, is not a run folder, contains an input, or is
            in use by another process.
        StoreError: A store cannot be read, or has changed during the run.
        CheckpointError: The checkpoint to fine-tune cannot be read.
        EquiscreenError: The loss is not finite, memory is insufficient, or the saved state of the run is damaged.
    """
    begin = time.monotonic()
    graphs = open_stores(stores)
    recipe = make_recipe(graphs, config or Config(), limit)
    folder = Path(out)
    with opened_run(folder, recipe, graphs, overwrite=overwrite):
        report = _train(graphs, folder, recipe, progress=progress)
    return replace(report, seconds=time.monotonic() - begin)


def make_recipe(stores: Sequence[GraphStore], config: Config, limit: int | None, members: int = 1) -> Recipe:
    """Build the recipe of a run, with default values for all settings that are not set.

    A cutoff that is not set becomes the smallest cutoff of the stores; fine-tuning has its own defaults.

    Args:
        stores: Stores to train on.
        config: Configuration of network and training.
        limit: Number of structures to use from the beginning of each store; None uses all.
        members: Number of members of the ensemble; 1 is a single network.

    Raises:
        ConfigError: The cutoff exceeds the cutoff of a store, the loss has a term for an unknown head, the checkpoint
            to fine-tune is an ensemble or cannot have the new heads, or structures are replayed without a checkpoint.
        StoreError: The store to replay cannot be read.
        CheckpointError: The checkpoint to fine-tune cannot be read.
    """
    smallest = min(stores, key=lambda store: store.cutoff)
    network, training, digest = config.network, config.training.with_defaults_of_task(), ""
    if training.fine_tune.checkpoint is not None:
        network = architecture(config, starting_network(training.fine_tune), stores).network
        checkpoint = training.fine_tune.checkpoint.resolve()
        digest = hashlib.sha256(find_checkpoints(checkpoint)[0].read_bytes()).hexdigest()
        fine_tune = training.fine_tune.model_copy(update={"checkpoint": checkpoint})
        training = training.model_copy(update={"fine_tune": fine_tune})
    unknown = training.loss.heads.keys() - network.heads.keys()
    if unknown:
        raise ConfigError(
            f"training.loss.heads names undefined heads: {', '.join(sorted(unknown))}; define each of them in "
            "network.heads, or remove its term"
        )
    cutoff = network.cutoff or smallest.cutoff
    if cutoff > smallest.cutoff:
        raise ConfigError(
            f"network.cutoff is {cutoff}, larger than the cutoff of {smallest.cutoff} angstrom in {smallest.path}; "
            f"{'' if digest else 'lower it, or '}run `equiscreen featurize ... --cutoff {cutoff}`"
        )
    replayed = open_replay(training.fine_tune, cutoff)
    if replayed is not None:
        fine_tune = training.fine_tune.model_copy(update={"replay": str(absolute(replayed.path))})
        training = training.model_copy(update={"fine_tune": fine_tune})
    settled = Config(network=network.model_copy(update={"cutoff": cutoff}), training=training)
    threads = config.training.threads or torch.get_num_threads()
    paths = tuple(str(absolute(store.path)) for store in stores)
    replay_hash = "" if replayed is None else replayed.store_hash
    hashes = tuple(store.store_hash for store in stores)
    return Recipe(paths, hashes, settled, limit, threads, members, digest, replay_hash)


def _train(graphs: list[GraphStore], folder: Path, recipe: Recipe, *, progress: bool | None) -> TrainingReport:
    config = recipe.config
    lightning.seed_everything(config.training.seed, verbose=False)
    torch.set_num_threads(recipe.threads)
    prepared = prepare(graphs, recipe, folder)
    data, network = prepared.data, prepared.network
    for note in prepared.notes if shows_progress(progress) else ():
        print(f"train: {note}", file=sys.stderr, flush=True)  # noqa: T201 - printed where progress is shown
    data.split.save(folder / "split.npz")
    before = _errors_before(prepared, config.training)
    module = TrainingModule(network, config.training, data)
    units = error_units(network)
    with quiet_lightning():
        trainer = make_trainer(folder, config.training, units, progress=progress)
        last, rendezvous = folder / LAST, folder / RENDEZVOUS
        rendezvous.unlink(missing_ok=True)  # left by a run that was killed
        try:
            _fit(trainer, module, last)
        finally:
            rendezvous.unlink(missing_ok=True)
    module.load_state_dict(_read_state(folder / BEST)["state_dict"])
    module.to(trainer.strategy.root_device)
    state = _read_state(last)
    found: dict[Subset, dict[str, Comparison]] = {
        subset: compare(network, data.batches(subset, network, config.training), state["batch_parts"])
        for subset in HELD_OUT
        if any(chosen.any() for chosen in getattr(data.split, subset))
    }
    drift: dict[str, Comparison] = {}
    if data.replay is not None:
        drift = compare(network, data.batches(REPLAY, network, config.training), state["batch_parts"])
    _draw(folder, found, units)
    network.cpu()
    so3 = config.network.symmetry == "so3"
    teacher = LabellingModel.of_stores(graphs)
    card = ModelCard(
        symmetry="so3" if so3 else "o3",
        energy_scheme=OWN if teacher is None else teacher.energy_scheme,
        origin={} if teacher is None else teacher.of_student(),
        training_data=" ".join(filter(None, (*recipe.hashes, recipe.replay_hash))),
        validation=mae_by_name(found["validation"]),
        test=mae_by_name(found.get("test", {})),
        mirror_violation=(
            mirror_violation(TorchPotential(network), config.network, network.statistics.geometry) if so3 else {}
        ),
        mirror_structures=MIRROR_STRUCTURES if so3 else 0,
    )
    for store in graphs:
        store.check_unchanged()
    if config.training.fine_tune.replay is not None:
        check_unchanged(config.training.fine_tune.replay, GRAPH_SCHEMA, recipe.replay_hash)
    save_checkpoint(folder / MODEL_FILE, network, card)
    n_training, n_validation, n_test = (sum(int(x.sum()) for x in getattr(data.split, name)) for name in SUBSETS)
    return TrainingReport(
        folder / MODEL_FILE,
        {name: x.mae for name, x in found["validation"].items()},
        {name: x.mae for name, x in found.get("test", {}).items()},
        before,
        {name: x.mae for name, x in drift.items() if len(x.label)},
        units,
        n_training,
        n_validation,
        n_test,
        0 if data.replay is None else data.replay.n_training,
        0 if data.replay is None else data.replay.n_held_out,
        max(trainer.current_epoch, state["epoch"] + 1),  # with several processes, this trainer counts no epochs
        0.0,
    )


def _errors_before(prepared: Prepared, config: TrainingConfig) -> dict[str, float]:
    """Compute validation MAEs of the outputs that the checkpoint predicts, before the first step."""
    if not prepared.known:
        return {}
    network = prepared.network
    found = compare(network, prepared.data.batches("validation", network, config))
    network.train()
    return {name: found[name].mae for name in prepared.known if len(found[name].label)}


def _fit(trainer: lightning.Trainer, module: TrainingModule, last: Path) -> None:
    """Train, from the last saved state if there is one.

    Raises:
        EquiscreenError: The training failed, in this or in another process.
    """
    if last.exists():
        _read_state(last)
    try:
        trainer.fit(module, ckpt_path=last if last.exists() else None, weights_only=True)
    except SystemExit as error:  # Lightning converts Ctrl-C to this exception
        raise KeyboardInterrupt from error
    except ProcessRaisedException as error:
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        if "equiscreen" not in kind:
            raise
        raise EquiscreenError(message) from error


def _read_state(path: Path) -> dict[str, Any]:
    """Read a Lightning checkpoint.

    Raises:
        EquiscreenError: The file is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for a damaged file
        raise EquiscreenError(
            f"{path} is damaged ({type(error).__name__}); delete the run folder to start the run again"
        ) from error
    return state


def _draw(folder: Path, found: Mapping[Subset, Mapping[str, Comparison]], units: Mapping[str, str]) -> None:
    learning_curves(join_logs(folder), folder / "learning_curves.png", units)
    pairs = [
        Parity(name, x.unit, x.label, x.found, subset)
        for subset, comparisons in found.items()
        for name, x in comparisons.items()
        if len(x.label)
    ]
    if pairs:
        parity_plots(pairs, folder / "parity.png")
