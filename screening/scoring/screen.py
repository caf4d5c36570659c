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

from ...export.runtime.ensemble import Ensemble, Models, paths_of
from ...export.runtime.onnx_potential import DEFAULT_SLOTS, check_cutoff
from ...export.runtime.providers import CPU, providers
from ...pipeline.errors import ConfigError, EquiscreenError, StoreError
from ...pipeline.graphs.offsets import offsets_of
from ...pipeline.runs.cluster import IN_PROCESS, connect, dashboard
from ...pipeline.runs.parts import PartKey, PartManifest
from ...pipeline.runs.progress import ProgressReport
from ...pipeline.runs.staging import Staging, make_parts, resume_publication, staged_run, whole_parts
from ...pipeline.runs.tasks import FailurePolicy
from ...pipeline.store.compaction import Compaction, compact, finish_store
from ...pipeline.store.graph_store import GraphStore, location
from ...pipeline.store.row_sources import PartRows, absolute
from ...pipeline.store.schema import STRUCTURE, TEXT, ArraySpec
from ..dataset.scores import COORDINATES, OK, SCORES_SCHEMA, STATUS_MEANINGS, open_scores, score_arrays
from .parts import column_names, cut, listed
from .score import MAX_SCORED_EDGES, ScoreLimits, score_block

if TYPE_CHECKING:
    from .worker import CopyTask, ScreenTask

# A part ends at whichever comes first; a killed worker loses at most one. Those of large screens are four times as
# large: each costs some 30 ms beside what it holds.
PART_EDGES = 250_000
PART_STRUCTURES = 4_096
LARGER, LARGE_SCREEN = 4, 64
ESTIMATE_STRUCTURES = 500


def screen(
    store: str | Path,
    model: Models,
    out: str | Path,
    *,
    slots: int = DEFAULT_SLOTS,
    max_edges: int = MAX_SCORED_EDGES,
    min_distance: float | None = None,
    device: str = CPU,
    scheduler: str | None = None,
    limit: int | None = None,
    append: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    command: str | None = None,
) -> xr.Dataset:
    """Score every structure of a graph store.

    A run that was killed is taken up where it was by calling it again with the same arguments. Structures that cannot
    be scored have a `status` that says why, and NaN scores. Where memory does not suffice for a batch, it is halved; a
    structure for which it does not suffice by itself, or of which a worker dies, is too large.

    Args:
        store: Graph store.
        model: ONNX file made by `export_onnx`, or several of one energy scheme, which give means, standard deviations
            and the energies of each (`energy_members`).
        out: Scores dataset to write: a path, or a URL; then the work goes on in the current folder.
        slots: Neighbour slots evaluated at once.
        max_edges: Structures with more edges in the store are too large.
        min_distance: Angstrom; structures with atoms closer than this have the status ``extrapolating`` beside their
            scores.
        device: What workers compute with, see `devices.providers`.
        scheduler: See `pipeline.cluster.connect`.
        limit: Score only the first structures.
        append: Take the rows over that `out` has, and score what the store has gained since (`featurize --append`), or
            what a limit had left out.
        overwrite: Replace an existing dataset.
        progress: Show progress on standard error.
        command: What the user said, for the dataset's attributes.

    Returns:
        The scores, opened; `scores.score_arrays` lists its variables.

    Raises:
        StoreError: The store cannot be read, nothing in it could be scored, or it has changed meanwhile; or scores of
            other graphs, models or settings are to be appended to.
        ModelFileError: A model cannot be used, looks further than the store's graphs, or does not go with the others.
        DeviceError: No such device here, or on a worker.
        OutputExistsError: The output exists, or is being written by another run.
    """
    begin = time.monotonic()
    settings = ScreenSettings(slots, ScoreLimits(max_edges, min_distance), device, limit)
    run = _Run(GraphStore(store), model, settings, append=append)
    if append and overwrite:
        raise ConfigError("append adds to the scores that are there and overwrite replaces them; say one of them")
    if scheduler in (None, IN_PROCESS):
        providers(device)  # workers elsewhere have other devices
    if resume_publication(out, run.identity) is not None:
        return open_scores(out)
    if append:
        run.extend(out)
        if run.taken == run.size:
            return open_scores(out)
    inputs = [Path(path) for path in (run.graphs.path, *run.models) if "://" not in str(path)]
    with staged_run(out, run.identity, inputs, overwrite=overwrite, extend=append) as staging:
        done = sum(manifest.counts["read"] for manifest in run.done(staging))
        with connect(scheduler) as client, ProgressReport("screen", run.size, enabled=progress) as bar:
            bar.note(f"Dask dashboard: {dashboard(client)}")
            manifests = run.make_parts(client, staging, bar)
            digests = compact(client, run.compaction(staging, manifests))
        counts = np.sum([manifest.notes["status"] for manifest in manifests], axis=0)
        statuses = dict(zip(STATUS_MEANINGS, counts.tolist(), strict=True))
        if counts[OK] == 0:
            staging.discard()
            raise StoreError(f"{store}: not one of {run.size} structures could be scored: {listed(statuses)}")
        _check_unchanged(run.graphs)
        timing = run.timing(manifests, run.size - run.taken - done, time.monotonic() - begin)
        said = {} if command is None else {"command": command}
        finish_store(staging.store, digests, {**run.attrs(), **said, "status_counts": statuses, "timing": timing})
        staging.publish({})
    return open_scores(out)


