"""Relaxing every structure of a graph store with an exported model, on Dask workers."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xarray as xr

from ...export.runtime.onnx_potential import DEFAULT_SLOTS, OnnxPotential, check_cutoff, model_provenance
from ...export.runtime.providers import CPU, providers
from ...pipeline.errors import ConfigError, EquiscreenError, ModelFileError, OutputExistsError, StoreError
from ...pipeline.featurization.report import SOFTWARE
from ...pipeline.graphs.offsets import offsets_of
from ...pipeline.runs.cluster import IN_PROCESS, connect, dashboard
from ...pipeline.runs.parts import PartManifest
from ...pipeline.runs.progress import ProgressReport
from ...pipeline.runs.staging import Staging, make_parts, resume_publication, staged_run
from ...pipeline.sources.discovery import inputs_digest
from ...pipeline.store.compaction import Compaction, compact, finish_store
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.row_sources import PartRows, absolute
from ...pipeline.store.schema import ATOM, EDGE, GRAPH_SCHEMA, STRUCTURE, TEXT, ArraySpec, Dedup
from ...pipeline.store.tables import DUPLICATE_SCHEMA, DUPLICATES_FILE, FAILURE_SCHEMA, FAILURES_FILE
from ..dataset.paths import graphs_path
from ..dataset.scores import COORDINATES, SCORES_SCHEMA, open_scores
from ..scoring.parts import column_names, cut, listed
from .batched import OK, RELAX_STATUSES, RelaxSettings
from .output import relaxed_arrays, relaxed_graph_arrays

# A part ends at whichever comes first; a killed worker loses at most one. With 7net-0 some five seconds of one core.
PART_EDGES = 5_000
PART_STRUCTURES = 256
SAMPLE = 8


def relax(
    store: str | Path,
    model: str | Path,
    out: str | Path,
    settings: RelaxSettings | None = None,
    *,
    slots: int = DEFAULT_SLOTS,
    device: str = CPU,
    scheduler: str | None = None,
    limit: int | None = None,
    budget: float | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Relax every structure of a graph store.

    The result is a scores dataset with a row for each structure, and a graph store of the relaxed structures beside it
    (see `filescreen.graphs_path`), row for row the same, with energies, forces and stresses as labels. A structure that
    could not be relaxed has a `status` that says why, and stands in the graph store as it was given.

    A run that was killed, or whose budget was spent, is taken up where it was by calling it again with the same
    arguments.

    Example:
        >>> relaxed = relax("candidates.zarr", "model.onnx", "relaxed.zarr")  # doctest: +SKIP
        >>> GraphStore("relaxed.graphs.zarr").block(0, 1).structure(0).to_ase()  # doctest: +SKIP

    Args:
        store: Graph store.
        model: ONNX file made by `export_onnx`, with forces and stress.
        out: Scores dataset to write.
        settings: How structures are relaxed; None takes the defaults.
        slots: Neighbour slots evaluated at once.
        device: What workers compute with, see `devices.providers`.
        scheduler: See `pipeline.cluster.connect`.
        limit: Relax only the first structures.
        budget: Seconds after which no more parts are begun.
        overwrite: Replace existing outputs.
        progress: Show progress on standard error.

    Returns:
        The scores, opened; `relaxed_rows.relaxed_arrays` lists their variables.

    Raises:
        StoreError: The store cannot be read, or nothing in it could be relaxed.
        ModelFileError: The model cannot be used, has no forces or stress, or looks further than the store's graphs.
        DeviceError: No such device here, or on a worker.
        OutputExistsError: An output exists, or is being written by another run.
        EquiscreenError: The budget is spent.
    """
    from ...export.runtime.dask_plugin import ModelPlugin  # noqa: PLC0415 - imports distributed, which takes 0.7 s

    begin = time.monotonic()
    chosen = settings or RelaxSettings()
    run = _Run(GraphStore(store), OnnxPotential.load(model, threads=1), model, out, chosen, limit)
    if scheduler in (None, IN_PROCESS):
        providers(device)  # workers elsewhere have other devices
    if resume_publication(out, run.identity) is not None:
        return open_scores(out)
    inputs = [Path(path) for path in (run.graphs.path, model) if "://" not in str(path)]
    with staged_run(out, run.identity, inputs, overwrite=overwrite) as staging:
        run.check_free(overwrite=overwrite)
        with connect(scheduler) as client, ProgressReport("relax", run.size, enabled=progress) as bar:
            bar.note(f"Dask dashboard: {dashboard(client)}")
            client.register_plugin(ModelPlugin(Path(model).resolve(), run.potential.sha256, slots, device))
            manifests = run.make_parts(client, staging, bar, None if budget is None else begin + budget)
            run.check_all_done(manifests, budget)
            counts = np.sum([manifest.notes["status"] for manifest in manifests], axis=0)
            statuses = dict(zip(RELAX_STATUSES, counts.tolist(), strict=True))
            if counts[OK] == 0:
                staging.discard()
                raise StoreError(f"{store}: not one of {run.size} structures could be relaxed: {listed(statuses)}")
            graphs_hash = run.write_graphs(client, staging, manifests)
            digests = compact(client, run.scores_compaction(staging, manifests))
        seconds, cpu_seconds = time.monotonic() - begin, sum(manifest.notes["cpu_seconds"] for manifest in manifests)
        attrs = {
            "coordinates": " ".join((*COORDINATES, *run.columns)),
            "schema": SCORES_SCHEMA,
            "kind": "relaxed",
            "graph_store": {"path": run.graphs_out, "store_hash": graphs_hash},
            "relaxed_from": {"path": str(run.graphs.path), "store_hash": run.graphs.store_hash},
            "model": model_provenance(model, run.potential),
            "software": {name: version(name) for name in ("equiscreen", "onnxruntime", "numpy")},
            "settings": {"slots": slots, "limit": limit, "device": device, **asdict(chosen)},
            "status_counts": statuses,
            "timing": {
                "seconds": round(seconds, 3),
                "structures_per_second": round(run.size / seconds, 2),
                "core_hours": round(cpu_seconds / 3600, 5),
                "evaluations": sum(manifest.notes["steps"] for manifest in manifests),
            },
        }
        finish_store(staging.store, digests, attrs)
        if chosen.trajectory:
            run.publish_trajectories(staging)
        staging.publish({})
    return open_scores(out)


