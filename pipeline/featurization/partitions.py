"""The plan of a run: the records of all sources divided into partitions, while they are read once from front to end.

How they are divided depends on the sources alone and never on the number of workers, so that a run that is taken up
again divides them alike.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import SourceError, UnreachableError
from ..readers.archives import Reading, documents_of_file
from ..readers.ase_db import read_rows, row_ids
from ..readers.records import STRUCTURE_COLUMNS, RawRecord, ReadOptions, has_structure_columns, read_document, read_row
from ..readers.splitting import Document
from ..sources.files import BUFFER_BYTES, SourceFile
from ..sources.formats import TEXTS, Format
from .spool import read_spooled, write_documents, write_rows

# A partition ends at whichever comes first: about a second of work.
PARTITION_RECORDS = 4096
PARTITION_BYTES = 8 << 20
_SMALL_FORMATS = re.compile(r"\.(cif|mcif|vasp|poscar)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileGroup:
    """Small files, mostly of one structure each, that a worker opens itself."""

    files: tuple[SourceFile, ...]


@dataclass(frozen=True, slots=True)
class SpooledRecords:
    """Documents or rows that the client has cut from streams.

    Attributes:
        path: See `pieces`.
        format: Of the rows.
    """

    path: Path
    format: Format | None = None


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows of a database.

    Attributes:
        path: Of the database on this machine.
        file: The source that it is.
        ids: Of the rows.
        first: Place of the first one.
    """

    path: Path
    file: SourceFile
    ids: tuple[int, ...]
    first: int


@dataclass(frozen=True, slots=True)
class Partition:
    """A run of records that one task reads.

    Attributes:
        number: Its place in the order of sources.
        content: Where the records are.
        begin, end: The items of it to read: documents, rows, or, of several files, the files.
    """

    number: int
    content: FileGroup | SpooledRecords | RowRange
    begin: int
    end: int

    def halves(self) -> tuple[Partition, ...]:
        """The same items in two partitions; none if there is but one item."""
        middle = (self.begin + self.end) // 2
        if middle == self.begin:
            return ()
        return replace(self, end=middle), replace(self, begin=middle)

    def names(self) -> list[tuple[str, int]]:
        """Source and place of each item, found without understanding what they say."""
        match self.content:
            case FileGroup(files):
                return [name for file in files[self.begin : self.end] for name in _names_in(file)]
            case SpooledRecords(path, _):
                items = read_spooled(path, self.begin, self.end)
                return [(item.source, item.index) if isinstance(item, Document) else item[:2] for item in items]
            case RowRange(_, file, _, first):
                return [(file.name, first + place) for place in range(self.begin, self.end)]


def read_partition(partition: Partition, options: ReadOptions) -> Iterator[RawRecord]:
    """Read all records of a partition; a record that cannot be read does not stop the others."""
    begin, end = partition.begin, partition.end
    match partition.content:
        case FileGroup(files):
            for file in files[begin:end]:
                yield from _read_small_file(file, options)
        case SpooledRecords(path, form):
            for item in read_spooled(path, begin, end):
                if isinstance(item, Document):
                    yield read_document(item, options)
                else:
                    yield read_row(*item, form or Format.PARQUET, options)
        case RowRange(path, file, ids, first):
            yield from read_rows(path, file.name, ids[begin:end], first + begin)


def _names_in(file: SourceFile) -> list[tuple[str, int]]:
    """Source and place of every record of a small file."""
    try:
        items = [(item.source, item.index) for item in documents_of_file(file, file.detected(), Reading())]
    except SourceError:
        items = []
    return items or [(file.name, 0)]


def _read_small_file(file: SourceFile, options: ReadOptions) -> Iterator[RawRecord]:
    index = 0
    try:
        for record in _records_of_file(file, options):
            yield record
            index += 1
    except UnreachableError:
        raise  # it may be there the next time
    except SourceError as error:
        yield RawRecord(file.name, index, None, reason=str(error).removeprefix(f"{file.name}: "))
        index += 1
    if index == 0:
        yield RawRecord(file.name, 0, None, reason="no record in the file")


