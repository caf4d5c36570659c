"""The plan of a run: the records of all sources, divided into partitions in a single pass.

The division depends on the sources alone and never on the number of workers, so that a resumed run divides them in the
same way.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic import atomic_path
from ..errors import SourceError, UnreachableError
from ..readers.archives import Reading, documents_of_file
from ..readers.ase_db import read_rows, row_ids, unread_rows
from ..readers.records import (
    STRUCTURE_COLUMNS,
    RawRecord,
    ReadOptions,
    fields_beside,
    has_structure_columns,
    read_document,
    read_row,
    unread_document,
)
from ..readers.splitting import Document
from ..redaction import without_query
from ..runs.cluster import check_seen
from ..runs.parts import PartKey
from ..sources.files import BUFFER_BYTES, UNREADABLE, SourceFile
from ..sources.formats import TEXTS, Format
from .spool import read_spooled, write_documents, write_rows

# A partition ends at whichever of these limits comes first, which is about a second of work.
PARTITION_RECORDS = 4096
PARTITION_BYTES = 8 << 20
_SMALL_FORMATS = re.compile(r"\.(cif|mcif|vasp|poscar)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileGroup:
    """Small files, mostly of one structure each, that a worker opens itself.

    Attributes:
        files: Files to read, in order.
    """

    files: tuple[SourceFile, ...]


@dataclass(frozen=True, slots=True)
class SpooledRecords:
    """Documents or rows that the client has cut out of streams.

    Attributes:
        path: Spool file; see `pipeline.featurization.spool`.
        format: Format of the source, if the file holds rows of a table.
        data: Content of the spool file, for workers that do not see it; None reads the file.
    """

    path: Path
    format: Format | None = None
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class RowRange:
    """A range of rows of an ASE database.

    Attributes:
        path: Path of the database, or of its local copy; a worker that does not see the copy makes its own.
        file: Source file of the database.
        ids: Ids of the rows.
        first: Index of the first of these rows in the source.
    """

    path: Path
    file: SourceFile
    ids: tuple[int, ...]
    first: int


@dataclass(frozen=True, slots=True)
class Partition:
    """Consecutive records that one task reads.

    Attributes:
        number: Number of the partition, in the order of the sources.
        content: Where the records are.
        begin, end: Range of items of `content` to read, excluding `end`. Items are documents, rows, or the files of a
            `FileGroup`.
    """

    number: int
    content: FileGroup | SpooledRecords | RowRange
    begin: int
    end: int

    @property
    def key(self) -> PartKey:
        """Key of the part that is made from this partition."""
        return PartKey(self.number, self.begin, self.end)

    def halves(self) -> tuple[Partition, ...]:
        """Divide the items into two partitions; return none if there is only one item."""
        return tuple(replace(self, begin=half.begin, end=half.end) for half in self.key.halves())

    def carried(self) -> Partition:
        """Return the same partition with the content of its spool file, for workers that do not see the file."""
        if not isinstance(self.content, SpooledRecords):
            return self
        return replace(self, content=replace(self.content, data=self.content.path.read_bytes()))

    def unread(self, reason: str) -> Iterator[RawRecord]:
        """Yield every record with `reason` and the fields that identify it, without parsing its structure."""
        match self.content:
            case FileGroup(files):
                for file in files[self.begin : self.end]:
                    yield from _unread_file(file, reason)
            case SpooledRecords(path, form, data):
                for item in read_spooled(path if data is None else data, self.begin, self.end):
                    if isinstance(item, Document):
                        yield unread_document(item, reason)
                    else:
                        source, index, row = item
                        yield RawRecord(source, index, None, fields_beside(row), reason, form)
            case RowRange(path, file, ids, first):
                path = _seen_database(path, file)
                yield from unread_rows(path, file.name, ids[self.begin : self.end], first + self.begin, reason)


def read_partition(partition: Partition, options: ReadOptions) -> Iterator[RawRecord]:
    """Yield all records of a partition. A record that cannot be read is yielded with a reason; the others follow.

    Raises:
        UnreachableError: A remote file cannot be fetched, or this machine does not see a local one.
    """
    begin, end = partition.begin, partition.end
    match partition.content:
        case FileGroup(files):
            for file in files[begin:end]:
                yield from _read_small_file(file, options)
        case SpooledRecords(path, form, data):
            for item in read_spooled(path if data is None else data, begin, end):
                if isinstance(item, Document):
                    yield read_document(item, options)
                else:
                    yield read_row(*item, form or Format.PARQUET, options)
        case RowRange(path, file, ids, first):
            path = _seen_database(path, file)
            yield from read_rows(path, file.name, ids[begin:end], first + begin)


def _seen_database(path: Path, file: SourceFile) -> Path:
    """Return the path of a database on a disk of this machine; a remote one is downloaded, once per process.

    Raises:
        UnreachableError: The database is local, and this machine does not see it.
    """
    if file.local:
        check_seen(path)
    return path if path.exists() else _downloaded(file, Path(_scratch_folder().name))


@lru_cache(maxsize=1)
def _scratch_folder() -> TemporaryDirectory[str]:
    """Return a folder that is removed at the end of the process."""
    return TemporaryDirectory(prefix="equiscreen-")


def _downloaded(file: SourceFile, folder: Path) -> Path:
    """Return the path of a copy of a remote file, which is made if it does not exist."""
    path = folder / f"source-{hashlib.sha256(f'{file.name} {file.version}'.encode()).hexdigest()[:16]}"
    if not path.exists():
        with atomic_path(path) as scratch, file.readable():
            file.fs.get_file(file.path, str(scratch))
    return path


def _unread_file(file: SourceFile, reason: str) -> list[RawRecord]:
    """Return every record of a small file, with `reason` in place of its structure."""
    try:
        found = [unread_document(item, reason) for item in documents_of_file(file, file.detected(), Reading())]
    except SourceError:
        found = []
    return found or [RawRecord(file.name, 0, None, reason=reason)]


def _read_small_file(file: SourceFile, options: ReadOptions) -> Iterator[RawRecord]:
    """Yield the records of a small file; if it cannot be read, or is empty, a record with the reason."""
    index = 0
    if file.local:
        check_seen(file.path)  # a worker with a different file system would otherwise lose all structures
    try:
        for record in _records_of_file(file, options):
            yield record
            index += 1
    except UnreachableError:
        raise  # a later run may be able to fetch it
    except SourceError as error:
        yield RawRecord(file.name, index, None, reason=_reason(file, error))
        index += 1
    if index == 0:
        yield RawRecord(file.name, 0, None, reason="no record in the file")


def _records_of_file(file: SourceFile, options: ReadOptions) -> Iterator[RawRecord]:
    """Yield all records of a file, in the format that is set or detected."""
    form = file.detected()
    if form in (Format.PARQUET, Format.ASE_DB):
        with TemporaryDirectory() as folder:
            for partition in Plan([file], Path(folder), sys.maxsize):
                yield from read_partition(partition, options)
    else:
        for document in documents_of_file(file, form, Reading()):
            yield read_document(document, options)


class Plan:
    """Partitions of all sources; iterating over the plan reads the sources and yields `Partition` objects.

    Args:
        files: Files to read. Their order matters: of two equal structures, the first one is stored.
        folder: Folder of the spool files.
        limit: Number of records after which to stop; None reads all.
        columns: Columns of tables to read besides those of the structure; None reads all.
        is_done: Called with the number of a partition and its count of records; returns whether an earlier run has
            finished it, so that no spool file is needed.

    Attributes:
        aside: Members of archives that were skipped because, by their names, they are not structure files.
        n_records: Number of records in the partitions yielded so far.
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
        self._queue: list[Document] = []
        self._queued_bytes = 0
        self._bytes_total = sum(file.size for file in files)
        self._bytes_done = 0

    def expected(self) -> int:
        """Estimate the total number of records from the fraction of bytes read so far."""
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
                yield from self._flush()
                small.append(file)
                size += file.size
                continue
            done = self._bytes_done
            yield from self._partition_file(file)
            self._bytes_done = done + file.size
            if self._remaining() == 0:
                break
        if small:
            yield self._group(small)
        yield from self._flush()

    def _is_single(self, file: SourceFile) -> bool:
        """Whether a worker can open a file itself: it is small and, judging by its name, holds a single structure."""
        if self.limit is not None or not file.small or file.version == UNREADABLE:
            return False  # only the client can count up to a limit or notice that a file cannot be read
        if file.format is not None:
            return file.format in (Format.CIF, Format.POSCAR)
        return _SMALL_FORMATS.search(without_query(file.path)) is not None

    def _group(self, files: list[SourceFile]) -> Partition:
        self._bytes_done += sum(file.size for file in files)
        return self._partition(FileGroup(tuple(files)), len(files))

    def _partition(self, content: FileGroup | SpooledRecords | RowRange, count: int) -> Partition:
        partition = Partition(self._number, content, 0, count)
        self._number += 1
        self.n_records += count
        return partition

    def _remaining(self) -> int | None:
        return None if self.limit is None else min(self.limit, sys.maxsize) - self.n_records - len(self._queue)

    def _partition_file(self, file: SourceFile) -> Iterator[Partition]:
        try:
            form = file.detected()
        except SourceError as error:
            if isinstance(error, UnreachableError) or (not file.small and len(self.files) == 1):
                raise
            self._enqueue(_unreadable(file, 0, error))
            return
        if form in (Format.PARQUET, Format.ASE_DB):
            yield from self._flush()
            yield from self._partition_table(file) if form is Format.PARQUET else self._partition_database(file)
        else:
            yield from self._partition_text(file, form)
            if not file.small:  # documents of many small files share a spool file
                yield from self._flush()

    def _partition_text(self, file: SourceFile, form: Format) -> Iterator[Partition]:
        done = self._bytes_done
        reading = Reading(self.aside)
        index = 0
        try:
            for item in islice(documents_of_file(file, form, reading), self._remaining()):
                self._enqueue(item)
                index += 1
                if len(self._queue) >= PARTITION_RECORDS or self._queued_bytes >= PARTITION_BYTES:
                    self._bytes_done = done + min(file.size, reading.consumed())
                    yield from self._flush()
        except SourceError as error:
            if not file.small or isinstance(error, UnreachableError):
                raise
            self._enqueue(_unreadable(file, index, error))
            index += 1
        if index == 0 and file.small and form in TEXTS:
            self._enqueue(Document(file.name, 0, form, b"", reason="no record in the file"))

    def _enqueue(self, item: Document) -> None:
        self._queue.append(item)
        self._queued_bytes += len(item.content)

    def _flush(self) -> Iterator[Partition]:
        """Yield the queued documents as a partition, if there are any."""
        if self._queue:
            path, count = self._spool_path(), len(self._queue)
            if not self.is_done(self._number, count):
                write_documents(path, self._queue)
            self._queue, self._queued_bytes = [], 0
            yield self._partition(SpooledRecords(path), count)

    def _partition_table(self, file: SourceFile) -> Iterator[Partition]:
        done = self._bytes_done
        with file.open_seekable() as raw:
            # Without these two arguments, a column of a row group is read as a whole.
            table = pq.ParquetFile(raw, buffer_size=BUFFER_BYTES, pre_buffer=False)
            first = 0
            self._check_columns(file, table.schema_arrow.names)
            wanted = self._columns_to_read(table.schema_arrow.names)
            for batch in table.iter_batches(_rows_at_once(table.metadata), columns=wanted):
                rows = pa.Table.from_batches([batch]).slice(0, self._remaining())
                if rows.num_rows == 0:
                    return
                path = self._spool_path()
                if not self.is_done(self._number, rows.num_rows):
                    write_rows(path, rows, file.name, first)
                first += rows.num_rows
                self._bytes_done = done + round(file.size * first / max(table.metadata.num_rows, 1))
                yield self._partition(SpooledRecords(path, Format.PARQUET), rows.num_rows)

    def _check_columns(self, file: SourceFile, names: list[str]) -> None:
        """Check that each column of a table that the run reads appears only once.

        Raises:
            SourceError: A column appears several times, so it is unclear which one to read.
        """
        for name, count in Counter(names).items():
            if count > 1 and self.columns is not None and name in self.columns | STRUCTURE_COLUMNS:
                raise SourceError(f"{file.name}: the column {name} appears {count} times; keep only one")

    def _columns_to_read(self, names: list[str]) -> list[str]:
        """Return the columns of a table to read: all, unless its structures are in known columns."""
        if self.columns is None or "cif" in map(str.lower, names) or not has_structure_columns(names):
            return names
        return [name for name in names if name in self.columns | STRUCTURE_COLUMNS]

    def _partition_database(self, file: SourceFile) -> Iterator[Partition]:
        done = self._bytes_done
        path = Path(file.path) if file.local else _downloaded(file, self.folder)
        ids = row_ids(path, file.name)
        for first in range(0, len(ids), PARTITION_RECORDS):
            some = tuple(ids[first : first + PARTITION_RECORDS][: self._remaining()])
            if not some:
                return
            self._bytes_done = done + round(file.size * (first + len(some)) / len(ids))
            yield self._partition(RowRange(path, file, some, first), len(some))

    def _spool_path(self) -> Path:
        return self.folder / f"{self._number:07d}.arrow"


