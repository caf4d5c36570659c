"""Properties of the structures of a dataset, on Dask workers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...export.runtime.dispersion import Dispersion, provenance_with, recorded, with_dispersion
from ...export.runtime.onnx_potential import OnnxPotential, check_gradients, model_provenance
from ...export.runtime.providers import CPU, device_kind, local_gpus
from ...pipeline.energy_schemes import NO_DISPERSION
from ...pipeline.errors import ConfigError
from ...pipeline.provenance import recorded_path
from ...pipeline.redaction import redact_urls
from ...pipeline.runs.failure_policy import FailurePolicy
from ...pipeline.runs.options import RunOptions
from ...pipeline.runs.parts import COMPUTED_ON, FOLDER, PartManifest, committed, computed_on
from ...pipeline.store.schema import STRUCTURE, ArraySpec
from ...pipeline.store.writer import StoreRun, StoreWriter
from ...pipeline.structures.structure import Structure
from ..dataset.parts import carried_columns, cut, listed
from ..dataset.paths import graphs_path
from ..dataset.scores import COORDINATES, SCORES_SCHEMA, open_scores
from ..relaxation.relaxed_graphs import RelaxedGraphs
from .inputs import Candidates
from .lattice_dynamics.born_files import BornFiles, content_hash
from .lattice_dynamics.mode_following import FOLLOWED_STATUSES
from .lattice_dynamics.phonons import Phonons
from .materials import Protocol
from .output import FOLLOWED_COLUMNS, base_arrays, property_arrays, table_arrays
from .presets import Preset, preset_named
from .protocol import PROPERTY_STATUSES, BornCharges

PROPERTIES = "properties"
# A part ends at whichever limit comes first: about a minute of one core with 7net-0.
PART_EDGES = 500_000  # in all evaluations together
PART_STRUCTURES = 256
# Approximate number of evaluations in the relaxation of a structure.
_RELAXATION = 20
_SECONDS_PER_HOUR = 3600


def compute_properties(
    source: str | Path,
    model: str | Path,
    out: str | Path,
    what: Sequence[str] = ("elastic",),
    *,
    preset: str | Preset = "default",
    where: str | None = None,
    relax: bool = True,
    born: str | Path | None = None,
    follow_modes: bool = False,
    store: str | Path | None = None,
    dispersion: str = NO_DISPERSION,
    slots: int | None = None,
    device: str = CPU,
    allow_mixed_devices: bool = False,
    scheduler: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> xr.Dataset:
    """Compute properties of the crystals of a dataset.

    Crystals are first relaxed as tightly as the preset requires. The result is a scores dataset with one row per chosen
    structure, which also holds the columns of the source, so that `select` and `report` can use both. A graph store of
    the relaxed structures, with the same rows, is written beside it (see `screening.dataset.paths.graphs_path`). A
    structure whose properties could not be computed has a `status` and a `status_note` that give the reason.

    An interrupted run resumes when `compute_properties` is called again with the same arguments.

    Example:
        >>> from equiscreen.screening import compute_properties
        >>> found = compute_properties("relaxed.zarr", "model.onnx", "p.zarr", ["eos"], limit=2, scheduler="threads")
        >>> found["eos_volumes"].dims, found["bulk_modulus_eos"].attrs["units"]
        (('structure', 'eos_point'), 'GPa')

    Args:
        source: Path or URL of a dataset of `relax`, `hull` or `select`, or of a graph store; or a folder that holds
            such a dataset.
        model: ONNX file made by `export_onnx`, with energy, forces and stress.
        out: Scores dataset to write: a path, or a URL, in which case the run works in the current folder.
        what: Names of the properties: elastic, eos, phonons, kappa.
        preset: Protocol of the computation: the name of a preset, or one of your own; see `properties.presets`.
        where: Filter expression on the columns of the source; see `selection.filter_expression`.
        relax: Whether to relax the structures first.
        born: Born charges and dielectric tensors for phonons: a file in phonopy's format BORN for a single crystal, or
            a folder with a file ``ID/BORN`` or ``ID.BORN`` for each.
        follow_modes: Whether to displace crystals with imaginary modes along the softest one and relax them. The
            structures of lower energy are written to a graph store of their own (``P.followed.graphs.zarr``).
        store: Graph store of the source, if it was moved.
        dispersion: Dispersion correction that is added to the model: ``none``, ``d3`` or ``d3-atm``; see
            `export.runtime.dispersion`.
        slots: Neighbour slots per batch; None chooses them: 2,048 on the CPU, by memory on a GPU.
        device: Device that evaluates the model; see `export.runtime.providers.providers`.
        allow_mixed_devices: Accept workers, and parts of earlier runs, with other kinds of devices or instruction sets;
            results then differ by rounding (`export.runtime.model_workers`).
        scheduler: Dask cluster to work on; see `pipeline.runs.cluster.connect`.
        limit: Use only the first `limit` structures that meet the filter.
        overwrite: Replace existing outputs.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.

    Returns:
        The opened dataset.

    Raises:
        StoreError: The source cannot be read, no structure meets the filter, or the source changed during the run.
        SourceError: The source is a file of structures.
        ModelFileError: The model cannot be used, or lacks energy, forces or stress.
        DeviceError: The device does not exist here, or on a worker.
        OutputExistsError: An output exists, or another run is writing it.
        ConfigError: A property, the preset, the filter or the limit is invalid, a library that a property needs is not
            installed, or the dispersion correction cannot be added to the model; or the Born charges of a structure are
            missing or do not fit it.
    """
    begin = time.monotonic()
    options = RunOptions(
        scheduler=scheduler,
        limit=limit,
        overwrite=overwrite,
        progress=progress,
        device=device,
        slots=slots,
        gpus=local_gpus(device, scheduler),
        allow_mixed_devices=allow_mixed_devices,
    )
    plan = _Plan(
        Candidates.of(source, where, limit, store),
        model,
        out,
        what,
        chosen_preset(preset, what, born=born is not None, follow_modes=follow_modes),
        options,
        where=where,
        relax=relax,
        born=born,
        dispersion=dispersion,
    )
    writer = StoreWriter(PROPERTIES, out, plan.identity, options, inputs=plan.candidates.inputs(), files=[model])
    if writer.resume_publication() is not None:
        return open_scores(out)
    with writer.run(plan.size * (2 if plan.has_finish else 1)) as run:
        with run.staging.discarded_if_new():
            plan.check_free(overwrite=overwrite)
        manifests = plan.make_parts(run)
        graphs_hash = plan.relaxed_graphs.write(run, manifests)
        followed_hash = plan.write_followed(run, manifests)
        finished = plan.finish_parts(run, manifests)
        parts = run.staging.parts if finished is manifests else _finished_folder(run)
        digests = run.concatenate(plan.specs, finished, parts=parts)
        attrs = plan.attrs(graphs_hash, followed_hash, manifests, finished, time.monotonic() - begin)
        attrs[COMPUTED_ON] = computed_on(manifests)
        run.publish(digests, attrs, publish_others=lambda: plan.publish_graphs(run))
    return open_scores(out)


class _Plan:
    """The plan of one run: its inputs, outputs and protocol, and the division of its work into parts.

    Args:
        candidates: The structures.
        model: Path of the model file.
        out: Dataset to write.
        what: Names of the properties.
        preset: The preset.
        options: Options of the run.
        where: Filter that the structures were chosen with.
        relax: Whether to relax the structures first.
        born: File or folder of Born charges.
        dispersion: Name of the dispersion correction.

    Raises:
        ConfigError: A property is unknown, a library is not installed, Born charges are missing or do not fit, or the
            dispersion correction cannot be added to the model.
        ModelFileError: The model cannot be used, or lacks energy, forces or stress.
    """

    def __init__(
        self,
        candidates: Candidates,
        model: str | Path,
        out: str | Path,
        what: Sequence[str],
        preset: Preset,
        options: RunOptions,
        *,
        where: str | None,
        relax: bool,
        born: str | Path | None,
        dispersion: str,
    ) -> None:
        self.candidates, self.model, self.options, self.out = candidates, model, options, str(out)
        symprec = preset.relaxation.symprec
        self.born_path = born
        self.born = () if born is None else born_charges(BornFiles.at(born), candidates, symprec)
        self.record = {**preset.record(what), "relax": relax, "where": where}
        if born is not None:
            self.record["born_sha256"] = content_hash(self.born)
        self.potential = potential_for(model)
        self.dispersion = Dispersion.of(dispersion, {str(model): self.potential.metadata})
        corrected = with_dispersion(self.potential, self.dispersion)
        self.protocol = Protocol.of(preset, what, corrected, relax=relax)
        own = (*base_arrays(preset.relaxation), *property_arrays(self.protocol.properties))
        self.columns = candidates.columns({spec.name for spec in own})
        self.specs: tuple[ArraySpec, ...] = (*own, *self.columns, *table_arrays(self.protocol.properties))
        self.graph_columns = carried_columns(candidates.graphs, ())
        self.spans = cut(expected_work(candidates, self.protocol), PART_EDGES, PART_STRUCTURES)
        self.identity = {
            "schema": SCORES_SCHEMA,
            "kind": PROPERTIES,
            "inputs": [store.store_hash for store in candidates.inputs()],
            "rows": hashlib.sha256(candidates.rows.tobytes()).hexdigest(),
            "model_sha256": self.potential.sha256,
            "dispersion": recorded(self.dispersion),
            "limit": options.limit,
            "slots": options.chosen_slots,
            "device": device_kind(options.device),
            "settings": self.record,
            "parts": hashlib.sha256(repr(self.spans).encode()).hexdigest(),
            "equiscreen": version("equiscreen"),
        }
        self.relaxed_graphs = RelaxedGraphs(
            self.out, candidates.graphs, self.graph_columns, self.identity, options.limit
        )
        self.followed_graphs = RelaxedGraphs(
            self.out, candidates.graphs, FOLLOWED_COLUMNS, self.identity, options.limit, "followed"
        )

    @property
    def size(self) -> int:
        """Number of structures."""
        return len(self.candidates.rows)

    @property
    def has_finish(self) -> bool:
        """Whether a property has a last step in a task of its own."""
        return any(one.has_finish for one in self.protocol.properties)

    @property
    def follows_modes(self) -> bool:
        """Whether imaginary modes are followed."""
        return any(isinstance(one, Phonons) and one.follow is not None for one in self.protocol.properties)

    def check_free(self, *, overwrite: bool) -> None:
        """Check that the graph store would not replace an input, or the graph store of another run.

        Raises:
            OutputExistsError: The graph store exists and may not be overwritten, or the run reads it.
        """
        paths = [str(one.path).removeprefix("file://") for one in self.candidates.inputs()]
        inputs = [Path(path) for path in (*paths, str(self.model)) if "://" not in path]
        self.relaxed_graphs.check_free(inputs, overwrite=overwrite, beside=[self.followed_graphs.target])

    def make_parts(self, run: StoreRun) -> list[PartManifest]:
        """Compute the properties of the parts that earlier runs did not finish."""
        from ...export.runtime.model_workers import ModelWorkers  # noqa: PLC0415 - imports distributed, 0.7 s
        from .worker import PropertyTask, property_part  # noqa: PLC0415 - imports distributed, 0.7 s

        workers = ModelWorkers.of(run, {self.potential.sha256: self.model})
        graphs, place = self.relaxed_graphs.parts(run.staging), self.candidates.place()
        followed = self.followed_graphs.parts(run.staging) if self.follows_modes else None
        tasks = (
            PropertyTask(
                number,
                begin,
                end,
                tuple(self.candidates.rows[start:stop].tolist()),
                place,
                tuple(spec.name for spec in self.columns),
                self.graph_columns,
                workers.names[0],
                self.dispersion,
                self.protocol,
                run.staging.parts,
                graphs,
                followed,
                tuple(self.born[start:stop]),
            )
            for number, (start, stop) in enumerate(self.spans)
            for begin, end in run.missing(number, stop - start)
        )
        policy: FailurePolicy[PropertyTask] = FailurePolicy(PropertyTask.split, PropertyTask.skipped)
        further = {} if followed is None else {"followed": followed}
        bound = workers.bound(property_part)
        return run.make_parts(bound, tasks, policy, workers.resource, graphs=graphs, **further)

    def write_followed(self, run: StoreRun, manifests: Sequence[PartManifest]) -> str | None:
        """Write the graph store of the structures that imaginary modes lead to.

        Args:
            run: The run in progress.
            manifests: Manifests of the parts of the dataset.

        Returns:
            Hash of the store; None if there is no such structure.
        """
        if not self.follows_modes:
            return None
        # A part that was divided because its worker died may have left structures.
        valid = {manifest.key for manifest in manifests}
        found = [one for one in committed(self.followed_graphs.parts(run.staging)) if one.key in valid]
        return self.followed_graphs.write(run, found) if found else None

    def publish_graphs(self, run: StoreRun) -> None:
        """Move the graph stores to their final paths."""
        self.relaxed_graphs.publish(run.staging)
        self.followed_graphs.publish(run.staging)

    def finish_parts(self, run: StoreRun, manifests: Sequence[PartManifest]) -> Sequence[PartManifest]:
        """Do the last, long step of properties that have one, in a task for each material.

        Args:
            run: The run in progress.
            manifests: Manifests of the parts that hold all other results.

        Returns:
            The manifests of parts with the results of one material each; `manifests` if no property has such a step.
        """
        if not self.has_finish:
            return manifests
        from .finishing import FinishTask, finish_part  # noqa: PLC0415 - only some properties need it

        folder = _finished_folder(run)
        folder.mkdir(exist_ok=True)
        done = {manifest.number: manifest for manifest in committed(folder)}
        run.bar.resume(len(done))
        sources = [(manifest.key, row) for manifest in manifests for row in range(manifest.counts["read"])]
        tasks = (
            FinishTask(
                number,
                source,
                row,
                self.protocol.properties,
                self.specs,
                self.protocol.relaxation.symprec,
                run.staging.parts,
                self.relaxed_graphs.parts(run.staging),
                folder,
            )
            for number, (source, row) in enumerate(sources)
            if number not in done
        )
        if run.sends_parts:
            tasks = (task.carried() for task in tasks)
        policy = FailurePolicy(FinishTask.split, FinishTask.skipped)
        for manifest in run.run_tasks(finish_part, tasks, policy, {FOLDER: folder}):
            done[manifest.number] = manifest
            run.bar.advance(1)
        return [done[number] for number in range(len(sources))]

    def attrs(
        self,
        graphs_hash: str,
        followed_hash: str | None,
        manifests: Sequence[PartManifest],
        finished: Sequence[PartManifest],
        seconds: float,
    ) -> dict[str, Any]:
        """Return the root attributes of the dataset.

        Args:
            graphs_hash: Hash of the graph store of the relaxed structures.
            followed_hash: Hash of the graph store of the structures that imaginary modes lead to; None without one.
            manifests: Manifests of all parts, including those of earlier runs.
            finished: Manifests of the parts with the final results.
            seconds: Wall time of this run, seconds.
        """
        options = {"slots": self.options.chosen_slots, "limit": self.options.limit, "device": self.options.device}
        counts = np.sum([manifest.notes["status"] for manifest in finished], axis=0)
        source = self.candidates.graphs if self.candidates.scores is None else self.candidates.scores
        inherited = {} if self.candidates.scores is None else self.candidates.scores.attrs
        extra: dict[str, Any] = {name: inherited[name] for name in ("hull",) if name in inherited}
        if followed_hash is not None:
            path = recorded_path(self.followed_graphs.path, self.out)
            extra["followed_graphs"] = {"path": path, "store_hash": followed_hash}
        if self.born_path is not None:
            extra["born_charges"] = recorded_path(self.born_path, self.out)
        return {
            **extra,
            "coordinates": " ".join(COORDINATES),
            "schema": SCORES_SCHEMA,
            "kind": PROPERTIES,
            "graph_store": {"path": recorded_path(graphs_path(self.out), self.out), "store_hash": graphs_hash},
            "properties_of": {
                "path": recorded_path(source.path, self.out),
                "store_hash": self.candidates.inputs()[-1].store_hash,
                "left_out": self.candidates.left_out,
            },
            "model": provenance_with(model_provenance(self.model, self.potential), self.dispersion),
            "software": {name: version(name) for name in ("equiscreen", "onnxruntime", "numpy", "moyopy")},
            "settings": {**options, **self.record},
            "status_counts": dict(zip(PROPERTY_STATUSES, counts.tolist(), strict=True)),
            "timing": _timing(manifests, [] if finished is manifests else finished, self.size, seconds),
        }


def chosen_preset(preset: str | Preset, what: Sequence[str], *, born: bool, follow_modes: bool) -> Preset:
    """Return the preset, given by name or as such, whose phonons use Born charges and follow modes if this is wanted.

    Raises:
        ConfigError: The preset is unknown, or there are settings of phonons that are not computed.
    """
    chosen = preset if isinstance(preset, Preset) else preset_named(preset)
    for name, given in (("--born", born), ("--follow-modes", follow_modes)):
        if given and Phonons.name not in what:
            raise ConfigError(f"{name} needs phonons; add phonons to --what")
    if not (born or follow_modes):
        return chosen
    relaxation = replace(chosen.relaxation, fix_symmetry=False) if follow_modes else None
    return chosen.altered(Phonons.name, nac=born, follow=relaxation)


def born_charges(files: BornFiles, candidates: Candidates, symprec: float) -> list[BornCharges | None]:
    """Return the Born charges of all chosen structures.

    Raises:
        ConfigError: A structure has no charges, or a file does not fit its structure.
    """
    place, rows = candidates.place(), candidates.rows
    ids = list(place.graph_columns((), rows)["structure_id"])
    structures: list[Structure] = []
    for start in range(0, len(rows), PART_STRUCTURES):  # not the edges of all structures at once
        block = place.block(rows[start : start + PART_STRUCTURES])
        structures += [block.structure(row) for row in range(len(block))]
    return files.charges(ids, structures, symprec)


def expected_work(candidates: Candidates, protocol: Protocol) -> NDArray[np.int64]:
    """Return the expected number of edges in all evaluations of each structure: int64[n]."""
    graphs, rows = candidates.graphs, candidates.rows
    n_atoms, n_edges = graphs.n_atoms[rows].astype(np.int64), graphs.n_edges[rows].astype(np.int64)
    sizes, places = np.unique(n_atoms, return_inverse=True)
    atoms = [
        _RELAXATION * size + sum(one.workload(size).atoms for one in protocol.properties) for size in sizes.tolist()
    ]
    found: NDArray[np.int64] = np.array(atoms, dtype=np.int64)[places] * n_edges // np.maximum(n_atoms, 1)
    return found


def _finished_folder(run: StoreRun) -> Path:
    """Return the folder of the parts that hold the last step of one material each."""
    return run.staging.work / "finished"


def _timing(
    manifests: Sequence[PartManifest], finished: Sequence[PartManifest], size: int, seconds: float
) -> dict[str, Any]:
    """Return the cost of a run.

    Args:
        manifests: Manifests of all parts, including those of earlier runs.
        finished: Manifests of the last steps, if there are any.
        size: Number of structures.
        seconds: Wall time of this run, seconds.
    """
    cells, last = (sum(one.notes["cpu_seconds"] for one in some) for some in (manifests, finished))
    return {
        "seconds": round(seconds, 3),
        "structures_per_second": round(size / seconds, 4),
        "core_hours": round((cells + last) / _SECONDS_PER_HOUR, 5),
        "core_hours_of_last_steps": round(last / _SECONDS_PER_HOUR, 5),
        "evaluations": sum(manifest.notes["evaluations"] for manifest in manifests),
    }


def potential_for(model: str | Path) -> OnnxPotential:
    """Load the model, and check that it has what properties need.

    Raises:
        ModelFileError: The model cannot be used, or lacks energy, forces or stress.
    """
    potential = OnnxPotential.load(model, threads=1)
    check_gradients(potential, model, "properties need")
    return potential


def summary(found: xr.Dataset, path: str | Path) -> str:
    """Return a summary of a finished run: one line, and a warning if nothing was computed.

    Args:
        found: The dataset.
        path: Path of the dataset.
    """
    timing, counts = found.attrs["timing"], found.attrs["status_counts"]
    left_out = found.attrs["properties_of"]["left_out"]
    told = f"; {left_out:,} left out by --where or --limit" if left_out else ""
    followed = _followed(found, path)
    settings, size = found.attrs["settings"], found.sizes[STRUCTURE]
    properties = settings["properties"]
    computed = ["ok", "symmetry_changed"]
    # The phonons of a crystal with imaginary modes are a result, unlike its conductivity.
    if Phonons.name in properties:
        computed.append("imaginary_modes")
    # Crystals that are used as they are have this status if their forces are large.
    if not settings["relax"]:
        computed.append("not_relaxed")
    warning = (
        ""
        if any(counts[status] for status in computed)
        else "\nwarning: no structure is ok; `status` and `status_note` give the reasons"
    )
    return (
        f"{redact_urls(str(path))}: {', '.join(properties)} of {size:,} structures ({listed(counts)}){told}; "
        f"{timing['evaluations'] / max(1, size):.0f} evaluations per structure; "
        f"{timing['seconds']:.1f} s without start-up, {timing['core_hours']:.4f} core-hours; the relaxed structures "
        f"are in {redact_urls(graphs_path(path))}{followed}{warning}"
    )


def _followed(found: xr.Dataset, path: str | Path) -> str:
    """Return the note on the structures that imaginary modes lead to; empty if modes were not followed."""
    if "followed_status" not in found:
        return ""
    counts = np.bincount(found["followed_status"].values, minlength=len(FOLLOWED_STATUSES)).tolist()
    words = dict(zip(FOLLOWED_STATUSES, counts, strict=True))
    del words["not_followed"]
    if not sum(words.values()):
        return "; no imaginary mode to follow"
    store = redact_urls(graphs_path(f"{str(path).rstrip('/').removesuffix('.zarr')}.followed"))
    where = f"; the structures of lower energy are in {store}" if "followed_graphs" in found.attrs else ""
    return f"; imaginary modes followed: {listed(words)}{where}"
