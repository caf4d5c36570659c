"""Code shared by the acts: timing of their steps, and the lines that their reports have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .acts import Act


class Steps:
    """Announces each step of an act when the step begins, and records its duration.

    Args:
        act: Name of the act.
        note: Called with the announcement.
    """

    def __init__(self, act: str, note: Callable[[str], None]) -> None:
        self.act, self.note = act, note
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce a step, and record its duration if it succeeds."""
        self.note(f"{self.act}: {name}")  # an export prints nothing for a minute
        begin = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begin


@dataclass(frozen=True, kw_only=True)
class ActReport:
    """Report of an act.

    Attributes:
        act: The act.
        out: Folder of the act.
        seconds: Duration of each step, seconds.
    """

    act: Act
    out: Path
    seconds: dict[str, float]

    def last_lines(self, *names: str) -> list[str]:
        """Return lines about the duration of the act and the files it wrote."""
        steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        return [
            "",
            f"  time         {sum(self.seconds.values()):.0f} s: {steps}",
            f"  written to   {self.out}: {', '.join(names)}",
        ]
