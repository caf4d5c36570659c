"""Everything that is to be known about a GPU, in one command; please send back what it prints.

    python tests/benchmarks/gpu.py [--device cuda] [--model 7net-0] [--structures 10000] [--relaxations 10000]
        [--steps 50] [--slots 2048 8192 32768 131072] [--scratch FOLDER]

The structures are random alloys of the demo, so no data are needed. `--model` is a name, a checkpoint or an ONNX file.
Every section runs even if an earlier one fails, and prints why it failed:

- placement: nodes on the GPU, shape arithmetic on the CPU, and any node or copy that should not be there
- parity: largest differences from the CPU on the batch that the file holds, and between two runs
- structures/s and atoms/s of energies, forces and stresses for each number of slots, on the GPU and on one CPU thread,
  whose own differences are printed as well
- relaxations/s, with the default settings of `equiscreen relax`
- steps/s of training, with the preset `medium` and random labels
- memory: most memory in use, of the whole GPU by nvidia-smi, or of this process on a CPU

With `--device cpu` the script measures the CPU only.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from equiscreen.campaigns.models.resolve import model_file
from equiscreen.demo.alloys import make_alloy, prototypes
from equiscreen.export import OnnxPotential
from equiscreen.export.runtime.batching import evaluate_batches
from equiscreen.export.runtime.placement import CPU_PROVIDER, finished_placement
from equiscreen.export.runtime.probe_batch import ProbeBatch, differences
from equiscreen.pipeline import GraphBlock, GraphStore, Structure, featurize
from equiscreen.screening import relax_structures
from equiscreen.screening.relaxation.batched import OK

PACKAGES = ("equiscreen", "onnxruntime-gpu", "onnxruntime", "torch", "numpy")
SEED = 7
COMPARED = 200  # structures that are also evaluated on the CPU
RATTLE = 0.05  # angstrom
TRAINED, BATCH_SIZE = 128, 16
QUERY = "nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used --format=csv,noheader,nounits"


def header() -> None:
    """Print date, machine, GPU and versions."""
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}, {', '.join(versions)}")
    print("GPU: " + ("; ".join(",".join(row[:3]) for row in gpus()) or "none (no nvidia-smi)"), flush=True)


def gpus() -> list[list[str]]:
    """Name, driver, total memory and used memory (MiB) of each GPU; nothing without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(QUERY.split(), check=False, capture_output=True, text=True)
    return [line.split(",") for line in done.stdout.splitlines()] if done.returncode == 0 else []


class Memory:
    """The most memory in use, sampled twice a second on a GPU."""

    def __init__(self, device: str) -> None:
        self.device, self.most, self.ended = device, 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        if device != "cpu":
            self.thread.start()

    def _watch(self) -> None:
        while not self.ended.wait(0.5):
            self.most = max([self.most, *(int(row[3]) for row in gpus())])

    def __str__(self) -> str:
        if self.device == "cpu":
            return f"memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB"
        return f"memory of the fullest GPU: {self.most:,} MiB"


@contextmanager
def section(name: str) -> Iterator[None]:
    """Print the name of a section, and the reason if it fails."""
    print(f"\n{name}", flush=True)
    try:
        yield
    except Exception:  # noqa: BLE001 - the other sections are wanted all the same
        print(f"FAILED\n{traceback.format_exc(limit=-3)}", flush=True)


def alloys(count: int, rattle: float = 0.0) -> list[Structure]:
    """Random alloys of the demo, with normally distributed displacements."""
    library = prototypes()
    names, made = sorted(library), []
    for number in range(count):
        rng = np.random.default_rng((SEED, number))
        atoms = make_alloy(library[names[number % len(names)]], rng)
        atoms.positions += rng.normal(0.0, rattle, atoms.positions.shape)
        made.append(Structure.from_ase(atoms))
    return made


