"""Error of predicted formation energies against the number of training structures, on unseen formulas.

    python tests/benchmarks/formation_energy.py DATA_FOLDER --work FOLDER [--jobs 2] [--sizes 600 1200 2400 4800 0]
        [--passes 150000] [--quick]

The crystals are those of mp_20_val.csv.gz and mpts_52_val.csv.gz (Materials Project, CC-BY-4.0; the splits of the
WyckoffTransformer repository), with duplicates removed. The split is by formula, not by structure (`split: {by:
composition}`): a tenth of the crystals is the test set and a twentieth the validation set, both the same for all sizes.
The training sets are the first crystals of one random order of the rest, so that each contains the smaller ones; size 0
stands for all. Validation and test crystals with an element that the smallest training set lacks are excluded for all
sizes.

Every size trains on about the same number of structures in total, --passes of them, but for no more than 200 epochs;
the weights with the smallest validation error are kept. Some crystals lie above +1 eV/atom, where stable ones never
are: none is dropped, the loss is Huber's, and errors are given with and without them. The baselines are the mean of the
training set and a linear regression on the element fractions (ridge, 1e-3 of a structure). Intervals are the middle 95
% of 2,000 bootstrap resamples of the test crystals, the same for all sizes; they include neither the spread over
training sets nor the spread over initial weights.

Every training writes a run folder and a JSON file to --work; running the same command again skips finished trainings
and resumes interrupted ones. --quick is a smoke test whose results mean nothing. Prints the text of
`formation_energy.txt` and draws `formation_energy.png` (with --quick, in --work).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import yaml
from equiscreen.model import load_checkpoint
from equiscreen.model.config.training import SplitConfig
from equiscreen.model.data.splits import split_structures
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphBlock, GraphStore, LabelMapping, featurize
from matplotlib import pyplot as plt
from numpy.typing import NDArray

LABEL = "formation_energy"
COLUMN = f"{LABEL}_per_atom"
SOURCES = ("mp/mp_20_val.csv.gz", "mp/mpts_52_val.csv.gz")
SPLIT = SplitConfig(by="composition", validation=0.05, test=0.1)
NETWORK = {"preset": "medium", "cutoff": 5.0, "energy": False}
TRAINING = {"batch_size": 16, "learning_rate": 5e-3, "threads": 1, "accelerator": "cpu"}
LOSS = {"kind": "huber", "delta": 0.1}  # in units of the residual of the regression on element fractions
MAX_EPOCHS = 200
BOUND = 1.0  # eV/atom
RIDGE = 1e-3
RESAMPLES = 2_000
TRAIN, VALIDATE, TEST = "0", "1", "2"  # values of the column `part`, in the order of `split: {by: time}`


@dataclass(frozen=True, slots=True)
class Training:
    """One run of `equiscreen train`.

    Attributes:
        name: Name of the run folder.
        store: Path of the graph store.
        config: Content of the configuration file.
    """

    name: str
    store: Path
    config: dict[str, Any]


def header() -> str:
    """Date, machine and versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "torch", "e3nn", "numpy"))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread per training"
    return f"{datetime.now(UTC):%Y-%m-%d}, {machine}, Python {platform.python_version()}, {packages}"


def train_all(trainings: Sequence[Training], work: Path, jobs: int) -> list[dict[str, Any]]:
    """Run all unfinished trainings, `jobs` at a time, each in a process with one thread.

    Returns:
        The record of each training: configuration, epochs, seconds, number of parameters.

    Raises:
        SystemExit: A training failed, or the folder has a different training of the same name.
    """
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda training: _train(training, work), trainings))


