"""Files wherever they are: on this machine, in an object store, behind HTTP, in an archive; opened decompressed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

import fsspec
import pyarrow as pa

from .errors import SourceError
from .formats import HEAD_BYTES, Format, detect

BUFFER_BYTES = 1 << 20
# No text compresses so well: beyond both it is an archive made to fill a disk.
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200
# What libraries raise over a file that breaks off or is not what it seems.
_BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError, zipfile.BadZipFile, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file.

    Attributes:
        name: As the user gave it (or the folder it is in); this is what the store remembers.
        fs: The fsspec file system that it is on; workers get it along with the task.
        path: Where it is there.
        size: Bytes, compressed as it stands.
        version: What tells it from another file of its name: sha256 where it is local, the file system's token else.
        format: As said by the user; None tells it from the content.
    """

    name: str
    fs: fsspec.AbstractFileSystem
    path: str
    size: int
    version: str
    format: Format | None = None

    @property
    def local(self) -> bool:
        """Whether it is a file of this machine."""
        return isinstance(self.fs, fsspec.get_filesystem_class("file"))

    @contextmanager
    def open(self) -> Iterator[Stream]:
        """Open for reading from the start, decompressed.

        Raises:
            SourceError: It cannot be opened, or breaks off while it is read.
        """
        with self.readable(), self.fs.open(self.path, "rb") as raw, Stream(raw, self.name) as stream:
            yield stream

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Turn what goes wrong while the file is read into one line that names it.

        Raises:
            SourceError: Something went wrong.
        """
        try:
            yield
        except _BROKEN as error:
            raise SourceError(f"{self.name}: cannot be read ({error or type(error).__name__}); get it again") from error

    def detected(self) -> Format:
        """Its format, as said or as its content tells.

        Raises:
            SourceError: Unreadable, empty, or of no known format.
        """
        if self.format is not None:
            return self.format
        with self.open() as stream:
            return stream.detected()


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
        if self.head().startswith((b"\xff\xfe", b"\xfe\xff")):
            raise SourceError(f"{name}: is UTF-16; convert it to UTF-8")

    @property
    def consumed(self) -> int:
        """Bytes of the file as it stands that have been read."""
        return cast("_Bounded", self.raw).consumed

    def head(self) -> bytes:
        """The first bytes, which stay to be read."""
        return self.peek(HEAD_BYTES)[:HEAD_BYTES]

    def detected(self) -> Format:
        """The format that the first bytes tell.

        Raises:
            SourceError: Empty, or of no known format.
        """
        head = self.head()
        found = detect(head)
        if found is None:
            what = "the file is empty" if not head.strip() else "unknown format; say it with --format"
            raise SourceError(f"{self.source}: {what}")
        return found


class _Bounded(io.RawIOBase):
    """Decompresses what its first bytes say is compressed, and refuses to grow without measure."""

    def __init__(self, raw: IO[bytes], name: str) -> None:
        self._raw, self._name = io.BufferedReader(cast("io.RawIOBase", raw), BUFFER_BYTES), name
        self._plain = _decompressed(self._raw)
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
        if self._out > BOMB_BYTES and self._plain is not self._raw and self._out > BOMB_RATIO * self._raw.tell():
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
