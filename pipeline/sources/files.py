"""Source files on local disks, in object stores, on web servers or in archives, decompressed while they are read."""

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
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, cast

import fsspec
import pyarrow as pa

from ..errors import EquiscreenError, SourceError, UnreachableError, detail
from .formats import ARCHIVES, HEAD_BYTES, RANDOM_ACCESS, TEXTS, Format, detect, detect_binary

BUFFER_BYTES = 1 << 20
READ_BYTES = 1 << 20
# Smaller files are opened by the workers, many per partition, or share a partition when the client splits them.
SMALL_FILE_BYTES = 1 << 18
# No text compresses this well: a file that exceeds both limits was made to fill a disk.
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200
# Errors that libraries raise on truncated or damaged files.
BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError, zipfile.BadZipFile, pa.ArrowException)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def printable(name: str) -> str:
    """Make a file name valid UTF-8 by replacing bytes that are not."""
    return name.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")


def stamp_of(path: Path) -> tuple[int, ...]:
    """Return the metadata that change when the content of a local file changes.

    They are the size (bytes), modification time (ns), device, inode and status-change time (ns). No program can set the
    status-change time, which any change of the content or of the other metadata updates.

    Raises:
        OSError: There is no such file.
    """
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_dev, facts.st_ino, facts.st_ctime_ns


# Version of a file that could not be read when the run began.
UNREADABLE = "unreadable"
# Prefix of the version of a local file; the digest of its content follows.
SHA256 = "sha256:"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file.

    Attributes:
        name: Name as given by the user (or derived from the given folder); the store records this name.
        fs: The fsspec file system of the file; sent to workers with the task.
        path: Path in that file system.
        size: Size in bytes before decompression; -1 if unknown.
        version: Token that changes when the content does: the SHA-256 of a local file, otherwise a digest of metadata.
        format: Format set by the user; None detects it from the content.
        seekable: Whether the file can be read from any position; some web servers only send whole files.
        stamp: Result of `stamp_of` for a local file, from before its version was computed; empty for others.
    """

    name: str
    fs: fsspec.AbstractFileSystem
    path: str
    size: int
    version: str
    format: Format | None = None
    seekable: bool = True
    stamp: tuple[int, ...] = ()

    @property
    def local(self) -> bool:
        """Whether the file is on a local file system."""
        return isinstance(self.fs, fsspec.get_filesystem_class("file"))

    @property
    def small(self) -> bool:
        """Whether the file is known to be small."""
        return 0 <= self.size <= SMALL_FILE_BYTES

    @contextmanager
    def open(self) -> Iterator[Stream]:
        """Open the file for sequential reading, decompressed.

        Raises:
            SourceError: The file cannot be opened or read to its end.
        """
        with self.readable(), self._raw() as raw, Stream(raw, self.name) as stream:
            yield stream

    def _raw(self) -> IO[bytes]:
        """Open the file without decompression; a small remote file is fetched as a whole.

        Raises:
            UnreachableError: The file cannot be fetched.
        """
        if self.small and not self.local:
            try:
                return io.BytesIO(self.fs.cat_file(self.path))
            except Exception as error:  # noqa: BLE001 - clients of object stores raise their own errors
                reason = detail(error, self._url)
            # Raised without a cause: errors of clients of object stores cannot always be sent from a Dask worker to the
            # main process.
            raise UnreachableError(f"{self.name}: the file cannot be fetched ({reason}); run the same command again")
        how = {} if self.seekable else {"block_size": 0}  # makes fsspec's HTTP file system stream
        return cast("IO[bytes]", self.fs.open(self.path, "rb", **how))

    @contextmanager
    def open_seekable(self) -> Iterator[IO[bytes]]:
        """Open the file for random access, not decompressed.

        Raises:
            SourceError: The file cannot be opened or read to its end.
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
        """Convert errors raised while the file is read into one-line errors that name it.

        Raises:
            SourceError: The file cannot be read.
        """
        try:
            yield
        except EquiscreenError:
            raise
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise  # the local disk is full
            raise self._unreadable(error) from error
        except Exception as error:
            if self.local:
                raise
            raise self._unreadable(error) from error  # clients of object stores raise their own errors

    @property
    def _url(self) -> str:
        """URL of the file, with its secrets; used only to find the secrets in messages."""
        protocol = self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]
        return self.path if "://" in self.path else f"{protocol}://{self.path}"

    def _unreadable(self, error: Exception) -> SourceError:
        return SourceError(
            f"{self.name}: the file cannot be read ({detail(error, self._url)}); check its permissions, or copy or "
            "download it again"
        )

    def detected(self) -> Format:
        """Return the format of the file: the one set by the user, or the one detected from the content.

        A text format that is set for an archive applies to its members; the archive's own format is returned.

        Raises:
            SourceError: The file is unreadable, empty or in an unknown format, or a compressed file of a format that
                needs random access.
        """
        with self.open() as stream:
            found = stream.binary() if self.format in TEXTS else None
            form = (found if found in ARCHIVES else self.format) or stream.detected()
            if stream.compressed and form in RANDOM_ACCESS:
                raise SourceError(f"{self.name}: compressed {form} files cannot be read; decompress the file first")
        return form


class Stream(io.BufferedReader):
    """A file read sequentially and decompressed, with a limit on how far it may expand.

    Args:
        raw: The file, not decompressed.
        name: Name of the file, for messages.

    Raises:
        SourceError: The file is UTF-16 text.
    """

    def __init__(self, raw: IO[bytes], name: str) -> None:
        self.source = name
        super().__init__(_Bounded(raw, name), BUFFER_BYTES)
        head = self.head()
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise SourceError(f"{name}: the text is UTF-16; convert it to UTF-8")
        if head.startswith(_BYTE_ORDER_MARK):
            self.read(len(_BYTE_ORDER_MARK))

    @property
    def consumed(self) -> int:
        """Number of bytes read so far, before decompression."""
        return cast("_Bounded", self.raw).consumed

    @property
    def compressed(self) -> bool:
        """Whether the file is compressed."""
        return cast("_Bounded", self.raw).compressed

    def head(self) -> bytes:
        """Return the first bytes without consuming them."""
        return self.peek(HEAD_BYTES)[:HEAD_BYTES]

    def chunk(self) -> bytes:
        """Read up to `READ_BYTES` bytes; empty at the end of the file."""
        return self.read(READ_BYTES)

    def binary(self) -> Format | None:
        """Detect a binary format from the first bytes; None for text."""
        return detect_binary(self.head())

    def detected(self) -> Format:
        """Detect the format from the first bytes.

        Raises:
            SourceError: The file is empty or in an unknown format.
        """
        head = self.head()
        found = detect(head)
        if found is Format.JSON and b"\n" not in head:  # lines longer than the head are common
            found = detect(self.peek(BUFFER_BYTES))
        if found is None:
            unknown = "unknown format; set it with `equiscreen featurize --format`"  # other commands lack this option
            raise SourceError(f"{self.source}: {unknown if head.strip() else 'the file is empty'}")
        return found


class _Bounded(io.RawIOBase):
    """Decompresses a file that is compressed according to its first bytes, up to a limit."""

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
        """Fill the buffer as far as possible, so that a short read means the end of the file."""
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
                f"{self._name}: the file expands more than {BOMB_RATIO}-fold to over {BOMB_BYTES >> 30} GiB when "
                "decompressed; remove it from the sources"
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
