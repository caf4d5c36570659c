"""One run at a time works on an output: a lock file with host, process and heartbeat."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputExistsError

HEARTBEAT_S = 10.0
# A holder on another machine that has been silent for this long is taken to be dead.
STALE_AFTER_S = 90.0


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for the duration of a block.

    Raises:
        OutputExistsError: A living process holds it.
    """
    _acquire(path)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_S):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True, name="equiscreen-lock")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        path.unlink(missing_ok=True)


def _acquire(path: Path) -> None:
    mark = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    for _ in range(2):
        try:
            with path.open("x") as file:
                file.write(mark)
        except FileExistsError:
            holder = _living_holder(path)
            if holder is not None:
                raise OutputExistsError(f"{path.parent}: another run is writing here ({holder})") from None
            path.unlink(missing_ok=True)
        else:
            return
    raise OutputExistsError(f"{path.parent}: another run took this output just now")


def _living_holder(path: Path) -> str | None:
    """Who holds the lock, or None if nobody alive does."""
    try:
        holder = json.loads(path.read_text())
        silent_s = time.time() - path.stat().st_mtime
        host, pid = str(holder["host"]), int(holder["pid"])
    except (OSError, ValueError, KeyError):
        return None
    here = host == socket.gethostname()
    # Our own number in an old lock: the number was given out again.
    alive = pid != os.getpid() and _runs(pid) if here else silent_s < STALE_AFTER_S
    return f"process {pid} on {host}" if alive else None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