def _rows_at_once(table: pq.FileMetaData) -> int:
    """Compute the number of rows per partition from the mean size of a row of the table."""
    size = sum(int(table.row_group(group).total_byte_size) for group in range(table.num_row_groups))
    return max(1, min(PARTITION_RECORDS, PARTITION_BYTES * int(table.num_rows) // max(size, 1)))


def _unreadable(file: SourceFile, index: int, error: SourceError) -> Document:
    """Make a document with a reason for a small file that cannot be read; an error in a large file ends the run."""
    return Document(file.name, index, file.format or Format.JSON, b"", reason=_reason(file, error))


def _reason(file: SourceFile, error: SourceError) -> str:
    """Return the reason for a failure, with the name of the file as the store records it."""
    reason = str(error).removeprefix(f"{file.name}: ")
    return reason.replace(file.path, file.name) if file.local else reason


def count_records(files: Sequence[SourceFile], limit: int | None) -> int:
    """Count the records in the sources, up to a limit; a file that a worker would open itself counts as one.

    Raises:
        SourceError: A source cannot be read.
    """
    with TemporaryDirectory() as folder:
        plan = Plan(files, Path(folder), limit, frozenset(), is_done=lambda number, count: True)  # noqa: ARG005
        for _ in plan:
            pass
    return plan.n_records
