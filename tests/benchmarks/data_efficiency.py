"""Force error against the number of training structures, for l_max = 0, 1, 2 and an invariant network with angles.

    python tests/benchmarks/data_efficiency.py DATA_FOLDER --work WORK_FOLDER [--jobs 2] [--steps 2560] [--quick]

The data are 500 frames of one molecule, acetylacetone at 300 K, in time order (BOTNet data sets, Batatia et al.,
arXiv:2205.06643; MIT). The last 100 frames are the test set, and the 20 before them are not used. Of the others, every
19th (20 in all) is always in the validation set, and the rest is the pool. A seed determines the weights and the order
of the pool, whose first 20, 40, 80, 160 and 320 frames are the training sets; all networks see the same sets.

All trainings have the same number of steps (of 2 molecules each), validations and epochs: a small set is repeated to
the size of the largest. The networks differ only in `hidden_irreps` and `l_max`, with multiplicities that give them
about the same number of parameters. The control has harmonics up to l = 2, and so sees angles, but its messages are
scalars. Floating-point operations are those counted by PyTorch's FlopCounterMode for the energy and forces of one
molecule; it counts a multiplication in a matrix product as two. `plain_network.py` describes the networks without
symmetry.

Slopes of log(force MAE) against log(size) are fitted by least squares over all sizes and seeds. Intervals are the
middle 95 % of 10,000 bootstrap resamples of the seeds, the same for all networks; with five seeds they are somewhat too
narrow.

Every training uses one thread and writes its result to WORK_FOLDER; running the same command again resumes, even within
a training. The whole run takes about 50 minutes on two free cores. It prints the text of `data_efficiency.txt` and
draws `data_efficiency.png` beside this file (with --quick, in WORK_FOLDER).
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
    """All trainings of the benchmark.

    Attributes:
        data: Path of the extxyz file.
        work: Folder of stores, runs and results.
        sizes: Sizes of the training sets, ascending; each divides the last.
        seeds: Number of seeds.
        steps: Optimiser steps of each training.
    """

    data: Path
    work: Path
    sizes: tuple[int, ...]
    seeds: int
    steps: int

    def result(self, name: str, size: int, seed: int) -> Path:
        """Path of the result of a training."""
        return self.work / "results" / f"{name.replace(' ', '_').replace(',', '')}-{size}-{seed}.json"

    def training_store(self, size: int, seed: int) -> Path:
        """Path of the store of the training structures."""
        return self.work / "stores" / f"training-{size}-{seed}.zarr"

    @property
    def validation_store(self) -> Path:
        """Path of the store of the validation structures."""
        return self.work / "stores" / "validation.zarr"

    def jobs(self) -> list[tuple[str, int, int]]:
        """Network, size and seed of every training; all trainings of one seed come before those of the next."""
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
    """Rows of the pool, the validation set and the test set among `count` frames in time order."""
    early = np.arange(count - N_TEST - GAP)
    validation = early[:: len(early) // N_VALIDATION][:N_VALIDATION]
    return np.setdiff1d(early, validation), validation, np.arange(count - N_TEST, count)


def subsets(plan: Plan, size: int, seed: int) -> tuple[Frames, Frames, Frames]:
    """Training, validation and test frames; a training set contains all smaller ones of its seed."""
    frames = Frames.read(plan.data)
    pool, validation, test = divided(len(frames))
    chosen = np.random.default_rng(seed).permutation(pool)[:size]
    return frames.take(chosen), frames.take(validation), frames.take(test)


def make_store(frames: Frames, part: int, out: Path) -> None:
    """Write a graph store of frames, with `part` as a column to split by, unless it exists."""
    if out.exists():  # a store exists only once it is complete
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
    """Write all graph stores that the trainings read."""
    for seed in range(plan.seeds):
        for size in plan.sizes:
            training, validation, _ = subsets(plan, size, seed)
            make_store(training, 0, plan.training_store(size, seed))
            make_store(validation, 1, plan.validation_store)


def config_of(plan: Plan, name: str, seed: int) -> Config:
    """The configuration of a training; all keys not set here have their defaults."""
    largest = plan.sizes[-1]
    # The validation store has the later "time", whatever the share.
    split = {"by": "time", "key": "part", "validation": N_VALIDATION / (largest + N_VALIDATION)}
    training = {"seed": seed, "max_epochs": plan.steps * BATCH // largest, "batch_size": BATCH, "threads": 1}
    network = {**NETWORKS[name], "cutoff": CUTOFF, "correlation": 3}
    return Config.parse({"network": network, "training": {**training, "accelerator": "cpu", "split": split}}, name)


def evaluated(network: EquivariantNetwork, frames: Frames) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicted energies, float64[n] in eV, and forces, float64[n, n_atoms, 3] in eV/angstrom."""
    structures = [Structure.from_cartesian(frames.numbers, positions) for positions in frames.positions]
    found = TorchPotential(network).evaluate(GraphBlock.from_structures(structures, CUTOFF))
    return found.energy, found.forces.reshape(frames.forces.shape).astype(np.float64)


