"""Padded neighbour tables: the input of a network, both in PyTorch and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import InvalidStructureError
from .graph_block import GraphBlock
from .neighbor_list import MAX_NEIGHBORS

# Largest number of atoms in a table of several structures. ONNX Runtime divides float64 sums over all atoms of a table
# into blocks of 1,024 terms: a structure that straddled two blocks would be summed in a different order.
UNIFORM_ATOMS = 512

_Graph = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.int16]]


def _widths() -> tuple[int, ...]:
    """Return the possible widths of a table, each some 15 % (but at least two slots) larger than the previous one.

    More widths would mean less padding but more tables, and each table costs some 1.6 ms with 7net-0, as much as 60
    slots. The smallest width is at least two: ONNX Runtime computes products with one row differently.
    """
    found = [4]
    while found[-1] < MAX_NEIGHBORS:
        found.append(max(found[-1] + 2, 2 * round(found[-1] * 1.15 / 2)))
    return tuple(found)


_WIDTHS = _widths()

INPUT_NAMES = ("atomic_number", "vectors", "neighbors", "reverse", "pair", "pair_slot", "structure", "volume")


@dataclass(frozen=True, slots=True)
class NeighborTable:
    """A batch of N atoms with K neighbour slots each, in G structures; each edge and its opposite form one of P pairs.

    A padding slot points to its own atom and is its own opposite. Its vector is twice as long as the cutoff, where
    every radial function is zero. All padding slots belong to the last pair.

    Example:
        >>> from equiscreen.pipeline import GraphStore, neighbor_table
        >>> table = neighbor_table(GraphStore("candidates.zarr").block(0, 2), cutoff=3.0)
        >>> table.atomic_number.tolist(), table.structure.tolist()
        ([13, 29], [0, 1])

    Attributes:
        atomic_number: int64[N].
        vectors: float[N, K, 3], r_neighbor - r_receiver, computed in float64, angstrom.
        neighbors: int64[N, K], sender of each slot.
        reverse: int64[N, K], flat index of the slot that holds the opposite edge.
        pair: int64[N, K], the pair of each slot.
        pair_slot: int64[P], flat index of the first slot of each pair; the other is its `reverse`.
        structure: int64[N], the structure of each atom.
        volume: float64[G], angstrom^3; 1 unless all three directions are periodic.
    """

    atomic_number: NDArray[np.int64]
    vectors: NDArray[np.floating]
    neighbors: NDArray[np.int64]
    reverse: NDArray[np.int64]
    pair: NDArray[np.int64]
    pair_slot: NDArray[np.int64]
    structure: NDArray[np.int64]
    volume: NDArray[np.float64]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the inputs of a network by name, in the order of `INPUT_NAMES`."""
        return {name: getattr(self, name) for name in INPUT_NAMES}


def neighbor_table(block: GraphBlock, cutoff: float, dtype: DTypeLike = np.float32, width: int = 1) -> NeighborTable:
    """Lay out all structures of a block as one padded table.

    Example:
        >>> from ase.build import bulk
        >>> from equiscreen.pipeline import GraphBlock, Structure, neighbor_table
        >>> block = GraphBlock.from_structures([Structure.from_ase(bulk("Cu"))], cutoff=3.0)
        >>> neighbor_table(block, cutoff=3.0).vectors.shape
        (1, 12, 3)

    Args:
        block: Graphs with a cutoff of at least `cutoff` and edges sorted by (receiver, image, neighbour).
        cutoff: Cutoff of the network, angstrom; longer edges are skipped.
        dtype: Type of the vectors, float32 or float64.
        width: Smallest number of slots per atom.

    Raises:
        InvalidStructureError: Edges are unsorted or have no opposite, or counts, array lengths or neighbour indices are
            wrong.
    """
    from .neighbor_table_kernels import fill_slots  # noqa: PLC0415 - numba takes half a second to import

    graph = _checked_arrays(block)
    numbered = _numbered(block, graph, cutoff)
    shape = (len(block.atomic_number), max(width, int(numbered.width.max(initial=0))))
    vectors = np.empty((*shape, 3), dtype=dtype)
    neighbors, reverse = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
    wrong, padding = numbered.wrong, 2.0 * float(cutoff)
    if wrong < 0:
        n_atoms = _plain(block.n_atoms, np.int32)
        wrong = fill_slots(n_atoms, *graph, padding, numbered.slot, numbered.edge_start, vectors, neighbors, reverse)
    if wrong >= 0:
        raise InvalidStructureError(
            f"structure {wrong} of the block: its counts or neighbour indices are wrong, or its edges are "
            "unsorted or lack their opposites; rebuild its graph"
        )
    pair, pair_slot = slot_pairs(reverse)
    return NeighborTable(
        atomic_number=block.atomic_number.astype(np.int64),
        vectors=vectors,
        neighbors=neighbors,
        reverse=reverse,
        pair=pair,
        pair_slot=pair_slot,
        structure=block.atom_structure,
        volume=block.volume,
    )


def table_widths(block: GraphBlock, cutoff: float) -> NDArray[np.int64]:
    """Return the number of slots per atom of the table that holds each structure: int64[n_structures].

    The width is the largest number of neighbours of an atom, rounded up to one of a few values, so that many structures
    share a width.

    Args:
        block: Graphs with a cutoff of at least `cutoff`.
        cutoff: Cutoff of the network, angstrom.

    Raises:
        InvalidStructureError: Counts, array lengths or neighbour indices are wrong.
    """
    numbered = _numbered(block, _checked_arrays(block), cutoff)
    if numbered.wrong >= 0:
        raise InvalidStructureError(
            f"structure {numbered.wrong} of the block: its counts or neighbour indices are wrong; rebuild its graph"
        )
    sizes = np.array(_WIDTHS)
    out: NDArray[np.int64] = sizes[np.searchsorted(sizes, numbered.width)]
    return out


