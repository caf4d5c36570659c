"""Screening: score every structure of a graph store with exported models, on Dask workers."""

from __future__ import annotations

import hashlib
import math
import resource
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...export.runtime.dispersion import Dispersion, provenance_with, recorded, with_dispersion
from ...export.runtime.ensemble import Ensemble, Models, paths_of
from ...export.runtime.onnx_potential import check_cutoff
from ...export.runtime.providers import CPU, device_kind, local_gpus
from ...pipeline.energy_schemes import NO_DISPERSION
from ...pipeline.errors import ConfigError, StoreError
from ...pipeline.provenance import recorded_path, unrecorded_folders, without_folder
from ...pipeline.redaction import redact_urls
from ...pipeline.runs.failure_policy import FailurePolicy
from ...pipeline.runs.options import RunOptions
from ...pipeline.runs.parts import COMPUTED_ON, PartManifest, computed_on
from ...pipeline.store.graph_store import GraphStore, check_unchanged, location
from ...pipeline.store.row_sources import absolute
from ...pipeline.store.schema import STRUCTURE, TEXT, ArraySpec
from ...pipeline.store.writer import InputStore, StoreRun, StoreWriter
from ..dataset.parts import carried_columns, cut, listed, structures_within
from ..dataset.scores import COORDINATES, EXTRAPOLATING, OK, SCORES_SCHEMA, STATUS_MEANINGS, open_scores, score_arrays
from ..plausibility import Plausibility
from .score import MAX_SCORED_EDGES, ScoreLimits, score_block

if TYPE_CHECKING:
    from .worker import CopyTask, ScreenTask

# A part ends at whichever limit comes first; a killed worker loses at most one part. In large screens, parts are up to
# four times as large, since each part takes about 30 ms in addition to its evaluation.
PART_EDGES = 250_000
PART_STRUCTURES = 4_096
LARGER, LARGE_SCREEN = 4, 64
ESTIMATE_STRUCTURES = 500


def screen(
    store: str | Path,
    model: Models,
    out: str | Path,
    *,
    slots: int | None = None,
    max_edges: int = MAX_SCORED_EDGES,
    min_distance: float | None = None,
    allow_extrapolation: bool = False,
    dispersion: str = NO_DISPERSION,
    device: str = CPU,
    allow_mixed_devices: bool = False,
    scheduler: str | None = None,
    limit: int | None = None,
    append: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    command: str | None = None,
) -> xr.Dataset:
    """Score every structure of a graph store.

    An interrupted run resumes when `screen` is called again with the same arguments. Structures that cannot be scored
    have NaN scores and a `status` that gives the reason. A batch that does not fit in memory is halved; a structure
    that does not fit on its own, or that kills its worker, counts as too large.

    Example:
        >>> from equiscreen.screening import screen
        >>> scores = screen("candidates.zarr", "model.onnx", "s.zarr", scheduler="threads")
        >>> (scores["status"] == 0).values.tolist()
        [True, True, True, True]

    Args:
        store: Path or URL of the graph store.
        model: ONNX file made by `export_onnx`; or several with the same energy scheme, which give the mean and standard
            deviation of every output, and the energy of every model (`energy_members`).
        out: Scores dataset to write: a path, or a URL, in which case the run works in the current folder.
        slots: Neighbour slots per batch; None chooses them: 2,048 on the CPU, by memory on a GPU.
        max_edges: Structures with more edges than this in the store are too large.
        min_distance: Shortest interatomic distance, angstrom; structures with closer atoms have scores and the status
            ``extrapolating``. None applies only the bounds of `screening.plausibility`.
        allow_extrapolation: Whether structures whose distances, forces or energies are implausible
            (`screening.plausibility`) count as ok; otherwise their status is ``extrapolating``.
        dispersion: Dispersion correction that is added to the model: ``none``, ``d3`` or ``d3-atm``; see
            `export.runtime.dispersion`.
        device: Device on which the model runs; see `export.runtime.providers.providers`.
        allow_mixed_devices: Accept workers, and parts of earlier runs, with other kinds of devices or instruction sets;
            results then differ by rounding (`export.runtime.model_workers`).
        scheduler: Dask cluster to work on; see `pipeline.runs.cluster.connect`.
        limit: Score only the first `limit` structures.
        append: Keep the rows of `out`, and score only the structures that were appended to the store since then
            (`featurize --append`), or that a limit had excluded.
        overwrite: Replace an existing dataset.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.
        command: Command line of the user, recorded in the attributes of the dataset.

    Returns:
        The opened scores; `screening.dataset.scores.score_arrays` lists their variables.

    Raises:
        StoreError: The store cannot be read, none of its structures could be scored, or it changed during the run; or
            the scores to append to come from other graphs, models or settings.
        ModelFileError: A model cannot be used, its cutoff exceeds the graphs' cutoff, or the models are incompatible.
        DeviceError: The device does not exist here, or on a worker.
        ConfigError: The limit is below 1, both `append` and `overwrite` are set, or the dispersion correction cannot be
            added to the model.
        OutputExistsError: The output exists, or another run is writing it.
    """
    options = RunOptions(
        scheduler=scheduler,
        limit=limit,
        overwrite=overwrite,
        progress=progress,
        device=device,
        slots=slots,
        allow_mixed_devices=allow_mixed_devices,
    )
    return screen_store(
        GraphStore(store),
        model,
        out,
        ScoreLimits(max_edges, min_distance, allow_extrapolation),
        options,
        dispersion=dispersion,
        append=append,
        command=command,
    )


