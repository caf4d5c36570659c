"""Statistics of the training set: reference energies, shifts and scales, by least squares in one pass.

The rows of a least-squares problem are not kept; the triangular factor of the rows so far replaces them (Demmel et al.,
SIAM J. Sci. Comput. 34, A206, 2012). Unlike normal equations, the factor loses no digits: residuals of a few meV are
resolved even if total energies reach a million eV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.labels.quantities import ENERGY, FORCES
from ...pipeline.store.epoch_reader import EpochReader
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.structures.elements import pair_name
from ..statistics import DataStatistics, GeometryStatistics, HeadStatistics
from .batches import N_ATOMIC_NUMBERS, element_counts
from .targets import HeadLabels, finite_rows, wanted_labels

# A spread below this (eV or eV/angstrom), such as the spread of a single structure, counts as zero.
_LEAST_SCALE = 1e-3
# An element gets its own scale if it has at least this many labelled force components.
_LEAST_COMPONENTS = 100
# The shift of each element is pulled towards the common mean with the weight of this fraction of one structure of the
# pure element (intensive head) or of one atom (extensive head). Without this ridge, the shifts of elements that always
# occur together would be undetermined.
_RIDGE = 1e-2
# If the residual is at most this fraction of the size of the labels, the head is fitted up to rounding.
_ROUNDING = 1e-9
# Otherwise, an irrep whose scale is at most this fraction of the head's largest scale counts as having no spread.
_NOISE = 1e-3


def fit_statistics(
    stores: Sequence[GraphStore],
    chosen: Sequence[NDArray[np.bool_]],
    cutoff: float,
    *,
    energy: bool,
    heads: Mapping[str, HeadLabels],
    energy_scale: Literal["global", "element"],
    known: Mapping[int, float] | None = None,
) -> tuple[tuple[int, ...], DataStatistics]:
    """Compute the elements and statistics of the training structures in one pass.

    Reference energies are the least-squares fit of total energies to composition; if the compositions do not determine
    them, the minimum-norm solution is used. Energy scales are the root mean square of the force components or, without
    forces, the standard deviation of the residual energy per atom. The shifts of a head are fitted to composition if
    its labels belong to structures; if they belong to atoms, the shifts are the mean labels of each element.

    Args:
        stores: Graph stores.
        chosen: bool[n_structures] for each store, structures to train on.
        cutoff: Cutoff radius of the network (angstrom).
        energy: Whether there are energies; if not, reference energies are 0 and scales 1.
        heads: Labels of the heads, by name.
        energy_scale: ``global``: one scale for all elements; ``element``: a separate scale for each element with at
            least 100 labelled force components.
        known: Reference energies (eV) by atomic number that are not fitted, such as energies of isolated atoms.

    Returns:
        The elements of these structures in ascending order, and the statistics. An element that occurs in no structure
        with an energy, and is not in `known`, has the reference energy 0.

    Raises:
        ConfigError: No structure has a usable label for one of the heads.
    """
    energies, forces, geometry = _Energies(), _Forces(), _Geometry(cutoff)
    fits = {
        name: _AtomHead(labels) if labels.config.per == "atom" else _StructureHead(labels)
        for name, labels in heads.items()
    }
    atoms = np.zeros(N_ATOMIC_NUMBERS, dtype=np.int64)
    reader = EpochReader(stores, chosen, labels=wanted_labels(heads, energy=energy))
    for rows in reader.blocks():
        block = rows.block
        counts = element_counts(block.atom_structure, block.atomic_number, len(block))
        atoms += counts.sum(axis=0)
        geometry.add(block)
        if energy:
            energies.add(block, counts)
            forces.add(block)
        for fit in fits.values():
            fit.add(block, counts)
    for name, fit in fits.items():
        if not fit.count:
            raise ConfigError(
                f"heads.{name}: no training structure has a usable label {heads[name].label!r}; "
                "add labelled structures, or change training.split"
            )
    elements = np.flatnonzero(atoms)
    references = energies.references(known or {})
    scales = forces.scales(energies.spread(references), by_element=energy_scale == "element")
    head_statistics = {name: fit.statistics(elements) for name, fit in fits.items()}
    statistics = DataStatistics(
        tuple(references[elements].tolist()),
        tuple(scales[elements].tolist()) if energy else (1.0,) * len(elements),
        max(1.0, geometry.n_edges / max(1, int(atoms.sum()))),
        head_statistics,
        geometry.statistics(),
    )
    return tuple(elements.tolist()), statistics


class _Factor:
    """Triangular factor R of a matrix A whose rows arrive in pieces: ``|R x| = |A x|`` for every x."""

    def __init__(self, columns: int) -> None:
        self.r: NDArray[np.float64] = np.zeros((0, columns))
        self.count = 0

    def add(self, *columns: NDArray[np.floating | np.integer]) -> None:
        """Add rows, given as blocks of columns side by side."""
        rows = np.concatenate(columns, axis=1)
        if len(rows):
            self.r = np.asarray(np.linalg.qr(np.concatenate([self.r, rows]), mode="r"))
            self.count += len(rows)

    def root_mean_square(self, combinations: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return root mean squares, float64[k], of linear combinations of the columns, float64[n_columns, k]."""
        norms = np.linalg.norm(self.r @ combinations, axis=0)
        return np.asarray(norms / np.sqrt(max(1, self.count)))


