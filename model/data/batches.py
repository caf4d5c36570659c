"""Training batches: structures of graph stores as padded neighbour tables, with the labels to train on."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from threading import Event
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.neighbor_table import INPUT_NAMES, neighbor_table, slot_pairs
from ...pipeline.labels.quantities import ENERGY, FORCES, STRESS
from ...pipeline.store.epoch_reader import EpochReader, PlacedBlock, read_ahead
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.structures.structure import MAX_ATOMIC_NUMBER
from .targets import ROWS_AT_ONCE, HeadLabels, wanted_labels

# Columns of `element_counts`, one for each atomic number from 0.
N_ATOMIC_NUMBERS = MAX_ATOMIC_NUMBER + 1


def of_elements(store: GraphStore, elements: Collection[int]) -> NDArray[np.bool_]:
    """Return a mask, bool[n_structures], of the structures that contain no elements other than these."""
    others = np.setdiff1d(np.arange(N_ATOMIC_NUMBERS), list(elements))
    return np.concatenate([~counts[:, others].any(axis=1) for counts in compositions(store)] or [np.zeros(0, bool)])


def compositions(store: GraphStore) -> Iterator[NDArray[np.int64]]:
    """Yield the compositions of all structures of a store in order, in pieces int64[n, 119] (see `element_counts`)."""
    start_of = store.offsets[0]
    for begin in range(0, len(store), ROWS_AT_ONCE):
        end = min(begin + ROWS_AT_ONCE, len(store))
        atomic_number = store.column("atomic_number", int(start_of[begin]), int(start_of[end]))
        structure = np.repeat(np.arange(end - begin), np.diff(start_of[begin : end + 1]))
        yield element_counts(structure, atomic_number, end - begin)


def element_counts(
    structure: NDArray[np.int64], atomic_number: NDArray[np.uint8], n_structures: int
) -> NDArray[np.int64]:
    """Count the atoms of each structure by atomic number: int64[n_structures, 119].

    Args:
        structure: int64[n_atoms], index of each atom's structure.
        atomic_number: uint8[n_atoms].
        n_structures: Number of structures.
    """
    flat = structure * N_ATOMIC_NUMBERS + atomic_number
    return np.bincount(flat, minlength=n_structures * N_ATOMIC_NUMBERS).reshape(n_structures, N_ATOMIC_NUMBERS)


@dataclass(frozen=True, slots=True)
class Batch:
    """A padded neighbour table of N atoms in G structures, with its labels.

    Attributes:
        inputs: Inputs of the network, in the order of `INPUT_NAMES`.
        labels: float64, NaN where missing. If the network has an energy: ``energy`` [G] in eV, ``forces`` [N, 3] in
            eV/angstrom and ``stress`` [G, 3, 3] in eV/angstrom^3. For each head: its irrep components, [G, dim] or
            [N, dim], in the label's unit (with `transform: log`, of the logarithm).
        n_atoms: float64[G], number of atoms of each structure.
        store: int64[G], index of the store that each structure comes from.
        row: int64[G], row of each structure in that store.
    """

    inputs: tuple[Tensor, ...]
    labels: dict[str, Tensor]
    n_atoms: Tensor
    store: NDArray[np.int64]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)

    def input(self, name: str) -> Tensor:
        """Return one of the inputs by name."""
        return self.inputs[INPUT_NAMES.index(name)]

    def split(self, parts: int) -> list[Batch]:
        """Split the structures, in order, into at most `parts` batches with about the same number of atoms."""
        end = np.cumsum(self.n_atoms.cpu().numpy()).astype(np.int64)
        size = np.diff(end, prepend=0)
        middle = (end - size / 2) / end[-1]
        part = np.arange(len(self)) if parts >= len(self) else (middle * parts).astype(np.int64)
        cuts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(self)]
        return [self] if len(cuts) == 2 else [self._between(a, b, end) for a, b in pairwise(cuts)]

    def _between(self, begin: int, stop: int, end: NDArray[np.int64]) -> Batch:
        """Return structures `begin` to `stop`; `end`, int64[G], is the index after the last atom of each structure."""
        first, last = (int(end[place - 1]) if place else 0 for place in (begin, stop))
        atomic_number, vectors, neighbors, reverse, _, _, structure, volume = self.inputs
        own = slice(first, last)
        slots = neighbors.shape[1]
        opposite = reverse[own] - first * slots
        pairs = (torch.from_numpy(x).to(reverse.device) for x in slot_pairs(opposite.cpu().numpy()))
        # If there are as many atoms as structures, each structure has one atom and both slices are the same.
        spans = {name: own if len(x) == len(atomic_number) else slice(begin, stop) for name, x in self.labels.items()}
        return Batch(
            inputs=(
                atomic_number[own],
                vectors[own],
                neighbors[own] - first,
                opposite,
                *pairs,
                structure[own] - begin,
                volume[begin:stop],
            ),
            labels={name: values[spans[name]] for name, values in self.labels.items()},
            n_atoms=self.n_atoms[begin:stop],
            store=self.store[begin:stop],
            row=self.row[begin:stop],
        )

    def to(self, device: torch.device) -> Batch:
        """Return a copy of the batch with its tensors on a device."""
        return replace(
            self,
            inputs=tuple(tensor.to(device) for tensor in self.inputs),
            labels={name: tensor.to(device) for name, tensor in self.labels.items()},
            n_atoms=self.n_atoms.to(device),
        )


def table_tensors(block: GraphBlock, cutoff: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Build the network's inputs for all structures of a block, in the order of `INPUT_NAMES`."""
    arrays = neighbor_table(block, cutoff, np.float64 if dtype == torch.float64 else np.float32).arrays()
    return tuple(torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in INPUT_NAMES)


