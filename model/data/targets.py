"""Labels of heads: where the stores keep them, and their values as irrep components."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.labels.quantities import ENERGY, FORCES, STRESS
from ...pipeline.store.epoch_reader import EpochReader
from ...pipeline.store.graph_store import GraphStore
from ..config.head import HeadConfig
from ..equivariance.tensors import TENSORS, TensorBasis, presentation, tensor_basis

# Structures whose labels or compositions are in memory at once. For structures of 100 atoms with 9 components each, the
# labels take 59 MB; compositions take 8 MB.
ROWS_AT_ONCE = 1 << 13


@dataclass(frozen=True)
class HeadLabels:
    """The labels of one head, as irrep components.

    Attributes:
        config: Configuration of the head.
        shape: Shape of one label.
        unit: Unit of the label, as in the stores.
        label: Name of the label in the stores.
    """

    config: HeadConfig
    shape: tuple[int, ...]
    unit: str
    label: str = ""

    @cached_property
    def basis(self) -> TensorBasis:
        """Irreps of the head, with their true parity."""
        return tensor_basis(self.config)

    @cached_property
    def invariant(self) -> NDArray[np.int64]:
        """Indices of the invariant (0e) components, int64[n]."""
        kinds = np.concatenate([np.full(mul * ir.dim, ir.l == 0 and ir.p == 1) for mul, ir in self.basis.irreps])
        return np.flatnonzero(kinds)

    @property
    def molecules_only(self) -> bool:
        """Whether labels of periodic structures have no meaning."""
        kind = TENSORS.get(self.config.tensor) if self.config.irreps is None else None
        return kind is not None and kind.molecules_only

    def components(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert labels or, with `transform: log`, their logarithms to irrep components.

        Args:
            values: float64[n, *shape]. Labels of a symmetric tensor are symmetrised.

        Returns:
            float64[n, dim]; a row is NaN if any number of its label is missing, or if the label has no logarithm.
        """
        found = self._untransformed(values)
        return self._logarithm(found) if self.config.transform == "log" else found

    def without_logarithm(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return a mask, bool[n], of complete labels that cannot be used because they have no logarithm."""
        there = finite_rows(self._untransformed(values))
        return there & ~finite_rows(self.components(values))

    def of(self, block: GraphBlock) -> NDArray[np.float64]:
        """Return the components of all labels of a block.

        Returns:
            float64[n_structures or n_atoms, dim]; a row is NaN if its label is missing or cannot be used.
        """
        atoms = self.config.per == "atom"
        labels = block.atom_labels if atoms else block.structure_labels
        if self.label not in labels:
            return np.full((len(block.atomic_number) if atoms else len(block), self.basis.dim), np.nan)
        found = self.components(labels[self.label])
        if self.molecules_only:
            periodic = np.asarray(block.pbc.any(axis=1))
            found[periodic[block.atom_structure] if atoms else periodic] = np.nan
        return found

    def labelled(self, store: GraphStore) -> NDArray[np.bool_]:
        """Return a mask, bool[n_structures], of structures with a usable label; one labelled atom is enough."""
        known = np.zeros(len(store), dtype=bool)
        for span, values, first in self._read_labels(store):
            there = finite_rows(self.components(values))
            known[span] = np.logical_or.reduceat(there, first)
        if self.molecules_only:
            known &= ~store.column("pbc").any(axis=1)
        return known

    def count_without_logarithm(self, store: GraphStore, chosen: NDArray[np.bool_]) -> int:
        """Count the labels of the chosen structures that cannot be used because they have no logarithm."""
        if self.config.transform != "log":
            return 0
        count = 0
        for span, values, first in self._read_labels(store):
            count += int(np.add.reduceat(self.without_logarithm(values), first, dtype=np.int64)[chosen[span]].sum())
        return count

    def _read_labels(self, store: GraphStore) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.int64]]]:
        """Yield slices of structures, their labels, and the place of each structure's first label among these labels.

        If the store does not have the label, nothing is yielded.
        """
        if not any(self.label in names for names in store.label_names):
            return
        start_of = store.offsets[0] if self.config.per == "atom" else np.arange(len(store) + 1)
        for begin in range(0, len(store), ROWS_AT_ONCE):
            end = min(begin + ROWS_AT_ONCE, len(store))
            values = store.column(self.label, int(start_of[begin]), int(start_of[end]))
            yield slice(begin, end), values, start_of[begin:end] - start_of[begin]

    @cached_property
    def _from_label(self) -> NDArray[np.float64]:
        """Map from a label's numbers to the components of the nearest tensor, float64[prod(shape), dim]."""
        matrix: NDArray[np.float64] = np.linalg.pinv(presentation(self.basis, self.shape).numpy()).T
        return matrix

    def _untransformed(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        flat = values.reshape(len(values), math.prod(self.shape))
        there = finite_rows(flat)
        found: NDArray[np.float64] = np.where(there[:, None], flat, 0.0) @ self._from_label
        found[~there] = np.nan
        return found

    def _logarithm(self, components: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the logarithms of scalars or symmetric matrices (same eigenvectors, logarithms of the eigenvalues)."""
        found = np.full_like(components, np.nan)
        there = np.flatnonzero(finite_rows(components))
        if self.basis.rank == 0:
            there = there[components[there, 0] > 0]
            found[there] = np.log(components[there])
            return found
        to_matrix = self.basis.matrix.numpy()
        values, vectors = np.linalg.eigh((components[there] @ to_matrix.T).reshape(-1, 3, 3))
        positive = values[:, 0] > 0  # eigenvalues are in ascending order
        values, vectors = np.log(values[positive]), vectors[positive]
        matrices = (vectors * values[:, None, :]) @ vectors.transpose(0, 2, 1)
        found[there[positive]] = matrices.reshape(-1, 9) @ to_matrix
        return found


def finite_rows(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return a mask, bool[n], of the rows of float64[n, k] in which every number is finite."""
    return np.asarray(np.isfinite(values).all(axis=1))


def head_labels(stores: Sequence[GraphStore], heads: Mapping[str, HeadConfig]) -> dict[str, HeadLabels]:
    """Find the labels of all heads in the stores.

    Raises:
        ConfigError: No store has the label of a head, or the label does not fit the head.
        StoreError: The shape or unit of a label differs between stores.
    """
    found = {name: _find_labels(stores, name, config) for name, config in heads.items()}
    EpochReader(stores, labels={head.label for head in found.values()})  # raises if stores disagree
    return found


def _find_labels(stores: Sequence[GraphStore], name: str, config: HeadConfig) -> HeadLabels:
    label = config.label or name
    having = [store for store in stores if any(label in names for names in store.label_names)]
    if not having:
        known = sorted({label for store in stores for names in store.label_names for label in names})
        raise ConfigError(
            f"heads.{name}: no store has a label {label!r} (available: {', '.join(known) or 'none'}); choose one with "
            f"`label`, or map it with `featurize --label {label}=KEY[unit]`"
        )
    per = "structure" if label in having[0].label_names[0] else "atom"
    if per != config.per:
        raise ConfigError(f"heads.{name}: the label {label!r} has one value per {per}; use `per: {per}`")
    stored, unit = having[0].label_shape(label)
    shape = stored if config.shape is None else config.shape
    if math.prod(shape) != math.prod(stored):
        raise ConfigError(
            f"heads.{name}: the stored label {label!r} has shape {list(stored)}, but the head has shape {list(shape)}; "
            "set a `shape` that holds as many numbers as the label"
        )
    try:
        presentation(tensor_basis(config), shape)
    except ValueError as error:
        raise ConfigError(f"heads.{name}: label {label!r}: {error}") from error
    return HeadLabels(config, shape, unit, label)


def wanted_labels(heads: Mapping[str, HeadLabels], *, energy: bool) -> set[str]:
    """Return the names of all labels used for training."""
    return {*((ENERGY, FORCES, STRESS) if energy else ()), *(head.label for head in heads.values())}


def usable_structures(
    stores: Sequence[GraphStore], energy: bool, heads: Mapping[str, HeadLabels]
) -> list[NDArray[np.bool_]]:
    """Find the structures with a label to train on: energy, forces or stress (if `energy`), or a label of a head.

    Forces and stresses count only in stores that have at least one energy.

    Returns:
        bool[n_structures] for each store.

    Raises:
        ConfigError: No structure has a label to train on.
    """
    usable = []
    for store in stores:
        known = np.zeros(len(store), dtype=bool)
        if energy:
            known |= _labelled_energies(store)
        for head in heads.values():
            known |= head.labelled(store)
        usable.append(known)
    if not any(known.any() for known in usable):
        wanted = (["an energy"] if energy else []) + [f"a usable label for heads.{name}" for name in heads]
        first = ENERGY if energy else next((head.label for head in heads.values()), ENERGY)
        raise ConfigError(
            f"{', '.join(str(store.path) for store in stores)}: no structure has {' or '.join(wanted)}; "
            f"map one with `featurize --label {first}=KEY[unit]`"
        )
    return usable


def _labelled_energies(store: GraphStore) -> NDArray[np.bool_]:
    """Return a mask, bool[n_structures], of structures with an energy, a force or a stress.

    A stress counts only in structures that are periodic in all three directions. Without any energy, all are False.
    """
    per_structure, per_atom = store.label_names
    known = np.zeros(len(store), dtype=bool)
    if ENERGY in per_structure:
        known = np.isfinite(store.column(ENERGY))
    if not known.any():
        return known
    if STRESS in per_structure:
        stress = finite_rows(store.column(STRESS).reshape(len(store), -1))
        known |= stress & store.column("pbc").all(axis=1)
    if FORCES in per_atom:
        start_of = store.offsets[0]
        for begin in range(0, len(store), ROWS_AT_ONCE):
            end = min(begin + ROWS_AT_ONCE, len(store))
            forces = finite_rows(store.column(FORCES, int(start_of[begin]), int(start_of[end])))
            known[begin:end] |= np.logical_or.reduceat(forces, start_of[begin:end] - start_of[begin])
    return known
