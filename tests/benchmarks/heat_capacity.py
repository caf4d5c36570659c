"""Heat capacities at 300 K against DFT, and against SevenNet's own code with phonopy and ASE.

    python tests/benchmarks/heat_capacity.py --data DATA_FOLDER [--crystals 100] [--slow-side 5] [--threads 2]
        [--scratch FOLDER]

Binary crystals of the Alexandria database (matcalc benchmark data 2025.1) are relaxed with 7net-0 to 1e-3 eV/angstrom
with their space groups kept; then phonons are computed for all of them together. The DFT values are per mole of the
cell; errors are printed per mole of atoms. For --slow-side crystals, phonopy receives the same relaxed crystals and
supercells, makes its own displacements, and gets the forces from SevenNet's calculator in PyTorch, one cell at a time.
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
from pathlib import Path

import ase
import numpy as np
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import Structure
from equiscreen.pipeline.readers.pymatgen_dict import structure_from_pymatgen
from equiscreen.screening.properties.evaluation import run_stages
from equiscreen.screening.properties.lattice_dynamics.phonons import Phonons
from equiscreen.screening.properties.protocol import PROPERTY_STATUSES, Material, Outcome
from equiscreen.screening.relaxation.batched import RELAX_STATUSES, RelaxSettings, relax_structures
from equiscreen.screening.relaxation.symmetry import symmetrized
from pretrained import exported, header, kept_folder

MODEL = "7net-0"
SOURCE = "benchmarks/alexandria_binary_heat_capacity.json.gz"
SEED = 22
SYMPREC = 1e-3
RELAXATION = RelaxSettings(
    fmax=1e-3, smax=None, fix_symmetry=True, symprec=SYMPREC, allow_extrapolation=True, max_steps=500
)
PROPERTY = Phonons()
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


def relaxed(some: Sequence[Labelled], potential: OnnxPotential) -> dict[int, Material]:
    """Relaxed crystals by their index; crystals whose relaxation did not converge are left out."""
    pairs = [(place, symmetrized(one.structure, SYMPREC)) for place, one in enumerate(some)]
    materials, statuses = {}, Counter[str]()
    for place, one in relax_structures(pairs, potential, RELAXATION):
        statuses[RELAX_STATUSES[one.status]] += 1
        if RELAX_STATUSES[one.status] == "ok" and one.last is not None:
            last = one.last
            materials[place] = Material(last.structure, last.energy, last.forces, last.stress, SYMPREC)
    print(f"relaxations: {dict(statuses)}", flush=True)
    return materials


def with_phonopy(material: Material, matrix: np.ndarray) -> tuple[float, bool]:
    """Heat capacity (J/K per mole of atoms) and stability from phonopy and SevenNet's calculator, cell by cell."""
    from phonopy import Phonopy  # noqa: PLC0415 - only this side needs it
    from phonopy.structure.atoms import PhonopyAtoms  # noqa: PLC0415 - only this side needs it
    from sevenn.calculator import SevenNetCalculator  # noqa: PLC0415 - only this side needs it

    calculator = SevenNetCalculator(MODEL, device="cpu")
    atoms = material.structure.to_ase()
    unitcell = PhonopyAtoms(atoms.get_chemical_symbols(), cell=atoms.cell.array, positions=atoms.positions)
    phonopy = Phonopy(unitcell, matrix.T)
    phonopy.generate_displacements(distance=PROPERTY.displacement)
    forces = []
    for cell in (phonopy.supercell, *phonopy.supercells_with_displacements):
        image = ase.Atoms(cell.symbols, positions=cell.positions, cell=cell.cell, pbc=True, calculator=calculator)
        forces.append(image.get_forces())
    phonopy.forces = np.array(forces[1:]) - forces[0]
    phonopy.produce_force_constants()
    phonopy.symmetrize_force_constants(level=3)
    mesh = phonopy.run_mesh(PROPERTY.mesh)
    thermal = phonopy.run_thermal_properties(temperatures=[PROPERTY.temperature], exclude_gamma_acoustic=True)
    stable = float(mesh.frequencies.min()) >= -PROPERTY.tolerance
    return float(thermal.heat_capacity[0]) / len(phonopy.primitive), stable


def compare(some: Sequence[Labelled], materials: Mapping[int, Material], found: Mapping[int, Outcome]) -> None:
    """Compare with phonopy and SevenNet's calculator."""
    differences, agree = [], 0
    begin = time.perf_counter()
    for place in some_places(found):
        values = found[place].values
        expected, stable = with_phonopy(materials[place], values["phonon_supercell"])
        n_atoms = len(materials[place].structure)
        difference = n_atoms * (values["heat_capacity"] - expected)
        differences.append(abs(difference))
        agree += stable == bool(values["is_dynamically_stable"])
        print(
            f"  {some[place].name}: {values['heat_capacity']:.4f} and {expected:.4f} J/K per mole of atoms, "
            f"{difference:+.4f} per mole of the cell",
            flush=True,
        )
    print(
        f"phonopy + SevenNet's calculator, {len(differences)} crystals in {time.perf_counter() - begin:.0f} s: heat "
        f"capacities differ by at most {max(differences):.4f} J/K per mole of the cell (limit {TOLERANCE:g}); "
        f"stability equal for {agree}"
    )


def some_places(found: Mapping[int, Outcome]) -> list[int]:
    """Indices of the crystals that have phonons."""
    return sorted(place for place, one in found.items() if "heat_capacity" in one.values)


def main(data: Path, count: int, slow: int, threads: int, scratch: Path | None) -> None:
    warnings.simplefilter("ignore")
    with kept_folder(scratch) as folder:
        potential = OnnxPotential.load(exported(MODEL, folder), threads=threads)
    some = crystals(data, count)
    print(header("phonopy", "sevenn"))
    print(f"{count} crystals, {sum(len(one.structure) for one in some)} atoms, {threads} threads", flush=True)
    begin = time.perf_counter()
    materials = relaxed(some, potential)
    relaxation = time.perf_counter() - begin
    begin = time.perf_counter()
    found = run_stages({place: PROPERTY.stages(one) for place, one in materials.items()}, potential)
    seconds = time.perf_counter() - begin
    statuses = Counter(PROPERTY_STATUSES[one.status] for one in found.values())
    places = some_places(found)
    cells = sum(int(found[place].values["n_phonon_displacements"]) + 1 for place in places)
    print(
        f"relaxed in {relaxation:.0f} s; phonons of {len(places)} in {seconds:.0f} s, {cells:,} cells: {dict(statuses)}"
    )
    error = np.array([found[place].values["heat_capacity"] - some[place].heat_capacity for place in places])
    stable = np.array([bool(found[place].values["is_dynamically_stable"]) for place in places])
    for title, rows in (("all", np.ones_like(stable)), ("stable in the model", stable)):
        print(
            f"{title}: {int(rows.sum())} crystals, MAE {np.abs(error[rows]).mean():.3f}, median absolute error "
            f"{np.median(np.abs(error[rows])):.3f}, mean error {error[rows].mean():+.3f} J/K per mole of atoms"
        )
    if slow:
        compare(some, materials, {place: found[place] for place in places[:slow]})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--crystals", type=int, default=100)
    parser.add_argument("--slow-side", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    main(options.data, options.crystals, options.slow_side, options.threads, options.scratch)
