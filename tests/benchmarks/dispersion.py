"""Cost of D3 beside that of 7net-0, and what its cutoffs leave out.

    OMP_NUM_THREADS=1 python tests/benchmarks/dispersion.py --data DATA_FOLDER [--structures 30] [--model M.onnx]
        [--scratch FOLDER]

Crystals of mp_20_val.csv.gz, and supercells of silicon, are evaluated one by one with 7net-0, with `d3` and with
`d3-atm` (the latter for --three-body crystals only); times are CPU times of one thread. Then the energies of some
crystals are compared with those for larger cutoffs. Takes some minutes. Prints the text of `dispersion.txt`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ase.build import bulk
from equiscreen.export import OnnxPotential
from equiscreen.export.runtime.dispersion import THREE_BODY_CUTOFF, Dispersion
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.graphs.potential import Evaluation, Potential
from pretrained import crystals, exported, header, kept_folder

MODEL = "7net-0"
SUPERCELLS = (2, 4)
BOHR = 0.529177210903  # angstrom
CRYSTALS = {"Si": bulk("Si"), "NaCl": bulk("NaCl", "rocksalt", 5.64), "Pb": bulk("Pb"), "Cu": bulk("Cu")}


def milliseconds(potential: Potential | Dispersion, structures: Sequence[Structure], cutoff: float) -> float:
    """CPU time per atom, ms."""
    blocks = [GraphBlock.from_structures([structure], cutoff) for structure in structures]
    potential.evaluate(blocks[0])
    begin = time.process_time()
    for block in blocks:
        potential.evaluate(block)
    return 1e3 * (time.process_time() - begin) / sum(map(len, structures))


def of_crystal(correction: Dispersion, name: str) -> Evaluation:
    """Results for one of the crystals."""
    return correction.evaluate(GraphBlock.from_structures([Structure.from_ase(CRYSTALS[name])], 3.0))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--structures", type=int, default=30)
    parser.add_argument("--three-body", type=int, default=5)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--scratch", type=Path)
    words = parser.parse_args()
    sample = list(crystals(words.data, words.structures, 0.05, 0.01).values())
    with kept_folder(words.scratch) as folder:
        network = OnnxPotential.load(words.model or exported(MODEL, folder), threads=1)
    two, three = (Dispersion.of(name, {MODEL: network.metadata}) for name in ("d3", "d3-atm"))
    if two is None or three is None:
        raise SystemExit
    print(header())
    print(f"dftd3 {two.version}; CPU time per atom in one thread, ms")
    groups = {f"{len(sample)} crystals": sample, f"{words.three_body} of them": sample[: words.three_body]}
    for repeats in SUPERCELLS:
        atoms = bulk("Si", cubic=True).repeat(repeats)
        groups[f"Si, {len(atoms)} atoms"] = [Structure.from_ase(atoms)]
    for name, structures in groups.items():
        costs = {MODEL: milliseconds(network, structures, network.cutoff), "d3": milliseconds(two, structures, 3.0)}
        if len(structures) <= words.three_body and sum(map(len, structures)) < 100:
            costs["d3-atm"] = milliseconds(three, structures, 3.0)
        told = ", ".join(f"{kind} {cost:.2f}" for kind, cost in costs.items())
        print(f"{name} ({sum(map(len, structures))} atoms): {told}", flush=True)
    print("energy and pressure with these cutoffs, and with others, minus those with these")
    for name, atoms in CRYSTALS.items():
        base, with_atm = of_crystal(two, name), of_crystal(three, name)
        others = {
            "d3 to 100 angstrom": (replace(two, cutoff=100.0), base),
            "d3 to 50.2 without smoothing": (replace(two, width=0.0), base),
            "d3 as by default in dftd3 (60 and 40 bohr)": (
                replace(two, cutoff=60 * BOHR, width=0.0, coordination_cutoff=40 * BOHR),
                base,
            ),
            f"three bodies to 40 bohr instead of {THREE_BODY_CUTOFF:g} angstrom": (
                replace(three, three_body_cutoff=40 * BOHR, three_body_width=0.0),
                with_atm,
            ),
        }
        told = []
        for kind, (correction, reference) in others.items():
            found = of_crystal(correction, name)
            energy = 1e3 * (found.energy[0] - reference.energy[0]) / len(atoms)
            pressure = (found.stress[0] - reference.stress[0]).trace() / 3 * 160.2176634
            told.append(f"{kind} {energy:+.3f} meV/atom {pressure:+.4f} GPa")
        print(f"{name}: d3 {1e3 * base.energy[0] / len(atoms):.1f} meV/atom; {'; '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
