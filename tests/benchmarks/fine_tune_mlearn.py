"""Fine-tuning of SevenNet-0 on silicon, with the defaults: what it learns, and what it forgets.

    python tests/benchmarks/fine_tune_mlearn.py DATA_FOLDER --work FOLDER [--threads 2] [--runs plain replay]

Runs the command line as a user would: import 7net-0, featurize the silicon of mlearn (Zuo et al., J. Phys. Chem. A 124,
731 (2020)), and fine-tune 7net-0 without and with replay, which first refits the reference energies. Only the split and
the number of threads are set: a fifth of every group of configurations is held out, and not used to select the weights
either.

The old domain is the Materials Project. The replayed crystals are at rest, as downloaded. The test uses 200 others,
strained by 1 % and rattled by 0.05 angstrom, since crystals at rest have no forces. Their error is the difference from
the network before fine-tuning, with the same reference energies, since the shift of silicon's reference energy only
changes the zero of energy.

Running the same command again resumes interrupted work and does not repeat finished work. Prints the text of
`fine_tune_mlearn.txt`, for which the run with replay had one thread, and other programs ran at the same time.
"""

from __future__ import annotations

import argparse
import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
import yaml
from equiscreen.model import load_checkpoint
from equiscreen.model.checkpoint import make_network
from equiscreen.model.config.training import FINE_TUNING_DEFAULTS, REPLAY_DEFAULTS
from equiscreen.model.networks.base import Network
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphBlock, GraphStore
from mlearn import equiscreen, errors
from pretrained import crystals, header

SPLIT = {"by": "stratified", "key": "group", "validation": 0.05, "test": 0.2}
JUDGED, REPLAYABLE = 200, 1000
RUNS = ("plain", "replay")
FORCES, ENERGIES, MINUTES = 0.5, 5e-3, 15.0


def stores(data: Path, work: Path) -> tuple[Path, Path]:
    """Paths of the stores of silicon and of crystals to replay, which are made unless they exist."""
    silicon, old = work / "silicon.zarr", work / "materials-project.zarr"
    if not silicon.exists():
        equiscreen("featurize", data / "mlearn/Si.json.gz", "--labels", "mlearn", "--out", silicon)
    if not old.exists():
        at_rest = list(crystals(data, JUDGED + REPLAYABLE, rattle=0.0, strain=0.0).values())[JUDGED:]
        ase.io.write(work / "materials-project.extxyz", [structure.to_ase() for structure in at_rest])
        equiscreen("featurize", work / "materials-project.extxyz", "--out", old)
    return silicon, old


def fine_tune(work: Path, name: str, silicon: Path, old: Path, threads: int) -> tuple[list[float], Path]:
    """Fine-tune, unless that is done; returns run time and processor time in seconds, and the run folder."""
    run, config, seconds = work / name, work / "config.yaml", work / f"{name}.seconds.json"
    if not seconds.exists():
        config.write_text(yaml.safe_dump({"training": {"split": SPLIT, "threads": threads}}))
        words = ("--replay", old) if name == "replay" else ()
        start = work / "7net-0.ckpt"
        before = cpu_seconds()
        took = equiscreen("train", silicon, "--from", start, "--out", run, "--config", config, *words)
        seconds.write_text(json.dumps([took, cpu_seconds() - before]))
    return json.loads(seconds.read_text()), run


def cpu_seconds() -> float:
    """Processor time of all finished commands, seconds; other programs on the machine hardly change it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def with_references_of(network: Network, other: Network) -> Network:
    """A network with the reference energies of another one."""
    statistics = replace(network.statistics, reference_energies=other.statistics.reference_energies)
    copy = make_network(network.config, network.elements, statistics, network.dtype)
    copy.load_state_dict(network.state_dict())
    return copy.eval()


def drift(tuned: Network, untuned: Network, block: GraphBlock) -> tuple[float, float]:
    """Mean absolute differences of two networks in energy (eV/atom) and forces (eV/angstrom)."""
    a, b = (TorchPotential(network).evaluate(block) for network in (tuned, with_references_of(untuned, tuned)))
    return float(np.abs((a.energy - b.energy) / block.n_atoms).mean()), float(np.abs(a.forces - b.forces).mean())


def show(name: str, values: tuple[float, ...]) -> None:
    """Print one line of the table."""
    energy, forces, stress, *old = values
    columns = "".join(f"{value:>16.{digits}f}" for value, digits in zip(old, (2, 4), strict=False))
    stresses = f"{1e3 * stress:>12.3f}"
    print(f"  {name:<34}{1e3 * energy:>10.2f}{forces:>10.4f}{stresses}{columns}", flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", nargs="+", default=RUNS, choices=RUNS)
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    print(f"{header('e3nn', 'lightning')}; {arguments.threads} threads")
    start = work / "7net-0.ckpt"
    if not start.exists():
        equiscreen("import", "7net-0", "--out", start)
    silicon, old = stores(arguments.data, work)
    found: dict[str, Any] = {}
    untuned = load_checkpoint(start)[0]
    judged = GraphBlock.from_structures(list(crystals(arguments.data, JUDGED).values()), untuned.cutoff)
    graphs = GraphStore(silicon)
    for name in arguments.runs:
        seconds, run = fine_tune(work, name, silicon, old, arguments.threads)
        held_out = graphs.block(0, len(graphs)).take(np.load(run / "split.npz")["test_0"])
        tuned = load_checkpoint(run / "model.ckpt")[0]
        if not found:
            for words, defaults in (("by default", FINE_TUNING_DEFAULTS), ("with replay", REPLAY_DEFAULTS)):
                print(f"\n{words}: {', '.join(f'{key} {value}' for key, value in defaults.items())}")
            print(f"\n{len(held_out)} held-out structures of silicon; {JUDGED} crystals of the Materials Project")
            print(f"  {'':<34}{'energy':>10}{'forces':>10}{'stress':>12}{'MP energy':>16}{'MP forces':>16}")
            print(f"  {'':<34}{'meV/atom':>10}{'eV/A':>10}{'meV/A^3':>12}{'meV/atom':>16}{'eV/A':>16}")
            found["untuned"] = errors(TorchPotential(untuned).evaluate(held_out), held_out)
            show("7net-0", tuple(found["untuned"]))
            refitted = with_references_of(untuned, tuned)
            found["refitted"] = errors(TorchPotential(refitted).evaluate(held_out), held_out)
            show("reference energies refitted", tuple(found["refitted"]))
        energy, forces = drift(tuned, untuned, judged)
        found[name] = [*errors(TorchPotential(tuned).evaluate(held_out), held_out), energy, forces, *seconds]
        label = "fine-tuned" if name == "plain" else "fine-tuned with replay"
        show(label, (*found[name][:3], 1e3 * energy, forces))
    print("\ngoals")
    before = found["untuned"][1]
    for name in arguments.runs:
        energy, forces, _, _, _, seconds, of_processor = found[name]
        print(
            f"  {name}: forces {forces / before:.2f} of untuned (at most {FORCES}), energies {1e3 * energy:.2f} "
            f"meV/atom (at most {1e3 * ENERGIES:g}); {seconds / 60:.1f} minutes, {of_processor / 60:.1f} of one core "
            f"(at most {MINUTES:g} on two)"
        )
    if set(RUNS) <= found.keys():
        energy, forces = (found["replay"][place] / found["plain"][place] for place in (3, 4))
        print(
            f"  with replay, MP errors are {energy:.3f} (energies) and {forces:.3f} (forces) of those without (<= 0.25)"
        )


if __name__ == "__main__":
    main()
