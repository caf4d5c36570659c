"""Training an ensemble: the same data and split, other weights and order in each member."""

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
from ..data.training_data import TrainingData
from ..evaluation.metrics import Comparison, compare, error_units, mae_by_name
from ..evaluation.plots import Subset, calibration_plot
from ..networks.base import Network
from .run_folder import opened_run
from .train import HELD_OUT, make_recipe, open_stores, train


@dataclass(frozen=True, slots=True)
class EnsembleReport:
    """What the training of an ensemble ended with.

    Attributes:
        folder: Of the run.
        members: How many.
        validation: Mean absolute errors of the mean prediction, by name and unit.
        test: The same on the test structures, if there are any.
        calibration: By output: root mean square of error over spread; 1 is a spread that can be taken at its word.
        seconds: Of this call.
    """

    folder: Path
    members: int
    validation: Mapping[str, float]
    test: Mapping[str, float]
    calibration: Mapping[str, float]
    seconds: float

    def __str__(self) -> str:
        tested = f"; test MAE: {_listed(self.test)}" if self.test else ""
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in self.calibration.items())
        return (
            f"{self.folder}: {self.members} members in {self.seconds:.0f} s; validation MAE of their mean: "
            f"{_listed(self.validation)}{tested}; error over spread: {ratios}"
        )


def _listed(errors: Mapping[str, float]) -> str:
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
    progress: bool = False,
) -> EnsembleReport:
    """Train several networks that differ in their random numbers only; resumed like `train`.

    Each member is a run of its own in ``member-0``, ``member-1``, ...; all have the same split. The spread of the
    members is compared with the error of their mean on the test structures, or without any on those to validate on.

    Args:
        stores: As for `train`.
        out: Run folder of the ensemble, which `export_onnx` takes.
        config: Of each member; the seed is that of the first.
        members: How many, two at least.
        limit: As for `train`.
        overwrite: As for `train`.
        progress: As for `train`.

    Raises:
        ConfigError: As for `train`, or fewer than two members.
        OutputExistsError: As for `train`.
    """
    begin = time.monotonic()
    if members < 2:
        raise ConfigError(f"an ensemble of {members}; it takes two members at least")
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
        save_ensemble(folder, names, replace(loaded[0][1], validation=validation, test=test, calibration=calibration))
    return EnsembleReport(folder, members, validation, test, calibration, time.monotonic() - begin)


def _calibrate(
    folder: Path, config: Config, networks: Sequence[Network], stores: Sequence[GraphStore]
) -> tuple[dict[Subset, dict[str, float]], dict[str, float]]:
    """Errors of the mean of the members on what was held out, and how their spread compares with them."""
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
            if len(mean.label):  # the test, which comes last, has the last word
                plot = folder / f"calibration_{name}.png"
                calibration[name] = calibration_plot(mean.found - mean.label, spread, mean.unit, plot)["ratio"]
    return errors, calibration


def _mean_and_spread(members: Sequence[Comparison]) -> tuple[Comparison, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    stacked = np.stack([member.found for member in members])
    mean = Comparison(members[0].unit, stacked.mean(axis=0), members[0].label)
    return mean, stacked.std(axis=0, ddof=1)
