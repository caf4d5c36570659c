"""Structures per second of `train`, and of SevenNet's own trainer on the same structures, on the CPU.

    python -m venv VENV && VENV/bin/pip install torch==2.13.0 && VENV/bin/pip install sevenn torch==2.13.0
    python tests/benchmarks/training_rate.py DATA_FOLDER --peer-python VENV/bin/python [--element Si]
        [--network NETWORK.yaml] [--batch-sizes 4 8 16] [--epochs 4] [--rounds 2] [--threads 2] [--scratch FOLDER]

SevenNet (Park et al., J. Chem. Theory Comput. 20, 4857 (2024); MIT) is installed in an environment of its own. Both
train through their own command, alternating, in a new process each time, with the same structures and labels (an mlearn
file, Zuo et al. 2020), cutoff, batch size, number of threads, float32, mean squared errors of energy per atom, forces
and stress with the same ratios of weights, Adam with the same learning rate, and a new order in every epoch. An epoch
is a pass through all batches: making the batch, network, forces and stress, gradients, optimizer. For equiscreen its
time is the column `training/seconds` of the log; for SevenNet it is the time of an epoch in its log, which here covers
the same work: there is no validation set, one error is recorded and no checkpoint is written. The first epoch of a
process does not count; of the others, the fastest of all rounds counts, since the machine may be busy with other
things.

The architectures differ, so SevenNet is measured in three shapes, all with equiscreen's number of interactions, degree
of harmonics and number of radial functions: with equiscreen's atom features; with twice as many of each; and with those
of its own preset `base`, which has the same number of channels for every degree and a wider radial network. Features
that only one of the two has are left on: products of the density up to the correlation order in equiscreen, gates and a
radial weight for every path and edge in SevenNet. The numbers of parameters are printed with the times. --network
replaces equiscreen's default network (its section `network` as YAML); `{correlation: 1, nonlinearity: gate}` is closest
to SevenNet. The time of the whole process is printed as a check: it includes the neighbour lists for SevenNet, and a
validation of a few structures for equiscreen. The benchmark takes about ten minutes and prints the text of
`training_rate.txt`.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from e3nn import o3
from equiscreen.model import load_checkpoint
from equiscreen.model.config.network import NetworkConfig
from equiscreen.model.config.training import LossConfig
from equiscreen.pipeline import GraphBlock, GraphStore

OURS = "equiscreen"
CUTOFF = 5.0
LEARNING_RATE = 1e-2
VALIDATION = 0.02  # equiscreen always validates; its training/seconds exclude that
KBAR_PER_EV_PER_CUBIC_ANGSTROM = 1602.1766208  # as in sevenn.train.loss
_EPOCH = re.compile(r"^Epoch \d+ elapsed: (\d+):(\d+):(\d+(?:\.\d+)?)", re.MULTILINE)
_PARAMETERS = re.compile(r"# learnable parameters: (\d+)")
_PEER_VERSIONS = "from importlib.metadata import version as v; print(f\"sevenn {v('sevenn')}, torch {v('torch')}\")"


@dataclass(frozen=True, slots=True)
class Trained:
    """One training.

    Attributes:
        seconds: Run time of the whole process.
        epochs: Seconds of each epoch.
        parameters: Number of trained parameters.
    """

    seconds: float
    epochs: list[float]
    parameters: int


def run(command: list[str | Path], threads: int) -> float:
    """Run a command with this many threads and without a GPU; returns its run time in seconds."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    begin = time.perf_counter()
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return time.perf_counter() - begin


def our_config(network: dict[str, Any], batch_size: int, epochs: int, threads: int) -> dict[str, Any]:
    """The configuration of a training; all keys that the comparison does not need have their defaults."""
    training = {"batch_size": batch_size, "max_epochs": epochs, "threads": threads, "accelerator": "cpu"}
    training |= {"learning_rate": LEARNING_RATE, "split": {"validation": VALIDATION}}
    return {"network": {**network, "cutoff": CUTOFF}, "training": training}


