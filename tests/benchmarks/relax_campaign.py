"""A relaxation campaign with 7net-0: `equiscreen relax` compared with SevenNet's code in ASE, and with TorchSim.

    python tests/benchmarks/relax_campaign.py --data DATA_FOLDER [--structures 500] [--slow-side 100] [--cores 2]
        [--max-steps 500] [--scratch FOLDER]

Crystals of mp_20_val.csv.gz are rattled by 0.1 angstrom and strained by 3 %, and relaxed, cell and positions together,
until the forces of ASE's FrechetCellFilter, on atoms and cell, are below 0.05 eV/angstrom, in at most --max-steps
steps.

- equiscreen: `relax` as a user would run it, from a graph store to finished stores on disk, with one single-threaded
  Dask worker per core; L-BFGS, then FIRE.
- SevenNet + ASE: SevenNet's calculator, FrechetCellFilter and FIRE with ASE's defaults, in --cores single-threaded
  processes, which share the first --slow-side crystals. The start of the processes is not counted.
- TorchSim: its batched FIRE with cells, which has the same criterion, on the same crystals in one process with --cores
  threads. Its own wrapper of SevenNet cannot be imported with SevenNet 0.13, so it uses our exported file.

Energies of relaxed crystals are computed by the code that relaxed them. The time of 257,000 relaxations (the size of
the WBM set) on 64 cores is extrapolated from our rate. Prints the text of `relax_campaign.txt`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from equiscreen.pipeline import GraphStore, Structure, featurize
from equiscreen.screening import RelaxSettings, relax
from equiscreen.screening.relaxation.optimizers import Optimizer
from numpy.typing import NDArray
from pretrained import crystals, exported, header, kept_folder

MODEL = "7net-0"
RATTLE, STRAIN = 0.1, 0.03
FMAX = 0.05
WBM, NODE_CORES = 257_000, 64
TOLERANCE = 2e-3  # eV/atom


def print_side(title: str, seconds: float, steps: Sequence[int], unfinished: int) -> float:
    """Print one line of the table.

    Returns:
        Structures per second.
    """
    rate = len(steps) / seconds
    print(
        f"{title:<34}{len(steps):>11,}{seconds:>10.1f}{rate:>14.2f}{np.mean(steps):>10.1f}{np.median(steps):>9.0f}"
        f"{unfinished:>12}",
        flush=True,
    )
    return rate


def ours(store: Path, model: Path, out: Path, optimizer: Optimizer, max_steps: int) -> tuple[float, Any]:
    """Run `relax`; returns its seconds and the scores dataset."""
    settings = RelaxSettings(fmax=FMAX, smax=None, max_steps=max_steps, optimizer=optimizer)
    for path in (out, out.with_name(f"{out.stem}.graphs.zarr")):
        shutil.rmtree(path, ignore_errors=True)
    begin = time.perf_counter()
    scores = relax(store, model, out, settings)
    return time.perf_counter() - begin, scores


_CALCULATOR: list[Any] = []


def start_sevennet() -> None:
    """Load and warm up the model in a worker process."""
    warnings.simplefilter("ignore")
    import torch  # noqa: PLC0415 - the other sides do not need it
    from sevenn.calculator import SevenNetCalculator  # noqa: PLC0415 - the other sides do not need it

    torch.set_num_threads(1)
    _CALCULATOR.append(SevenNetCalculator(MODEL, device="cpu"))
    relax_with_ase((Structure.from_fractional([29], np.eye(3) * 2.6, [[0, 0, 0]]), 2))  # warm-up


def relax_with_ase(job: tuple[Structure, int]) -> tuple[int, float, bool]:
    """Relax one structure; returns the steps, the energy (eV/atom) and whether it converged."""
    from ase.filters import FrechetCellFilter  # noqa: PLC0415 - the other sides do not need it
    from ase.optimize import FIRE  # noqa: PLC0415 - the other sides do not need it

    structure, max_steps = job
    atoms = structure.to_ase()
    atoms.calc = _CALCULATOR[0]
    run = FIRE(FrechetCellFilter(atoms), logfile=None)
    converged = run.run(fmax=FMAX, steps=max_steps)
    return run.nsteps, float(atoms.get_potential_energy()) / len(atoms), bool(converged)


def sevennet(
    structures: Sequence[Structure], cores: int, max_steps: int
) -> tuple[float, list[tuple[int, float, bool]]]:
    """Relax structures with SevenNet and ASE; returns the seconds, and the result of `relax_with_ase` for each."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(cores, initializer=start_sevennet) as pool:
        pool.map(relax_with_ase, [(structures[0], 2)] * 4 * cores, chunksize=1)  # all processes have started
        begin = time.perf_counter()
        found = pool.map(relax_with_ase, [(structure, max_steps) for structure in structures], chunksize=1)
        return time.perf_counter() - begin, found


