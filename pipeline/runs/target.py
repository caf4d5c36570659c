"""Where a store goes: a path of this machine, or the URL of an object store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fsspec.core import url_to_fs

from ..errors import OutputExistsError, detail

ROOT_FILE = "zarr.json"
# Says that an upload of ours is on its way; without the root beside it, that one was interrupted.
MARK_FILE = ".equiscreen"


@dataclass(frozen=True, slots=True)
class Target:
    """The place of an output.

    Attributes:
        path: On this machine; None for a URL.
        url: As the user gave it.
    """

    path: Path | None
    url: str

    @classmethod
    def of(cls, out: str | Path) -> Target:
        """The place that a path or URL means."""
        text = str(out).removeprefix("file://")
        return cls(None, text.rstrip("/")) if "://" in text else cls(Path(text).resolve(), text)

    def __str__(self) -> str:
        return self.url

    @property
    def working_folder(self) -> Path:
        """Where the work goes on: beside a path; for a URL, in the current folder."""
        if self.path is not None:
            return self.path.with_name(f"{self.path.name}.partial")
        return Path.cwd() / f"{self.url.rsplit('/', maxsplit=1)[-1]}.partial"

    def exists(self) -> bool:
        """Whether something is there.

        Raises:
            OutputExistsError: It cannot be looked at.
        """
        if self.path is not None:
            return self.path.exists()
        with _reaching(self.url):
            fs, path = url_to_fs(self.url)
            fs.invalidate_cache()
            unfinished = fs.exists(f"{path}/{MARK_FILE}") and not fs.exists(f"{path}/{ROOT_FILE}")
            return bool(fs.exists(path)) and not unfinished

    def check_writable(self) -> None:
        """Find out before the work whether an object store takes it at the end.

        Raises:
            OutputExistsError: It does not.
        """
        if self.path is None:
            with _reaching(self.url):
                fs, path = url_to_fs(self.url)
                if not fs.exists(f"{path}/{MARK_FILE}"):
                    fs.pipe_file(f"{path}/{MARK_FILE}", b"")
                    fs.rm_file(f"{path}/{MARK_FILE}")

    def is_ours(self) -> bool:
        """Whether it is a store of equiscreen."""
        if self.path is not None:
            root = self.path / ROOT_FILE
            return root.is_file() and "equiscreen-" in root.read_text()
        with _reaching(self.url):
            fs, path = url_to_fs(self.url)
            if not fs.exists(f"{path}/{ROOT_FILE}"):
                return False
            return "equiscreen-" in json.dumps(json.loads(fs.cat_file(f"{path}/{ROOT_FILE}")).get("attributes", {}))

    def upload(self, store: Path) -> None:
        """Copy a finished store to the URL: its root last, since without that nothing there is a store.

        Raises:
            OutputExistsError: The object store does not take it.
        """
        with _reaching(self.url):
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
def _reaching(url: str) -> Iterator[None]:
    """Turn the errors of object stores, each of which has its own, into one line."""
    try:
        yield
    except Exception as error:
        raise OutputExistsError(f"{url}: cannot be written there ({detail(error)})") from error
