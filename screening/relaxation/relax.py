"""Relaxation of every structure of a graph store with an exported model, on Dask workers."""

from __future__ import annotations

import hashlib
import re
import resource
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ...export.runtime.dispersion import Dispersion, provenance_with, recorded, with_dispersion
from ...export.runtime.onnx_potential import OnnxPotential, check_cutoff, check_gradients, model_provenance
from ...export.runtime.providers import CPU, device_kind, local_gpus
from ...pipeline.energy_schemes import NO_DISPERSION
from ...pipeline.errors import EquiscreenError, OutputExistsError
from ...pipeline.provenance import recorded_path
from ...pipeline.redaction import redact_urls
from ...pipeline.runs.failure_policy import FailurePolicy
from ...pipeline.runs.options import RunOptions
from ...pipeline.runs.parts import COMPUTED_ON, PartManifest, computed_on
from ...pipeline.runs.staging import Staging
from ...pipeline.runs.target import Target
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.row_sources import absolute
from ...pipeline.store.schema import ATOM, EDGE, STRUCTURE, TEXT, ArraySpec
from ...pipeline.store.writer import InputStore, StoreRun, StoreWriter
from ..dataset.parts import carried_columns, cut, listed, structures_within, uncompressed_bytes
from ..dataset.paths import graphs_path
from ..dataset.scores import COORDINATES, SCORES_SCHEMA, open_scores
from ..plausibility import Plausibility
from .batched import CELL_KEPT, RELAX_STATUSES, RelaxSettings, relax_structures
from .output import relaxed_arrays, relaxed_graph_arrays, trajectory_name
from .relaxed_graphs import RelaxedGraphs

RELAXED = "relaxed"
# Name of the folder of trajectories in the working folder of the run.
TRAJECTORIES = "trajectories"
# A part ends at whichever limit comes first. A killed worker loses at most one part: with 7net-0, about eight seconds
# of one core.
PART_EDGES = 5_000
PART_STRUCTURES = 256
_SECONDS_PER_HOUR = 3600
SAMPLE = 8


