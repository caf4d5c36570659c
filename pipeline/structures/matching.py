"""Structure matching: whether two structures are the same crystal in any cell, origin, site order and orientation.

Mirror images are different crystals: only proper rotations count. Structures that are not periodic in three directions
(molecules, chains, slabs) are compared by their exact content alone; see `Structure.content_hash`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .matching_kernels import (
    GRID_CELL,
    VECTOR_SIZE,
    agreeing_rows,
    enter_row,
    enter_rows,
    lattice_maps,
    sites_agree,
    vector_of_crystal,
)
from .structure import Structure
from .symmetry import find_symmetry

TOLERANCE = 1e-3
# Repeats of a motif are recognised below this distance (angstrom). Published files round coordinates to 1e-5 angstrom
# or finer. The value is a tenth of the tolerance because `primitive` keeps one of the repeats and discards how the
# others differ from it; repeats that differ by more stay in a larger cell, which `same_crystal` compares just as well.
PRIMITIVE_SYMPREC = 1e-4
# If lattice vectors and sites move by the tolerance, no component of a crystal vector changes by more than this many
# tolerances: 2 for the two ends of a distance, the rest for the lattice vectors between them; the twelfth neighbour is
# at most six lattice vectors away (in a chain; three in a bulk crystal).
VECTOR_SLACK = 10.0
GRID_COLUMNS = 6
CACHED_CRYSTALS = 4096


def primitive(structure: Structure) -> Structure:
    """Reduce a crystal to a primitive, right-handed, Minkowski-reduced cell, with the rarest species first.

    Nothing is idealised: lattice vectors and sites are taken from the input. Of the sites that a lattice translation of
    the crystal maps onto each other within `PRIMITIVE_SYMPREC` (1e-4 angstrom), the first is kept. If moyopy finds no
    symmetry, the cell keeps its size. A structure that is not periodic in three directions is returned unchanged.
    """
    if not structure.pbc.all():
        return structure
    cell, frac, numbers = structure.cell, structure.frac_coord, structure.atomic_number
    counts = np.bincount(numbers)
    if np.gcd.reduce(counts) > 1:  # otherwise no translation maps every species onto itself
        cell, frac, numbers = _without_repeats(structure)
        counts = np.bincount(numbers)
    reduced = _reduced_cell(cell)
    order = np.lexsort((numbers, counts[numbers]))
    return Structure.from_fractional(numbers[order], reduced, (frac @ (cell @ np.linalg.inv(reduced)))[order])


def _without_repeats(structure: Structure) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]]:
    """Return the cell, fractional coordinates and atomic numbers of a primitive cell, not idealised."""
    cell, frac, numbers = structure.cell, structure.frac_coord, structure.atomic_number
    found = find_symmetry(structure, PRIMITIVE_SYMPREC)
    if found is None:
        return cell, frac, numbers
    # Apply the transformation to the input: the lattice and sites of moyopy's own primitive cell are idealised.
    linear = np.array(found.prim_std_linear)
    first = np.unique(found.mapping_std_prim, return_index=True)[1]
    return linear.T @ cell, frac[first] @ np.linalg.inv(linear).T, numbers[first]


def _reduced_cell(cell: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a right-handed, Minkowski-reduced basis of the same lattice: float64[3, 3], angstrom."""
    import moyopy  # noqa: PLC0415 - only needed to compare crystals

    return np.array(moyopy.minkowski_reduce(cell.tolist())[0])