class _Energies:
    """Least-squares fit of total energies to composition."""

    def __init__(self) -> None:
        self._totals = _Factor(N_ATOMIC_NUMBERS + 1)
        self._per_atom = _Factor(1 + N_ATOMIC_NUMBERS + 1)

    def add(self, block: GraphBlock, counts: NDArray[np.int64]) -> None:
        """Add the structures that have an energy."""
        if ENERGY not in block.structure_labels:
            return
        known = np.isfinite(block.structure_labels[ENERGY])
        energy, size = block.structure_labels[ENERGY][known, None], block.n_atoms[known, None]
        self._totals.add(counts[known], energy)
        self._per_atom.add(np.ones_like(energy), counts[known] / size, energy / size)

    def references(self, known: Mapping[int, float]) -> NDArray[np.float64]:
        """Return reference energies by atomic number (eV), float64[119]; `known` energies are kept, others fitted."""
        r = self._totals.r
        found = np.zeros(N_ATOMIC_NUMBERS)
        found[list(known)] = list(known.values())
        there = np.flatnonzero(r[:, :N_ATOMIC_NUMBERS].any(axis=0))
        there = there[~np.isin(there, list(known))]
        if len(there):
            rest = r[:, -1] - r[:, :N_ATOMIC_NUMBERS] @ found
            found[there] = np.linalg.lstsq(r[:, there], rest, rcond=None)[0]
        return found

    def spread(self, references: NDArray[np.float64]) -> float:
        """Return the standard deviation of the residual energy per atom (eV)."""
        if not self._per_atom.count:
            return 0.0
        # The first column is constant, so all rows of the factor but the first hold deviations from the means.
        deviations = self._per_atom.r[1:, 1:] @ np.append(-references, 1.0)
        return float(np.linalg.norm(deviations) / np.sqrt(self._per_atom.count))


class _Forces:
    """Sums of squares of force components by element."""

    def __init__(self) -> None:
        self._squares, self._count = np.zeros(N_ATOMIC_NUMBERS), np.zeros(N_ATOMIC_NUMBERS)

    def add(self, block: GraphBlock) -> None:
        """Add all labelled force components of a block."""
        if FORCES not in block.atom_labels:
            return
        forces = block.atom_labels[FORCES]
        known = np.isfinite(forces)
        squares = np.where(known, forces, 0.0) ** 2
        self._squares += np.bincount(block.atomic_number, squares.sum(axis=1), N_ATOMIC_NUMBERS)
        self._count += np.bincount(block.atomic_number, known.sum(axis=1), N_ATOMIC_NUMBERS)

    def scales(self, otherwise: float, *, by_element: bool) -> NDArray[np.float64]:
        """Return root mean squares of the force components, float64[119]; `otherwise` if there are no forces."""
        total = float(self._count.sum())
        scale = float(np.sqrt(self._squares.sum() / total)) if total else otherwise
        found = np.full(N_ATOMIC_NUMBERS, scale if scale > _LEAST_SCALE else 1.0)
        if by_element:
            own = np.sqrt(self._squares / np.maximum(1, self._count))
            enough = (self._count >= _LEAST_COMPONENTS) & (own > _LEAST_SCALE)
            found[enough] = own[enough]
        return found


