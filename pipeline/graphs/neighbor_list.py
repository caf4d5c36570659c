"""Neighbour lists: for every atom, the atoms and lattice images within the cutoff."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidStructureError
from ..jit import compiled
from ..structures.structure import Structure

MAX_NEIGHBORS = 65_535  # counts are uint16
MAX_IMAGE = 32_767  # images are int16
# Atoms are never closer than this (angstrom): the bond length of a hydrogen molecule is 0.74 angstrom.
MIN_DISTANCE = 0.1
# Cells with more images than this within the cutoff are nearly flat; searching them would take minutes.
MAX_IMAGES = 1_000_000
# Enough for a crystal of 65,535 atoms with 300 neighbours each; the search needs some 20 bytes of memory per edge.
MAX_EDGES = 20_000_000

_FOUND, _TOO_CLOSE, _TOO_MANY_EDGES, _TOO_MANY_NEIGHBORS, _TOO_MANY_IMAGES, _IMAGE_TOO_FAR = range(6)
_FIRST_GUESS = 64  # edges per atom, before the arrays grow
_MAX_BINS = 64  # along each axis


@dataclass(frozen=True, slots=True)
class NeighborList:
    """The full neighbour list of one structure, sorted by (receiver, image, neighbour).

    The displacement along an edge is ``(frac_coord[neighbor] - frac_coord[receiver] + image) @ cell``. Computed in this
    order, it is exactly the negative of the displacement along the opposite edge, which is also in the list.

    Example:
        >>> from ase.build import bulk
        >>> from equiscreen.pipeline import Structure, neighbor_list
        >>> found = neighbor_list(Structure.from_ase(bulk("NaCl", "rocksalt", a=5.64)), cutoff=3.0)
        >>> found.n_neighbors.tolist(), found.neighbor[:6].tolist()
        ([6, 6], [1, 1, 1, 1, 1, 1])

    Attributes:
        n_neighbors: uint16[n_atoms], number of edges of each receiver.
        neighbor: uint16[n_edges], sender of each edge.
        image: int16[n_edges, 3], lattice image of the sender.
    """

    n_neighbors: NDArray[np.uint16]
    neighbor: NDArray[np.uint16]
    image: NDArray[np.int16]


def neighbor_list(
    structure: Structure, cutoff: float, min_distance: float = MIN_DISTANCE, max_edges: int = MAX_EDGES
) -> NeighborList:
    """Find all pairs closer than `cutoff`.

    The displacements along two opposite edges are exactly each other's negatives, so the list is symmetric even for
    pairs whose distance equals the cutoff to the last bit.

    Example:
        >>> from ase.build import bulk
        >>> from equiscreen.pipeline import Structure, neighbor_list
        >>> neighbor_list(Structure.from_ase(bulk("Cu")), cutoff=3.0).n_neighbors.tolist()
        [12]

    Args:
        structure: A structure of any periodicity. Its cell may be smaller than the cutoff, and skewed.
        cutoff: Cutoff in angstrom.
        min_distance: Distance in angstrom below which two atoms are taken to overlap.
        max_edges: Number of edges above which an error is raised.

    Raises:
        InvalidStructureError: Two atoms overlap; there are too many edges, neighbours of an atom, or lattice images; or
            the index of an image is too large.
    """
    count, neighbor, image, outcome, i, j = _search(
        structure.frac_coord, structure.cell, structure.pbc, float(cutoff), float(min_distance), int(max_edges)
    )
    if outcome == _TOO_MANY_IMAGES:
        raise InvalidStructureError(
            f"too many lattice images (more than {MAX_IMAGES} within the cutoff: the cell is too small or "
            "flat, or the cutoff too large)"
        )
    if outcome == _TOO_CLOSE:
        raise InvalidStructureError(f"overlapping atoms (atoms {i} and {j}, less than {min_distance:g} angstrom apart)")
    if outcome == _TOO_MANY_EDGES:
        raise InvalidStructureError(f"too many edges (more than {max_edges}; reduce the cutoff)")
    if outcome == _IMAGE_TOO_FAR:
        raise InvalidStructureError(f"lattice image index above {MAX_IMAGE} (cell too skewed; use a reduced cell)")
    if outcome == _TOO_MANY_NEIGHBORS:
        raise InvalidStructureError(f"too many neighbours of one atom (more than {MAX_NEIGHBORS}; reduce the cutoff)")
    return NeighborList(count, neighbor, image)


@compiled
def _search(  # noqa: C901, PLR0912, PLR0915 - one loop nest
    frac: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    cutoff: float,
    min_distance: float,
    max_edges: int,
) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.int16], int, int, int]:
    """Find edges in sorted order: by receiver, then by lattice image (a, b, c), then by sender.

    Atoms are sorted into bins along the lattice planes, so that in a large cell only atoms near the cutoff sphere are
    visited.
    """
    n = frac.shape[0]
    reach = cutoff / _heights(cell)
    count = np.zeros(n, dtype=np.uint16)
    neighbor = np.empty(n * _FIRST_GUESS, dtype=np.uint16)
    image = np.empty((n * _FIRST_GUESS, 3), dtype=np.int16)
    n_images = 1.0
    for axis in range(3):
        if pbc[axis]:
            n_images *= 2 * np.ceil(reach[axis]) + 1
    if n_images > MAX_IMAGES:
        return count, neighbor, image, _TOO_MANY_IMAGES, 0, 0
    low, width, bins = _bins(frac, reach)
    n_bins, first, members = _sorted_into_bins(frac, low, width, bins)
    # The margin ensures that rounding loses no pair at the edge of the search range; the exact distance decides which
    # pairs are kept.
    margin = reach * (1 + 1e-9) + 1e-9

    begin, end = np.empty(3, dtype=np.int64), np.empty(3, dtype=np.int64)
    shift = np.empty(3, dtype=np.int64)
    # Most atoms are far away; Cartesian positions rule them out at less cost than the exact distance.
    positions = _positions(frac, cell)
    loose = cutoff * cutoff * (1 + 1e-6) + 1e-6
    n_edges = 0
    for i in range(n):
        for axis in range(3):
            begin[axis] = end[axis] = 0
            if pbc[axis]:
                high = low[axis] + width[axis] * bins[axis]
                begin[axis] = int(np.ceil(frac[i, axis] - high - margin[axis]))
                end[axis] = int(np.floor(frac[i, axis] - low[axis] + margin[axis]))
        before_atom = n_edges
        for a in range(begin[0], end[0] + 1):
            a_low, a_high = _bin_range(frac[i, 0] - a, margin[0], low[0], width[0], bins[0])
            for b in range(begin[1], end[1] + 1):
                b_low, b_high = _bin_range(frac[i, 1] - b, margin[1], low[1], width[1], bins[1])
                for c in range(begin[2], end[2] + 1):
                    c_low, c_high = _bin_range(frac[i, 2] - c, margin[2], low[2], width[2], bins[2])
                    shift[0], shift[1], shift[2] = a, b, c
                    x, y, z = _moved(positions[i], shift, cell)
                    before_image = n_edges
                    for a_bin in range(a_low, a_high + 1):
                        for b_bin in range(b_low, b_high + 1):
                            row = (a_bin * bins[1] + b_bin) * bins[2]
                            for m in range(first[row + c_low], first[row + c_high + 1] if c_high >= c_low else 0):
                                j = members[m]
                                dx, dy, dz = positions[j, 0] - x, positions[j, 1] - y, positions[j, 2] - z
                                if dx * dx + dy * dy + dz * dz > loose:
                                    continue
                                square = _distance_square(frac, cell, i, j, shift)
                                if square >= cutoff * cutoff or (i == j and a == 0 and b == 0 and c == 0):
                                    continue
                                if square < min_distance * min_distance:
                                    return count, neighbor, image, _TOO_CLOSE, i, j
                                if n_edges == max_edges:
                                    return count, neighbor, image, _TOO_MANY_EDGES, i, j
                                if n_edges == neighbor.shape[0]:
                                    neighbor, image = _grown(neighbor, image)
                                neighbor[n_edges] = j
                                n_edges += 1
                    if n_edges > before_image:
                        if max(abs(a), abs(b), abs(c)) > MAX_IMAGE:
                            return count, neighbor, image, _IMAGE_TOO_FAR, i, i
                        image[before_image:n_edges] = shift
                        if n_bins > 1:  # with several bins, atoms of an image are found bin by bin
                            neighbor[before_image:n_edges].sort()
        if n_edges - before_atom > MAX_NEIGHBORS:
            return count, neighbor, image, _TOO_MANY_NEIGHBORS, i, i
        count[i] = n_edges - before_atom
    return count, neighbor[:n_edges].copy(), image[:n_edges].copy(), _FOUND, 0, 0


@compiled
def _heights(cell: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distances between the lattice planes: float64[3], angstrom."""
    heights = np.empty(3)
    for axis in range(3):
        u, v = cell[(axis + 1) % 3], cell[(axis + 2) % 3]
        x, y, z = u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]
        w = cell[axis]
        heights[axis] = abs(w[0] * x + w[1] * y + w[2] * z) / np.sqrt(x * x + y * y + z * z)
    return heights


