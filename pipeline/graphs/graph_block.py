"""A block of structures with their neighbour graphs: the unit that is read from a store and passed to a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..structures.structure import Structure
from .neighbor_list import neighbor_list
from .offsets import starts


@dataclass(frozen=True)
class GraphBlock:
    """Graphs of several structures, concatenated; in the shapes below, n_atoms and n_edges are totals.

    Example:
        >>> from ase.build import bulk
        >>> from equiscreen.pipeline import GraphBlock, Structure
        >>> block = GraphBlock.from_structures([Structure.from_ase(bulk("Cu"))], cutoff=3.0)
        >>> len(block), block.n_atoms.tolist(), block.n_edges.tolist()
        (1, [1], [12])

    Attributes:
        n_atoms: int32[n_structures], number of atoms of each structure.
        n_edges: int32[n_structures], number of edges of each structure.
        cell: float64[n_structures, 3, 3], lattice vectors as rows, angstrom.
        pbc: bool[n_structures, 3], which lattice vectors are periodic.
        atomic_number: uint8[n_atoms].
        frac_coord: float64[n_atoms, 3], fractional coordinates.
        n_neighbors: uint16[n_atoms], number of edges of each receiver.
        neighbor: uint16[n_edges], sender of each edge, as an index within its structure.
        image: int16[n_edges, 3], lattice image of the sender.
        structure_labels: Labels with one row per structure, by name: float64[n_structures, ...].
        atom_labels: Labels with one row per atom, by name: float64[n_atoms, ...].
    """

    n_atoms: NDArray[np.int32]
    n_edges: NDArray[np.int32]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    atomic_number: NDArray[np.uint8]
    frac_coord: NDArray[np.float64]
    n_neighbors: NDArray[np.uint16]
    neighbor: NDArray[np.uint16]
    image: NDArray[np.int16]
    structure_labels: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    atom_labels: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def from_structures(cls, structures: Sequence[Structure], cutoff: float) -> GraphBlock:
        """Build the graphs of structures in memory, without a store.

        Args:
            structures: The structures.
            cutoff: Cutoff in angstrom.

        Raises:
            InvalidStructureError: As for `neighbor_list`.
        """
        lists = [neighbor_list(structure, cutoff) for structure in structures]
        return cls(
            n_atoms=np.array([len(s) for s in structures], dtype=np.int32),
            n_edges=np.array([len(x.neighbor) for x in lists], dtype=np.int32),
            cell=np.array([s.cell for s in structures], dtype=np.float64).reshape(-1, 3, 3),
            pbc=np.array([s.pbc for s in structures], dtype=bool).reshape(-1, 3),
            atomic_number=_joined([s.atomic_number for s in structures], (0,), np.uint8),
            frac_coord=_joined([s.frac_coord for s in structures], (0, 3), np.float64),
            n_neighbors=_joined([x.n_neighbors for x in lists], (0,), np.uint16),
            neighbor=_joined([x.neighbor for x in lists], (0,), np.uint16),
            image=_joined([x.image for x in lists], (0, 3), np.int16),
        )

    def __len__(self) -> int:
        return len(self.n_atoms)

    @cached_property
    def atom_start(self) -> NDArray[np.int64]:
        """First atom of each structure in this block: int64[n_structures]."""
        return starts(self.n_atoms)

    @cached_property
    def edge_start(self) -> NDArray[np.int64]:
        """First edge of each structure in this block: int64[n_structures]."""
        return starts(self.n_edges)

    @cached_property
    def atom_structure(self) -> NDArray[np.int64]:
        """Structure of each atom: int64[n_atoms]."""
        return np.repeat(np.arange(len(self)), self.n_atoms)

    @cached_property
    def receiver(self) -> NDArray[np.int64]:
        """Receiver of each edge, as an index into the block's atoms: int64[n_edges]."""
        return np.repeat(np.arange(len(self.atomic_number)), self.n_neighbors)

    @cached_property
    def sender(self) -> NDArray[np.int64]:
        """Sender of each edge, as an index into the block's atoms: int64[n_edges]."""
        return self.neighbor.astype(np.int64) + np.repeat(self.atom_start, self.n_edges)

    @cached_property
    def max_neighbors(self) -> NDArray[np.int64]:
        """Largest number of neighbours of an atom in each structure: int64[n_structures]."""
        if len(self) == 0:
            return np.zeros(0, dtype=np.int64)
        return np.maximum.reduceat(self.n_neighbors, self.atom_start).astype(np.int64)

    @cached_property
    def volume(self) -> NDArray[np.float64]:
        """Volume of each cell: float64[n_structures], angstrom^3; 1 unless all three directions are periodic."""
        return np.where(self.pbc.all(axis=1), np.abs(np.linalg.det(self.cell)), 1.0)

    def displacements(self) -> NDArray[np.float64]:
        """Return the displacements r_neighbor - r_receiver: float64[n_edges, 3], angstrom.

        The displacements of two opposite edges are exactly each other's negatives. A matrix product would not ensure
        this: its rounding may depend on the number of edges.
        """
        frac = self.frac_coord[self.sender] - self.frac_coord[self.receiver] + self.image
        cell = np.repeat(self.cell, self.n_edges, axis=0)
        out: NDArray[np.float64] = frac[:, 0:1] * cell[:, 0] + frac[:, 1:2] * cell[:, 1] + frac[:, 2:3] * cell[:, 2]
        return out

    def structure(self, index: int) -> Structure:
        """Return the structure at `index`, without its graph."""
        atoms = slice(self.atom_start[index], self.atom_start[index] + self.n_atoms[index])
        return Structure(self.atomic_number[atoms], self.cell[index], self.frac_coord[atoms], self.pbc[index])

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> GraphBlock:
        """Select the structures at `indices`, in that order.

        The atoms and edges of a structure are contiguous and are copied as one run, which is three times as fast as
        gathering them individually.
        """
        rows = np.asarray(indices, dtype=np.int64)
        atoms = _runs(self.atom_start[rows], self.n_atoms[rows])
        edges = _runs(self.edge_start[rows], self.n_edges[rows])
        return GraphBlock(
            n_atoms=self.n_atoms[rows],
            n_edges=self.n_edges[rows],
            cell=self.cell[rows],
            pbc=self.pbc[rows],
            atomic_number=_joined_runs(self.atomic_number, atoms),
            frac_coord=_joined_runs(self.frac_coord, atoms),
            n_neighbors=_joined_runs(self.n_neighbors, atoms),
            neighbor=_joined_runs(self.neighbor, edges),
            image=_joined_runs(self.image, edges),
            structure_labels={name: values[rows] for name, values in self.structure_labels.items()},
            atom_labels={name: _joined_runs(values, atoms) for name, values in self.atom_labels.items()},
        )

    def between(self, start: int, stop: int) -> GraphBlock:
        """Return the structures from `start` up to `stop` (exclusive), at least one; the arrays are views."""
        last = stop - 1
        atoms = slice(self.atom_start[start], self.atom_start[last] + self.n_atoms[last])
        edges = slice(self.edge_start[start], self.edge_start[last] + self.n_edges[last])
        return GraphBlock(
            n_atoms=self.n_atoms[start:stop],
            n_edges=self.n_edges[start:stop],
            cell=self.cell[start:stop],
            pbc=self.pbc[start:stop],
            atomic_number=self.atomic_number[atoms],
            frac_coord=self.frac_coord[atoms],
            n_neighbors=self.n_neighbors[atoms],
            neighbor=self.neighbor[edges],
            image=self.image[edges],
            structure_labels={name: values[start:stop] for name, values in self.structure_labels.items()},
            atom_labels={name: values[atoms] for name, values in self.atom_labels.items()},
        )

    @staticmethod
    def concatenate(blocks: Sequence[GraphBlock]) -> GraphBlock:
        """Concatenate one or more blocks, which must all have the same labels."""
        joined: dict[str, Any] = {}
        for item in fields(GraphBlock):
            parts = [getattr(block, item.name) for block in blocks]
            if isinstance(parts[0], dict):
                joined[item.name] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            else:
                joined[item.name] = np.concatenate(parts)
        return GraphBlock(**joined)


def _runs(start: NDArray[np.int64], count: NDArray[np.integer]) -> list[slice]:
    return [slice(first, last) for first, last in zip(start.tolist(), (start + count).tolist(), strict=True)]


def _joined_runs(values: NDArray[Any], runs: list[slice]) -> NDArray[Any]:
    return np.concatenate([values[run] for run in runs]) if runs else values[:0]


def _joined(arrays: list[NDArray[Any]], empty: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(empty, dtype=dtype)
