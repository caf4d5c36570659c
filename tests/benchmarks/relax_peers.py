"""The sides of `relax_campaign.py` that run in the environment of another package.

    PYTHON tests/benchmarks/relax_peers.py SIDE GIVEN.json MADE.json

PYTHON is the interpreter of the side's environment, as `make bench` makes it: `build/peers/sevennet` (SevenNet and
ASE), `build/peers/matcalc`, or `build/peers/torchsim` (TorchSim, SevenNet and equiscreen, on Python 3.12). GIVEN holds
the crystals and settings, and MADE receives a `Made`. Imports and the loading of the model are not timed.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.build import bulk

# Crystals and steps with which TorchSim's batch size is chosen.
SAMPLE, SAMPLE_STEPS = 16, 2


@dataclass(frozen=True)
class Given:
    """What a side relaxes, and how.

    Attributes:
        model: Name of SevenNet's weights.
        file: Path of the same weights in an ONNX file.
        crystals: Atomic numbers, cell (angstrom) and positions (angstrom) of each crystal.
        fmax: Largest force on an atom or on the cell, as ASE's FrechetCellFilter scales it (eV/angstrom).
        max_steps: Largest number of steps.
        batch_atoms: Batch sizes for TorchSim to choose from, in atoms.
    """

    model: str
    file: str
    crystals: list[tuple[list[int], list[list[float]], list[list[float]]]]
    fmax: float
    max_steps: int
    batch_atoms: list[int]

    def images(self) -> list[Atoms]:
        """The crystals."""
        return [Atoms(numbers, cell=cell, positions=at, pbc=True) for numbers, cell, at in self.crystals]


@dataclass(frozen=True)
class Made:
    """What a side found.

    Attributes:
        versions: Versions of its packages.
        setting: The setting that it chose; may be empty.
        seconds: Wall time of all relaxations.
        cpu_seconds: CPU time of all relaxations.
        energies: Energy of each relaxed crystal (eV/atom).
        steps: Steps of each relaxation; empty if the package does not count them.
    """

    versions: dict[str, str]
    setting: str
    seconds: float
    cpu_seconds: float
    energies: list[float]
    steps: list[int]


@dataclass(frozen=True)
class Relaxation:
    """A way to relax crystals, ready to start.

    Attributes:
        packages: Packages whose versions matter.
        run: Relaxes crystals; returns the energy of each (eV/atom), and the steps.
        setting: The setting that was chosen; may be empty.
    """

    packages: Sequence[str]
    run: Callable[[list[Atoms]], tuple[list[float], list[int]]]
    setting: str = ""


def sevennet_calculator(model: str) -> Any:
    """SevenNet's own calculator."""
    from sevenn.calculator import SevenNetCalculator  # noqa: PLC0415 - each side has packages of its own

    return SevenNetCalculator(model, device="cpu")


def with_ase(given: Given, optimizer: str) -> Relaxation:
    """SevenNet's calculator, FrechetCellFilter, and an optimizer of ASE with its defaults."""
    import ase.optimize  # noqa: PLC0415 - each side has packages of its own
    from ase.filters import FrechetCellFilter  # noqa: PLC0415 - see above

    calculator = sevennet_calculator(given.model)

    def run(images: list[Atoms]) -> tuple[list[float], list[int]]:
        energies, steps = [], []
        for atoms in images:
            atoms.calc = calculator
            descent = getattr(ase.optimize, optimizer)(FrechetCellFilter(atoms), logfile=None)
            descent.run(fmax=given.fmax, steps=given.max_steps)
            energies.append(float(atoms.get_potential_energy()) / len(atoms))
            steps.append(descent.nsteps)
        return energies, steps

    return Relaxation(("ase", "sevenn"), run)


def with_matcalc(given: Given) -> Relaxation:
    """MatCalc's `RelaxCalc` with its defaults (FIRE) and SevenNet's calculator; it returns no numbers of steps."""
    from matcalc import RelaxCalc  # noqa: PLC0415 - each side has packages of its own

    calculation = RelaxCalc(sevennet_calculator(given.model), fmax=given.fmax, max_steps=given.max_steps)

    def run(images: list[Atoms]) -> tuple[list[float], list[int]]:
        found = [calculation.calc(atoms) for atoms in images]
        return [float(one["energy"]) / len(atoms) for one, atoms in zip(found, images, strict=True)], []

    return Relaxation(("matcalc", "sevenn"), run)


