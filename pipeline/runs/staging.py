"""Runs that can be killed at any time and resumed: they work in ``OUT.partial`` and publish with one rename."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EquiscreenError, OutputExistsError
from .lock import locked
from .marks import read_mark, write_mark
from .parts import PartKey, PartManifest, committed
from .target import Target

# Names in OUT.partial, beside the folders of the runs.
_LOCK, _REPLACED = "lock", "replaced"
# Names in the folder of a run.
_PLAN, _ASSEMBLED, _UPLOADED = "plan.json", "assembled.json", "uploaded"
# The part of an identity that may differ when an interrupted publication resumes: the store that is being extended.
_BASE = "base"
# First bytes of files by format; PyTorch's checkpoints are ZIP files, and an ONNX file begins with its version.
PARQUET, ZIP, ONNX = b"PAR1", b"PK\x03\x04", b"\x08"


@dataclass(frozen=True, slots=True)
class Staging:
    """Folders of a run in progress.

    Attributes:
        out: The output that will appear at the end.
        folder: ``OUT.partial``, on a file system that all workers share.
        work: Folder of this run inside `folder`. Every run has its own folder: if the client of an earlier run with
            other settings was killed, the workers of that run may still be writing.
        settings_digest: Digest of the settings that the user chose.
        replaces: Whether the output may replace an existing one.
    """

    out: Target
    folder: Path
    work: Path
    settings_digest: str
    replaces: bool

    @property
    def plan(self) -> Path:
        """Mark that holds the identity of the run."""
        return self.work / _PLAN

    @property
    def parts(self) -> Path:
        """Folder of the parts."""
        return self.work / "parts"

    @property
    def store(self) -> Path:
        """Folder of the store while it is being written."""
        return self.work / "store"

    @property
    def spool(self) -> Path:
        """Folder of the records that are cut from the sources for the tasks to read."""
        return self.work / "spool"

    def manifests(self) -> dict[PartKey, PartManifest]:
        """Return the manifests of all complete parts, including parts of earlier runs."""
        return {manifest.key: manifest for manifest in committed(self.parts)}

    def publish(self, report: Mapping[str, Any]) -> None:
        """Move the finished store to its final path, replacing an older one, and remove the parts.

        Args:
            report: Final report of the run; kept on disk in case the run is killed during its last steps.
        """
        mark = {"settings_digest": self.settings_digest, "replaces": self.replaces, "report": report}
        write_mark(self.work / _ASSEMBLED, mark)
        self.put_in_place()

    def put_in_place(self) -> None:
        """Rename or upload the finished store and remove the parts: the last steps of `publish`."""
        if self.out.path is None:
            self.out.upload(self.store)
            self.store.rename(self.work / _UPLOADED)  # so that a run killed in `discard` does not upload what is left
        else:
            if self.out.path.exists():
                self.out.path.rename(self.folder / _REPLACED)
            self.store.rename(self.out.path)
        self.discard()

    def discard(self) -> None:
        """Remove the parts, once the run is complete or cannot succeed."""
        shutil.rmtree(self.folder, ignore_errors=True)  # a worker of a killed client may still be writing

    @contextmanager
    def discarded_if_new(self) -> Iterator[None]:
        """Remove the folders of the run if a check fails before any part was made."""
        try:
            yield
        except EquiscreenError:
            if not _has_parts(self.work):
                self.discard()
            raise


def resume_publication(out: str | Path, identity: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Finish a run that was killed while it published its output.

    Args:
        out: Path or URL of the output.
        identity: As for `staged_run`.

    Returns:
        The report of that run, or None if there is no such run with this identity.

    Raises:
        OutputExistsError: Another run is at work, or something else now exists at the output.
    """
    target = Target.of(out)
    settings_digest = _settings_digest(identity, target)
    for mark in target.working_folder.glob(f"*/{_ASSEMBLED}"):
        found = read_mark(mark)
        if found is None or found["settings_digest"] != settings_digest:
            continue
        staging = Staging(target, target.working_folder, mark.parent, settings_digest, found["replaces"])
        with locked(staging.folder / _LOCK):
            if not staging.store.exists():  # already renamed; only the clean-up is left
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
    """Start or resume the run that writes `out`, and hold its lock for the duration of the block.

    Args:
        out: Path or URL of the output.
        identity: Everything that the result depends on. A run can be resumed only with an equal identity.
        inputs: Files and stores that are read; the output may neither contain nor replace one of them.
        overwrite: Replace an existing output once the new one is finished, and discard an unfinished run with other
            settings.
        extend: The new output contains the rows of the existing one and replaces it.

    Raises:
        OutputExistsError: The output exists, cannot be written or overlaps an input; another run is writing it; or an
            unfinished run has different settings.
    """
    target = Target.of(out)
    if target.path is not None:
        check_place(target.path, inputs)
    wanted = json.loads(json.dumps(identity))
    folder = target.working_folder
    staging = Staging(target, folder, folder / _digest(wanted), _settings_digest(wanted, target), overwrite or extend)
    schema = str(wanted.get("schema", "equiscreen-"))
    _check_free(target, schema, replace=staging.replaces)
    target.check_writable()
    make_working_folder(folder, out, _LOCK)
    with locked(folder / _LOCK):
        _restore_replaced(target)
        # Checked again, since another run may have finished meanwhile.
        _check_free(target, schema, replace=staging.replaces)
        _check_others(staging, wanted, overwrite=overwrite)
        for needed in (staging.parts, staging.spool):
            needed.mkdir(parents=True, exist_ok=True)
        write_mark(staging.plan, wanted)
        # Scratch files of tasks whose run was killed. If one of these tasks is still running, its part is made again.
        for scratch in staging.parts.glob(".*"):
            scratch.unlink(missing_ok=True)
        yield staging


