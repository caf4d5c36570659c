"""Run folders: what a training leaves, and what is needed to repeat it."""

from __future__ import annotations

import csv
import json
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ..pipeline.errors import ConfigError, OutputExistsError
from ..pipeline.parts import write_text_atomically
from ..pipeline.staging import check_place
from ..pipeline.store import GraphStore
from .checkpoint import ENSEMBLE_FILE, MODEL_FILE
from .config import Config

RUN_FILE = "run.json"
_SOFTWARE = ("equiscreen", "torch", "e3nn", "lightning", "numpy")


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides what a run ends in.

    Attributes:
        stores: Paths or URLs.
        hashes: Of their contents.
        config: Of network and training.
        limit: Only so many structures of each store.
        threads: Of PyTorch; sums come out the same to the last bit only with the same number.
        members: Of an ensemble; 1 is a single network.
    """

    stores: tuple[str, ...]
    hashes: tuple[str, ...]
    config: Config
    limit: int | None
    threads: int
    members: int = 1

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "stores": list(self.stores),
            "store_hashes": list(self.hashes),
            "config": self.config.model_dump(mode="json"),
            "limit": self.limit,
            "threads": self.threads,
            "members": self.members,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be the same when a run is taken up: not where stores lie, nor the number of threads."""
        return {name: value for name, value in self.to_json().items() if name not in ("stores", "threads")}


def read_recipe(folder: str | Path) -> Recipe:
    """The recipe of a run.

    Raises:
        ConfigError: No run, or a damaged one.
    """
    path = Path(folder) / RUN_FILE
    try:
        content = json.loads(path.read_text())["recipe"]
        return Recipe(
            tuple(content["stores"]),
            tuple(content["store_hashes"]),
            Config.parse(content["config"], str(path)),
            content["limit"],
            int(content["threads"]),
            int(content["members"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder}: no run folder ({path.name} cannot be read)") from error


def open_run(folder: Path, recipe: Recipe, stores: Sequence[GraphStore], *, overwrite: bool) -> None:
    """Make the run folder, or find that the unfinished run in it is this one.

    Raises:
        OutputExistsError: It holds a finished run, another one, or what is no run.
    """
    check_place(folder.resolve(), [store.path for store in stores])
    mark = folder / RUN_FILE
    if folder.exists() and not mark.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder}: exists and is no run; choose another --out")
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    if (folder / MODEL_FILE).exists() or (folder / ENSEMBLE_FILE).exists():
        raise OutputExistsError(f"{folder}: holds a finished run; choose another --out, or say --overwrite")
    # Before the first weights are saved nothing is lost: a mistake in the configuration can be mended.
    begun = any(folder.rglob("*.ckpt")) if mark.exists() else False
    if begun and read_recipe(folder).identity != recipe.identity:
        raise OutputExistsError(
            f"{folder}: an unfinished run with another configuration or store; use the same to resume it, or say "
            "--overwrite"
        )
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "recipe": recipe.to_json(),
        "software": {name: version(name) for name in _SOFTWARE},
        "python": platform.python_version(),
        "command": sys.argv[1:],
    }
    write_text_atomically(mark, json.dumps(content, indent=1))
    settings = recipe.config.model_dump(mode="json")
    write_text_atomically(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))


def join_logs(folder: Path) -> Path:
    """All logs of a run as one table, metrics.csv: one row for each epoch, the last that was written of it.

    Args:
        folder: Of the run.
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
