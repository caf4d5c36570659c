"""Error of forces against the number of training structures, for l_max = 0, 1, 2 and an invariant network with angles.

    python tests/benchmarks/data_efficiency.py DATA_FOLDER --work WORK_FOLDER [--jobs 2] [--steps 2560] [--quick]

Acetylacetone at 300 K (BOTNet data sets, Batatia et al., arXiv:2205.06643; MIT): 500 frames of one molecule in the
order of time. The last 100 are the test; the 20 before them are left out; of the others every 19th, 20 in all, are
always the validation, and the rest is the pool. A seed draws an order of the pool, whose first 20, 40, 80, 160, 320
frames are the training sets, and the weights; all networks see the same sets.

All trainings have the same number of steps of 2 molecules each, of validations and of epochs: a small set is repeated
to the size of the largest. The networks differ in nothing but `hidden_irreps` and `l_max`, with multiplicities that
give them about as many parameters. The control has harmonics to l = 2, and so sees angles, but sends only scalars.
Floating-point operations are those that PyTorch's FlopCounterMode counts, matrix products at two per multiplication, of
energy and forces of one molecule. `plain_network.py` says what stands beside them.

A slope is that of log(force MAE) against log(size), by least squares over all sizes and seeds. Intervals are the middle
95 % of 10,000 bootstrap resamples of the seeds, the same for all networks; with five seeds they are rather too narrow.

Every training has one thread and leaves a result in WORK_FOLDER; the same command goes on where it was stopped, also
within a training. The whole takes about 50 minutes on two free cores; prints what `data_efficiency.txt` keeps and draws
`data_efficiency.png` beside this file (with --quick, in WORK_FOLDER).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from equiscreen.model import Config, EquivariantNetwork, load_checkpoint, train
from equiscreen.model.data.batches import table_tensors
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphBlock, LabelMapping, Structure, featurize
from numpy.typing import NDArray
from plain_network import VARIANTS, WIDTH, Frames, train_plain, tumbling
from scipy.spatial.transform import Rotation
from torch.utils.flop_counter import FlopCounterMode

CUTOFF, BATCH, N_VALIDATION, N_TEST, GAP = 5.0, 2, 20, 100, 20
NETWORKS: dict[str, dict[str, Any]] = {
    "l_max 0": {"hidden_irreps": "60x0e", "l_max": 0},
    "l_max 1": {"hidden_irreps": "36x0e + 36x1o", "l_max": 1},
    "l_max 2": {"hidden_irreps": "24x0e + 24x1o + 24x2e", "l_max": 2},
    "control": {"hidden_irreps": "30x0e", "l_max": 2},
}
PAIRS = (("l_max 1", "l_max 0"), ("l_max 2", "l_max 0"), ("l_max 2", "l_max 1"), ("l_max 2", "control"))
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained.

    Attributes:
        data: The extxyz file.
        work: Folder of stores, runs and results.
        sizes: Of the training sets, ascending; each divides the last.
        seeds: How many.
        steps: Of the optimiser, in each training.
    """

    data: Path
    work: Path
    sizes: tuple[int, ...]
    seeds: int
    steps: int

    def result(self, name: str, size: int, seed: int) -> Path:
        """Where the result of a training stands."""
        return self.work / "results" / f"{name.replace(' ', '_').replace(',', '')}-{size}-{seed}.json"

    def training_store(self, size: int, seed: int) -> Path:
        """Of the structures to train on."""
        return self.work / "stores" / f"training-{size}-{seed}.zarr"

    @property
    def validation_store(self) -> Path:
        """Of those to validate on."""
        return self.work / "stores" / "validation.zarr"

    def jobs(self) -> list[tuple[str, int, int]]:
        """Network, size and seed of all trainings; a seed is complete before the next begins."""
        largest = self.sizes[-1]
        return [
            job
            for seed in range(self.seeds)
            for job in (
                *((name, size, seed) for size in self.sizes for name in NETWORKS),
                *((name, largest, seed) for name in VARIANTS),
            )
        ]