def make_working_folder(folder: Path, out: str | Path, lock: str) -> None:
    """Make the folder of unfinished work, or accept the folder of an earlier run.

    Args:
        folder: The folder.
        out: The output, as the user names it.
        lock: Name of the lock file, which every run leaves in its folder.

    Raises:
        OutputExistsError: The folder holds something else, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = not (folder / lock).exists() and any(not _has_parts(one) for one in folder.iterdir())
    except OSError as error:
        raise OutputExistsError(f"{out} cannot be written ({error.strerror}); choose another `--out`") from error
    if foreign:
        raise OutputExistsError(f"{folder} already exists and was not made by equiscreen; choose another `--out`")


def _check_others(staging: Staging, wanted: Mapping[str, Any], *, overwrite: bool) -> None:
    """Raise an error if there is an unfinished run with different settings; with `overwrite`, remove that run."""
    for other in staging.folder.iterdir():
        if not other.is_dir() or other in (staging.work, staging.folder / _REPLACED):
            continue
        published = (other / _ASSEMBLED).exists() and not (other / "store").exists()
        if overwrite or published:
            shutil.rmtree(other, ignore_errors=True)
        elif _has_parts(other):
            found = read_mark(other / _PLAN)
            different = sorted(key for key in {*(found or {}), *wanted} if (found or {}).get(key) != wanted.get(key))
            reason = ", ".join(different) if found is not None else f"unknown, because its {_PLAN} is damaged"
            raise OutputExistsError(
                f"{staging.folder} holds an unfinished run with different settings ({reason}); resume it with its own "
                "settings, use --overwrite, or remove the folder"
            )


def _has_parts(work: Path) -> bool:
    return any((work / "parts").glob("[0-9]*.json"))


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _settings_digest(identity: Mapping[str, Any], target: Target) -> str:
    """Return a digest of an identity, without the store that is being extended, and of the URL, if the output has one.

    The URL is included because two URLs might share a working folder, and a run must publish to its own URL only.
    """
    settings = {name: value for name, value in json.loads(json.dumps(identity)).items() if name != _BASE}
    return _digest({**settings, "url": None if target.path is not None else str(target)})


def _restore_replaced(target: Target) -> None:
    """Put an older output back if a run was killed after moving it aside and before publishing its own."""
    replaced = target.working_folder / _REPLACED
    if target.path is None or not replaced.exists():
        return
    if target.path.exists():
        shutil.rmtree(replaced)
    else:
        replaced.rename(target.path)


def check_place(out: Path, inputs: Iterable[Path | str]) -> None:
    """Check that the output neither is nor contains one of the inputs, and does not lie inside an input store.

    Raises:
        OutputExistsError: The output overlaps an input.
    """
    for source in (path.resolve() for path in inputs if isinstance(path, Path)):  # a URL cannot overlap a local path
        if out == source or out in source.parents or (source in out.parents and (source / "zarr.json").exists()):
            raise OutputExistsError(
                f"{out} cannot be the output, because {source} is read by this run; choose another output"
            )


def check_file(
    out: str | Path, inputs: Iterable[Path | str] = (), *, overwrite: bool, begins: bytes | None = None
) -> Path:
    """Check, before any work is done, that a file may be written, and return its path.

    Args:
        out: File to write.
        inputs: Files and stores that are read; the file may neither replace nor lie inside one of them.
        overwrite: Replace an existing file.
        begins: First bytes of all files of the kind that is written; a file that begins otherwise is not replaced. None
            for kinds without such bytes.

    Raises:
        OutputExistsError: The file exists, is of another kind, is a folder or a URL, or overlaps an input.
    """
    if "://" in str(out):
        raise OutputExistsError(f"{out}: the output must be a local file; choose a local path, then copy the file")
    target = Path(out)
    check_place(target.resolve(), [Path(path) for path in inputs if "://" not in str(path)])
    if target.is_dir():
        raise OutputExistsError(f"{out} is a folder; choose a file")
    if target.exists() and not overwrite:
        raise OutputExistsError(f"{out} already exists; choose another file, or use `--overwrite`")
    if target.exists() and begins is not None:
        with target.open("rb") as file:
            if file.read(len(begins)) not in (begins, b""):
                raise OutputExistsError(
                    f"{out} already exists and is not a file that this command writes, so it is not overwritten; "
                    "choose another file, or remove this one first"
                )
    return target


def _check_free(target: Target, schema: str = "equiscreen-", *, replace: bool) -> None:
    """Check that nothing exists at the target or, with `replace`, nothing but an equiscreen store with the schema."""
    if not target.exists():
        return
    if not replace:
        raise OutputExistsError(f"{target} already exists; choose another `--out`, or use `--overwrite`")
    if not target.is_equiscreen_store(schema):
        raise OutputExistsError(
            f"{target} already exists and is not an equiscreen store of the kind that is written, so it is not "
            "overwritten; choose another --out"
        )


def whole_parts(manifests: Iterable[PartManifest]) -> list[PartManifest]:
    """Return parts in order, with every item in one part only: a part supersedes the smaller parts that it contains."""
    kept: list[PartManifest] = []
    for manifest in sorted(manifests, key=lambda manifest: (manifest.number, manifest.begin, -manifest.end)):
        if not kept or kept[-1].number != manifest.number or manifest.begin >= kept[-1].end:
            kept.append(manifest)
    return kept


def missing_items(manifests: Iterable[PartManifest], count: int) -> list[tuple[int, int]]:
    """Find the ranges of items of a partition that no part holds.

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
