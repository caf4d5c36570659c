"""Run the benchmarks beside other packages, and print one table of their figures: `make bench`.

    python tests/benchmarks/bench.py --data DATA_FOLDER [--peers build/peers] [--out build/bench] [--repeats 3]
        [--only NAME ...] [--quick]

Each benchmark is a script of this folder. The scripts run in turn, --repeats times, each in a process of its own; what
they print is kept in --out, so that a run that was interrupted resumes when the same command is run again (an empty
folder begins anew). Figures are read from the printed text. Writes `results.json` (machine, versions, load, every
figure of every repeat) and `table.md` (medians and spreads), and prints the table. A script that fails is reported, the
others still run, and the exit status is 1.

--quick runs everything on a few structures once, to see that it works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

PACKAGES = ("equiscreen", "onnxruntime", "torch", "numba", "zarr", "distributed")
# Above this load per core, other programs are busy enough to disturb a measurement.
BUSY = 0.1
REPEATS = 3


@dataclass(frozen=True)
class Figure:
    """A number that a script prints.

    Attributes:
        what: What it measures.
        unit: Its unit; empty for a ratio.
        pattern: Regular expression with one group, the number; its first match counts.
    """

    what: str
    unit: str
    pattern: str

    def read(self, text: str) -> float | None:
        """The number in a printed text; None if it is not there."""
        found = re.search(self.pattern, text)
        return None if found is None else float(found[1].replace(",", ""))


@dataclass(frozen=True)
class Growth:
    """Numbers of structures and the rates that a script prints for them.

    Attributes:
        what: What is measured.
        pattern: Regular expression with two groups, the number of structures and structures per second.
    """

    what: str
    pattern: str

    def read(self, text: str) -> list[tuple[int, float]]:
        """Numbers of structures, and the seconds for each."""
        pairs = [(int(n.replace(",", "")), float(rate.replace(",", ""))) for n, rate in re.findall(self.pattern, text)]
        return [(count, count / rate) for count, rate in pairs]


@dataclass(frozen=True)
class Benchmark:
    """A script and what to read from its text.

    Attributes:
        script: Name of the script, without its suffix.
        arguments: Its arguments; `{data}`, `{peers}` and `{out}` are filled in.
        quick: Further arguments with --quick; None leaves the script out.
        minutes: Estimated time of one full run on two cores.
        figures: Figures that it prints.
        growth: The growth with the number of structures that it prints; None if it measures none.
    """

    script: str
    arguments: str
    quick: str | None
    minutes: int
    figures: Sequence[Figure] = ()
    growth: Growth | None = None


def beside(side: str) -> Figure:
    """How many times as fast as a side of `relax_campaign.py` we relax, by CPU time."""
    return Figure(f"relaxation with 7net-0, {side}: ours over theirs", "", rf"\n  {re.escape(side)} +([\d.]+) \(")


BENCHMARKS = (
    Benchmark(
        "featurize_rate",
        "{data}",
        "--rows 1000 --peer-rows 100",
        2,
        (
            Figure("CIFs to graphs, one core", "structures/s", r"\nequiscreen +([\d,]+) structures/s"),
            Figure("CIFs to graphs: ours over pymatgen", "", r"\nratio +([\d.]+)"),
        ),
    ),
    Benchmark(
        "million",
        "{data} --counts 1000 10000 100000 1000000",
        "--counts 1000 2000",
        4,
        growth=Growth("candidates to graphs", r"\n([\d,]+) candidates: ([\d,]+) structures/s including"),
    ),
    Benchmark(
        "pretrained_rate",
        "--data {data} --scratch {out}/models",
        "--structures 4 --rounds 1 --batch-sizes 4 --slots 1000",
        30,
        (
            Figure("7net-0, energy, forces and stress", "edges/s", r"\nequiscreen +\d.* slots +[\d.]+ +([\d,]+) "),
            Figure("7net-0: ours over SevenNet", "", r"\nequiscreen / SevenNet, best to best: ([\d.]+)"),
        ),
    ),
    Benchmark(
        "relax_campaign",
        "--data {data} --peers {peers} --scratch {out}/models --rounds 1",
        "--structures 4 --slow-side 2 --max-steps 3 --batch-atoms 80",
        45,
        (
            Figure("relaxation with 7net-0", "structures/s", r"\nequiscreen L-BFGS +[\d,]+ +[\d.]+ +([\d.]+)"),
            beside("SevenNet + ASE FIRE"),
            beside("SevenNet + ASE LBFGS"),
            beside("MatCalc"),
            beside("TorchSim L-BFGS, its SevenNet"),
            beside("TorchSim L-BFGS, our file"),
        ),
    ),
    Benchmark(
        "nequip_rate",
        "compare --data {data} --peer {peers}/nequip/bin/python --out {out}/nequip --turns 1",
        None,  # compiling alone takes six minutes
        15,
        (
            Figure("7net-0, one core", "edges/s", r"\n7net-0: [\d,]+ to ([\d,]+) edges/s"),
            Figure("ours over NequIP compiled with AOTInductor", "", r"\naotinductor: .* is ([\d.]+) to"),
        ),
    ),
    Benchmark(
        "mace_rate",
        "compare --data {data} --peer {peers}/mace/bin/python --out {out}/mace --turns 1 --engines equiscreen eager",
        None,  # the export alone takes longer than all quick runs
        10,
        (
            Figure("MACE of MP-0-medium's shape, one core", "edges/s", r"\nequiscreen: [\d,]+ to ([\d,]+) edges/s"),
            Figure("MACE: ours over mace-torch", "", r"\neager: .* is ([\d.]+) to"),
        ),
    ),
    Benchmark(
        "hull_rate",
        "--data {data}",
        "--candidates 2000",
        5,
        (
            Figure(
                "hull distances, sparse references",
                "candidates/s",
                r"equiscreen, files included: ([\d,]+) candidates/s",
            ),
            Figure("hulls: ours over pymatgen, files included", "", r"system, files included: .* equiscreen ([\d.]+)x"),
        ),
    ),
    Benchmark(
        "screen_rate",
        "{data}",
        "--candidates 1000 --crystals 50",
        15,
        (
            Figure("screen with `small`, command to dataset", "structures/s", r"command to dataset +([\d,.]+)"),
            Figure("screen with `small`: share of the bare runtime", "%", r"with tables .*; screen: ([\d.]+)%"),
            Figure("screen with 7net-0: share of the bare runtime", "%", r"; 7net-0;[^%]*; screen: ([\d.]+)%"),
        ),
    ),
)


@dataclass
class Outcome:
    """What the repeats of one benchmark gave.

    Attributes:
        script: Name of the script.
        values: Values of each figure, by what it measures; one per repeat.
        growth: Number of structures and seconds, of all repeats.
        problems: Runs that failed, and figures that were not printed.
    """

    script: str
    values: dict[str, list[float]] = field(default_factory=dict)
    growth: list[tuple[int, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def printed(command: Sequence[str], target: Path) -> str | None:
    """What a command prints, from an earlier run of the same command if its file exists; None if the command fails."""
    first = f"$ {' '.join(command[1:])}\n"
    if target.exists() and (text := target.read_text()).startswith(first):
        return text
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        return None
    target.write_text(first + done.stdout)
    return first + done.stdout


def measured(benchmark: Benchmark, words: dict[str, str], out: Path, repeats: int, *, quick: bool) -> Outcome:
    """Run a benchmark some times.

    Args:
        benchmark: What to run.
        words: Values of the placeholders in its arguments.
        out: Folder of the printed texts.
        repeats: Number of runs.
        quick: Whether to add its arguments for a quick run.
    """
    outcome = Outcome(benchmark.script)
    arguments = f"{benchmark.arguments} {benchmark.quick or ''}" if quick else benchmark.arguments
    script = str(Path(__file__).with_name(f"{benchmark.script}.py"))
    command = [sys.executable, script, *(word.format(**words) for word in arguments.split())]
    for number in range(1, repeats + 1):
        begin = time.perf_counter()
        text = printed(command, out / f"{benchmark.script}-{number}.txt")
        print(f"{benchmark.script}, {number} of {repeats}: {time.perf_counter() - begin:.0f} s", flush=True)
        if text is None:
            outcome.problems.append(f"{benchmark.script}, {number} of {repeats}, failed; its messages are above")
            continue
        for figure in benchmark.figures:
            value = figure.read(text)
            if value is None:
                outcome.problems.append(f"{benchmark.script}, {number} of {repeats}, does not print {figure.what!r}")
            else:
                outcome.values.setdefault(figure.what, []).append(value)
        if benchmark.growth is not None:
            outcome.growth += benchmark.growth.read(text)
    return outcome


def fitted(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Fit seconds = start + slope * structures, by least squares of relative errors.

    Args:
        points: Numbers of structures, and seconds; at least two different numbers.

    Returns:
        Start (s), and slope (s per structure).
    """
    counts, seconds = np.array(points, dtype=float).T
    terms = np.stack([np.ones_like(counts), counts], axis=1) / seconds[:, None]
    start, slope = np.linalg.lstsq(terms, np.ones_like(seconds))[0]
    return float(start), float(slope)


