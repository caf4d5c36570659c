"""Untrusted ZIP files: the names and sizes of members are checked before members are read."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ....pipeline.errors import detail
from .reader import RefusedError

# Far beyond every published model, which has a few hundred members.
MAX_MEMBERS, MAX_TEXT_BYTES = 20_000, 1 << 20
# The pickle of a MACE network of two layers has 0.4 MB, and more with the code that e3nn compiled; the pickle of a
# NequIP package has 1 MB.
MAX_PICKLE_BYTES = 128 << 20


class Archive:
    """A ZIP file whose members lie in one folder.

    Args:
        file: The file, or its path.

    Attributes:
        root: Name of the folder.
        names: Names of all members, with the folder.

    Raises:
        RefusedError: The file is not a ZIP file, is damaged, or has too many members or a member outside its folder.
    """

    def __init__(self, file: Path | BinaryIO) -> None:
        try:
            self._archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise RefusedError(f"the file is damaged, or not a ZIP file ({detail(error)})") from error
        self.names = self._archive.namelist()
        if len(self.names) > MAX_MEMBERS:
            raise RefusedError(f"the archive has {len(self.names):,} members; the limit is {MAX_MEMBERS:,}")
        for name in self.names:
            place = PurePosixPath(name.replace("\\", "/"))
            if place.is_absolute() or ".." in place.parts or ":" in (place.parts or ("",))[0]:
                raise RefusedError(f"the archive has the member {name[:80]!r}, which lies outside its folder")
        self.root = self.names[0].replace("\\", "/").partition("/")[0] if self.names else ""

    @property
    def size(self) -> int:
        """Unpacked size of all members (bytes)."""
        return sum(info.file_size for info in self._archive.infolist())

    def __contains__(self, name: str) -> bool:
        """Whether the folder has a member of this name."""
        return f"{self.root}/{name}" in self._archive.NameToInfo

    def read(self, name: str, limit: int) -> bytes:
        """Read a member.

        Args:
            name: Name of the member in the folder.
            limit: Largest size allowed (bytes).

        Raises:
            RefusedError: The member does not exist, or is damaged or too large.
        """
        try:
            info = self._archive.getinfo(f"{self.root}/{name}")
            size, data = info.file_size, self._archive.read(info) if info.file_size <= limit else b""
        except KeyError as error:
            raise RefusedError(f"the archive has no member {name}") from error
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise RefusedError(f"the archive is damaged: {name} cannot be read ({detail(error)})") from error
        if size > limit:
            raise RefusedError(f"{name} has {size:,} bytes; the limit is {limit:,}")
        return data
