"""The demo: its acts in order, each in its own folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..pipeline.errors import CheckpointError, OutputExistsError
from .acts import Act
from .published import run_published
from .report import ActReport
from .trained import run_trained

# An empty file that marks a folder as replaceable; no other program writes a file with this name.
MARK = ".equiscreen-demo"


@dataclass(frozen=True, slots=True)
class SkippedAct:
    """A skipped act.

    Attributes:
        act: The act.
        reason: Why the act was skipped, and how to run it.
    """

    act: Act
    reason: str

    def __str__(self) -> str:
        return f"equiscreen demo: act `{self.act}` is skipped: {self.reason}"


def run_demo(
    out: str | Path,
    *,
    only: Act | None = None,
    n_candidates: int = 5000,
    n_training: int = 1500,
    epochs: int = 30,
    overwrite: bool = False,
    scheduler: str | None = None,
    progress: bool | None = None,
    note: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> Iterator[ActReport | SkippedAct]:
    """Run the acts of the demo.

    Args:
        out: Folder to write; each act writes to a subfolder with the name of the act.
        only: The act to run; None runs all.
        n_candidates: Number of new structures that act two screens.
        n_training: Number of structures that act two trains on.
        epochs: Number of training epochs in act two.
        overwrite: Replace folders that an earlier demo wrote.
        scheduler: Where the work runs; see `pipeline.runs.cluster.connect`.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.
        note: Called with a line about each step.

    Returns:
        An iterator that runs the acts and yields the report of each. Act one is skipped if its weights are not
        available: neither `sevenn` nor `equiscreen-models` is installed, and the cache does not hold the model.

    Raises:
        OutputExistsError: The folder of an act is not empty, and `overwrite` is not set or the demo did not write the
            folder.
    """
    acts = list(Act) if only is None else [only]
    folders = {act: Path(out) / act for act in acts}
    for folder in folders.values():
        _check_free(folder, overwrite=overwrite)

    def run(act: Act) -> ActReport | SkippedAct:
        folder = _emptied(folders[act])
        if act is Act.TRAIN:
            return run_trained(
                folder,
                n_candidates=n_candidates,
                n_training=n_training,
                epochs=epochs,
                scheduler=scheduler,
                progress=progress,
                note=note,
            )
        try:
            return run_published(folder, scheduler=scheduler, progress=progress, note=note)
        except CheckpointError as error:
            return SkippedAct(act, str(error))

    return map(run, acts)


def _check_free(folder: Path, *, overwrite: bool) -> None:
    """Check that a folder is missing or empty, or that a demo wrote it and `overwrite` is set.

    Raises:
        OutputExistsError: The folder must not be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise OutputExistsError(
            f"{folder} already exists; choose another --out, or use --overwrite if the demo wrote it"
        )
    if not (folder / MARK).is_file():
        raise OutputExistsError(
            f"{folder} already exists and was not written by the demo, so it is not overwritten; choose another --out"
        )


def _emptied(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    return folder
