"""Output of a relaxation: rows of the scores dataset, and of the graph store of the relaxed structures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.labels.mapping import LabelMapping
from ...pipeline.runs.parts import PartKey
from ...pipeline.store.schema import (
    STATUS_ISOLATED_ATOMS,
    STATUS_REPEATED_ID,
    TEXT,
    ArraySpec,
    flags,
    graph_schema,
    structure_array,
)
from ...pipeline.structures.structure import HASH_BYTES, Structure
from ...pipeline.structures.symmetry import find_symmetry
from ..chemistry.composition import formulas
from ..dataset.scores import ENERGY_ARRAYS, STRUCTURE_ARRAYS
from ..partial_periodicity import PartialStress
from .batched import RELAX_STATUSES, Frame, Relaxed, RelaxSettings

LABELS = ("energy", "forces", "stress")
GRAPH_ARRAYS = ("n_atoms", "n_edges", "cell", "pbc", "atomic_number", "frac_coord", "n_neighbors", "neighbor", "image")


RELAX_ARRAYS = (
    structure_array("initial_energy", "float64", "total energy of the input structure", units="eV"),
    structure_array("n_steps", "int32", "number of evaluations", units="1"),
    structure_array("volume_change", "float64", "relative change of the volume: relaxed / input - 1", units="1"),
    structure_array("space_group_initial", "int16", "space group number of the input structure; 0 = none", units="1"),
    structure_array("space_group", "int16", "space group number of the relaxed structure; 0 = none", units="1"),
    structure_array(
        "status_note",
        TEXT,
        "why the structure could not be relaxed, what makes its result implausible, or what was not relaxed",
    ),
)
RATTLE_ARRAYS = (
    structure_array(
        "rattle_energy_change",
        "float64",
        "energy after the rattle and the relaxation that follows it, minus the energy before the rattle",
        units="eV/atom",
    ),
    structure_array("space_group_before_rattle", "int16", "space group number before the rattle; 0 = none", units="1"),
)


def trajectory_name(key: PartKey, size: int) -> str:
    """Return the file name of the trajectories of a part.

    Args:
        key: Key of the part.
        size: Number of structures in the whole part; a part whose worker died is divided.
    """
    suffix = "" if key.end - key.begin == size else f"-{key.begin:05d}"
    return f"part-{key.number:07d}{suffix}.extxyz"


def relaxed_arrays(settings: RelaxSettings) -> tuple[ArraySpec, ...]:
    """Return the arrays of the scores dataset of a relaxation."""
    status = structure_array("status", "uint8", "outcome of the relaxation", **flags(RELAX_STATUSES))
    others = tuple(spec for spec in STRUCTURE_ARRAYS if spec.name != "status")
    return (*ENERGY_ARRAYS, *RELAX_ARRAYS, *(RATTLE_ARRAYS if settings.rattle else ()), status, *others)


def relaxed_graph_arrays(columns: Sequence[str]) -> tuple[ArraySpec, ...]:
    """Return the arrays of the graph store of the relaxed structures, with the columns of the input."""
    mapping = LabelMapping(columns=list(columns)).with_ase_defaults().only(set(LABELS) | set(columns))
    return graph_schema(mapping)


def score_rows(block: GraphBlock, found: Sequence[Relaxed], settings: RelaxSettings) -> dict[str, Any]:
    """Return the rows of the scores dataset, without structure ids and sources.

    Args:
        block: Input structures.
        found: Result of each structure.
        settings: Settings of the relaxation.
    """
    given = [block.structure(row) for row in range(len(block))]
    out: dict[str, Any] = {
        "initial_energy": np.array([_energy(one.first) for one in found]),
        "energy": np.array([_energy(one.last) for one in found]),
        "max_force": np.array([_max_force(one.last) for one in found]),
        "n_steps": np.array([one.n_steps for one in found], dtype=np.int32),
        "status": np.array([one.status for one in found], dtype=np.uint8),
        "status_note": ["; ".join(filter(None, (one.reason, *one.remarks))) for one in found],
        "space_group_initial": _space_groups(given, settings.symprec),
    }
    last = final_structures(given, found)
    volume = np.array([_volume(one) for one in last])
    stresses = _stresses(found)
    out |= {
        "stress": np.concatenate([one.stress for one in stresses]),
        "in_plane_virial": np.concatenate([one.in_plane for one in stresses]),
        "axial_virial": np.concatenate([one.axial for one in stresses]),
        "energy_per_atom": out["energy"] / block.n_atoms,
        "n_atoms": block.n_atoms,
        "volume": volume,
        "volume_change": volume / np.array([_volume(one) for one in given]) - 1.0,
        "space_group": _space_groups(last, settings.symprec),
        "formula": formulas(block),
    }
    if settings.rattle:
        before = [one.last if one.saddle is None else one.saddle for one in found]
        resting = np.array([_energy(frame) for frame in before])
        out["rattle_energy_change"] = (np.array([one.rattled_energy for one in found]) - resting) / block.n_atoms
        at_rest = [s if frame is None else frame.structure for s, frame in zip(given, before, strict=True)]
        out["space_group_before_rattle"] = _space_groups(at_rest, settings.symprec)
    return out


def graph_rows(structures: Sequence[Structure], found: Sequence[Relaxed], cutoff: float) -> dict[str, Any]:
    """Return the rows of the graph store of the relaxed structures, without structure ids, sources or columns.

    Args:
        structures: Structures to store; see `final_structures`.
        found: Result of each structure, for the labels.
        cutoff: Cutoff of the graphs, angstrom.

    Raises:
        InvalidStructureError: A structure has no graph: atoms are too close, or there are too many edges.
    """
    block = GraphBlock.from_structures(structures, cutoff)
    isolated = np.array([not (block.n_neighbors[atoms] > 0).all() for atoms in _atoms_of(block)])
    no_forces = {len(s): np.full((len(s), 3), np.nan) for s in structures}
    forces = [
        no_forces[len(s)] if one.last is None else one.last.forces for s, one in zip(structures, found, strict=True)
    ]
    return {
        **{name: getattr(block, name) for name in GRAPH_ARRAYS},
        "structure_hash": np.frombuffer(b"".join(s.content_hash() for s in structures), np.uint8).reshape(
            -1, HASH_BYTES
        ),
        "status": np.where(isolated, STATUS_ISOLATED_ATOMS, 0).astype(np.uint8),
        "energy": np.array([_energy(one.last) for one in found]),
        "forces": np.concatenate(forces),
        "stress": np.array([np.full((3, 3), np.nan) if one.last is None else one.last.stress for one in found]),
    }


def kept_status(status: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the status flags of the input structures that also hold for the relaxed ones: uint8[n]."""
    return np.asarray(status & STATUS_REPEATED_ID, dtype=np.uint8)


