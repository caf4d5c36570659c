"""A run that can be killed at any moment and run again: its work in ``OUT.partial``, and one rename at the end."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import write_text_atomically
from ..errors import EquiscreenError, OutputExistsError
from .lock import locked
from .parts import PartKey, PartManifest, committed
from .target import Target

# Beside the folders of runs in OUT.partial.
_LOCK, _REPLACED = "lock", "replaced"
_PLAN, _ASSEMBLED = "plan.json", "assembled.json"
# What of an identity may have changed when an interrupted publication is taken up: the store that is appended to.
_BASE = "base"


@dataclass(frozen=True, slots=True)
class Staging:
    """Folders of a run in progress.

    Attributes:
        out: The output that will appear at the end.
        folder: ``OUT.partial``, on a file system that all workers see.
        work: The folder in it that belongs to this run: workers of a run of other settings, whose client was killed,
            may still be writing into theirs.
        words: Digest of what the user said.
        replaces: Whether the output may take the place of another.
    """

    out: Target
    folder: Path
    work: Path
    words: str
    replaces: bool

    @property
    def parts(self) -> Path:
        """Folder of the parts."""
        return self.work / "parts"

    @property
    def store(self) -> Path:
        """The store while it is being written."""
        return self.work / "store"

    @property
    def spool(self) -> Path:
        """Folder of what is cut from sources for the tasks to read."""
        return self.work / "spool"

    def manifests(self) -> dict[PartKey, PartManifest]:
        """Of all parts that are complete, also of earlier runs."""
        return {manifest.key: manifest for manifest in committed(self.parts)}

    def publish(self, report: Mapping[str, Any]) -> None:
        """Give the finished store its name, in the place of an older one, and remove the parts.

        Args:
            report: What the run has to say at its end; kept in case that it is killed on its last steps.
        """
        mark = {"words": self.words, "replaces": self.replaces, "report": report}
        write_text_atomically(self.work / _ASSEMBLED, json.dumps(mark))
        self.put_in_place()

    def put_in_place(self) -> None:
        """The last steps of `publish`."""
        if self.out.path is None:
            self.out.upload(self.store)
        else:
            if self.out.path.exists():
                self.out.path.rename(self.folder / _REPLACED)
            self.store.rename(self.out.path)
        self.discard()

    def discard(self) -> None:
        """Remove the parts, when nothing can come of them or all is done."""
        shutil.rmtree(self.folder, ignore_errors=True)  # a worker of a killed client may still be at work in there

    @contextmanager
    def discarded_if_new(self) -> Iterator[None]:
        """Leave nothing behind if a check fails before anything was done."""
        try:
            yield
        except EquiscreenError:
            if not _has_parts(self.work):
                self.discard()
            raise


def resume_publication(out: str | Path, identity: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Finish a run that was killed while it published what it had made.

    Args:
        out: The output.
        identity: As for `staged_run`.

    Returns:
        The report of that run, or None if there is none of this identity.

    Raises:
        OutputExistsError: Another run is at work, or something has come to stand at the output.
    """
    target = Target.of(out)
    words = _digest(_words(identity))
    for mark in target.working_folder.glob(f"*/{_ASSEMBLED}"):
        found = json.loads(mark.read_text())
        if found["words"] != words:
            continue
        staging = Staging(target, target.working_folder, mark.parent, words, found["replaces"])
        with locked(staging.folder / _LOCK):
            if not staging.store.exists():  # it has its name; only the clean-up was left
                staging.discard()
            else:
                _check_free(target, replace=staging.replaces)
                staging.put_in_place()
        report: Mapping[str, Any] = found["report"]
        return report
    return None


