"""Featurization: read and validate structures, find their neighbours, and write a graph store."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import EquiscreenError, LabelError, SourceError, StoreError
from ..graphs.neighbor_list import MAX_EDGES, MIN_DISTANCE
from ..labels.mapping import LabelMapping
from ..readers.records import ReadOptions
from ..runs.failure_policy import FailurePolicy
from ..runs.options import RunOptions
from ..runs.parts import PartManifest
from ..runs.progress import ProgressReport
from ..runs.staging import Staging
from ..sources.discovery import (
    OPTIMADE_PREFIX,
    Paths,
    find_files,
    inputs_digest,
    inputs_of,
    is_server,
    path_names,
    server_name,
)
from ..sources.files import SourceFile
from ..sources.formats import Format
from ..store.dedup import Dedup
from ..store.graph_store import GraphStore
from ..store.schema import GRAPH_SCHEMA, STRUCTURE, graph_schema
from ..store.writer import InputFile, StoreRun, StoreWriter
from ..structures.structure import MAX_ATOMS
from .assembly import assemble, bytes_of, described
from .failure_tables import failures, totals
from .partitions import Plan
from .preflight import check_fields_exist
from .report import LISTED_INPUTS, SOFTWARE, FeaturizeReport
from .task import ID_FIELDS, FeaturizeSettings, FeaturizeTask, featurize_partition

DEFAULT_CUTOFF = 5.0
MAX_CUTOFF = 100.0


def featurize(
    sources: Paths,
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
    progress: bool | None = None,
) -> FeaturizeReport:
    """Turn structure files into a store of periodic neighbour graphs.

    An interrupted run resumes when `featurize` is called again with the same arguments. Structures that cannot become
    graphs are listed in ``failures.parquet`` in the store, duplicates in ``duplicates.parquet``.

    Example:
        >>> from equiscreen.pipeline import featurize
        >>> report = featurize("crystals.extxyz", "crystals.zarr", cutoff=5.0, scheduler="threads")
        >>> report.read, report.stored, report.failed, report.duplicate
        (4, 4, 0, 0)

    Args:
        sources: Files, folders, globs and URLs (see `pipeline.sources.discovery.find_files`) that contain CIF, POSCAR,
            CSV, parquet, extended XYZ, VASP output, JSON, JSON lines or ASE databases. Zip and tar archives may hold
            all of these except parquet and ASE databases. In folders and archives, vasprun.xml and OUTCAR are skipped.
            ``optimade:URL`` queries a server.
        out: Store to write: a path, or the URL of an object store, in which case the run works in the current folder.
        cutoff: Cutoff of the neighbour graph, angstrom. Default: 5, or the cutoff of the store that is being extended.
        labels: Where to find labels in the records. By default, extended XYZ, ASE databases, vasprun.xml and OUTCAR
            give energy, forces and stress; other formats give no labels.
        options: How files are read.
        id_field: Field that holds the id of a structure; None tries `pipeline.featurization.task.ID_FIELDS`.
        dedup: ``exact`` drops a structure if an earlier one has the same cell and the same sites in the same order,
            unless the structure has labels that differ from the labels of every earlier copy; ``crystal`` drops a
            structure if an earlier one is the same crystal, regardless of the choice of cell, origin, site order,
            orientation and labels.
        max_atoms: Structures with more atoms than this are recorded as failures.
        max_edges: Structures with more edges than this are recorded as failures.
        scheduler: Dask cluster to work on; see `pipeline.runs.cluster.connect`.
        limit: Read only the first `limit` records; None reads all.
        append: Add to an existing store.
        overwrite: Replace an existing store, and discard an unfinished run with different settings.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.

    Returns:
        Report with the numbers of records read, stored, failed and duplicate.

    Raises:
        SourceError: A source is missing or cannot be read, no structure could be stored, or `cutoff` is not between
            0.1 and 100 angstrom.
        LabelError: A label, column or id field is missing from the data, a unit is invalid, a tensor has a rank above
            4, or the name of a label or column is invalid or already in use.
        OutputExistsError: The output exists, cannot be written or is an input; another run is writing it; or an
            unfinished run has different settings.
        StoreError: The store to append to cannot be read, or differs in cutoff or in the shape or unit of a label; or
            an input changes during the run.
        EquiscreenError: No Dask cluster answers or can be started, or its workers are lost or have different versions.
        ValueError: `dedup` is neither ``exact`` nor ``crystal``.
    """
    begin = time.monotonic()
    named = path_names(sources)
    options = options or ReadOptions()
    files, servers = _find_sources(named, options)
    mapping = (labels or LabelMapping()).with_ase_defaults()
    mapping.check_units()
    graph_schema(mapping)  # raises LabelError if a name is already in use
    reach = DEFAULT_CUTOFF if cutoff is None else float(cutoff)
    if not MIN_DISTANCE < reach < MAX_CUTOFF:
        raise SourceError(
            f"a cutoff of {reach} angstrom cannot be used; choose one between {MIN_DISTANCE} and {MAX_CUTOFF} angstrom"
        )
    settings = FeaturizeSettings(reach, mapping, options, id_field, max_atoms, max_edges, Dedup(dedup))
    identity = {
        **_recipe(settings, limit),
        "inputs": inputs_digest([*inputs_of(files), *((server_name(name), 0, "live") for name in servers)]),
        "append": append,
        "equiscreen": version("equiscreen"),
    }
    run_options = RunOptions(scheduler=scheduler, limit=limit, overwrite=overwrite, progress=progress)
    unread = [file.path for file in files if file.local and not file.stamp]
    inputs: list[str | InputFile] = [*unread, *InputFile.of_sources(files)]
    writer = StoreWriter("featurize", out, identity, run_options, files=inputs, extend=append)
    finished = writer.resume_publication()
    if finished is not None:
        return FeaturizeReport(**finished)
    base: list[GraphStore] = []
    if append:
        base = _stores_to_extend(out, cutoff)
        settings = replace(settings, cutoff=base[0].cutoff)
        identity["base"] = [base[0].store_hash]
    with writer.run(0) as run:
        files = [*files, *(_download(name, run.staging, run_options) for name in servers)]
        report = _featurize(run, files, settings, base, limit, begin)
    return replace(report, seconds=time.monotonic() - begin)


def _find_sources(named: Sequence[str], options: ReadOptions) -> tuple[list[SourceFile], list[str]]:
    """Return the files to read, and the OPTIMADE servers to download from.

    Raises:
        SourceError: A file does not exist, or no sources are given.
    """
    servers = [name for name in named if is_server(name)]
    others = [name for name in named if name not in servers]
    return find_files(others, options.format) if others or not servers else [], servers


def _featurize(
    run: StoreRun,
    files: Sequence[SourceFile],
    settings: FeaturizeSettings,
    base: Sequence[GraphStore],
    limit: int | None,
    begin: float,
) -> FeaturizeReport:
    """Featurize the files and publish the store.

    Args:
        run: The run in progress.
        files: Files to read.
        settings: Settings of the run.
        base: Store to append to, if any.
        limit: Number of records to read; None reads all.
        begin: Reading of the monotonic clock at the start of the run, seconds.
    """
    with run.staging.discarded_if_new():
        check_fields_exist(run.client, files, settings)
    plan, manifests = _make_parts(run, files, settings, limit)
    found = {name for manifest in manifests for name in manifest.notes["labels"]}
    lacking = _labels_not_found(settings.mapping, found)
    problem: EquiscreenError | None = _nothing_stored(run.staging, manifests)
    if problem is None and lacking and not found:
        problem = LabelError(f"label {lacking[0]!r}: no structure has a value for it; check its path")
    if problem is not None:
        run.staging.discard()
        raise problem
    run.bar.note("writing the store")
    mapping = settings.mapping.only(found)
    attrs = _root_attrs(replace(settings, mapping=mapping), inputs_of(files), base, limit)
    digests, counts = assemble(run, manifests, base, graph_schema(mapping), settings.dedup, append=bool(base))
    new, reasons = totals(manifests)
    new["duplicate"] = counts["duplicate"] - sum(store.attrs["counts"]["duplicate"] for store in base)
    report = FeaturizeReport(
        path=str(run.staging.out),
        read=new["read"],
        stored=new["read"] - new["failed"] - new["duplicate"],
        failed=new["failed"],
        duplicate=new["duplicate"],
        reasons=reasons,
        seconds=time.monotonic() - begin,
        bytes_on_disk=bytes_of(run.staging.store),
        in_store=counts["stored"],
        aside=tuple(plan.aside),
        unread=_unread(manifests),
        not_found=lacking,
        without_volume=sum(manifest.notes.get("without_volume", 0) for manifest in manifests),
        asymmetric=sum(manifest.notes.get("asymmetric", 0) for manifest in manifests),
        unnamed=dict(sum((Counter(manifest.notes.get("unnamed", {})) for manifest in manifests), Counter())),
    )
    for store in base:
        store.check_unchanged()
    run.publish(digests, {**attrs, "counts": counts}, asdict(report))
    return report


def _make_parts(
    run: StoreRun, files: Sequence[SourceFile], settings: FeaturizeSettings, limit: int | None
) -> tuple[Plan, list[PartManifest]]:
    """Featurize the partitions that earlier runs did not finish; return the plan and the manifests of all parts."""
    plan = Plan(
        files,
        run.staging.spool,
        limit,
        _wanted_columns(settings),
        is_done=lambda number, count: not run.missing(number, count),
    )

    def tasks() -> Iterator[FeaturizeTask]:
        for partition in plan:
            run.bar.expect(plan.expected())
            for begin, end in run.missing(partition.number, partition.end):
                items = replace(partition, begin=begin, end=end)
                yield FeaturizeTask(items.carried() if run.sends_parts else items, settings, run.staging.parts)

    policy = FailurePolicy(FeaturizeTask.split, FeaturizeTask.skipped)
    return plan, run.make_parts(featurize_partition, tasks(), policy)


def _stores_to_extend(out: str | Path, cutoff: float | None) -> list[GraphStore]:
    """Open the store to append to, as a list of one.

    Raises:
        StoreError: The store cannot be read, or has a different cutoff.
    """
    store = GraphStore(out)
    if cutoff is not None and cutoff != store.cutoff:
        raise StoreError(
            f"{out}: this store has a cutoff of {store.cutoff} angstrom; append without --cutoff, or with the same "
            "value"
        )
    return [store]


def _download(source: str, staging: Staging, options: RunOptions) -> SourceFile:
    """Download the structures of an OPTIMADE server, unless an earlier run has, and return the file with them."""
    from ..sources.optimade_client import fetch  # noqa: PLC0415 - needs an extra

    url = source.removeprefix(OPTIMADE_PREFIX)
    path = staging.work / f"optimade-{hashlib.sha256(url.encode()).hexdigest()[:16]}.jsonl"
    if not path.exists():
        with ProgressReport(f"download {server_name(url)}", options.limit or 0, enabled=options.progress) as bar:
            fetch(url, path, limit=options.limit, progress=bar.advance)
    (file,) = find_files([path])
    return replace(file, name=server_name(source), format=Format.JSONL)


def _wanted_columns(settings: FeaturizeSettings) -> frozenset[str]:
    """Return the columns of a table that a run reads besides the structure."""
    paths = [rule.path for rules in settings.mapping.labels.values() for rule in rules]
    paths += [key for rules in settings.mapping.labels.values() for rule in rules for key in rule.when]
    paths += settings.mapping.columns
    paths += [settings.id_field] if settings.id_field else ID_FIELDS
    paths += [settings.options.structure_field] if settings.options.structure_field else []
    return frozenset(paths) | {path.split(".")[0] for path in paths}


def _labels_not_found(mapping: LabelMapping, found: Collection[str]) -> tuple[str, ...]:
    """Return the names of the requested labels that no structure has.

    Args:
        mapping: Labels to read.
        found: Names of the labels that some structure has.
    """
    return tuple(
        name for name, rules in mapping.labels.items() if name not in found and not all(rule.optional for rule in rules)
    )


def _unread(manifests: Sequence[PartManifest]) -> tuple[tuple[str, str, int], ...]:
    """List the fields that look like labels but are not used: name, label and number of structures."""
    counts: Counter[tuple[str, str]] = Counter()
    for manifest in manifests:
        counts.update({(key, label): count for key, label, count in manifest.notes["unread"]})
    return tuple((key, label, count) for (key, label), count in sorted(counts.items()))


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
    """Return the error of a run that stored no structures, with the first reason; None if it stored any."""
    if any(manifest.counts[STRUCTURE] for manifest in manifests):
        return None
    for table in failures(staging, manifests):
        for row in table.slice(0, 1).to_pylist():
            return SourceError(
                f"{row['source']}: none of its structures could be stored; record "
                f"{row['source_index']}: {row['reason']}"
            )
    return SourceError(f"{staging.out}: the sources hold no structures; check their paths and their format")
