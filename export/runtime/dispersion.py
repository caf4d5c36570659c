"""DFT-D3 dispersion, added to the energies, forces and stresses of a network: a sum of two potentials.

Functionals such as PBE and r2SCAN lack the attraction between distant atoms that holds molecular and layered crystals
together, and so does a network that was trained on their energies. D3 (Grimme et al., J. Chem. Phys. 132, 154104
(2010)) with the damping of Becke and Johnson (Grimme et al., J. Comput. Chem. 32, 1456 (2011)) adds it for each pair of
atoms, as VASP does with IVDW=12; ``d3-atm`` also adds the three-body term of Axilrod, Teller and Muto. The library
dftd3 is given one structure at a time and one thread, so that the results of a structure depend neither on the other
structures nor on the number of threads.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self, TypeVar

import numpy as np
from ase.units import Bohr, Hartree
from numpy.typing import NDArray

from ...pipeline.energy_schemes import (
    CORRECTED,
    DISPERSIONS,
    MATPES_PBE,
    NO_DISPERSION,
    OMAT24,
    R2SCAN,
    UNCORRECTED,
    plus_dispersion,
)
from ...pipeline.errors import ConfigError, UnknownElementError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.potential import Evaluation, OutputSpec, Potential
from ...pipeline.runs.options import DEFAULT_SLOTS
from ...pipeline.suggestions import unknown_name
from .ensemble import MEMBERS_ARRAY
from .metadata import ModelMetadata

LIBRARY = "dftd3"
# Older versions of the library end sums at a cutoff without smoothing them, or lack some elements.
OLDEST = (1, 7)
# Elements with reference data in the library, H to Lr. For heavier elements it returns zeros or NaN, or crashes.
ELEMENTS = frozenset(range(1, 104))
# Those of VASP's IVDW=12 (VDW_RADIUS, VDW_CNRADIUS), angstrom. Up to 0.16 meV/atom are missing in the crystals of
# tests/benchmarks/dispersion.txt.
CUTOFF, COORDINATION_CUTOFF = 50.2, 20.0
# Angstrom. The cost of the three-body term grows with the sixth power of its cutoff: it takes 12 ms per atom, and
# differs by up to 1.4 meV/atom from that with the library's own cutoff of 21.2 angstrom
# (tests/benchmarks/dispersion.txt).
THREE_BODY_CUTOFF = 16.0
# Each term falls smoothly to zero over this distance before its cutoff, angstrom: its stress is then the derivative of
# its energy although pairs enter and leave with the strain.
WIDTH, THREE_BODY_WIDTH = 5.0, 2.5
# Most images of a cell that the library may list, 48 MB. Cells of crystals need some 200,000 at most.
MOST_IMAGES = 2_000_000
# Functionals that have damping parameters here, by the name that the library gives them.
_PBE, _R2SCAN = "pbe", "r2scan"
# s8, a1, and a2 in bohr, for Becke-Johnson damping: Grimme et al., J. Comput. Chem. 32, 1456 (2011); Ehlert et al., J.
# Chem. Phys. 154, 061101 (2021).
DAMPING = {_PBE: (0.7875, 0.4289, 4.4407), _R2SCAN: (0.78981345, 0.49484001, 5.73083694)}
OF_SCHEME = {UNCORRECTED: _PBE, CORRECTED: _PBE, OMAT24: _PBE, MATPES_PBE: _PBE, R2SCAN: _R2SCAN}
# A Hubbard U does not change the dispersion of a functional.
_NAMES = {"pbe": _PBE, "pbe(+u)": _PBE, "pbe+u": _PBE, "r2scan": _R2SCAN}

Uncorrected = TypeVar("Uncorrected", bound=Potential)


@dataclass(frozen=True, slots=True)
class Dispersion:
    """A D3 correction with all of its parameters.

    Attributes:
        name: ``d3`` for pairs of atoms only, ``d3-atm`` with the three-body term.
        functional: Functional that the damping was fitted to, as the library names it: ``pbe`` or ``r2scan``.
        version: Version of the library, which holds the reference data of the elements.
        s6, s8, s9: Factors of the terms in r^-6 and r^-8, and of the three-body term.
        a1: Factor of the radii in the damping.
        a2: Length in the damping, bohr.
        alp: Exponent in the damping of the three-body term.
        cutoff: Largest distance of a pair, angstrom.
        width: Distance before the cutoff over which the energy of a pair falls smoothly to zero, angstrom.
        three_body_cutoff: Largest distance in a triple, angstrom.
        three_body_width: Distance before that cutoff over which the energy of a triple falls to zero, angstrom.
        coordination_cutoff: Largest distance of atoms that count towards a coordination number, angstrom.
    """

    name: str
    functional: str
    version: str
    s8: float
    a1: float
    a2: float
    s9: float
    s6: float = 1.0
    alp: float = 14.0
    cutoff: float = CUTOFF
    width: float = WIDTH
    three_body_cutoff: float = THREE_BODY_CUTOFF
    three_body_width: float = THREE_BODY_WIDTH
    coordination_cutoff: float = COORDINATION_CUTOFF

    @classmethod
    def of(cls, name: str, models: Mapping[str, ModelMetadata]) -> Self | None:
        """Return the correction with a name, for the functional that the models were trained on.

        Args:
            name: ``d3``, ``d3-atm``, or ``none``.
            models: Metadata of the models of one ensemble, by the path of their file.

        Returns:
            The correction; None for ``none``.

        Raises:
            ConfigError: The name is unknown, a model predicts no energy or has a functional without damping parameters,
                or the library is not installed or too old.
        """
        if name == NO_DISPERSION:
            return None
        if name not in DISPERSIONS:
            raise ConfigError(unknown_name("dispersion", name, [NO_DISPERSION, *DISPERSIONS]))
        found = {_functional(path, metadata, name) for path, metadata in models.items()}
        if len(found) > 1:
            raise ConfigError(
                f"{', '.join(models)}: these models follow different functionals ({', '.join(sorted(found))}), which "
                "need different dispersion corrections; screen with each model separately"
            )
        functional = found.pop()
        s8, a1, a2 = DAMPING[functional]
        return cls(name, functional, installed_version(), s8, a1, a2, s9=float(name == "d3-atm"))

    def record(self) -> dict[str, Any]:
        """Return the correction, for the attributes of a dataset and the identity of a run."""
        units = "a2 in bohr; cutoffs and widths in angstrom"
        return {"method": "DFT-D3(BJ)", "library": f"{LIBRARY} {self.version}", **asdict(self), "units": units}

    def evaluate(self, block: GraphBlock) -> Evaluation:
        """Return dispersion energies, forces and stresses of the structures of a block.

        Args:
            block: The structures; their edges are not used, since this correction reaches further.

        Returns:
            Results as from any potential; NaN if the library fails on a structure, or if its cell is impossibly small.

        Raises:
            UnknownElementError: An element has no D3 parameters.
            ConfigError: The library is missing, or its version differs from the correction's.
        """
        unknown = sorted({*np.unique(block.atomic_number).tolist()} - ELEMENTS)
        if unknown:
            raise UnknownElementError(
                f"D3 has no parameters for the elements {unknown} (atomic numbers); remove the "
                "structures that contain them, or omit --dispersion"
            )
        _check_version(self.version)
        energy, virial = np.zeros(len(block)), np.zeros((len(block), 3, 3))
        forces = np.zeros((len(block.atomic_number), 3))
        with one_thread(_extension()):
            for row, (begin, count) in enumerate(zip(block.atom_start.tolist(), block.n_atoms.tolist(), strict=True)):
                atoms = slice(begin, begin + count)
                place = _in_bohr(block.cell[row], block.frac_coord[atoms], block.pbc[row], self.cutoff)
                found = None if place is None else self._of_structure(block.atomic_number[atoms], *place)
                energy[row], forces[atoms], virial[row] = found or (np.nan, np.nan, np.nan)
        stress = virial / block.volume[:, None, None]
        stress[~block.pbc.all(axis=1)] = np.nan
        return Evaluation(energy, forces, stress, virial=virial)

    def _of_structure(
        self, numbers: NDArray[np.uint8], positions: NDArray[np.float64], lattice: NDArray[np.float64] | None
    ) -> tuple[float, NDArray[np.float64], NDArray[np.float64]] | None:
        """Return the energy (eV), forces (eV/angstrom) and virial (eV) of a structure; None if the library fails.

        Args:
            numbers: uint8[n_atoms], atomic numbers.
            positions: float64[n_atoms, 3], bohr.
            lattice: float64[3, 3], periodic lattice vectors as rows, bohr; None for a molecule.
        """
        from dftd3.interface import DispersionModel, RationalDampingParam  # noqa: PLC0415 - an extra

        damping = RationalDampingParam(s6=self.s6, s8=self.s8, s9=self.s9, a1=self.a1, a2=self.a2, alp=self.alp)
        try:
            model = DispersionModel(numbers, positions, lattice, None if lattice is None else np.ones(3, dtype=bool))
            model.set_realspace_cutoff(
                self.cutoff / Bohr,
                self.three_body_cutoff / Bohr,
                self.coordination_cutoff / Bohr,
                self.width / Bohr,
                self.three_body_width / Bohr,
            )
            found = model.get_dispersion(damping, grad=True)
        except RuntimeError:  # one structure must not end a run
            return None
        virial = (found["virial"] + found["virial"].T) * (Hartree / 2)
        return float(found["energy"]) * Hartree, found["gradient"] * (-Hartree / Bohr), virial


class DispersionCorrected:
    """A potential with a dispersion correction: the sum of both, itself a potential.

    Energies (including each member's energies in an ensemble), forces and stresses are corrected; other outputs and the
    spread of an ensemble are the potential's own. Elements without D3 parameters are not supported.

    Args:
        potential: Potential that is corrected.
        dispersion: The correction.

    Attributes:
        slots: Neighbour slots per batch of the potential.
        in_flight: Number of batches of the potential to evaluate at a time.
    """

    def __init__(self, potential: Potential, dispersion: Dispersion) -> None:
        self.potential, self.dispersion = potential, dispersion
        self.slots = int(getattr(potential, "slots", DEFAULT_SLOTS))
        self.in_flight = int(getattr(potential, "in_flight", 1))

    @property
    def cutoff(self) -> float:
        """Cutoff of the graphs and of the potential, angstrom."""
        return self.potential.cutoff

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that both the potential and the correction support."""
        return tuple(number for number in self.potential.elements if number in ELEMENTS)

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """Outputs of the potential."""
        return self.potential.outputs

    @property
    def minimum_distances(self) -> Mapping[tuple[int, int], float] | None:
        """Smallest distance of each pair of elements in the training data of the potential, angstrom, if known."""
        found: Mapping[tuple[int, int], float] | None = getattr(self.potential, "minimum_distances", None)
        return found

    def evaluate(self, block: GraphBlock) -> Evaluation:
        """Evaluate all outputs for all structures of a block.

        Raises:
            UnknownElementError: The potential or the correction does not support an element.
            ConfigError: The library is missing, or its version differs from the correction's.
        """
        found, added = self.potential.evaluate(block), self.dispersion.evaluate(block)
        properties = dict(found.properties)
        if MEMBERS_ARRAY in properties:
            properties[MEMBERS_ARRAY] = properties[MEMBERS_ARRAY] + added.energy[:, None]
        return Evaluation(
            found.energy + added.energy,
            found.forces + added.forces,
            found.stress + added.stress,
            properties,
            None if found.virial is None or added.virial is None else found.virial + added.virial,
        )


def with_dispersion(potential: Uncorrected, dispersion: Dispersion | None) -> Uncorrected | DispersionCorrected:
    """Return a potential plus a correction; the potential itself if there is none."""
    return potential if dispersion is None else DispersionCorrected(potential, dispersion)


def recorded(dispersion: Dispersion | None) -> dict[str, Any] | None:
    """Return a correction with all of its parameters, for the identity of a run; None if there is none."""
    return None if dispersion is None else dispersion.record()


def provenance_with(provenance: Mapping[str, Any], dispersion: Dispersion | None) -> dict[str, Any]:
    """Return the provenance of a model with its correction, if any: another energy scheme, and the parameters."""
    if dispersion is None:
        return dict(provenance)
    scheme = plus_dispersion(str(provenance["energy_scheme"]), dispersion.name)
    return {**provenance, "energy_scheme": scheme, "dispersion": dispersion.record()}


@lru_cache(maxsize=1)
def installed_version() -> str:
    """Return the version of the library.

    Raises:
        ConfigError: The library is not installed, or too old.
    """
    cure = "pip install 'equiscreen[properties]'"
    try:
        found = version(LIBRARY)
        import dftd3.interface  # noqa: F401, PLC0415 - an extra; its compiled part may be missing
    except (PackageNotFoundError, ImportError) as error:
        raise ConfigError(f"dispersion needs the library {LIBRARY}, which is not installed: {cure}") from error
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ConfigError(f"dispersion needs {LIBRARY} {oldest} or later, not {found}: {cure}")
    return found


def _check_version(expected: str) -> None:
    """Check that this process, perhaps a worker on another machine, has the reference data that a run began with."""
    if installed_version() != expected:
        raise ConfigError(
            f"{LIBRARY} {installed_version()} is installed here, but the run began with {expected}; install "
            f"{LIBRARY}=={expected} on all machines"
        )


def _functional(path: str, metadata: ModelMetadata, dispersion: str) -> str:
    """Return the functional of a model, as the library names it.

    Raises:
        ConfigError: The model predicts no energy, or its functional is unknown or has no damping parameters.
    """
    if "energy" not in {spec.name for spec in metadata.outputs}:
        raise ConfigError(
            f"{path}: the model predicts no energy, which `--dispersion {dispersion}` would correct; "
            "export it with energy among its --outputs, or omit --dispersion"
        )
    if metadata.energy_scheme in OF_SCHEME:
        return OF_SCHEME[metadata.energy_scheme]
    stated = str(metadata.origin.get("functional", "")).strip()
    if stated.casefold() in _NAMES:
        return _NAMES[stated.casefold()]
    if stated:
        raise ConfigError(
            f"{path}: the energies of this model follow {stated}, for which `--dispersion {dispersion}` has no damping "
            "parameters; use a model trained on PBE or r2SCAN energies, or omit --dispersion"
        )
    raise ConfigError(
        f"{path}: the energy scheme {metadata.energy_scheme} names no functional, but `--dispersion {dispersion}` "
        "depends on it; set a scheme of PBE or r2SCAN energies with `--scheme` of `equiscreen import` or `refit`, and "
        "export the model again"
    )


def _in_bohr(
    cell: NDArray[np.float64], frac: NDArray[np.float64], pbc: NDArray[np.bool_], cutoff: float
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None] | None:
    """Return the positions and lattice of a structure for the library, in bohr.

    The library expects atoms wrapped into the cell, since it searches only as many images as the cutoff needs; during a
    relaxation atoms leave their cell. Slabs and chains become crystals whose images are too far apart to interact:
    dftd3 1.7.0 would move atoms into the cell also along directions that are not periodic, which tears slabs apart, and
    leave out pairs of a slab that is not in the xy plane. In a strongly sheared cell, the library would list millions
    of images: such a cell is replaced by a compact one of the same lattice.

    Args:
        cell: float64[3, 3], lattice vectors as rows, angstrom.
        frac: float64[n_atoms, 3], fractional coordinates, wrapped or not.
        pbc: bool[3], which lattice vectors are periodic.
        cutoff: Largest distance of a pair, angstrom.

    Returns:
        float64[n_atoms, 3] and float64[3, 3]; no lattice for a molecule; None if the cell is impossibly small.
    """
    positions = _combined(frac, cell)
    if not pbc.any():
        return positions / Bohr, None
    if not pbc.all():
        from ase.geometry import complete_cell  # noqa: PLC0415 - only slabs and chains need it

        cell = np.array(complete_cell(np.where(pbc[:, None], cell, 0.0)))
        height = np.ptp(_combined(positions, cell.T), axis=0)  # along the normals, which are unit vectors
        cell[~pbc] *= (height[~pbc] + cutoff)[:, None]
    if _images(cell, cutoff) > MOST_IMAGES:
        from ase.geometry import minkowski_reduce  # noqa: PLC0415 - only odd cells need it

        cell = np.array(minkowski_reduce(cell)[0])
        if _images(cell, cutoff) > MOST_IMAGES:
            return None
    inverse = np.asarray(np.linalg.inv(cell), dtype=np.float64)
    frac = _combined(positions, inverse)
    return _combined(frac - np.floor(frac), cell) / Bohr, cell / Bohr


def _images(cell: NDArray[np.float64], cutoff: float) -> float:
    """Return how many images of a cell (float64[3, 3], angstrom) the library lists for a cutoff (angstrom)."""
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    return float(np.prod(2 * np.ceil(cutoff / heights) + 1))


def _combined(factors: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return linear combinations of three vectors: float64[n, 3].

    This does not use a matrix product, whose rounding may depend on the number of threads.
    """
    out: NDArray[np.float64] = factors[:, :1] * vectors[0] + factors[:, 1:2] * vectors[1] + factors[:, 2:] * vectors[2]
    return out


@lru_cache(maxsize=1)
def _extension() -> ctypes.CDLL:
    """Return the compiled part of the library; its symbols include the symbols of its dependencies."""
    from dftd3 import _libdftd3  # noqa: PLC0415 - an extra

    return ctypes.CDLL(_libdftd3.__file__)


@contextmanager
def one_thread(library: ctypes.CDLL) -> Iterator[None]:
    """Make a library that was compiled with OpenMP use one thread in this block.

    With several threads, the order of its sums, and with it the last bits, would change from run to run. The wheels of
    dftd3 on PyPI are compiled without OpenMP, conda-forge's packages with it. The setting applies to the calling thread
    only.

    Args:
        library: The library, or one that depends on an OpenMP runtime.
    """
    if not hasattr(library, "omp_set_num_threads"):
        yield
        return
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(1)
    try:
        yield
    finally:
        library.omp_set_num_threads(before)
