"""Training of an ensemble: members share the data and the split, and differ in initial weights and batch order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...pipeline.errors import ConfigError
from ...pipeline.store.graph_store import GraphStore
from ..checkpoint import MODEL_FILE, load_checkpoint, save_ensemble
from ..config.config import Config
from ..data.splits import Split
from ..data.targets import head_labels
from ..data.training_data import TrainingData, open_stores
from ..evaluation.metrics import Comparison, compare, error_units, mae_by_name
from ..evaluation.plots import Subset, calibration_plot
from ..networks.base import Network
from .run_folder import opened_run
from .train import HELD_OUT, make_recipe, train


@dataclass(frozen=True, slots=True)
class EnsembleReport:
    """Result of training an ensemble.

    Example:
        >>> from equiscreen.model import Config, train_ensemble
        >>> report = train_ensemble("training.zarr", "pair", Config.load("quick.yaml"), members=2)
        >>> report.members, sorted(report.calibration)
        (2, ['energy', 'forces', 'stress'])

    Attributes:
        folder: Run folder.
        members: Number of members.
        validation: Mean absolute errors of the mean prediction on the validation structures, by name and unit.
        test: Mean absolute errors of the mean prediction on the test structures; empty if there are none.
        calibration: Root mean square of the ratio of error to spread, by output; 1 means that the spread is well
            calibrated.
        seconds: Duration of this call (seconds).
    """

    folder: Path
    members: int
    validation: Mapping[str, float]
    test: Mapping[str, float]
    calibration: Mapping[str, float]
    seconds: float

    def __str__(self) -> str:
        tested = f"; test MAE: {_format_errors(self.test)}" if self.test else ""
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in self.calibration.items())
        return (
            f"{self.folder}: {self.members} members in {self.seconds:.0f} s; validation MAE of their mean: "
            f"{_format_errors(self.validation)}{tested}; error over spread: {ratios}"
        )


def _format_errors(errors: Mapping[str, float]) -> str:
    pairs = ((*name.partition(" "), error) for name, error in errors.items())
    return ", ".join(f"{name} {error:.4g} {unit}".rstrip() for name, _, unit, error in pairs)


def train_ensemble(
    stores: str | Path | Sequence[str | Path],
    out: str | Path,
    config: Config | None = None,
    *,
    members: int = 4,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> EnsembleReport:
    """Train several networks that differ only in their random numbers; an interrupted run resumes as in `train`.

    Each member is a run of its own in ``member-0``, ``member-1``, ...; all share one split. The spread of the members
    is compared with the error of their mean on the test structures or, if there are none, on the validation structures.

    Example:
        >>> from equiscreen.model import Config, train_ensemble
        >>> train_ensemble("training.zarr", "pair", Config.load("quick.yaml"), members=2).members
        2

    Args:
        stores: As in `train`.
        out: Run folder of the ensemble, which `export_onnx` accepts.
        config: Configuration of the members; their seeds are consecutive and begin with `training.seed`. None uses the
            defaults.
        members: Number of members, at least two.
        limit: As in `train`.
        overwrite: As in `train`.
        progress: As in `train`.

    Raises:
        ConfigError: As in `train`, or there are fewer than two members.
        OutputExistsError, StoreError, CheckpointError, EquiscreenError: As in `train`.
    """
    begin = time.monotonic()
    if members < 2:
        raise ConfigError(f"an ensemble needs at least two members, not {members}; use `train` for a single network")
    folder, graphs = Path(out), open_stores(stores)
    recipe = make_recipe(graphs, config or Config(), limit, members)
    settings = recipe.config
    names = [f"member-{number}" for number in range(members)]
    with opened_run(folder, recipe, graphs, overwrite=overwrite):
        for number, name in enumerate(names):
            if not (folder / name / MODEL_FILE).exists():
                training = settings.training.model_copy(update={"seed": settings.training.seed + number})
                member = settings.model_copy(update={"training": training})
                train(stores, folder / name, member, limit=limit, progress=progress)
        loaded = [load_checkpoint(folder / name / MODEL_FILE) for name in names]
        networks = [network for network, _ in loaded]
        errors, calibration = _calibrate(folder, settings, networks, graphs)
        validation, test = errors["validation"], errors.get("test", {})
        for store in graphs:
            store.check_unchanged()
        save_ensemble(folder, names, replace(loaded[0][1], validation=validation, test=test, calibration=calibration))
    return EnsembleReport(folder, members, validation, test, calibration, time.monotonic() - begin)


def _calibrate(
    folder: Path, config: Config, networks: Sequence[Network], stores: Sequence[GraphStore]
) -> tuple[dict[Subset, dict[str, float]], dict[str, float]]:
    """Compute errors of the members' mean on held-out structures, and the calibration of their spread."""
    split = Split.load(folder / "member-0" / "split.npz", stores)
    data = TrainingData(tuple(stores), split, head_labels(stores, networks[0].config.heads))
    errors: dict[Subset, dict[str, float]] = {}
    calibration: dict[str, float] = {}
    for subset in HELD_OUT:
        if not any(chosen.any() for chosen in getattr(split, subset)):
            continue
        found = [compare(network, data.batches(subset, network, config.training)) for network in networks]
        both = {name: _mean_and_spread([x[name] for x in found]) for name in error_units(networks[0])}
        errors[subset] = mae_by_name({name: mean for name, (mean, _) in both.items()})
        for name, (mean, spread) in both.items():
            if len(mean.label):  # the test set comes last and overwrites the validation results
                plot = folder / f"calibration_{name}.png"
                calibration[name] = calibration_plot(mean.found - mean.label, spread, mean.unit, plot)["ratio"]
    return errors, calibration


def _mean_and_spread(members: Sequence[Comparison]) -> tuple[Comparison, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    stacked = np.stack([member.found for member in members])
    mean = Comparison(members[0].unit, stacked.mean(axis=0), members[0].label)
    return mean, stacked.std(axis=0, ddof=1)