def machine() -> str:
    """Date, processor, cores, Python, versions, and whether other programs are running."""
    found = (
        re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if platform.system() == "Linux" else None
    )
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    busy = f"; other programs were running (load {load:.1f})" if load > BUSY * cores else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {found[1] if found else platform.machine()}, {cores} cores, "
        f"Python {platform.python_version()}, {versions}{busy}"
    )


def table(outcomes: Sequence[Outcome], title: str) -> str:
    """The figures as a table in Markdown, below the machine and versions."""
    units = {figure.what: figure.unit for benchmark in BENCHMARKS for figure in benchmark.figures}
    growths = {one.script: one.growth.what for one in BENCHMARKS if one.growth is not None}
    lines = [title, "", "| what | median | range | unit | script |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        for what, values in outcome.values.items():
            spread = f"{min(values):,g} to {max(values):,g}" if len(values) > 1 else "one run"
            lines.append(f"| {what} | {median(values):,g} | {spread} | {units[what]} | {outcome.script}.py |")
        if len({count for count, _ in outcome.growth}) > 1:
            start, slope = fitted(outcome.growth)
            what, counts = growths[outcome.script], [count for count, _ in outcome.growth]
            worst = max(abs((start + slope * count) / seconds - 1) for count, seconds in outcome.growth)
            lines.append(
                f"| {what}, {min(counts):,} to {max(counts):,}: {start:.2f} s + {1e6 * slope:.1f} µs each "
                f"| {1 / slope:,.0f} | fit within {worst:.0%} | structures/s | {outcome.script}.py |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peers", type=Path, default=Path("build/peers"))
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--only", nargs="+", choices=[one.script for one in BENCHMARKS], metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out / "quick" if arguments.quick else arguments.out
    out.mkdir(parents=True, exist_ok=True)
    chosen = [one for one in BENCHMARKS if arguments.only is None or one.script in arguments.only]
    if arguments.quick:
        chosen = [one for one in chosen if one.quick is not None]
    repeats = 1 if arguments.quick else arguments.repeats
    title = machine()
    print(title)
    if not arguments.quick:
        hours = repeats * sum(one.minutes for one in chosen) / 60
        print(f"{len(chosen)} benchmarks, {repeats} times: about {hours:.1f} h on two cores (an estimate)", flush=True)
    words = {"data": str(arguments.data), "peers": str(arguments.peers), "out": str(out)}
    outcomes = [measured(one, words, out, repeats, quick=arguments.quick) for one in chosen]
    results = {"schema": 1, "machine": title, "quick": arguments.quick, "outcomes": [asdict(one) for one in outcomes]}
    (out / "results.json").write_text(json.dumps(results, indent=1))
    text = table(outcomes, title)
    (out / "table.md").write_text(text)
    print(f"\n{text}\n{out / 'results.json'}, {out / 'table.md'}")
    if problems := [problem for outcome in outcomes for problem in outcome.problems]:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
