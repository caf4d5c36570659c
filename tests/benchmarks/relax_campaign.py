"""A relaxation campaign with 7net-0: `equiscreen relax` compared with SevenNet in ASE, MatCalc and TorchSim.

    python tests/benchmarks/relax_campaign.py --data DATA_FOLDER [--peers build/peers] [--structures 500]
        [--slow-side 100] [--rounds 3] [--max-steps 500] [--batch-atoms 40 80 160 320] [--sides NAME ...]
        [--scratch FOLDER]

Crystals of mp_20_val.csv.gz are rattled by 0.1 angstrom and strained by 2 %, and relaxed, cell and positions together,
until the forces of ASE's FrechetCellFilter, on atoms and cell, are below 0.05 eV/angstrom, in at most --max-steps
steps. In each round all sides run in turn, on all cores:

- equiscreen: `relax` as a user would run it, from a graph store to finished stores on disk, with one single-threaded
  Dask worker per core, whose start is counted; L-BFGS, then FIRE; all --structures crystals.
- The others, in single-threaded processes, one per core, which share the first --slow-side crystals; their start is not
  counted, and a side that fails is left out. `relax_peers.py` explains them: SevenNet's calculator in ASE with FIRE and
  with LBFGS, MatCalc, and TorchSim with its batched FIRE and L-BFGS, its autobatching at the batch size that it finds
  fastest, and as model SevenNet's own wrapper or our exported file. Each has an environment of its own in the folder
  --peers.

"per CPU second" divides by the CPU time of all processes, which other programs on the machine disturb less; ratios are
of these rates, in the same round. Energies of relaxed crystals are computed by the code that relaxed them, and compared
in the first round. The time of 257,000 relaxations (the size of the WBM set) on 64 cores is extrapolated from our rate.
Prints the text of `relax_campaign.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from equiscreen.pipeline import GraphStore, Structure, featurize
from equiscreen.screening import RelaxSettings, relax
from equiscreen.screening.relaxation.optimizers import Optimizer
from numpy.typing import NDArray
from pretrained import crystals, exported, header, kept_folder
from relax_peers import SIDES, Given, Made

MODEL = "7net-0"
RATTLE, STRAIN = 0.1, 0.02
FMAX = 0.05
WBM, NODE_CORES = 257_000, 64
TOLERANCE = 2e-3  # eV/atom
OURS = {
    optimizer: f"equiscreen {title}" for optimizer, title in ((Optimizer.LBFGS, "L-BFGS"), (Optimizer.FIRE, "FIRE"))
}
BEST = OURS[Optimizer.LBFGS]


@dataclass(frozen=True)
class Run:
    """One side in one round.

    Attributes:
        seconds: Wall time.
        cpu_seconds: CPU time of all processes.
        energies: Energy of each relaxed crystal, eV/atom, in the order of the crystals.
        steps: Steps of each relaxation; empty if they are not known.
        setting: Versions and settings; may be empty.
    """

    seconds: float
    cpu_seconds: float
    energies: NDArray[np.float64]
    steps: Sequence[int]
    setting: str = ""

    @property
    def rate(self) -> float:
        """Structures per second of CPU time."""
        return len(self.energies) / self.cpu_seconds

    def print(self, title: str) -> None:
        """Print one line of the table."""
        steps = f"{np.mean(self.steps):>9.1f}{np.median(self.steps):>8.0f}" if self.steps else f"{'-':>9}{'-':>8}"
        count = len(self.energies)
        print(
            f"{title:<30}{count:>10,}{self.seconds:>9.1f}{count / self.seconds:>14.2f}{self.rate:>16.2f}{steps}"
            f"  {self.setting}".rstrip(),
            flush=True,
        )


def ours(folder: Path, model: Path, names: Sequence[str], optimizer: Optimizer, max_steps: int) -> Run:
    """Run `relax` on the store in a folder."""
    settings = RelaxSettings(fmax=FMAX, smax=None, max_steps=max_steps, optimizer=optimizer)
    out = folder / f"{optimizer}.zarr"
    for path in (out, out.with_name(f"{out.stem}.graphs.zarr")):
        shutil.rmtree(path, ignore_errors=True)
    begin, cpu = time.perf_counter(), _cpu_seconds()
    scores = relax(folder / "g.zarr", model, out, settings)
    seconds, cpu_seconds = time.perf_counter() - begin, _cpu_seconds() - cpu
    rows = {name: row for row, name in enumerate(scores["structure_id"].to_numpy().tolist())}
    order = [rows[name] for name in names]
    unfinished = len(names) - scores.attrs["status_counts"]["ok"]
    return Run(
        seconds,
        cpu_seconds,
        scores["energy_per_atom"].to_numpy()[order],
        scores["n_steps"].to_numpy()[order].tolist(),
        f"{unfinished} unfinished" if unfinished else "",
    )


def _cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def interpreters(sides: Sequence[str], peers: Path) -> dict[str, Path]:
    """The interpreter of each side.

    Raises:
        SystemExit: An environment is missing.
    """
    found = {side: peers / SIDES[side][0] / "bin/python" for side in sides}
    for side, python in found.items():
        if not python.exists():
            raise SystemExit(f"{side}: {python} does not exist; make it with `make {python.parents[1]}/installed`")
    return found


def theirs(side: str, given: Given, python: Path, folder: Path) -> Run | None:
    """Run a side of `relax_peers.py` in one process per core, each with a share of the crystals; None if it fails."""
    cores = os.cpu_count() or 1
    shares = [given.crystals[first::cores] for first in range(min(cores, len(given.crystals)))]
    processes = []
    for number, share in enumerate(shares):
        source, made = folder / f"given-{number}.json", folder / f"made-{number}.json"
        source.write_text(json.dumps({**asdict(given), "crystals": share}))
        made.unlink(missing_ok=True)
        script = Path(__file__).with_name("relax_peers.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen([python, script, side, source, made], env=environment, stdout=2))
    codes = [process.wait() for process in processes]
    if any(codes):
        print(f"{side}: failed", flush=True)
        return None
    found = [Made(**json.loads((folder / f"made-{number}.json").read_text())) for number in range(len(shares))]
    energies = np.empty(len(given.crystals))
    steps = np.full(len(given.crystals), -1)
    for number, made in enumerate(found):
        energies[number::cores] = made.energies
        if made.steps:
            steps[number::cores] = made.steps
    versions = ", ".join(f"{name} {version}" for name, version in found[0].versions.items())
    chosen = dict.fromkeys(made.setting for made in found if made.setting)
    return Run(
        max(made.seconds for made in found),
        sum(made.cpu_seconds for made in found),
        energies,
        steps.tolist() if found[0].steps else [],
        "; ".join([versions, *chosen]),
    )


def given_crystals(structures: Sequence[Structure]) -> list[tuple[list[int], list[list[float]], list[list[float]]]]:
    """Structures as `Given` holds them."""
    return [(s.atomic_number.tolist(), s.cell.tolist(), s.positions.tolist()) for s in structures]


def print_energies(title: str, mine: NDArray[np.float64], theirs: NDArray[np.float64], names: Sequence[str]) -> None:
    """Print how far the relaxed energies of two sides differ."""
    difference = mine - theirs
    equal = np.abs(difference) <= TOLERANCE
    print(
        f"{title}: final energies of {len(names)} crystals within {1e3 * TOLERANCE:g} meV/atom for {equal.mean():.1%}, "
        f"within that or lower for {(difference <= TOLERANCE).mean():.1%}; "
        f"median difference {1e3 * np.median(difference):+.2f} meV/atom, ours lower for {(difference < 0).mean():.0%}"
    )
    for place in np.flatnonzero(~equal).tolist():
        print(f"  {names[place]}: ours {1e3 * difference[place]:+.1f} meV/atom")


def print_ratios(rounds: Sequence[dict[str, Run]]) -> None:
    """Print how much faster we are than each other side: the median of all rounds, and the range."""
    print(f"\n{BEST}, structures per CPU second, over")
    for side in rounds[0]:
        if side != BEST:
            ratios = [runs[BEST].rate / runs[side].rate for runs in rounds if side in runs]
            print(f"  {side:<30}{np.median(ratios):>7.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peers", type=Path, default=Path("build/peers"))
    parser.add_argument("--structures", type=int, default=500)
    parser.add_argument("--slow-side", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=500)
    parser.add_argument("--batch-atoms", type=int, nargs="+", default=[40, 80, 160, 320])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="NAME")
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    pythons = interpreters(arguments.sides, arguments.peers)
    print(header("ase"))
    distorted = crystals(arguments.data, arguments.structures, RATTLE, STRAIN)
    names, structures = list(distorted), list(distorted.values())
    few = names[: arguments.slow_side]
    rounds: list[dict[str, Run]] = []
    with kept_folder(arguments.scratch) as folder:
        model = exported(MODEL, folder)
        given = Given(
            MODEL,
            str(model.resolve()),
            given_crystals(structures[: len(few)]),
            FMAX,
            arguments.max_steps,
            arguments.batch_atoms,
        )
        ase.io.write(folder / "distorted.extxyz", [_named(name, s) for name, s in distorted.items()])
        shutil.rmtree(folder / "g.zarr", ignore_errors=True)
        featurize(folder / "distorted.extxyz", folder / "g.zarr", cutoff=5.0, id_field="name")
        store = GraphStore(folder / "g.zarr")
        print(f"{len(store):,} crystals, {store.n_atoms.sum():,} atoms, {store.n_edges.sum():,} edges")
        print(
            f"\n{'':<30}{'structures':>10}{'s':>9}{'structures/s':>14}{'per CPU second':>16}{'steps':>9}{'median':>8}"
        )
        for _ in range(arguments.rounds):
            runs: dict[str, Run] = {}
            for optimizer, title in OURS.items():
                runs[title] = ours(folder, model, names, optimizer, arguments.max_steps)
                runs[title].print(title)
            for side, python in pythons.items():
                run = theirs(side, given, python, folder)
                if run is not None:
                    run.print(side)
                    runs[side] = run
            rounds.append(runs)
    print_ratios(rounds)
    first = rounds[0]
    for side in filter(first.__contains__, arguments.sides):
        print_energies(f"{BEST} and {side}", first[BEST].energies[: len(few)], first[side].energies, few)
    print_energies("equiscreen L-BFGS and FIRE", first[BEST].energies, first[OURS[Optimizer.FIRE]].energies, names)
    rate = float(np.median([len(names) / runs[BEST].seconds for runs in rounds]))
    hours = WBM / (rate / (os.cpu_count() or 1) * NODE_CORES) / 3600
    print(
        f"{WBM:,} relaxations at this rate per core: {hours:.2f} h on {NODE_CORES} cores, "
        f"{hours * NODE_CORES:.0f} core-hours"
    )


def _named(name: str, structure: Structure) -> Any:
    atoms = structure.to_ase()
    atoms.info["name"] = name
    return atoms


if __name__ == "__main__":
    main()