def screen_store(
    graphs: GraphStore,
    models: Models,
    out: str | Path,
    limits: ScoreLimits,
    options: RunOptions,
    *,
    dispersion: str = NO_DISPERSION,
    append: bool = False,
    command: str | None = None,
) -> xr.Dataset:
    """Score every structure of an open graph store; arguments and errors as for `screen`."""
    begin = time.monotonic()
    plan = _ScreenPlan(graphs, models, limits, options, dispersion=dispersion, append=append)
    if append and options.overwrite:
        raise ConfigError("--append extends the existing scores and --overwrite replaces them; use only one of them")
    options = replace(options, gpus=local_gpus(options.device, options.scheduler))
    writer = StoreWriter(
        "screen", out, plan.identity, options, inputs=[InputStore.of(graphs)], files=plan.models, extend=append
    )
    if writer.resume_publication() is not None:
        return open_scores(out)
    if append:
        plan.extend(out)
        if plan.taken == plan.size:
            return open_scores(out)
    with writer.run(plan.size) as run:
        earlier = sum(manifest.counts["read"] for manifest in run.resumed if plan.is_scored(manifest))
        manifests = plan.make_parts(run)
        counts = np.sum([manifest.notes["status"] for manifest in manifests], axis=0)
        statuses = dict(zip(STATUS_MEANINGS, counts.tolist(), strict=True))
        if counts[OK] + counts[EXTRAPOLATING] == 0:
            run.staging.discard()
            raise StoreError(
                f"{graphs.path}: none of the {plan.size} structures could be scored ({listed(statuses)}); choose "
                "another model or, if the structures are too large, smaller cells"
            )
        digests = run.concatenate(plan.specs, manifests)
        timing = plan.timing(manifests, plan.size - plan.taken - earlier, time.monotonic() - begin)
        recorded = {} if command is None else {"command": command}
        plan.check_base_unchanged()
        found = {"status_counts": statuses, COMPUTED_ON: plan.computed_on(manifests), "timing": timing}
        run.publish(digests, {**plan.attrs(out), **recorded, **found})
    return open_scores(out)