@contextmanager
def staged_run(
    out: str | Path,
    identity: Mapping[str, Any],
    inputs: Iterable[Path | str] = (),
    *,
    overwrite: bool = False,
    extend: bool = False,
) -> Iterator[Staging]:
    """Open or take up the run that writes `out`, holding its lock.

    Args:
        out: The output, a path or a URL.
        identity: Everything that the result depends on. A run can only be resumed with an equal one.
        inputs: What is read; the output may not hold or replace any of it.
        overwrite: Replace an existing output, when the new one is finished, and an unfinished run of other settings.
        extend: The new output holds the old one and takes its place.

    Raises:
        OutputExistsError: The output exists, another run is at work on it, or an unfinished run had other settings.
    """
    target = Target.of(out)
    if target.path is not None:
        check_place(target.path, inputs)
    wanted = json.loads(json.dumps(identity))
    folder = target.working_folder
    staging = Staging(target, folder, folder / _digest(wanted), _digest(_words(wanted)), overwrite or extend)
    _check_free(target, replace=staging.replaces)
    target.check_writable()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputExistsError(f"{out}: cannot be written there ({error.strerror})") from error
    with locked(folder / _LOCK):
        _mend(target)
        _check_free(target, replace=staging.replaces)  # again: a run may have ended since
        _check_others(staging, wanted, overwrite=overwrite)
        for needed in (staging.parts, staging.spool):
            needed.mkdir(parents=True, exist_ok=True)
        write_text_atomically(staging.work / _PLAN, json.dumps(wanted, indent=1))
        for scratch in staging.parts.glob(".*"):  # of tasks that were killed; a task still at work makes its own again
            scratch.unlink(missing_ok=True)
        yield staging


def _check_others(staging: Staging, wanted: Mapping[str, Any], *, overwrite: bool) -> None:
    """Refuse to go on beside an unfinished run of other settings, or remove it."""
    for other in staging.folder.iterdir():
        if not other.is_dir() or other in (staging.work, staging.folder / _REPLACED):
            continue
        published = (other / _ASSEMBLED).exists() and not (other / "store").exists()
        if overwrite or published:
            shutil.rmtree(other, ignore_errors=True)
        elif _has_parts(other):
            found = json.loads((other / _PLAN).read_text()) if (other / _PLAN).exists() else {}
            different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            raise OutputExistsError(
                f"{staging.folder}: an unfinished run with other settings ({', '.join(different)} differ); "
                "use the same words to resume it, say --overwrite, or remove it"
            )


def _has_parts(work: Path) -> bool:
    return any((work / "parts").glob("[0-9]*.json"))


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _words(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in json.loads(json.dumps(identity)).items() if name != _BASE}


def _mend(target: Target) -> None:
    """After a run that was killed between two renames, and whose words will not be said again."""
    replaced = target.working_folder / _REPLACED
    if target.path is None or not replaced.exists():
        return
    if target.path.exists():
        shutil.rmtree(replaced)
    else:
        replaced.rename(target.path)


def check_place(out: Path, inputs: Iterable[Path | str]) -> None:
    """Refuse an output that is, holds, or stands inside one of the inputs.

    Raises:
        OutputExistsError: It does.
    """
    for source in (path.resolve() for path in inputs if isinstance(path, Path)):  # a URL is never in the way
        if out == source or out in source.parents or (source in out.parents and (source / "zarr.json").exists()):
            raise OutputExistsError(f"{out}: {source} is read by this run; choose another --out")


def _check_free(target: Target, *, replace: bool) -> None:
    if not target.exists():
        return
    if not replace:
        raise OutputExistsError(f"{target}: exists; choose another --out, or say --overwrite")
    if not target.is_ours():
        raise OutputExistsError(f"{target}: exists and is no store of equiscreen, so it is not overwritten")


def whole_parts(manifests: Iterable[PartManifest]) -> list[PartManifest]:
    """Parts in order, with each item in one part only: a part of a whole partition supersedes parts of its pieces."""
    kept: list[PartManifest] = []
    for manifest in sorted(manifests, key=lambda manifest: (manifest.number, manifest.begin, -manifest.end)):
        if not kept or kept[-1].number != manifest.number or manifest.begin >= kept[-1].end:
            kept.append(manifest)
    return kept


def missing_items(manifests: Iterable[PartManifest], count: int) -> list[tuple[int, int]]:
    """Ranges of items of one partition that no part holds.

    Args:
        manifests: Parts of the partition.
        count: Items in the partition.

    Returns:
        (begin, end) of each gap, in order.
    """
    gaps, reached = [], 0
    for manifest in whole_parts(manifests):
        if manifest.begin > reached:
            gaps.append((reached, manifest.begin))
        reached = manifest.end
    return [*gaps, (reached, count)] if reached < count else gaps
