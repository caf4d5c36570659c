"""What a network takes from its training set besides its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HeadStatistics:
    """Of the labels of one head, in the label's unit, or of their logarithm where it is transformed.

    Attributes:
        shape: Of one label.
        unit: As in the store.
        shifts: For each element, for each invariant (0e) component of the head in the order of its irreps: what an atom
            of it adds; by least squares.
        scales: For each irrep of the head, every copy by itself: root mean square of a component of what the shifts
            leave; of an extensive head, of what they leave per atom.
    """

    shape: tuple[int, ...]
    unit: str
    shifts: tuple[tuple[float, ...], ...]
    scales: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DataStatistics:
    """Of the training set.

    Attributes:
        reference_energies: eV, for each element of the network, in the order of its elements.
        energy_scales: eV, for each element; energies of atoms are the network's numbers times these.
        mean_neighbors: Average number of neighbours of an atom within the cutoff.
        heads: By name.
    """

    reference_energies: tuple[float, ...]
    energy_scales: tuple[float, ...]
    mean_neighbors: float = 20.0
    heads: Mapping[str, HeadStatistics] = field(default_factory=dict)