class _ScreenPlan:
    """The plan of one screen: its inputs, its settings, and the division of its work into parts.

    Args:
        graphs: The graph store.
        models: Model files.
        limits: Limits on what is scored.
        options: Options of the run.
        dispersion: Name of the dispersion correction.
        append: Whether the run appends to an existing dataset.

    Raises:
        ConfigError: The limit is below 1, or the dispersion correction cannot be added to the models.
        ModelFileError: A model cannot be used, its cutoff exceeds the graphs' cutoff, or the models are incompatible.
    """

    def __init__(
        self,
        graphs: GraphStore,
        models: Models,
        limits: ScoreLimits,
        options: RunOptions,
        *,
        dispersion: str,
        append: bool,
    ) -> None:
        self.graphs, self.models, self.limits, self.options = graphs, paths_of(models), limits, options
        self.ensemble = _ensemble_for(graphs, self.models)
        self.dispersion = Dispersion.of(dispersion, self.ensemble.metadata)
        self.size = structures_within(graphs, options.limit)
        self.arrays = score_arrays(self.ensemble.outputs)
        self.columns = carried_columns(graphs, self.arrays)
        self.base: xr.Dataset | None = None
        self.base_path: Path | str = ""
        self.settings = {
            "slots": options.chosen_slots,
            "limit": options.limit,
            "device": options.device,
            **asdict(limits),
        }
        self.identity: dict[str, Any] = {
            "schema": SCORES_SCHEMA,
            "store_hash": graphs.store_hash,
            "model_sha256": self.ensemble.sha256,
            **self.settings,
            "dispersion": recorded(self.dispersion),
            "device": device_kind(options.device),
            "append": append,
            "equiscreen": version("equiscreen"),
        }
        self._divide()

    @property
    def specs(self) -> tuple[ArraySpec, ...]:
        """Definitions of the arrays of the dataset."""
        return (*self.arrays, *(ArraySpec(name, (STRUCTURE,), TEXT) for name in self.columns))

    @property
    def taken(self) -> int:
        """Number of rows that are kept from the existing dataset."""
        return 0 if self.base is None else self.base.sizes[STRUCTURE]

    def _divide(self) -> None:
        """Divide the rows to copy, and the structures to score, into parts."""
        old = [(start, min(start + PART_STRUCTURES, self.taken)) for start in range(0, self.taken, PART_STRUCTURES)]
        new = cut_screen(self.graphs.n_edges[self.taken : self.size])
        self.spans = [*old, *((self.taken + start, self.taken + stop) for start, stop in new)]
        digest = hashlib.sha256(repr(self.spans).encode()).hexdigest()
        self.identity["base"] = [digest, "" if self.base is None else self.base.attrs["store_hash"]]

    def extend(self, out: str | Path) -> None:
        """Keep the rows of an existing dataset.

        Raises:
            StoreError: The dataset is missing, or does not hold the first structures of this store, scored by these
                models with these settings.
        """
        base = open_scores(out)
        wrong = []
        known = _hashes(self.graphs.attrs, self.graphs.store_hash)
        if base.attrs["graph_store"]["store_hash"] not in known:
            wrong.append("different graphs")
        model = base.attrs.get("model", {})
        if model.get("sha256") != self.ensemble.sha256:
            wrong.append("different model")
        if model.get("dispersion") != recorded(self.dispersion):
            wrong.append("different dispersion")
        found = {name: value for name, value in base.attrs.get("settings", {}).items() if name != "limit"}
        if found != {name: value for name, value in self.settings.items() if name != "limit"}:
            wrong.append("different settings")
        if "kind" in base.attrs or "hull" in base.attrs or set(map(str, base.variables)) != self._names():
            wrong.append("different variables")
        if base.sizes[STRUCTURE] > self.size:
            wrong.append(f"{base.sizes[STRUCTURE]} rows, but only {self.size} structures")
        if wrong:
            raise StoreError(
                f"{out}: these scores cannot be appended to ({'; '.join(wrong)}); choose another --out, or use "
                "--overwrite instead of --append"
            )
        self.base, self.base_path = base, absolute(location(out))
        self._divide()

    def check_base_unchanged(self) -> None:
        """Check that the dataset whose rows are kept is still the one that was opened.

        Raises:
            StoreError: The dataset was replaced or removed.
        """
        if self.base is not None:
            check_unchanged(self.base_path, SCORES_SCHEMA, str(self.base.attrs["store_hash"]))

    def _names(self) -> set[str]:
        return {spec.name for spec in self.specs}

    def is_scored(self, manifest: PartManifest) -> bool:
        """Return whether the rows of a part are scored, rather than copied from an existing dataset."""
        return self.spans[manifest.number][0] >= self.taken

    def make_parts(self, run: StoreRun) -> list[PartManifest]:
        """Copy the rows that are kept and score the others, except for parts that earlier runs finished."""
        from ...export.runtime.model_workers import ModelWorkers  # noqa: PLC0415 - imports distributed, 0.7 s
        from .worker import screen_part  # noqa: PLC0415 - imports distributed, 0.7 s

        models = {member.sha256: path for path, member in zip(self.models, self.ensemble.members, strict=True)}
        earlier = () if self.base is None else self.base.attrs.get(COMPUTED_ON, ())
        workers = ModelWorkers.of(run, models, earlier)
        policy: FailurePolicy[CopyTask | ScreenTask] = FailurePolicy(
            lambda task: task.split(), lambda task: task.skipped()
        )
        return run.make_parts(workers.bound(screen_part), self._tasks(run, workers.names), policy, workers.resource)

    def _tasks(self, run: StoreRun, models: tuple[str, ...]) -> Iterator[CopyTask | ScreenTask]:
        """Yield the tasks of the parts that are missing."""
        from .worker import CopyTask, ScreenTask  # noqa: PLC0415 - imports distributed, 0.7 s

        plausibility = Plausibility.of(with_dispersion(self.ensemble, self.dispersion))
        for number, (start, stop) in enumerate(self.spans):
            missing = run.missing(number, stop - start)
            if stop <= self.taken and self.base is not None:
                names, base_hash = tuple(sorted(self._names())), str(self.base.attrs["store_hash"])
                if missing:
                    yield CopyTask(number, start, stop, self.base_path, base_hash, names, run.staging.parts)
                continue
            for begin, end in missing:
                yield ScreenTask(
                    number,
                    begin,
                    end,
                    start,
                    stop,
                    absolute(self.graphs.path),
                    self.graphs.store_hash,
                    self.columns,
                    models,
                    self.dispersion,
                    self.limits,
                    plausibility,
                    run.staging.parts,
                )

    def attrs(self, out: str | Path) -> dict[str, Any]:
        """Return the root attributes of the dataset at `out`: the data, models and settings behind the scores."""
        graphs = {"path": recorded_path(self.graphs.path, out), "store_hash": self.graphs.store_hash}
        attrs = {
            "coordinates": " ".join((*COORDINATES, *self.columns)),
            "schema": SCORES_SCHEMA,
            "graph_store": graphs,
            "model": provenance_with(self.ensemble.provenance(), self.dispersion),
            "software": {name: version(name) for name in ("equiscreen", "onnxruntime", "numpy")},
            "settings": self.settings,
        }
        if self.base is not None:
            attrs["appended_to"] = {"store_hash": self.base.attrs["store_hash"], "structures": self.taken}
        return attrs

    def computed_on(self, manifests: Sequence[PartManifest]) -> list[str]:
        """Return what all rows were computed on, including those that are kept from an existing dataset."""
        kept = () if self.base is None else self.base.attrs.get(COMPUTED_ON, ())
        return sorted({*kept, *computed_on(manifests)})

    def timing(self, manifests: Sequence[PartManifest], scored: int, seconds: float) -> dict[str, Any]:
        """Return the cost of the screen.

        Args:
            manifests: Manifests of all parts, including those of earlier runs.
            scored: Number of structures that this run scored.
            seconds: Wall time of this run, seconds.
        """
        worked, evaluating = (sum(manifest.notes[name] for manifest in manifests) for name in ("seconds", "evaluating"))
        before = 0.0 if self.base is None else float(self.base.attrs["timing"].get("core_hours", 0.0))
        return {
            "seconds": round(seconds, 3),
            "structures": scored,
            "structures_per_second": round(scored / seconds, 1),
            "core_hours": round(before + worked / 3600, 6),
            "input_stall": round(1 - evaluating / worked, 4) if worked else 0.0,
        }


