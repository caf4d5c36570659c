"""Code shared by the acts: timing of their steps, and the lines that their reports have in common."""

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
    """Prints the name of each step of an act to standard error when it begins, and records its duration.

    Args:
        act: Name of the act.
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
    """Compute the energies above the hull of an act's candidates, and write the report page.

    Args:
        folder: Folder of the act, which holds the scores. The candidates include each pure element.
        title: Title of the page.
    """
    hull(folder / SCORES, out=folder / HULL, progress=True)
    report(folder / HULL, folder / PAGE, title=title)


@dataclass(frozen=True, kw_only=True)
class ActReport:
    """Report of an act.

    Attributes:
        out: Folder of the act.
        candidates: Report of featurizing the candidates.
        exported: Report of the export.
        structures_per_second: Rate of the screen, structures/s.
        seconds: Duration of each step, seconds.
    """

    out: Path
    candidates: FeaturizeReport
    exported: ExportReport
    structures_per_second: float
    seconds: dict[str, float]

    def summary(self) -> str:
        """How many candidates were stored, failed, or were duplicates."""
        found = self.candidates
        return (
            f"read {found.read:,} = stored {found.stored:,} + failed {found.failed:,} + duplicate {found.duplicate:,}"
        )

    def lines_on_scoring(self) -> list[str]:
        """Lines about the ONNX file and the rate of the screen."""
        parity = self.exported.metadata.parity
        return [
            f"  ONNX         {self.exported.nodes:,} nodes, {self.exported.size_bytes / 1e6:.2f} MB; largest "
            f"difference from PyTorch: energy {parity['energy/float32']:.0e} eV/atom, forces "
            f"{parity['forces/float32']:.0e} eV/angstrom, stress {parity['stress/float32']:.0e} eV/angstrom^3",
            f"  screen       {self.structures_per_second:,.0f} structures/s with energy, forces and stress, "
            "including the start of the workers",
        ]

    def last_lines(self, *names: str) -> list[str]:
        """Lines about the duration of the act and the files it wrote."""
        steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        return [
            "",
            f"  time         {sum(self.seconds.values()):.0f} s: {steps}",
            f"  written to   {self.out}: {', '.join(names)}",
        ]
