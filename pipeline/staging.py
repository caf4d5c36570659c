"""A run that can be killed at any moment and run again: parts in ``OUT.partial``, and one rename at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .cluster import Salvage, run_tasks
from .compaction import Compaction, create_arrays, shard_tasks, write_shard
from .errors import EquiscreenError, OutputExistsError
from .lock import locked
from .parts import PartKey, Receipt, committed, write_text_atomically
from .progress import ProgressReport
from .target import Target

Task = TypeVar("Task")


@dataclass(frozen=True, slots=True)
class Staging:
    """Folders of a run in progress.

    Attributes:
        out: The output that will appear at the end.
        folder: ``OUT.partial``, on a file system that all workers see.
    """

    out: Target
    folder: Path

    @property
    def parts(self) -> Path:
        """Folder of the parts."""
        return self.folder / "parts"

    @property
    def store(self) -> Path:
        """The store while it is being written."""
        return self.folder / "store"

    @property
    def pieces(self) -> Path:
        """Folder of what is cut from sources for the tasks to read."""
        return self.folder / "pieces"

    def receipts(self) -> dict[PartKey, Receipt]:
        """Of all parts that are complete, also of earlier runs."""
        return {receipt.key: receipt for receipt in committed(self.parts)}

    def publish(self) -> None:
        """Give the finished store its name, in the place of an older one, and remove the parts."""
        if self.out.path is None:
            self.out.upload(self.store)
        else:
            if self.out.path.exists():
                self.out.path.rename(self.replaced)
            self.store.rename(self.out.path)
        self.discard()

    @property
    def replaced(self) -> Path:
        """Where an older store waits to be removed."""
        return self.folder / "replaced"

    def discard(self) -> None:
        """Remove the parts, when nothing can come of them or all is done."""
        shutil.rmtree(self.folder)

    @contextmanager
    def discarded_if_new(self) -> Iterator[None]:
        """Leave nothing behind if a check fails before anything was done."""
        try:
            yield
        except EquiscreenError:
            if not any(self.parts.glob("[0-9]*.json")):
                self.discard()
            raise


@contextmanager
def staged(
    out: str | Path, identity: Mapping[str, Any], inputs: Iterable[Path | str] = (), *, overwrite: bool = False
) -> Iterator[Staging]:
    """Open or take up the run that writes `out`, holding its lock.

    Args:
        out: The output, a path or a URL.
        identity: Everything that the result depends on. A run can only be resumed with an equal one.
        inputs: What is read; the output may not hold or replace any of it.
        overwrite: Replace an existing output, when the new one is finished, and an unfinished run of other settings.

    Raises:
        OutputExistsError: The output exists, another run is at work on it, or an unfinished run had other settings.
    """
    target = Target.of(out)
    if target.path is not None:
        check_place(target.path, inputs)
    staging = Staging(target, target.working_folder)
    recover(target)
    _check_free(target, overwrite=overwrite)
    target.check_writable()
    try:
        staging.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputExistsError(f"{out}: cannot be written there ({error.strerror})") from error
    with locked(staging.folder / "lock"):
        _check_free(target, overwrite=overwrite)  # again: a run may have ended since
        plan = staging.folder / "plan.json"
        wanted = json.loads(json.dumps(identity))
        if plan.exists():
            found = json.loads(plan.read_text())
            different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            if different and overwrite:
                shutil.rmtree(staging.parts, ignore_errors=True)
                shutil.rmtree(staging.pieces, ignore_errors=True)
            elif different and any(staging.parts.glob("[0-9]*.json")):
                raise OutputExistsError(
                    f"{staging.folder}: an unfinished run with other settings ({', '.join(different)} differ); "
                    "use the same words to resume it, or say --overwrite"
                )
        write_text_atomically(plan, json.dumps(wanted, indent=1))
        staging.parts.mkdir(exist_ok=True)
        staging.pieces.mkdir(exist_ok=True)
        for scratch in staging.parts.glob(".*"):  # of tasks that were killed; the lock says that none is at work
            scratch.unlink(missing_ok=True)
        yield staging


def recover(target: Target) -> None:
    """Bring back a store that was about to be replaced when the run was killed between two renames."""
    replaced = target.working_folder / "replaced"
    if target.path is not None and replaced.exists() and not target.path.exists():
        replaced.rename(target.path)


def check_place(out: Path, inputs: Iterable[Path | str]) -> None:
    """Refuse an output that is, holds, or stands inside one of the inputs.

    Raises:
        OutputExistsError: It does.
    """
    for source in (path.resolve() for path in inputs if isinstance(path, Path)):  # a URL is never in the way
        if out == source or out in source.parents or (source in out.parents and (source / "zarr.json").exists()):
            raise OutputExistsError(f"{out}: {source} is read by this run; choose another --out")


def _check_free(target: Target, *, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise OutputExistsError(f"{target}: exists; choose another --out, or say --overwrite")
    if not target.is_ours():
        raise OutputExistsError(f"{target}: exists and is no store of equiscreen, so it is not overwritten")


def make_parts(
    client: Any,
    staging: Staging,
    function: Callable[[Task], Receipt],
    tasks: Iterable[Task],
    progress: ProgressReport,
    salvage: Salvage[Task] | None = None,
) -> list[Receipt]:
    """Run tasks, each of which leaves a part.

    Args:
        client: Dask client.
        staging: The run.
        function: Makes one part.
        tasks: Those whose parts are not there yet.
        progress: Advanced by what each part has read.
        salvage: See `run_tasks`.

    Returns:
        The receipts of all parts, in order.
    """
    done = staging.receipts()
    progress.advance(sum(receipt.counts["read"] for receipt in done.values()))
    for receipt in run_tasks(client, function, tasks, salvage):
        done[receipt.key] = receipt
        progress.advance(receipt.counts["read"])
    return whole_parts(done.values())


def whole_parts(receipts: Iterable[Receipt]) -> list[Receipt]:
    """Parts in order, each item once: a part of a whole partition stands for those of its pieces."""
    kept: list[Receipt] = []
    for receipt in sorted(receipts, key=lambda receipt: (receipt.number, receipt.begin, -receipt.end)):
        if not kept or kept[-1].number != receipt.number or receipt.begin >= kept[-1].end:
            kept.append(receipt)
    return kept


def compact(client: Any, compaction: Compaction) -> dict[str, str]:
    """Write all shards of the store, on the workers.

    Returns:
        sha256 of the rows of every array, by ``name/shard``.
    """
    create_arrays(compaction)
    digests: dict[str, str] = {}
    for part in run_tasks(client, partial(write_shard, compaction), shard_tasks(compaction)):
        digests.update(part)
    return digests
