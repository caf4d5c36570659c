"""Loops over sites, lattice vectors and rows for structure matching, compiled with numba.

They are plain loops because numba compiles loops several times faster than array expressions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..jit import compiled

VECTOR_SIZE = 22
SHELLS = (0, 5, 11)  # nearest neighbours whose distances are used, regardless of species
N_NEAREST = 12
N_LIKE = 8  # nearest neighbours of one species, or of all others
N_SPECIES = 3
# More lattice points than any crystal needs: only a cell a thousand times longer than wide has that many.
MAX_LATTICE_POINTS = 10_000_000
# Edge of a grid cell, in units of the slack. The box around a row is twice the slack wide, so that in each column it
# touches a second cell in a quarter of the cases.
GRID_CELL = 8.0


@compiled
def _slot(label: int, cell: NDArray[np.float64], n_slots: int) -> int:
    """Return the slot in the hash table; collisions are harmless because rows are compared in full."""
    state = np.uint64(label) * np.uint64(0x9E3779B97F4A7C15)
    for k in range(len(cell)):
        state = (state ^ np.uint64(np.int64(np.floor(cell[k])))) * np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(29)
    return int(state & np.uint64(n_slots - 1))


@compiled
def enter_row(
    place: int,
    label: NDArray[np.int64],
    cell: NDArray[np.float64],
    head: NDArray[np.int64],
    following: NDArray[np.int64],
) -> None:
    """Insert a row at the head of its slot; the arguments are attributes of `matching._Table`."""
    slot = _slot(label[place], cell[place], len(head))
    following[place] = head[slot]
    head[slot] = place


@compiled
def agreeing_rows(
    place: int,
    label: NDArray[np.int64],
    cell: NDArray[np.float64],
    vectors: NDArray[np.float64],
    slack: float,
    head: NDArray[np.int64],
    following: NDArray[np.int64],
    found: NDArray[np.int64],
) -> int:
    """Find inserted rows before `place` with the same label whose components all lie within `slack` of its own.

    Returns:
        Number of rows written to `found`; the search stops when `found` is full. Rows may occur twice, because two
        corners of the box around `place` may share a slot.
    """
    n_columns = cell.shape[1]
    n_found = 0
    corner = np.empty(n_columns)
    for sides in range(1 << n_columns):
        visited = False
        for column in range(n_columns):
            corner[column] = cell[place, column] - 1 / GRID_CELL
            if (sides >> column) & 1:
                lower = np.floor(corner[column])
                corner[column] = cell[place, column] + 1 / GRID_CELL
                visited |= np.floor(corner[column]) == lower  # this side leads to a cell that is visited anyway
        if visited:
            continue
        row = head[_slot(label[place], corner, len(head))]
        while row >= 0:
            if row < place and label[row] == label[place] and _close(vectors[row], vectors[place], slack):
                found[n_found] = row
                n_found += 1
                if n_found == len(found):
                    return n_found
            row = following[row]
    return n_found


@compiled
def _close(a: NDArray[np.float64], b: NDArray[np.float64], slack: float) -> bool:
    for k in range(len(a)):  # noqa: SIM110 - numba compiles no generators inside all()
        if abs(a[k] - b[k]) > slack:
            return False
    return True


@compiled
def enter_rows(
    label: NDArray[np.int64],
    cell: NDArray[np.float64],
    vectors: NDArray[np.float64],
    slack: float,
    head: NDArray[np.int64],
    following: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Insert all rows, and return whether each agrees with any row before it: bool[n]."""
    repeated = np.zeros(len(label), dtype=np.bool_)
    found = np.empty(1, dtype=np.int64)
    for place in range(len(label)):
        repeated[place] = agreeing_rows(place, label, cell, vectors, slack, head, following, found) > 0
        enter_row(place, label, cell, head, following)
    return repeated


