"""Progress of a long run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class ProgressReport:
    """Counts finished items, and shows the rate and the remaining time on standard error.

    Args:
        title: Name of the run, such as "featurize".
        total: Number of items.
        unit: Name of an item, in the plural.
        enabled: Whether to show anything.
    """

    def __init__(self, title: str, total: int, unit: str = "structures", *, enabled: bool = True) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.enabled = enabled
        self.done = 0
        self._begin = self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(title, total=total, rate="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.enabled and error is None and self._last_line > self._begin:
            self._print_line()

    def advance(self, count: int) -> None:
        """Count `count` more items as done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, advance=count, rate=f"{self._rate():,.0f} {self.unit}/s")
        elif self.enabled and time.monotonic() - self._last_line > LINE_EVERY_S:
            self._print_line()

    def expect(self, total: int) -> None:
        """Set the total number of items, once it is known."""
        self.total = max(total, self.done)
        if self._bar is not None:
            self._bar.update(self._task, total=self.total)

    def note(self, text: str) -> None:
        """Show a line of text."""
        if self._bar is not None:
            self._bar.console.print(text)
        elif self.enabled:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def _rate(self) -> float:
        return self.done / max(time.monotonic() - self._begin, 1e-9)

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        left = (self.total - self.done) / max(self._rate(), 1e-9)
        print(  # noqa: T201 - this is the log line
            f"{self.title}: {self.done:,} of {self.total:,} {self.unit}, {self._rate():,.0f}/s, {left:,.0f} s left",
            file=sys.stderr,
            flush=True,
        )
