"""Padded neighbour tables: the form in which graphs enter a network, in PyTorch and in ONNX Runtime alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .block import GraphBlock
from .neighbors import edge_keys

INPUT_NAMES = ("atomic_number", "vectors", "neighbors", "reverse", "structure", "volume")


@dataclass(frozen=True, slots=True)
class NeighborTable:
    """A batch of N atoms with K neighbour slots each, in G structures.

    A padding slot points to its own atom and to itself, with a vector of twice the cutoff, where every radial function
    is zero.

    Attributes:
        atomic_number: int64[N].
        vectors: float[N, K, 3], r_neighbor - r_receiver, computed in float64, angstrom.
        neighbors: int64[N, K], sending atom of each slot.
        reverse: int64[N, K], flat index of the slot that holds the opposite edge.
        structure: int64[N], the structure of each atom.
        volume: float64[G], angstrom^3, 1 for structures without a volume.
    """

    atomic_number: NDArray[np.int64]
    vectors: NDArray[np.floating]
    neighbors: NDArray[np.int64]
    reverse: NDArray[np.int64]
    structure: NDArray[np.int64]
    volume: NDArray[np.float64]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The inputs of a network by name, in the order of `INPUT_NAMES`."""
        return {name: getattr(self, name) for name in INPUT_NAMES}


def neighbor_table(block: GraphBlock, cutoff: float, dtype: DTypeLike = np.float32) -> NeighborTable:
    """Lay out all structures of a block as one padded table.

    Args:
        block: Graphs whose cutoff is at least `cutoff`.
        cutoff: The network's cutoff, angstrom; longer edges are left out.
        dtype: Of the vectors.
    """
    vectors = block.displacements()
    # The sum of squares of opposite vectors is equal to the last bit, so the cut keeps the list symmetric.
    within = (vectors * vectors).sum(axis=1) < cutoff * cutoff
    receiver, sender = block.receiver[within], block.sender[within]
    n_atoms = len(block.atomic_number)
    degree = np.bincount(receiver, minlength=n_atoms)
    slots = max(1, int(degree.max(initial=0)))
    rank = np.arange(len(receiver)) - np.repeat(np.cumsum(degree) - degree, degree)
    flat = receiver * slots + rank

    image = block.image[within].astype(np.int64)
    # Edges are sorted by (receiver, image, sender). Sorting them by the same key of their opposites lists, in that
    # order, the opposite of each: one sort.
    opposite = np.argsort(edge_keys(sender, -image, receiver, n_atoms), kind="stable")

    reverse = np.arange(n_atoms * slots)
    reverse[flat] = flat[opposite]
    neighbors = np.repeat(np.arange(n_atoms), slots)
    neighbors[flat] = sender
    padded = np.zeros((n_atoms * slots, 3), dtype=dtype)
    padded[:, 0] = 2 * cutoff
    padded[flat] = vectors[within]
    return NeighborTable(
        atomic_number=block.atomic_number.astype(np.int64),
        vectors=padded.reshape(n_atoms, slots, 3),
        neighbors=neighbors.reshape(n_atoms, slots),
        reverse=reverse.reshape(n_atoms, slots),
        structure=block.atom_structure,
        volume=block.volume,
    )


def size_buckets(block: GraphBlock, slots: int) -> Iterator[NDArray[np.int64]]:
    """Group structures so that each group's table has at most `slots` slots and little padding.

    Structures are ordered by their largest number of neighbours. A structure beyond the limit stands alone.

    Args:
        block: The structures.
        slots: Largest N * K of a group.

    Yields:
        int64[n], indices into the block; every structure comes exactly once.
    """
    order = np.lexsort((np.arange(len(block)), block.n_atoms, block.max_neighbors))
    group: list[int] = []
    atoms = 0
    for index in order:
        width = max(1, int(block.max_neighbors[index]))  # ascending, so it is the group's K
        if group and (atoms + int(block.n_atoms[index])) * width > slots:
            yield np.array(group, dtype=np.int64)
            group, atoms = [], 0
        group.append(int(index))
        atoms += int(block.n_atoms[index])
    if group:
        yield np.array(group, dtype=np.int64)
