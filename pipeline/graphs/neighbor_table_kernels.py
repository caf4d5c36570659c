"""Compiled loops that fill a padded neighbour table, with vectors bit-identical to `GraphBlock.displacements`.

No operation may be reassociated or fused, so ``fastmath`` stays off. Indices are checked before use, so that a damaged
block raises an error and never causes an out-of-bounds read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..jit import compiled

CUT = -1


@compiled
def _vector(
    cell: NDArray[np.float64],
    frac_coord: NDArray[np.float64],
    image: NDArray[np.int16],
    place: tuple[int, int, int, int],
) -> tuple[float, float, float]:
    """Return r_neighbor - r_receiver of one edge, in the order of operations of `GraphBlock.displacements`.

    Args:
        cell: float64[n_structures, 3, 3], angstrom.
        frac_coord: float64[n_atoms, 3].
        image: int16[n_edges, 3].
        place: Structure, receiver, sender and edge.
    """
    s, i, j, e = place
    a = frac_coord[j, 0] - frac_coord[i, 0] + image[e, 0]
    b = frac_coord[j, 1] - frac_coord[i, 1] + image[e, 1]
    c = frac_coord[j, 2] - frac_coord[i, 2] + image[e, 2]
    return (
        a * cell[s, 0, 0] + b * cell[s, 1, 0] + c * cell[s, 2, 0],
        a * cell[s, 0, 1] + b * cell[s, 1, 1] + c * cell[s, 2, 1],
        a * cell[s, 0, 2] + b * cell[s, 1, 2] + c * cell[s, 2, 2],
    )


@compiled
def number_slots(
    n_atoms: NDArray[np.int32],
    n_edges: NDArray[np.int32],
    cell: NDArray[np.float64],
    frac_coord: NDArray[np.float64],
    n_neighbors: NDArray[np.uint16],
    neighbor: NDArray[np.uint16],
    image: NDArray[np.int16],
    cutoff: float,
    slot: NDArray[np.int32],
    edge_start: NDArray[np.int64],
    width: NDArray[np.int64],
) -> int:
    """Number those edges of every atom that are shorter than the cutoff.

    Arrays without a description come from a `GraphBlock`.

    Args:
        n_atoms: int32[n_structures].
        n_edges: int32[n_structures].
        cell: float64[n_structures, 3, 3], angstrom.
        frac_coord: float64[n_atoms, 3].
        n_neighbors: uint16[n_atoms].
        neighbor: uint16[n_edges].
        image: int16[n_edges, 3].
        cutoff: Cutoff in angstrom.
        slot: int32[n_edges], output: slot of each edge, or `CUT`.
        edge_start: int64[n_atoms], output: first edge of each atom.
        width: int64[n_structures], output: largest number of slots of an atom in each structure.

    Returns:
        The first structure with wrong counts or indices, or -1.
    """
    first, edge = 0, 0
    for s in range(len(n_atoms)):
        width[s] = 0
        end = edge + n_edges[s]
        for i in range(first, first + n_atoms[s]):
            edge_start[i] = edge
            if edge + n_neighbors[i] > end:
                return s
            filled = 0
            for e in range(edge, edge + n_neighbors[i]):
                if neighbor[e] >= n_atoms[s]:
                    return s
                x, y, z = _vector(cell, frac_coord, image, (s, i, first + neighbor[e], e))
                # Sums of squares of opposite vectors are equal to the last bit, so the cut keeps the list symmetric.
                if x * x + y * y + z * z < cutoff * cutoff:
                    slot[e] = filled
                    filled += 1
                else:
                    slot[e] = CUT
            edge += n_neighbors[i]
            width[s] = max(width[s], filled)
        if edge != end:
            return s
        first += n_atoms[s]
    return -1


@compiled
def _opposite(
    neighbor: NDArray[np.uint16], image: NDArray[np.int16], edge: int, receiver: int, low: int, high: int
) -> int:
    """Find the opposite of `edge`; return its index, or -1 if it is missing.

    `receiver` is the receiver of `edge`, as an index within its structure. The search bisects the edges from `low` up
    to `high` (exclusive) of the sender, which are sorted by (image, neighbour).
    """
    a, b, c = -np.int64(image[edge, 0]), -np.int64(image[edge, 1]), -np.int64(image[edge, 2])
    last = high
    while low < high:
        e = (low + high) >> 1
        before = image[e, 0] < a or (
            image[e, 0] == a
            and (
                image[e, 1] < b
                or (image[e, 1] == b and (image[e, 2] < c or (image[e, 2] == c and neighbor[e] < receiver)))
            )
        )
        if before:
            low = e + 1
        else:
            high = e
    if low == last or image[low, 0] != a or image[low, 1] != b or image[low, 2] != c or neighbor[low] != receiver:
        return -1
    return low


@compiled
def fill_slots(
    n_atoms: NDArray[np.int32],
    cell: NDArray[np.float64],
    frac_coord: NDArray[np.float64],
    n_neighbors: NDArray[np.uint16],
    neighbor: NDArray[np.uint16],
    image: NDArray[np.int16],
    padding: float,
    slot: NDArray[np.int32],
    edge_start: NDArray[np.int64],
    vectors: NDArray[Any],
    neighbors: NDArray[np.int64],
    reverse: NDArray[np.int64],
) -> int:
    """Write the slots of all atoms, including padding.

    Inputs without a description come from a `GraphBlock`; outputs belong to a `NeighborTable`.

    Args:
        n_atoms: int32[n_structures].
        cell: float64[n_structures, 3, 3], angstrom.
        frac_coord: float64[n_atoms, 3].
        n_neighbors: uint16[n_atoms].
        neighbor: uint16[n_edges].
        image: int16[n_edges, 3].
        padding: x component of the vector of a padding slot, angstrom.
        slot: int32[n_edges], from `number_slots`.
        edge_start: int64[n_atoms], from `number_slots`.
        vectors: float[n_atoms, K, 3], output.
        neighbors: int64[n_atoms, K], output.
        reverse: int64[n_atoms, K], output.

    Returns:
        The first structure with an edge that has no opposite, or -1.
    """
    slots = neighbors.shape[1]
    flat_reverse = reverse.reshape(-1)
    first = 0
    for s in range(len(n_atoms)):
        unmatched = 0
        for i in range(first, first + n_atoms[s]):
            filled = 0
            for e in range(edge_start[i], edge_start[i] + n_neighbors[i]):
                if slot[e] == CUT:
                    continue
                j = first + neighbor[e]
                x, y, z = _vector(cell, frac_coord, image, (s, i, j, e))
                vectors[i, filled, 0], vectors[i, filled, 1], vectors[i, filled, 2] = x, y, z
                neighbors[i, filled] = j
                forward = j > i or (j == i and _is_positive(image, e))
                if forward:  # the opposite edge is not forward, so each pair is looked up once
                    o = _opposite(neighbor, image, e, i - first, edge_start[j], edge_start[j] + n_neighbors[j])
                    if o < 0 or slot[o] == CUT:
                        return s
                    flat_reverse[i * slots + filled] = j * slots + slot[o]
                    flat_reverse[j * slots + slot[o]] = i * slots + filled
                unmatched += 1 if forward else -1
                filled += 1
            for k in range(filled, slots):
                vectors[i, k, 0], vectors[i, k, 1], vectors[i, k, 2] = padding, 0.0, 0.0
                neighbors[i, k] = i
                flat_reverse[i * slots + k] = i * slots + k
        if unmatched != 0:
            return s
        first += n_atoms[s]
    return -1


@compiled
def _is_positive(image: NDArray[np.int16], edge: int) -> bool:
    """Whether the first nonzero component is positive, which is true for one image of each opposite pair."""
    for axis in range(3):
        if image[edge, axis] != 0:
            return bool(image[edge, axis] > 0)
    return False