def with_torchsim(given: Given, optimizer: str, model: Any) -> Relaxation:
    """TorchSim's batched optimizer with Frechet cells and its autobatching, with the fastest batch size.

    Its autobatcher measures memory only on GPUs, so on a CPU the batch size is given.
    """
    import torch_sim as ts  # noqa: PLC0415 - each side has packages of its own

    def batched(images: list[Atoms], atoms: int, max_steps: int) -> tuple[list[float], list[int]]:
        # A batch holds at least one crystal.
        largest = max(atoms, *map(len, images))
        batcher = ts.InFlightAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=largest)
        state = ts.optimize(
            images,
            model,
            optimizer=ts.Optimizer(optimizer),
            convergence_fn=ts.generate_force_convergence_fn(given.fmax, include_cell_forces=True),
            autobatcher=batcher,
            max_steps=max_steps,
            steps_between_swaps=1,
            init_kwargs={"cell_filter": ts.CellFilter.frechet},
        )
        energies = (state.energy / state.n_atoms_per_system).tolist()
        return energies, [int(count) for count in batcher.iteration_count]

    def seconds(atoms: int) -> float:
        begin = time.process_time()
        batched(given.images()[:SAMPLE], atoms, SAMPLE_STEPS)
        return time.process_time() - begin

    seconds(given.batch_atoms[0])  # warm-up
    best = min(given.batch_atoms, key=seconds)
    lists = ts.neighbors.default_batched_nl.__name__
    return Relaxation(
        ("torch-sim-atomistic", "sevenn", "equiscreen"),
        lambda images: batched(images, best, given.max_steps),
        f"batches of {best} atoms, {lists}",
    )


def torchsim_sevennet(given: Given, optimizer: str) -> Relaxation:
    """TorchSim with SevenNet's own wrapper."""
    from torch_sim.models.sevennet import SevenNetModel  # noqa: PLC0415 - each side has packages of its own

    return with_torchsim(given, optimizer, SevenNetModel(given.model, device="cpu"))


def torchsim_file(given: Given, optimizer: str) -> Relaxation:
    """TorchSim with the ONNX file."""
    from equiscreen.export import OnnxModel  # noqa: PLC0415 - each side has packages of its own

    return with_torchsim(given, optimizer, OnnxModel(given.file, threads=1))


# Each side by its name: the environment in `build/peers`, and how it starts.
SIDES: dict[str, tuple[str, Callable[[Given], Relaxation]]] = {
    "SevenNet + ASE FIRE": ("sevennet", lambda given: with_ase(given, "FIRE")),
    "SevenNet + ASE LBFGS": ("sevennet", lambda given: with_ase(given, "LBFGS")),
    "MatCalc": ("matcalc", with_matcalc),
    "TorchSim FIRE, its SevenNet": ("torchsim", lambda given: torchsim_sevennet(given, "fire")),
    "TorchSim L-BFGS, its SevenNet": ("torchsim", lambda given: torchsim_sevennet(given, "lbfgs")),
    "TorchSim FIRE, our file": ("torchsim", lambda given: torchsim_file(given, "fire")),
    "TorchSim L-BFGS, our file": ("torchsim", lambda given: torchsim_file(given, "lbfgs")),
}


def main() -> None:
    """Relax the given crystals."""
    import torch  # noqa: PLC0415 - `relax_campaign.py` imports this module without it

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    side, source, target = sys.argv[1:]
    given = Given(**json.loads(Path(source).read_text()))
    relaxation = SIDES[side][1](given)
    relaxation.run([bulk("Cu", a=3.7)])  # warm-up
    images = given.images()
    begin, cpu = time.perf_counter(), time.process_time()
    energies, steps = relaxation.run(images)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    versions = {name: version(name) for name in (*relaxation.packages, "torch")}
    made = Made(versions, relaxation.setting, seconds, cpu_seconds, energies, steps)
    Path(target).write_text(json.dumps(asdict(made)))


if __name__ == "__main__":
    main()