def relax(
    store: str | Path,
    model: str | Path,
    out: str | Path,
    settings: RelaxSettings | None = None,
    *,
    dispersion: str = NO_DISPERSION,
    slots: int | None = None,
    device: str = CPU,
    allow_mixed_devices: bool = False,
    scheduler: str | None = None,
    limit: int | None = None,
    budget: float | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> xr.Dataset:
    """Relax every structure of a graph store.

    The result is a scores dataset with one row per structure. A graph store of the relaxed structures, with the same
    rows and with energies, forces and stresses as labels, is written beside it (see
    `screening.dataset.paths.graphs_path`). A structure that could not be relaxed has a `status` that gives the reason,
    and keeps its input geometry in the graph store. A structure that kills its worker counts as too large.

    A run that was interrupted, or whose budget was spent, resumes when `relax` is called again with the same arguments.

    Example:
        >>> from equiscreen.pipeline import GraphStore
        >>> from equiscreen.screening import relax
        >>> relaxed = relax("candidates.zarr", "model.onnx", "r.zarr", scheduler="threads")
        >>> GraphStore("r.graphs.zarr").block(0, 1).structure(0).to_ase().symbols
        Symbols('Al')

    Args:
        store: Path or URL of the graph store.
        model: ONNX file made by `export_onnx`, with energy, forces and stress.
        out: Scores dataset to write: a path, or a URL, in which case the run works in the current folder.
        settings: Settings of the relaxation; None uses the defaults.
        dispersion: Dispersion correction that is added to the model: ``none``, ``d3`` or ``d3-atm``; see
            `export.runtime.dispersion`.
        slots: Neighbour slots per batch; None chooses them: 2,048 on the CPU, by memory on a GPU.
        device: Device on which the model runs; see `export.runtime.providers.providers`.
        allow_mixed_devices: Accept workers, and parts of earlier runs, with other kinds of devices or instruction sets;
            results then differ by rounding (`export.runtime.model_workers`).
        scheduler: Dask cluster to work on; see `pipeline.runs.cluster.connect`.
        limit: Relax only the first `limit` structures.
        budget: Hours after which no more parts are started; None sets no limit.
        overwrite: Replace existing outputs.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.

    Returns:
        The opened scores; `screening.relaxation.output.relaxed_arrays` lists their variables.

    Raises:
        StoreError: The store cannot be read, or it changed during the run.
        ModelFileError: The model cannot be used, lacks energy, forces or stress, or its cutoff exceeds the cutoff of
            the graphs.
        DeviceError: The device does not exist here, or on a worker.
        OutputExistsError: An output exists, or another run is writing it.
        ConfigError: The limit is below 1, or the dispersion correction cannot be added to the model.
        EquiscreenError: The budget was spent before all structures were relaxed.
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
    plan = _RelaxPlan(GraphStore(store), model, out, settings or RelaxSettings(), options, dispersion)
    inputs = [InputStore.of(plan.graphs)]
    writer = StoreWriter("relax", out, plan.identity, options, inputs=inputs, files=[model])
    if writer.resume_publication() is not None:
        return open_scores(out)
    with writer.run(plan.size) as run:
        with run.staging.discarded_if_new():
            plan.check_free(overwrite=overwrite)
        manifests = plan.make_parts(run, None if budget is None else begin + _SECONDS_PER_HOUR * budget)
        plan.check_all_done(manifests, budget)
        counts = np.sum([manifest.notes["status"] for manifest in manifests], axis=0)
        statuses = dict(zip(RELAX_STATUSES, counts.tolist(), strict=True))
        graphs_hash = plan.relaxed_graphs.write(run, manifests)
        digests = run.concatenate(plan.score_specs, manifests)
        timing = _timing(manifests, plan.size, time.monotonic() - begin)
        remarks: Counter[str] = sum((Counter(manifest.notes["remarks"]) for manifest in manifests), Counter())

        def publish_others() -> None:
            plan.relaxed_graphs.publish(run.staging)
            plan.publish_trajectories(run.staging, manifests)

        attrs = plan.attrs(graphs_hash, statuses, remarks, timing)
        run.publish(digests, {**attrs, COMPUTED_ON: computed_on(manifests)}, publish_others=publish_others)
    return open_scores(out)


class _RelaxPlan:
    """The plan of one relaxation: its inputs, outputs and settings, and the division of its work into parts.

    Args:
        graphs: The graph store.
        model: Path of the model file.
        out: Scores dataset to write.
        settings: Settings of the relaxation.
        options: Options of the run.
        dispersion: Name of the dispersion correction.

    Raises:
        ConfigError: The limit is below 1, or the dispersion correction cannot be added to the model.
        ModelFileError: The model cannot be used, lacks energy, forces or stress, or its cutoff exceeds the cutoff of
            the graphs.
    """

    def __init__(
        self,
        graphs: GraphStore,
        model: str | Path,
        out: str | Path,
        settings: RelaxSettings,
        options: RunOptions,
        dispersion: str,
    ) -> None:
        self.graphs, self.model, self.settings, self.options = graphs, model, settings, options
        self.potential = _potential_for(graphs, model)
        self.dispersion = Dispersion.of(dispersion, {str(model): self.potential.metadata})
        self.size = structures_within(graphs, options.limit)
        self.out = str(out)
        self.trajectories_out = Target.of(graphs_path(out).removesuffix(".graphs.zarr") + ".trajectories")
        self.spans = cut(graphs.n_edges[: self.size], PART_EDGES, PART_STRUCTURES)
        self.arrays = relaxed_arrays(settings)
        self.columns = carried_columns(graphs, self.arrays)
        self.identity = {
            "schema": SCORES_SCHEMA,
            "kind": RELAXED,
            "store_hash": graphs.store_hash,
            "model_sha256": self.potential.sha256,
            "dispersion": recorded(self.dispersion),
            "limit": options.limit,
            "slots": options.chosen_slots,
            "device": device_kind(options.device),
            "settings": asdict(settings),
            "parts": hashlib.sha256(repr(self.spans).encode()).hexdigest(),
            "equiscreen": version("equiscreen"),
        }
        self.relaxed_graphs = RelaxedGraphs(self.out, graphs, self.columns, self.identity, options.limit)

    @property
    def score_specs(self) -> tuple[ArraySpec, ...]:
        """Arrays of the scores dataset."""
        return (*self.arrays, *(ArraySpec(name, (STRUCTURE,), TEXT) for name in self.columns))

    def check_free(self, *, overwrite: bool) -> None:
        """Check that the outputs would not replace an input, or a graph store or trajectories of another run.

        Raises:
            OutputExistsError: An output exists and may not be overwritten, or the run reads it.
        """
        paths = [str(path).removeprefix("file://") for path in (self.graphs.path, self.model)]
        inputs = [Path(path) for path in paths if "://" not in path]
        self.relaxed_graphs.check_free(inputs, overwrite=overwrite, beside=[self.trajectories_out])
        if self.settings.trajectory and not _holds_trajectories(self.trajectories_out):
            raise OutputExistsError(
                f"{self.trajectories_out} already exists and holds other files, so it is not overwritten; choose "
                "another --out"
            )

    def make_parts(self, run: StoreRun, deadline: float | None) -> list[PartManifest]:
        """Relax the structures of the parts that earlier runs did not finish.

        Args:
            run: The run in progress.
            deadline: Reading of the monotonic clock after which no more parts are started, seconds; None sets no limit.
        """
        from ...export.runtime.model_workers import ModelWorkers  # noqa: PLC0415 - imports distributed, 0.7 s
        from .worker import RelaxTask, relax_part  # noqa: PLC0415 - imports distributed, 0.7 s

        workers = ModelWorkers.of(run, {self.potential.sha256: self.model})
        graphs, trajectories = self.relaxed_graphs.parts(run.staging), run.staging.work / TRAJECTORIES
        trajectories.mkdir(exist_ok=True)
        plausibility = Plausibility.of(with_dispersion(self.potential, self.dispersion))
        tasks = (
            RelaxTask(
                number,
                begin,
                end,
                start,
                stop,
                absolute(self.graphs.path),
                self.graphs.store_hash,
                self.columns,
                workers.names[0],
                self.dispersion,
                self.settings,
                plausibility,
                run.staging.parts,
                graphs,
                trajectories,
            )
            for number, (start, stop) in enumerate(self.spans)
            for begin, end in run.missing(number, stop - start)
        )
        # Retry a task alone before it is divided, since the trajectories of a divided task have other file names.
        policy: FailurePolicy[RelaxTask] = FailurePolicy(RelaxTask.split, RelaxTask.skipped, retry_alone=True)
        return run.make_parts(
            workers.bound(relax_part),
            _until(deadline, tasks),
            policy,
            workers.resource,
            graphs=graphs,
            trajectories=trajectories,
        )

    def check_all_done(self, manifests: Sequence[PartManifest], budget: float | None) -> None:
        """Check that all structures were relaxed before the budget was spent.

        Raises:
            EquiscreenError: Some structures have not been relaxed.
        """
        done = sum(manifest.counts["read"] for manifest in manifests)
        if done < self.size:
            raise EquiscreenError(
                f"{redact_urls(self.out)}: {done:,} of {self.size:,} structures are relaxed, and the budget of "
                f"{budget:g} h is spent; run the same command again to resume"
            )

    def publish_trajectories(self, staging: Staging, manifests: Sequence[PartManifest]) -> None:
        """Publish the folder of trajectories, if they are kept."""
        if not self.settings.trajectory:
            return
        made = staging.work / TRAJECTORIES
        sizes = [stop - start for start, stop in self.spans]
        wanted = {trajectory_name(manifest.key, sizes[manifest.number]) for manifest in manifests}
        for file in made.iterdir():
            if file.name not in wanted:  # left by a killed task; its structures are in another part
                file.unlink()
        place = self.trajectories_out.path
        if place is None:
            self.trajectories_out.upload_files(made)
            return
        if place.exists():
            if not any(made.iterdir()):
                return  # an earlier run published them and was killed before it published the scores
            shutil.rmtree(place)
        made.rename(place)

    def attrs(
        self, graphs_hash: str, statuses: Mapping[str, int], remarks: Mapping[str, int], timing: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the root attributes of the scores dataset.

        Args:
            graphs_hash: Hash of the graph store of the relaxed structures.
            statuses: Number of structures with each status.
            remarks: Number of structures with each remark on settings that had no effect.
            timing: Cost of the relaxation.
        """
        options = {"slots": self.options.chosen_slots, "limit": self.options.limit, "device": self.options.device}
        return {
            "coordinates": " ".join((*COORDINATES, *self.columns)),
            "schema": SCORES_SCHEMA,
            "kind": RELAXED,
            "graph_store": {"path": recorded_path(self.relaxed_graphs.path, self.out), "store_hash": graphs_hash},
            "relaxed_from": {
                "path": recorded_path(self.graphs.path, self.out),
                "store_hash": self.graphs.store_hash,
            },
            "model": provenance_with(model_provenance(self.model, self.potential), self.dispersion),
            "software": {name: version(name) for name in ("equiscreen", "onnxruntime", "numpy")},
            "settings": {**options, **asdict(self.settings)},
            "status_counts": dict(statuses),
            "remarks": dict(remarks),
            "timing": dict(timing),
        }


def _holds_trajectories(target: Target) -> bool:
    """Return whether a folder is missing or holds nothing but trajectories."""
    if target.path is not None and target.path.is_file():
        return False
    names = target.file_names()
    return all(re.fullmatch(r"(\.[0-9a-f]{32}|(\..*\.)?part-[0-9-]+)\.extxyz", name) for name in names)


def _timing(manifests: Sequence[PartManifest], size: int, seconds: float) -> dict[str, Any]:
    """Return the cost of a relaxation.

    Args:
        manifests: Manifests of all parts, including those of earlier runs.
        size: Number of structures.
        seconds: Wall time of this run, seconds.
    """
    cpu_seconds = sum(manifest.notes["cpu_seconds"] for manifest in manifests)
    return {
        "seconds": round(seconds, 3),
        "structures_per_second": round(size / seconds, 2),
        "core_hours": round(cpu_seconds / 3600, 5),
        "evaluations": sum(manifest.notes["steps"] for manifest in manifests),
    }


def _until(deadline: float | None, tasks: Iterable[Any]) -> Iterator[Any]:
    """Yield tasks until a deadline of the monotonic clock, in seconds."""
    for task in tasks:
        if deadline is not None and time.monotonic() >= deadline:
            return
        yield task


def _potential_for(graphs: GraphStore, model: str | Path) -> OnnxPotential:
    """Load the model, and check that it can relax the structures of a store.

    Raises:
        ModelFileError: The model cannot be used, lacks energy, forces or stress, or its cutoff exceeds the cutoff of
            the graphs.
    """
    potential = OnnxPotential.load(model, threads=1)
    check_cutoff(graphs, potential, model)
    check_gradients(potential, model, "a relaxation needs")
    return potential


def summary(relaxed: xr.Dataset, path: str | Path) -> str:
    """Return a summary of a finished relaxation: one line, a line per remark, and a warning if nothing was relaxed.

    Args:
        relaxed: Scores dataset of the relaxation.
        path: Path of the dataset.
    """
    timing, counts = relaxed.attrs["timing"], relaxed.attrs["status_counts"]
    steps = timing["evaluations"] / max(1, relaxed.sizes[STRUCTURE])
    told = "".join(
        f"\n{count:,} structures: {remark}{' (see --cell-axes)' if remark == CELL_KEPT else ''}"
        for remark, count in relaxed.attrs["remarks"].items()
    )
    warning = "" if counts["ok"] else "\nwarning: no structure was relaxed; `status` and `status_note` give the reasons"
    return (
        f"{redact_urls(str(path))}: {relaxed.sizes[STRUCTURE]:,} structures ({listed(counts)}), {steps:.1f} "
        f"evaluations per structure; {timing['seconds']:.1f} s without start-up, "
        f"{timing['structures_per_second']:,.2f} structures/s, {timing['core_hours']:.4f} core-hours; the relaxed "
        f"structures are in {redact_urls(graphs_path(path))}{told}{warning}"
    )


@dataclass(frozen=True, slots=True)
class RelaxEstimate:
    """Estimated cost of a relaxation; as text, one line.

    Attributes:
        structures: Number of structures.
        seconds: Time on one core, s.
        evaluations: Mean number of evaluations per structure.
        sample: Number of structures from which the estimate is extrapolated.
        bytes_on_disk: Maximum size of the outputs, without text columns.
        bytes_of_memory: Memory of a worker.
    """

    structures: int
    seconds: float
    evaluations: float
    sample: int
    bytes_on_disk: float
    bytes_of_memory: int

    def __str__(self) -> str:
        return (
            f"{self.structures:,} structures: about {self.seconds:,.0f} s on one core, {self.evaluations:.0f} "
            f"evaluations per structure (from a sample of {self.sample}), at most {self.bytes_on_disk / 1e6:,.1f} MB "
            f"on disk (text columns not counted), {self.bytes_of_memory / 1e6:,.0f} MB of memory per worker"
        )


def estimate(
    store: str | Path,
    model: str | Path,
    settings: RelaxSettings | None = None,
    limit: int | None = None,
    *,
    dispersion: str = NO_DISPERSION,
    sample_of: int | None = None,
) -> RelaxEstimate:
    """Estimate the cost of a relaxation: relax some structures in this process and scale up by edges.

    Args:
        store: Path or URL of the graph store.
        model: ONNX file.
        settings: Settings of the relaxation; None uses the defaults.
        limit: Scale up to the first `limit` structures only.
        dispersion: Name of the dispersion correction, as for `relax`.
        sample_of: Scale up to this many structures, of which the store is a sample.

    Raises:
        ConfigError: The limit is below 1, or the dispersion correction cannot be added to the model.
        StoreError: The store cannot be read.
        ModelFileError: As for `relax`.
    """
    graphs = GraphStore(store)
    network = _potential_for(graphs, model)
    potential = with_dispersion(network, Dispersion.of(dispersion, {str(model): network.metadata}))
    size = structures_within(graphs, limit)
    rows = np.unique(np.linspace(0, size - 1, SAMPLE).astype(int)).tolist()
    sample = [(row, graphs.block(row, row + 1, labels=False).structure(0)) for row in rows]
    begin = time.monotonic()
    steps = sum(found.n_steps for _, found in relax_structures(sample, potential, settings))
    seconds = time.monotonic() - begin
    edges = int(graphs.n_edges[rows].sum())
    total = seconds * float(graphs.n_edges[:size].sum(dtype=np.int64)) / max(1, edges)
    disk = _size_of_outputs(graphs, size, settings or RelaxSettings())
    if sample_of is not None:
        total, disk, size = total * sample_of / size, disk * sample_of / size, sample_of
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return RelaxEstimate(size, total, steps / len(rows), len(rows), disk, memory)


def _size_of_outputs(graphs: GraphStore, size: int, settings: RelaxSettings) -> float:
    """Return the uncompressed size of scores and graph store for the first structures, without text: bytes."""
    counts = {
        STRUCTURE: size,
        ATOM: int(graphs.column("n_atoms", 0, size).sum(dtype=np.int64)),
        EDGE: int(graphs.n_edges[:size].sum(dtype=np.int64)),
    }
    return uncompressed_bytes((*relaxed_arrays(settings), *relaxed_graph_arrays(())), counts)