@compiled
def vector_of_crystal(
    numbers: NDArray[np.uint8],
    frac: NDArray[np.float64],
    cell: NDArray[np.float64],
    inverse: NDArray[np.float64],
    volume: float,
) -> NDArray[np.float64]:
    """Compute the descriptor of `matching.crystal_vector` for a structure that is periodic in three directions."""
    vector = np.zeros(VECTOR_SIZE)
    n_atoms = len(numbers)
    counts = np.zeros(256, dtype=np.int64)
    for number in numbers:
        counts[number] += 1
    vector[0] = (volume / n_atoms) ** (1 / 3)
    everything = np.arange(n_atoms)
    guess = _radius(volume, n_atoms, N_NEAREST)
    for shell in range(len(SHELLS)):
        vector[1 + 3 * shell] = np.inf
    for i in range(n_atoms):
        squares = _nearest(i, everything, frac, cell, inverse, guess, N_NEAREST)
        for k, shell in enumerate(SHELLS):
            distance = np.sqrt(squares[shell])
            vector[1 + 3 * k] = min(vector[1 + 3 * k], distance)
            vector[2 + 3 * k] += distance / n_atoms
            vector[3 + 3 * k] = max(vector[3 + 3 * k], distance)
    for k in range(N_SPECIES):
        rarest = 0
        for number in range(len(counts)):
            if counts[number] > 0 and (counts[rarest] == 0 or counts[number] < counts[rarest]):
                rarest = number
        if counts[rarest] == 0:
            break
        counts[rarest] = 0
        own, others = np.flatnonzero(numbers == rarest), np.flatnonzero(numbers != rarest)
        start = 1 + 3 * len(SHELLS) + 4 * k
        _fill_species(own, others, frac, cell, inverse, volume, vector[start : start + 4])
    return vector


@compiled
def _fill_species(
    own: NDArray[np.int64],
    others: NDArray[np.int64],
    frac: NDArray[np.float64],
    cell: NDArray[np.float64],
    inverse: NDArray[np.float64],
    volume: float,
    statistics: NDArray[np.float64],
) -> None:
    """Fill in the statistics of the distances from one species to the nearest atoms of its own and other species.

    They are the two mean distances, and the root mean square and maximum of their per-site averages. The last two
    distinguish crystals that have the same distances distributed differently over their sites.
    """
    for i in own:
        like = _weighted(_nearest(i, own, frac, cell, inverse, _radius(volume, len(own), N_LIKE), N_LIKE))
        other = 0.0
        if len(others):
            other = _weighted(_nearest(i, others, frac, cell, inverse, _radius(volume, len(others), N_LIKE), N_LIKE))
        both = (like + other) / 2
        statistics[0] += like / len(own)
        statistics[1] += other / len(own)
        statistics[2] += both * both / len(own)
        statistics[3] = max(statistics[3], both)
    statistics[2] = np.sqrt(statistics[2])


@compiled
def _weighted(squares: NDArray[np.float64]) -> float:
    """Return the mean distance with larger weights for nearer atoms: changes in different shells then rarely cancel."""
    total, weight = 0.0, 0.0
    for k in range(len(squares)):
        total += np.sqrt(squares[k]) / (k + 1)
        weight += 1 / (k + 1)
    return total / weight


@compiled
def _radius(volume: float, n_targets: int, count: int) -> float:
    """Return the radius, with a small margin, of a sphere that holds `count` targets at their mean density."""
    return float(1.1 * (0.75 / np.pi * volume * (count + 1) / n_targets) ** (1 / 3))


@compiled
def _nearest(
    atom: int,
    targets: NDArray[np.int64],
    frac: NDArray[np.float64],
    cell: NDArray[np.float64],
    inverse: NDArray[np.float64],
    guess: float,
    count: int,
) -> NDArray[np.float64]:
    """Find the squared distances from an atom to the nearest targets, other than itself, in the infinite crystal.

    Args:
        atom: Index of an atom.
        targets: int64[m], indices of atoms.
        frac: float64[n, 3].
        cell: float64[3, 3]; any cell works, a reduced one is fastest.
        inverse: float64[3, 3], inverse of the cell.
        guess: Initial search radius, angstrom.
        count: Number of neighbours.

    Returns:
        float64[count], angstrom^2, in ascending order.
    """
    radius = guess
    while True:
        squares: NDArray[np.float64] = _squares_within(atom, targets, frac, cell, inverse, radius, count)
        if squares[count - 1] <= radius * radius:
            return squares
        radius *= 1.25