def tested(network: EquivariantNetwork, test: Frames, seed: int) -> dict[str, float]:
    """Errors on the test frames and on randomly rotated copies, and the largest difference of their forces."""
    rotations = Rotation.random(len(test), np.random.default_rng(seed))
    energy, forces = evaluated(network, test)
    _, rotated_forces = evaluated(network, test.rotated(rotations))
    # Rotated back: a mean over components depends on the axes, which should be those of the labels.
    back = rotated_forces @ rotations.as_matrix()
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
    """Train one network, or resume its training, and test it.

    Raises:
        SystemExit: The training used other sets or another number of steps than planned.
    """
    repeats = plan.sizes[-1] // size
    stores = [*[plan.training_store(size, seed)] * repeats, plan.validation_store]
    folder = plan.work / "runs" / plan.result(name, size, seed).stem
    finished = (folder / "model.ckpt").exists()  # but interrupted before the test: train again
    report = train(stores, folder, config_of(plan, name, seed), overwrite=finished)
    counts = (report.n_training, report.n_validation, report.epochs * report.n_training // BATCH)
    if counts != (repeats * size, N_VALIDATION, plan.steps):
        raise SystemExit(f"{folder}: training and validation structures, and steps, are {counts}, not as planned")
    network, _ = load_checkpoint(folder / "model.ckpt")
    return tested(network, subsets(plan, size, seed)[2], seed)


def run_one(plan: Plan, name: str, size: int, seed: int) -> None:
    """Run one training in this process and write its result."""
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
    """Everything that a result depends on, except the code."""
    model = (
        config_of(plan, name, seed).model_dump(mode="json") if name in NETWORKS else {"variant": list(VARIANTS[name])}
    )
    return {"sizes": list(plan.sizes), "steps": plan.steps, "batch": BATCH, **model}


def run_all(plan: Plan, processes: int) -> None:
    """Run all trainings that have no result yet.

    Raises:
        SystemExit: The folder has results with other settings.
    """
    (plan.work / "results").mkdir(parents=True, exist_ok=True)
    jobs = plan.jobs()
    for name, size, seed in jobs:
        out = plan.result(name, size, seed)
        if out.exists() and json.loads(out.read_text())["settings"] != settings(plan, name, seed):
            raise SystemExit(f"{out} has other settings; choose another --work")
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
    """Force MAE of a network, float64[n_seeds, n_sizes] in eV/angstrom."""
    return np.array([[results[name, size, seed]["forces"] for size in plan.sizes] for seed in range(plan.seeds)])


def interval(values: NDArray[np.float64]) -> str:
    """Mean over the seeds with its bootstrap interval; every call draws the same seeds."""
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(1), (2.5, 97.5))
    return f"{values.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def ratio(logarithms: NDArray[np.float64]) -> str:
    """Geometric mean of the ratios over the seeds, with its bootstrap interval."""
    drawn = np.random.default_rng(0).integers(len(logarithms), size=(RESAMPLES, len(logarithms)))
    low, high = np.exp(np.percentile(logarithms[drawn].mean(1), (2.5, 97.5)))
    return f"{np.exp(logarithms.mean()):.3f} [{low:.3f}, {high:.3f}]"


def print_networks(results: dict[tuple[str, int, int], dict[str, float]]) -> None:
    """Print parameters, operations and time of each network."""
    print(
        f"\n{'network':<10}{'hidden_irreps':<25}{'parameters':>11}{'MFLOP/molecule':>16}"
        f"{'s/training, mean':>18}{'longest':>9}"
    )
    for name, config in NETWORKS.items():
        runs = [result for (other, _, _), result in results.items() if other == name]
        seconds = [run["seconds"] for run in runs]
        print(
            f"{name:<10}{config['hidden_irreps']:<25}{runs[0]['parameters']:>11,}{runs[0]['flops'] / 1e6:>16.1f}"
            f"{np.mean(seconds):>18.0f}{max(seconds):>9.0f}"
        )


def print_errors(plan: Plan, results: dict[tuple[str, int, int], dict[str, float]]) -> None:
    """Print errors by size, slopes, their differences and the ratios at the largest size."""
    print("\nforce MAE on the test frames, meV/angstrom: mean (standard deviation) over seeds")
    print(f"{'structures':<12}" + "".join(f"{size:>16}" for size in plan.sizes))
    for name in NETWORKS:
        errors = 1e3 * errors_of(plan, results, name)
        columns = zip(errors.mean(0), errors.std(0, ddof=1), strict=True)
        print(f"{name:<12}" + "".join(f"{f'{mean:.1f} ({spread:.1f})':>16}" for mean, spread in columns))
    print("energy MAE, meV per molecule: mean over seeds")
    for name in NETWORKS:
        energy = [np.mean([results[name, size, seed]["energy"] for seed in range(plan.seeds)]) for size in plan.sizes]
        print(f"{name:<12}" + "".join(f"{1e3 * error:>16.1f}" for error in energy))
    slopes, logs = {}, {}
    for name in NETWORKS:
        logs[name] = np.log(errors_of(plan, results, name))
        # All seeds have the same sizes, so the slope through all points is the mean of their slopes.
        slopes[name] = np.polyfit(np.log(plan.sizes), logs[name].T, 1)[0]
    print("\nslope of log(force MAE) against log(structures), with 95 % interval")
    for name, slope in slopes.items():
        print(f"{name:<22}{interval(slope)}")
    print(f"difference of slopes, and ratio of errors at {plan.sizes[-1]} structures")
    for one, other in PAIRS:
        ends = ratio((logs[one] - logs[other])[:, -1])
        print(f"{f'{one}, {other}':<22}{interval(slopes[one] - slopes[other])}    {ends}")


