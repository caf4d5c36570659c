"""Progress of a long run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from ..redaction import redact_text

LINE_EVERY_S = 10.0
# Seconds before a rate is meaningful, and days beyond which an estimate of the time left is not.
_FIRST_S, _MOST_DAYS = 2.0, 100
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0


def shows_progress(wanted: bool | None) -> bool:
    """Whether a run shows its progress; by default, it does on a terminal and in a notebook.

    Args:
        wanted: True shows a bar, or plain lines if there is no terminal; False shows nothing; None applies the default.
    """
    return Console(stderr=True).is_terminal if wanted is None else wanted  # rich counts notebooks as terminals


class ProgressReport:
    """Counts finished items, and shows their rate and the time left on standard error.

    Args:
        title: Name of the run, such as "featurize".
        total: Number of items.
        unit: Name of an item, in the plural.
        enabled: Whether to show anything; see `shows_progress`.
    """

    def __init__(self, title: str, total: int, unit: str = "structures", *, enabled: bool | None = True) -> None:
        self.title, self.total, self.unit = redact_text(title), total, unit
        self.enabled = shows_progress(enabled)
        self.done = 0
        self._begin = self._last_line = time.monotonic()
        self._resumed = 0  # items that were done before this run
        self._last_done: int | None = None  # items that the last line has counted
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if self.enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                _TimeLeft(self),
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
        """Set the total number of items once it is known; zero means unknown."""
        self.total = max(total, self.done)
        if self._bar is not None:
            self._bar.update(self._task, total=self.total or None)

    def note(self, text: str) -> None:
        """Show a line of text, with secrets in URLs hidden."""
        text = redact_text(text)
        if self._bar is not None:
            self._bar.console.print(text)
        elif self.enabled:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def time_left(self) -> str:
        """Return the time left at the rate of this run, such as "12 min left"; empty while it is unknown."""
        if time.monotonic() - self._begin < _FIRST_S or self.done <= self._resumed or self.total <= self.done:
            return ""
        return duration((self.total - self.done) / self._rate()) + " left"

    def _rate(self) -> float:
        """Return the number of items per second in this run."""
        return (self.done - self._resumed) / max(time.monotonic() - self._begin, 1e-9)

    def _print_line(self) -> None:
        self._last_line, self._last_done = time.monotonic(), self.done
        parts = [f"{self.done:,} of {self.total:,} {self.unit}" if self.total else f"{self.done:,} {self.unit}"]
        rate = self._rate()
        if rate > 0:  # otherwise the time left is unknown
            parts.append(f"{rate:,.0f}/s" if rate >= 1 else f"{rate:.2g}/s")
            if self.total > self.done:
                parts.append(duration((self.total - self.done) / rate) + " left")
        print(f"{self.title}: {', '.join(parts)}", file=sys.stderr, flush=True)  # noqa: T201 - this is the log line


class _TimeLeft(ProgressColumn):
    """Time left until the run ends, computed anew whenever the bar is drawn.

    Rich's own column computes the rate from the last seconds, and counts the items that earlier runs had done.
    """

    def __init__(self, report: ProgressReport) -> None:
        super().__init__()
        self._report = report

    def render(self, task: Task) -> Text:  # noqa: ARG002
        return Text(self._report.time_left(), style="progress.remaining")


def duration(seconds: float) -> str:
    """Format a duration in a suitable unit: "45 s", "12 min", "5 h", "3 days", or "over 100 days"."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:,.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:,.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:,.0f} h"
    return f"{seconds / _DAY:,.0f} days" if seconds < _MOST_DAYS * _DAY else f"over {_MOST_DAYS} days"
