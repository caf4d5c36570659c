"""Phonons: dynamical stability, thermodynamic functions, density of states and bands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....pipeline.errors import ConfigError
from ....pipeline.store.schema import CARTESIAN, CARTESIAN_2, LATTICE_VECTOR, TEXT, ArraySpec, structure_array
from ....pipeline.structures.structure import Structure
from ...relaxation.batched import RelaxSettings
from ...relaxation.symmetry import symmetrized
from ..protocol import (
    FAILED,
    IMAGINARY_MODES,
    OK,
    TOO_LARGE,
    Cells,
    Material,
    Outcome,
    OutcomeError,
    Property,
    Stages,
    Workload,
    check_crystal,
    check_numbers,
    table_array,
)
from .force_constants import Stability, displaced_supercells, set_force_constants, stability
from .mode_following import AMPLITUDES, follow, followed_arrays
from .spectra import bands, density_of_states, thermal_displacements, thermal_functions
from .supercells import supercell_matrix

# For estimates: displacements of a crystal of average symmetry per atom of its cell, and atoms per volume.
_DISPLACEMENTS_PER_ATOM = 3
_ATOMS_PER_VOLUME = 1 / 15.0  # 1/angstrom^3
# Dims of the tables: points of the density of states, points of the path, modes at these points, atoms of the crystal,
# and pairs of an atom of the primitive cell and one of the supercell.
_FREQUENCY, _POINT, _MODE = "dos_point", "band_point", "band_mode"
_ATOM, _PAIR = "phonon_atom", "force_constant_pair"


_DIELECTRIC = structure_array(
    "dielectric_tensor",
    "float64",
    "electronic part of the dielectric tensor that was given",
    dims=(CARTESIAN, CARTESIAN_2),
    units="1",
)
_BORN = table_array(
    "born_charge",
    _ATOM,
    "Born charge that was given, with the symmetry of the crystal; first the polarization, then the displacement",
    "e",
    CARTESIAN,
    CARTESIAN_2,
)


def _scalar(name: str, description: str, units: str, temperature: float) -> ArraySpec:
    return structure_array(
        name, "float64", f"{description}, at {temperature:g} K", units=units, temperature=temperature
    )


@dataclass(frozen=True, slots=True)
class Phonons(Property):
    """Phonons by finite displacements, with phonopy.

    Attributes:
        displacement: Length of the displacements, angstrom.
        min_length: Smallest distance of an atom from its images in the supercell, angstrom.
        supercell: Repetitions of the cell along its three vectors; None chooses the supercell by `min_length`.
        max_atoms: Crystals that need a larger supercell have the status ``too_large``.
        max_displacements: Crystals that need more displacements have the status ``too_large``.
        mesh: Length that sets the mesh of wave vectors, angstrom; its numbers of points are the products of this length
            with the lengths of the reciprocal lattice vectors (without 2 pi).
        tolerance: A crystal is dynamically stable if no frequency is below minus this value, THz.
        temperature: Temperature of the thermodynamic functions with one value per crystal, K.
        temperatures: Temperatures of the thermodynamic functions with several values per crystal, K.
        follow: How to relax the structure that the softest imaginary mode leads to; None does not follow the mode.
        nac: Whether the non-analytical term of the Born charges splits longitudinal and transverse optical modes.

    Raises:
        ConfigError: A value is out of range.
    """

    name = "phonons"
    libraries = ("phonopy", "seekpath")

    displacement: float = 0.01
    min_length: float = 12.0
    supercell: tuple[int, int, int] | None = None
    max_atoms: int = 500
    max_displacements: int = 500
    mesh: float = 50.0
    tolerance: float = 0.1
    temperature: float = 300.0
    temperatures: tuple[float, ...] = tuple(float(value) for value in range(0, 1001, 100))
    follow: RelaxSettings | None = None
    nac: bool = False

    def __post_init__(self) -> None:
        check_numbers(self)
        if min(self.max_atoms, self.max_displacements, *(self.supercell or (1,))) < 1:
            raise ConfigError("max_atoms, max_displacements and the repetitions of a supercell must be at least 1")
        if not self.temperatures or not all(math.isfinite(value) and value >= 0 for value in self.temperatures):
            raise ConfigError("temperatures must be one or more finite numbers that are not negative")

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """See `Property.arrays`."""
        return (
            structure_array(
                "is_dynamically_stable",
                "bool",
                "whether no phonon has a frequency below minus the tolerance; false if it is not known",
            ),
            structure_array(
                "min_frequency",
                "float64",
                "lowest frequency apart from the acoustic modes at Gamma; negative for an imaginary mode",
                units="THz",
            ),
            structure_array(
                "min_frequency_wave_vector",
                "float64",
                "wave vector of the lowest frequency, in reciprocal lattice vectors of the primitive cell",
                dims=("reciprocal_vector",),
                inner=(3,),
                units="1",
            ),
            structure_array(
                "imaginary_fraction",
                "float64",
                "share of the modes of a mesh with a frequency below minus the tolerance",
                units="1",
            ),
            structure_array(
                "acoustic_frequency",
                "float64",
                "largest absolute frequency of the three acoustic modes at Gamma, zero up to rounding",
                units="THz",
            ),
            _scalar(
                "heat_capacity", "heat capacity at constant volume, per mole of atoms", "J/mol/K", self.temperature
            ),
            _scalar("vibrational_entropy", "entropy of the vibrations, per mole of atoms", "J/mol/K", self.temperature),
            _scalar(
                "vibrational_free_energy",
                "Helmholtz free energy of the vibrations, with the zero-point energy",
                "eV/atom",
                self.temperature,
            ),
            structure_array("zero_point_energy", "float64", "zero-point energy of the vibrations", units="eV/atom"),
            _scalar(
                "mean_square_displacement",
                "mean-square displacement in one direction, averaged over directions and atoms",
                "angstrom^2",
                self.temperature,
            ),
            self._by_temperature("heat_capacities", "heat capacity per mole of atoms", "J/mol/K"),
            self._by_temperature("vibrational_entropies", "entropy per mole of atoms", "J/mol/K"),
            self._by_temperature("vibrational_free_energies", "Helmholtz free energy of the vibrations", "eV/atom"),
            structure_array(
                "phonon_supercell",
                "int32",
                "lattice vectors of the supercell as rows, in lattice vectors of the relaxed structure",
                dims=("supercell_vector", LATTICE_VECTOR),
                inner=(3, 3),
                units="1",
            ),
            structure_array("n_phonon_displacements", "int32", "number of displaced supercells", units="1"),
            *((_DIELECTRIC,) if self.nac else ()),
            *(() if self.follow is None else followed_arrays()),
        )

    def _by_temperature(self, name: str, description: str, units: str) -> ArraySpec:
        return structure_array(
            name,
            "float64",
            description,
            dims=("phonon_temperature",),
            inner=(len(self.temperatures),),
            units=units,
            temperatures=list(self.temperatures),
            temperature_units="K",
        )

    @property
    def tables(self) -> tuple[ArraySpec, ...]:
        """See `Property.tables`."""
        label = {"description": "name of a wave vector that ends a segment"}
        return (
            table_array("dos_frequency", _FREQUENCY, "frequency", "THz"),
            table_array("dos", _FREQUENCY, "states per atom and frequency", "1/THz"),
            table_array("band_distance", _POINT, "distance along the path, without 2 pi", "1/angstrom"),
            ArraySpec("band_label", (_POINT,), TEXT, label),
            table_array(
                "band_frequency", _MODE, "frequencies of all modes at the first point of the path, then the next", "THz"
            ),
            table_array(
                "displacement_tensor",
                _ATOM,
                "mean-square displacements of an atom",
                "angstrom^2",
                CARTESIAN,
                CARTESIAN_2,
            ),
            table_array(
                "force_constants",
                _PAIR,
                "force constants of an atom of the primitive cell with all atoms of the supercell, then the next",
                "eV/angstrom^2",
                CARTESIAN,
                CARTESIAN_2,
            ),
            *((_BORN,) if self.nac else ()),
        )

    def workload(self, n_atoms: int) -> Workload:
        """See `Property.workload`; three displacements per atom of the cell, and those along a mode to follow."""
        copies = math.prod(self.supercell) if self.supercell else 1
        size = max(copies * n_atoms, round(self.min_length**3 * _ATOMS_PER_VOLUME))
        cells = 1 + _DISPLACEMENTS_PER_ATOM * n_atoms + (0 if self.follow is None else len(AMPLITUDES))
        return Workload(cells, cells * min(size, self.max_atoms))

    def stages(self, material: Material) -> Stages:
        """See `Property.stages`."""
        check_crystal(material.structure)
        if self.nac and material.born is None:
            raise OutcomeError(FAILED, "the Born charges of the crystal are not known")
        crystal = symmetrized(material.structure, material.symprec)
        matrix = self._supercell(crystal, material.symprec)
        check_size(len(crystal) * round(abs(np.linalg.det(matrix))), self.max_atoms)
        supercells = displaced_supercells(crystal, matrix, self.displacement)
        count = len(supercells.structures) - 1
        check_displacements(count, self.max_displacements)
        results = yield Cells(supercells.structures)
        born = material.born if self.nac else None
        phonopy = set_force_constants(supercells, [one.forces for one in results], born)
        found = stability(phonopy, self.mesh, self.tolerance)
        values, tensors = self._thermal(phonopy)
        values.update(_stability_values(found), phonon_supercell=matrix, n_phonon_displacements=count)
        tables = {
            **_spectra(phonopy),
            "displacement_tensor": tensors,
            "force_constants": np.asarray(phonopy.force_constants).reshape(-1, 3, 3),
        }
        if born is not None:
            values["dielectric_tensor"], tables["born_charge"] = born.dielectric, born.charges
        if found.is_stable:
            return Outcome(OK, values, tables)
        note = f"{found.min_frequency:.2f} THz at {_coordinates(found.min_wave_vector)}"
        if self.follow is None:
            return Outcome(IMAGINARY_MODES, values, tables, note)
        followed = yield from follow(phonopy, material, self.tolerance, self.follow)
        values |= {"followed_status": followed.status, **followed.values}
        notes = "; ".join(filter(None, (note, followed.note)))
        return Outcome(IMAGINARY_MODES, values, tables, notes, followed.result)

    def _supercell(self, crystal: Structure, symprec: float) -> NDArray[np.int64]:
        """Return the lattice vectors of the supercell as rows: int64[3, 3]."""
        if self.supercell is None:
            return supercell_matrix(crystal, self.min_length, symprec)
        return np.diag(self.supercell)

    def _thermal(self, phonopy: Any) -> tuple[dict[str, Any], NDArray[np.float64]]:
        """Return the quantities that depend on temperature, and the displacement tensors of the atoms."""
        here = thermal_functions(phonopy, [self.temperature])
        table = thermal_functions(phonopy, self.temperatures)
        tensors = thermal_displacements(phonopy, [self.temperature])[0]
        return {
            "heat_capacity": here.heat_capacity[0],
            "vibrational_entropy": here.entropy[0],
            "vibrational_free_energy": here.free_energy[0],
            "zero_point_energy": here.zero_point_energy,
            "mean_square_displacement": np.trace(tensors, axis1=1, axis2=2).mean() / 3,
            "heat_capacities": table.heat_capacity,
            "vibrational_entropies": table.entropy,
            "vibrational_free_energies": table.free_energy,
        }, tensors


def check_size(n_atoms: int, largest: int) -> None:
    """Check that a supercell is not too large.

    Raises:
        OutcomeError: The supercell has more atoms than the settings allow.
    """
    if n_atoms > largest:
        raise OutcomeError(TOO_LARGE, f"the supercell has {n_atoms:,} atoms; the limit is {largest:,}")


def check_displacements(count: int, largest: int) -> None:
    """Check that a crystal does not need too many displacements.

    Raises:
        OutcomeError: The crystal needs more displacements than the settings allow.
    """
    if count > largest:
        raise OutcomeError(TOO_LARGE, f"the crystal needs {count:,} displacements; the limit is {largest:,}")


def _stability_values(found: Stability) -> Mapping[str, Any]:
    return {
        "is_dynamically_stable": found.is_stable,
        "min_frequency": found.min_frequency,
        "min_frequency_wave_vector": found.min_wave_vector,
        "imaginary_fraction": found.imaginary_fraction,
        "acoustic_frequency": found.acoustic_at_gamma,
    }


def _spectra(phonopy: Any) -> dict[str, NDArray[Any] | list[str]]:
    """Return the tables of the density of states and of the bands."""
    states, path = density_of_states(phonopy), bands(phonopy)
    return {
        "dos_frequency": states.frequency,
        "dos": states.density,
        "band_distance": path.distance,
        "band_label": list(path.labels),
        "band_frequency": path.frequency.reshape(-1),
    }


def _coordinates(wave_vector: NDArray[np.float64]) -> str:
    """Return a wave vector as text."""
    return "(" + ", ".join(f"{value:.3g}" for value in wave_vector) + ")"