def _train(training: Training, work: Path) -> dict[str, Any]:
    folder, record = work / training.name, work / f"{training.name}.json"
    inputs = {"config": training.config, "store": GraphStore(training.store).store_hash}
    if record.exists():
        known: dict[str, Any] = json.loads(record.read_text())
        if {name: known[name] for name in inputs} != inputs:
            raise SystemExit(f"{record} belongs to another training; choose another --work, or remove it and {folder}")
        return known
    settings = work / f"{training.name}.yaml"
    if not (folder / "model.ckpt").exists():
        settings.write_text(yaml.safe_dump(training.config))
        command = [sys.executable, "-m", "equiscreen", "train", training.store, "--out", folder, "--config", settings]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{training.name}: {done.stderr[-4000:]}")
    with (folder / "metrics.csv").open(newline="") as file:
        seconds = [float(row["training/seconds"]) for row in csv.DictReader(file)]
    network, _ = load_checkpoint(folder / "model.ckpt")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    found = {**inputs, "epochs": len(seconds), "seconds": sum(seconds), "parameters": parameters}
    scratch = record.with_suffix(".tmp")
    scratch.write_text(json.dumps(found, indent=1))
    scratch.rename(record)
    print(f"  {training.name}: {len(seconds)} epochs in {sum(seconds):.0f} s", file=sys.stderr, flush=True)
    return found


def distinct_crystals(data: Path, work: Path) -> GraphStore:
    """A graph store of both files, without duplicate crystals."""
    out = work / "all.zarr"
    if not out.exists():
        mapping = LabelMapping().with_inline([f"{LABEL}={COLUMN}[eV]"])
        sources = [data / source for source in SOURCES]
        featurize(sources, out, cutoff=5.0, labels=mapping, dedup="crystal", scheduler="threads")
    return GraphStore(out)


def shares(block: GraphBlock) -> NDArray[np.float64]:
    """Element fractions of each structure, float64[n, 119]."""
    flat = block.atom_structure * 119 + block.atomic_number
    counts = np.bincount(flat, minlength=len(block) * 119).reshape(len(block), 119)
    found: NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return found


@dataclass(frozen=True, slots=True)
class Curve:
    """Structures of a learning curve, as rows of the store of `distinct_crystals`.

    Attributes:
        sizes: Sizes of the training sets, ascending.
        order: Training structures, int64[largest size]; each training set is the start of it.
        validation, test: Rows of the held-out structures, int64[n].
        excluded: Number of held-out crystals with an element that the smallest training set lacks.
    """

    sizes: tuple[int, ...]
    order: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    excluded: int


def make_curve(store: GraphStore, sizes: Sequence[int]) -> Curve:
    """Split the crystals; deterministic for a given store and sizes."""
    split = split_structures([store], [np.isfinite(store.column(LABEL))], SPLIT)
    order = np.random.default_rng(0).permutation(np.flatnonzero(split.training[0]))
    known = tuple(sorted({min(size or len(order), len(order)) for size in sizes}))
    present = shares(store.block(0, len(store), labels=False)) > 0
    elements = present[order[: known[0]]].any(axis=0)
    fine = ~(present & ~elements).any(axis=1)
    held_out = [np.flatnonzero(chosen[0] & fine) for chosen in (split.validation, split.test)]
    excluded = int((split.validation[0] | split.test[0]).sum()) - sum(map(len, held_out))
    return Curve(known, order[: known[-1]], *held_out, excluded)


def make_store(data: Path, work: Path, base: GraphStore, curve: Curve) -> GraphStore:
    """A store with one label per training set, defined only for its structures and the held-out ones."""
    out = work / f"curve-{'-'.join(map(str, curve.sizes))}.zarr"
    if not out.exists():
        rows = np.concatenate([curve.order, curve.validation, curve.test])
        tables = {str(data / source): pd.read_csv(data / source) for source in SOURCES}
        places = zip(base.column("source")[rows].tolist(), base.column("source_index")[rows].tolist(), strict=True)
        columns: dict[str, Any] = {"cif": [tables[source].cif[place] for source, place in places]}
        columns["row"] = [str(row) for row in rows.tolist()]
        lengths = [len(curve.order), len(curve.validation), len(curve.test)]
        columns["part"] = np.repeat([TRAIN, VALIDATE, TEST], lengths)
        for size in curve.sizes:
            label = base.column(LABEL)[rows]
            label[size : len(curve.order)] = np.nan
            columns[f"{LABEL}_{size}"] = label
        pd.DataFrame(columns).to_parquet(source := out.with_suffix(".parquet"), index=False)
        labels = [f"{LABEL}_{size}={LABEL}_{size}[eV]" for size in curve.sizes]
        mapping = LabelMapping().with_inline(labels, ["part"])
        report = featurize(source, out, cutoff=5.0, labels=mapping, id_field="row", scheduler="threads")
        if report.stored != len(rows):
            raise SystemExit(f"{report}: {len(rows):,} structures were written, and all of them should be stored")
    return GraphStore(out)


