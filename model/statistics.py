"""Statistics of the training set that a network stores beside its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HeadStatistics:
    """Statistics of the labels of one head (with `transform: log`, of their logarithms), in the unit of the label.

    Attributes:
        shape: Shape of one label.
        unit: Unit of the label, as in the store.
        shifts: For each element, the contribution of an atom to each invariant (0e) component of the head, fitted to
            the labels; components are in the order of the head's irreps.
        scales: Root mean square of the components of each irrep of the head (each copy has its own) after the shifts
            are subtracted; per atom for an extensive head.
    """

    shape: tuple[int, ...]
    unit: str
    shifts: tuple[tuple[float, ...], ...]
    scales: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GeometryStatistics:
    """Geometric statistics of the training structures.

    Attributes:
        minimum_distances: Smallest distance of each pair of elements that are neighbours within the cutoff (angstrom),
            keyed by the two symbols in the order of atomic numbers, such as ``Na-Cl``.
        atom_volume: Mean volume per atom of the structures that are periodic in all three directions (angstrom^3); None
            if there are none.
        crystals: Fraction of the structures that are periodic in all three directions.
        atoms: Median number of atoms of a structure.
    """

    minimum_distances: Mapping[str, float]
    atom_volume: float | None
    crystals: float
    atoms: float


@dataclass(frozen=True, slots=True)
class DataStatistics:
    """Statistics of the training set.

    Attributes:
        reference_energies: Reference energy of each element (eV), in the order of the network's elements.
        energy_scales: Energy scale of each element (eV); it multiplies the network's raw atomic energies.
        mean_neighbors: Mean number of neighbours of an atom within the cutoff.
        heads: Statistics of the heads, by name.
        geometry: Distances, density and size of the training structures; None if they are unknown, as for imported
            weights.
    """

    reference_energies: tuple[float, ...]
    energy_scales: tuple[float, ...]
    mean_neighbors: float = 20.0
    heads: Mapping[str, HeadStatistics] = field(default_factory=dict)
    geometry: GeometryStatistics | None = None


def joint_minimum_distances(geometries: Sequence[GeometryStatistics | None]) -> dict[str, float] | None:
    """Return the smallest distance of each pair of elements in any of several training sets (angstrom).

    Returns:
        The result has the form of `GeometryStatistics.minimum_distances`; it is None if one of the sets lacks this
        statistic.
    """
    joint: dict[str, float] = {}
    for geometry in geometries:
        if geometry is None:
            return None
        for pair, distance in geometry.minimum_distances.items():
            joint[pair] = min(distance, joint.get(pair, distance))
    return joint