class _Geometry:
    """Sums for geometric statistics: number of edges, smallest distances, density and sizes.

    Args:
        cutoff: Cutoff radius of the network (angstrom); longer edges do not count.
    """

    def __init__(self, cutoff: float) -> None:
        self.n_edges = 0
        self._cutoff = cutoff
        self._smallest = np.full((N_ATOMIC_NUMBERS, N_ATOMIC_NUMBERS), np.inf)
        self._volume, self._crystal_atoms, self._crystals = 0.0, 0, 0
        self._sizes: list[NDArray[np.int32]] = []

    def add(self, block: GraphBlock) -> None:
        """Add all structures of a block."""
        squares = (block.displacements() ** 2).sum(axis=1)
        within = squares < self._cutoff**2
        self.n_edges += int(within.sum())
        pairs = block.atomic_number[block.receiver[within]], block.atomic_number[block.sender[within]]
        np.minimum.at(self._smallest, pairs, np.sqrt(squares[within]))
        crystal = block.pbc.all(axis=1)
        self._volume += float(block.volume[crystal].sum())
        self._crystal_atoms += int(block.n_atoms[crystal].sum())
        self._crystals += int(crystal.sum())
        self._sizes.append(block.n_atoms)

    def statistics(self) -> GeometryStatistics:
        """Return the statistics of all structures so far."""
        # An edge is listed from both of its ends, and rounding may differ.
        smallest = np.minimum(self._smallest, self._smallest.T)
        known = np.argwhere(np.triu(np.isfinite(smallest)))
        sizes = np.concatenate(self._sizes)
        return GeometryStatistics(
            {pair_name(a, b): float(smallest[a, b]) for a, b in known.tolist()},
            self._volume / self._crystal_atoms if self._crystal_atoms else None,
            self._crystals / len(sizes),
            float(np.median(sizes)),
        )


class _StructureHead:
    """Fit of structure labels: invariant components to element fractions, or to element counts if extensive.

    The fit determines how the shift of each element deviates from the common shift, with a small ridge (`_RIDGE`).
    """

    def __init__(self, head: HeadLabels) -> None:
        self._head, dim = head, head.basis.dim
        self._sums = _Factor(N_ATOMIC_NUMBERS + dim)
        self._per_atom = _Factor(N_ATOMIC_NUMBERS + dim) if head.config.extensive else self._sums

    @property
    def count(self) -> int:
        """Number of labels so far."""
        return self._sums.count

    def add(self, block: GraphBlock, counts: NDArray[np.int64]) -> None:
        """Add the structures that have a label."""
        components = self._head.of(block)
        known = finite_rows(components)
        size = block.n_atoms[known, None]
        if self._head.config.extensive:
            self._sums.add(counts[known], components[known])
            self._per_atom.add(counts[known] / size, components[known] / size)
        else:
            self._sums.add(counts[known] / size, components[known])

    def statistics(self, elements: NDArray[np.int64]) -> HeadStatistics:
        """Return the statistics of the head for the elements of the network."""
        head, r = self._head, self._sums.r
        parts, values = r[:, :N_ATOMIC_NUMBERS], r[:, N_ATOMIC_NUMBERS + head.invariant]
        whole = parts.sum(axis=1)  # for each structure 1, or its number of atoms
        together = whole @ values / (whole @ whole)
        left = np.concatenate([values - np.outer(whole, together), np.zeros((N_ATOMIC_NUMBERS, len(head.invariant)))])
        ridge = np.sqrt(_RIDGE) * np.eye(N_ATOMIC_NUMBERS)
        shifts = together + np.linalg.lstsq(np.concatenate([parts, ridge]), left, rcond=None)[0]
        combinations = np.concatenate([np.zeros((N_ATOMIC_NUMBERS, head.basis.dim)), np.eye(head.basis.dim)])
        size = self._per_atom.root_mean_square(combinations)
        combinations[:N_ATOMIC_NUMBERS, head.invariant] = -shifts
        return _statistics(head, shifts[elements], self._per_atom.root_mean_square(combinations), size)