class _Run:
    """What one relaxation works on.

    Args:
        graphs: The store.
        potential: The model.
        model: Its file.
        out: Scores dataset to write.
        settings: Of the relaxation.
        limit: Relax only the first structures.

    Raises:
        ConfigError: A limit below 1.
        ModelFileError: The model has no forces or stress, or looks further than the graphs.
    """

    def __init__(
        self,
        graphs: GraphStore,
        potential: OnnxPotential,
        model: str | Path,
        out: str | Path,
        settings: RelaxSettings,
        limit: int | None,
    ) -> None:
        self.graphs, self.potential, self.settings, self.limit = graphs, potential, settings, limit
        check_cutoff(graphs, potential, model)
        _check_outputs(potential, model)
        self.size = len(graphs) if limit is None else min(limit, len(graphs))
        if self.size < 1:
            raise ConfigError("a limit below one structure")
        self.out, self.graphs_out = str(out), graphs_path(out)
        self.trajectories_out = Path(self.graphs_out.removesuffix(".graphs.zarr") + ".trajectories")
        if "://" in self.out:
            raise ConfigError(f"{out}: a relaxation writes to a path; copy the two stores from there")
        self.spans = cut(graphs.n_edges[: self.size], PART_EDGES, PART_STRUCTURES)
        self.arrays = relaxed_arrays(settings)
        taken = {spec.name for spec in self.arrays}
        self.columns = tuple(name for name in column_names(graphs) if name not in taken)
        self.identity = {
            "schema": SCORES_SCHEMA,
            "kind": "relaxed",
            "store_hash": graphs.store_hash,
            "model_sha256": potential.sha256,
            "limit": limit,
            "settings": asdict(settings),
            "parts": hashlib.sha256(repr(self.spans).encode()).hexdigest(),
            "equiscreen": version("equiscreen"),
        }

    def check_free(self, *, overwrite: bool) -> None:
        """Refuse a graph store that stands where that of the relaxed structures goes, unless this run has made it.

        Raises:
            OutputExistsError: One is there.
        """
        for path in (Path(self.graphs_out), self.trajectories_out):
            if path.exists() and not overwrite and not self._is_mine(path):
                raise OutputExistsError(f"{path}: exists; choose another --out, or say --overwrite")

    def _is_mine(self, path: Path) -> bool:
        """Whether this run put it there before it was killed."""
        if path == self.trajectories_out:
            return self._is_mine(Path(self.graphs_out))
        try:
            found: str = GraphStore(path).attrs.get("relaxation", "")
        except StoreError:
            return False
        return found == self._digest()

    def _digest(self) -> str:
        return hashlib.sha256(repr(sorted(self.identity.items())).encode()).hexdigest()

    def make_parts(
        self, client: Any, staging: Staging, bar: ProgressReport, deadline: float | None
    ) -> list[PartManifest]:
        """Relax what is not done yet."""
        from .worker import RelaxTask, relax_part  # noqa: PLC0415 - imports distributed

        folders = [staging.work / name for name in ("graph_parts", "trajectories")]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        done = staging.manifests()
        tasks = (
            RelaxTask(
                number,
                *span,
                absolute(self.graphs.path),
                self.columns,
                self.potential.sha256,
                self.settings,
                staging.parts,
                *folders,
            )
            for number, span in enumerate(self.spans)
        )
        waiting = (task for task in tasks if task.key not in done)
        return make_parts(client, staging, relax_part, _until(deadline, waiting), bar)

    def check_all_done(self, manifests: Sequence[PartManifest], budget: float | None) -> None:
        """Stop here if the budget was spent before all was done.

        Raises:
            EquiscreenError: It was.
        """
        done = sum(manifest.counts["read"] for manifest in manifests)
        if done < self.size:
            raise EquiscreenError(
                f"{self.out}: {done:,} of {self.size:,} structures are relaxed, and the budget of {budget:,.0f} s is "
                "spent; say the same again to go on"
            )

    def _compaction(
        self, store: Path, parts: Path, manifests: Sequence[PartManifest], specs: tuple[ArraySpec, ...]
    ) -> Compaction:
        """All rows of all parts, one after the other."""
        dims = {spec.dims[0] for spec in specs}
        rows = {dim: offsets_of([manifest.counts[dim] for manifest in manifests]) for dim in (STRUCTURE, ATOM, EDGE)}
        return Compaction(
            store=store,
            specs=specs,
            sources=tuple(PartRows(parts, manifest.key, {}) for manifest in manifests),
            source_rows={dim: rows[dim] for dim in dims},
            keep=None,
            status=None,
            structure_offsets=rows[STRUCTURE],
        )

    def scores_compaction(self, staging: Staging, manifests: Sequence[PartManifest]) -> Compaction:
        """Of the scores dataset."""
        columns = tuple(ArraySpec(name, (STRUCTURE,), TEXT) for name in self.columns)
        return self._compaction(staging.store, staging.parts, manifests, (*self.arrays, *columns))

    def write_graphs(self, client: Any, staging: Staging, manifests: Sequence[PartManifest]) -> str:
        """Write the graph store and put it in its place; it stands there before the scores do.

        Returns:
            Its hash.
        """
        place = Path(self.graphs_out)
        if place.exists() and self._is_mine(place):
            return GraphStore(place).store_hash
        scratch = staging.work / "graphs"
        if scratch.exists():
            shutil.rmtree(scratch)
        specs = relaxed_graph_arrays(self.columns)
        digests = compact(client, self._compaction(scratch, staging.work / "graph_parts", manifests, specs))
        for file, schema in ((FAILURES_FILE, FAILURE_SCHEMA), (DUPLICATES_FILE, DUPLICATE_SCHEMA)):
            pq.write_table(schema.empty_table(), scratch / file)
        inputs = [(str(self.graphs.path), self.size, self.graphs.store_hash)]
        attrs = {
            "schema": GRAPH_SCHEMA,
            "cutoff": self.graphs.cutoff,
            "cutoff_units": "angstrom",
            "recipe": {"dedup": Dedup.EXACT.value, "limit": self.limit},
            "relaxed_from": {"path": str(self.graphs.path), "store_hash": self.graphs.store_hash},
            "relaxation": self._digest(),
            "inputs_sha256": inputs_digest(inputs),
            "inputs": inputs,
            "software": {name: version(name) for name in SOFTWARE},
            "counts": {"read": self.size, "stored": self.size, "failed": 0, "duplicate": 0},
        }
        found = finish_store(scratch, digests, attrs)
        if place.exists():
            shutil.rmtree(place)
        scratch.rename(place)
        return found

    def publish_trajectories(self, staging: Staging) -> None:
        """Put the folder of trajectories in its place."""
        made = staging.work / "trajectories"
        if made.exists():
            if self.trajectories_out.exists():
                shutil.rmtree(self.trajectories_out)
            made.rename(self.trajectories_out)