def cut_screen(n_edges: NDArray[np.int32]) -> list[tuple[int, int]]:
    """Divide the structures of a screen into parts.

    Args:
        n_edges: int32[n_structures], edges of each structure.

    Returns:
        (start, stop) of each part.
    """
    total = int(n_edges.sum(dtype=np.int64))
    larger = min(LARGER, max(1, total // (LARGE_SCREEN * PART_EDGES)))
    return cut(n_edges, larger * PART_EDGES, larger * PART_STRUCTURES)


def _hashes(attrs: Mapping[str, Any], own: str) -> set[str]:
    """Return the hashes of a graph store: the current one, and those before each append."""
    found = {own}
    for earlier in attrs.get("appended_to", ()):
        found |= _hashes(earlier, str(earlier["store_hash"]))
    return found


def _ensemble_for(graphs: GraphStore, models: Models) -> Ensemble:
    """Load the models as an ensemble.

    Raises:
        ModelFileError: A model cannot be used, its cutoff exceeds the graphs' cutoff, or the models are incompatible.
    """
    ensemble = Ensemble.load(models, threads=1)
    for name, member in zip(ensemble.names, ensemble.members, strict=True):
        check_cutoff(graphs, member, name)
    return ensemble


def command_line(words: Sequence[str]) -> str:
    """Return the user's command, without the secrets of URLs and without local folders.

    The output path is omitted, because it is the path of the dataset itself and equal runs should write equal
    attributes. An absolute path is recorded relative to the working folder if it lies in that folder, otherwise by its
    name alone.

    Args:
        words: Arguments of the command line, without the program.
    """
    kept = [
        word
        for word, before in zip(words, ("", *words[:-1]), strict=True)
        if "--out" not in (word, before) and not word.startswith("--out=")
    ]
    return shlex.join(["equiscreen", *(redact_urls(_without_folders(word)) for word in kept)])


def _without_folders(word: str) -> str:
    """Return an argument (``PATH``, ``--option`` or ``--option=PATH``) without the folder of its path."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    (folder,) = unrecorded_folders([value])
    return f"{option}{equals}{without_folder(value, folder)}"


def summary(scores: xr.Dataset, path: str | Path) -> str:
    """Return a summary of a finished screen, as one line of text.

    Args:
        scores: Scores dataset.
        path: Path or URL of the dataset.
    """
    timing = scores.attrs["timing"]
    return (
        f"{redact_urls(str(path))}: {scores.sizes[STRUCTURE]:,} structures ({listed(scores.attrs['status_counts'])}); "
        f"{timing['seconds']:.1f} s without start-up, {timing['structures_per_second']:,.0f} structures/s, "
        f"{timing['core_hours']:.3g} core-hours, input stall {timing['input_stall']:.1%}"
    )


@dataclass(frozen=True, slots=True)
class ScreenEstimate:
    """Estimated cost of a screen; as text, one line.

    Attributes:
        structures: Number of structures.
        seconds: Time on one core, s.
        bytes_on_disk: Maximum size of the scores without text columns.
        bytes_in_memory: Memory of one worker.
    """

    structures: int
    seconds: float
    bytes_on_disk: int
    bytes_in_memory: int

    def __str__(self) -> str:
        return (
            f"{self.structures:,} structures: about {self.seconds:,.0f} s on one core, at most "
            f"{self.bytes_on_disk / 1e6:,.1f} MB on disk (text columns not counted), "
            f"{self.bytes_in_memory / 1e6:,.0f} MB of memory per worker"
        )


def estimate(
    store: str | Path,
    model: Models,
    limit: int | None = None,
    *,
    dispersion: str = NO_DISPERSION,
    sample_of: int | None = None,
) -> ScreenEstimate:
    """Estimate the cost of a screen: score the first structures in this process and scale up by edges.

    Args:
        store: Path or URL of the graph store.
        model: ONNX file, or several.
        limit: Scale up to the first `limit` structures only.
        dispersion: Name of the dispersion correction, as for `screen`.
        sample_of: Number of structures to scale up to, if the store is a sample of them.

    Raises:
        ConfigError: The limit is below 1, or the dispersion correction cannot be added to the model.
        StoreError: The store cannot be read.
        ModelFileError: As for `screen`.
    """
    graphs = GraphStore(store)
    ensemble = _ensemble_for(graphs, model)
    potential = with_dispersion(ensemble, Dispersion.of(dispersion, ensemble.metadata))
    size = structures_within(graphs, limit)
    sample = min(size, ESTIMATE_STRUCTURES)
    begin = time.monotonic()
    score_block(graphs.block(0, sample, labels=False), potential)
    seconds = (time.monotonic() - begin) * graphs.n_edges[:size].sum() / max(1, int(graphs.n_edges[:sample].sum()))
    total = size if sample_of is None else sample_of
    seconds *= total / size
    arrays = score_arrays(potential.outputs)
    row = sum(np.dtype(spec.dtype).itemsize * math.prod(spec.shape(1)) for spec in arrays if spec.dtype != TEXT)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return ScreenEstimate(total, float(seconds), total * row, memory)
