"""One atomic structure: a crystal, a slab or a molecule, in the form that the store holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidStructureError
from ..jit import compiled

if TYPE_CHECKING:
    import ase

MAX_ATOMS = 65_535  # neighbour indices are uint16
MAX_ATOMIC_NUMBER = 118
HASH_BYTES = 16
HASH_QUANTUM = 1e-8
# The grid is shifted by this fraction of the quantum, (sqrt(5) - 2) / 2. Files hold decimal numbers; without a shift,
# numbers with nine decimals that end in 5 lie halfway between two multiples of the quantum, and a rounding error of
# 1e-16 decides to which of the two they are rounded. This irrational number keeps all numbers with up to 12 decimals
# (by 3e-5 of the quantum), and halves, thirds and sixths of the cell, away from the halfway points.
HASH_SHIFT = 0.118033988749895
# A cell with a smaller ratio of the volume to the product of its edges is flat for all practical purposes.
FLAT_CELL = 1e-6
# Largest coordinate (angstrom). No real structure is this large, and in units of the quantum the value still fits in 64
# bits.
MAX_EXTENT = 1e9


@dataclass(frozen=True, slots=True)
class Structure:
    """An atomic structure whose coordinates are wrapped into the cell along periodic axes.

    For a structure without periodicity, `from_cartesian` uses the identity as cell, so that fractional coordinates are
    Cartesian. For partial periodicity, it replaces zero lattice vectors by unit normals.

    Example:
        >>> from ase.build import bulk
        >>> from equiscreen.pipeline import Structure
        >>> copper = Structure.from_ase(bulk("Cu", cubic=True))
        >>> len(copper), round(copper.volume, 1)
        (4, 47.0)

    Attributes:
        atomic_number: uint8[n_atoms].
        cell: float64[3, 3], lattice vectors as rows, angstrom.
        frac_coord: float64[n_atoms, 3], fractional coordinates.
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
        """Make a validated, wrapped structure from fractional coordinates.

        Args:
            numbers: int[n_atoms], atomic numbers.
            cell: float[3, 3], lattice vectors as rows, angstrom.
            frac_coord: float[n_atoms, 3], fractional coordinates.
            pbc: bool[3], which lattice vectors are periodic.

        Raises:
            InvalidStructureError: The structure has no atoms, too many atoms, an unknown element, numbers that are not
                finite or too large, a cell of (nearly) zero volume, or different numbers of elements and coordinates.
        """
        axes = np.array(pbc, dtype=bool)
        lattice = np.array(cell, dtype=np.float64, order="C").reshape(3, 3)
        frac = np.array(frac_coord, dtype=np.float64, order="C").reshape(-1, 3)
        values = np.array(numbers).reshape(-1)
        if len(values) != len(frac):
            raise InvalidStructureError(
                f"elements and coordinates for different numbers of atoms ({len(values)} and {len(frac)})"
            )
        if len(values) == 0:
            raise InvalidStructureError("no atoms")
        if len(values) > MAX_ATOMS:
            raise InvalidStructureError(f"too many atoms ({len(values)}, more than {MAX_ATOMS})")
        fault, atom = _validate(values.astype(np.int64, copy=False), frac, lattice, axes)
        if fault == _NO_ELEMENT:
            raise InvalidStructureError(f"unknown element (atom {atom}, atomic number {values[atom]})")
        if fault == _NOT_FINITE:
            raise InvalidStructureError(f"coordinates not finite or too large (atom {atom})")
        if fault == _BAD_CELL:
            _check_cell(lattice)
        return cls(values.astype(np.uint8), lattice, frac, axes)

    @classmethod
    def from_cartesian(
        cls, numbers: ArrayLike, positions: ArrayLike, cell: ArrayLike | None = None, pbc: ArrayLike = False
    ) -> Structure:
        """Make a validated, wrapped structure from Cartesian positions.

        Args:
            numbers: int[n_atoms], atomic numbers.
            positions: float[n_atoms, 3], angstrom.
            cell: float[3, 3], lattice vectors as rows, angstrom, or None. Ignored without periodicity.
            pbc: bool or bool[3], which lattice vectors are periodic.

        Raises:
            InvalidStructureError: As for `from_fractional`; or a periodic structure has no cell.
        """
        axes = np.broadcast_to(np.array(pbc, dtype=bool), 3).copy()
        xyz = np.array(positions, dtype=np.float64).reshape(-1, 3)
        if not axes.any():
            return cls.from_fractional(numbers, np.eye(3), xyz, axes)
        if cell is None:
            raise InvalidStructureError("the structure is periodic, but has no cell")
        lattice = _completed_cell(np.array(cell, dtype=np.float64).reshape(3, 3), axes)
        _check_cell(lattice)
        return cls.from_fractional(numbers, lattice, np.linalg.solve(lattice.T, xyz.T).T, axes)

    @classmethod
    def from_ase(cls, atoms: ase.Atoms) -> Structure:
        """Make a structure from an `ase.Atoms`.

        Raises:
            InvalidStructureError: As for `from_cartesian`.
        """
        return cls.from_cartesian(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)

    def to_ase(self) -> ase.Atoms:
        """Convert to an `ase.Atoms`, which has no cell if no direction is periodic."""
        import ase  # noqa: PLC0415 - ASE takes 0.3 s to import and scoring does not need it

        cell = self.cell if self.pbc.any() else None
        return ase.Atoms(numbers=self.atomic_number, positions=self.positions, cell=cell, pbc=self.pbc)

    @property
    def positions(self) -> NDArray[np.float64]:
        """Cartesian positions: float64[n_atoms, 3], angstrom."""
        positions: NDArray[np.float64] = self.frac_coord @ self.cell
        return positions

    @property
    def volume(self) -> float:
        """Volume of the cell in angstrom^3; 1 unless all three directions are periodic."""
        return float(abs(np.linalg.det(self.cell))) if self.pbc.all() else 1.0

    def right_handed(self) -> Structure:
        """Return the same atoms with a right-handed basis of the same lattice.

        Formats that hold a cell as lengths and angles, and programs that require a right-handed basis, would otherwise
        turn a left-handed cell into its mirror image. Negating the three lattice vectors, and with them the fractional
        coordinates, leaves the lattice, its lengths and angles, and all positions (up to lattice vectors) unchanged.
        """
        if np.linalg.det(self.cell) > 0:
            return self
        return Structure.from_fractional(self.atomic_number, -self.cell, -self.frac_coord, self.pbc)

    def __len__(self) -> int:
        return len(self.atomic_number)

    def content_hash(self) -> bytes:
        """Return a hash (16 bytes) of the elements, cell, coordinates (in steps of 1e-8) and periodicity only.

        Two files that hold the same structure give the same hash; a different cell or a different order of sites gives
        a different hash.
        """
        cell, frac = _quantised(self.cell, self.frac_coord, self.pbc)
        content = b"".join(
            (
                len(self).to_bytes(4, "little"),
                self.pbc.tobytes(),
                self.atomic_number.tobytes(),
                cell.astype("<i8", copy=False).tobytes(),
                frac.astype("<i8", copy=False).tobytes(),
            )
        )
        return hashlib.blake2b(content, digest_size=HASH_BYTES, person=b"equiscreen-1").digest()


