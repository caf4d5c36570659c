"""Structures to a graph store: read, validate, find neighbours, hash, write; every structure accounted for."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import LabelError, SourceError, StoreError
from ..graphs.neighbor_list import MAX_EDGES, MIN_DISTANCE
from ..labels.mapping import LabelMapping
from ..readers.records import ReadOptions
from ..runs.cluster import connect, dashboard
from ..runs.parts import PartManifest
from ..runs.progress import ProgressReport
from ..runs.staging import Staging, make_parts, resume_publication, staged_run, whole_parts
from ..runs.tasks import FailurePolicy
from ..sources.discovery import OPTIMADE_PREFIX, find_files, inputs_digest, inputs_of
from ..sources.files import SourceFile
from ..sources.formats import Format
from ..store.graph_store import GraphStore
from ..store.schema import GRAPH_SCHEMA, STRUCTURE, Dedup, graph_schema
from ..structures.structure import MAX_ATOMS
from .assembly import assemble, bytes_of, described
from .failures import failures, totals
from .partitions import Plan
from .preflight import check_fields_exist
from .report import LISTED_INPUTS, SOFTWARE, FeaturizeReport
from .task import ID_FIELDS, FeaturizeSettings, FeaturizeTask, featurize_partition

DEFAULT_CUTOFF = 5.0
MAX_CUTOFF = 100.0


def featurize(
    sources: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    cutoff: float | None = None,
    labels: LabelMapping | None = None,
    options: ReadOptions | None = None,
    id_field: str | None = None,
    dedup: Dedup | str = Dedup.EXACT,
    max_atoms: int = MAX_ATOMS,
    max_edges: int = MAX_EDGES,
    scheduler: str | None = None,
    limit: int | None = None,
    append: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> FeaturizeReport:
    """Turn structure files into a store of periodic neighbour graphs.

    A run that was killed is taken up where it was by calling it again with the same arguments. Structures that cannot
    become graphs are rows of ``failures.parquet`` in the store, repeated ones of ``duplicates.parquet``.

    Args:
        sources: Files, folders, globs and URLs (see `sources.find_files`) of CIF, POSCAR, CSV, parquet, extended XYZ,
            JSON, JSON lines, ASE databases, and zip and tar archives of such files; ``optimade:URL`` asks a server.
        out: The store to write: a path, or the URL of an object store; then the work goes on in the current folder.
        cutoff: Of the neighbour graph, angstrom; 5 if not said, and that of the store where one is appended to.
        labels: Where labels stand in the records. Energy, forces and stress of what ASE reads are taken as it finds
            them unless something else is said; in other formats nothing is guessed.
        options: How files are read.
        id_field: Field of a record that names its structure.
        dedup: ``exact`` drops structures that are equal in cell, coordinates and order; ``crystal`` those that are the
            same crystal in any cell, origin, order and orientation.
        max_atoms: Larger structures are failures.
        max_edges: Structures with more edges are failures.
        scheduler: See `cluster.connect`.
        limit: Read only so many records.
        append: Add to the store that is there.
        overwrite: Replace an existing store.
        progress: Show progress on standard error.

    Raises:
        SourceError: No such file, or none of its structures could be stored.
        LabelError: A mapped label is nowhere in the data, or a name is taken.
        OutputExistsError: The output exists, or is being written by another run.
        StoreError: The store to append to cannot be read or has another cutoff.
    """
    begin = time.monotonic()
    named = [str(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]
    options = options or ReadOptions()
    live = [name for name in named if name.startswith(OPTIMADE_PREFIX)]
    kept = [name for name in named if name not in live]
    files = find_files(kept, options.format) if kept or not live else []
    mapping = (labels or LabelMapping()).with_ase_defaults()
    mapping.check_units()
    graph_schema(mapping)  # refuses names that are taken
    reach = DEFAULT_CUTOFF if cutoff is None else float(cutoff)
    if not MIN_DISTANCE < reach < MAX_CUTOFF:
        raise SourceError(f"a cutoff of {reach} angstrom; it has to be between {MIN_DISTANCE} and {MAX_CUTOFF}")
    settings = FeaturizeSettings(reach, mapping, options, id_field, max_atoms, max_edges, Dedup(dedup))
    identity = {
        **_recipe(settings, limit),
        "inputs": inputs_digest([*inputs_of(files), *((name, 0, "live") for name in live)]),
        "append": append,
        "equiscreen": version("equiscreen"),
    }
    finished = resume_publication(out, identity)
    if finished is not None:
        return FeaturizeReport(**finished)
    base: list[GraphStore] = []
    if append:
        base = _stores_to_extend(out, cutoff)
        settings = replace(settings, cutoff=base[0].cutoff)
        identity["base"] = [base[0].store_hash]
    local = [Path(file.path) for file in files if file.local]
    with (
        staged_run(out, identity, local, overwrite=overwrite, extend=append) as staging,
        connect(scheduler) as client,
    ):
        files = [*files, *(_download(name, staging, limit, progress=progress) for name in live)]
        report = _run(client, staging, files, settings, base, limit, progress=progress)
        report = replace(report, seconds=time.monotonic() - begin)
        staging.publish(asdict(report))
    return replace(report, seconds=time.monotonic() - begin)


def _run(
    client: Any,
    staging: Staging,
    files: Sequence[SourceFile],
    settings: FeaturizeSettings,
    base: Sequence[GraphStore],
    limit: int | None,
    *,
    progress: bool,
) -> FeaturizeReport:
    """All of a run but its last step, after which the store has its name."""
    with staging.discarded_if_new():
        check_fields_exist(client, files, settings)
    with ProgressReport("featurize", 0, enabled=progress) as bar:
        bar.note(f"Dask dashboard: {dashboard(client)}")
        plan, manifests = _featurize_all(client, staging, files, settings, limit, bar)
        problem = _nothing_stored(staging, manifests) or _label_not_found(settings.mapping, manifests)
        if problem is not None:
            staging.discard()
            raise problem
        bar.note("writing the store")
    mapping = settings.mapping.only({name for manifest in manifests for name in manifest.notes["labels"]})
    attrs = _root_attrs(replace(settings, mapping=mapping), inputs_of(files), base, limit)
    counts = assemble(client, staging, manifests, base, graph_schema(mapping), settings.dedup, attrs, append=bool(base))
    new, reasons = totals(manifests)
    new["duplicate"] = counts["duplicate"] - sum(store.attrs["counts"]["duplicate"] for store in base)
    return FeaturizeReport(
        path=str(staging.out),
        read=new["read"],
        stored=new["read"] - new["failed"] - new["duplicate"],
        failed=new["failed"],
        duplicate=new["duplicate"],
        reasons=reasons,
        seconds=0.0,
        bytes_on_disk=bytes_of(staging.store),
        in_store=counts["stored"],
        aside=tuple(plan.aside),
    )


def _featurize_all(
    client: Any,
    staging: Staging,
    files: Sequence[SourceFile],
    settings: FeaturizeSettings,
    limit: int | None,
    bar: ProgressReport,
) -> tuple[Plan, list[PartManifest]]:
    """Make the parts of all partitions that an earlier run has not made."""
    done: dict[int, list[PartManifest]] = {}
    for manifest in staging.manifests().values():
        done.setdefault(manifest.number, []).append(manifest)
    plan = Plan(
        files,
        staging.spool,
        limit,
        _wanted_columns(settings),
        is_done=lambda number, count: not _missing(done.get(number, ()), count),
    )

    def tasks() -> Iterator[FeaturizeTask]:
        for partition in plan:
            bar.expect(plan.expected())
            for begin, end in _missing(done.get(partition.number, ()), partition.end):
                yield FeaturizeTask(replace(partition, begin=begin, end=end), settings, staging.parts)

    failure_policy = FailurePolicy(FeaturizeTask.halves, lambda task: replace(task, skip=True))
    manifests = make_parts(client, staging, featurize_partition, tasks(), bar, failure_policy)
    return plan, manifests


def _missing(manifests: Sequence[PartManifest], count: int) -> list[tuple[int, int]]:
    """The items of a partition of `count` that no part holds."""
    gaps, reached = [], 0
    for manifest in whole_parts(manifests):
        if manifest.begin > reached:
            gaps.append((reached, manifest.begin))
        reached = manifest.end
    return [*gaps, (reached, count)] if reached < count else gaps


def _stores_to_extend(out: str | Path, cutoff: float | None) -> list[GraphStore]:
    store = GraphStore(out)
    if cutoff is not None and cutoff != store.cutoff:
        raise StoreError(f"{out}: its graphs end at {store.cutoff} angstrom; append without --cutoff, or with that one")
    return [store]


def _download(source: str, staging: Staging, limit: int | None, *, progress: bool) -> SourceFile:
    """Bring the structures of an OPTIMADE server to this machine."""
    from ..sources.optimade_client import fetch  # noqa: PLC0415 - only those who ask a server need it

    url = source.removeprefix(OPTIMADE_PREFIX)
    path = staging.work / f"optimade-{hashlib.sha256(url.encode()).hexdigest()[:16]}.jsonl"
    if not path.exists():
        with ProgressReport(f"download {url}", limit or 0, enabled=progress) as bar:
            fetch(url, path, limit=limit, progress=bar.advance)
    (file,) = find_files([path])
    return replace(file, name=source, format=Format.JSONL)


def _wanted_columns(settings: FeaturizeSettings) -> frozenset[str]:
    """Columns of a table that a run makes use of."""
    paths = [rule.path for rules in settings.mapping.labels.values() for rule in rules]
    paths += [key for rules in settings.mapping.labels.values() for rule in rules for key in rule.when]
    paths += settings.mapping.columns
    paths += [settings.id_field] if settings.id_field else ID_FIELDS
    paths += [settings.options.structure_field] if settings.options.structure_field else []
    return frozenset(paths) | {path.split(".")[0] for path in paths}


def _label_not_found(mapping: LabelMapping, manifests: Sequence[PartManifest]) -> LabelError | None:
    found = {name for manifest in manifests for name in manifest.notes["labels"]}
    for name, rules in mapping.labels.items():
        if name not in found and not all(rule.optional for rule in rules):
            return LabelError(f"label {name!r}: not one structure has it")
    return None


def _recipe(settings: FeaturizeSettings, limit: int | None) -> dict[str, Any]:
    return {
        "schema": GRAPH_SCHEMA,
        "cutoff": settings.cutoff,
        "min_distance": MIN_DISTANCE,
        "labels": settings.mapping.model_dump(mode="json"),
        "options": asdict(settings.options),
        "id_field": settings.id_field,
        "max_atoms": settings.max_atoms,
        "max_edges": settings.max_edges,
        "dedup": settings.dedup,
        "limit": limit,
    }


def _root_attrs(
    settings: FeaturizeSettings,
    inputs: Sequence[tuple[str, int, str]],
    base: Sequence[GraphStore],
    limit: int | None,
) -> dict[str, Any]:
    recipe = _recipe(settings, limit)
    attrs = {
        "schema": recipe.pop("schema"),
        "cutoff": recipe.pop("cutoff"),
        "cutoff_units": "angstrom",
        "recipe": recipe,
        "inputs_sha256": inputs_digest(inputs),
        "inputs": [list(item) for item in inputs[:LISTED_INPUTS]],
        "software": {name: version(name) for name in SOFTWARE},
    }
    if base:
        attrs["appended_to"] = [described(store) for store in base]
    return attrs


def _nothing_stored(staging: Staging, manifests: Sequence[PartManifest]) -> SourceError | None:
    if any(manifest.counts[STRUCTURE] for manifest in manifests):
        return None
    for table in failures(staging, manifests):
        for row in table.slice(0, 1).to_pylist():
            return SourceError(
                f"{row['source']}: not one structure could be stored; record {row['source_index']}: {row['reason']}"
            )
    return SourceError(f"{staging.out}: the sources hold no structures")