def train_ours(store: Path, folder: Path, config: dict[str, Any]) -> Trained:
    """Train once with `equiscreen train`; the run folder is `folder` / run."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command: list[str | Path] = [sys.executable, "-m", "equiscreen", "train", store, "--out", folder / "run"]
    seconds = run([*command, "--config", folder / "config.yaml"], config["training"]["threads"])
    with next((folder / "run").rglob("metrics.csv")).open(newline="") as file:
        rows = [row["training/seconds"] for row in csv.DictReader(file)]
    network, _ = load_checkpoint(folder / "run/model.ckpt")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Trained(seconds, [float(value) for value in rows if value], parameters)


def peer_shapes(network: NetworkConfig) -> dict[str, dict[str, Any]]:
    """The keys of SevenNet's section `model` that differ between its shapes, by the shape's name.

    Irreps are those after the embedding and after each interaction; the last one leaves scalars, as in equiscreen.
    """
    shapes = {}
    for name, times in (("SevenNet, same features", 1), ("SevenNet, twice as many", 2)):
        hidden = o3.Irreps([(mul * times, ir) for mul, ir in o3.Irreps(network.hidden_irreps)])
        scalars = f"{hidden.count('0e')}x0e"
        irreps = [scalars, *[str(hidden)] * (network.n_interactions - 1), scalars]
        hidden_neurons = [network.radial_hidden]
        shapes[name] = {"is_parity": True, "irreps_manual": irreps, "weight_nn_hidden_neurons": hidden_neurons}
    shapes["SevenNet, as in its preset"] = {"is_parity": False, "weight_nn_hidden_neurons": [64, 64]}
    return shapes


def peer_config(network: NetworkConfig, shape: dict[str, Any], batch_size: int, epochs: int) -> dict[str, Any]:
    """Content of SevenNet's input.yaml; all other keys have its defaults."""
    channels = o3.Irreps(network.hidden_irreps).count("0e")
    model = {"chemical_species": "Auto", "cutoff": CUTOFF, "channel": channels, "lmax": network.l_max}
    model |= {"num_convolution_layer": network.n_interactions, **shape}
    model |= {"radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": network.n_basis}}
    model |= {
        "cutoff_function": {"cutoff_function_name": "poly_cut", "poly_cut_p_value": network.envelope_power},
        "act_gate": {"e": "silu", "o": "tanh"},
        "act_scalar": {"e": "silu", "o": "tanh"},
    }
    loss = LossConfig()
    kbar = KBAR_PER_EV_PER_CUBIC_ANGSTROM**2
    train = {"random_seed": 1, "epoch": epochs, "is_train_stress": True, "train_shuffle": True}
    train |= {"optimizer": "adam", "optim_param": {"lr": LEARNING_RATE}}
    train |= {
        "scheduler": "exponentiallr",
        "scheduler_param": {"gamma": 0.99},
        "loss": "mse",
        "force_loss_weight": loss.forces.weight / loss.energy.weight,
        "stress_loss_weight": loss.stress.weight / loss.energy.weight / kbar,
        "error_record": [["TotalLoss", "None"]],
        "per_epoch": epochs + 1,
    }
    data = {"batch_size": batch_size, "data_format_args": {"index": ":"}}
    return {"model": model, "train": train, "data": data}


def train_peer(python: Path, data: Path, folder: Path, config: dict[str, Any], threads: int, n_edges: int) -> Trained:
    """Train once with `sevenn train`.

    Raises:
        SystemExit: Its graphs have a different number of edges from ours.
    """
    folder.mkdir()
    config = {**config, "data": {**config["data"], "load_trainset_path": [str(data)]}}
    (folder / "input.yaml").write_text(yaml.safe_dump(config))
    command: list[str | Path] = [python, "-m", "sevenn.main.sevenn", "train", folder / "input.yaml", "-w", folder]
    seconds = run(command, threads)
    neighbors = yaml.safe_load((folder / "sevenn_data/trainset.yaml").read_text())["statistics"]["num_neighbor"]
    theirs = neighbors["mean"] * neighbors["count"]
    if abs(theirs - n_edges) > 1e-5 * n_edges:  # the mean is a sum in float32
        raise SystemExit(f"SevenNet's graphs have {theirs:,.0f} edges, ours {n_edges:,}")
    log = (folder / "log.sevenn").read_text()
    times = _EPOCH.findall(log)
    epochs = [3600 * int(hours) + 60 * int(minutes) + float(rest) for hours, minutes, rest in times]
    return Trained(seconds, epochs, int(_PARAMETERS.findall(log)[0]))


def write_extxyz(block: GraphBlock, out: Path) -> None:
    """Write structures with labels in ASE's conventions; SevenNet converts the sign of stress itself."""
    frames = []
    for index, first in enumerate(block.atom_start):
        labels = {"energy": float(block.structure_labels["energy"][index])}
        labels["forces"] = block.atom_labels["forces"][first : first + block.n_atoms[index]]
        stress = block.structure_labels["stress"][index]
        if np.isfinite(stress).all():
            labels["stress"] = stress
        atoms = block.structure(index).to_ase()
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    ase.io.write(out, frames, format="extxyz")


def training_block(store: Path, run_folder: Path) -> GraphBlock:
    """The training structures of an equiscreen run."""
    graphs = GraphStore(store)
    return graphs.block(0, len(graphs)).take(np.load(run_folder / "split.npz")["training_0"])


