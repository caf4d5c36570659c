"""Batches for training: structures of graph stores as padded tables with the labels that are trained on."""

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
    """bool[n_structures], which structures hold no other elements."""
    others = np.setdiff1d(np.arange(N_ATOMIC_NUMBERS), list(elements))
    return np.concatenate([~counts[:, others].any(axis=1) for counts in compositions(store)] or [np.zeros(0, bool)])


def compositions(store: GraphStore) -> Iterator[NDArray[np.int64]]:
    """Compositions of all structures of a store, some at a time, in order: int64[n, 119], see `element_counts`."""
    start_of = store.offsets[0]
    for begin in range(0, len(store), ROWS_AT_ONCE):
        end = min(begin + ROWS_AT_ONCE, len(store))
        atomic_number = store.column("atomic_number", int(start_of[begin]), int(start_of[end]))
        structure = np.repeat(np.arange(end - begin), np.diff(start_of[begin : end + 1]))
        yield element_counts(structure, atomic_number, end - begin)


def element_counts(
    structure: NDArray[np.int64], atomic_number: NDArray[np.uint8], n_structures: int
) -> NDArray[np.int64]:
    """int64[n_structures, 119], numbers of atoms by atomic number.

    Args:
        structure: int64[n_atoms], the structure of each atom.
        atomic_number: uint8[n_atoms].
        n_structures: How many.
    """
    flat = structure * N_ATOMIC_NUMBERS + atomic_number
    return np.bincount(flat, minlength=n_structures * N_ATOMIC_NUMBERS).reshape(n_structures, N_ATOMIC_NUMBERS)


@dataclass(frozen=True, slots=True)
class Batch:
    """A table with its labels.

    Attributes:
        inputs: The network's inputs, in the order of `INPUT_NAMES`.
        labels: float64, NaN where absent: ``energy`` [G] in eV, ``forces`` [N, 3] in eV/angstrom and ``stress``
            [G, 3, 3] in eV/angstrom^3 where there is an energy; for each head the components of its irreps, [G, dim] or
            [N, dim], in the label's unit or of its logarithm.
        n_atoms: float64[G].
        store: int64[G], which of the stores each structure comes from.
        row: int64[G], its place in that store.
    """

    inputs: tuple[Tensor, ...]
    labels: dict[str, Tensor]
    n_atoms: Tensor
    store: NDArray[np.int64]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)

    def input(self, name: str) -> Tensor:
        """One of the inputs, by its name."""
        return self.inputs[INPUT_NAMES.index(name)]

    def split(self, parts: int) -> list[Batch]:
        """The same structures, in order, as at most so many batches of about as many atoms each."""
        end = np.cumsum(self.n_atoms.cpu().numpy()).astype(np.int64)
        size = np.diff(end, prepend=0)
        middle = (end - size / 2) / end[-1]
        part = np.arange(len(self)) if parts >= len(self) else (middle * parts).astype(np.int64)
        cuts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(self)]
        return [self] if len(cuts) == 2 else [self._between(a, b, end) for a, b in pairwise(cuts)]

    def _between(self, begin: int, stop: int, end: NDArray[np.int64]) -> Batch:
        """The structures from `begin` up to `stop`; int64[G] `end` is behind the last atom of each."""
        first, last = (int(end[place - 1]) if place else 0 for place in (begin, stop))
        atomic_number, vectors, neighbors, reverse, _, _, structure, volume = self.inputs
        own = slice(first, last)
        slots = neighbors.shape[1]
        opposite = reverse[own] - first * slots
        pairs = (torch.from_numpy(x).to(reverse.device) for x in slot_pairs(opposite.cpu().numpy()))
        # With as many atoms as structures each has one, and both slices are the same.
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
        """The same batch with its tensors on a device."""
        return replace(
            self,
            inputs=tuple(tensor.to(device) for tensor in self.inputs),
            labels={name: tensor.to(device) for name, tensor in self.labels.items()},
            n_atoms=self.n_atoms.to(device),
        )


