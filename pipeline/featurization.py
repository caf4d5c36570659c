"""Structures to a graph store: read, validate, find neighbours, hash, write; every structure accounted for."""

from __future__ import annotations

import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .accounts import failures, totals
from .assembly import assemble, bytes_of, described
from .cluster import IN_PROCESS, Salvage, connect, dashboard
from .errors import LabelError, SourceError, StoreError
from .files import SourceFile
from .formats import Format
from .labels import LabelMapping, key_paths, lookup
from .neighbors import MAX_EDGES, MIN_DISTANCE
from .partition import ID_FIELDS, FeaturizeSettings, FeaturizeTask, featurize_partition
from .parts import Receipt
from .plan import Plan, count_records, read_partition
from .progress import ProgressReport
from .readers import RawRecord, ReadOptions
from .schema import GRAPH_SCHEMA, STRUCTURE, Dedup, graph_schema
from .sources import OPTIMADE_PREFIX, find_files, inputs_digest, inputs_of
from .staging import Staging, make_parts, staged, taken_up, whole_parts
from .store import GraphStore
from .structure import MAX_ATOMS

DEFAULT_CUTOFF = 5.0
MAX_CUTOFF = 100.0
# A mapped label that none of so many first records has is taken for a mistake.
PEEK_RECORDS = 50
PEEK_SOURCES = 20
ESTIMATE_RECORDS = 500
LISTED_INPUTS = 100
SOFTWARE = ("equiscreen", "numpy", "zarr", "gemmi", "ase", "moyopy")


@dataclass(frozen=True, slots=True)
class FeaturizeReport:
    """The account of a run: read = stored + failed + duplicate.

    Attributes:
        path: The store, as it was named.
        read, stored, failed, duplicate: Structures of this run.
        reasons: Failures by reason.
        seconds: Wall time of this run.
        bytes_on_disk: Of the store.
        in_store: Structures in the store: more than `stored` after appending.
        aside: Members of archives that hold no structures by their names.
    """

    path: str
    read: int
    stored: int
    failed: int
    duplicate: int
    reasons: dict[str, int]
    seconds: float
    bytes_on_disk: int
    in_store: int
    aside: tuple[str, ...] = ()

    def __str__(self) -> str:
        rate = self.read / max(self.seconds, 1e-9)
        most = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
        reasons = "".join(f"; {count:,} {reason}" for reason, count in most)
        total = f" ({self.in_store:,} in the store)" if self.in_store != self.stored else ""
        aside = f"; {len(self.aside):,} other files left aside ({', '.join(self.aside[:3])})" if self.aside else ""
        return (
            f"{self.path}: read {self.read:,} = stored {self.stored:,} + failed {self.failed:,} + duplicate "
            f"{self.duplicate:,}{total}; {self.seconds:.1f} s, {rate:,.0f} structures/s, "
            f"{self.bytes_on_disk / max(self.in_store, 1):,.0f} bytes/structure{reasons}{aside}"
        )


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
    finished = taken_up(out, identity)
    if finished is not None:
        return FeaturizeReport(**finished)
    base: list[GraphStore] = []
    if append:
        base = _stores_to_extend(out, cutoff)
        settings = replace(settings, cutoff=base[0].cutoff)
        identity["base"] = [base[0].store_hash]
    local = [Path(file.path) for file in files if file.local]
    with (
        staged(out, identity, local, overwrite=overwrite, extend=append) as staging,
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
        _check_fields_exist(client, files, settings)
    with ProgressReport("featurize", 0, enabled=progress) as bar:
        bar.note(f"Dask dashboard: {dashboard(client)}")
        plan, receipts = _featurize_all(client, staging, files, settings, limit, bar)
        problem = _nothing_stored(staging, receipts) or _label_not_found(settings.mapping, receipts)
        if problem is not None:
            staging.discard()
            raise problem
        bar.note("writing the store")
    mapping = settings.mapping.only({name for receipt in receipts for name in receipt.notes["labels"]})
    attrs = _root_attrs(replace(settings, mapping=mapping), inputs_of(files), base, limit)
    counts = assemble(client, staging, receipts, base, graph_schema(mapping), settings.dedup, attrs, append=bool(base))
    new, reasons = totals(receipts)
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
) -> tuple[Plan, list[Receipt]]:
    """Make the parts of all partitions that an earlier run has not made."""
    done: dict[int, list[Receipt]] = {}
    for receipt in staging.receipts().values():
        done.setdefault(receipt.number, []).append(receipt)
    plan = Plan(
        files,
        staging.pieces,
        limit,
        _wanted_columns(settings),
        is_done=lambda number, count: not _missing(done.get(number, ()), count),
    )

    def tasks() -> Iterator[FeaturizeTask]:
        for partition in plan:
            bar.expect(plan.expected())
            for begin, end in _missing(done.get(partition.number, ()), partition.end):
                yield FeaturizeTask(replace(partition, begin=begin, end=end), settings, staging.parts)

    salvage = Salvage(FeaturizeTask.halves, lambda task: replace(task, given_up=True))
    receipts = make_parts(client, staging, featurize_partition, tasks(), bar, salvage)
    return plan, receipts