def featurized(arguments: argparse.Namespace, folder: Path) -> Path:
    """Featurize an mlearn file; returns the path of the graph store."""
    source, store = arguments.data / f"mlearn/{arguments.element}.json.gz", folder / "graphs.zarr"
    command: list[str | Path] = [sys.executable, "-m", "equiscreen", "featurize", source, "--labels", "mlearn"]
    run([*command, "--cutoff", str(CUTOFF), "--scheduler", "threads", "--out", store], arguments.threads)
    return store


def measure(
    arguments: argparse.Namespace, network_config: dict[str, Any], folder: Path
) -> tuple[dict[tuple[str, int], list[Trained]], GraphBlock]:
    """Run all trainings; returns them by trainer and batch size, and the training structures."""
    store = featurized(arguments, folder)
    network = NetworkConfig.model_validate({**network_config, "cutoff": CUTOFF})
    done: dict[tuple[str, int], list[Trained]] = {}
    block: GraphBlock | None = None
    for turn in range(arguments.rounds):
        for size in arguments.batch_sizes:
            here = folder / f"equiscreen-{turn}-{size}"
            config = our_config(network_config, size, arguments.epochs, arguments.threads)
            done.setdefault((OURS, size), []).append(train_ours(store, here, config))
            if block is None:
                block = training_block(store, here / "run")
                write_extxyz(block, folder / "train.extxyz")
            for name, shape in peer_shapes(network).items():
                inputs = peer_config(network, shape, size, arguments.epochs)
                place = folder / f"{name.replace(' ', '-')}-{turn}-{size}"
                n_edges = int(block.n_edges.sum())
                data = folder / "train.extxyz"
                trained = train_peer(arguments.peer_python, data, place, inputs, arguments.threads, n_edges)
                done.setdefault((name, size), []).append(trained)
    if block is None:
        raise SystemExit("nothing to measure: use at least one round and one batch size")
    return done, block


def print_rates(done: dict[tuple[str, int], list[Trained]], block: GraphBlock) -> None:
    """Print a line for each trainer and batch size, and the ratios."""
    best = {key: min(s for trained in runs for s in trained.epochs[1:]) for key, runs in done.items()}
    print(f"{'':<26}{'parameters':>10}{'batch':>7}{'s/epoch':>9}{'structures/s':>14}{'edges/s':>10}{'process, s':>12}")
    for (name, size), runs in done.items():
        seconds = best[name, size]
        whole = min(trained.seconds for trained in runs)
        rates = f"{len(block) / seconds:>14.1f}{block.n_edges.sum() / seconds:>10,.0f}"
        print(f"{name:<26}{runs[0].parameters:>10,}{size:>7}{seconds:>9.2f}{rates}{whole:>12.1f}")
    sizes = sorted({size for _, size in done})
    print(f"{'ratio to':<26}" + "".join(f"{f'batch {size}':>10}" for size in sizes) + f"{'best to best':>14}")
    for name in dict.fromkeys(name for name, _ in done if name != OURS):
        ratios = "".join(f"{best[name, size] / best[OURS, size]:>10.2f}" for size in sizes)
        overall = min(best[name, size] for size in sizes) / min(best[OURS, size] for size in sizes)
        print(f"{name:<26}{ratios}{overall:>14.2f}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--element", default="Si")
    parser.add_argument("--network", type=Path)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    if arguments.epochs < 2:
        parser.error("--epochs must be at least 2: the first epoch does not count")
    network_config = yaml.safe_load(arguments.network.read_text()) if arguments.network else {}
    versions = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "torch", "lightning"))
    theirs = subprocess.run([arguments.peer_python, "-c", _PEER_VERSIONS], check=True, capture_output=True, text=True)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, {versions}")
    print(f"SevenNet: {theirs.stdout.strip()}; {arguments.threads} threads, CPU", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        done, block = measure(arguments, network_config, Path(name))
    network = NetworkConfig.model_validate({**network_config, "cutoff": CUTOFF})
    first = arguments.batch_sizes[0]
    print(
        f"mlearn {arguments.element}: trained on {len(block)} structures, {len(block.atomic_number):,} atoms, "
        f"{int(block.n_edges.sum()):,} edges within {CUTOFF} angstrom; fastest of {arguments.rounds} x "
        f"{arguments.epochs - 1} epochs"
    )
    print(f"equiscreen: {our_config(network_config, first, arguments.epochs, arguments.threads)}")
    print(f"  network: {network.hidden_irreps}, {network.model_dump(exclude={'hidden_irreps', 'heads'})}")
    for shape_name, shape in peer_shapes(network).items():
        print(f"{shape_name}: {shape}")
    common = peer_config(network, {}, first, arguments.epochs)
    print(f"  all shapes: {common}\n")
    print_rates(done, block)


if __name__ == "__main__":
    main()
