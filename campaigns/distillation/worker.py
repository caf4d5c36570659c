"""Tasks of a distillation on a Dask worker: make the variants of some crystals, and label them with the teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...export.runtime.batching import evaluate_batches
from ...export.runtime.model_workers import loaded_model
from ...export.runtime.onnx_potential import OnnxPotential
from ...pipeline.errors import InvalidStructureError
from ...pipeline.featurization.task import FAILURE_ARRAYS, id_digests, label_digests
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.offsets import ragged_rows
from ...pipeline.graphs.potential import Potential
from ...pipeline.runs.parts import COMPUTED_ON, DivisibleTask, PartManifest, write_part
from ...pipeline.store.row_sources import opened
from ...pipeline.store.schema import ATOM, EDGE, STATUS_ISOLATED_ATOMS, STRUCTURE
from ...pipeline.structures.structure import HASH_BYTES, Structure
from ...screening.dataset.scores import (
    EXTRAPOLATING,
    OK,
    STATUS_MEANINGS,
    TOO_LARGE,
    UNKNOWN_ELEMENT,
)
from ...screening.plausibility import Plausibility
from ...screening.relaxation.output import GRAPH_ARRAYS
from ...screening.scoring.score import MAX_SCORED_EDGES, evaluate_ok_rows
from .settings import CRYSTAL, LABEL_STATUS, VARIANT, VariantSettings
from .variants import AS_GIVEN, FRAME, PERTURBED, perturbed, relaxation_frames


@dataclass(frozen=True, slots=True)
class LabelTask(DivisibleTask):
    """Labelling of the crystals of one part, and of their variants.

    Attributes:
        start, stop: Crystals of the graph store that belong to the part.
        store: Path or URL of the graph store of the crystals.
        store_hash: Hash of the graph store when the run began.
        groups: For each crystal from `start` to `stop`, the index of the first crystal that is the same.
        cutoff: Cutoff of the graphs of the labelled structures, angstrom.
        model: Name of the worker plugin that holds the teacher.
        settings: How variants are made.
        plausibility: Bounds outside of which the teacher's results are meaningless.
        folder: Folder of the parts.
    """

    start: int
    stop: int
    store: Path | str
    store_hash: str
    groups: tuple[int, ...]
    cutoff: float
    model: str
    settings: VariantSettings
    plausibility: Plausibility
    folder: Path


@dataclass
class _Rows:
    """Rows of a part: structures with their graphs, and structures that have no graph.

    Attributes:
        cutoff: Cutoff of the graphs, angstrom.
        blocks: Graph of each structure.
        structures: The structures.
        names, sources, indices: Id of each structure, and source of its crystal.
        crystals, variants: Number of the crystal of each structure, and kind of variant.
        failures: Source, index, id and reason of each structure without a graph.
    """

    cutoff: float
    blocks: list[GraphBlock] = field(default_factory=list)
    structures: list[Structure] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    crystals: list[str] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    failures: list[tuple[str, int, str, str]] = field(default_factory=list)

    def add(self, structure: Structure, crystal: Crystal, kind: str, number: int = 0) -> None:
        """Add a structure, or a failure if it has no graph."""
        name = crystal.name if kind == AS_GIVEN else f"{crystal.name}/{kind}-{number}"
        try:
            block = GraphBlock.from_structures([structure], self.cutoff)
        except InvalidStructureError as error:
            self.fail(crystal, name, str(error))
            return
        self.blocks.append(block)
        self.structures.append(structure)
        self.names.append(name)
        self.sources.append(crystal.source)
        self.indices.append(crystal.source_index)
        self.crystals.append(str(crystal.group))
        self.variants.append(kind)

    def fail(self, crystal: Crystal, name: str, reason: str) -> None:
        """Add a structure that cannot be stored."""
        self.failures.append((crystal.source, crystal.source_index, name, reason))


@dataclass(frozen=True, slots=True)
class Crystal:
    """A crystal of the source, of which variants are made.

    Attributes:
        structure: The crystal.
        name, source, source_index: Its id and origin in the graph store.
        group: Index of the first crystal of the graph store that is the same.
    """

    structure: Structure
    name: str
    source: str
    source_index: int
    group: int


def label_part(task: LabelTask) -> PartManifest:
    """Label the crystals of one part: the body of a Dask task, on a worker with a `ModelPlugin`."""
    potential = loaded_model(task.model)
    rows = _Rows(task.cutoff)
    crystals = _crystals(task)
    known = [bool(np.isin(one.structure.atomic_number, potential.elements).all()) for one in crystals]
    labelled = [one for one, covered in zip(crystals, known, strict=True) if covered and not task.skip]
    frames = iter(relaxation_frames([one.structure for one in labelled], potential, task.settings, task.plausibility))
    for crystal, covered in zip(crystals, known, strict=True):
        rows.add(crystal.structure, crystal, AS_GIVEN)
        if task.skip or not covered:
            continue
        for number in range(task.settings.variants):
            try:
                rows.add(perturbed(crystal.structure, task.settings, number), crystal, PERTURBED, number)
            except InvalidStructureError as error:
                rows.fail(crystal, f"{crystal.name}/{PERTURBED}-{number}", str(error))
        for number, frame in enumerate(next(frames)):
            rows.add(frame, crystal, FRAME, number)
    return _write(task, rows, potential)


def _crystals(task: LabelTask) -> list[Crystal]:
    store = opened(str(task.store), task.store_hash)
    first, last = task.start + task.begin, task.start + task.end
    block = store.block(first, last, labels=False)
    names, sources, indices = (
        store.column(name, first, last).tolist() for name in ("structure_id", "source", "source_index")
    )
    groups = task.groups[task.begin : task.end]
    return [
        Crystal(block.structure(row), name, source, index, group)
        for row, (name, source, index, group) in enumerate(zip(names, sources, indices, groups, strict=True))
    ]


def _write(task: LabelTask, rows: _Rows, potential: OnnxPotential) -> PartManifest:
    """Label the structures and write the part; every crystal has a graph, as it has one in the source store."""
    block = GraphBlock.concatenate(rows.blocks)
    labels = label_block(block, potential, task.plausibility, skip=task.skip)
    hashes = b"".join(structure.content_hash() for structure in rows.structures)
    arrays: dict[str, Any] = {
        **{name: getattr(block, name) for name in GRAPH_ARRAYS},
        **labels.arrays(),
        "structure_hash": np.frombuffer(hashes, dtype=np.uint8).reshape(-1, HASH_BYTES),
        "status": np.array([_flags(one) for one in rows.blocks], dtype=np.uint8),
        "structure_id": rows.names,
        "source": rows.sources,
        "source_index": np.array(rows.indices, dtype=np.int64),
        CRYSTAL: rows.crystals,
        VARIANT: rows.variants,
        LABEL_STATUS: [STATUS_MEANINGS[value] for value in labels.status.tolist()],
        "id_digest": id_digests(rows.names),
        "label_digest": label_digests(labels.by_structure(block)),
    }
    for place, name in enumerate(FAILURE_ARRAYS):
        values = [failure[place] for failure in rows.failures]
        arrays[name] = np.array(values, dtype=np.int64) if name == "failure_index" else values
    counts = {
        "read": len(block) + len(rows.failures),
        "failed": len(rows.failures),
        STRUCTURE: len(block),
        ATOM: len(block.atomic_number),
        EDGE: len(block.neighbor),
    }
    notes = {"reasons": dict(Counter(reason for *_, reason in rows.failures)), COMPUTED_ON: potential.computes_on}
    return write_part(task.folder, task.key, arrays, counts, notes)


def _flags(block: GraphBlock) -> int:
    return 0 if block.n_neighbors.all() else STATUS_ISOLATED_ATOMS


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of the structures of a block; NaN unless the status is ok.

    Attributes:
        energy: float64[n_structures], eV.
        forces: float64[n_atoms, 3], eV/angstrom.
        stress: float64[n_structures, 3, 3], eV/angstrom^3; also NaN unless all three directions are periodic.
        status: uint8[n_structures], index into `STATUS_MEANINGS`.
    """

    energy: NDArray[np.float64]
    forces: NDArray[np.float64]
    stress: NDArray[np.float64]
    status: NDArray[np.uint8]

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return the labels by name."""
        return {"energy": self.energy, "forces": self.forces, "stress": self.stress}

    def by_structure(self, block: GraphBlock) -> list[Mapping[str, NDArray[np.float64]]]:
        """Return the labels of each structure by name; empty without labels."""
        forces = np.split(self.forces, block.atom_start[1:])
        each = zip(self.energy, forces, self.stress, strict=True)
        found = [{"energy": energy, "forces": force, "stress": stress} for energy, force, stress in each]
        return [labels if ok else {} for labels, ok in zip(found, (self.status == OK).tolist(), strict=True)]


def label_block(block: GraphBlock, potential: Potential, plausibility: Plausibility, *, skip: bool = False) -> Labels:
    """Compute energies, forces and stresses of structures; the labels of a structure do not depend on the others.

    Args:
        block: The structures.
        potential: Potential with energy, forces and stress.
        plausibility: Bounds outside of which a structure is ``extrapolating`` and has no labels.
        skip: Whether to evaluate nothing; all structures are then ``too_large``.
    """
    size = len(block)
    status = np.full(size, TOO_LARGE if skip else OK, dtype=np.uint8)
    status[block.n_edges > MAX_SCORED_EDGES] = TOO_LARGE
    status[block.atom_structure[~np.isin(block.atomic_number, potential.elements)]] = UNKNOWN_ELEMENT
    energy, stress = np.full(size, np.nan), np.full((size, 3, 3), np.nan)
    forces = np.full((len(block.atomic_number), 3), np.nan)

    def evaluate(some: NDArray[np.int64]) -> NDArray[np.int64]:
        """Label some rows, and return those whose labels are not finite."""
        bad = [some[:0]]
        for rows, found in evaluate_batches(block, some, potential):
            if found is None:
                status[rows] = TOO_LARGE
                continue
            batch = block.take(rows)
            doubtful = np.array([bool(doubt) for doubt in plausibility.doubts(batch, found)])
            energy[rows], stress[rows] = found.energy, found.stress
            forces[ragged_rows(block.atom_start[rows], block.n_atoms[rows])] = found.forces
            infinite = ~(np.isfinite(found.stress).all(axis=(1, 2)) | ~batch.pbc.all(axis=1))
            infinite |= ~np.isfinite(found.energy)
            infinite[batch.atom_structure[~np.isfinite(found.forces).all(axis=1)]] = True
            status[rows[doubtful & ~infinite]] = EXTRAPOLATING
            bad.append(rows[infinite])
        return np.concatenate(bad)

    evaluate_ok_rows(status, evaluate)
    unusable = status != OK
    energy[unusable], stress[unusable], forces[unusable[block.atom_structure]] = np.nan, np.nan, np.nan
    return Labels(energy, forces, stress, status)
