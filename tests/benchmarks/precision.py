"""Properties with 7net-0 as a float32 and as a float64 file, of the same crystals.

    python tests/benchmarks/precision.py --data DATA_FOLDER --work FOLDER [--what elastic,phonons,kappa] [--crystals 20]
        [--threads 2] [--results FILE] [--print]

`elastic` and `phonons` are those of the preset `default`, for random binary crystals: the first of `heat_capacity.py`
with at most six atoms. `kappa` has the relaxation and the displacements of 0.01 angstrom of the preset `phonondb-103`,
for the crystals of `kappa.py`. Its mesh is coarser (30 angstrom), since the transport equation is solved in float64 in
any case, and scattering rates are averaged over degenerate modes, since without it the eigenvectors of such modes,
which rounding chooses, change the conductivity. Each file does everything, the relaxation included.

Results are kept in the file of --results, by default `precision.json` beside this script; a later run does not repeat
finished work. `--print` only prints the results that are there. Times are CPU times. Prints the text of
`precision.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import heat_capacity
import kappa
import numpy as np
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import Structure
from equiscreen.screening.properties.materials import Protocol, compute_materials
from equiscreen.screening.properties.presets import PRESETS, Preset
from equiscreen.screening.properties.protocol import PROPERTY_STATUSES, Material
from pretrained import exported, header

MODEL = "7net-0"
PRECISIONS = ("float32", "float64")
MESH = 30.0  # angstrom
MOST_ATOMS = 6
PROTOCOLS: dict[str, Preset] = {
    "elastic": PRESETS["default"],
    "phonons": PRESETS["default"],
    "kappa": PRESETS["phonondb-103"].altered("kappa", phonondb=False, mesh=MESH, average_degenerate=True),
}
# Values that are compared, with the units of their differences; conductivities are compared by their ratio.
VALUES = {
    "elastic": {"bulk_modulus_vrh": "GPa", "shear_modulus_vrh": "GPa"},
    "phonons": {"heat_capacity": "J/K per mole of atoms", "min_frequency": "THz"},
    "kappa": {"kappa": "%"},
}


def crystals(data: Path, what: str, count: int) -> dict[str, Structure]:
    """The first crystals of a property, by name."""
    if what != "kappa":
        small = [one for one in heat_capacity.crystals(data, 1000) if len(one.structure) <= MOST_ATOMS]
        return {one.name: one.structure for one in small[:count]}
    every = {one.name: one.structure for one in kappa.crystals(data)}
    names = [*kappa.SUBSET, *(name for name in every if name not in kappa.SUBSET)]
    return {name: every[name] for name in names[:count]}


def computed(structure: Structure, potential: OnnxPotential, what: str) -> dict[str, Any]:
    """Status, values and CPU time of a property of a crystal."""
    begin = time.process_time()
    protocol = Protocol.of(PROTOCOLS[what], [what], potential)
    (found,) = compute_materials([structure], potential, protocol)
    outcome = found.outcomes[what]
    values = dict(outcome.values)
    frame = found.relaxed.last
    if protocol.properties[0].has_finish and PROPERTY_STATUSES[outcome.status] == "ok" and frame is not None:
        material = Material(frame.structure, frame.energy, frame.forces, frame.stress, protocol.relaxation.symprec)
        values |= protocol.properties[0].finish(material, {**outcome.values, **outcome.tables}).values
    return {
        "status": PROPERTY_STATUSES[outcome.status],
        **{name: float(values[name]) for name in VALUES[what] if name in values},
        "seconds": round(time.process_time() - begin, 2),
    }


def print_results(what: str, rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Print how far the values of the two files differ."""
    both = [(name, row) for name, row in rows.items() if all(precision in row for precision in PRECISIONS)]
    if not both:
        return
    equal = sum(row["float32"]["status"] == row["float64"]["status"] for _, row in both)
    seconds = {precision: sum(row[precision]["seconds"] for _, row in both) for precision in PRECISIONS}
    print(
        f"\n{what}: {len(both)} crystals, status equal for {equal}; CPU time "
        + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    )
    for value, unit in VALUES[what].items():
        known = [(name, row) for name, row in both if all(value in row[precision] for precision in PRECISIONS)]
        if not known:
            continue
        ours, exact = (np.array([row[precision][value] for _, row in known]) for precision in PRECISIONS)
        difference = 100 * np.abs(ours / exact - 1) if unit == "%" else np.abs(ours - exact)
        worst = int(difference.argmax())
        print(
            f"  {value}: {len(known)} crystals, median difference {np.median(difference):.2g} {unit}, largest "
            f"{difference[worst]:.2g} {unit} ({known[worst][0]}: {ours[worst]:.5g} and {exact[worst]:.5g})"
        )


def main(
    data: Path, work: Path, what: Sequence[str], count: int, threads: int, kept: Path, *, only_print: bool
) -> None:
    warnings.simplefilter("ignore")
    # Set before phono3py is imported, whose compiled code ignores OMP_NUM_THREADS.
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    work.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, dict[str, Any]]] = json.loads(kept.read_text()) if kept.exists() else {}
    if not only_print:
        files = [exported(MODEL, work, float64=precision == "float64") for precision in PRECISIONS]
        potentials = [OnnxPotential.load(file, threads=threads) for file in files]
        for name in what:
            for crystal, structure in crystals(data, name, count).items():
                row = results.setdefault(name, {}).setdefault(crystal, {})
                for precision, potential in zip(PRECISIONS, potentials, strict=True):
                    if precision not in row:
                        row[precision] = computed(structure, potential, name)
                kappa.written(kept, lambda scratch: scratch.write_text(json.dumps(results, indent=1) + "\n"))
                print(f"{name}: {crystal} done", flush=True)
    print(header("phonopy", "phono3py"))
    for name in VALUES:
        print_results(name, results.get(name, {}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--what", default=",".join(VALUES))
    parser.add_argument("--crystals", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args()
    main(
        options.data,
        options.work,
        options.what.split(","),
        options.crystals,
        options.threads,
        options.results,
        only_print=options.print,
    )
