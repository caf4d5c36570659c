"""How far above a minimum relaxations end, by their convergence criterion, compared with FIRE at 0.005 eV/angstrom.

    OMP_NUM_THREADS=1 python tests/benchmarks/relax_criterion.py --data DATA_FOLDER [--structures 50] [--model M.onnx]
        [--scratch FOLDER]

Crystals of mp_20_val.csv.gz, rattled by 0.1 angstrom and strained by 3 %, are relaxed with 7net-0: with FIRE until
forces are below 0.005 eV/angstrom and the stress is below 0.01 GPa, and with L-BFGS to several criteria. Prints the
text of `relax_criterion.txt`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import Structure
from equiscreen.screening.relaxation.batched import NOT_CONVERGED, RelaxSettings, relax_structures
from equiscreen.screening.relaxation.optimizers import Optimizer
from numpy.typing import NDArray
from pretrained import crystals, exported, header, kept_folder

MODEL = "7net-0"
MOST_STEPS = 3000
REFERENCE = RelaxSettings(fmax=0.005, smax=0.01, max_steps=MOST_STEPS, optimizer=Optimizer.FIRE)
CRITERIA = ((0.05, 0.1), (0.03, 0.05), (0.02, 0.05), (0.01, 0.02), (0.005, 0.01))


def ends(
    structures: Sequence[Structure], potential: OnnxPotential, settings: RelaxSettings
) -> tuple[NDArray[np.float64], float, int]:
    """Final energies (meV/atom), mean number of evaluations, and number of relaxations that have not converged."""
    found = dict(relax_structures(enumerate(structures), potential, settings))
    done = [found[place] for place in range(len(structures))]
    energies = [np.nan if one.last is None else one.last.energy * 1e3 / len(one.last.structure) for one in done]
    steps = float(np.mean([one.n_steps for one in done]))
    return np.array(energies), steps, sum(one.status == NOT_CONVERGED for one in done)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--structures", type=int, default=50)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--scratch", type=Path)
    words = parser.parse_args()
    sample = crystals(words.data, words.structures, 0.1, 0.03)
    names, structures = list(sample), list(sample.values())
    with kept_folder(words.scratch) as folder:
        potential = OnnxPotential.load(words.model or exported(MODEL, folder), threads=1)
    print(header())
    expected, steps, unfinished = ends(structures, potential, REFERENCE)
    print(f"{len(structures)} crystals; FIRE to 0.005: {steps:.1f} evaluations, {unfinished} not converged", flush=True)
    print("eV/angstrom    GPa  evaluations  not converged   above FIRE, meV/atom: median    90 %     max  over 1")
    for fmax, smax in CRITERIA:
        energies, steps, unfinished = ends(structures, potential, RelaxSettings(fmax=fmax, smax=smax))
        above = energies - expected
        quantiles = "".join(f"{np.quantile(above, share):8.2f}" for share in (0.5, 0.9, 1.0))
        far = ", ".join(f"{names[row]} {above[row]:+.1f}" for row in np.argsort(-above) if above[row] > 1.0)
        print(
            f"{fmax:>11g}{smax:>7g}{steps:>13.1f}{unfinished:>15}{'':>22}{quantiles}{(above > 1).sum():>8}  {far}",
            flush=True,
        )


if __name__ == "__main__":
    main()
