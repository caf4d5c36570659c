"""Lattice thermal conductivity, from second- and third-order force constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....pipeline.errors import ConfigError
from ....pipeline.store.schema import CARTESIAN, VOIGT_NOTE, ArraySpec, structure_array
from ....pipeline.structures.structure import Structure
from ....pipeline.structures.symmetry import find_symmetry
from ...relaxation.symmetry import symmetrized
from ..protocol import (
    IMAGINARY_MODES,
    Cells,
    Material,
    Outcome,
    Property,
    Stages,
    Workload,
    check_crystal,
    check_numbers,
    table_array,
)
from .phonons import check_displacements, check_size
from .supercells import supercell_matrix
from .transport import (
    Conductivity,
    ConductivitySupercells,
    Mesh,
    conductivity,
    conductivity_supercells,
    set_harmonic_forces,
)

# For estimates: third-order displacements per pair of an atom of the cell and an atom of its supercell, and atoms per
# volume.
_DISPLACEMENTS_PER_PAIR = 2
_ATOMS_PER_VOLUME = 1 / 15.0  # 1/angstrom^3
# Dims of the tables: atoms of all harmonic supercells, of all anharmonic ones, irreducible wave vectors, their modes.
_HARMONIC, _ANHARMONIC, _WAVE_VECTOR, _MODE = "kappa_harmonic_atom", "kappa_anharmonic_atom", "kappa_q", "kappa_mode"
_INTEGER = 1e-5  # largest difference of a matrix from integers


@dataclass(frozen=True, slots=True)
class ProtocolCells:
    """Supercells and mesh that a published protocol uses for crystals of one space group.

    Attributes:
        harmonic: Repetitions of the conventional cell for the second-order force constants.
        anharmonic: Repetitions of the conventional cell for the third-order force constants.
        mesh: Numbers of wave vectors along the reciprocal lattice vectors of the primitive cell.
    """

    harmonic: tuple[int, int, int]
    anharmonic: tuple[int, int, int]
    mesh: tuple[int, int, int]


_CUBIC = ProtocolCells((4, 4, 4), (2, 2, 2), (19, 19, 19))
# Cells and meshes of the 103 binary compounds of phonondb (Togo et al., Phys. Rev. B 91, 094306 (2015); Póta et al.,
# arXiv:2408.00755), by the number of the space group: rocksalt, zincblende and wurtzite.
PHONONDB_CELLS = {225: _CUBIC, 216: _CUBIC, 186: ProtocolCells((5, 5, 3), (3, 3, 2), (19, 19, 15))}


@dataclass(frozen=True, slots=True)
class Kappa(Property):
    """Lattice thermal conductivity in the relaxation-time approximation, with coherences, by phono3py; see `transport`.

    Attributes:
        displacement: Length of the displacements, angstrom.
        min_length: Smallest distance of an atom from its images in the supercell of the second-order force constants,
            angstrom.
        min_length_third: The same length for the third-order force constants; their number of supercells grows with the
            number of atoms in a supercell.
        max_atoms: Crystals that need a larger supercell have the status ``too_large``.
        max_displacements: Crystals that need more third-order displacements have the status ``too_large``.
        mesh: Length that sets the mesh of wave vectors, angstrom; its numbers of points are the products of this length
            with the lengths of the reciprocal lattice vectors (without 2 pi).
        phonondb: Use the supercells and meshes of the benchmark phonondb-103 for crystals in its three space groups;
            all others follow the lengths above.
        temperature: Temperature, K.
        isotopes: Whether the natural mixture of isotopes scatters phonons.
        boundary: Mean free path that boundaries impose, micrometres.
        average_degenerate: Whether to average the weights of scattering over degenerate modes. Otherwise the
            conductivity depends a little on rounding errors, which choose the eigenvectors of such modes.
        tolerance: No conductivity is computed if a frequency on the mesh is below minus this value, THz.

    Raises:
        ConfigError: A value is out of range.
    """

    name = "kappa"
    has_finish = True
    libraries = ("phonopy", "phono3py")

    displacement: float = 0.03
    min_length: float = 12.0
    min_length_third: float = 9.0
    max_atoms: int = 600
    max_displacements: int = 3_000
    mesh: float = 60.0
    phonondb: bool = False
    temperature: float = 300.0
    isotopes: bool = True
    boundary: float = 1e6
    average_degenerate: bool = True
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, zero_allowed=("tolerance",))
        if min(self.max_atoms, self.max_displacements) < 1:
            raise ConfigError("max_atoms and max_displacements must be at least 1")

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """See `Property.arrays`."""
        return (
            structure_array(
                "kappa", "float64", "lattice thermal conductivity, averaged over directions", units="W/m/K"
            ),
            structure_array(
                "kappa_coherence",
                "float64",
                "part of the lattice thermal conductivity that coherences between modes contribute",
                units="W/m/K",
            ),
            structure_array(
                "kappa_tensor",
                "float64",
                "lattice thermal conductivity" + VOIGT_NOTE,
                dims=("voigt",),
                inner=(6,),
                units="W/m/K",
            ),
            structure_array(
                "kappa_min_frequency",
                "float64",
                "lowest frequency on the mesh of the conductivity; negative for an imaginary mode",
                units="THz",
            ),
            structure_array(
                "n_kappa_displacements",
                "int32",
                "number of displaced supercells for third-order force constants",
                units="1",
            ),
        )

    @property
    def tables(self) -> tuple[ArraySpec, ...]:
        """See `Property.tables`."""
        return (
            table_array(
                "kappa_harmonic_force",
                _HARMONIC,
                "forces in the supercells of second-order force constants, first without displacements",
                "eV/angstrom",
                CARTESIAN,
            ),
            table_array(
                "kappa_anharmonic_force",
                _ANHARMONIC,
                "forces in the supercells of third-order force constants, first without displacements",
                "eV/angstrom",
                CARTESIAN,
            ),
            ArraySpec(
                "kappa_wave_vector",
                (_WAVE_VECTOR, "reciprocal_vector"),
                "float64",
                {
                    "description": "irreducible wave vector, in reciprocal lattice vectors of the primitive cell",
                    "units": "1",
                },
                (3,),
            ),
            table_array("kappa_weight", _WAVE_VECTOR, "number of wave vectors that an irreducible one represents", "1"),
            table_array(
                "kappa_frequency", _MODE, "frequencies of all modes at the first wave vector, then the next", "THz"
            ),
            table_array(
                "mode_kappa",
                _MODE,
                "contributions of these modes to the conductivity, averaged over directions, times the number of wave "
                "vectors of the mesh",
                "W/m/K",
            ),
        )

    def workload(self, n_atoms: int) -> Workload:
        """See `Property.workload`; two displacements are assumed for each pair of an atom with one of the supercell."""
        size = max(n_atoms, round(self.min_length_third**3 * _ATOMS_PER_VOLUME))
        cells = min(_DISPLACEMENTS_PER_PAIR * n_atoms * size, self.max_displacements)
        return Workload(cells, cells * min(size, self.max_atoms))

    def stages(self, material: Material) -> Stages:
        """See `Property.stages`."""
        supercells = self._supercells(material)
        results = yield Cells(supercells.harmonic())
        harmonic = [one.forces for one in results]
        lowest = set_harmonic_forces(supercells, harmonic)
        values = {"kappa_min_frequency": lowest, "n_kappa_displacements": supercells.n_anharmonic}
        tables = {"kappa_harmonic_force": np.concatenate(harmonic)}
        if lowest < -self.tolerance:
            return Outcome(IMAGINARY_MODES, values, tables, f"{lowest:.2f} THz")
        results = yield Cells(supercells.anharmonic())
        tables["kappa_anharmonic_force"] = np.concatenate([one.forces for one in results])
        return Outcome(values=values, tables=tables)

    def finish(self, material: Material, found: Mapping[str, Any]) -> Outcome:
        """Solve the transport equation, from the forces; see `Property.finish`."""
        supercells = self._supercells(material)
        phono3py = supercells.phono3py
        harmonic = np.asarray(found["kappa_harmonic_force"]).reshape(-1, len(phono3py.phonon_supercell), 3)
        anharmonic = np.asarray(found["kappa_anharmonic_force"]).reshape(-1, len(phono3py.supercell), 3)
        set_harmonic_forces(supercells, harmonic)
        result = conductivity(
            supercells,
            anharmonic,
            [self.temperature],
            isotopes=self.isotopes,
            boundary=self.boundary,
            average_degenerate=self.average_degenerate,
        )
        return Outcome(values=_values(result), tables=_tables(result))

    def _supercells(self, material: Material) -> ConductivitySupercells:
        """Return the supercells of a material.

        Raises:
            OutcomeError: The material is not a crystal, or exceeds the limits.
        """
        check_crystal(material.structure)
        crystal = symmetrized(material.structure, material.symprec)
        harmonic, anharmonic, mesh = self._cells(crystal, material.symprec)
        for matrix in (harmonic, anharmonic):
            check_size(len(crystal) * round(abs(np.linalg.det(matrix))), self.max_atoms)
        supercells = conductivity_supercells(crystal, harmonic, anharmonic, mesh, self.displacement)
        check_displacements(supercells.n_anharmonic, self.max_displacements)
        return supercells

    def _cells(self, crystal: Structure, symprec: float) -> tuple[NDArray[np.int64], NDArray[np.int64], Mesh]:
        """Return the supercells of the second- and third-order force constants, int64[3, 3] each, and the mesh."""
        found = find_symmetry(crystal, symprec) if self.phonondb else None
        if found is not None and (cells := PHONONDB_CELLS.get(found.number)):
            conventional = np.array(found.std_linear).T  # rows are lattice vectors, in lattice vectors of the crystal
            matrices = [np.diag(counts) @ conventional for counts in (cells.harmonic, cells.anharmonic)]
            harmonic, anharmonic = (np.rint(matrix).astype(np.int64) for matrix in matrices)
            if np.allclose(matrices, (harmonic, anharmonic), atol=_INTEGER):
                return harmonic, anharmonic, cells.mesh
        harmonic, anharmonic = (
            supercell_matrix(crystal, length, symprec) for length in (self.min_length, self.min_length_third)
        )
        return harmonic, anharmonic, self.mesh


def _values(result: Conductivity) -> dict[str, Any]:
    return {
        "kappa": result.kappa[0, :3].mean(),
        "kappa_coherence": result.coherence[0, :3].mean(),
        "kappa_tensor": result.kappa[0],
    }


def _tables(result: Conductivity) -> dict[str, NDArray[Any]]:
    return {
        "kappa_wave_vector": result.wave_vector,
        "kappa_weight": result.weight.astype(np.float64),
        "kappa_frequency": result.frequency.reshape(-1),
        "mode_kappa": result.mode_kappa[0].reshape(-1),
    }