def make_training(arguments: argparse.Namespace, curve: Curve, store: Path, size: int) -> Training:
    """The training of a network for one size; the column `part` marks the held-out structures."""
    total = size + len(curve.validation) + len(curve.test)
    epochs = max(1, min(MAX_EPOCHS, round(arguments.passes / size)))
    split = {"by": "time", "key": "part", "validation": len(curve.validation) / total, "test": len(curve.test) / total}
    network = {**NETWORK, "heads": {LABEL: {"label": f"{LABEL}_{size}"}}}
    training = {**TRAINING, "max_epochs": epochs, "split": split, "loss": {"heads": {LABEL: LOSS}}}
    return Training(f"size-{size}", store, {"network": network, "training": training})


def linear(shares: NDArray[np.float64], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Energy per atom of each element, float64[119], by ridge regression around the mean."""
    normal = shares.T @ shares + RIDGE * np.eye(shares.shape[1])
    found: NDArray[np.float64] = labels.mean() + np.linalg.solve(normal, shares.T @ (labels - labels.mean()))
    return found


def test_errors(store: GraphStore, work: Path, size: int) -> dict[str, NDArray[np.float64]]:
    """Errors of each predictor on the test structures, eV/atom.

    Raises:
        SystemExit: The network was trained or tested on the wrong structures.
    """
    part, known = store.column("part"), np.isfinite(store.column(f"{LABEL}_{size}"))
    chosen, test = (np.flatnonzero(known & (part == name)) for name in (TRAIN, TEST))
    run = work / f"size-{size}"
    split = np.load(run / "split.npz")
    if not (np.array_equal(split["training_0"], chosen) and np.array_equal(split["test_0"], test)):
        raise SystemExit(f"{run} was trained or tested on the wrong structures; choose another --work")
    labels = store.column(f"{LABEL}_{size}")
    block = store.block(0, len(store), labels=False)
    composition = shares(block)
    network, _ = load_checkpoint(run / "model.ckpt")
    found = {
        "mean": np.full(len(test), labels[chosen].mean()),
        "linear": composition[test] @ linear(composition[chosen], labels[chosen]),
        "network": TorchPotential(network).evaluate(block.take(test)).properties[LABEL],
    }
    return {name: values - labels[test] for name, values in found.items()}


def interval(samples: NDArray[np.float64]) -> str:
    """The middle 95 % of the samples, as text."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return f"[{low:.3g}, {high:.3g}]"


def print_curve(curve: Curve, errors: Sequence[dict[str, NDArray[np.float64]]], label: NDArray[np.float64]) -> None:
    """Print a line for each size, and the slope."""
    usual = label <= BOUND
    picks = np.random.default_rng(0).integers(len(label), size=(RESAMPLES, len(label)))
    print("MAE on the test crystals, meV/atom (median of the network: half of the errors are smaller)")
    print(f"{'training':>9}{'mean':>8}{'linear':>8}{'network':>9}{'95 %':>14}{'median':>8}{'without outliers':>18}")
    resampled = []
    for size, found in zip(curve.sizes, errors, strict=True):
        absolute = {name: 1e3 * np.abs(values) for name, values in found.items()}
        network = absolute["network"]
        resampled.append(network[picks].mean(axis=1))
        print(
            f"{size:>9,}{absolute['mean'].mean():>8.0f}{absolute['linear'].mean():>8.0f}{network.mean():>9.1f}"
            f"{interval(resampled[-1]):>14}{np.median(network):>8.1f}{network[usual].mean():>18.1f}"
        )
    if len(curve.sizes) > 1:
        slopes = np.polyfit(np.log(curve.sizes), np.log(resampled), 1)[0]
        means = [np.abs(found["network"]).mean() for found in errors]
        slope = np.polyfit(np.log(curve.sizes), np.log(means), 1)[0]
        print(f"slope of log(MAE) against log(size): {slope:.3f} {interval(slopes)}")


def draw(
    path: Path, curve: Curve, errors: Sequence[dict[str, NDArray[np.float64]]], label: NDArray[np.float64]
) -> None:
    """Draw the learning curve, and the predictions after the largest training set against the labels."""
    mpl.use("Agg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.8), layout="constrained")
    for name, marker in (("mean", "^"), ("linear", "s"), ("network", "o")):
        means = [1e3 * np.abs(found[name]).mean() for found in errors]
        left.loglog(curve.sizes, means, marker=marker, label=name)
    left.set(xlabel="training structures", ylabel="test MAE (meV/atom)")
    left.set_xticks(curve.sizes, [f"{size:,}" for size in curve.sizes])
    left.set_xticks([], minor=True)
    left.yaxis.set_major_formatter("{x:.0f}")
    left.yaxis.set_minor_formatter("{x:.0f}")
    left.legend(frameon=False)
    left.grid(which="both", alpha=0.25)
    right.plot(label, label + errors[-1]["network"], ".", ms=3, alpha=0.5, rasterized=True)
    ends = [label.min(), label.max()]
    right.plot(ends, ends, color="black", lw=0.8)
    right.set(xlabel="formation energy (eV/atom)", ylabel=f"predicted, {curve.sizes[-1]:,} training structures")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=[600, 1200, 2400, 4800, 0])
    parser.add_argument("--passes", type=int, default=150_000)
    parser.add_argument("--quick", action="store_true", help="a smoke test with two tiny sizes")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.passes = [300, 600], 1200
    arguments.work.mkdir(parents=True, exist_ok=True)
    base = distinct_crystals(arguments.data, arguments.work)
    curve = make_curve(base, arguments.sizes)
    store = make_store(arguments.data, arguments.work, base, curve)
    # The largest takes longest and goes first.
    trainings = [make_training(arguments, curve, Path(store.path), size) for size in curve.sizes]
    records = train_all(trainings[::-1], arguments.work, arguments.jobs)[::-1]
    print(header())
    label = store.column(f"{LABEL}_{curve.sizes[0]}")
    counts = ", ".join(f"{count:,} {name}" for name, count in base.attrs["counts"].items())
    print(f"{' + '.join(SOURCES)}: {counts}")
    everything = base.column(LABEL)
    print(f"formation energies of {everything.min():.2f} to {everything.max():.2f} eV/atom")
    test = label[store.column("part") == TEST]
    print(
        f"test {len(test):,} and validation {len(curve.validation):,} crystals, with formulas that are in no training "
        f"set; {curve.excluded} held-out crystals have elements that the smallest training set lacks"
    )
    print(
        f"above {BOUND} eV/atom: {(everything > BOUND).sum()} crystals in total, {(test > BOUND).sum()} in the test set"
    )
    print(f"network: {json.dumps(NETWORK)}, {records[-1]['parameters']:,} parameters; training: {json.dumps(TRAINING)}")
    for size, record in zip(curve.sizes, records, strict=True):
        print(f"  {size:>6,} structures: {record['epochs']} epochs, {record['seconds']:.0f} s")
    errors = [test_errors(store, arguments.work, size) for size in curve.sizes]
    print_curve(curve, errors, test)
    place = arguments.work if arguments.quick else Path(__file__).parent
    draw(place / "formation_energy.png", curve, errors, test)


if __name__ == "__main__":
    main()