def _records_of_file(file: SourceFile, options: ReadOptions) -> Iterator[RawRecord]:
    """Records of a whole file, which may be another thing than its name says."""
    form = file.detected()
    if form in (Format.PARQUET, Format.ASE_DB):
        with TemporaryDirectory() as folder:
            for partition in Plan([file], Path(folder), sys.maxsize):
                yield from read_partition(partition, options)
    else:
        for document in documents_of_file(file, form, Reading()):
            yield read_document(document, options)


class Plan:
    """Reads all sources and yields partitions.

    Args:
        files: In the order in which the first of two equal structures wins.
        folder: Where pieces are put.
        limit: Stop after so many records.
        columns: Columns of tables that are wanted beside those of the structure; None reads all.
        is_done: Whether the partition of a number, with so many records, has been read by an earlier run, so that its
            piece is not needed.
    """

    def __init__(
        self,
        files: Sequence[SourceFile],
        folder: Path,
        limit: int | None = None,
        columns: frozenset[str] | None = None,
        is_done: Callable[[int, int], bool] = lambda number, count: False,  # noqa: ARG005
    ) -> None:
        self.files, self.folder, self.limit, self.columns, self.is_done = files, folder, limit, columns, is_done
        self.aside: list[str] = []
        self.n_records = 0
        self._number = 0
        self._waiting: list[Document] = []
        self._waiting_bytes = 0
        self._bytes_total = sum(file.size for file in files)
        self._bytes_done = 0

    def expected(self) -> int:
        """How many records there will be, as far as can be told by now."""
        share = self._bytes_done / max(self._bytes_total, 1)
        found = round(self.n_records / share) if share > 0 else self.n_records
        return found if self.limit is None else min(found, self.limit)

    def __iter__(self) -> Iterator[Partition]:
        small: list[SourceFile] = []
        size = 0
        for file in self.files:
            is_single = self._is_single(file)
            if small and (not is_single or len(small) >= PARTITION_RECORDS or size >= PARTITION_BYTES):
                yield self._group(small)
                small, size = [], 0
            if is_single:
                yield from self._flushed()
                small.append(file)
                size += file.size
                continue
            done = self._bytes_done
            yield from self._cut(file)
            self._bytes_done = done + file.size
            if self._left() == 0:
                break
        if small:
            yield self._group(small)
        yield from self._flushed()

    def _is_single(self, file: SourceFile) -> bool:
        """Whether it is small and holds, by its name, a single structure, so that a worker may as well open it."""
        if self.limit is not None or not file.small:
            return False  # only the client can count up to a limit
        if file.format is not None:
            return file.format in (Format.CIF, Format.POSCAR)
        return _SMALL_FORMATS.search(file.path) is not None

    def _group(self, files: list[SourceFile]) -> Partition:
        self._bytes_done += sum(file.size for file in files)
        return self._partition(FileGroup(tuple(files)), len(files))

    def _partition(self, content: FileGroup | SpooledRecords | RowRange, count: int) -> Partition:
        partition = Partition(self._number, content, 0, count)
        self._number += 1
        self.n_records += count
        return partition

    def _left(self) -> int | None:
        return None if self.limit is None else self.limit - self.n_records - len(self._waiting)

    def _cut(self, file: SourceFile) -> Iterator[Partition]:
        try:
            form = file.detected()
        except SourceError as error:
            if not file.small or isinstance(error, UnreachableError):
                raise
            self._wait(_unreadable(file, 0, error))
            return
        if form in (Format.PARQUET, Format.ASE_DB):
            yield from self._flushed()
            yield from self._cut_table(file) if form is Format.PARQUET else self._cut_database(file)
        else:
            yield from self._cut_text(file, form)
            if not file.small:  # the documents of many small files share a piece
                yield from self._flushed()

    def _cut_text(self, file: SourceFile, form: Format) -> Iterator[Partition]:
        done = self._bytes_done
        reading = Reading(self.aside)
        index = 0
        try:
            for item in islice(documents_of_file(file, form, reading), self._left()):
                self._wait(item)
                index += 1
                if len(self._waiting) >= PARTITION_RECORDS or self._waiting_bytes >= PARTITION_BYTES:
                    self._bytes_done = done + min(file.size, reading.consumed())
                    yield from self._flushed()
        except SourceError as error:
            if not file.small or isinstance(error, UnreachableError):
                raise
            self._wait(_unreadable(file, index, error))
            index += 1
        if index == 0 and file.small and form in TEXTS:
            self._wait(Document(file.name, 0, form, b"", reason="no record in the file"))

    def _wait(self, item: Document) -> None:
        self._waiting.append(item)
        self._waiting_bytes += len(item.content)

    def _flushed(self) -> Iterator[Partition]:
        """The documents that wait, as a partition."""
        if self._waiting:
            path, count = self._spool_path(), len(self._waiting)
            if not self.is_done(self._number, count):
                write_documents(path, self._waiting)
            self._waiting, self._waiting_bytes = [], 0
            yield self._partition(SpooledRecords(path), count)

    def _cut_table(self, file: SourceFile) -> Iterator[Partition]:
        done = self._bytes_done
        with file.open_as_it_stands() as raw:
            # Without these two a column of a row group is read as a whole.
            table = pq.ParquetFile(raw, buffer_size=BUFFER_BYTES, pre_buffer=False)
            first = 0
            wanted = self._wanted(table.schema_arrow.names)
            for batch in table.iter_batches(_rows_at_once(table.metadata), columns=wanted):
                rows = pa.Table.from_batches([batch]).slice(0, self._left())
                if rows.num_rows == 0:
                    return
                path = self._spool_path()
                if not self.is_done(self._number, rows.num_rows):
                    write_rows(path, rows, file.name, first)
                first += rows.num_rows
                self._bytes_done = done + round(file.size * first / max(table.metadata.num_rows, 1))
                yield self._partition(SpooledRecords(path, Format.PARQUET), rows.num_rows)

    def _wanted(self, names: list[str]) -> list[str]:
        """The columns to read of a table: all, unless its structures stand in columns that are known."""
        if self.columns is None or "cif" in map(str.lower, names) or not has_structure_columns(names):
            return names
        return [name for name in names if name in self.columns | STRUCTURE_COLUMNS]

    def _cut_database(self, file: SourceFile) -> Iterator[Partition]:
        done = self._bytes_done
        path = self._local_copy(file)
        ids = row_ids(path, file.name)
        for first in range(0, len(ids), PARTITION_RECORDS):
            some = tuple(ids[first : first + PARTITION_RECORDS][: self._left()])
            if not some:
                return
            self._bytes_done = done + round(file.size * (first + len(some)) / len(ids))
            yield self._partition(RowRange(path, file, some, first), len(some))

    def _local_copy(self, file: SourceFile) -> Path:
        """Databases are read from this machine's disk."""
        if file.local:
            return Path(file.path)
        path = self.folder / f"source-{hashlib.sha256(f'{file.name} {file.version}'.encode()).hexdigest()[:16]}"
        if not path.exists():
            scratch = path.with_suffix(".part")
            with file.readable():
                file.fs.get_file(file.path, str(scratch))
            scratch.rename(path)
        return path

    def _spool_path(self) -> Path:
        return self.folder / f"{self._number:07d}.arrow"


def _rows_at_once(table: pq.FileMetaData) -> int:
    """Rows of a partition, by the mean size of those of the file."""
    size = sum(int(table.row_group(group).total_byte_size) for group in range(table.num_row_groups))
    return max(1, min(PARTITION_RECORDS, PARTITION_BYTES * int(table.num_rows) // max(size, 1)))


def _unreadable(file: SourceFile, index: int, error: SourceError) -> Document:
    """In the place of what cannot be read of a small file; a large one that breaks off ends the run."""
    reason = str(error).removeprefix(f"{file.name}: ")
    return Document(file.name, index, file.format or Format.JSON, b"", reason=reason)


def count_records(files: Sequence[SourceFile], limit: int | None) -> int:
    """How many records the sources hold; files that workers open count as one.

    Raises:
        SourceError: As for reading them.
    """
    with TemporaryDirectory() as folder:
        plan = Plan(files, Path(folder), limit, frozenset(), is_done=lambda number, count: True)  # noqa: ARG005
        for _ in plan:
            pass
    return plan.n_records
