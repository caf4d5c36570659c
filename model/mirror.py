"""How much a network without parity changes when a crystal is mirrored."""

from __future__ import annotations

import numpy as np

from ..pipeline.block import GraphBlock
from ..pipeline.potential import Potential
from ..pipeline.probes import probe_structures
from ..pipeline.structure import Structure
from .config import Architecture
from .turning import turned

_PROBES, _SEED = 12, 21


def mirror_violation(potential: Potential, config: Architecture) -> dict[str, float]:
    """Largest differences between structures and their images under inversion, by output with unit.

    Energies count per atom. The structures are random crystals of the network's elements, without symmetry of their
    own.

    Args:
        potential: The network.
        config: Its architecture, which tells what an inversion does to a head.
    """
    structures = probe_structures(potential.elements, _PROBES, _SEED, cutoff=potential.cutoff)
    mirrored = [Structure.from_fractional(s.atomic_number, -s.cell, s.frac_coord) for s in structures]
    blocks = [GraphBlock.from_structures(some, potential.cutoff) for some in (structures, mirrored)]
    before, after = (potential.evaluate(block).arrays() for block in blocks)
    out = {}
    for spec in potential.outputs:
        expected = before[spec.name]
        if spec.name == "forces":
            expected = -expected
        elif spec.name in config.heads:
            expected = turned(expected, config.heads[spec.name], spec.shape, -np.eye(3))
        difference = np.abs(after[spec.name] - expected)
        if spec.name == "energy":
            difference = difference / blocks[0].n_atoms
        if not np.isnan(difference).all():
            unit = "eV/atom" if spec.name == "energy" else spec.unit
            out[f"{spec.name} {unit}".rstrip()] = float(np.nanmax(difference))
    return out
