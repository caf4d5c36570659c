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

from .cluster import run_tasks
from .compaction import Compaction, create_arrays, shard_tasks, write_shard
from .errors import OutputExistsError
from .lock import locked
from .parts import Receipt, committed, write_text_atomically
from .progress import ProgressReport

Task = TypeVar("Task")


@dataclass(frozen=True, slots=True)
class Staging:
    """Folders of a run in progress.

    Attributes:
        out: The output that will appear at the end, an absolute path.
        folder: ``OUT.partial``.
    """

    out: Path
    folder: Path

    @property
    def parts(self) -> Path:
        """Folder of the parts."""
        return self.folder / "parts"

    @property
    def store(self) -> Path:
        """The store while it is being written."""
        return self.folder / "store"

    def publish(self) -> None:
        """Give the finished store its name, in the place of an older one, and remove the parts."""
        if self.out.exists():
            self.out.rename(self.folder / "replaced")
        self.store.rename(self.out)
        self.discard()

    def discard(self) -> None:
        """Remove the parts, when nothing can come of them or all is done."""
        shutil.rmtree(self.folder)


@contextmanager
def staged(
    out: Path, identity: Mapping[str, Any], inputs: Iterable[Path] = (), *, overwrite: bool = False
) -> Iterator[Staging]:
    """Open or take up the run that writes `out`, holding its lock.

    Args:
        out: The output.
        identity: Everything that the result depends on. A run can only be resumed with an equal one.
        inputs: What is read; the output may not hold or replace any of it.
        overwrite: Replace an existing output, when the new one is finished, and an unfinished run of other settings.

    Raises:
        OutputExistsError: The output exists, another run is at work on it, or an unfinished run had other settings.
    """
    out = out.resolve()
    check_place(out, inputs)
    staging = Staging(out, out.with_name(f"{out.name}.partial"))
    _check_free(out, overwrite=overwrite)
    try:
        staging.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputExistsError(f"{out}: cannot be written there ({error.strerror})") from error
    with locked(staging.folder / "lock"):
        _check_free(out, overwrite=overwrite)  # again: a run may have ended since
        plan = staging.folder / "plan.json"
        wanted = json.loads(json.dumps(identity))
        if plan.exists():
            found = json.loads(plan.read_text())
            different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            if different and overwrite:
                shutil.rmtree(staging.parts, ignore_errors=True)
            elif different and any(staging.parts.glob("[0-9]*.json")):
                raise OutputExistsError(
                    f"{staging.folder}: an unfinished run with other settings ({', '.join(different)} differ); "
                    "use the same words to resume it, or say --overwrite"
                )
        write_text_atomically(plan, json.dumps(wanted, indent=1))
        staging.parts.mkdir(exist_ok=True)
        for scratch in staging.parts.glob(".*"):  # of tasks that were killed; the lock says that none is at work
            scratch.unlink()
        yield staging


def check_place(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that is, holds, or stands inside one of the inputs.

    Raises:
        OutputExistsError: It does.
    """
    for source in (path.resolve() for path in inputs):
        if out == source or out in source.parents or (source in out.parents and (source / "zarr.json").exists()):
            raise OutputExistsError(f"{out}: {source} is read by this run; choose another --out")


def _check_free(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise OutputExistsError(f"{out}: exists; choose another --out, or say --overwrite")
    if not (out / "zarr.json").is_file() or "equiscreen-" not in (out / "zarr.json").read_text():
        raise OutputExistsError(f"{out}: exists and is no store of equiscreen, so it is not overwritten")


def make_parts(
    client: Any,
    staging: Staging,
    function: Callable[[Task], Receipt],
    tasks: Mapping[int, Task],
    progress: ProgressReport,
) -> dict[int, Receipt]:
    """Run the tasks whose parts are not there yet.

    Args:
        client: Dask client.
        staging: The run.
        function: Makes one part.
        tasks: By part number.
        progress: Advanced by what each part has read.

    Returns:
        The receipts of all parts, in order.
    """
    receipts = {number: receipt for number, receipt in committed(staging.parts).items() if number in tasks}
    progress.advance(sum(receipt.counts["read"] for receipt in receipts.values()))
    missing: Iterable[Task] = [task for number, task in tasks.items() if number not in receipts]
    for receipt in run_tasks(client, function, missing):
        receipts[receipt.number] = receipt
        progress.advance(receipt.counts["read"])
    return dict(sorted(receipts.items()))


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