@dataclass(frozen=True, slots=True)
class ScreenSettings:
    """What scores depend on beside store and models.

    Attributes:
        slots: Neighbour slots evaluated at once.
        limits: On what is scored.
        device: What computes.
        limit: Only the first structures.
    """

    slots: int
    limits: ScoreLimits
    device: str
    limit: int | None

    def attrs(self) -> dict[str, Any]:
        """For the attributes of a dataset."""
        return {"slots": self.slots, "limit": self.limit, "device": self.device, **asdict(self.limits)}


class _Run:
    """What one screen works on.

    Args:
        graphs: The store.
        models: Model files.
        settings: What else scores depend on.
        append: Whether rows of the output are taken over.

    Raises:
        ConfigError: A limit below 1.
        ModelFileError: A model cannot be used.
    """

    def __init__(self, graphs: GraphStore, models: Models, settings: ScreenSettings, *, append: bool) -> None:
        self.graphs, self.models, self.settings = graphs, paths_of(models), settings
        self.ensemble = _ensemble_for(graphs, self.models)
        self.size = len(graphs) if settings.limit is None else min(settings.limit, len(graphs))
        if self.size < 1:
            raise ConfigError("a limit below one structure")
        self.arrays = score_arrays(self.ensemble.outputs)
        taken = {spec.name for spec in self.arrays}
        self.columns = tuple(name for name in column_names(graphs) if name not in taken)
        self.base: xr.Dataset | None = None
        self.base_path: Path | str = ""
        self.identity: dict[str, Any] = {
            "schema": SCORES_SCHEMA,
            "store_hash": graphs.store_hash,
            "model_sha256": self.ensemble.sha256,
            **settings.attrs(),
            "append": append,
            "equiscreen": version("equiscreen"),
        }
        self._cut()

    @property
    def taken(self) -> int:
        """Rows that are taken over."""
        return 0 if self.base is None else self.base.sizes[STRUCTURE]

    def _cut(self) -> None:
        """Divide what is taken over, and what is scored, into parts."""
        old = [(start, min(start + PART_STRUCTURES, self.taken)) for start in range(0, self.taken, PART_STRUCTURES)]
        new = cut_screen(self.graphs.n_edges[self.taken : self.size])
        self.spans = [*old, *((self.taken + start, self.taken + stop) for start, stop in new)]
        digest = hashlib.sha256(repr(self.spans).encode()).hexdigest()
        self.identity["base"] = [digest, "" if self.base is None else self.base.attrs["store_hash"]]

    def extend(self, out: str | Path) -> None:
        """Take over the rows of a dataset.

        Raises:
            StoreError: It is missing, or not of the first structures of this store, these models and settings.
        """
        base = open_scores(out)
        wrong = []
        known = _hashes(self.graphs.attrs, self.graphs.store_hash)
        if base.attrs["graph_store"]["store_hash"] not in known:
            wrong.append("they are of other graphs")
        if base.attrs.get("model", {}).get("sha256") != self.ensemble.sha256:
            wrong.append("another model")
        found = {name: value for name, value in base.attrs.get("settings", {}).items() if name != "limit"}
        if found != {name: value for name, value in self.settings.attrs().items() if name != "limit"}:
            wrong.append("other settings")
        if "kind" in base.attrs or "hull" in base.attrs or set(map(str, base.variables)) != self._names():
            wrong.append("other variables")
        if base.sizes[STRUCTURE] > self.size:
            wrong.append(f"{base.sizes[STRUCTURE]} rows for {self.size} structures")
        if wrong:
            raise StoreError(
                f"{out}: these scores cannot be appended to ({'; '.join(wrong)}); choose another --out, or say "
                "--overwrite in place of --append"
            )
        place = location(out)
        self.base, self.base_path = base, absolute(place)
        self._cut()

    def _names(self) -> set[str]:
        return {spec.name for spec in self.arrays} | set(self.columns)

    def done(self, staging: Staging) -> list[PartManifest]:
        """Parts of scores, not of copies, that an earlier run has made."""
        kept = whole_parts(staging.manifests().values())
        return [manifest for manifest in kept if self.spans[manifest.number][0] >= self.taken]

    def make_parts(self, client: Any, staging: Staging, bar: ProgressReport) -> list[PartManifest]:
        """Take rows over, and score the others, as far as it is not done yet."""
        from ...export.runtime.dask_plugin import ModelPlugin  # noqa: PLC0415 - imports distributed, 0.7 s
        from .worker import ScreenTask, screen_part  # noqa: PLC0415 - imports distributed, 0.7 s

        for path, member in zip(self.models, self.ensemble.members, strict=True):
            plugin = ModelPlugin(Path(path).resolve(), member.sha256, self.settings.slots, self.settings.device)
            client.register_plugin(plugin)

        def halves(task: CopyTask | ScreenTask) -> Sequence[CopyTask | ScreenTask]:
            return task.halves() if isinstance(task, ScreenTask) else ()

        return make_parts(client, staging, screen_part, self._tasks(staging), bar, FailurePolicy(halves, _skipped))

    def _tasks(self, staging: Staging) -> Iterator[CopyTask | ScreenTask]:
        from .worker import CopyTask, ScreenTask  # noqa: PLC0415 - imports distributed, 0.7 s

        done: dict[int, list[PartKey]] = {}
        for manifest in whole_parts(staging.manifests().values()):
            done.setdefault(manifest.number, []).append(manifest.key)
        models = tuple(member.sha256 for member in self.ensemble.members)
        for number, (start, stop) in enumerate(self.spans):
            gaps = _gaps(done.get(number, ()), stop - start)
            if stop <= self.taken and self.base is not None:
                names, base_hash = tuple(sorted(self._names())), str(self.base.attrs["store_hash"])
                if gaps:
                    yield CopyTask(number, start, stop, self.base_path, base_hash, names, staging.parts)
                continue
            for gap in gaps:
                yield ScreenTask(
                    number,
                    start,
                    stop,
                    *gap,
                    absolute(self.graphs.path),
                    self.graphs.store_hash,
                    self.columns,
                    models,
                    self.settings.limits,
                    staging.parts,
                )

    def compaction(self, staging: Staging, manifests: Sequence[PartManifest]) -> Compaction:
        """All rows of all parts, one after the other."""
        rows = offsets_of([manifest.counts["read"] for manifest in manifests])
        return Compaction(
            store=staging.store,
            specs=(*self.arrays, *(ArraySpec(name, (STRUCTURE,), TEXT) for name in self.columns)),
            sources=tuple(PartRows(staging.parts, manifest.key, {}) for manifest in manifests),
            source_rows={STRUCTURE: rows},
            keep=None,
            status=None,
            structure_offsets=rows,
        )

    def attrs(self) -> dict[str, Any]:
        """Which data and which models the scores come from."""
        graphs = {"path": str(self.graphs.path), "store_hash": self.graphs.store_hash}
        out = {
            "coordinates": " ".join((*COORDINATES, *self.columns)),
            "schema": SCORES_SCHEMA,
            "graph_store": graphs,
            "model": self.ensemble.provenance(),
            "software": {name: version(name) for name in ("equiscreen", "onnxruntime", "numpy")},
            "settings": self.settings.attrs(),
        }
        if self.base is not None:
            out["appended_to"] = {"store_hash": self.base.attrs["store_hash"], "structures": self.taken}
        return out

    def timing(self, manifests: Sequence[PartManifest], scored: int, seconds: float) -> dict[str, Any]:
        """What it took.

        Args:
            manifests: Of all parts, also of those that an earlier run has made.
            scored: Structures that this run has scored.
            seconds: Of this run.
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
    """The parts of a screen: (start, stop) of each.

    Args:
        n_edges: int32[n_structures].
    """
    total = int(n_edges.sum(dtype=np.int64))
    larger = min(LARGER, max(1, total // (LARGE_SCREEN * PART_EDGES)))
    return cut(n_edges, larger * PART_EDGES, larger * PART_STRUCTURES)


def _skipped(task: CopyTask | ScreenTask) -> CopyTask | ScreenTask:
    """The task without what cannot be done: a structure of which workers die is not evaluated.

    Raises:
        EquiscreenError: Workers die while they copy rows, of which nothing can be left out.
    """
    from .worker import CopyTask  # noqa: PLC0415 - imports distributed, 0.7 s

    if isinstance(task, CopyTask):
        raise EquiscreenError(f"{task.scores}: workers die while they read it, perhaps for lack of memory")
    return replace(task, skip=True)


def _gaps(done: Sequence[PartKey], count: int) -> list[tuple[int, int]]:
    """The structures of a part of `count` that are not in the pieces that are done, which are in order."""
    gaps, reached = [], 0
    for key in done:
        if key.begin > reached:
            gaps.append((reached, key.begin))
        reached = key.end
    return [*gaps, (reached, count)] if reached < count else gaps


def _hashes(attrs: Mapping[str, Any], own: str) -> set[str]:
    """Of a graph store as it is, and as it was before each time that it was appended to."""
    found = {own}
    for earlier in attrs.get("appended_to", ()):
        found |= _hashes(earlier, str(earlier["store_hash"]))
    return found


def _check_unchanged(graphs: GraphStore) -> None:
    """See at the end that the store is still the one that was read.

    Raises:
        StoreError: It is not.
    """
    if GraphStore(graphs.path).store_hash != graphs.store_hash:
        raise StoreError(f"{graphs.path}: has changed while it was screened; run the command again with --overwrite")


def _ensemble_for(graphs: GraphStore, models: Models) -> Ensemble:
    """The models, which look no further than the graphs.

    Raises:
        ModelFileError: They do, or cannot be used.
    """
    ensemble = Ensemble.load(models, threads=1)
    for name, member in zip(ensemble.names, ensemble.members, strict=True):
        check_cutoff(graphs, member, name)
    return ensemble


def command_line(words: Sequence[str]) -> str:
    """What the user said, but for the output, which is where the dataset stands: equal runs leave equal attributes.

    Args:
        words: Of the command line, without the program.
    """
    kept = [
        word
        for word, before in zip(words, ("", *words[:-1]), strict=True)
        if "--out" not in (word, before) and not word.startswith("--out=")
    ]
    return shlex.join(["equiscreen", *kept])


def summary(scores: xr.Dataset, path: str | Path) -> str:
    """One line on a finished screen."""
    timing = scores.attrs["timing"]
    return (
        f"{path}: {scores.sizes[STRUCTURE]:,} structures ({listed(scores.attrs['status_counts'])}); "
        f"{timing['seconds']:.1f} s, {timing['structures_per_second']:,.0f} structures/s, "
        f"{timing['core_hours']:.3g} core-hours, input stall {timing['input_stall']:.1%}"
    )


def estimate(store: str | Path, model: Models, limit: int | None = None, *, sample_of: int | None = None) -> str:
    """Score the first structures in this process and scale up to the store, by edges.

    Args:
        store: As for `screen`, like the model and the limit.
        model: ONNX file, or several.
        limit: Score only the first structures.
        sample_of: The store is a sample of so many structures, to which to scale up.

    Raises:
        StoreError: As for `screen`.
        ModelFileError: As for `screen`.
    """
    graphs = GraphStore(store)
    potential = _ensemble_for(graphs, model)
    size = len(graphs) if limit is None else min(limit, len(graphs))
    sample = min(size, ESTIMATE_STRUCTURES)
    begin = time.monotonic()
    score_block(graphs.block(0, sample, labels=False), potential)
    seconds = (time.monotonic() - begin) * graphs.n_edges[:size].sum() / max(1, graphs.n_edges[:sample].sum())
    total = size if sample_of is None else sample_of
    seconds *= total / size
    arrays = score_arrays(potential.outputs)
    row = sum(np.dtype(spec.dtype).itemsize * math.prod(spec.shape(1)) for spec in arrays if spec.dtype != TEXT)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (
        f"{total:,} structures: about {seconds:,.0f} s of work for one core, at most {total * row / 1e6:,.1f} MB on "
        f"disk besides names, {memory / 1e6:,.0f} MB of memory per worker"
    )