def _until(deadline: float | None, tasks: Iterable[Any]) -> Iterator[Any]:
    """Tasks, up to a time of the monotonic clock."""
    for task in tasks:
        if deadline is not None and time.monotonic() >= deadline:
            return
        yield task


def _check_outputs(potential: OnnxPotential, model: str | Path) -> None:
    absent = {"energy", "forces", "stress"} - {spec.name for spec in potential.outputs}
    if absent:
        raise ModelFileError(
            f"{model}: a relaxation needs {', '.join(sorted(absent))}, which this file leaves out; export it with "
            "--outputs energy,forces,stress"
        )


def summary(relaxed: xr.Dataset, path: str | Path) -> str:
    """One line on a finished relaxation."""
    timing = relaxed.attrs["timing"]
    steps = timing["evaluations"] / max(1, relaxed.sizes[STRUCTURE])
    return (
        f"{path}: {relaxed.sizes[STRUCTURE]:,} structures ({listed(relaxed.attrs['status_counts'])}), {steps:.1f} "
        f"evaluations of each; {timing['seconds']:.1f} s, {timing['structures_per_second']:,.2f} structures/s, "
        f"{timing['core_hours']:.4f} core-hours; the relaxed structures are in {graphs_path(path)}"
    )


def estimate(
    store: str | Path, model: str | Path, settings: RelaxSettings | None = None, limit: int | None = None
) -> str:
    """Relax some structures in this process and scale up to the store, by edges.

    Args:
        store: As for `relax`, like all others.
        model: ONNX file.
        settings: Of the relaxation.
        limit: Relax only the first structures.

    Raises:
        StoreError: As for `relax`.
        ModelFileError: As for `relax`.
    """
    from .batched import relax_structures  # noqa: PLC0415 - beside the other work of this function

    graphs, potential = GraphStore(store), OnnxPotential.load(model, threads=1)
    check_cutoff(graphs, potential, model)
    _check_outputs(potential, model)
    size = len(graphs) if limit is None else min(limit, len(graphs))
    rows = np.unique(np.linspace(0, size - 1, SAMPLE).astype(int)).tolist()
    sample = [(row, graphs.block(row, row + 1, labels=False).structure(0)) for row in rows]
    begin = time.monotonic()
    steps = sum(found.n_steps for _, found in relax_structures(sample, potential, settings))
    seconds = time.monotonic() - begin
    edges = int(graphs.n_edges[rows].sum())
    total = seconds * float(graphs.n_edges[:size].sum(dtype=np.int64)) / max(1, edges)
    return (
        f"{size:,} structures: about {total:,.0f} s of work for one core, {steps / len(rows):.0f} evaluations of each "
        f"({len(rows)} of them were tried)"
    )