def print_rotated(plan: Plan, results: dict[tuple[str, int, int], dict[str, float]]) -> None:
    """Print errors on the test frames and on rotated copies, of these networks and of the plain ones."""
    largest, frames = plan.sizes[-1], Frames.read(plan.data)
    test = frames.take(divided(len(frames))[2])
    print(f"\nforce MAE after {largest} structures, meV/angstrom: mean (standard deviation) over seeds")
    print("rotated copies: forces rotated back to the axes of the labels")
    print(f"{'':<38}{'parameters':>11}{'MFLOP':>8}{'test frames':>16}{'rotated copies':>16}")
    for name in (*VARIANTS, *NETWORKS):
        runs = [results[name, largest, seed] for seed in range(plan.seeds)]
        columns = [[1e3 * run[key] for run in runs] for key in ("forces", "forces_turned")]
        cells = "".join(f"{f'{np.mean(x):.1f} ({np.std(x, ddof=1):.1f})':>16}" for x in columns)
        print(f"{name:<38}{runs[0]['parameters']:>11,}{runs[0]['flops'] / 1e6:>8.2f}{cells}")
    print(f"{'zero forces':<57}{1e3 * np.abs(test.forces).mean():>16.1f}{'':>16}")
    violation = max(results[name, size, seed]["violation"] for name, size, seed in plan.jobs() if name in NETWORKS)
    print(
        f"largest deviation of a network's forces, rotated back, in any training: {violation:.1e} eV/angstrom (float32)"
    )
    print(f"rotation of the frames against the first, in degrees: {tumbling(frames)}; mean of random rotations: 126")


def draw(plan: Plan, results: dict[tuple[str, int, int], dict[str, float]], out: Path) -> None:
    """Draw errors against sizes: a point for every seed, a line through their geometric means."""
    import matplotlib as mpl  # noqa: PLC0415 - needed only here

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - needed only here
    from matplotlib.ticker import LogLocator, ScalarFormatter  # noqa: PLC0415 - needed only here

    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for (name, config), marker in zip(NETWORKS.items(), "osD^", strict=True):
        errors = 1e3 * errors_of(plan, results, name)
        (line,) = axes.plot(plan.sizes, np.exp(np.log(errors).mean(0)), label=f"{name}: {config['hidden_irreps']}")
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
    """Print date, machine, versions and configuration."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "torch", "lightning", "e3nn", "numpy"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, {packages}")
    count = len(Frames.read(plan.data))
    pool, validation, test = divided(count)
    print(
        f"{plan.data.name}: {count} frames; pool {len(pool)}, validation {len(validation)}, test: the last {len(test)} "
        f"after a gap of {GAP}; {plan.seeds} seeds"
    )
    config = config_of(plan, "l_max 2", 0).model_dump(mode="json")
    print(f"network: { ({'cutoff': CUTOFF, 'correlation': 3}) }; defaults for all keys but hidden_irreps and l_max")
    names = ("max_epochs", "batch_size", "learning_rate", "schedule", "ema_decay")
    shown = {name: config["training"][name] for name in names}
    weights = {name: config["training"]["loss"][name]["weight"] for name in ("energy", "forces")}
    print(f"training: {plan.steps} steps, {shown}, squared errors with weights {weights}; one thread")
    print(f"plain network: two hidden layers of {WIDTH}, trained by plain_network.py")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2560)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three sizes, two seeds, two epochs: a smoke test")
    arguments = parser.parse_args()
    sizes, seeds, steps = (20, 40, 80, 160, 320), arguments.seeds, arguments.steps
    if arguments.quick:
        sizes, seeds, steps = (20, 40, 80), 2, 2 * 80 // BATCH
    if seeds < 2 or steps % (sizes[-1] // BATCH):
        parser.error(f"use at least two seeds, and a multiple of {sizes[-1] // BATCH} steps")
    plan = Plan(arguments.data / "acac/train_300K.xyz", arguments.work, sizes, seeds, steps)
    run_all(plan, arguments.jobs)
    results = gathered(plan)
    print_head(plan)
    print_networks(results)
    print_errors(plan, results)
    print_rotated(plan, results)
    draw(plan, results, (plan.work if arguments.quick else Path(__file__).parent) / "data_efficiency.png")


if __name__ == "__main__":
    main()
