"""A lock that keeps two runs from writing the same output; the system releases it when its holder dies."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputExistsError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for the duration of a block.

    The file names its holder. Its existence alone means nothing, since a killed run leaves it behind.

    Raises:
        OutputExistsError: A running process holds the lock.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "a process that has just started"
            raise OutputExistsError(
                f"{path.parent}: another run is writing here ({holder}); wait until it ends"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