@dataclass(frozen=True, slots=True)
class _Numbered:
    """Numbers of the slots of a block's edges.

    Attributes:
        slot: int32[n_edges], slot of each edge, or `CUT`.
        edge_start: int64[n_atoms], first edge of each atom.
        width: int64[n_structures], largest number of slots of an atom.
        wrong: First structure whose counts or indices are wrong, or -1.
    """

    slot: NDArray[np.int32]
    edge_start: NDArray[np.int64]
    width: NDArray[np.int64]
    wrong: int


def _numbered(block: GraphBlock, graph: _Graph, cutoff: float) -> _Numbered:
    """Number the edges of every atom that are shorter than the cutoff.

    Args:
        block: The graphs.
        graph: Arrays of the graphs, from `_checked_arrays`.
        cutoff: Cutoff, angstrom.
    """
    from .neighbor_table_kernels import number_slots  # noqa: PLC0415 - numba takes half a second to import

    slot = np.empty(len(block.neighbor), dtype=np.int32)
    edge_start = np.empty(len(block.atomic_number), dtype=np.int64)
    width = np.zeros(len(block), dtype=np.int64)
    n_atoms, n_edges = _plain(block.n_atoms, np.int32), _plain(block.n_edges, np.int32)
    wrong = number_slots(n_atoms, n_edges, *graph, float(cutoff), slot, edge_start, width)
    return _Numbered(slot, edge_start, width, int(wrong))


def slot_pairs(reverse: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the pairs of opposite edges in the order of the first slot of each pair.

    Args:
        reverse: int64[N, K]; see `NeighborTable`.

    Returns:
        The pair of each slot, int64[N, K], and the first slot of each pair, int64[P].
    """
    opposite = reverse.reshape(-1)
    slots = np.arange(len(opposite))
    first = np.flatnonzero(opposite > slots)
    padding = np.flatnonzero(opposite == slots)
    pair = np.full(len(opposite), len(first))
    pair[first] = pair[opposite[first]] = np.arange(len(first))
    return pair.reshape(reverse.shape), np.concatenate([first, padding[:1]])


def _checked_arrays(block: GraphBlock) -> _Graph:
    """Return the arrays of a block in the form that the compiled loops need, after checking their lengths.

    Raises:
        InvalidStructureError: The lengths are inconsistent.
    """
    n_atoms, n_edges = int(block.n_atoms.sum(dtype=np.int64)), int(block.n_edges.sum(dtype=np.int64))
    lengths = {len(block.atomic_number), len(block.frac_coord), len(block.n_neighbors)}
    if lengths != {n_atoms} or len(block.neighbor) != n_edges or len(block.image) != n_edges:
        raise InvalidStructureError("the array lengths of the block do not match its counts; rebuild its graphs")
    return (
        _plain(block.cell, np.float64),
        _plain(block.frac_coord, np.float64),
        _plain(block.n_neighbors, np.uint16),
        _plain(block.neighbor, np.uint16),
        _plain(block.image, np.int16),
    )


def _plain(values: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """Make an array contiguous and writable; otherwise the loops would be compiled again for every kind of array."""
    return np.require(values, dtype, ["C_CONTIGUOUS", "WRITEABLE"])


def groups_by_size(
    n_atoms: NDArray[np.integer], max_neighbors: NDArray[np.int64], slots: int
) -> Iterator[NDArray[np.int64]]:
    """Group structures so that each group's table has at most `slots` slots and little padding.

    Structures are ordered by their largest number of neighbours. A structure beyond the limit forms its own group.

    Args:
        n_atoms: int[n_structures].
        max_neighbors: int64[n_structures], largest number of neighbours of an atom in each structure.
        slots: Largest N * K of a group.

    Yields:
        int64[n], indices; every structure occurs exactly once.
    """
    order = np.lexsort((np.arange(len(n_atoms)), n_atoms, max_neighbors))
    begin = atoms = 0
    sizes = zip(n_atoms[order].tolist(), np.maximum(1, max_neighbors[order]).tolist(), strict=True)
    for place, (size, width) in enumerate(sizes):  # widths ascend, so the last is the group's K
        if place > begin and (atoms + size) * width > slots:
            yield order[begin:place]
            begin, atoms = place, 0
        atoms += size
    if len(order):
        yield order[begin:]


def evaluation_groups(block: GraphBlock, cutoff: float, slots: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Group structures for evaluation, each group in one table with a fixed number of slots per atom.

    The bits of a structure's results depend on the number of slots, because matrix products and sums over slots add up
    their terms in a different order if there is more padding. Therefore a group holds structures of equal
    `table_widths`.

    Args:
        block: Graphs with a cutoff of at least `cutoff`.
        cutoff: Cutoff of the network, angstrom.
        slots: Largest N * K of a group; a structure beyond it forms its own group. A group of several structures has at
            most `UNIFORM_ATOMS` atoms, too.

    Yields:
        int64[n], indices into the block, and the width of the table; every structure occurs exactly once.

    Raises:
        InvalidStructureError: Counts, array lengths or neighbour indices are wrong.
    """
    widths = table_widths(block, cutoff)
    for width in np.unique(widths).tolist():
        rows = np.flatnonzero(widths == width)
        most = max(1, min(slots // width, UNIFORM_ATOMS))
        for group in groups_by_size(block.n_atoms[rows], np.ones(len(rows), dtype=np.int64), most):
            yield rows[group], width
