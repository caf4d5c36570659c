"""One atomic structure: a crystal, a slab or a molecule, in the form the store keeps."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InvalidStructureError

if TYPE_CHECKING:
    import ase

MAX_ATOMS = 65_535  # neighbour indices are uint16
MAX_ATOMIC_NUMBER = 118
HASH_BYTES = 16
HASH_QUANTUM = 1e-8
# Below this ratio of the volume to the product of the edges a cell is flat for every purpose.
FLAT_CELL = 1e-6


@dataclass(frozen=True, slots=True)
class Structure:
    """An atomic structure, wrapped into its cell along periodic axes.

    A structure without periodicity has the identity as its cell, so that its fractional coordinates are Cartesian.
    In mixed periodicity a zero lattice vector has been completed by a unit normal.

    Attributes:
        atomic_number: uint8[n_atoms].
        cell: float64[3, 3], lattice vectors as rows, angstrom.
        frac_coord: float64[n_atoms, 3].
        pbc: bool[3], which lattice vectors are periodic.
    """

    atomic_number: NDArray[np.uint8]
    cell: NDArray[np.float64]
    frac_coord: NDArray[np.float64]
    pbc: NDArray[np.bool_]

    @classmethod
    def from_fractional(
        cls, numbers: ArrayLike, cell: ArrayLike, frac_coord: ArrayLike, pbc: ArrayLike = (True, True, True)
    ) -> Structure:
        """Validate and wrap a structure given by fractional coordinates.

        Args:
            numbers: int[n_atoms], atomic numbers.
            cell: float[3, 3], lattice vectors as rows, angstrom.
            frac_coord: float[n_atoms, 3].
            pbc: bool[3].

        Raises:
            InvalidStructureError: No atoms, too many atoms, an unknown element, numbers that are not finite, or a
                cell without volume.
        """
        axes = np.array(pbc, dtype=bool)
        lattice = np.array(cell, dtype=np.float64).reshape(3, 3)
        frac = np.array(frac_coord, dtype=np.float64).reshape(-1, 3)
        atomic_number = _checked_numbers(numbers)
        if len(atomic_number) != len(frac):
            raise InvalidStructureError(f"{len(atomic_number)} elements for {len(frac)} coordinates")
        if not np.isfinite(frac).all():
            atom = int(np.flatnonzero(~np.isfinite(frac).all(axis=1))[0])
            raise InvalidStructureError(f"coordinates that are not finite (atom {atom})")
        _check_cell(lattice)
        frac[:, axes] -= np.floor(frac[:, axes])
        frac[:, axes] = np.where(frac[:, axes] >= 1.0, 0.0, frac[:, axes])  # -1e-17 wraps to exactly 1
        return cls(atomic_number, lattice, frac, axes)

    @classmethod
    def from_cartesian(
        cls, numbers: ArrayLike, positions: ArrayLike, cell: ArrayLike | None = None, pbc: ArrayLike = False
    ) -> Structure:
        """Validate and wrap a structure given by Cartesian positions.

        Args:
            numbers: int[n_atoms], atomic numbers.
            positions: float[n_atoms, 3], angstrom.
            cell: float[3, 3] or None. Ignored where nothing is periodic.
            pbc: bool or bool[3].

        Raises:
            InvalidStructureError: As for `from_fractional`.
        """
        axes = np.broadcast_to(np.array(pbc, dtype=bool), 3).copy()
        xyz = np.array(positions, dtype=np.float64).reshape(-1, 3)
        if not axes.any():
            return cls.from_fractional(numbers, np.eye(3), xyz, axes)
        if cell is None:
            raise InvalidStructureError("periodic, but without a cell")
        lattice = _completed_cell(np.array(cell, dtype=np.float64).reshape(3, 3), axes)
        _check_cell(lattice)
        return cls.from_fractional(numbers, lattice, np.linalg.solve(lattice.T, xyz.T).T, axes)

    @classmethod
    def from_ase(cls, atoms: ase.Atoms) -> Structure:
        """Take over an `ase.Atoms`."""
        return cls.from_cartesian(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)

    def to_ase(self) -> ase.Atoms:
        """Give the structure as `ase.Atoms`; without periodicity, also without a cell."""
        import ase  # noqa: PLC0415 - ASE takes 0.3 s to import and scoring does not need it

        cell = self.cell if self.pbc.any() else None
        return ase.Atoms(numbers=self.atomic_number, positions=self.positions, cell=cell, pbc=self.pbc)

    @property
    def positions(self) -> NDArray[np.float64]:
        """float64[n_atoms, 3], angstrom."""
        positions: NDArray[np.float64] = self.frac_coord @ self.cell
        return positions

    @property
    def volume(self) -> float:
        """Volume of the cell in angstrom^3; 1 where not all three directions are periodic."""
        return float(abs(np.linalg.det(self.cell))) if self.pbc.all() else 1.0

    def __len__(self) -> int:
        return len(self.atomic_number)

    def content_hash(self) -> bytes:
        """16 bytes that depend on elements, cell, coordinates (quantised at 1e-8) and periodicity, and on nothing else.

        Two files that hold the same structure have the same hash; another order of sites is another structure.
        """
        grid = round(1 / HASH_QUANTUM)
        frac = np.rint(self.frac_coord / HASH_QUANTUM).astype("<i8")
        frac[:, self.pbc] %= grid
        digest = hashlib.blake2b(digest_size=HASH_BYTES, person=b"equiscreen-1")
        digest.update(np.uint32(len(self)).astype("<u4").tobytes())
        digest.update(self.pbc.astype("u1").tobytes())
        digest.update(self.atomic_number.tobytes())
        digest.update(np.rint(self.cell / HASH_QUANTUM).astype("<i8").tobytes())
        digest.update(frac.tobytes())
        return digest.digest()


def _checked_numbers(numbers: ArrayLike) -> NDArray[np.uint8]:
    values: NDArray[Any] = np.array(numbers).reshape(-1)
    if len(values) == 0:
        raise InvalidStructureError("no atoms")
    if len(values) > MAX_ATOMS:
        raise InvalidStructureError(f"{len(values)} atoms, more than {MAX_ATOMS}")
    wrong = (values < 1) | (values > MAX_ATOMIC_NUMBER)
    if wrong.any():
        atom = int(np.flatnonzero(wrong)[0])
        raise InvalidStructureError(f"unknown element (atom {atom}, atomic number {values[atom]})")
    return values.astype(np.uint8)


def _check_cell(cell: NDArray[np.float64]) -> None:
    if not np.isfinite(cell).all():
        raise InvalidStructureError("cell that is not finite")
    edges = float(np.prod(np.linalg.norm(cell, axis=1)))
    if edges == 0.0 or abs(np.linalg.det(cell)) < FLAT_CELL * edges:
        raise InvalidStructureError("cell of zero volume")


def _completed_cell(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Put unit normals in the place of zero lattice vectors along axes that are not periodic."""
    from ase.geometry import complete_cell  # noqa: PLC0415 - see to_ase

    missing = ~cell.any(axis=1)
    if (missing & pbc).any():
        raise InvalidStructureError("cell of zero volume")
    completed: NDArray[np.float64] = np.asarray(complete_cell(cell), dtype=np.float64)
    return completed
