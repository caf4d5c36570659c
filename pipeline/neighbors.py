"""Neighbour lists: for every atom the atoms and lattice images within the cutoff."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import vesin
from numpy.typing import NDArray

from .errors import InvalidStructureError
from .structure import Structure

MAX_NEIGHBORS = 65_535  # counts are uint16
MAX_IMAGE = 32_767  # images are int16
# No two atoms of matter are closer: a hydrogen molecule has 0.74 angstrom.
MIN_DISTANCE = 0.1
# What vesin 0.6 can search: beyond, it takes all memory, or divides by zero and takes its process along.
MAX_IMAGES = 1_000_000
MAX_BOXES_ALONG, MAX_BOXES = 10_000, 1_000_000


@dataclass(frozen=True, slots=True)
class NeighborList:
    """The full neighbour list of one structure, sorted by (receiver, image, neighbour).

    The displacement of an edge is ``(frac_coord[neighbor] + image - frac_coord[receiver]) @ cell``. Every edge has its
    opposite in the list.

    Attributes:
        n_neighbors: uint16[n_atoms], edges of each receiving atom.
        neighbor: uint16[n_edges].
        image: int16[n_edges, 3].
    """

    n_neighbors: NDArray[np.uint16]
    neighbor: NDArray[np.uint16]
    image: NDArray[np.int16]


def neighbor_list(structure: Structure, cutoff: float, min_distance: float = MIN_DISTANCE) -> NeighborList:
    """Find all pairs closer than `cutoff`.

    Only half of the list is searched for and then mirrored: so it is symmetric by construction, also for pairs whose
    distance equals the cutoff to the last bit.

    Args:
        structure: Any cell, small or skewed, with any periodicity.
        cutoff: Angstrom.
        min_distance: Two atoms closer than this, in angstrom, are an error in the data.

    Raises:
        InvalidStructureError: Two atoms at one place, or counts beyond what the store can hold.
    """
    _check_extent(structure, cutoff)
    finder = vesin.NeighborList(cutoff=cutoff, full_list=False, n_threads=1)
    i, j, image, distance = finder.compute(
        points=structure.positions, box=structure.cell, periodic=structure.pbc, quantities="ijSd"
    )
    if len(distance) and distance.min() < min_distance:
        closest = int(distance.argmin())
        raise InvalidStructureError(
            f"atoms {int(i[closest])} and {int(j[closest])} at one place (distance {distance[closest]:.3g} angstrom)"
        )
    if len(image) and np.abs(image).max() > MAX_IMAGE:
        raise InvalidStructureError(f"lattice images beyond {MAX_IMAGE}: reduce the cell")
    receiver = np.concatenate([i, j]).astype(np.int64)
    sender = np.concatenate([j, i]).astype(np.int64)
    images = np.concatenate([image, -image]).astype(np.int64)
    count = np.bincount(receiver, minlength=len(structure))
    if count.max(initial=0) > MAX_NEIGHBORS:
        raise InvalidStructureError(f"{count.max()} neighbours of one atom, more than {MAX_NEIGHBORS}")
    order = np.argsort(edge_keys(receiver, images, sender, len(structure)), kind="stable")
    return NeighborList(
        count.astype(np.uint16), sender[order].astype(np.uint16), images[order].astype(np.int16, copy=False)
    )


def _check_extent(structure: Structure, cutoff: float) -> None:
    """Refuse what no finder can search: cells with images without number, atoms with nothing but space between them."""
    heights = 1 / np.linalg.norm(np.linalg.inv(structure.cell), axis=0)
    images = np.prod(np.where(structure.pbc, np.ceil(cutoff / heights) * 2 + 1, 1))
    if images * len(structure) > MAX_IMAGES:
        raise InvalidStructureError(f"cell of zero volume (lattice planes {heights.min():.2g} angstrom apart)")
    spread = np.ptp(structure.frac_coord, axis=0) * np.linalg.norm(structure.cell, axis=1)
    boxes = np.maximum(np.where(structure.pbc, heights, spread) / cutoff, 1)
    if boxes.max() > MAX_BOXES_ALONG or boxes.prod() > MAX_BOXES:
        raise InvalidStructureError(f"atoms too far apart (over {np.max(boxes * cutoff):.3g} angstrom)")


def edge_keys(
    receiver: NDArray[np.int64], image: NDArray[np.int64], sender: NDArray[np.int64], n_senders: int
) -> NDArray[np.int64]:
    """Integers that sort edges by (receiver, image, neighbour).

    Args:
        receiver: int64[n_edges].
        image: int64[n_edges, 3].
        sender: int64[n_edges], each below `n_senders`.
        n_senders: What the sender index counts up to.

    Returns:
        int64[n_edges]. Equal edges have equal keys, also across calls with opposite images.
    """
    if len(receiver) == 0:
        return np.zeros(0, dtype=np.int64)
    reach = np.abs(image).max(axis=0)  # symmetric: keys of mirrored edges have to be comparable
    span = 2 * reach + 1
    if (int(receiver.max()) + 1) * n_senders * int(span[0]) * int(span[1]) * int(span[2]) >= 2**63:
        return _dense_keys(receiver, image, sender)
    key: NDArray[np.int64] = receiver
    for axis in range(3):
        key = key * span[axis] + (image[:, axis] + reach[axis])
    return key * n_senders + sender


def _dense_keys(receiver: NDArray[np.int64], image: NDArray[np.int64], sender: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank edges instead of packing them, for images so far apart that packed keys overflow 64 bits."""
    columns = np.stack([receiver, *image.T, sender], axis=1)
    return np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
