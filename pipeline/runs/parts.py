"""Parts: the output of one task on disk. A part is either complete or absent, and its manifest describes it."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..atomic import atomic_path
from ..errors import StoreError, detail
from .marks import read_mark, write_mark

PartArray = NDArray[Any] | list[str]
# Field of a task that holds the folder of its part.
FOLDER = "folder"
# Entry of the notes of a part: the kind of device and instruction set that it was computed on.
COMPUTED_ON = "computed_on"


@dataclass(frozen=True, slots=True)
class PartManifest:
    """Description of a part: returned by the task, and stored beside the arrays as the commit mark of the part.

    Attributes:
        number: Number of the partition.
        counts: Numbers of structures read and failed, and of rows along each dim.
        sha256: Digest of the file that holds the arrays.
        notes: Small values for the report of the run.
        begin, end: Range of items of the partition; a part that holds the whole partition begins at 0.
    """

    number: int
    counts: dict[str, int]
    sha256: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    begin: int = 0
    end: int = 0

    @property
    def key(self) -> PartKey:
        """Key that names the part; keys sort in the order of the sources."""
        return PartKey(self.number, self.begin, self.end)


class PartKey(NamedTuple):
    """Name of a part: items `begin` up to `end` of a partition."""

    number: int
    begin: int
    end: int

    @property
    def stem(self) -> str:
        """File name of the part, without its suffix."""
        return f"{self.number:07d}-{self.begin:05d}-{self.end:05d}"

    def halves(self) -> tuple[PartKey, ...]:
        """Return the keys of two parts with the same items; none if there is only one item."""
        middle = (self.begin + self.end) // 2
        if middle == self.begin:
            return ()
        return self._replace(end=middle), self._replace(begin=middle)


@dataclass(frozen=True, slots=True)
class DivisibleTask:
    """Work on the items of one part, which is divided if its worker dies.

    Attributes:
        number: Number of the part.
        begin, end: Items to process, counted from the first one of the part.
        skip: Whether to record the only item without processing it, because it killed its worker.
    """

    number: int
    begin: int
    end: int
    skip: bool = field(default=False, kw_only=True)

    @property
    def key(self) -> PartKey:
        """Key of the part."""
        return PartKey(self.number, self.begin, self.end)

    def split(self) -> list[Self]:
        """Return the same work as two tasks; no tasks for a single item."""
        return [replace(self, begin=half.begin, end=half.end) for half in self.key.halves()]

    def skipped(self) -> Self:
        """Return the same task, set to record its item without processing it."""
        return replace(self, skip=True)


def write_part(
    folder: Path, key: PartKey, arrays: Mapping[str, PartArray], counts: dict[str, int], notes: dict[str, Any]
) -> PartManifest:
    """Write the arrays of a part, then its manifest; each file appears under its name only when complete.

    Two tasks may write the same part: both write the same content.
    """
    data = folder / f"{key.stem}.npz"
    with atomic_path(data) as scratch:
        np.savez(scratch, allow_pickle=False, **_packed(arrays))
        with scratch.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = PartManifest(key.number, counts, sha256, notes, key.begin, key.end)
    write_mark(folder / f"{key.stem}.json", asdict(manifest))
    return manifest


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that a worker sends to the process that started the run.

    Attributes:
        manifest: Manifest of the part.
        files: Every file that its task has written: field of the task that holds the folder, name, and content.
    """

    manifest: PartManifest
    files: tuple[tuple[str, str, bytes], ...]


def send_part(function: Callable[[Any], PartManifest], fields: Sequence[str], task: Any) -> SentPart:
    """Make a part in scratch folders of the worker, for a process that shares no folder with it.

    Args:
        function: Makes the part in the folders of a task.
        fields: Fields of the task that hold these folders.
        task: The task, a dataclass.
    """
    with tempfile.TemporaryDirectory(prefix="equiscreen-") as scratch:
        folders = {name: Path(scratch) / name for name in fields}
        for folder in folders.values():
            folder.mkdir()
        manifest = function(replace(task, **folders))
        written = [(name, file) for name, folder in folders.items() for file in sorted(folder.iterdir())]
        return SentPart(manifest, tuple((name, file.name, file.read_bytes()) for name, file in written))


def received_part(folders: Mapping[str, Path], part: SentPart) -> PartManifest:
    """Write the files of a part that a worker has sent, and return its manifest; the mark of completion comes last.

    Args:
        folders: Folder for each field of the task; the mark is in ``folder``.
        part: The part.
    """
    mark = (FOLDER, f"{part.manifest.key.stem}.json")
    for folder, name, content in sorted(part.files, key=lambda file: file[:2] == mark):
        with atomic_path(folders[folder] / name) as scratch:
            scratch.write_bytes(content)
    return part.manifest


def committed(folder: Path) -> list[PartManifest]:
    """Return the manifests of all complete parts in a folder, in order.

    A part whose manifest is damaged, or whose arrays do not match the checksum in it, is skipped, so that it is made
    again.
    """
    manifests = []
    for mark in folder.glob("[0-9]*.json"):
        content = read_mark(mark)
        if content is None:
            continue
        manifest = PartManifest(**content)
        data = folder / f"{manifest.key.stem}.npz"
        if not data.exists():
            continue
        with data.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == manifest.sha256:
                manifests.append(manifest)
    return sorted(manifests, key=lambda manifest: manifest.key)


def computed_on(manifests: Iterable[PartManifest]) -> list[str]:
    """Return the kinds of devices and instruction sets that parts were computed on, sorted."""
    return sorted({kind for manifest in manifests if (kind := manifest.notes.get(COMPUTED_ON))})


def read_part(folder: Path, key: PartKey, names: Iterable[str]) -> dict[str, PartArray]:
    """Read some arrays of a part; names that the part does not have are skipped.

    Raises:
        StoreError: The part is missing or damaged.
    """
    path = folder / f"{key.stem}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _unpacked(arrays, name) for name in names if name in arrays or f"{name}.ends" in arrays}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} cannot be read ({detail(error)}); run the same command again") from error


def _packed(arrays: Mapping[str, PartArray]) -> dict[str, NDArray[Any]]:
    """Encode lists of text as concatenated bytes and end offsets, which need neither pickle nor a common width."""
    packed: dict[str, NDArray[Any]] = {}
    for name, values in arrays.items():
        if isinstance(values, list):
            encoded = [value.encode("utf-8", errors="replace") for value in values]
            packed[f"{name}.ends"] = np.cumsum([len(value) for value in encoded], dtype=np.int64)
            packed[f"{name}.bytes"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        else:
            packed[name] = values
    return packed


def _unpacked(arrays: Mapping[str, NDArray[Any]], name: str) -> PartArray:
    """Decode one array written by `_packed`."""
    if f"{name}.ends" not in arrays:
        return arrays[name]
    ends, content = arrays[f"{name}.ends"].tolist(), arrays[f"{name}.bytes"].tobytes()
    return [content[begin:end].decode() for begin, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
