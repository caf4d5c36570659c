"""Training an ensemble: the same data and split, other weights and order in each member."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..pipeline.errors import ConfigError
from ..pipeline.lock import locked
from ..pipeline.store import GraphStore
from .checkpoint import MODEL_FILE, ModelCard, load_checkpoint, save_ensemble
from .config import Config
from .evaluation import Comparison, compare, error_units
from .head_labels import head_labels
from .module import TrainingData
from .network import EquivariantNetwork
from .plots import calibration_plot
from .runs import open_run
from .splits import Split
from .training import make_recipe, open_stores, train


@dataclass(frozen=True, slots=True)
class EnsembleReport:
    """What the training of an ensemble ended with.

    Attributes:
        folder: Of the run.
        members: How many.
        validation: Mean absolute errors of the mean prediction, by name and unit.
        calibration: By output: root mean square of error over spread; 1 is a spread that can be taken at its word.
        seconds: Of this call.
    """

    folder: Path
    members: int
    validation: Mapping[str, float]
    calibration: Mapping[str, float]
    seconds: float

    def __str__(self) -> str:
        errors = ", ".join(
            f"{name.split(' ')[0]} {x:.4g} {' '.join(name.split(' ')[1:])}".rstrip()
            for name, x in self.validation.items()
        )
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in self.calibration.items())
        return (
            f"{self.folder}: {self.members} members in {self.seconds:.0f} s; validation MAE of their mean: {errors}; "
            f"error over spread: {ratios}"
        )


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

    Each member is a run of its own in ``member-0``, ``member-1``, ...; all have the same validation structures, on
    which the spread of the members is compared with the error of their mean.

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
    settings, folder = config or Config(), Path(out)
    graphs = open_stores(stores)
    open_run(folder, make_recipe(graphs, settings, limit, members), graphs, overwrite=overwrite)
    names = [f"member-{number}" for number in range(members)]
    with locked(folder / "lock"):
        for number, name in enumerate(names):
            if not (folder / name / MODEL_FILE).exists():
                training = settings.training.model_copy(update={"seed": settings.training.seed + number})
                member = settings.model_copy(update={"training": training})
                train(stores, folder / name, member, limit=limit, progress=progress)
        loaded = [load_checkpoint(folder / name / MODEL_FILE) for name in names]
        networks = [network for network, _ in loaded]
        validation, calibration = _calibrate(folder, settings, networks, graphs)
        first = loaded[0][1]
        card = ModelCard(
            first.symmetry, first.energy_scheme, first.training_data, validation, first.mirror_violation, calibration
        )
        save_ensemble(folder, names, card)
    return EnsembleReport(folder, members, validation, calibration, time.monotonic() - begin)


def _calibrate(
    folder: Path, config: Config, networks: Sequence[EquivariantNetwork], stores: Sequence[GraphStore]
) -> tuple[dict[str, float], dict[str, float]]:
    """Errors of the mean of the members on the validation structures, and how their spread compares with them."""
    split = Split.load(folder / "member-0" / "split.npz", stores)
    data = TrainingData(tuple(stores), split, head_labels(stores, networks[0].config.heads))
    found = [compare(network, data.batches("validation", network, config.training)) for network in networks]
    validation, calibration = {}, {}
    for name, unit in error_units(networks[0]).items():
        mean, spread = _mean_and_spread([comparisons[name] for comparisons in found])
        error = mean.found - mean.label
        validation[f"{name} {unit}".rstrip()] = mean.mae
        if len(error):
            calibration[name] = calibration_plot(error, spread, unit, folder / f"calibration_{name}.png")["ratio"]
    return validation, calibration


def _mean_and_spread(members: Sequence[Comparison]) -> tuple[Comparison, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    stacked = np.stack([member.found for member in members])
    mean = Comparison(members[0].unit, stacked.mean(axis=0), members[0].label)
    return mean, stacked.std(axis=0, ddof=1)