def _check_cell(cell: NDArray[np.float64]) -> None:
    if not np.abs(cell).max() < MAX_EXTENT:
        raise InvalidStructureError("cell not finite or too large")
    if _relative_volume(cell) < FLAT_CELL:
        raise InvalidStructureError("cell of zero volume")


_VALID, _NO_ELEMENT, _NOT_FINITE, _BAD_CELL = range(4)


@compiled
def _validate(
    numbers: NDArray[np.int64], frac: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> tuple[int, int]:
    """Wrap coordinates along periodic axes, in place, and return the first fault and the index of its atom."""
    for i in range(frac.shape[0]):
        if numbers[i] < 1 or numbers[i] > MAX_ATOMIC_NUMBER:
            return _NO_ELEMENT, i
        for axis in range(3):
            x = frac[i, axis]
            if not abs(x) < MAX_EXTENT:
                return _NOT_FINITE, i
            if pbc[axis]:
                x -= np.floor(x)
                frac[i, axis] = 0.0 if x >= 1.0 else x  # -1e-17 wraps to exactly 1
    good_cell = np.abs(cell).max() < MAX_EXTENT and _relative_volume(cell) >= FLAT_CELL
    return (_VALID if good_cell else _BAD_CELL), 0


@compiled
def _relative_volume(cell: NDArray[np.float64]) -> float:
    """Return the ratio of the volume to the product of the edges; 0 for a cell with an edge of zero length."""
    volume, edges = 0.0, 1.0
    for axis in range(3):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        volume += cell[0, axis] * (cell[1, i] * cell[2, j] - cell[1, j] * cell[2, i])
        edges *= np.sqrt(cell[axis, 0] ** 2 + cell[axis, 1] ** 2 + cell[axis, 2] ** 2)
    return abs(volume) / edges if edges != 0.0 else 0.0


@compiled
def _quantised(
    cell: NDArray[np.float64], frac: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return cell and coordinates as shifted multiples of `HASH_QUANTUM`, int64; periodic coordinates modulo 1."""
    grid = np.int64(round(1 / HASH_QUANTUM))
    whole_cell, whole_frac = np.empty((3, 3), dtype=np.int64), np.empty(frac.shape, dtype=np.int64)
    for axis in range(3):
        for i in range(3):
            whole_cell[i, axis] = np.int64(np.rint(cell[i, axis] / HASH_QUANTUM + HASH_SHIFT))
        for i in range(frac.shape[0]):
            x = np.int64(np.rint(frac[i, axis] / HASH_QUANTUM + HASH_SHIFT))
            whole_frac[i, axis] = x % grid if pbc[axis] else x
    return whole_cell, whole_frac


def _completed_cell(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Replace zero lattice vectors along non-periodic axes by unit normals."""
    from ase.geometry import complete_cell  # noqa: PLC0415 - see to_ase

    missing = ~cell.any(axis=1)
    if (missing & pbc).any():
        raise InvalidStructureError("cell of zero volume")
    completed: NDArray[np.float64] = np.asarray(complete_cell(cell), dtype=np.float64)
    return completed