def divided(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the pool, of the validation and of the test, of so many frames in the order of time."""
    early = np.arange(count - N_TEST - GAP)
    validation = early[:: len(early) // N_VALIDATION][:N_VALIDATION]
    return np.setdiff1d(early, validation), validation, np.arange(count - N_TEST, count)


def subsets(plan: Plan, size: int, seed: int) -> tuple[Frames, Frames, Frames]:
    """Frames to train, validate and test on; those of a size hold those of the sizes below."""
    frames = Frames.read(plan.data)
    pool, validation, test = divided(len(frames))
    chosen = np.random.default_rng(seed).permutation(pool)[:size]
    return frames.take(chosen), frames.take(validation), frames.take(test)


def make_store(frames: Frames, part: int, out: Path) -> None:
    """A graph store of frames, with `part` as a column to split by, if it is not there yet."""
    if out.exists():  # only when it is complete
        return
    source = out.with_suffix(".extxyz")
    if not source.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        images = []
        for positions, forces, energy in zip(frames.positions, frames.forces, frames.energy, strict=True):
            atoms = ase.Atoms(frames.numbers, positions, info={"part": part})
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            images.append(atoms)
        scratch = source.with_suffix(".part")
        ase.io.write(scratch, images, format="extxyz")
        scratch.rename(source)
    featurize(source, out, cutoff=CUTOFF, labels=LabelMapping(columns=("part",)), scheduler="threads")


def make_stores(plan: Plan) -> None:
    """All graph stores that the trainings read."""
    for seed in range(plan.seeds):
        for size in plan.sizes:
            training, validation, _ = subsets(plan, size, seed)
            make_store(training, 0, plan.training_store(size, seed))
            make_store(validation, 1, plan.validation_store)


def config_of(plan: Plan, name: str, seed: int) -> Config:
    """The configuration; what does not stand here is default."""
    largest = plan.sizes[-1]
    # The store to validate on has the later "time", whatever the share.
    split = {"by": "time", "key": "part", "validation": N_VALIDATION / (largest + N_VALIDATION)}
    training = {"seed": seed, "max_epochs": plan.steps * BATCH // largest, "batch_size": BATCH, "threads": 1}
    network = {**NETWORKS[name], "cutoff": CUTOFF, "correlation": 3}
    return Config.parse({"network": network, "training": {**training, "accelerator": "cpu", "split": split}}, name)


def evaluated(network: EquivariantNetwork, frames: Frames) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Energies, float64[n], and forces, float64[n, n_atoms, 3]."""
    structures = [Structure.from_cartesian(frames.numbers, positions) for positions in frames.positions]
    found = TorchPotential(network).evaluate(GraphBlock.from_structures(structures, CUTOFF))
    return found.energy, found.forces.reshape(frames.forces.shape).astype(np.float64)


def tested(network: EquivariantNetwork, test: Frames, seed: int) -> dict[str, float]:
    """Errors on the test frames and on copies of them turned at random, and how far the two sets of forces differ."""
    rotations = Rotation.random(len(test), np.random.default_rng(seed))
    energy, forces = evaluated(network, test)
    _, forces_turned = evaluated(network, test.turned(rotations))
    back = forces_turned @ rotations.as_matrix()  # a mean over components depends on the axes: those of the labels
    one = GraphBlock.from_structures([Structure.from_cartesian(test.numbers, test.positions[0])], CUTOFF)
    with FlopCounterMode(display=False) as counter:
        network(*table_tensors(one, CUTOFF, network.dtype))
    return {
        "energy": float(np.abs(energy - test.energy).mean()),
        "forces": float(np.abs(forces - test.forces).mean()),
        "forces_turned": float(np.abs(back - test.forces).mean()),
        "violation": float(np.abs(back - forces).max()),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "flops": counter.get_total_flops(),
    }


def train_network(plan: Plan, name: str, size: int, seed: int) -> dict[str, float]:
    """Train one network, or take its training up, and test it.

    Raises:
        SystemExit: Not the sets or steps that were wanted.
    """
    repeats = plan.sizes[-1] // size
    stores = [*[plan.training_store(size, seed)] * repeats, plan.validation_store]
    folder = plan.work / "runs" / plan.result(name, size, seed).stem
    finished = (folder / "model.ckpt").exists()  # but killed before it was tested: once more
    report = train(stores, folder, config_of(plan, name, seed), overwrite=finished)
    counts = (report.n_training, report.n_validation, report.epochs * report.n_training // BATCH)
    if counts != (repeats * size, N_VALIDATION, plan.steps):
        raise SystemExit(f"{folder}: {counts} structures to train and validate on, and steps, are not what was planned")
    network, _ = load_checkpoint(folder / "model.ckpt")
    return tested(network, subsets(plan, size, seed)[2], seed)


def run_one(plan: Plan, name: str, size: int, seed: int) -> None:
    """Do one training in this process and leave its result."""
    torch.set_num_threads(1)
    begin = time.monotonic()
    if name in NETWORKS:
        found = train_network(plan, name, size, seed)
    else:
        found = train_plain(name, *subsets(plan, size, seed), plan.steps, BATCH, seed)
    out = plan.result(name, size, seed)
    scratch = out.with_suffix(".part")
    scratch.write_text(
        json.dumps({"settings": settings(plan, name, seed), **found, "seconds": time.monotonic() - begin})
    )
    scratch.rename(out)


def settings(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """What a result depends on, besides the code."""
    told = (
        config_of(plan, name, seed).model_dump(mode="json") if name in NETWORKS else {"variant": list(VARIANTS[name])}
    )
    return {"sizes": list(plan.sizes), "steps": plan.steps, "batch": BATCH, **told}


def run_all(plan: Plan, processes: int) -> None:
    """Do all trainings that have no result yet.

    Raises:
        SystemExit: The folder holds results with other settings.
    """
    (plan.work / "results").mkdir(parents=True, exist_ok=True)
    jobs = plan.jobs()
    for name, size, seed in jobs:
        out = plan.result(name, size, seed)
        if out.exists() and json.loads(out.read_text())["settings"] != settings(plan, name, seed):
            raise SystemExit(f"{out}: with other settings; choose another --work")
    left = [job for job in jobs if not plan.result(*job).exists()]
    if left:
        make_stores(plan)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run_one, plan, *job): job for job in left}
        try:
            for count, future in enumerate(as_completed(running), len(jobs) - len(left) + 1):
                future.result()
                print(f"{count} of {len(jobs)}: {running[future]}", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def gathered(plan: Plan) -> dict[tuple[str, int, int], dict[str, float]]:
    """The results of all trainings."""
    return {job: json.loads(plan.result(*job).read_text()) for job in plan.jobs()}


def errors_of(plan: Plan, results: dict[tuple[str, int, int], dict[str, float]], name: str) -> NDArray[np.float64]:
    """float64[n_seeds, n_sizes], force errors of a network, eV/angstrom."""
    return np.array([[results[name, size, seed]["forces"] for size in plan.sizes] for seed in range(plan.seeds)])


def interval(values: NDArray[np.float64]) -> str:
    """The mean over seeds and its bootstrap interval; the seeds drawn are the same at every call."""
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(1), (2.5, 97.5))
    return f"{values.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def ratio(logarithms: NDArray[np.float64]) -> str:
    """The geometric mean of ratios over seeds and its bootstrap interval."""
    drawn = np.random.default_rng(0).integers(len(logarithms), size=(RESAMPLES, len(logarithms)))
    low, high = np.exp(np.percentile(logarithms[drawn].mean(1), (2.5, 97.5)))
    return f"{np.exp(logarithms.mean()):.3f} [{low:.3f}, {high:.3f}]"


def print_networks(results: dict[tuple[str, int, int], dict[str, float]]) -> None:
    """Parameters, operations and time."""
    print(
        f"\n{'network':<10}{'hidden_irreps':<25}{'parameters':>11}{'MFLOP/molecule':>16}"
        f"{'s/training, mean':>18}{'longest':>9}"
    )
    for name, given in NETWORKS.items():
        runs = [result for (other, _, _), result in results.items() if other == name]
        seconds = [run["seconds"] for run in runs]
        print(
            f"{name:<10}{given['hidden_irreps']:<25}{runs[0]['parameters']:>11,}{runs[0]['flops'] / 1e6:>16.1f}"
            f"{np.mean(seconds):>18.0f}{max(seconds):>9.0f}"
        )


def print_errors(plan: Plan, results: dict[tuple[str, int, int], dict[str, float]]) -> None:
    """Errors by size, slopes, their differences and the ratios at the end."""
    print("\nforce MAE on the test frames, meV/angstrom: mean (standard deviation) over seeds")
    print(f"{'structures':<12}" + "".join(f"{size:>16}" for size in plan.sizes))
    for name in NETWORKS:
        errors = 1e3 * errors_of(plan, results, name)
        told = zip(errors.mean(0), errors.std(0, ddof=1), strict=True)
        print(f"{name:<12}" + "".join(f"{f'{mean:.1f} ({spread:.1f})':>16}" for mean, spread in told))
    print("energy MAE, meV per molecule: mean over seeds")
    for name in NETWORKS:
        energy = [np.mean([results[name, size, seed]["energy"] for seed in range(plan.seeds)]) for size in plan.sizes]
        print(f"{name:<12}" + "".join(f"{1e3 * error:>16.1f}" for error in energy))
    slopes, logs = {}, {}
    for name in NETWORKS:
        logs[name] = np.log(errors_of(plan, results, name))
        # All seeds have the same sizes: the slope through all points is the mean of theirs.
        slopes[name] = np.polyfit(np.log(plan.sizes), logs[name].T, 1)[0]
    print("\nslope of log(force MAE) against log(structures), with 95 % interval")
    for name, slope in slopes.items():
        print(f"{name:<22}{interval(slope)}")
    print(f"difference of slopes, and ratio of errors at {plan.sizes[-1]} structures")
    for one, other in PAIRS:
        ends = ratio((logs[one] - logs[other])[:, -1])
        print(f"{f'{one}, {other}':<22}{interval(slopes[one] - slopes[other])}    {ends}")


def print_turned(plan: Plan, results: dict[tuple[str, int, int], dict[str, float]]) -> None:
    """Errors on the test frames and on turned copies of them, beside those of the plain networks."""
    largest, frames = plan.sizes[-1], Frames.read(plan.data)
    test = frames.take(divided(len(frames))[2])
    print(f"\nforce MAE after {largest} structures, meV/angstrom: mean (standard deviation) over seeds")
    print("turned copies: forces turned back to the axes of the labels")
    print(f"{'':<38}{'parameters':>11}{'MFLOP':>8}{'test frames':>16}{'turned copies':>16}")
    for name in (*VARIANTS, *NETWORKS):
        runs = [results[name, largest, seed] for seed in range(plan.seeds)]
        columns = [[1e3 * run[key] for run in runs] for key in ("forces", "forces_turned")]
        told = "".join(f"{f'{np.mean(x):.1f} ({np.std(x, ddof=1):.1f})':>16}" for x in columns)
        print(f"{name:<38}{runs[0]['parameters']:>11,}{runs[0]['flops'] / 1e6:>8.2f}{told}")
    print(f"{'forces of zero':<57}{1e3 * np.abs(test.forces).mean():>16.1f}{'':>16}")
    violation = max(results[name, size, seed]["violation"] for name, size, seed in plan.jobs() if name in NETWORKS)
    print(
        f"largest difference of a network's forces, turned back, in any training: {violation:.1e} eV/angstrom (float32)"
    )
    print(f"degrees by which the frames are turned against the first: {tumbling(frames)}; at random: mean 126")


def draw(plan: Plan, results: dict[tuple[str, int, int], dict[str, float]], out: Path) -> None:
    """Errors against sizes, every seed a point, the line through their geometric means."""
    import matplotlib as mpl  # noqa: PLC0415 - only here

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - only here
    from matplotlib.ticker import LogLocator, ScalarFormatter  # noqa: PLC0415 - only here

    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for (name, given), marker in zip(NETWORKS.items(), "osD^", strict=True):
        errors = 1e3 * errors_of(plan, results, name)
        (line,) = axes.plot(plan.sizes, np.exp(np.log(errors).mean(0)), label=f"{name}: {given['hidden_irreps']}")
        axes.fill_between(plan.sizes, errors.min(0), errors.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
        axes.plot(plan.sizes, errors.T, marker, color=line.get_color(), markersize=3)
    axes.set(xscale="log", yscale="log", xlabel="training structures", ylabel="force MAE, meV/angstrom")
    axes.set_xticks(plan.sizes, [str(size) for size in plan.sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.set_title(f"acetylacetone, 300 K; {plan.steps} steps, {plan.seeds} seeds", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=120)


def print_head(plan: Plan) -> None:
    """Date, machine, versions and configuration."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "torch", "lightning", "e3nn", "numpy"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, {packages}")
    count = len(Frames.read(plan.data))
    pool, validation, test = divided(count)
    print(
        f"{plan.data.name}: {count} frames; pool {len(pool)}, validation {len(validation)}, test the last {len(test)} "
        f"behind a gap of {GAP}; {plan.seeds} seeds"
    )
    asked = config_of(plan, "l_max 2", 0).model_dump(mode="json")
    print(f"network, besides hidden_irreps and l_max: { ({'cutoff': CUTOFF, 'correlation': 3}) }, else the defaults")
    names = ("max_epochs", "batch_size", "learning_rate", "schedule", "ema_decay")
    told = {name: asked["training"][name] for name in names}
    weights = {name: asked["training"]["loss"][name]["weight"] for name in ("energy", "forces")}
    print(f"training: {plan.steps} steps, {told}, squared errors with weights {weights}; one thread")
    print(f"plain network: two hidden layers of {WIDTH}, trained by plain_network.py")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2560)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three sizes, two seeds, two epochs: does it run?")
    arguments = parser.parse_args()
    sizes, seeds, steps = (20, 40, 80, 160, 320), arguments.seeds, arguments.steps
    if arguments.quick:
        sizes, seeds, steps = (20, 40, 80), 2, 2 * 80 // BATCH
    if seeds < 2 or steps % (sizes[-1] // BATCH):
        parser.error(f"at least two seeds, and steps that are a multiple of {sizes[-1] // BATCH}")
    plan = Plan(arguments.data / "acac/train_300K.xyz", arguments.work, sizes, seeds, steps)
    run_all(plan, arguments.jobs)
    results = gathered(plan)
    print_head(plan)
    print_networks(results)
    print_errors(plan, results)
    print_turned(plan, results)
    draw(plan, results, (plan.work if arguments.quick else Path(__file__).parent) / "data_efficiency.png")


if __name__ == "__main__":
    main()
