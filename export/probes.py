"""Structures on which an export is tested, and limits on how much rounding errors may change their results."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..model.networks.base import Network
from ..model.networks.torch_potential import TorchPotential
from ..model.probes import TAME, ProbeSource, tame
from ..pipeline.errors import ExportError
from ..pipeline.graphs.graph_block import GraphBlock
from ..pipeline.structures.structure import Structure

# Largest rounding errors allowed in float32: eV/atom, eV/angstrom and eV/angstrom^3. For 7net-0, ONNX Runtime differs
# from PyTorch by 8e-7, 5e-6 and 9e-7.
LIMITS = {"energy": 1e-5, "forces": 1e-4, "stress": 1e-5}
UNITS = {"energy": "eV/atom", "forces": "eV/angstrom", "stress": "eV/angstrom^3"}
# The limits hold for training data whose forces have this root mean square, eV/angstrom, and grow with larger forces.
_USUAL_FORCE = 2.0
# They also grow with larger stresses than this (eV/angstrom^3): float32 resolves about 1e-6 of a value.
_LARGE_STRESS = 5.0
# One entry per block: number of structures to choose, number to choose from, seed, and largest number of atoms. The
# sizes of the blocks differ from the traced ones.
_SIZES = ((1, 8, 11, 4), (3, 8, 12, 27), (24, 40, 13, 12))
_SEED, _POOL = 14, 12


@dataclass(frozen=True, slots=True)
class Probes:
    """Structures that resemble the training data in distances, density, size and forces.

    Attributes:
        structures: Structures of the last block; about the same fraction of them is periodic as in the training data.
        blocks: Three blocks of structures, of different sizes. Each block also has an isolated atom, and a crystal and
            a molecule if their forces do not exceed `TAME`.
        force: Largest force on an atom (eV/angstrom); 0 without forces.
        scale: Factor of `LIMITS`: above 1 if the forces of the training data are unusually large, or if forces on the
            structures exceed `TAME`, or if their stresses are unusually large.
    """

    structures: list[Structure]
    blocks: list[GraphBlock]
    force: float
    scale: float

    @classmethod
    def of(cls, network: Network) -> Probes:
        """Choose structures for a network.

        Raises:
            ExportError: The structures have no neighbours, or the network predicts forces that are not finite.
        """
        potential = TorchPotential(network)
        source = ProbeSource.of(network.elements, network.cutoff, network.statistics.geometry)
        rng = np.random.default_rng(_SEED)
        others, force = [Structure.from_cartesian(network.elements[:1], [[0.0, 0.0, 0.0]])], 0.0
        for make in (source.crystal if source.crystals else source.boxed_molecule, source.molecule):
            chosen, largest = tame(potential, [make(rng, 8) for _ in range(_POOL)], 1)
            if largest <= TAME:  # larger forces are unlike any training data
                others, force = [*chosen, *others], max(force, largest)
        structures: list[Structure] = []
        blocks, stress = [], 0.0
        for count, pool, seed, max_atoms in _SIZES:
            structures, largest = tame(potential, source.structures(pool, seed, max_atoms), count)
            force = max(force, largest)
            blocks.append(GraphBlock.from_structures([*structures, *others], network.cutoff))
            stresses = np.abs(potential.evaluate(blocks[-1]).stress)
            stress = max(stress, float(np.max(stresses, initial=0.0, where=np.isfinite(stresses))))
            if not blocks[-1].n_edges[:count].any():
                raise ExportError(
                    f"the test structures have no neighbours within {network.cutoff} angstrom, so nothing would be "
                    "checked; train with a larger cutoff"
                )
        if not np.isfinite(force):
            raise ExportError("the network predicts forces that are not finite; check its training")
        usual = max(network.statistics.energy_scales) / _USUAL_FORCE
        scale = max(1.0, usual, force / TAME, stress / _LARGE_STRESS)
        return cls(structures, blocks, force, scale)