def placement_and_parity(model: Path, device: str) -> None:
    """Load the model on the device, which checks placement, determinism and parity, and print what was found."""
    potential = OnnxPotential.load(model, threads=1, device=f"{device}+cpu" if device != "cpu" else device)
    placement = potential.placement or cpu_placement(model)
    print(
        f"placement: {placement.on_device} nodes on {device}, {placement.shape_arithmetic} of shape arithmetic on the "
        f"CPU, {len(placement.misplaced)} misplaced"
    )
    for node in placement.misplaced:
        print(f"  {node.provider}: {node}")
    found = potential.gpu_differences
    if not found and potential.metadata.probe_batch is not None:
        found = ProbeBatch.from_json(potential.metadata.probe_batch, str(model)).check(potential, str(model), device)
    print("parity: " + (", ".join(f"{name} {value:.1e}" for name, value in found.items()) or "no batch in the file"))
    print("determinism: two runs are equal to the last bit" if found else "determinism: not checked")


def cpu_placement(model: Path):  # noqa: ANN201 - a Placement
    """Placement of a run on the CPU, where all nodes belong to the CPU."""
    import onnxruntime  # noqa: PLC0415 - only for this
    from equiscreen.pipeline.graphs.neighbor_table import neighbor_table  # noqa: PLC0415

    potential = OnnxPotential.load(model, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model.read_bytes(), options, providers=[CPU_PROVIDER])
        block = GraphBlock.from_structures(alloys(2), potential.cutoff)
        table = neighbor_table(block, potential.cutoff, np.dtype(potential.metadata.dtype)).arrays()
        session.run(None, {item.name: table[item.name] for item in session.get_inputs()})
        return finished_placement(session, CPU_PROVIDER)


def evaluation(model: Path, device: str, structures: Sequence[Structure], slots: Sequence[int]) -> None:
    """Print rates of evaluations, and differences between device and CPU."""
    on_cpu = OnnxPotential.load(model, threads=1)
    block = GraphBlock.from_structures(structures, on_cpu.cutoff)
    few = block.between(0, min(COMPARED, len(block)))
    begin = time.perf_counter()
    expected = on_cpu.evaluate(few)
    seconds = time.perf_counter() - begin
    print(f"{len(block):,} alloys, {len(block.atomic_number):,} atoms, {int(block.n_edges.sum()):,} edges")
    print(f"{'device':<10}{'slots':>9}{'structures/s':>14}{'atoms/s':>12}{'edges/s':>13}  differences from the CPU")
    print(f"{'one core':<10}{on_cpu.slots:>9,}{rates(few, seconds)}")
    for size in (None, *slots):  # first the automatic size
        potential = OnnxPotential.load(model, threads=1, slots=size, device=device)
        found = potential.evaluate(few)  # also warms up
        begin = time.perf_counter()
        for _, result in evaluate_batches(block, np.arange(len(block)), potential):
            if result is None:
                raise MemoryError("a structure does not fit into memory")
        seconds = time.perf_counter() - begin
        off = differences(found.arrays(), expected.arrays(), few, ("energy", "forces", "stress"))
        listed = ", ".join(f"{name} {value:.1e}" for name, value in off.items())
        print(f"{device:<10}{potential.slots:>9,}{rates(block, seconds)}  {listed}", flush=True)


def rates(block: GraphBlock, seconds: float) -> str:
    """Structures, atoms and edges per second, in columns."""
    counts = {14: len(block), 12: len(block.atomic_number), 13: int(block.n_edges.sum())}
    return "".join(f"{count / seconds:>{width},.1f}" for width, count in counts.items())


def relaxations(model: Path, device: str, structures: Sequence[Structure], slots: int) -> None:
    """Print the rate of relaxations of rattled alloys."""
    potential = OnnxPotential.load(model, threads=1, slots=slots, device=device)
    begin = time.perf_counter()
    done = [found for _, found in relax_structures(enumerate(structures), potential, edges_in_flight=16 * slots)]
    seconds = time.perf_counter() - begin
    steps = sum(found.n_steps for found in done)
    converged = sum(found.status == OK for found in done)
    print(
        f"{len(done):,} relaxations in {seconds:,.1f} s: {len(done) / seconds:,.2f} relaxations/s, "
        f"{steps / len(done):.1f} steps each, {converged:,} converged; "
        f"30 minutes are enough for {1800 * len(done) / seconds:,.0f}"
    )


