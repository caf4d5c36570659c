"""Published weights: the exported file compared with the code that trained them, on crystals.

    python tests/benchmarks/pretrained_parity.py --data DATA_FOLDER [--models 7net-0 7net-l3i5 7net-mf-0:PBE
        nequix-mp-1.pt nequix-mp-1.nqx] [--structures 1000] [--worst 5] [--threads 2] [--scratch FOLDER]

"Ours" is the float32 ONNX file that `equiscreen import` and `equiscreen export` make. "Theirs" is, for SevenNet, its
own ASE calculator (package sevenn) on crystals of mp_20_val.csv.gz with positions rattled by 0.05 angstrom and cells
strained by 1 %; for Nequix, results that its own code computed earlier, in nequix-mp-1.reference.json.gz (48 crystals).
Energies are compared per atom, forces and stress component by component; a crystal is beyond a bound if any component
is. Both sides compute in float32 and have rounding errors. For the crystals that differ most, our network in float64
(in PyTorch) shows which side they come from. Each model is measured separately, so that one run per model with --models
prints the same; --scratch keeps the ONNX files for later runs. Prints the text of `pretrained_parity.txt`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from equiscreen.export import OnnxPotential
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.pretrained.load import load_pretrained
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.graphs.potential import Evaluation
from numpy.typing import NDArray
from pretrained import crystals, exported, header, kept_folder

MODELS = ("7net-0", "7net-l3i5", "nequix-mp-1.pt", "nequix-mp-1.nqx")
NEQUIX = "nequix"
BOUNDS = {"energy": 2e-5, "forces": 1e-4, "stress": 1e-6}
UNITS = {"energy": "eV/atom", "forces": "eV/angstrom", "stress": "eV/angstrom^3"}


@dataclass(frozen=True, slots=True)
class Compared:
    """One model, and the results of its own code.

    Attributes:
        source: Name or path of the weights, as for `load_pretrained`.
        modality: Modality of the weights, as for `load_pretrained`.
        crystals: Crystals by name.
        reference: Results of the model's own code for all crystals, in the same order.
        seconds: Run time of the reference; 0 if it was computed earlier.
    """

    source: str | Path
    modality: str | None
    crystals: Mapping[str, Structure]
    reference: Evaluation
    seconds: float = 0.0


def sevennet(name: str, data: Path, count: int) -> Compared:
    """Crystals, and the results of SevenNet's calculator; ASE's sign and units of stress are the same as ours."""
    model, _, modality = name.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sevenn.calculator import SevenNetCalculator  # noqa: PLC0415 - inside the filter of warnings

        calculator = SevenNetCalculator(model, device="cpu", **({"modal": modality} if modality else {}))
    chosen = crystals(data, count)
    energies, forces, stresses = [], [], []
    begin = time.perf_counter()
    for structure in chosen.values():
        atoms = structure.to_ase()
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
        stresses.append(atoms.get_stress(voigt=False))
    seconds = time.perf_counter() - begin
    found = Evaluation(np.array(energies, dtype=float), np.concatenate(forces, dtype=float), np.array(stresses, float))
    return Compared(model, modality or None, chosen, found, seconds)


def nequix(name: str, data: Path, count: int) -> Compared:
    """The crystals of the reference file, and their results in it."""
    path = data / "weights/nequix-mp-1.reference.json.gz"
    frames = json.loads(gzip.decompress(path.read_bytes()))["frames"][:count]
    chosen = {
        frame["material_id"]: Structure.from_cartesian(frame["numbers"], frame["positions"], frame["cell"], pbc=True)
        for frame in frames
    }
    found = Evaluation(
        np.array([frame["energy"] for frame in frames]),
        np.concatenate([frame["forces"] for frame in frames]),
        np.array([frame["stress"] for frame in frames]),
    )
    return Compared(data / "weights" / name, None, chosen, found)


def differences(a: Evaluation, b: Evaluation, block: GraphBlock) -> dict[str, NDArray[np.float64]]:
    """Absolute differences of energy per atom (float64[n]), forces (float64[n_atoms, 3]), stress (float64[n, 3, 3])."""
    out = {name: np.abs(a.arrays()[name] - b.arrays()[name]) for name in BOUNDS}
    return out | {"energy": out["energy"] / block.n_atoms}


def largest(values: Mapping[str, NDArray[np.float64]], block: GraphBlock) -> dict[str, NDArray[np.float64]]:
    """The largest value of each crystal, float64[n], by output."""
    return {
        "energy": values["energy"],
        "forces": np.maximum.reduceat(values["forces"].max(axis=1), block.atom_start),
        "stress": values["stress"].max(axis=(1, 2)),
    }


def largest_forces(found: Evaluation, block: GraphBlock) -> NDArray[np.float64]:
    """The largest force of each crystal, float64[n] in eV/angstrom."""
    return np.maximum.reduceat(np.linalg.norm(found.forces, axis=1), block.atom_start)


def print_differences(case: Compared, ours: Evaluation, block: GraphBlock) -> NDArray[np.float64]:
    """Print the table of one model, and the crystals beyond a bound.

    Returns:
        The largest difference of each crystal as a multiple of the bound, float64[n].
    """
    found = differences(ours, case.reference, block)
    worst = largest(found, block)
    forces, names = largest_forces(case.reference, block), list(case.crystals)
    print(f"{'':<24}{'largest':>10}{'mean':>10}{'bound':>10}{'crystals beyond':>18}")
    for output, bound in BOUNDS.items():
        values = found[output]
        beyond = int((~(worst[output] <= bound)).sum())
        title = f"|difference of {output}|"
        figures = f"{values.max():>10.1e}{values.mean():>10.1e}{bound:>10.0e}{beyond:>18}"
        print(f"{title:<24}{figures}   {UNITS[output]}")
    shares = np.max([worst[output] / bound for output, bound in BOUNDS.items()], axis=0)
    print(f"largest force of a crystal: median {np.median(forces):.2f}, at most {forces.max():.2f} eV/angstrom")
    for place in np.flatnonzero(~(shares <= 1)).tolist():
        values = ", ".join(f"{output} {worst[output][place]:.1e}" for output in BOUNDS)
        print(f"  beyond: {names[place]}, largest force {forces[place]:.2f} eV/angstrom; {values}")
    return np.asarray(shares)


def print_worst(case: Compared, ours: Evaluation, block: GraphBlock, rows: Sequence[int]) -> None:
    """Print the differences of both sides from our network in float64, for some crystals."""
    names, forces = list(case.crystals), largest_forces(case.reference, block)
    network, _ = load_pretrained(case.source, modality=case.modality)
    exact = TorchPotential(network.double())
    print("the largest differences, and both sides compared with our network in float64:")
    for row in rows:
        one = block.take([row])
        atoms = slice(block.atom_start[row], block.atom_start[row] + block.n_atoms[row])
        parts = [
            Evaluation(found.energy[row : row + 1], found.forces[atoms], found.stress[row : row + 1])
            for found in (ours, case.reference)
        ]
        middle = exact.evaluate(one)
        pairs = {"ours - theirs": parts, "ours - float64": (parts[0], middle), "theirs - float64": (parts[1], middle)}
        print(f"  {names[row]}, {block.n_atoms[row]} atoms, largest force {forces[row]:.2f} eV/angstrom")
        values = {title: largest(differences(a, b, one), one) for title, (a, b) in pairs.items()}
        for output in BOUNDS:
            line = "".join(f"   {title} {float(found[output][0]):.1e}" for title, found in values.items())
            print(f"    {output:<8}{line}   {UNITS[output]}")


def compare(name: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Print all lines of one model."""
    print(f"\n{name}", flush=True)
    load = nequix if name.startswith(NEQUIX) else sevennet
    case = load(name, arguments.data, arguments.structures)
    potential = OnnxPotential.load(exported(case.source, folder, case.modality), threads=arguments.threads)
    block = GraphBlock.from_structures(list(case.crystals.values()), potential.cutoff)
    begin = time.perf_counter()
    ours = potential.evaluate(block)
    took = f"{case.seconds:.0f} s theirs, one by one" if case.seconds else "theirs computed earlier"
    print(
        f"{len(block):,} crystals, {len(block.atomic_number):,} atoms, {int(block.n_edges.sum()):,} edges within "
        f"{potential.cutoff:g} angstrom; {time.perf_counter() - begin:.0f} s ours, {took}"
    )
    shares = print_differences(case, ours, block)
    print_worst(case, ours, block, np.argsort(-shares)[: arguments.worst].tolist())


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--structures", type=int, default=1_000)
    parser.add_argument("--worst", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(header("sevenn", "e3nn"))
    with kept_folder(arguments.scratch) as folder:
        for name in arguments.models:
            compare(name, arguments, folder)


if __name__ == "__main__":
    main()