@compiled
def _squares_within(  # noqa: C901 - a nest of loops, one step each
    atom: int,
    targets: NDArray[np.int64],
    frac: NDArray[np.float64],
    cell: NDArray[np.float64],
    inverse: NDArray[np.float64],
    radius: float,
    count: int,
) -> NDArray[np.float64]:
    """Find the squared distances of `_nearest` among the lattice images in a box around a sphere."""
    best = np.full(count, np.inf)
    a, b, c = np.zeros(3), np.zeros(3), np.zeros(3)
    for k in range(3):  # half edges of the box in lattice coordinates
        a[k] = radius * np.sqrt(inverse[0, k] ** 2 + inverse[1, k] ** 2 + inverse[2, k] ** 2)
    for j in targets:
        x, y, z = frac[j, 0] - frac[atom, 0], frac[j, 1] - frac[atom, 1], frac[j, 2] - frac[atom, 2]
        for u in range(np.ceil(-a[0] - x), np.floor(a[0] - x) + 1):
            for k in range(3):
                b[k] = (x + u) * cell[0, k]
            for v in range(np.ceil(-a[1] - y), np.floor(a[1] - y) + 1):
                for k in range(3):
                    c[k] = b[k] + (y + v) * cell[1, k]
                for w in range(np.ceil(-a[2] - z), np.floor(a[2] - z) + 1):
                    if j == atom and u == 0 and v == 0 and w == 0:
                        continue
                    square = 0.0
                    for k in range(3):
                        square += (c[k] + (z + w) * cell[2, k]) ** 2
                    if square < best[count - 1]:
                        place = count - 1
                        while place > 0 and best[place - 1] > square:
                            best[place] = best[place - 1]
                            place -= 1
                        best[place] = square
    return best


@compiled
def lattice_maps(
    source: NDArray[np.float64],
    target: NDArray[np.float64],
    reach: NDArray[np.float64],
    multiple: int,
    tolerance: float,
) -> NDArray[np.int64]:
    """Find the integer matrices of determinant `multiple` whose products with `source` have nearly `target`'s metric.

    Args:
        source: float64[3, 3], a right-handed basis.
        target: float64[3, 3], a right-handed basis.
        reach: float64[3], cells of `source` per angstrom.
        multiple: Ratio of the volumes.
        tolerance: Largest difference between the lengths of corresponding vectors, angstrom.

    Returns:
        int64[n, 9], the matrices row by row.
    """
    found = np.empty((48, 9), dtype=np.int64)
    n_found = 0
    first = _vectors_of_length(source, reach, _length(target[0]), tolerance)
    second = _vectors_of_length(source, reach, _length(target[1]), tolerance)
    third = _vectors_of_length(source, reach, _length(target[2]), tolerance)
    for a in first:
        for b in second:
            if not _third_side(a, b, source, target[0], target[1], tolerance):
                continue
            u, v, w = a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]
            for c in third:
                if u * c[0] + v * c[1] + w * c[2] != multiple:
                    continue
                if not _third_side(a, c, source, target[0], target[2], tolerance):
                    continue
                if not _third_side(b, c, source, target[1], target[2], tolerance):
                    continue
                if n_found == len(found):
                    found = _doubled(found)
                for k in range(3):
                    found[n_found, k], found[n_found, 3 + k], found[n_found, 6 + k] = a[k], b[k], c[k]
                n_found += 1
    return found[:n_found]


@compiled
def _third_side(
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    cell: NDArray[np.float64],
    other_a: NDArray[np.float64],
    other_b: NDArray[np.float64],
    tolerance: float,
) -> bool:
    """Whether the third side of a triangle changes by no more than the other two sides may change together."""
    side, other = 0.0, 0.0
    for k in range(3):
        side += ((a[0] - b[0]) * cell[0, k] + (a[1] - b[1]) * cell[1, k] + (a[2] - b[2]) * cell[2, k]) ** 2
        other += (other_a[k] - other_b[k]) ** 2
    return bool(abs(np.sqrt(side) - np.sqrt(other)) <= 2 * tolerance)


@compiled
def _length(vector: NDArray[np.float64]) -> float:
    return float(np.sqrt(vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2))


