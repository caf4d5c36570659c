"""Files wherever they are: on this machine, in an object store, behind HTTP, in an archive; opened decompressed."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any, cast

import fsspec
import pyarrow as pa

from ..errors import EquiscreenError, SourceError, UnreachableError, detail
from .formats import ARCHIVES, HEAD_BYTES, RANDOM_ACCESS, TEXTS, Format, detect, detect_binary

BUFFER_BYTES = 1 << 20
READ_BYTES = 1 << 20
# Files so small are opened by the workers, many in one partition, or share one when the client cuts them.
SMALL_FILE_BYTES = 1 << 18
# No text compresses so well: beyond both it is an archive made to fill a disk.
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200
# What libraries raise over a file that breaks off or is not what it seems.
BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError, zipfile.BadZipFile, pa.ArrowException)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def printable(name: str) -> str:
    """A name of a file that can be written as UTF-8: bytes of it that are not are replaced."""
    return name.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file.

    Attributes:
        name: As the user gave it (or the folder it is in); this is what the store remembers.
        fs: The fsspec file system that it is on; workers get it along with the task.
        path: Where it is there.
        size: Bytes, compressed as it stands; -1 where nobody says.
        version: What tells it from another file of its name: sha256 where it is local, the file system's token else.
        format: As said by the user; None tells it from the content.
        seekable: Whether it can be read from any place; some web servers send files from their beginning only.
    """

    name: str
    fs: fsspec.AbstractFileSystem
    path: str
    size: int
    version: str
    format: Format | None = None
    seekable: bool = True

    @property
    def local(self) -> bool:
        """Whether it is a file of this machine."""
        return isinstance(self.fs, fsspec.get_filesystem_class("file"))

    @property
    def small(self) -> bool:
        """Whether it is known to be small."""
        return 0 <= self.size <= SMALL_FILE_BYTES

    @contextmanager
    def open(self) -> Iterator[Stream]:
        """Open for reading from the start, decompressed.

        Raises:
            SourceError: It cannot be opened, or breaks off while it is read.
        """
        with self.readable(), self._raw() as raw, Stream(raw, self.name) as stream:
            yield stream

    def _raw(self) -> IO[bytes]:
        """The file as it stands; a small one that is elsewhere is fetched whole.

        Raises:
            UnreachableError: It cannot be fetched.
        """
        if self.small and not self.local:
            try:
                return io.BytesIO(self.fs.cat_file(self.path))
            except Exception as error:  # noqa: BLE001 - the clients of object stores have errors of their own
                reason = detail(error)
            # Out here, for what those clients raise cannot always travel from a worker to the client.
            raise UnreachableError(f"{self.name}: cannot be fetched ({reason}); run the same command again")
        how = {} if self.seekable else {"block_size": 0}  # which is how fsspec's HTTP streams
        return cast("IO[bytes]", self.fs.open(self.path, "rb", **how))

    @contextmanager
    def open_as_it_stands(self) -> Iterator[IO[bytes]]:
        """Open for reading from any place, not decompressed.

        Raises:
            SourceError: It cannot be opened, or breaks off while it is read.
        """
        with self.readable(), ExitStack() as stack:
            if self.seekable:
                raw = stack.enter_context(self.fs.open(self.path, "rb"))
            else:
                raw = stack.enter_context(TemporaryFile())
                with self.fs.open(self.path, "rb", block_size=0) as sent:
                    shutil.copyfileobj(sent, raw, BUFFER_BYTES)
                raw.seek(0)
            yield raw

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Turn what goes wrong while the file is read into one line that names it.

        Raises:
            SourceError: Something went wrong.
        """
        try:
            yield
        except EquiscreenError:
            raise
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise  # it is the disk of this machine that is full
            raise self._unreadable(error) from error
        except Exception as error:
            if self.local:
                raise
            raise self._unreadable(error) from error  # the clients of object stores have errors of their own

    def _unreadable(self, error: Exception) -> SourceError:
        return SourceError(f"{self.name}: cannot be read ({detail(error)}); get it again")

    def detected(self) -> Format:
        """Its format, as said or as its content tells. Of an archive it is said for what is inside.

        Raises:
            SourceError: Unreadable, empty, or of no known format.
        """
        with self.open() as stream:
            found = stream.binary() if self.format in TEXTS else None
            form = (found if found in ARCHIVES else self.format) or stream.detected()
            if stream.compressed and form in RANDOM_ACCESS:
                raise SourceError(f"{self.name}: a compressed {form} file; decompress it first")
        return form


class Stream(io.BufferedReader):
    """A file read from its start to its end, decompressed, with a limit to what a few bytes may grow to.

    Args:
        raw: The file as it stands.
        name: For messages.

    Raises:
        SourceError: UTF-16 text.
    """

    def __init__(self, raw: IO[bytes], name: str) -> None:
        self.source = name
        super().__init__(_Bounded(raw, name), BUFFER_BYTES)
        head = self.head()
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise SourceError(f"{name}: is UTF-16; convert it to UTF-8")
        if head.startswith(_BYTE_ORDER_MARK):
            self.read(len(_BYTE_ORDER_MARK))

    @property
    def consumed(self) -> int:
        """Bytes of the file as it stands that have been read."""
        return cast("_Bounded", self.raw).consumed

    @property
    def compressed(self) -> bool:
        """Whether the file as it stands is compressed."""
        return cast("_Bounded", self.raw).compressed

    def head(self) -> bytes:
        """The first bytes, which stay to be read."""
        return self.peek(HEAD_BYTES)[:HEAD_BYTES]

    def chunk(self) -> bytes:
        """The next bytes, some `READ_BYTES` of them; none at the end."""
        return self.read(READ_BYTES)

    def binary(self) -> Format | None:
        """The format that the first bytes tell, if it is none of text."""
        return detect_binary(self.head())

    def detected(self) -> Format:
        """The format that the first bytes tell.

        Raises:
            SourceError: Empty, or of no known format.
        """
        head = self.head()
        found = detect(head)
        if found is Format.JSON and b"\n" not in head:  # lines as long as that are not rare
            found = detect(self.peek(BUFFER_BYTES))
        if found is None:
            what = "the file is empty" if not head.strip() else "unknown format; say it with --format"
            raise SourceError(f"{self.source}: {what}")
        return found


class _Bounded(io.RawIOBase):
    """Decompresses what its first bytes say is compressed, and refuses to grow without measure."""

    def __init__(self, raw: IO[bytes], name: str) -> None:
        self._raw, self._name = io.BufferedReader(cast("io.RawIOBase", raw), BUFFER_BYTES), name
        self._plain = _decompressed(cast("io.BufferedReader", self._raw))
        self.compressed = self._plain is not self._raw
        self._out = 0

    def readable(self) -> bool:
        return True

    @property
    def consumed(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as there is something: a short read means the end."""
        filled = 0
        view = memoryview(buffer).cast("B")
        while filled < len(view):
            data = self._plain.read(len(view) - filled)
            if not data:
                break
            view[filled : filled + len(data)] = data
            filled += len(data)
        self._out += filled
        if self._out > BOMB_BYTES and self.compressed and self._out > BOMB_RATIO * self._raw.tell():
            raise SourceError(
                f"{self._name}: grows more than {BOMB_RATIO}-fold to over {BOMB_BYTES >> 30} GiB when decompressed; "
                "no structures do; leave it out"
            )
        return filled


def _decompressed(raw: io.BufferedReader) -> IO[bytes]:
    head = raw.peek(8)
    if head.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if head.startswith(b"BZh"):
        return cast("IO[bytes]", bz2.BZ2File(raw))
    if head.startswith(b"\xfd7zXZ\0"):
        return cast("IO[bytes]", lzma.LZMAFile(raw))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return cast("IO[bytes]", pa.CompressedInputStream(pa.PythonFile(raw), "zstd"))
    return cast("IO[bytes]", raw)
