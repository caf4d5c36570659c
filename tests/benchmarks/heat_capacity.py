"""Heat capacities at 300 K against DFT, and against SevenNet's own code with phonopy and ASE.

    python tests/benchmarks/heat_capacity.py --data DATA_FOLDER --work FOLDER [--crystals 1000] [--slow-side 50]
        [--threads 2] [--results FILE] [--print]

Binary crystals of the Alexandria database (matcalc benchmark data 2025.1), in an order drawn at random, are relaxed
with 7net-0 to 1e-3 eV/angstrom with their space groups kept; then phonons are computed for ten of them together. The
DFT values are per mole of the cell; errors are printed per mole of atoms. For the first --slow-side crystals that have
phonons, phonopy receives the same relaxed crystals and supercells, makes its own displacements, and gets the forces
from SevenNet's calculator in PyTorch, one cell at a time.

Results are kept in the file of --results, by default `heat_capacity.json` beside this script; a later run does not
repeat finished work, so that many short runs make the benchmark. `--print` only prints the results that are there.
Times are CPU times, an equal share of those of ten crystals. Prints the text of `heat_capacity.txt`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ase
import numpy as np
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import Structure
from equiscreen.pipeline.readers.pymatgen_dict import structure_from_pymatgen
from equiscreen.screening.properties.evaluation import run_stages
from equiscreen.screening.properties.lattice_dynamics.phonons import Phonons
from equiscreen.screening.properties.protocol import PROPERTY_STATUSES, Material
from equiscreen.screening.relaxation.batched import RELAX_STATUSES, RelaxSettings, relax_structures
from equiscreen.screening.relaxation.symmetry import symmetrized
from pretrained import exported, header

MODEL = "7net-0"
SOURCE = "benchmarks/alexandria_binary_heat_capacity.json.gz"
SEED = 22
SYMPREC = 1e-3
RELAXATION = RelaxSettings(
    fmax=1e-3, smax=None, fix_symmetry=True, symprec=SYMPREC, allow_extrapolation=True, max_steps=500
)
PROPERTY = Phonons()
TOGETHER = 10  # crystals whose supercells are evaluated together
TOLERANCE = 0.1  # J/K per mole of the cell


@dataclass(frozen=True, slots=True)
class Labelled:
    """A crystal with its heat capacity in DFT.

    Attributes:
        name: Formula and id.
        structure: The crystal.
        heat_capacity: Heat capacity at 300 K in DFT, J/K per mole of atoms.
    """

    name: str
    structure: Structure
    heat_capacity: float


def crystals(data: Path, count: int) -> list[Labelled]:
    """Random crystals; a smaller sample is the start of a larger one."""
    rows = json.loads(gzip.decompress((data / SOURCE).read_bytes()))
    found = []
    for row in np.random.default_rng(SEED).permutation(len(rows))[:count].tolist():
        structure = structure_from_pymatgen(rows[row]["structure"])
        name = f"{rows[row]['formula']} {rows[row]['mp_id']}"
        found.append(Labelled(name, structure, rows[row]["heat_capacity"] / len(structure)))
    return found


def relaxed(some: Sequence[Labelled], potential: OnnxPotential) -> tuple[dict[str, Material], dict[str, str]]:
    """The relaxed crystals by name, without those whose relaxation did not converge, and the statuses of all."""
    by_name = {one.name: symmetrized(one.structure, SYMPREC) for one in some}
    materials, statuses = {}, {}
    for name, one in relax_structures(list(by_name.items()), potential, RELAXATION):
        statuses[name] = RELAX_STATUSES[one.status]
        if statuses[name] == "ok" and one.last is not None:
            last = one.last
            materials[name] = Material(last.structure, last.energy, last.forces, last.stress, SYMPREC)
    return materials, statuses


def computed(some: Sequence[Labelled], potential: OnnxPotential) -> dict[str, dict[str, Any]]:
    """Relax some crystals and compute their phonons; returns what is kept of each, by name."""
    begin = time.process_time()
    materials, statuses = relaxed(some, potential)
    middle = time.process_time()
    found = run_stages({name: PROPERTY.stages(one) for name, one in materials.items()}, potential)
    seconds = {"relax_seconds": middle - begin, "phonon_seconds": time.process_time() - middle}
    results: dict[str, dict[str, Any]] = {}
    for one in some:
        row: dict[str, Any] = {"relaxation": statuses[one.name], "phonons": None}
        row.update({name: round(value / len(some), 2) for name, value in seconds.items()})
        if one.name in found:
            outcome = found[one.name]
            row.update(phonons=PROPERTY_STATUSES[outcome.status], note=outcome.note)
            if "heat_capacity" in outcome.values:
                row.update(
                    heat_capacity=float(outcome.values["heat_capacity"]),
                    min_frequency=float(outcome.values["min_frequency"]),
                    stable=bool(outcome.values["is_dynamically_stable"]),
                    displacements=int(outcome.values["n_phonon_displacements"]),
                    supercell=np.asarray(outcome.values["phonon_supercell"]).tolist(),
                )
        results[one.name] = row
    return results


@cache
def calculator() -> Any:
    """SevenNet's calculator."""
    from sevenn.calculator import SevenNetCalculator  # noqa: PLC0415 - only this side needs it

    return SevenNetCalculator(MODEL, device="cpu")


