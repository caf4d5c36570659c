"""Reading of archives: members are read in order, and never written to disk."""

from __future__ import annotations

import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Self, cast

from ..errors import SourceError
from ..sources.files import BOMB_BYTES, BOMB_RATIO, BROKEN, BUFFER_BYTES, SourceFile, Stream, printable
from ..sources.formats import ARCHIVES, RANDOM_ACCESS, TEXTS, Format, holds_structures
from .splitting import Document, documents


@dataclass
class Reading:
    """Progress of reading a file.

    Attributes:
        aside: Names of archive members that are not structure files.
        consumed: Function that returns the number of bytes read so far, before decompression.
    """

    aside: list[str] = field(default_factory=list)
    consumed: Callable[[], int] = lambda: 0


def documents_of_file(file: SourceFile, form: Format, reading: Reading) -> Iterator[Document]:
    """Iterate over the documents of a text file, or of an archive of text files.

    Args:
        file: File to read.
        form: Format of the file: a text format or an archive, not a table or database.
        reading: Progress, updated while reading.

    Raises:
        SourceError: The file cannot be read to its end.
    """
    if form not in ARCHIVES:
        with file.open() as stream:
            reading.consumed = lambda: stream.consumed
            yield from documents(stream, form)
            reading.consumed = lambda: file.size
        return
    members = _zip_members(file, reading) if form is Format.ZIP else _tar_members(file, reading)
    for path, member, reason in members:
        name = printable(f"{file.name}::{path}")
        if reason:
            yield Document(name, 0, form, b"", reason=reason)
        elif not holds_structures(path) or PurePosixPath(path).name.startswith("._"):  # added by macOS
            reading.aside.append(name)
        elif member is not None:
            yield from _member_documents(name, member, file.format if file.format in TEXTS else None)
    reading.consumed = lambda: file.size


def _member_documents(name: str, member: IO[bytes], chosen: Format | None) -> Iterator[Document]:
    """Iterate over the documents of one member; a damaged member does not affect the others."""
    index, form = 0, Format.TAR
    try:
        with Stream(member, name) as stream:
            form = chosen or stream.detected()
            if form in ARCHIVES | RANDOM_ACCESS:
                yield Document(name, 0, form, b"", reason=f"{form} inside an archive (unpack the archive first)")
                return
            for document in documents(stream, form):
                yield document
                index += 1
            if index == 0:
                yield Document(name, 0, form, b"", reason="no record in the file")
    except SourceError as error:
        yield Document(name, index, form, b"", reason=str(error).removeprefix(f"{name}: "))
    except BROKEN as error:
        yield Document(name, index, form, b"", reason=f"damaged archive member ({error or type(error).__name__})")


Member = tuple[str, IO[bytes] | None, str]


def _zip_members(file: SourceFile, reading: Reading) -> Iterator[Member]:
    with file.open_seekable() as raw, _opened_zip(raw) as archive:
        reading.consumed = raw.tell
        for info in archive.infolist():
            if info.is_dir():
                continue
            reason = _unsafe(info.filename)
            if info.flag_bits & 1:
                reason = "encrypted archive member"
            if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * info.compress_size:
                reason = f"expands more than {BOMB_RATIO}-fold when decompressed"
            if reason:
                yield info.filename, None, reason
                continue
            try:
                member = archive.open(info)
            except (*BROKEN, NotImplementedError, RuntimeError) as error:  # damaged, or an unknown compression method
                yield info.filename, None, f"damaged archive member ({error or type(error).__name__})"
                continue
            with member:
                yield info.filename, member, ""


def _opened_zip(raw: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(raw)
    except (ValueError, struct.error, NotImplementedError, OverflowError) as error:  # raised for a damaged directory
        raise zipfile.BadZipFile(f"damaged directory: {error}") from error


def _tar_members(file: SourceFile, reading: Reading) -> Iterator[Member]:
    with file.open() as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_CheckedHeader) as archive:
        reading.consumed = lambda: stream.consumed
        for info in archive:
            if info.isdir():
                continue
            reason = _unsafe(info.name)
            if not info.isreg():
                reason = f"not a regular file in the archive ({_kind(info)})"
            yield info.name, None if reason else archive.extractfile(info), reason
            archive.members = []  # type: ignore[attr-defined] # tarfile remembers every member it has seen
        _check_end(archive)


class _CheckedHeader(tarfile.TarInfo):
    """A member header that must be valid: tarfile treats a damaged or missing header as the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Read the header of the next member.

        Raises:
            tarfile.EOFHeaderError: The block consists of zeros, which end an archive.
            tarfile.ReadError: The header is damaged, truncated or missing.
        """
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # missing in typeshed
            raise
        except (tarfile.HeaderError, ValueError, LookupError, OverflowError, RecursionError) as error:
            raise tarfile.ReadError(f"invalid member header: {error or type(error).__name__}") from error


def _check_end(archive: tarfile.TarFile) -> None:
    """Reject an archive followed by another one (`cat a.tar b.tar`), whose members would otherwise be ignored.

    Raises:
        tarfile.ReadError: Anything but zeros follows the block that ends the archive.
    """
    rest = cast("IO[bytes]", archive.fileobj)
    while data := rest.read(BUFFER_BYTES):
        if data.count(0) != len(data):
            raise tarfile.ReadError("data after the end of the archive")


def _unsafe(path: str) -> str:
    parts = PurePosixPath(path.replace("\\", "/")).parts
    outside = ".." in parts or path.startswith(("/", "\\")) or (len(path) > 1 and path[1] == ":")
    return "path leads out of the archive" if outside else ""


def _kind(info: tarfile.TarInfo) -> str:
    return "a link" if info.issym() or info.islnk() else f"mode {stat.filemode(info.mode)}"