def torch_sim(structures: Sequence[Structure], model: Path, cores: int, max_steps: int) -> tuple[float, NDArray[Any]]:
    """Relax structures with TorchSim, in one batch; returns the seconds and the energies (eV/atom)."""
    import torch  # noqa: PLC0415 - only this side needs it
    import torch_sim as ts  # noqa: PLC0415 - only this side needs it
    from equiscreen.export import OnnxModel  # noqa: PLC0415 - only this side needs it

    images = [structure.to_ase() for structure in structures]
    batched = OnnxModel(model, dtype=torch.float64, threads=cores)
    criterion = ts.generate_force_convergence_fn(force_tol=FMAX, include_cell_forces=True)
    batcher = ts.InFlightAutoBatcher(model=batched, memory_scales_with="n_atoms", max_memory_scaler=400)
    begin = time.perf_counter()
    state = ts.optimize(
        images,
        batched,
        optimizer=ts.frechet_cell_fire,
        convergence_fn=criterion,
        autobatcher=batcher,
        max_steps=max_steps,
        steps_between_swaps=1,
    )
    seconds = time.perf_counter() - begin
    return seconds, state.energy.numpy() / np.array([len(s) for s in structures])


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


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--structures", type=int, default=500)
    parser.add_argument("--slow-side", type=int, default=100)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--max-steps", type=int, default=500)
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    print(header("sevenn", "ase", "torch-sim-atomistic"))
    distorted = crystals(arguments.data, arguments.structures, RATTLE, STRAIN)
    names, structures = list(distorted), list(distorted.values())
    few = structures[: arguments.slow_side]
    with kept_folder(arguments.scratch) as folder:
        model = exported(MODEL, folder)
        ase.io.write(folder / "distorted.extxyz", [_named(name, s) for name, s in distorted.items()])
        shutil.rmtree(folder / "g.zarr", ignore_errors=True)
        featurize(folder / "distorted.extxyz", folder / "g.zarr", cutoff=5.0, id_field="name")
        store = GraphStore(folder / "g.zarr")
        print(f"{len(store):,} crystals, {store.n_atoms.sum():,} atoms, {store.n_edges.sum():,} edges")
        print(f"\n{'':<34}{'structures':>11}{'s':>10}{'structures/s':>14}{'steps':>10}{'median':>9}{'unfinished':>12}")
        rates, energies = {}, {}
        for optimizer in Optimizer:
            seconds, scores = ours(
                folder / "g.zarr", model, folder / f"{optimizer}.zarr", optimizer, arguments.max_steps
            )
            unfinished = len(structures) - scores.attrs["status_counts"]["ok"]
            rates[optimizer] = print_side(f"equiscreen, {optimizer}", seconds, scores["n_steps"].to_numpy(), unfinished)
            order = {name: place for place, name in enumerate(scores["structure_id"].to_numpy().tolist())}
            energies[optimizer] = scores["energy_per_atom"].to_numpy()[[order[name] for name in names]]
        seconds, found = sevennet(few, arguments.cores, arguments.max_steps)
        theirs = print_side("SevenNet + ASE FIRE", seconds, [one[0] for one in found], sum(not one[2] for one in found))
        seconds, batched = torch_sim(few, model, arguments.cores, arguments.max_steps)
        print(f"{'TorchSim FIRE, our file':<34}{len(few):>11,}{seconds:>10.1f}{len(few) / seconds:>14.2f}")
    print(
        f"\nequiscreen / SevenNet + ASE: {rates[Optimizer.LBFGS] / theirs:.1f}; both with FIRE: "
        f"{rates[Optimizer.FIRE] / theirs:.1f}"
    )
    one_by_one = np.array([one[1] for one in found])
    for optimizer, values in energies.items():
        print_energies(f"{optimizer} and SevenNet + ASE", values[: len(few)], one_by_one, names[: len(few)])
    print_energies("L-BFGS and TorchSim", energies[Optimizer.LBFGS][: len(few)], batched, names[: len(few)])
    print_energies("TorchSim and SevenNet + ASE", batched, one_by_one, names[: len(few)])
    print_energies("L-BFGS and FIRE", energies[Optimizer.LBFGS], energies[Optimizer.FIRE], names)
    hours = WBM / (rates[Optimizer.LBFGS] / arguments.cores * NODE_CORES) / 3600
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
