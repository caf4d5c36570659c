"""Alloys of seven metals, made from real prototypes and labelled with ASE's effective medium theory (EMT).

The prototypes come from the AFLOW library (Mehl et al., Comput. Mater. Sci. 136, S1 (2017)), as pymatgen ships them.
EMT (Jacobsen, Stoltze and Norskov, Surf. Sci. 366, 394 (1996)) is a classical potential for exactly these metals. An
evaluation takes milliseconds; EMT plays the role of DFT in this demo.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.data import atomic_numbers, chemical_symbols, reference_states
from ase.io import write
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")
# AFLOW labels of structures in which metals and alloys crystallise: A1, A2, A3, A6, A15, L1_0, L1_1, L1_2, L1_3, L6_0,
# B2, B11, B19, B32, B33, D0_3, D0_19, D0_22, D0_23, D0_a, C11_b, C14, C15, C15_b, C16, D1_3, D1_a, D2_d, D5_13, MoPt2,
# TiPt8, L2_1, C1_b and E2_1.
PROTOTYPES = frozenset(
    [
        "A_cF4_225_a",
        "A_cI2_229_a",
        "A_hP2_194_c",
        "A_tI2_139_a",
        "A3B_cP8_223_c_a",
        "AB_tP2_123_a_d",
        "AB_hR2_166_a_b",
        "AB3_cP4_221_a_c",
        "AB3_oC8_65_a_bf",
        "AB3_tP4_123_a_ce",
        "AB_cP2_221_b_a",
        "AB_tP4_129_c_c",
        "AB_oP4_51_e_f",
        "AB_cF16_227_a_b",
        "AB_oC8_63_c_c",
        "AB3_cF16_225_a_bc",
        "A3B_hP8_194_h_c",
        "A3B_tI8_139_bd_a",
        "A3B_tI16_139_cde_e",
        "A3B_oP8_59_bf_a",
        "AB2_tI6_139_a_e",
        "AB2_hP12_194_f_ah",
        "A2B_cF24_227_d_a",
        "AB5_cF24_216_a_ce",
        "A2B_tI12_140_h_a",
        "A4B_tI10_139_de_a",
        "AB4_tI10_87_a_h",
        "AB5_hP6_191_a_cg",
        "A3B2_hP5_164_ad_d",
        "AB2_oI6_71_a_g",
        "A8B_tI18_139_hi_a",
        "AB2C_cF16_225_a_c_b",
        "ABC_cF12_216_b_c_a",
        "AB3C_cP5_221_a_c_b",
    ]
)
# Range of the distance between nearest neighbours, in units of the sum of their metallic radii.
SPACING = (0.96, 1.06)
MAX_STRAIN = 0.03
MAX_RATTLE = 0.12  # angstrom, standard deviation


@dataclass(frozen=True, slots=True)
class AlloyTask:
    """A batch of alloys to make and label, written to one file.

    Attributes:
        path: Extended XYZ file to write.
        first: Number of the first alloy. Number and seed determine an alloy completely.
        count: Number of alloys.
        seed: Random seed; training alloys and candidates have different ones.
        teach: If True, write EMT's energy, forces and stress as labels. If False, write only the energy, under the
            name `emt_energy`, for the comparison at the end.
    """

    path: Path
    first: int
    count: int
    seed: int
    teach: bool


def write_alloys(task: AlloyTask) -> int:
    """Make, label and write alloys; the body of a Dask task.

    Returns:
        Number of alloys written.
    """
    library = prototypes()
    with warnings.catch_warnings():
        # ASE warns if `info` has a key with the name of a calculator result; here it never has one.
        warnings.simplefilter("ignore")
        images = []
        for number in range(task.first, task.first + task.count):
            rng = np.random.default_rng((task.seed, number))
            name = sorted(library)[int(rng.integers(len(library)))]
            atoms = make_alloy(library[name], rng)
            atoms.info.update(structure_id=f"{'training' if task.teach else 'candidate'}-{number:06d}", prototype=name)
            images.append(labelled(atoms, teach=task.teach))
        write(task.path, images, format="extxyz")
    return len(images)


def prototypes() -> dict[str, Atoms]:
    """Return the primitive cells of the prototypes by AFLOW label."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY  # noqa: PLC0415 - takes seconds to import

        found = {}
        for entry in AFLOW_PROTOTYPE_LIBRARY:
            label = str(entry["tags"]["aflow"])
            if label in PROTOTYPES:
                structure = entry["snl"].structure
                numbers = [site.specie.Z for site in structure]
                found[label] = Atoms(
                    numbers=numbers,
                    scaled_positions=structure.frac_coords,
                    cell=structure.lattice.matrix,
                    pbc=True,
                )
    return found


