"""The cache folder: files that are made once, and made again if they are damaged.

The folder is ``EQUISCREEN_CACHE``, or ``equiscreen`` in the user's cache (``XDG_CACHE_HOME`` or ``~/.cache``).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...pipeline.atomic import atomic_path, write_text_atomically
from ...pipeline.errors import DISK_FULL, EquiscreenError, detail

VARIABLE = "EQUISCREEN_CACHE"


def cache_folder() -> Path:
    """Return the cache folder, which need not exist yet.

    Raises:
        EquiscreenError: The user has no home folder, and no environment variable sets a cache folder.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    user = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not user.is_absolute():  # the XDG standard requires a relative path to be ignored
        try:
            user = Path.home() / ".cache"
        except RuntimeError as error:
            raise EquiscreenError(f"there is no home folder for the cache; set {VARIABLE} to a folder") from error
    return user / "equiscreen"


def intact_model(path: Path) -> bool:
    """Whether an ONNX file exists and has the SHA-256 that `made_once` stored in the file beside it.

    The checksum inside an ONNX file would not show that the file has been replaced by another model.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _digest_file(path).read_text().strip()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, UnicodeDecodeError):
        return False


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def made_once(path: Path, make: Callable[[], bytes], note: Callable[[str], None]) -> Path:
    """Make an ONNX file in the cache unless it exists; of several processes, one makes it and the others wait.

    Args:
        path: The file.
        make: Returns the content of the file.
        note: Called with a message if the file is damaged or another process is making it.

    Returns:
        `path`, which is complete and intact.

    Raises:
        EquiscreenError: The file cannot be read or written.
        OSError: The disk is full.
    """
    with usable(path):
        if intact_model(path):
            return path
    with exclusive(path, note):
        if intact_model(path):
            return path
        if path.exists():
            note(f"{path} is damaged or was replaced (its SHA-256 does not match); making it again")
        data = make()
        with usable(path):
            write_text_atomically(_digest_file(path), f"{hashlib.sha256(data).hexdigest()}\n")
            with atomic_path(path) as scratch:
                scratch.write_bytes(data)
    return path


@contextmanager
def exclusive(path: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a file in the cache during a block; the folder of the file is created first.

    Args:
        path: The file to write.
        note: Called with a message if another process holds the lock.

    Raises:
        EquiscreenError: The folder cannot be written.
    """
    with usable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("a")
    with lock:
        with usable(path):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note(f"waiting for another process, which is making {path.name}")
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Within a block, report that a file in the cache cannot be used and how to choose another folder.

    Raises:
        EquiscreenError: The file cannot be read or written.
        OSError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OSError(error.errno, error.strerror, str(path.parent)) from error
        reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else detail(error)
        raise EquiscreenError(
            f"{path.parent}: the cache cannot be used ({reason}); set {VARIABLE} to a folder that you can write to"
        ) from error
