"""The graph store of labelled structures: crystals and their variants, with the teacher's predictions as labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...export.runtime.onnx_potential import OnnxPotential
from ...export.runtime.providers import device_kind
from ...pipeline.errors import ConfigError
from ...pipeline.featurization.assembly import assemble
from ...pipeline.featurization.report import SOFTWARE
from ...pipeline.provenance import recorded_path
from ...pipeline.runs.failure_policy import FailurePolicy
from ...pipeline.runs.options import RunOptions
from ...pipeline.sources.discovery import inputs_digest
from ...pipeline.store.dedup import Dedup
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.labelling_model import LabellingModel
from ...pipeline.store.row_sources import absolute
from ...pipeline.store.schema import GRAPH_SCHEMA, ArraySpec
from ...pipeline.store.writer import InputStore, StoreWriter
from ...pipeline.structures.matching import composition_key, crystal_vector, first_same_crystal
from ...screening.chemistry.composition import formulas
from ...screening.dataset.parts import cut
from ...screening.plausibility import Plausibility
from ...screening.relaxation.output import relaxed_graph_arrays
from .settings import COLUMNS, CRYSTAL, LABEL_STATUS, LEAST_GROUPS, VARIANT, HoldOutBy, VariantSettings

# Edges that the teacher evaluates in one part: with 7net-0, about ten seconds of one core.
PART_EDGES = 250_000
PART_CRYSTALS = 256
_BLOCK = 1_024  # crystals read at a time
_DESCRIPTIONS = {
    CRYSTAL: "number of the crystal that the structure was made of; equal for crystals that are the same",
    VARIANT: "how the structure was made: crystal (as given), perturbed (rattled and strained) or frame (relaxation)",
    LABEL_STATUS: "whether the teacher could label the structure: ok, or the reason why not",
}


def label_crystals(
    graphs: GraphStore,
    teacher: Path,
    potential: OnnxPotential,
    out: Path,
    settings: VariantSettings,
    groups: Sequence[int],
    cutoff: float,
    options: RunOptions,
) -> None:
    """Write the store of labelled structures; an interrupted run resumes.

    A crystal that kills its worker, or has elements that the teacher does not cover, has a row without labels and no
    variants. Only one of several equal structures is stored.

    Args:
        graphs: Graph store of the crystals.
        teacher: ONNX file with energy, forces and stress.
        potential: The same file, loaded.
        out: Graph store to write.
        settings: How variants are made.
        groups: For each crystal, the index of the first crystal that is the same.
        cutoff: Cutoff of the graphs to write, angstrom.
        options: Options of the run.

    Raises:
        StoreError: The crystals cannot be read, or changed during the run.
        ModelFileError: The teacher changed during the run.
        DeviceError: The device does not exist on a worker.
        OutputExistsError: An unfinished run has other settings, or another run is writing the store.
    """
    spans = cut(graphs.n_edges.astype(np.int64) * settings.evaluations, PART_EDGES, PART_CRYSTALS)
    identity = {
        "schema": GRAPH_SCHEMA,
        "store_hash": graphs.store_hash,
        "teacher": potential.sha256,
        "variants": asdict(settings),
        "cutoff": cutoff,
        "slots": options.chosen_slots,
        "device": device_kind(options.device),
        "parts": hashlib.sha256(repr((spans, list(groups))).encode()).hexdigest(),
        "equiscreen": version("equiscreen"),
    }
    writer = StoreWriter("label", out, identity, options, inputs=[InputStore.of(graphs)], files=[teacher])
    if writer.resume_publication() is not None:
        return
    from ...export.runtime.model_workers import ModelWorkers  # noqa: PLC0415 - imports distributed, 0.7 s
    from .worker import LabelTask, label_part  # noqa: PLC0415 - imports distributed, 0.7 s

    most = 1 + settings.variants + settings.frames
    with writer.run(len(graphs) * most) as run:
        workers = ModelWorkers.of(run, {potential.sha256: teacher})
        plausibility = Plausibility.of(potential)
        tasks = (
            LabelTask(
                number,
                begin,
                end,
                start,
                stop,
                absolute(graphs.path),
                graphs.store_hash,
                tuple(groups[start:stop]),
                cutoff,
                workers.names[0],
                settings,
                plausibility,
                run.staging.parts,
            )
            for number, (start, stop) in enumerate(spans)
            for begin, end in run.missing(number, stop - start)
        )
        policy: FailurePolicy[LabelTask] = FailurePolicy(LabelTask.split, LabelTask.skipped)
        manifests = run.make_parts(workers.bound(label_part), tasks, policy, workers.resource)
        run.bar.expect(run.bar.done)  # crystals may have fewer variants than expected
        digests, counts = assemble(run, manifests, (), labelled_arrays(), Dedup.EXACT)
        path = recorded_path(graphs.path, out)
        inputs = [(path, len(graphs), graphs.store_hash)]
        attrs = {
            "schema": GRAPH_SCHEMA,
            "cutoff": cutoff,
            "cutoff_units": "angstrom",
            "recipe": {"dedup": Dedup.EXACT.value, "limit": None, "variants": asdict(settings)},
            "variants_of": {"path": path, "store_hash": graphs.store_hash},
            **labelling_model(teacher, potential).to_attrs(),
            "inputs_sha256": inputs_digest(inputs),
            "inputs": inputs,
            "software": {name: version(name) for name in (*SOFTWARE, "onnxruntime")},
            "counts": counts,
        }
        run.publish(digests, attrs)


def labelling_model(teacher: Path, potential: OnnxPotential) -> LabellingModel:
    """Return the record of a teacher, for the store of its labels."""
    metadata = potential.metadata
    name = metadata.origin.get("name")
    fidelity = metadata.origin.get("fidelity")
    return LabellingModel(
        name="/".join(filter(None, (name, fidelity))) if name else teacher.name,
        sha256=potential.sha256,
        weights_sha256=metadata.weights_sha256,
        energy_scheme=metadata.energy_scheme,
        energy_basis=metadata.energy_basis,
        origin=metadata.origin,
    )


def labelled_arrays() -> tuple[ArraySpec, ...]:
    """Return the arrays of the store of labelled structures."""
    return tuple(
        replace(spec, attrs={**spec.attrs, "description": _DESCRIPTIONS[spec.name]}) if spec.name in COLUMNS else spec
        for spec in relaxed_graph_arrays(COLUMNS)
    )


def same_crystals(graphs: GraphStore) -> list[int]:
    """Return, for each crystal of a store, the index of the first crystal in it that is the same.

    See `pipeline.structures.matching.same_crystal`.
    """
    keys, vectors = [], []
    for block in graphs.blocks(_BLOCK, labels=False):
        for row in range(len(block)):
            structure = block.structure(row)
            keys.append(composition_key(structure))
            vectors.append(crystal_vector(structure))
    first = first_same_crystal(
        np.array(keys, dtype=np.uint64),
        np.array(vectors, dtype=np.float64),
        lambda row: graphs.block(row, row + 1, labels=False).structure(0),
    )
    return [int(number) for number in first]


def check_groups(graphs: GraphStore, potential: OnnxPotential, groups: Sequence[int], by: HoldOutBy) -> None:
    """Check that some crystals can be held out for validation and comparison, and others are left to train on.

    Raises:
        ConfigError: The teacher covers fewer than three different crystals or, if crystals are held out by composition,
            fewer than three compositions.
    """
    names: list[str] = []
    covered: list[NDArray[np.bool_]] = []
    for block in graphs.blocks(_BLOCK, labels=False):
        unknown = block.atom_structure[~np.isin(block.atomic_number, potential.elements)]
        covered.append(np.bincount(unknown, minlength=len(block)) == 0)
        names.extend(formulas(block).tolist())
    known = np.concatenate(covered)
    crystals = len(set(np.array(groups)[known].tolist()))
    compositions = len({name for name, ok in zip(names, known.tolist(), strict=True) if ok})
    if not known.any():
        raise ConfigError(f"{graphs.path}: the teacher does not cover all elements of any crystal; use another teacher")
    if crystals < LEAST_GROUPS:
        raise ConfigError(
            f"{graphs.path}: a distillation needs at least {LEAST_GROUPS} different crystals that the teacher covers "
            f"(to train, to validate and to compare), but it covers only {crystals} in this store; add crystals"
        )
    if by is HoldOutBy.COMPOSITION and compositions < LEAST_GROUPS:
        raise ConfigError(
            f"{graphs.path}: holding out crystals by composition needs at least {LEAST_GROUPS} compositions that the "
            f"teacher covers, but this store holds {compositions}; use --hold-out-by structure, or add crystals"
        )


def label_statuses(labelled: GraphStore) -> Mapping[str, int]:
    """Return the number of structures with each label status that occurs, the most frequent first."""
    words, counts = np.unique(labelled.column(LABEL_STATUS), return_counts=True)
    found = dict(zip(words.tolist(), counts.tolist(), strict=True))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def chosen_rows(size: int, crystals: int | None, seed: int) -> NDArray[np.int64] | None:
    """Return a random sample of crystals, ascending: int64[n]; None if all are used.

    Args:
        size: Number of crystals in the store.
        crystals: Number of crystals to use; None uses all.
        seed: Random seed.
    """
    if crystals is None or crystals >= size:
        return None
    return np.sort(np.random.default_rng(seed).permutation(size)[:crystals])


def summary(counts: Mapping[str, int], statuses: Mapping[str, int]) -> str:
    """Return the numbers of labelled structures by outcome, as one line of text."""
    told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in statuses.items())
    return (
        f"read {counts['read']:,} = stored {counts['stored']:,} + failed {counts['failed']:,} + duplicate "
        f"{counts['duplicate']:,}; labels: {told}"
    )