def make_alloy(prototype: Atoms, rng: np.random.Generator) -> Atoms:
    """Put random metals on the sites of a prototype, scale the cell to their radii, then strain and rattle it."""
    atoms = prototype.copy()
    species, sites = np.unique(prototype.numbers, return_inverse=True)
    atoms.numbers = np.array([atomic_numbers[m] for m in rng.choice(METALS, len(species), replace=False)])[sites]
    scale = rng.uniform(*SPACING) / nearest_contact(atoms)
    strain = rng.uniform(-MAX_STRAIN, MAX_STRAIN, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) * scale + (strain + strain.T) / 2), scale_atoms=True)
    atoms.positions += rng.normal(0, rng.uniform(0, MAX_RATTLE), atoms.positions.shape)
    return atoms


def nearest_contact(atoms: Atoms) -> float:
    """Return the smallest ratio of an interatomic distance to the sum of the two metallic radii."""
    radii = metallic_radii()
    images = np.array(list(np.ndindex(5, 5, 5))) - 2
    shifts = images @ atoms.cell.array
    vectors = atoms.positions[None, :, None] - atoms.positions[:, None, None] + shifts
    distance = np.linalg.norm(vectors, axis=-1)
    distance[distance < 1e-8] = np.inf
    contact = radii[atoms.numbers][:, None] + radii[atoms.numbers][None, :]
    return float((distance.min(axis=-1) / contact).min())


def metallic_radii() -> NDArray[np.float64]:
    """Return half the nearest-neighbour distance of each fcc metal, angstrom, by atomic number; zero for others."""
    radii = np.zeros(len(chemical_symbols))
    for metal in METALS:
        number = chemical_symbols.index(metal)
        radii[number] = reference_states[number]["a"] / np.sqrt(8)
    return radii


def labelled(atoms: Atoms, *, teach: bool) -> Atoms:
    """Return a copy with EMT's energy, forces and stress as labels, or with only the energy as `info["emt_energy"]`."""
    worker = atoms.copy()
    worker.calc = EMT()
    energy = float(worker.get_potential_energy())
    if not teach:
        worker.calc = None
        worker.info["emt_energy"] = energy
        return worker
    worker.get_forces()
    worker.get_stress()
    return worker


def write_references(path: Path) -> dict[str, float]:
    """Write the seven metals in fcc, each at EMT's equilibrium lattice constant, with EMT's energy as ``emt_energy``.

    Returns:
        EMT's energy of each metal, eV/atom.
    """
    images, energies = [], {}
    for metal in METALS:
        guess = float(reference_states[chemical_symbols.index(metal)]["a"])
        best = minimize_scalar(lambda a, metal=metal: _fcc_energy(metal, a), bounds=(0.9 * guess, 1.1 * guess))
        atoms = bulk(metal, "fcc", a=float(best.x))
        atoms.info.update(structure_id=f"reference-{metal}", prototype="A_cF4_225_a", emt_energy=float(best.fun))
        images.append(atoms)
        energies[metal] = float(best.fun)
    write(path, images, format="extxyz")
    return energies


def _fcc_energy(metal: str, lattice_constant: float) -> float:
    atoms = bulk(metal, "fcc", a=lattice_constant)
    atoms.calc = EMT()
    return float(atoms.get_potential_energy())
