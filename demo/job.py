"""The demo's job: its acts, one after the other, each in a folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..pipeline.errors import CheckpointError, OutputExistsError
from .acts import Act
from .published import run_published
from .report import ActReport
from .trained import run_trained

# Empty, and says that a folder may be replaced: no other work has such a file.
MARK = ".equiscreen-demo"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An act that could not be played.

    Attributes:
        act: Which.
        reason: Why, and what to do.
    """

    act: Act
    reason: str

    def __str__(self) -> str:
        return f"equiscreen demo: act `{self.act}` is left out: {self.reason}"


def run_demo(
    out: str | Path,
    *,
    only: Act | None = None,
    n_candidates: int = 5000,
    n_training: int = 1500,
    epochs: int = 40,
    overwrite: bool = False,
    scheduler: str | None = None,
) -> Iterator[ActReport | LeftOut]:
    """Run the demo's acts.

    Args:
        out: Folder; each act has a folder of its name in it.
        only: The act to run; None runs all.
        n_candidates: New structures to screen in act two.
        n_training: Structures to train on in act two.
        epochs: Of training in act two.
        overwrite: Replace the folders of the acts.
        scheduler: See `pipeline.cluster.connect`.

    Returns:
        What each act ends with, as it does. Without the package that carries the weights act one is left out.

    Raises:
        OutputExistsError: The folder of an act exists.
    """
    acts = list(Act) if only is None else [only]
    folders = {act: Path(out) / act for act in acts}
    for folder in folders.values():
        _check_free(folder, overwrite=overwrite)

    def play(act: Act) -> ActReport | LeftOut:
        folder = _emptied(folders[act])
        if act is Act.TRAIN:
            return run_trained(
                folder, n_candidates=n_candidates, n_training=n_training, epochs=epochs, scheduler=scheduler
            )
        try:
            return run_published(folder, scheduler=scheduler)
        except CheckpointError as error:
            return LeftOut(act, str(error))

    return map(play, acts)


def _check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse to touch what is there, unless it is a demo's and may be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise OutputExistsError(f"{folder}: exists; choose another --out, or say --overwrite")
    if not (folder / MARK).is_file():
        raise OutputExistsError(f"{folder}: exists and is no demo, so it is not overwritten")


def _emptied(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    return folder
