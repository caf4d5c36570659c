"""Run folders: the output of a training run, and the recipe to repeat it."""

from __future__ import annotations

import csv
import json
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ...pipeline.atomic import write_text_atomically
from ...pipeline.errors import ConfigError, OutputExistsError
from ...pipeline.redaction import redact_urls
from ...pipeline.runs.lock import locked
from ...pipeline.runs.staging import check_place
from ...pipeline.store.graph_store import GraphStore, location
from ..checkpoint import ENSEMBLE_FILE, MODEL_FILE
from ..config.config import Config

RUN_FILE, LOCK_FILE = "run.json", "lock"
_SOFTWARE = ("equiscreen", "torch", "e3nn", "lightning", "numpy")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines the result of a run.

    Attributes:
        stores: Paths or URLs of the stores.
        hashes: Hashes of the stores' contents.
        config: Configuration of network and training.
        limit: Number of structures to use from the beginning of each store; None uses all.
        threads: Number of PyTorch threads; sums are equal to the last bit only for the same number of threads.
        members: Number of members of the ensemble; 1 is a single network.
        start_sha256: Hash of the checkpoint that is fine-tuned; empty without one.
        replay_hash: Hash of the content of the store that is replayed; empty without one.
    """

    stores: tuple[str, ...]
    hashes: tuple[str, ...]
    config: Config
    limit: int | None
    threads: int
    members: int = 1
    start_sha256: str = ""
    replay_hash: str = ""

    def to_json(self) -> dict[str, Any]:
        """Convert the recipe to plain values for JSON."""
        config = self.config.model_dump(mode="json")
        fine_tune = config["training"]["fine_tune"]
        if fine_tune["replay"] is not None:
            fine_tune["replay"] = redact_urls(fine_tune["replay"])
        return {
            "stores": [redact_urls(store) for store in self.stores],
            "store_hashes": list(self.hashes),
            "config": config,
            "limit": self.limit,
            "threads": self.threads,
            "members": self.members,
            "start_sha256": self.start_sha256,
            "replay_hash": self.replay_hash,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """Part of the recipe that must match to resume a run: all but the locations of files and the threads."""
        content = self.to_json()
        for path in ("checkpoint", "replay"):
            content["config"]["training"]["fine_tune"].pop(path)
        return {name: value for name, value in content.items() if name not in ("stores", "threads")}


def read_recipe(folder: str | Path) -> Recipe:
    """Read the recipe of a run.

    Raises:
        ConfigError: The folder is not a run folder, or its ``run.json`` is damaged.
    """
    path = Path(folder) / RUN_FILE
    try:
        content = json.loads(path.read_text())["recipe"]
        content["config"]["training"].setdefault("relative_rate", False)  # run folders of 0.1.0 lack this key
        return Recipe(
            tuple(content["stores"]),
            tuple(content["store_hashes"]),
            Config.parse(content["config"], str(path)),
            content["limit"],
            int(content["threads"]),
            int(content["members"]),
            str(content["start_sha256"]),
            str(content.get("replay_hash", "")),  # run folders of 0.1.0 lack this entry
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} is not a run folder: cannot read {path.name}; give a folder that `equiscreen train` wrote"
        ) from error


@contextmanager
def opened_run(folder: Path, recipe: Recipe, stores: Sequence[GraphStore], *, overwrite: bool) -> Iterator[None]:
    """Create a run folder, or reopen it to resume the same run, and hold its lock.

    Args:
        folder: Run folder.
        recipe: Recipe of the run.
        stores: Stores that the run reads.
        overwrite: Whether to clear a folder that holds a finished or a different run; the same run, unfinished, is
            resumed in any case.

    Raises:
        OutputExistsError: The folder holds a finished or a different run, is not a run folder, contains an input, or is
            in use by another process.
    """
    fine_tune = recipe.config.training.fine_tune
    replayed = [] if fine_tune.replay is None else [location(fine_tune.replay)]
    check_place(folder.resolve(), [*(store.path for store in stores), *replayed])
    start = fine_tune.checkpoint
    if start is not None and folder.resolve() in (start.resolve(), *start.resolve().parents):
        raise OutputExistsError(f"{folder} contains the checkpoint to fine-tune, {start}; choose another `--out`")
    if folder.exists() and not (folder / RUN_FILE).exists() and not _is_empty(folder):
        raise OutputExistsError(f"{folder} already exists and is not a run folder; choose another `--out`")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK_FILE):
        _claim(folder, recipe, overwrite=overwrite)
        yield


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and all(path.name == LOCK_FILE for path in folder.iterdir())


def _claim(folder: Path, recipe: Recipe, *, overwrite: bool) -> None:
    finished = (folder / MODEL_FILE).exists() or (folder / ENSEMBLE_FILE).exists()
    if overwrite and (finished or not _holds_run(folder, recipe)):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:
                path.unlink()
    elif finished:
        raise OutputExistsError(f"{folder} holds a finished run; choose another `--out`, or use `--overwrite`")
    # Nothing is lost before the first weights are saved, so until then the configuration may be corrected.
    elif any(folder.rglob("*.ckpt")) and read_recipe(folder).identity != recipe.identity:
        raise OutputExistsError(
            f"{folder} holds an unfinished run with different settings or stores; resume the run with its own settings "
            "and stores, or use `--overwrite` to discard it"
        )
    _write_recipe(folder, recipe)


def _holds_run(folder: Path, recipe: Recipe) -> bool:
    try:
        return read_recipe(folder).identity == recipe.identity
    except ConfigError:
        return False


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    plain = recipe.to_json()
    content = {
        "recipe": plain,
        "software": {name: version(name) for name in _SOFTWARE},
        "python": platform.python_version(),
        "command": [redact_urls(word) for word in sys.argv[1:]],
    }
    write_text_atomically(folder / RUN_FILE, json.dumps(content, indent=1))
    write_text_atomically(folder / "config.yaml", yaml.safe_dump(plain["config"], sort_keys=False))


def join_logs(folder: Path) -> Path:
    """Join all logs of a run into metrics.csv, with one row per epoch (the last one written).

    Args:
        folder: Run folder.

    Returns:
        Path of the file.
    """
    rows: dict[int, dict[str, str]] = {}
    for part in sorted((folder / "log").glob("part-*/metrics.csv")):
        with part.open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get("epoch"):
                    known = {name: value for name, value in row.items() if value}
                    rows.setdefault(int(row["epoch"]), {}).update(known)
    names = sorted({name for row in rows.values() for name in row} - {"epoch", "step"})
    out = folder / "metrics.csv"
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", *names], restval="")
        writer.writeheader()
        writer.writerows(rows[epoch] for epoch in sorted(rows))
    return out
