"""Archives: their members are read one after the other, and nothing of them is ever written to disk."""

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
    """What is known of a file while it is read.

    Attributes:
        aside: Members of archives that hold no structures by their names.
        consumed: Bytes of the file as it stands that have been read.
    """

    aside: list[str] = field(default_factory=list)
    consumed: Callable[[], int] = lambda: 0


def documents_of_file(file: SourceFile, form: Format, reading: Reading) -> Iterator[Document]:
    """All documents of a file of text, or of an archive of them.

    Args:
        file: To read.
        form: Its format; none of a table or database.
        reading: Kept up to date.

    Raises:
        SourceError: It cannot be read to its end.
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
        elif not holds_structures(path) or PurePosixPath(path).name.startswith("._"):  # what macOS adds
            reading.aside.append(name)
        elif member is not None:
            yield from _member_documents(name, member, file.format if file.format in TEXTS else None)
    reading.consumed = lambda: file.size


def _member_documents(name: str, member: IO[bytes], said: Format | None) -> Iterator[Document]:
    """Documents of one member; what is wrong with it costs no other."""
    index, form = 0, Format.TAR
    try:
        with Stream(member, name) as stream:
            form = said or stream.detected()
            if form in ARCHIVES | RANDOM_ACCESS:
                yield Document(name, 0, form, b"", reason=f"{form} within an archive (unpack it first)")
                return
            for document in documents(stream, form):
                yield document
                index += 1
            if index == 0:
                yield Document(name, 0, form, b"", reason="no record in the file")
    except SourceError as error:
        yield Document(name, index, form, b"", reason=str(error).removeprefix(f"{name}: "))
    except BROKEN as error:
        yield Document(name, index, form, b"", reason=f"damaged in the archive ({error or type(error).__name__})")


Member = tuple[str, IO[bytes] | None, str]


def _zip_members(file: SourceFile, reading: Reading) -> Iterator[Member]:
    with file.open_as_it_stands() as raw, _opened_zip(raw) as archive:
        reading.consumed = raw.tell
        for info in archive.infolist():
            if info.is_dir():
                continue
            reason = _unsafe(info.filename)
            if info.flag_bits & 1:
                reason = "encrypted in the archive"
            if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * info.compress_size:
                reason = f"grows more than {BOMB_RATIO}-fold when decompressed"
            if reason:
                yield info.filename, None, reason
                continue
            try:
                member = archive.open(info)
            except (*BROKEN, NotImplementedError, RuntimeError) as error:  # damaged, or compressed in an unknown way
                yield info.filename, None, f"damaged in the archive ({error or type(error).__name__})"
                continue
            with member:
                yield info.filename, member, ""


def _opened_zip(raw: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(raw)
    except (ValueError, struct.error, NotImplementedError, OverflowError) as error:  # what a damaged directory says
        raise zipfile.BadZipFile(f"damaged directory: {error}") from error


def _tar_members(file: SourceFile, reading: Reading) -> Iterator[Member]:
    with file.open() as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_CheckedHeader) as archive:
        reading.consumed = lambda: stream.consumed
        for info in archive:
            if info.isdir():
                continue
            reason = _unsafe(info.name)
            if not info.isreg():
                reason = f"no plain file in the archive ({_kind(info)})"
            yield info.name, None if reason else archive.extractfile(info), reason
            archive.members = []  # type: ignore[attr-defined] # tarfile remembers every member it has seen
        _check_end(archive)


class _CheckedHeader(tarfile.TarInfo):
    """The header of a member. Behind the first one tarfile takes a damaged or missing header for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Read the next header.

        Raises:
            tarfile.EOFHeaderError: It is the block of zeros that ends an archive.
            tarfile.ReadError: It is damaged, cut off or missing.
        """
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # typeshed lacks it
            raise
        except (tarfile.HeaderError, ValueError, LookupError, OverflowError, RecursionError) as error:
            raise tarfile.ReadError(f"{error or type(error).__name__} where a member or its end should be") from error


def _check_end(archive: tarfile.TarFile) -> None:
    """Refuse an archive with another one behind it (`cat a.tar b.tar`), whose members nobody would see.

    Raises:
        tarfile.ReadError: More than zeros follow the block that ends it.
    """
    rest = cast("IO[bytes]", archive.fileobj)
    while data := rest.read(BUFFER_BYTES):
        if data.count(0) != len(data):
            raise tarfile.ReadError("data behind its end")


def _unsafe(path: str) -> str:
    parts = PurePosixPath(path.replace("\\", "/")).parts
    outside = ".." in parts or path.startswith(("/", "\\")) or (len(path) > 1 and path[1] == ":")
    return "name that leads out of the archive" if outside else ""


def _kind(info: tarfile.TarInfo) -> str:
    return "a link" if info.issym() or info.islnk() else f"mode {stat.filemode(info.mode)}"
