"""Where structures come from: files are found, their format told, and their records divided into partitions."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, cast

from .errors import SourceError
from .pymatgen_json import json_records

# A partition ends at whichever comes first. Neither depends on the number of workers.
PARTITION_RECORDS = 4096
PARTITION_BYTES = 4 << 20


class Format(StrEnum):
    """Formats that can be read."""

    CIF = "cif"
    CSV = "csv"
    EXTXYZ = "extxyz"
    JSON = "json"


SUFFIXES = {
    ".cif": Format.CIF,
    ".csv": Format.CSV,
    ".xyz": Format.EXTXYZ,
    ".extxyz": Format.EXTXYZ,
    ".json": Format.JSON,
}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file.

    Attributes:
        name: As the user gave it (or the folder it is in); this is what the store remembers.
        format: How it is read.
        path: Where it is, for workers whose working directory is another.
    """

    name: str
    format: Format
    path: str

    @property
    def compressed(self) -> bool:
        """Whether it is read through gzip."""
        return self.name.endswith(".gz")

    def open(self) -> IO[bytes]:
        """Open for reading, decompressed."""
        return cast("IO[bytes]", gzip.open(self.path, "rb")) if self.compressed else Path(self.path).open("rb")

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of the decompressed file.

        Raises:
            SourceError: It cannot be read, or ends early.
        """
        try:
            with self.open() as file:
                file.seek(offset)
                return file.read() if length is None else file.read(length)
        except (OSError, EOFError) as error:
            raise SourceError(f"{self.name}: cannot be read ({error})") from error


@dataclass(frozen=True, slots=True)
class Partition:
    """A run of records that one task reads.

    Attributes:
        number: Its place in the order of sources.
        files: One file, or several small ones that hold few records each.
        first: Index of the first record within its file (0 for several files).
        offset: Where that record begins in the decompressed file.
        length: Decompressed bytes to read; None reads to the end.
        limit: At most so many records; None reads all.
    """

    number: int
    files: tuple[SourceFile, ...]
    first: int = 0
    offset: int = 0
    length: int | None = None
    limit: int | None = None

    def read(self) -> bytes:
        """The bytes of a partition of a single file.

        Raises:
            SourceError: The file cannot be read, or ends early.
        """
        return self.files[0].read(self.offset, self.length)


@dataclass(frozen=True, slots=True)
class Plan:
    """All partitions of a run, and what identifies its inputs.

    Attributes:
        partitions: In the order of sources.
        n_records: How many records they hold, as far as it is known before reading; JSON files count as one.
        inputs: (name, bytes, sha256) of every file.
    """

    partitions: tuple[Partition, ...]
    n_records: int
    inputs: tuple[tuple[str, int, str], ...]


def find_files(sources: Sequence[str | Path]) -> list[SourceFile]:
    """Resolve paths and folders to files. A folder gives its CIF files, sorted by name, with those of its subfolders.

    Raises:
        SourceError: A path that does not exist, is empty, or has an unknown suffix.
    """
    files: list[SourceFile] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.name.lower().endswith((".cif", ".cif.gz")) and p.is_file())
            if not inside:
                raise SourceError(f"{source}: a folder without .cif files")
            files.extend(_source_file(p, Format.CIF) for p in inside)
        elif not path.exists():
            raise SourceError(f"{source}: no such file or folder")
        elif path.stat().st_size == 0:
            raise SourceError(f"{source}: the file is empty")
        else:
            files.append(_source_file(path, _format_of(path)))
    if not files:
        raise SourceError("no sources given")
    return files


def make_plan(files: Sequence[SourceFile], limit: int | None = None) -> Plan:
    """Divide the records of all files into partitions, reading every file once.

    Args:
        files: In the order in which the first of two equal structures wins.
        limit: Stop after so many records.

    Raises:
        SourceError: A file that cannot be read.
    """
    partitions: list[Partition] = []
    inputs: list[tuple[str, int, str]] = []
    n_records = 0
    small: list[SourceFile] = []
    small_bytes = 0

    def add(files: tuple[SourceFile, ...], first: int, offset: int, length: int | None, count: int | None) -> None:
        nonlocal n_records
        left = None if limit is None else limit - n_records
        if left is not None and left <= 0:
            return
        known = 1 if count is None else count
        cap = left if left is not None and (count is None or left < count) else None
        partitions.append(Partition(len(partitions), files, first, offset, length, cap))
        n_records += known if cap is None else min(known, cap)

    def flush() -> None:
        nonlocal small, small_bytes
        if small:
            add(tuple(small), 0, 0, None, len(small))
        small, small_bytes = [], 0

    for file in files:
        size, digest = _fingerprint(file)
        inputs.append((file.name, size, digest))
        if file.format is Format.CIF:
            small.append(file)
            small_bytes += size
            if small_bytes >= PARTITION_BYTES or len(small) >= PARTITION_RECORDS:
                flush()
            continue
        flush()
        if file.format is Format.JSON:
            # Counting means reading it all; only a limit needs to know.
            add((file,), 0, 0, None, None if limit is None else _json_count(file))
            continue
        for first, offset, length, count in _cut(file):
            add((file,), first, offset, length, count)
    flush()
    return Plan(tuple(partitions), n_records, tuple(inputs))


def _source_file(path: Path, form: Format) -> SourceFile:
    return SourceFile(path.as_posix(), form, path.resolve().as_posix())


def _format_of(path: Path) -> Format:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in SUFFIXES:
        raise SourceError(f"{path}: unknown format {suffix!r}; known are {', '.join(sorted(SUFFIXES))}, also with .gz")
    return SUFFIXES[suffix]


def _fingerprint(file: SourceFile) -> tuple[int, str]:
    try:
        with Path(file.path).open("rb") as raw:
            digest = hashlib.file_digest(raw, "sha256").hexdigest()
            return raw.tell(), digest
    except OSError as error:
        raise SourceError(f"{file.name}: cannot be read ({error})") from error


def _cut(file: SourceFile) -> Iterator[tuple[int, int, int, int]]:
    """Cut a file of many records into (first record, offset, length, number of records)."""
    try:
        with file.open() as stream:
            lengths = _csv_records(stream) if file.format is Format.CSV else (n for n, _ in extxyz_pieces(stream))
            # A CSV's first line names its columns; every partition of it reads that line anew.
            offset = next(lengths, 0) if file.format is Format.CSV else 0
            first = count = length = 0
            for size in lengths:
                length += size
                count += 1
                if count >= PARTITION_RECORDS or length >= PARTITION_BYTES:
                    yield first, offset, length, count
                    first, offset, count, length = first + count, offset + length, 0, 0
            if count:
                yield first, offset, length, count
    except (OSError, EOFError) as error:
        raise SourceError(f"{file.name}: cannot be read ({error})") from error


def _json_count(file: SourceFile) -> int:
    try:
        return sum(1 for _ in json_records(json.loads(file.read())))
    except ValueError:
        return 1  # one row of the failures table


def _csv_records(stream: IO[bytes]) -> Iterator[int]:
    """Byte lengths of CSV records: a line break within quotes does not end one."""
    length = quotes = 0
    for line in stream:
        length += len(line)
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            if line.strip():
                yield length
                length = 0
            quotes = 0
    if length:
        yield length


def extxyz_pieces(stream: IO[bytes]) -> Iterator[tuple[int, bool]]:
    """Cut extended XYZ into frames: (bytes, True) for each, with the blank lines before it.

    Lines where a frame should begin, but none that holds a number of atoms, are one piece (bytes, False); reading goes
    on at the next line that does.
    """
    waiting = 0
    junk = False
    for head in iter(stream.readline, b""):
        n_atoms = int(head) if head.strip().isdigit() else 0
        if n_atoms < 1:
            waiting += len(head)
            junk = junk or bool(head.strip())
            continue
        if junk:
            stream.seek(-len(head), 1)
            yield waiting, False
            stream.readline()
            waiting, junk = 0, False
        frame = len(head) + sum(len(stream.readline()) for _ in range(n_atoms + 1))
        yield waiting + frame, True
        waiting = 0
    if junk:
        yield waiting, False


def inputs_digest(inputs: Sequence[tuple[str, int, str]]) -> str:
    """One sha256 over names, sizes and checksums of all inputs."""
    return hashlib.sha256(json.dumps([list(item) for item in inputs]).encode()).hexdigest()
