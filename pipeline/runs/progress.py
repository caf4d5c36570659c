"""Progress of a long run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..redaction import redact_text

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
        self.title, self.total, self.unit = redact_text(title), total, unit
        self.enabled = enabled
        self.done = 0
        self._begin = self._last_line = time.monotonic()
        self._resumed = 0  # items that were done before this run
        self._last_done: int | None = None  # items that the last line has counted
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
            self._task = self._bar.add_task(self.title, total=total, rate="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.enabled and error is None and self._last_done is not None and self._last_done < self.done:
            self._print_line()

    def advance(self, count: int) -> None:
        """Count `count` more items as done."""
        self.done += count
        self.total = max(self.total, self.done)
        if self._bar is not None:
            rate = f"{self._rate():,.0f} {self.unit}/s"
            self._bar.update(self._task, completed=self.done, total=self.total or None, rate=rate)
        elif self.enabled and time.monotonic() - self._last_line > LINE_EVERY_S:
            self._print_line()

    def resume(self, count: int) -> None:
        """Count `count` items as done by an earlier run: they do not count towards the rate."""
        self._resumed += count
        self.advance(count)

    def expect(self, total: int) -> None:
        """Set the total number of items, once it is known; zero if it is not."""
        self.total = max(total, self.done)
        if self._bar is not None:
            self._bar.update(self._task, total=self.total or None)

    def note(self, text: str) -> None:
        """Show a line of text, without the secrets of URLs in it."""
        text = redact_text(text)
        if self._bar is not None:
            self._bar.console.print(text)
        elif self.enabled:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def _rate(self) -> float:
        """Items per second in this run."""
        return (self.done - self._resumed) / max(time.monotonic() - self._begin, 1e-9)

    def _print_line(self) -> None:
        self._last_line, self._last_done = time.monotonic(), self.done
        parts = [f"{self.done:,} of {self.total:,} {self.unit}" if self.total else f"{self.done:,} {self.unit}"]
        rate = self._rate()
        if rate > 0:  # else nothing is known about the time that is left
            parts.append(f"{rate:,.0f}/s" if rate >= 1 else f"{rate:.2g}/s")
            if self.total > self.done:
                parts.append(f"{(self.total - self.done) / rate:,.0f} s left")
        print(f"{self.title}: {', '.join(parts)}", file=sys.stderr, flush=True)  # noqa: T201 - this is the log line
