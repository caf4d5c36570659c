"""Batches for training: structures of a graph store as padded tables with their labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from ..pipeline.block import GraphBlock
from ..pipeline.errors import ConfigError
from ..pipeline.labels import ENERGY, FORCES, STRESS
from ..pipeline.reading import EpochReader
from ..pipeline.store import GraphStore
from ..pipeline.tables import INPUT_NAMES, neighbor_table
from .network import DataStatistics

_ALL_ELEMENTS = 119


@dataclass(frozen=True, slots=True)
class Batch:
    """A table with its labels; labels that are absent are NaN.

    Attributes:
        inputs: The network's inputs, in the order of `INPUT_NAMES`.
        energy: float64[G], eV.
        forces: float64[N, 3], eV/angstrom.
        stress: float64[G, 3, 3], eV/angstrom^3.
        n_atoms: float64[G].
    """

    inputs: tuple[Tensor, ...]
    energy: Tensor
    forces: Tensor
    stress: Tensor
    n_atoms: Tensor


def table_tensors(block: GraphBlock, cutoff: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The network's inputs for all structures of a block."""
    arrays = neighbor_table(block, cutoff, np.float64 if dtype == torch.float64 else np.float32).arrays()
    return tuple(torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in INPUT_NAMES)


def make_batch(block: GraphBlock, cutoff: float, dtype: torch.dtype) -> Batch:
    """A batch of all structures of a block."""
    n_atoms = len(block.atomic_number)
    stress = _label(block.structure_labels, STRESS, (len(block), 3, 3)).copy()
    stress[~np.all(block.pbc, axis=1)] = np.nan
    return Batch(
        inputs=table_tensors(block, cutoff, dtype),
        energy=torch.from_numpy(_label(block.structure_labels, ENERGY, (len(block),))),
        forces=torch.from_numpy(_label(block.atom_labels, FORCES, (n_atoms, 3))),
        stress=torch.from_numpy(stress),
        n_atoms=torch.from_numpy(block.n_atoms.astype(np.float64)),
    )


class StructureBatches(IterableDataset[Batch]):
    """Batches of some structures of a store, in the order of an `EpochReader`, which reads ahead.

    Args:
        store: The store.
        chosen: bool[n_structures].
        batch_size: Structures in a batch.
        cutoff: Of the network, angstrom.
        dtype: Of the network.
        shuffle: Seeds of the order, or None for the order of the store.
    """

    def __init__(
        self,
        store: GraphStore,
        chosen: NDArray[np.bool_],
        batch_size: int,
        cutoff: float,
        dtype: torch.dtype,
        shuffle: tuple[int, int] | None = None,
    ) -> None:
        self.store, self.chosen, self.batch_size = store, chosen, batch_size
        self.cutoff, self.dtype, self.shuffle = cutoff, dtype, shuffle

    def __len__(self) -> int:
        """Batches in an epoch, which does not depend on the shuffling of windows."""
        return math.ceil(int(self.chosen.sum()) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        reader = EpochReader([self.store], [self.chosen], shuffle=self.shuffle, labels=(ENERGY, FORCES, STRESS))
        for rows in reader.batches(structures=self.batch_size):
            yield make_batch(rows.block, self.cutoff, self.dtype)


def split(usable: NDArray[np.bool_], validation_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose some of the usable structures for validation, at random: bool[n_structures], and leave one at least.

    Raises:
        ConfigError: Fewer than two structures.
    """
    rows = np.flatnonzero(usable)
    if len(rows) < 2:
        raise ConfigError(f"{len(rows)} labelled structures in the store; training and validation need one each")
    n_validation = min(len(rows) - 1, max(1, round(len(rows) * validation_fraction)))
    chosen = np.zeros(len(usable), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(rows)[:n_validation]] = True
    return chosen


def with_energy(store: GraphStore) -> NDArray[np.bool_]:
    """bool[n_structures], which structures have an energy.

    Raises:
        ConfigError: None has.
    """
    has = ENERGY in store.label_names[0]
    known: NDArray[np.bool_] = np.isfinite(store.column(ENERGY)) if has else np.zeros(len(store), dtype=bool)
    if not known.any():
        raise ConfigError(
            f"{store.path}: no structure has an energy; map one with `featurize --label energy=KEY[unit]`"
        )
    return known


def of_elements(store: GraphStore, elements: tuple[int, ...]) -> NDArray[np.bool_]:
    """bool[n_structures], which structures hold no other elements."""
    known = np.ones(len(store), dtype=bool)
    for rows in EpochReader([store], labels=False).blocks():
        block = rows.block
        known[rows.row[block.atom_structure[~np.isin(block.atomic_number, elements)]]] = False
    return known


def fit_statistics(
    store: GraphStore, chosen: NDArray[np.bool_], cutoff: float
) -> tuple[tuple[int, ...], DataStatistics]:
    """Elements and statistics of structures with energies: reference energies by least squares on composition.

    Args:
        store: The store.
        chosen: bool[n_structures], structures to train on, all with energies.
        cutoff: Of the network, angstrom.

    Returns:
        The elements of those structures, ascending, and the statistics.
    """
    normal, moment = np.zeros((_ALL_ELEMENTS, _ALL_ELEMENTS)), np.zeros(_ALL_ELEMENTS)
    force_squares = force_count = 0.0
    n_edges = n_atoms = 0
    for counts, block in _chosen_compositions(store, chosen):
        normal += counts.T @ counts
        moment += counts.T @ block.structure_labels[ENERGY]
        forces = _label(block.atom_labels, FORCES, (len(block.atomic_number), 3))
        force_squares += float(np.nansum(forces**2))
        force_count += float(np.isfinite(forces).sum())
        n_edges += int(((block.displacements() ** 2).sum(axis=1) < cutoff**2).sum())
        n_atoms += len(block.atomic_number)
    elements = np.flatnonzero(np.diag(normal))
    references = np.zeros(_ALL_ELEMENTS)
    references[elements] = np.linalg.lstsq(normal[np.ix_(elements, elements)], moment[elements], rcond=None)[0]
    if force_count:
        scale = float(np.sqrt(force_squares / force_count))
    else:
        residuals = [
            (block.structure_labels[ENERGY] - counts @ references) / block.n_atoms
            for counts, block in _chosen_compositions(store, chosen)
        ]
        scale = float(np.std(np.concatenate(residuals)))
    # One structure alone has no spread.
    scale = scale if scale > 1e-3 else 1.0
    statistics = DataStatistics(tuple(references[elements].tolist()), scale, max(1.0, n_edges / n_atoms))
    return tuple(elements.tolist()), statistics


def _chosen_compositions(
    store: GraphStore, chosen: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.float64], GraphBlock]]:
    """float64[n, 119], numbers of atoms by atomic number, with the block that they belong to."""
    for rows in EpochReader([store], [chosen], labels=(ENERGY, FORCES)).blocks():
        block = rows.block
        flat = block.atom_structure * _ALL_ELEMENTS + block.atomic_number
        counts = np.bincount(flat, minlength=len(block) * _ALL_ELEMENTS).reshape(len(block), _ALL_ELEMENTS)
        yield counts.astype(np.float64), block


def _label(labels: Mapping[str, NDArray[np.float64]], name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return labels[name] if name in labels else np.full(shape, np.nan)