def final_structures(given: Sequence[Structure], found: Sequence[Relaxed]) -> list[Structure]:
    """Return the structures after the relaxation; the input structure if there is no result."""
    return [s if one.last is None else one.last.structure for s, one in zip(given, found, strict=True)]


def _atoms_of(block: GraphBlock) -> list[slice]:
    return [
        slice(begin, begin + count)
        for begin, count in zip(block.atom_start.tolist(), block.n_atoms.tolist(), strict=True)
    ]


def _stresses(found: Sequence[Relaxed]) -> list[PartialStress]:
    """Return the stress of each relaxed structure; NaN without a result."""
    unknown = PartialStress(np.full((1, 3, 3), np.nan), np.full((1, 3, 3), np.nan), np.full(1, np.nan))
    return [
        unknown
        if one.last is None
        else PartialStress.of(
            one.last.structure.cell[None], one.last.structure.pbc[None], one.last.stress[None], one.last.virial[None]
        )
        for one in found
    ]


def _energy(frame: Frame | None) -> float:
    """Return the total energy of a point of a relaxation, eV; NaN without a point."""
    return float("nan") if frame is None else frame.energy


def _max_force(frame: Frame | None) -> float:
    """Return the largest force on any atom at a point of a relaxation, eV/angstrom; NaN without a point."""
    return float("nan") if frame is None else float(np.linalg.norm(frame.forces, axis=1).max())


def _volume(structure: Structure) -> float:
    """Return the volume of a structure that is periodic in three directions, angstrom^3; otherwise NaN."""
    return structure.volume if structure.pbc.all() else float("nan")


def _space_groups(structures: Sequence[Structure], symprec: float) -> NDArray[np.int16]:
    """Return space group numbers: int16[n]; 0 if none is found, or without periodicity in three directions."""
    found = [find_symmetry(s, symprec) if s.pbc.all() else None for s in structures]
    return np.array([0 if one is None else one.number for one in found], dtype=np.int16)
