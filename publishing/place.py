"""The folder or object store of a publication."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from ..pipeline.atomic import atomic_path
from ..pipeline.errors import OutputExistsError, StoreError, detail
from ..pipeline.redaction import redact_urls


class Place:
    """A local folder, or a folder behind a URL.

    Args:
        url: Path of the folder, or a URL that fsspec supports; it need not exist.

    Attributes:
        path: The local folder; None for a URL.
        url: The path or URL as it was given, without secrets.
        secret_url: The path or URL as it was given.

    Raises:
        OutputExistsError: The URL is invalid, or a package that it needs is not installed.
    """

    def __init__(self, url: str | Path) -> None:
        text = str(url).removeprefix("file://").rstrip("/") or "/"
        self.secret_url = text
        self.url = redact_urls(text)
        self.path = None if "://" in text else Path(text).resolve()
        try:
            found: tuple[Any, str] = url_to_fs(text if self.path is None else str(self.path))
        except Exception as error:  # every file system raises its own errors, also if its package is missing
            raise OutputExistsError(f"{self.url} is not a folder or URL ({detail(error, text)}); check it") from error
        self._files, self._root = found

    def __str__(self) -> str:
        return self.url

    def sizes(self) -> Mapping[str, int]:
        """Return the sizes of all files (bytes) by name relative to the folder; empty if the folder does not exist.

        Raises:
            OutputExistsError: The place cannot be listed.
        """
        with self._writing():
            self._files.invalidate_cache()
            try:
                found: Mapping[str, Mapping[str, Any]] = self._files.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
            named = {str(name)[len(self._root) :].lstrip("/"): int(facts["size"]) for name, facts in found.items()}
            return {name: size for name, size in named.items() if name}

    def read(self, name: str, most: int) -> bytes | None:
        """Return the content of a file; None if there is no such file.

        Args:
            name: Name of the file relative to the folder.
            most: Largest size to read (bytes).

        Raises:
            StoreError: The file is larger than `most` bytes, or cannot be read.
        """
        try:
            self._files.invalidate_cache()
            with self._files.open(f"{self._root}/{name}", "rb") as file:
                content: bytes = file.read(most + 1)
        except FileNotFoundError:
            return None
        except Exception as error:  # every file system raises its own errors
            raise StoreError(
                f"{self}/{name} cannot be read ({detail(error, self.secret_url)}); check the path or URL and your "
                "permissions"
            ) from error
        if len(content) > most:
            raise StoreError(
                f"{self}/{name} is larger than {most:,} bytes, so equiscreen did not write it; check the path or URL"
            )
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which appears under its name only when it is complete.

        Raises:
            OutputExistsError: The file cannot be written.
        """
        with self._writing():
            if self.path is None:
                self._files.pipe_file(f"{self._root}/{name}", content)
                return
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.path / name) as scratch:
                scratch.write_bytes(content)

    def copy(self, file: Path, name: str) -> None:
        """Copy a local file to this place.

        Raises:
            OutputExistsError: The file cannot be written.
        """
        with self._writing():
            if self.path is None:
                self._files.put_file(str(file), f"{self._root}/{name}")
                return
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.path / name) as scratch:
                shutil.copyfile(file, scratch)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files.

        Raises:
            OutputExistsError: A file cannot be removed.
        """
        with self._writing():
            paths = [f"{self._root}/{name}" for name in names]
            if self.path is None and paths:
                self._files.rm(paths)
            elif paths:
                for path in paths:
                    Path(path).unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise OutputExistsError(
                f"{self} cannot be written ({detail(error, self.secret_url)}); check the path or URL and your "
                "permissions, and run the command again"
            ) from error