def composition_key(structure: Structure) -> int:
    """Return a hash of the reduced composition and the periodicity, below 2^64 and the same in every process."""
    counts = np.bincount(structure.atomic_number)
    species = np.flatnonzero(counts)
    digest = hashlib.blake2b(structure.pbc.astype("u1").tobytes(), digest_size=8, person=b"composition")
    digest.update(np.stack([species, counts[species] // np.gcd.reduce(counts)]).astype("<u4").tobytes())
    return int.from_bytes(digest.digest(), "little")


def crystal_vector(structure: Structure) -> NDArray[np.float64]:
    """Return a descriptor of a crystal, in angstrom: equal for the same crystal and close for similar ones.

    The descriptor resembles average minimum distances (Widdowson et al., MATCH 87, 529, 2022): the cube root of the
    volume per atom; the minimum, mean and maximum distance to the 1st, 6th and 12th neighbour; and, for each of the
    three rarest species, statistics of the distances to the nearest atoms of the same and of other species. There is no
    cutoff. Mirror images have the same vector. Vectors of crystals of different composition are not comparable.

    For a structure that is not periodic in three directions, the vector holds 16-bit pieces of its content hash
    instead, so that only equal content has equal vectors.

    Returns:
        float64[22].
    """
    if not structure.pbc.all():
        vector = np.zeros(VECTOR_SIZE)
        pieces = np.frombuffer(structure.content_hash(), dtype="<u2")
        vector[: len(pieces)] = pieces
        return vector
    cell = _reduced_cell(structure.cell)
    inverse = np.linalg.inv(cell).astype(np.float64, copy=False)
    frac: NDArray[np.float64] = structure.frac_coord @ (structure.cell @ inverse)
    # Copied because numba would compile again for a read-only array.
    filled: NDArray[np.float64] = vector_of_crystal(
        structure.atomic_number.copy(), frac, cell, inverse, structure.volume
    )
    return filled


def same_crystal(a: Structure, b: Structure, tolerance: float = TOLERANCE) -> bool:
    """Whether a proper rotation, a translation and a small deformation map one crystal onto the other.

    Both are reduced to primitive cells. They are the same if some lattice vectors of one, rotated as a whole, lie
    within `tolerance` of the reduced basis of the other, and if in this common lattice every site lies within
    `tolerance` of a site of the same species in the other crystal, after subtracting the mean displacement. All lattice
    maps are tried, and all translations that move one atom of the rarest species onto an atom of that species in the
    other crystal, so that the result does not depend on the choice of cell. A superstructure that deviates from the
    other crystal by less than the tolerance is the same crystal.

    Like every comparison within a tolerance, this one is not transitive.

    Args:
        a: First structure.
        b: Second structure; if either is not periodic in three directions, their content must be equal.
        tolerance: Tolerance in angstrom, well below half the distance between two atoms of a species.
    """
    return _same_primitive(primitive(a), primitive(b), tolerance)


def _same_primitive(a: Structure, b: Structure, tolerance: float) -> bool:
    if not (a.pbc.all() and b.pbc.all()):
        return a.content_hash() == b.content_hash()
    small, large = (a, b) if len(a) <= len(b) else (b, a)
    multiple, rest = divmod(len(large), len(small))
    if rest or not np.array_equal(np.repeat(small.atomic_number, multiple), large.atomic_number):
        return False
    reach = np.linalg.norm(np.linalg.inv(small.cell), axis=0)
    maps = lattice_maps(small.cell, large.cell, reach, multiple, tolerance).reshape(-1, 3, 3)
    maps = maps[_deformations(maps @ small.cell, large.cell) <= tolerance]
    return bool(
        sites_agree(small.atomic_number, small.frac_coord, small.cell, large.frac_coord, maps, multiple, tolerance)
    )


def _deformations(bases: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest deviation of each basis from the target after the best rotation: float64[n], angstrom.

    The rotation is found with the method of Kabsch, Acta Cryst. A32, 922 (1976).
    """
    left, _, right = np.linalg.svd(np.swapaxes(bases, 1, 2) @ target)
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    found: NDArray[np.float64] = np.linalg.norm(bases @ (left @ right) - target, axis=2).max(axis=1, initial=0.0)
    return found


def first_same_crystal(
    keys: NDArray[np.uint64],
    vectors: NDArray[np.float64],
    structure_of: Callable[[int], Structure],
    tolerance: float = TOLERANCE,
) -> NDArray[np.int64]:
    """Find, for each row, the first row that is the same crystal.

    Rows with the same key whose vectors agree are candidates; `same_crystal` decides. A row is compared with the first
    row of each earlier crystal, not with the duplicates of that row, so that duplicates do not multiply the work. In a
    series of crystals that change gradually by more than the tolerance, each row joins the first crystal that it
    matches.

    Args:
        keys: uint64[n], from `composition_key`.
        vectors: float64[n, 22], from `crystal_vector`.
        structure_of: Returns the structure of a row. It is called once, in ascending order, for every row that has an
            earlier candidate. It is also called for the candidates themselves, of which some thousands are kept in
            memory.
        tolerance: Tolerance in angstrom; see `same_crystal`.

    Returns:
        int64[n], row indices, none larger than the row's own; a row without an earlier match has its own index.
    """
    first = np.arange(len(keys), dtype=np.int64)
    _, label, count = np.unique(keys, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(count[label] > 1)
    if len(rows) == 0:
        return first
    table = _Table.of(label[rows].astype(np.int64), vectors[rows], VECTOR_SLACK * tolerance)
    repeated = table.enter_all()
    distinct = table.emptied()
    for place in np.flatnonzero(~repeated):
        distinct.enter(int(place))

    @lru_cache(CACHED_CRYSTALS)
    def crystal(row: int) -> Structure:
        return primitive(structure_of(row))

    for place in np.flatnonzero(repeated):
        row = int(rows[place])
        own = primitive(structure_of(row))
        for earlier in rows[distinct.agreeing(int(place))]:
            if _same_primitive(crystal(int(earlier)), own, tolerance):
                first[row] = earlier
                break
        else:
            distinct.enter(int(place))
    return first


@dataclass(frozen=True, slots=True)
class _Table:
    """Hash table of rows by key and by the grid cell that contains their vector.

    A row is looked up in every grid cell that its box of possible matches touches, so that no cell boundary separates
    equal crystals.

    Attributes:
        label: int64[n], equal for equal keys.
        vectors: float64[n, k].
        cell: float64[n, columns], position in the grid, in cells.
        slack: Largest difference between components of equal crystals.
        head: int64[power of two], the last row inserted into each slot, or -1.
        following: int64[n], the row inserted into the same slot before this one, or -1.
    """

    label: NDArray[np.int64]
    vectors: NDArray[np.float64]
    cell: NDArray[np.float64]
    slack: float
    head: NDArray[np.int64]
    following: NDArray[np.int64]

    @classmethod
    def of(cls, label: NDArray[np.int64], vectors: NDArray[np.float64], slack: float) -> _Table:
        """Make an empty table whose grid uses the components that vary most among rows with the same key."""
        size = np.maximum(np.bincount(label), 1)
        spread = [np.square(x - (np.bincount(label, x) / size)[label]).sum() for x in vectors.T]
        order = np.argsort(-np.array(spread), kind="stable")
        vectors = np.ascontiguousarray(vectors[:, order])  # so that differences show early
        cell = vectors[:, :GRID_COLUMNS] / (GRID_CELL * slack)
        n_slots = 1 << (2 * len(label)).bit_length()
        return cls(label, vectors, cell, slack, np.full(n_slots, -1), np.full(len(label), -1))

    def emptied(self) -> _Table:
        """Return a table of the same rows with none of them inserted."""
        return replace(self, head=np.full_like(self.head, -1), following=np.full_like(self.following, -1))

    def enter_all(self) -> NDArray[np.bool_]:
        """Insert all rows, and return whether each agrees with any row before it: bool[n]."""
        repeated: NDArray[np.bool_] = enter_rows(
            self.label, self.cell, self.vectors, self.slack, self.head, self.following
        )
        return repeated

    def enter(self, place: int) -> None:
        """Insert one row into the table."""
        enter_row(place, self.label, self.cell, self.head, self.following)

    def agreeing(self, place: int) -> NDArray[np.int64]:
        """Return the inserted rows before this one that agree with it, in ascending order."""
        found = np.empty(64, dtype=np.int64)
        while True:
            n_found = agreeing_rows(
                place, self.label, self.cell, self.vectors, self.slack, self.head, self.following, found
            )
            if n_found < len(found):
                return np.unique(found[:n_found])
            found = np.empty(4 * len(found), dtype=np.int64)
