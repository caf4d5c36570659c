"""Variants of crystals: rattled and strained copies, and frames of short relaxations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...pipeline.graphs.potential import Potential
from ...pipeline.structures.structure import Structure
from ...screening.plausibility import Plausibility
from ...screening.relaxation.batched import RelaxSettings, relax_structures
from ...screening.scoring.score import MAX_SCORED_EDGES
from .settings import RELAXATION_STEPS, VariantSettings

# Names of the kinds of structures, in the column `variant`.
AS_GIVEN, PERTURBED, FRAME = "crystal", "perturbed", "frame"


def perturbed(structure: Structure, settings: VariantSettings, number: int) -> Structure:
    """Return a rattled and strained copy of a structure.

    The sizes of both perturbations are drawn between zero and their maximum, so that copies near the crystal and far
    from it are about equally frequent. The copy depends only on the structure, the settings and `number`, not on other
    structures. Only crystals are strained; slabs, chains and molecules keep their cell.

    Args:
        structure: The structure.
        settings: Sizes of the perturbations, and the seed.
        number: Number of the copy.

    Raises:
        InvalidStructureError: The perturbed cell is flat.
    """
    content = np.frombuffer(structure.content_hash(), dtype="<u4").tolist()
    rng = np.random.default_rng([settings.seed, number, *content])
    size_of_strain, size_of_rattle = rng.uniform(0.0, (settings.strain, settings.rattle))
    strain = rng.uniform(-size_of_strain, size_of_strain, (3, 3))
    moves: NDArray[np.float64] = rng.normal(0.0, size_of_rattle, (len(structure), 3))
    moves -= moves.mean(axis=0)  # a translation of the whole structure would change nothing
    cell, pbc = structure.cell, structure.pbc
    frac = structure.frac_coord + np.linalg.solve(cell.T, moves.T).T
    if pbc.all():
        cell = cell @ (np.eye(3) + (strain + strain.T) / 2)
    return Structure.from_fractional(structure.atomic_number, cell, frac, pbc)


def relaxation_frames(
    structures: Sequence[Structure], potential: Potential, settings: VariantSettings, plausibility: Plausibility
) -> list[list[Structure]]:
    """Relax structures for a few steps, and return frames that are evenly spaced over the steps.

    The first point, the structure itself, is not among the frames.

    Args:
        structures: Structures whose elements the potential covers.
        potential: Potential with energy, forces and stress.
        settings: Number of frames per structure; with 0, nothing is relaxed.
        plausibility: Bounds outside of which results are meaningless.

    Returns:
        The frames of each structure; fewer than requested if it is relaxed after fewer steps, none if it cannot be
        relaxed.
    """
    if not settings.frames:
        return [[] for _ in structures]
    steps = RelaxSettings(max_steps=RELAXATION_STEPS, trajectory=True, max_edges=MAX_SCORED_EDGES)
    done = dict(relax_structures(enumerate(structures), potential, steps, plausibility=plausibility))
    out = []
    for place in range(len(structures)):
        points = [frame.structure for frame in done[place].frames[1:]]
        chosen = np.unique(np.linspace(0, len(points) - 1, settings.frames + 1)[1:].round().astype(int))
        out.append([points[number] for number in chosen.tolist()] if points else [])
    return out