@compiled
def _positions(frac: NDArray[np.float64], cell: NDArray[np.float64]) -> NDArray[np.float64]:
    positions = np.empty(frac.shape)
    for i in range(frac.shape[0]):
        for axis in range(3):
            positions[i, axis] = frac[i, 0] * cell[0, axis] + frac[i, 1] * cell[1, axis] + frac[i, 2] * cell[2, axis]
    return positions


@compiled
def _moved(
    position: NDArray[np.float64], shift: NDArray[np.int64], cell: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Subtract a lattice vector from a position."""
    a, b, c = shift[0], shift[1], shift[2]
    return (
        position[0] - (a * cell[0, 0] + b * cell[1, 0] + c * cell[2, 0]),
        position[1] - (a * cell[0, 1] + b * cell[1, 1] + c * cell[2, 1]),
        position[2] - (a * cell[0, 2] + b * cell[1, 2] + c * cell[2, 2]),
    )


@compiled
def _distance_square(
    frac: NDArray[np.float64], cell: NDArray[np.float64], i: int, j: int, shift: NDArray[np.int64]
) -> float:
    """Return the squared length of a displacement, in the order of operations of `GraphBlock.displacements`."""
    x = frac[j, 0] - frac[i, 0] + shift[0]
    y = frac[j, 1] - frac[i, 1] + shift[1]
    z = frac[j, 2] - frac[i, 2] + shift[2]
    square = 0.0
    for axis in range(3):
        component = x * cell[0, axis] + y * cell[1, axis] + z * cell[2, axis]
        square += component * component
    return square


@compiled
def _bins(
    frac: NDArray[np.float64], reach: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return the lowest coordinate, the width of the bins and their number along each axis.

    If there are several bins along an axis, they are at least as wide as the reach.
    """
    n = frac.shape[0]
    low, width, bins = np.empty(3), np.empty(3), np.ones(3, dtype=np.int64)
    for axis in range(3):
        low[axis] = frac[:, axis].min()
        extent = frac[:, axis].max() - low[axis]
        bins[axis] = int(max(1.0, min(float(_MAX_BINS), extent / reach[axis])))
        width[axis] = extent
    while bins[0] * bins[1] * bins[2] * 8 > max(n, 8):  # smaller bins cost more than they save
        bins[np.argmax(bins)] -= 1
    for axis in range(3):
        width[axis] /= bins[axis]
    return low, width, bins


@compiled
def _sorted_into_bins(
    frac: NDArray[np.float64], low: NDArray[np.float64], width: NDArray[np.float64], bins: NDArray[np.int64]
) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of bins, the first member of each (int64[n_bins + 1]) and the atoms by bin (int64[n_atoms])."""
    n, n_bins = frac.shape[0], bins[0] * bins[1] * bins[2]
    own = np.empty(n, dtype=np.int64)
    first = np.zeros(n_bins + 1, dtype=np.int64)
    for i in range(n):
        number = 0
        for axis in range(3):
            along = 0
            if bins[axis] > 1:
                along = min(bins[axis] - 1, int((frac[i, axis] - low[axis]) / width[axis]))
            number = number * bins[axis] + along
        own[i] = number
        first[number + 1] += 1
    first = np.cumsum(first)
    free = first.copy()
    members = np.empty(n, dtype=np.int64)
    for i in range(n):
        members[free[own[i]]] = i
        free[own[i]] += 1
    return n_bins, first, members


@compiled
def _bin_range(center: float, margin: float, low: float, width: float, bins: int) -> tuple[int, int]:
    """Return the first and last bin along an axis that the sphere touches; last < first if it touches none."""
    if center + margin < low or center - margin > low + width * bins + 1e-9:
        return 0, -1
    if bins == 1:
        return 0, 0
    first = int(np.floor((center - margin - low) / width - 1e-9))
    last = int(np.floor((center + margin - low) / width + 1e-9))
    return max(0, min(first, bins - 1)), max(0, min(last, bins - 1))


@compiled
def _grown(neighbor: NDArray[np.uint16], image: NDArray[np.int16]) -> tuple[NDArray[np.uint16], NDArray[np.int16]]:
    """Copy the edges into arrays of twice the size."""
    size = neighbor.shape[0]
    more_neighbor = np.empty(2 * size, dtype=neighbor.dtype)
    more_image = np.empty((2 * size, 3), dtype=image.dtype)
    more_neighbor[:size] = neighbor
    more_image[:size] = image
    return more_neighbor, more_image
