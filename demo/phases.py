"""The ranking of act one: the phases of each chemical system by formation energy."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from ase.data import chemical_symbols

from ..pipeline import GraphStore
from .composition import element_fractions, formation_energies, reliable_energies


@dataclass(frozen=True, slots=True)
class Phase:
    """A formula in a structure type, represented by its candidate of lowest energy over all volumes and site orders.

    Attributes:
        structure_id: Name of that candidate.
        formula: Reduced formula.
        strukturbericht: Structure type.
        relative_volume: Volume in units of the sum of the elemental volumes.
        energy: Energy, eV/atom.
        formation_energy: Formation energy from the elements of the list, eV/atom.
    """

    structure_id: str
    formula: str
    strukturbericht: str
    relative_volume: float
    energy: float
    formation_energy: float


@dataclass(frozen=True, slots=True)
class PhaseList:
    """All phases.

    Attributes:
        elements: The phase of lowest energy of each element, by symbol; formation energies refer to them. Structures
            whose status is not ok are not in the list, nor are systems of elements without a structure that is ok.
        systems: Phases by chemical system (sorted symbols), lowest formation energy first.
        n_at_edge: Number of phases whose energy is lowest at the smallest or largest volume of the grid, so that their
            minimum lies outside it.
    """

    elements: dict[str, Phase]
    systems: dict[tuple[str, ...], tuple[Phase, ...]]
    n_at_edge: int

    def __len__(self) -> int:
        return len(self.elements) + sum(map(len, self.systems.values()))


def rank_phases(store: Path, scores: xr.Dataset) -> PhaseList:
    """Find the phases among the candidates, and rank those of each chemical system.

    Args:
        store: Graph store of the candidates, which include each pure element.
        scores: Scores of that store, with its columns strukturbericht and relative_volume.
    """
    graphs = GraphStore(store)
    block = graphs.block(0, len(graphs), labels=False)
    numbers = np.unique(block.atomic_number)
    fractions = element_fractions(block, numbers)
    energy = reliable_energies(scores)
    pure = [int(np.argmin(np.where((share == 1) & np.isfinite(energy), energy, np.inf))) for share in fractions.T]
    # For an element without a reliable energy, this is any row, which may be another element.
    elements = np.where(fractions[pure].diagonal() == 1, energy[pure], np.nan)
    formation = formation_energies(energy, fractions, elements)
    names, formulas, types = (scores[key].values for key in ("structure_id", "formula", "strukturbericht"))
    volumes = scores["relative_volume"].values.astype(np.float64)

    def phase(row: int) -> Phase:
        return Phase(
            str(names[row]),
            str(formulas[row]),
            str(types[row]),
            float(volumes[row]),
            float(energy[row]),
            float(formation[row]),
        )

    best: dict[tuple[str, str], int] = {}
    systems: dict[tuple[str, ...], list[Phase]] = defaultdict(list)
    for row in np.argsort(formation, kind="stable").tolist():
        if np.isfinite(formation[row]):
            best.setdefault((formulas[row], types[row]), row)
    for row in best.values():
        systems[tuple(sorted(chemical_symbols[z] for z in numbers[fractions[row] > 0]))].append(phase(row))
    return PhaseList(
        elements={
            chemical_symbols[z]: phase(row)
            for z, row, reference in zip(numbers.tolist(), pure, elements.tolist(), strict=True)
            if np.isfinite(reference)
        },
        systems={key: tuple(systems[key]) for key in sorted(systems, key=lambda key: (len(key), key))},
        n_at_edge=sum(volumes[row] in (volumes.min(), volumes.max()) for row in best.values()),
    )