@compiled
def _doubled(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Copy the rows into an array of twice the length."""
    larger = np.empty((2 * rows.shape[0], rows.shape[1]), dtype=np.int64)
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            larger[i, k] = rows[i, k]
    return larger


@compiled
def _vectors_of_length(
    cell: NDArray[np.float64], reach: NDArray[np.float64], length: float, tolerance: float
) -> NDArray[np.int64]:
    """Find the lattice vectors of a given length, int64[n, 3]; none if there are too many to search."""
    radius = length + tolerance
    a, b, c = np.floor(radius * reach[0]), np.floor(radius * reach[1]), np.floor(radius * reach[2])
    found = np.empty((48, 3), dtype=np.int64)
    n_found = 0
    if (2 * a + 1) * (2 * b + 1) * (2 * c + 1) > MAX_LATTICE_POINTS:
        return found[:0]
    for u in range(-a, a + 1):
        for v in range(-b, b + 1):
            for w in range(-c, c + 1):
                square = 0.0
                for k in range(3):
                    square += (u * cell[0, k] + v * cell[1, k] + w * cell[2, k]) ** 2
                if abs(np.sqrt(square) - length) <= tolerance:
                    if n_found == len(found):
                        found = _doubled(found)
                    found[n_found, 0], found[n_found, 1], found[n_found, 2] = u, v, w
                    n_found += 1
    return found[:n_found]


@compiled
def sites_agree(
    numbers: NDArray[np.uint8],
    frac: NDArray[np.float64],
    cell: NDArray[np.float64],
    other: NDArray[np.float64],
    maps: NDArray[np.int64],
    multiple: int,
    tolerance: float,
) -> bool:
    """Whether a lattice map and a translation map the sites of the larger cell onto sites of the smaller.

    Args:
        numbers: uint8[n], atomic numbers in the smaller cell, the rarest species first.
        frac: float64[n, 3], fractional coordinates in the smaller cell.
        cell: float64[3, 3], the smaller cell.
        other: float64[n * multiple, 3], fractional coordinates in the larger cell, species in the same order.
        maps: int64[m, 3, 3], lattice vectors of the larger cell in the basis of the smaller.
        multiple: Number of sites of the larger cell per site of the smaller.
        tolerance: Tolerance in angstrom.
    """
    moved = np.empty(other.shape)
    for index in range(len(maps)):
        for site in range(len(numbers)):
            if numbers[site] != numbers[0]:
                break
            for k in range(3):
                for i in range(len(other)):
                    moved[i, k] = frac[site, k]
                    for row in range(3):
                        moved[i, k] += (other[i, row] - other[0, row]) * maps[index, row, k]
            if _matched(numbers, frac, cell, moved, multiple, tolerance):
                return True
    return False


@compiled
def _matched(
    numbers: NDArray[np.uint8],
    frac: NDArray[np.float64],
    cell: NDArray[np.float64],
    moved: NDArray[np.float64],
    multiple: int,
    tolerance: float,
) -> bool:
    """Whether all sites lie within the tolerance of their partners after subtracting the mean displacement."""
    used = np.zeros(len(numbers), dtype=np.int64)
    displacement = np.empty(moved.shape)
    start = 0
    for i in range(len(moved)):
        while numbers[start] != numbers[i // multiple]:
            start += 1
        partner = start
        # One site is placed exactly on its partner, so another site may be off by the sum of its own displacement and
        # the first site's.
        while used[partner] == multiple or _displace(moved[i], frac[partner], cell, displacement[i]) > 2 * tolerance:
            partner += 1
            if partner == len(numbers) or numbers[partner] != numbers[start]:
                return False
        used[partner] += 1
    for k in range(3):
        mean = 0.0
        for i in range(len(moved)):
            mean += displacement[i, k] / len(moved)
        for i in range(len(moved)):
            displacement[i, k] -= mean
    for i in range(len(moved)):  # noqa: SIM110 - see _close
        if _length(displacement[i]) > tolerance:
            return False
    return True


@compiled
def _displace(
    moved: NDArray[np.float64], site: NDArray[np.float64], cell: NDArray[np.float64], out: NDArray[np.float64]
) -> float:
    """Write the Cartesian displacement modulo the lattice (angstrom) to `out`, and return its length.

    Only a displacement that is short compared with the cell is sure to be the shortest one.
    """
    out[0], out[1], out[2] = 0.0, 0.0, 0.0
    for row in range(3):
        apart = moved[row] - site[row]
        apart -= np.rint(apart)
        for k in range(3):
            out[k] += apart * cell[row, k]
    return float(_length(out))
