"""The location where a store is written: a local path, or the URL of an object store."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fsspec.core import url_to_fs

from ..errors import OutputExistsError, detail
from ..redaction import redact_urls, without_query

ROOT_FILE = "zarr.json"
# Marks an upload in progress. If the root file is missing beside it, the upload was interrupted.
MARK_FILE = ".equiscreen"


@dataclass(frozen=True, slots=True)
class Target:
    """The location of an output.

    Attributes:
        path: Local path; None for a URL.
        url: The path or URL as the user gave it; `str` of a target hides its secrets.
    """

    path: Path | None
    url: str

    @classmethod
    def of(cls, out: str | Path) -> Target:
        """Make a target from a path or URL."""
        text = str(out).removeprefix("file://")
        return cls(None, text.rstrip("/")) if "://" in text else cls(Path(text).resolve(), text)

    def __str__(self) -> str:
        return redact_urls(self.url)

    @property
    def working_folder(self) -> Path:
        """Folder of unfinished work: beside a local path; for a URL, in the current folder, with the URL's digest."""
        if self.path is not None:
            return self.path.parent / f"{self.path.name}.partial"
        name = without_query(str(self)).rsplit("/", maxsplit=1)[-1]
        return Path.cwd() / f"{name}-{hashlib.sha256(str(self).encode()).hexdigest()[:8]}.partial"

    def exists(self) -> bool:
        """Whether something exists at the target. An interrupted upload does not count.

        Raises:
            OutputExistsError: The object store cannot be reached.
        """
        if self.path is not None:
            return self.path.exists()
        with _one_line_errors(self.url):
            fs, path = url_to_fs(self.url)
            fs.invalidate_cache()
            unfinished = fs.exists(f"{path}/{MARK_FILE}") and not fs.exists(f"{path}/{ROOT_FILE}")
            return bool(fs.exists(path)) and not unfinished

    def check_writable(self) -> None:
        """Check, before any work is done, that an object store accepts uploads.

        Raises:
            OutputExistsError: The object store rejects the upload.
        """
        if self.path is None:
            with _one_line_errors(self.url):
                fs, path = url_to_fs(self.url)
                if not fs.exists(f"{path}/{MARK_FILE}"):
                    fs.pipe_file(f"{path}/{MARK_FILE}", b"")
                    fs.rm_file(f"{path}/{MARK_FILE}")

    def is_equiscreen_store(self, schema: str = "equiscreen-") -> bool:
        """Whether the target holds a store written by equiscreen.

        Args:
            schema: Schema of the store, such as ``equiscreen-scores/1``; its version does not matter.

        Raises:
            OutputExistsError: The object store cannot be reached, or the root file there is not JSON.
        """
        kind = schema.partition("/")[0]
        if self.path is not None:
            root = self.path / ROOT_FILE
            return root.is_file() and kind.encode() in root.read_bytes()  # it may be damaged
        with _one_line_errors(self.url):
            fs, path = url_to_fs(self.url)
            if not fs.exists(f"{path}/{ROOT_FILE}"):
                return False
            return kind in json.dumps(json.loads(fs.cat_file(f"{path}/{ROOT_FILE}")).get("attributes", {}))

    def file_names(self) -> list[str]:
        """Return the names of the files in the folder at the target, relative to it; empty if nothing is there.

        Raises:
            OutputExistsError: The object store cannot be reached.
        """
        if self.path is not None:
            return [file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if not file.is_dir()]
        with _one_line_errors(self.url):
            fs, path = url_to_fs(self.url)
            fs.invalidate_cache()
            return [name.removeprefix(f"{path}/") for name in fs.find(path)]

    def upload_files(self, folder: Path) -> None:
        """Replace the files at the URL by those in a local folder, which has no subfolders.

        Raises:
            OutputExistsError: The upload failed.
        """
        old = self.file_names()
        with _one_line_errors(self.url):
            fs, path = url_to_fs(self.url)
            if old:
                fs.rm([f"{path}/{name}" for name in old])
            files = sorted(folder.iterdir())
            if files:
                fs.put([str(file) for file in files], [f"{path}/{file.name}" for file in files])

    def remove(self) -> None:
        """Remove what exists at the target, if anything.

        Raises:
            OutputExistsError: The object store cannot be written.
        """
        if self.path is not None:
            if self.path.exists():
                shutil.rmtree(self.path)
            return
        with _one_line_errors(self.url):
            fs, path = url_to_fs(self.url)
            fs.invalidate_cache()
            if fs.exists(path):
                fs.rm(path, recursive=True)

    def upload(self, store: Path) -> None:
        """Copy a finished store to the URL.

        The root file is uploaded last, because only a folder with a root file is a store.

        Raises:
            OutputExistsError: The upload failed.
        """
        with _one_line_errors(self.url):
            fs, path = url_to_fs(self.url)
            fs.pipe_file(f"{path}/{MARK_FILE}", b"")
            fs.invalidate_cache()
            if fs.exists(f"{path}/{ROOT_FILE}"):
                fs.rm_file(f"{path}/{ROOT_FILE}")
            old = [name for name in fs.find(path) if not name.endswith((f"/{MARK_FILE}", f"/{ROOT_FILE}"))]
            if old:
                fs.rm(old)
            files = sorted(file for file in store.rglob("*") if file.is_file() and file != store / ROOT_FILE)
            fs.put([str(file) for file in files], [f"{path}/{file.relative_to(store).as_posix()}" for file in files])
            fs.put_file(str(store / ROOT_FILE), f"{path}/{ROOT_FILE}")
            fs.rm_file(f"{path}/{MARK_FILE}")


@contextmanager
def _one_line_errors(url: str) -> Iterator[None]:
    """Turn the errors of object stores, each of which has its own types, into one line."""
    try:
        yield
    except Exception as error:
        raise OutputExistsError(
            f"{redact_urls(url)} cannot be written ({detail(error, url)}); check the URL and your permissions, and "
            "run the command again"
        ) from error
