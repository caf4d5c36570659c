"""Repetition of a run from its run folder."""

from __future__ import annotations

from pathlib import Path

from ...pipeline.errors import ConfigError
from ...pipeline.redaction import HIDDEN
from ..data.training_data import open_stores
from .ensemble import EnsembleReport, train_ensemble
from .run_folder import read_recipe
from .train import TrainingReport, make_recipe, train


def repeat(
    run: str | Path, out: str | Path, *, overwrite: bool = False, progress: bool | None = None
) -> TrainingReport | EnsembleReport:
    """Repeat the run that a run folder describes, with the same number of threads, to get the same weights.

    Example:
        >>> from equiscreen.model import repeat
        >>> repeat("ensemble/member-0", "again").epochs
        1

    Args:
        run: Run folder of the network or ensemble to repeat.
        out: Run folder to write.
        overwrite: As in `train`.
        progress: As in `train`.

    Returns:
        The report of `train` or, for an ensemble, of `train_ensemble`.

    Raises:
        ConfigError: There is no run; its stores, the store that it replayed or the checkpoint that it fine-tuned have
            changed since then; or a URL contains secrets, which the run folder does not record.
        OutputExistsError, StoreError, CheckpointError, EquiscreenError: As in `train`.
    """
    recipe = read_recipe(run)
    replayed = recipe.config.training.fine_tune.replay
    hidden = [store for store in (*recipe.stores, replayed or "") if HIDDEN in store]
    if hidden:
        raise ConfigError(
            f"{hidden[0]}: {run} does not record the secrets of a URL; train again with the full URLs of the stores"
        )
    graphs = open_stores(recipe.stores)
    changed = [store.path for store, known in zip(graphs, recipe.hashes, strict=True) if store.store_hash != known]
    if changed:
        raise ConfigError(
            f"{changed[0]} is not the store that {run} was trained on: its content has changed; restore the store, or "
            "train a new network on it"
        )
    training = recipe.config.training.model_copy(update={"threads": recipe.threads})
    config = recipe.config.model_copy(update={"training": training})
    again = make_recipe(graphs, config, recipe.limit)
    if again.replay_hash != recipe.replay_hash:
        raise ConfigError(
            f"{replayed} is not the store that {run} replayed: its content has changed; restore the store, or "
            "fine-tune in a new run"
        )
    if again.start_sha256 != recipe.start_sha256:
        raise ConfigError(
            f"{training.fine_tune.checkpoint} is not the checkpoint that {run} started from: its content has changed; "
            "restore the checkpoint, or fine-tune it in a new run"
        )
    if recipe.members == 1:
        return train(recipe.stores, out, config, limit=recipe.limit, overwrite=overwrite, progress=progress)
    return train_ensemble(
        recipe.stores, out, config, members=recipe.members, limit=recipe.limit, overwrite=overwrite, progress=progress
    )