def _missing(receipts: Sequence[Receipt], count: int) -> list[tuple[int, int]]:
    """The items of a partition of `count` that no part holds."""
    gaps, reached = [], 0
    for receipt in whole_parts(receipts):
        if receipt.begin > reached:
            gaps.append((reached, receipt.begin))
        reached = receipt.end
    return [*gaps, (reached, count)] if reached < count else gaps


def _stores_to_extend(out: str | Path, cutoff: float | None) -> list[GraphStore]:
    store = GraphStore(out)
    if cutoff is not None and cutoff != store.cutoff:
        raise StoreError(f"{out}: its graphs end at {store.cutoff} angstrom; append without --cutoff, or with that one")
    return [store]


def _download(source: str, staging: Staging, limit: int | None, *, progress: bool) -> SourceFile:
    """Bring the structures of an OPTIMADE server to this machine."""
    from .optimade_download import fetch  # noqa: PLC0415 - only those who ask a server need it

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


@dataclass(frozen=True, slots=True)
class FeaturizeEstimate:
    """What a run would take, from a sample of its first records.

    Attributes:
        records: In all sources.
        seconds: Of work for one core, without the start of the workers.
        bytes_on_disk: Of the store.
        bytes_in_memory: Of one worker.
    """

    records: int
    seconds: float
    bytes_on_disk: int
    bytes_in_memory: int

    def __str__(self) -> str:
        return (
            f"{self.records:,} records: about {self.seconds:,.0f} s of work for one core, "
            f"{self.bytes_on_disk / 1e6:,.1f} MB on disk, {self.bytes_in_memory / 1e6:,.0f} MB of memory per worker"
        )


def estimate(sources: Sequence[str | Path], **settings: Any) -> FeaturizeEstimate:
    """Featurize the first records into a scratch store and scale up.

    Args:
        sources: As for `featurize`.
        **settings: As for `featurize`; `limit` is the size of the run that is asked about.
    """
    form = (settings.get("options") or ReadOptions()).format
    live = [str(source) for source in sources if str(source).startswith(OPTIMADE_PREFIX)]
    if live:
        raise SourceError(f"{live[0]}: how much a server has is not known before it is asked; --limit asks for a part")
    n_records = count_records(find_files(sources, form), settings.pop("limit", None) or sys.maxsize)
    with tempfile.TemporaryDirectory() as scratch:
        report = featurize(
            sources,
            Path(scratch) / "sample.zarr",
            limit=min(ESTIMATE_RECORDS, n_records),
            scheduler=IN_PROCESS,
            **settings,
        )
    scale = max(n_records, report.read) / report.read
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return FeaturizeEstimate(
        max(n_records, report.read), report.seconds * scale, round(report.bytes_on_disk * scale), memory
    )


def _check_fields_exist(client: Any, files: Sequence[SourceFile], settings: FeaturizeSettings) -> None:
    """Fail on a label, column or name that is nowhere in the first records, before the long work begins."""
    from distributed import KilledWorker  # noqa: PLC0415 - as in cluster.connect

    wanted = {
        f"label {name!r}": [rule.path for rule in rules]
        for name, rules in settings.mapping.labels.items()
        if not all(rule.optional for rule in rules)
    }
    wanted |= {f"column {name!r}": [name] for name in settings.mapping.columns}
    if settings.id_field is not None:
        wanted["--id-field"] = [settings.id_field]
    if not wanted:
        return
    try:
        # On a worker: what comes first may crash whoever reads it.
        source, absent, keys = client.submit(_fields_absent, files[:PEEK_SOURCES], settings.options, wanted).result()
    except KilledWorker:
        return
    for what, paths in absent.items():
        raise LabelError(
            f"{what}: none of the first structures of {source} has {' or '.join(repr(path) for path in paths)}; "
            f"keys there: {', '.join(keys)} (if later ones have it, say `optional: true` in a YAML mapping)"
        )


def _fields_absent(
    files: Sequence[SourceFile], options: ReadOptions, wanted: Mapping[str, Sequence[str]]
) -> tuple[str, dict[str, list[str]], list[str]]:
    """What of `wanted` none of the first records has, with an example of the keys that they have."""
    records: list[RawRecord] = []
    with tempfile.TemporaryDirectory() as scratch:
        for file in files:
            for partition in Plan([file], Path(scratch), PEEK_RECORDS):
                records.extend(record for record in read_partition(partition, options) if record.structure is not None)
    if not records:
        return "", {}, []  # the reasons become rows of the failures table
    absent = {
        what: sorted(set(paths))
        for what, paths in wanted.items()
        if not any(lookup(record.fields, path) is not None for record in records for path in paths)
    }
    return records[0].source, absent, key_paths(max((record.fields for record in records), key=len))[:30]


def _label_not_found(mapping: LabelMapping, receipts: Sequence[Receipt]) -> LabelError | None:
    found = {name for receipt in receipts for name in receipt.notes["labels"]}
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


def _nothing_stored(staging: Staging, receipts: Sequence[Receipt]) -> SourceError | None:
    if any(receipt.counts[STRUCTURE] for receipt in receipts):
        return None
    for table in failures(staging, receipts):
        for row in table.slice(0, 1).to_pylist():
            return SourceError(
                f"{row['source']}: not one structure could be stored; record {row['source_index']}: {row['reason']}"
            )
    return SourceError(f"{staging.out}: the sources hold no structures")