def table_tensors(block: GraphBlock, cutoff: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The network's inputs for all structures of a block."""
    arrays = neighbor_table(block, cutoff, np.float64 if dtype == torch.float64 else np.float32).arrays()
    return tuple(torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in INPUT_NAMES)


def make_batch(
    rows: PlacedBlock, heads: Mapping[str, HeadLabels], cutoff: float, dtype: torch.dtype, *, energy: bool
) -> Batch:
    """A batch of all structures of a block.

    Args:
        rows: The structures.
        heads: By name.
        cutoff: Of the network, angstrom.
        dtype: Of the network.
        energy: Whether there are energies, forces and stresses; a stress only of what is periodic in all directions.
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
    """Batches of some structures of several stores, in the order of an `EpochReader`, built ahead of their use.

    What comes out depends on the stores, the choice, the seeds and the share, and not on how far ahead it is built.

    Args:
        stores: The stores.
        chosen: bool[n_structures] for each store.
        heads: Labels of the heads, by name.
        batch_size: Structures in a batch, of all processes together.
        cutoff: Of the network, angstrom.
        dtype: Of the network.
        energy: Whether there are energies, forces and stresses.
        shuffle: Seed and epoch, or None for the order of the stores.
        share: Which of how many processes this is. Each batch is divided among them so that their tables are of about
            the same size. One that is left without a structure gets one that has no labels: it takes part in the step
            and counts for nothing.
        skip: So many batches at the beginning are left out, and not built.
        ahead: Batches that a thread builds before they are asked for; 0 builds them in the caller's thread.

    Attributes:
        waited_s: How long the caller has waited for batches in the pass that was begun last.
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
        """Batches that are left of the epoch; neither the order nor the number of processes changes it."""
        structures = sum(int(np.count_nonzero(chosen)) for chosen in self.chosen)
        return max(0, math.ceil(structures / self.batch_size) - self.skip)

    def __iter__(self) -> Iterator[Batch]:
        self.waited_s = 0.0
        # closing: where the caller stops early, the thread has ended, and that of the reader, before this returns.
        with closing(self._built()) as built, closing(_ahead(built, self.ahead)) as batches:
            while True:
                begin = time.perf_counter()
                batch = next(batches, None)
                self.waited_s += time.perf_counter() - begin
                if batch is None:
                    return
                yield batch

    def _built(self) -> Generator[Batch]:
        labels = wanted_labels(self.heads, energy=self.energy)
        reader = EpochReader(self.stores, self.chosen, shuffle=self.shuffle, labels=labels)
        for rows in islice(reader.batches(structures=self.batch_size), self.skip, None):
            mine = _shares(rows.block, self.share[1])[self.share[0]]
            taken = mine if len(mine) else np.argmin(rows.block.n_atoms, keepdims=True)
            part = rows if len(taken) == len(rows) else rows.take(taken)
            batch = make_batch(part, self.heads, self.cutoff, self.dtype, energy=self.energy)
            if not len(mine):
                for values in batch.labels.values():
                    values.fill_(math.nan)
            yield batch


def _ahead(batches: Generator[Batch], ahead: int) -> Generator[Batch]:
    return cast("Generator[Batch]", read_ahead(batches, ahead, Event()))  # which is a generator, and can be closed


def _shares(block: GraphBlock, processes: int) -> list[NDArray[np.int64]]:
    """The structures of each process, in their order: the largest first, each to the one that has least so far."""
    slots = block.n_atoms * np.maximum(1, block.max_neighbors)
    process, load = np.zeros(len(block), dtype=np.int64), np.zeros(processes)
    if processes > 1:
        for place in np.argsort(-slots, kind="stable").tolist():
            process[place] = np.argmin(load)
            load[process[place]] += slots[place]
    return [np.flatnonzero(process == number) for number in range(processes)]