class _AtomHead:
    """Fit of atom labels: mean invariant components by element; elements without labels get the mean over all atoms.

    Means and squared deviations of the blocks are merged (Chan, Golub and LeVeque, 1979).
    """

    def __init__(self, head: HeadLabels) -> None:
        self._head = head
        self._n = np.zeros((N_ATOMIC_NUMBERS, 1))
        self._mean, self._squares = np.zeros((2, N_ATOMIC_NUMBERS, head.basis.dim))

    @property
    def count(self) -> int:
        """Number of labels so far."""
        return int(self._n.sum())

    def add(self, block: GraphBlock, counts: NDArray[np.int64]) -> None:  # noqa: ARG002 - same signature as `_StructureHead.add`
        """Add the atoms that have a label."""
        components = self._head.of(block)
        known = finite_rows(components)
        element, components = block.atomic_number[known], components[known]
        n = np.bincount(element, minlength=N_ATOMIC_NUMBERS)[:, None].astype(np.float64)
        mean, squares = np.zeros_like(self._mean), np.zeros_like(self._squares)
        np.add.at(mean, element, components)
        mean /= np.maximum(1, n)
        np.add.at(squares, element, (components - mean[element]) ** 2)
        both = np.maximum(1, self._n + n)
        difference = mean - self._mean
        self._squares += squares + difference**2 * (self._n * n / both)
        self._mean += difference * (n / both)
        self._n += n

    def statistics(self, elements: NDArray[np.int64]) -> HeadStatistics:
        """Return the statistics of the head for the elements of the network."""
        invariant, total = self._head.invariant, self._n.sum()
        shifts = np.where(self._n > 0, self._mean, (self._n * self._mean).sum(axis=0) / total)[:, invariant]
        left, size = self._squares.copy(), self._squares + self._n * self._mean**2
        others = np.setdiff1d(np.arange(self._head.basis.dim), invariant)
        left[:, others] = size[:, others]
        left, size = (np.sqrt(squares.sum(axis=0) / total) for squares in (left, size))
        return _statistics(self._head, shifts[elements], left, size)


def _statistics(
    head: HeadLabels, shifts: NDArray[np.float64], left: NDArray[np.float64], size: NDArray[np.float64]
) -> HeadStatistics:
    """Compute the scale of each irrep from root mean squares of its components.

    An irrep without spread, such as one that crystal symmetry forbids everywhere, gets the largest scale of the head;
    if no irrep has any spread, all scales are 1.

    Args:
        head: Labels of the head.
        shifts: float64[n_elements, n_invariant].
        left: float64[dim], root mean squares after the shifts are subtracted.
        size: float64[dim], root mean squares of the components themselves.
    """
    dims = [ir.dim for mul, ir in head.basis.irreps for _ in range(mul)]
    scales = np.sqrt([np.mean(part**2) for part in np.split(left, np.cumsum(dims)[:-1])])
    largest = float(scales.max())
    if largest <= _ROUNDING * float(size.max()):
        scales[:] = 1.0
    else:
        scales[scales <= _NOISE * largest] = largest
    rows = tuple(tuple(row) for row in shifts.tolist())
    return HeadStatistics(head.shape, head.unit, rows, tuple(scales.tolist()))