def training(device: str, folder: Path, steps: int) -> None:
    """Print the rate of training steps of the preset `medium`, with random labels."""
    import torch  # noqa: PLC0415 - the other sections do not need it
    from equiscreen.model.config.network import NetworkConfig  # noqa: PLC0415
    from equiscreen.model.config.training import LossConfig  # noqa: PLC0415
    from equiscreen.model.data.batches import StructureBatches  # noqa: PLC0415
    from equiscreen.model.data.fit_statistics import fit_statistics  # noqa: PLC0415
    from equiscreen.model.networks.equivariant import EquivariantNetwork  # noqa: PLC0415
    from equiscreen.model.training.losses import residuals, total_loss  # noqa: PLC0415

    rng, images = np.random.default_rng(SEED), []
    for structure in alloys(TRAINED, RATTLE):
        atoms = structure.to_ase()
        labels = {"energy": rng.normal(), "forces": rng.normal(size=(len(atoms), 3)), "stress": rng.normal(size=6)}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        images.append(atoms)
    ase.io.write(folder / "training.extxyz", images)
    config = NetworkConfig.model_validate({"preset": "medium", "cutoff": 5.0})
    featurize(folder / "training.extxyz", folder / "training.zarr", cutoff=config.cutoff, scheduler="threads")
    store = GraphStore(folder / "training.zarr")
    chosen, place = [np.ones(len(store), dtype=bool)], torch.device(device)
    batches = []
    for batch in StructureBatches(
        [store], chosen, {}, BATCH_SIZE, config.cutoff, torch.float32, energy=True, shuffle=(0, 0)
    ):
        moved = {name: label.to(place) for name, label in batch.labels.items()}
        inputs = tuple(values.to(place) for values in batch.inputs)
        batches.append(replace(batch, inputs=inputs, labels=moved, n_atoms=batch.n_atoms.to(place)))
    elements, statistics = fit_statistics([store], chosen, config.cutoff, energy=True, heads={}, energy_scale="global")
    network = EquivariantNetwork(config, elements, statistics).to(place).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    begin = 0.0
    for number in range(steps + 2):
        if number == 2:  # the first two warm up
            synchronize(torch, place)
            begin = time.perf_counter()
        batch = batches[number % len(batches)]
        optimizer.zero_grad()
        counts = {name: torch.isfinite(label).sum() for name, label in batch.labels.items()}
        total_loss(residuals(network, network.predict(*batch.inputs), batch), LossConfig(), counts).backward()
        optimizer.step()
    synchronize(torch, place)
    rate = steps / (time.perf_counter() - begin)
    print(f"preset medium, batches of {BATCH_SIZE}: {rate:.2f} steps/s, {rate * BATCH_SIZE:.1f} structures/s")
    if place.type == "cuda":
        print(f"memory of PyTorch: {torch.cuda.max_memory_allocated(place) / 2**20:,.0f} MiB")


def synchronize(torch, place) -> None:  # noqa: ANN001 - PyTorch is imported late
    """Wait until the GPU has finished."""
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="7net-0")
    parser.add_argument("--structures", type=int, default=10_000)
    parser.add_argument("--relaxations", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--slots", type=int, nargs="+", default=[2_048, 8_192, 32_768, 131_072])
    parser.add_argument("--scratch", type=Path)
    words = parser.parse_args()
    header()
    memory = Memory(words.device)
    with tempfile.TemporaryDirectory(dir=words.scratch) as folder:
        model = model_file(words.model)
        print(f"model {model.name}, {model.stat().st_size / 1e6:.1f} MB, device {words.device}", flush=True)
        work: list[tuple[str, Callable[[], None]]] = [
            ("Placement and parity", lambda: placement_and_parity(model, words.device)),
            (
                "Evaluation: energies, forces and stresses",
                lambda: evaluation(model, words.device, alloys(words.structures), words.slots),
            ),
            (
                "Relaxation",
                lambda: relaxations(model, words.device, alloys(words.relaxations, RATTLE), words.slots[-1]),
            ),
            ("Training", lambda: training(words.device, Path(folder), words.steps)),
        ]
        for name, run in work:
            with section(name):
                run()
    memory.ended.set()
    print(f"\n{memory}")


if __name__ == "__main__":
    main()