def with_phonopy(material: Material, matrix: np.ndarray) -> dict[str, Any]:
    """Heat capacity (J/K per mole of atoms), lowest frequency (THz) and CPU time of phonopy and SevenNet's calculator.

    The calculator gets one cell at a time.
    """
    from phonopy import Phonopy  # noqa: PLC0415 - only this side needs it
    from phonopy.structure.atoms import PhonopyAtoms  # noqa: PLC0415 - only this side needs it

    begin = time.process_time()
    atoms = material.structure.to_ase()
    unitcell = PhonopyAtoms(atoms.get_chemical_symbols(), cell=atoms.cell.array, positions=atoms.positions)
    phonopy = Phonopy(unitcell, matrix.T)
    phonopy.generate_displacements(distance=PROPERTY.displacement)
    forces = []
    for cell in (phonopy.supercell, *phonopy.supercells_with_displacements):
        image = ase.Atoms(cell.symbols, positions=cell.positions, cell=cell.cell, pbc=True, calculator=calculator())
        forces.append(image.get_forces())
    phonopy.forces = np.array(forces[1:]) - forces[0]
    phonopy.produce_force_constants()
    phonopy.symmetrize_force_constants(level=3)
    mesh = phonopy.run_mesh(PROPERTY.mesh)
    thermal = phonopy.run_thermal_properties(temperatures=[PROPERTY.temperature], exclude_gamma_acoustic=True)
    return {
        "heat_capacity": float(thermal.heat_capacity[0]) / len(phonopy.primitive),
        "min_frequency": float(mesh.frequencies.min()),
        "seconds": round(time.process_time() - begin, 2),
    }


def print_results(some: Sequence[Labelled], results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the errors against DFT, and the comparison with phonopy and SevenNet's calculator."""
    done = [one for one in some if one.name in results]
    rows = [results[one.name] for one in done]
    print(f"{len(done)} of {len(some)} crystals, {sum(len(one.structure) for one in done):,} atoms in their cells")
    for kind in ("relaxation", "phonons"):
        print(f"{kind}: {dict(Counter(row[kind] for row in rows if row[kind] is not None))}")
    known = [(one, results[one.name]) for one in done if "heat_capacity" in results[one.name]]
    if not known:
        return
    seconds = {name: sum(row[f"{name}_seconds"] for row in rows) for name in ("relax", "phonon")}
    cells = sum(row["displacements"] + 1 for _, row in known)
    print(f"CPU time: relaxations {seconds['relax']:.0f} s, phonons of {cells:,} supercells {seconds['phonon']:.0f} s")
    error = np.array([row["heat_capacity"] - one.heat_capacity for one, row in known])
    stable = np.array([row["stable"] for _, row in known])
    for title, chosen in (("all", np.ones_like(stable)), ("dynamically stable in the model", stable)):
        values = error[chosen]
        print(
            f"{title}: {len(values)} crystals, MAE {np.abs(values).mean():.3f}, median absolute error "
            f"{np.median(np.abs(values)):.3f}, mean error {values.mean():+.3f} J/K per mole of atoms"
        )
    print_comparison([(one, row) for one, row in known if "phonopy" in row])


def print_comparison(compared: Sequence[tuple[Labelled, Mapping[str, Any]]]) -> None:
    """Print how far the heat capacities of phonopy and SevenNet's calculator differ from ours."""
    if not compared:
        return
    mine, theirs = (
        np.array([len(one.structure) * source["heat_capacity"] for one, source in rows])
        for rows in (compared, [(one, row["phonopy"]) for one, row in compared])
    )
    equal = sum(row["stable"] == (row["phonopy"]["min_frequency"] >= -PROPERTY.tolerance) for _, row in compared)
    difference = np.abs(mine - theirs)
    within = int((difference <= TOLERANCE).sum())
    print(
        f"phonopy + SevenNet's calculator, the same relaxed crystals and supercells: {within} of {len(compared)} heat "
        f"capacities within {TOLERANCE:g} J/K per mole of the cell, largest difference {difference.max():.4f}; "
        f"stability equal for {equal}; CPU time {sum(row['phonopy']['seconds'] for _, row in compared):.0f} s"
    )
    for place, (one, row) in enumerate(compared):
        if difference[place] > TOLERANCE:
            print(
                f"  {one.name}: ours {mine[place]:.3f}, theirs {theirs[place]:.3f}; lowest frequencies "
                f"{row['min_frequency']:.3f} and {row['phonopy']['min_frequency']:.3f} THz"
            )


def main(data: Path, work: Path, count: int, slow: int, threads: int, kept: Path, *, only_print: bool) -> None:
    warnings.simplefilter("ignore")
    work.mkdir(parents=True, exist_ok=True)
    some = crystals(data, count)
    results: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}

    def keep() -> None:
        """Write the results, one line per crystal, under another name first."""
        lines = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in results.items())
        scratch = kept.with_name(f"unfinished-{kept.name}")
        scratch.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        scratch.replace(kept)

    if not only_print:
        potential = OnnxPotential.load(exported(MODEL, work), threads=threads)
        for first in range(0, count, TOGETHER):
            missing = [one for one in some[first : first + TOGETHER] if one.name not in results]
            if missing:
                results.update(computed(missing, potential))
                keep()
                print(f"{first + TOGETHER} crystals done", flush=True)
            # The relaxations of the few crystals to compare are repeated, with the same result.
            for one in [one for one in some[: first + TOGETHER] if "heat_capacity" in results[one.name]][:slow]:
                row = results[one.name]
                if "phonopy" not in row:
                    materials, _ = relaxed([one], potential)
                    row["phonopy"] = with_phonopy(materials[one.name], np.array(row["supercell"]))
                    keep()
    print(header("phonopy", "sevenn"))
    print_results(some, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--crystals", type=int, default=1000)
    parser.add_argument("--slow-side", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args()
    main(
        options.data,
        options.work,
        options.crystals,
        options.slow_side,
        options.threads,
        options.results,
        only_print=options.print,
    )
