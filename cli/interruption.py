"""Ctrl-C during a verb whose run can be resumed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def resumable() -> Iterator[None]:
    """Report on Ctrl-C that the run can be resumed, and exit with code 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("equiscreen: interrupted; run the same command again to resume", file=sys.stderr)
        raise typer.Exit(130) from None
