"""What the acts have in common: the clock of their steps, and the lines that both reports have."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..export.exporter import ExportReport
from ..pipeline import FeaturizeReport
from ..screening import hull, report


class Steps:
    """Names each step of an act on standard error as it begins, and keeps what it took.

    Args:
        act: The act's name.
    """

    def __init__(self, act: str) -> None:
        self.act = act
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        print(f"{self.act}: {name}", file=sys.stderr, flush=True)  # noqa: T201 - an export is silent for a minute
        begin = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begin


SCORES, HULL, PAGE = "scores.zarr", "hull.zarr", "report.html"


def write_page(folder: Path, title: str) -> None:
    """Measure an act's scores against the hull that its own candidates make, and write the page on them.

    Args:
        folder: Of the act, with its scores; each element of the candidates is one of them by itself.
        title: Of the page.
    """
    hull(folder / SCORES, out=folder / HULL, progress=True)
    report(folder / HULL, folder / PAGE, title=title)


@dataclass(frozen=True, kw_only=True)
class ActReport:
    """What every act ends with.

    Attributes:
        out: The act's folder.
        candidates: Account of the candidates.
        exported: The ONNX file.
        structures_per_second: Of the screen.
        seconds: By step.
    """

    out: Path
    candidates: FeaturizeReport
    exported: ExportReport
    structures_per_second: float
    seconds: dict[str, float]

    def summary(self) -> str:
        """Where the candidates went."""
        found = self.candidates
        return (
            f"read {found.read:,} = stored {found.stored:,} + failed {found.failed:,} + duplicate {found.duplicate:,}"
        )

    def lines_on_scoring(self) -> list[str]:
        """The ONNX file, and the rate of the screen."""
        parity = self.exported.metadata.parity
        return [
            f"  ONNX         {self.exported.nodes:,} nodes, {self.exported.size_bytes / 1e6:.2f} MB; largest "
            f"difference from PyTorch: energy {parity['energy/float32']:.0e} eV/atom, forces "
            f"{parity['forces/float32']:.0e} eV/angstrom, stress {parity['stress/float32']:.0e} eV/angstrom^3",
            f"  screen       {self.structures_per_second:,.0f} structures/s with energy, forces and stress, "
            "start of the workers included",
        ]

    def last_lines(self, *names: str) -> list[str]:
        """What the act took, and the files that it leaves."""
        steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        return [
            "",
            f"  time         {sum(self.seconds.values()):.0f} s: {steps}",
            f"  left in      {self.out}: {', '.join(names)}",
        ]
