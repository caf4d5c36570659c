"""Ctrl-C: one line and exit code 130, regardless of what is running and how often it is pressed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

INTERRUPTED = 130
_PLAIN = "equiscreen: interrupted"
_RESUMABLE = f"{_PLAIN}; run the same command again to resume"
_message: ContextVar[str] = ContextVar("message", default=_PLAIN)


@contextmanager
def interruptible() -> Iterator[None]:
    """End the process with one line if Ctrl-C is pressed during this block.

    The first Ctrl-C raises KeyboardInterrupt, so that workers are stopped cleanly. The second one ends the
    process at once; nothing is lost, since a run can be killed at any time.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:  # in the background
        yield
        return
    presses = 0

    def press(_signal: int, _frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses == 1:
            raise KeyboardInterrupt
        os.write(sys.stderr.fileno(), f"{_message.get()}\n".encode())
        os._exit(INTERRUPTED)

    _message.set(_PLAIN)
    signal.signal(signal.SIGINT, press)
    try:
        yield
    except BaseException as error:
        if not presses or (isinstance(error, SystemExit) and not error.code):
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process is ending
        print(_message.get(), file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    else:
        signal.signal(signal.SIGINT, before)


@contextmanager
def resumable() -> Iterator[None]:
    """If this block is interrupted, tell the user that the run can be resumed."""
    before = _message.set(_RESUMABLE)
    yield
    _message.reset(before)  # but not after an error, which ends the process
