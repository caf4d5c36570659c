"""Writing of files that appear under their names only when they are complete."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Longest suffix (bytes) that a scratch file takes over from its target.
_SUFFIX = 32


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Write a file under a scratch name beside `path`, and rename it to `path` at the end of the block.

    Readers see either the old file or the complete new one, even after a crash: the content is flushed to disk before
    the rename. Each block has its own scratch name, so two processes can safely write the same file. If the block
    raises an exception, the scratch file is removed and `path` is left unchanged. An existing file keeps its
    permissions. If `path` is a symbolic link, the file that it points to is replaced.

    Args:
        path: File to write, in an existing folder.

    Yields:
        The scratch path: a hidden file in the same folder, with the same suffix unless that is very long.
    """
    target = Path(os.path.realpath(path))
    # A file name has at most 255 bytes, and `path` may use them all.
    scratch = target.with_name(f".{uuid.uuid4().hex}{path.suffix if len(os.fsencode(path.suffix)) <= _SUFFIX else ''}")
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        with suppress(OSError):  # there is no older file, or the file system has no permissions
            scratch.chmod(stat.S_IMODE(target.stat().st_mode))
        scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file that appears under its name only once it is complete."""
    with atomic_path(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