def make_batch(
    rows: PlacedBlock, heads: Mapping[str, HeadLabels], cutoff: float, dtype: torch.dtype, *, energy: bool
) -> Batch:
    """Build a batch of all structures of a block.

    Args:
        rows: The structures, with their rows in the stores.
        heads: Labels of the heads, by name.
        cutoff: Cutoff radius of the network (angstrom).
        dtype: Data type of the network.
        energy: Whether to include energies, forces and stresses; only structures that are periodic in all three
            directions have a stress.
    """
    block = rows.block
    labels: dict[str, NDArray[np.float64]] = {}
    if energy:
        labels[ENERGY] = _label(block.structure_labels, ENERGY, (len(block),))
        labels[FORCES] = _label(block.atom_labels, FORCES, (len(block.atomic_number), 3))
        labels[STRESS] = _label(block.structure_labels, STRESS, (len(block), 3, 3)).copy()
        labels[STRESS][~block.pbc.all(axis=1)] = np.nan
    labels |= {name: head.of(block) for name, head in heads.items()}
    return Batch(
        inputs=table_tensors(block, cutoff, dtype),
        labels={name: torch.from_numpy(values) for name, values in labels.items()},
        n_atoms=torch.from_numpy(block.n_atoms.astype(np.float64)),
        store=rows.store,
        row=rows.row,
    )


def _label(labels: Mapping[str, NDArray[np.float64]], name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return labels[name] if name in labels else np.full(shape, np.nan)


class StructureBatches(IterableDataset[Batch]):
    """Batches of chosen structures of several stores, in the order of an `EpochReader`, built ahead of use.

    The batches do not depend on how far ahead they are built.

    Args:
        stores: Graph stores.
        chosen: bool[n_structures] for each store, structures to use.
        heads: Labels of the heads, by name.
        batch_size: Structures per batch, over all processes.
        cutoff: Cutoff radius of the network (angstrom).
        dtype: Data type of the network.
        energy: Whether to include energies, forces and stresses.
        shuffle: Seed and epoch, or None for the order of the stores.
        share: Rank of this process and number of processes. Each batch is divided among the processes so that their
            tables have about the same size. A process that would have no structure gets one without labels, so that it
            takes part in the step without contributing to it.
        skip: Number of batches to skip at the beginning, without building them.
        ahead: Number of batches that a background thread builds ahead; 0 builds them in the caller's thread.

    Attributes:
        waited_s: Time the caller has waited for batches in the latest pass (seconds).
    """

    def __init__(
        self,
        stores: Sequence[GraphStore],
        chosen: Sequence[NDArray[np.bool_]],
        heads: Mapping[str, HeadLabels],
        batch_size: int,
        cutoff: float,
        dtype: torch.dtype,
        *,
        energy: bool,
        shuffle: tuple[int, int] | None,
        share: tuple[int, int] = (0, 1),
        skip: int = 0,
        ahead: int = 4,
    ) -> None:
        self.stores, self.chosen, self.heads = tuple(stores), tuple(chosen), dict(heads)
        self.batch_size, self.cutoff, self.dtype, self.energy = batch_size, cutoff, dtype, energy
        self.shuffle, self.share, self.skip, self.ahead = shuffle, share, skip, ahead
        self.waited_s = 0.0

    def __len__(self) -> int:
        """Number of batches left in the epoch, which does not depend on the order or the number of processes."""
        structures = sum(int(np.count_nonzero(chosen)) for chosen in self.chosen)
        return max(0, math.ceil(structures / self.batch_size) - self.skip)

    def __iter__(self) -> Iterator[Batch]:
        self.waited_s = 0.0
        # `closing` ends the background thread and the reader's thread even if the caller stops early.
        with closing(self._build_batches()) as built, closing(_build_ahead(built, self.ahead)) as batches:
            while True:
                begin = time.perf_counter()
                batch = next(batches, None)
                self.waited_s += time.perf_counter() - begin
                if batch is None:
                    return
                yield batch

    def _build_batches(self) -> Generator[Batch]:
        labels = wanted_labels(self.heads, energy=self.energy)
        reader = EpochReader(self.stores, self.chosen, shuffle=self.shuffle, labels=labels)
        for rows in islice(reader.batches(structures=self.batch_size), self.skip, None):
            mine = _divide_among(rows.block, self.share[1])[self.share[0]]
            taken = mine if len(mine) else np.argmin(rows.block.n_atoms, keepdims=True)
            part = rows if len(taken) == len(rows) else rows.take(taken)
            batch = make_batch(part, self.heads, self.cutoff, self.dtype, energy=self.energy)
            if not len(mine):
                for values in batch.labels.values():
                    values.fill_(math.nan)
            yield batch


def _build_ahead(batches: Generator[Batch], ahead: int) -> Generator[Batch]:
    return cast("Generator[Batch]", read_ahead(batches, ahead, Event()))  # a generator, so it can be closed


def _divide_among(block: GraphBlock, processes: int) -> list[NDArray[np.int64]]:
    """Return the structures of each process, in order: the largest go first, each to the least loaded process."""
    slots = block.n_atoms * np.maximum(1, block.max_neighbors)
    process, load = np.zeros(len(block), dtype=np.int64), np.zeros(processes)
    if processes > 1:
        for place in np.argsort(-slots, kind="stable").tolist():
            process[place] = np.argmin(load)
            load[process[place]] += slots[place]
    return [np.flatnonzero(process == number) for number in range(processes)]
