"""Structures to a graph store: read, validate, find neighbours, hash, write; every structure accounted for."""

from __future__ import annotations

import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from .accounts import failures, plan_compaction, select_distinct, totals, write_tables
from .cluster import IN_PROCESS, connect, dashboard
from .compaction import finish_store
from .errors import LabelError, SourceError
from .labels import LabelMapping, key_paths, lookup
from .neighbors import MIN_DISTANCE
from .partition import FeaturizeSettings, FeaturizeTask, featurize_partition
from .parts import Receipt
from .progress import ProgressReport
from .readers import ReadOptions, read_partition
from .schema import GRAPH_SCHEMA, graph_schema
from .sources import Format, Plan, find_files, inputs_digest, make_plan
from .staging import Staging, compact, make_parts, staged

DEFAULT_CUTOFF = 5.0
MAX_CUTOFF = 100.0
# A mapped label that none of so many first records has is taken for a mistake.
PEEK_RECORDS = 50
PEEK_SOURCES = 20
ESTIMATE_RECORDS = 500
LISTED_INPUTS = 100
_SOFTWARE = ("equiscreen", "numpy", "zarr", "vesin", "gemmi", "ase")


@dataclass(frozen=True, slots=True)
class FeaturizeReport:
    """The account of a run: read = stored + failed + duplicate.

    Attributes:
        path: The store.
        read, stored, failed, duplicate: Structures.
        reasons: Failures by reason.
        seconds: Wall time of this run.
        bytes_on_disk: Of the store.
    """

    path: Path
    read: int
    stored: int
    failed: int
    duplicate: int
    reasons: dict[str, int]
    seconds: float
    bytes_on_disk: int

    def __str__(self) -> str:
        rate = self.read / max(self.seconds, 1e-9)
        reasons = "".join(f"; {count} {reason}" for reason, count in sorted(self.reasons.items()))
        return (
            f"{self.path}: read {self.read:,} = stored {self.stored:,} + failed {self.failed:,} + duplicate "
            f"{self.duplicate:,}; {self.seconds:.1f} s, {rate:,.0f} structures/s, "
            f"{self.bytes_on_disk / max(self.stored, 1):,.0f} bytes/structure{reasons}"
        )


def featurize(
    sources: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    cutoff: float = DEFAULT_CUTOFF,
    labels: LabelMapping | None = None,
    options: ReadOptions | None = None,
    id_field: str | None = None,
    scheduler: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> FeaturizeReport:
    """Turn structure files into a store of periodic neighbour graphs.

    A run that was killed is taken up where it was by calling it again with the same arguments. Structures that cannot
    become graphs are rows of ``failures.parquet`` in the store, repeated ones of ``duplicates.parquet``.

    Args:
        sources: CIF files, folders of them, CSV with a CIF column, extended XYZ, pymatgen JSON; each also as .gz.
        out: The store to write.
        cutoff: Of the neighbour graph, angstrom.
        labels: Where labels stand in the records. Energy, forces and stress of extended XYZ are taken as ASE finds
            them unless something else is said; in other formats nothing is guessed.
        options: How files are read.
        id_field: Field of a record that names its structure.
        scheduler: See `cluster.connect`.
        limit: Read only so many records.
        overwrite: Replace an existing store.
        progress: Show progress on standard error.

    Raises:
        SourceError: No such file, or none of its structures could be stored.
        LabelError: A mapped label is nowhere in the data, or a name is taken.
        OutputExistsError: The output exists, or is being written by another run.
    """
    begin = time.monotonic()
    if not MIN_DISTANCE < cutoff < MAX_CUTOFF:
        raise SourceError(f"a cutoff of {cutoff} angstrom; it has to be between {MIN_DISTANCE} and {MAX_CUTOFF}")
    files = find_files([sources] if isinstance(sources, str | Path) else sources)
    mapping = labels or LabelMapping()
    if any(file.format is Format.EXTXYZ for file in files):
        mapping = mapping.with_ase_defaults()
    mapping.check_units()
    specs = graph_schema(mapping)
    settings = FeaturizeSettings(float(cutoff), mapping, options or ReadOptions(), id_field)
    plan = make_plan(files, limit)
    _check_fields_exist(plan, settings)
    target = Path(out)
    inputs = [Path(file.path) for file in files]
    with staged(target, _identity(settings, plan, limit), inputs, overwrite=overwrite) as staging:
        tasks = {p.number: FeaturizeTask(p, settings, staging.parts) for p in plan.partitions}
        with connect(scheduler) as client:
            with ProgressReport("featurize", plan.n_records, enabled=progress) as bar:
                bar.note(f"Dask dashboard: {dashboard(client)}")
                receipts = make_parts(client, staging, featurize_partition, tasks, bar)
            counts, reasons = totals(receipts)
            problem = _nothing_stored(staging, receipts) or _label_not_found(mapping, receipts)
            if problem is not None:
                staging.discard()
                raise problem
            selection = select_distinct(staging, receipts)
            counts["stored"] = int(selection.keep.sum())
            counts["duplicate"] = int((~selection.keep).sum())
            digests = compact(client, plan_compaction(staging, receipts, specs, selection))
        write_tables(staging, receipts, selection)
        finish_store(staging.store, digests, _root_attrs(settings, plan, counts, limit))
        staging.publish()
    seconds = time.monotonic() - begin
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return FeaturizeReport(
        target, counts["read"], counts["stored"], counts["failed"], counts["duplicate"], reasons, seconds, size
    )


@dataclass(frozen=True, slots=True)
class FeaturizeEstimate:
    """What a run would take, from a sample of its first records.

    Attributes:
        records: How many there are to read.
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
    n_records = make_plan(find_files(sources), settings.pop("limit", None) or sys.maxsize).n_records
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


def _check_fields_exist(plan: Plan, settings: FeaturizeSettings) -> None:
    """Fail on a label, column or name that is nowhere in the first records, before the long work begins."""
    rules = {
        name: [rule.path for rule in rules]
        for name, rules in settings.mapping.labels.items()
        if not all(rule.optional for rule in rules)
    }
    wanted = {f"label {name!r}": paths for name, paths in rules.items()}
    wanted |= {f"column {name!r}": [name] for name in settings.mapping.columns}
    if settings.id_field is not None:
        wanted["--id-field"] = [settings.id_field]
    beginnings = [partition for partition in plan.partitions if partition.first == 0][:PEEK_SOURCES]
    if not wanted or len(beginnings) == 0:
        return
    records = [
        record
        for partition in beginnings
        for record in islice(read_partition(partition, settings.options), PEEK_RECORDS)
        if record.structure is not None
    ]
    if not records:
        return  # the reasons become rows of the failures table
    for what, paths in wanted.items():
        if not any(lookup(record.fields, path) is not None for record in records for path in paths):
            keys = ", ".join(key_paths(max((record.fields for record in records), key=len))[:30])
            raise LabelError(
                f"{what}: none of the first {len(records)} structures of {records[0].source} has "
                f"{' or '.join(repr(path) for path in sorted(set(paths)))}; keys there: {keys}"
            )


def _label_not_found(mapping: LabelMapping, receipts: Mapping[int, Receipt]) -> LabelError | None:
    found = {name for receipt in receipts.values() for name in receipt.notes["labels"]}
    for name, rules in mapping.labels.items():
        if name not in found and not all(rule.optional for rule in rules):
            return LabelError(f"label {name!r}: not one structure has it")
    return None


def _identity(settings: FeaturizeSettings, plan: Plan, limit: int | None) -> dict[str, Any]:
    cuts = hashlib.sha256(repr(plan.partitions).encode()).hexdigest()
    return {
        **_recipe(settings, limit),
        "inputs": inputs_digest(plan.inputs),
        "partitions": cuts,
        "equiscreen": version("equiscreen"),
    }


def _recipe(settings: FeaturizeSettings, limit: int | None) -> dict[str, Any]:
    return {
        "schema": GRAPH_SCHEMA,
        "cutoff": settings.cutoff,
        "min_distance": MIN_DISTANCE,
        "labels": settings.mapping.model_dump(mode="json"),
        "options": asdict(settings.options),
        "id_field": settings.id_field,
        "limit": limit,
    }


def _root_attrs(
    settings: FeaturizeSettings, plan: Plan, counts: Mapping[str, int], limit: int | None
) -> dict[str, Any]:
    recipe = _recipe(settings, limit)
    return {
        "schema": recipe.pop("schema"),
        "cutoff": recipe.pop("cutoff"),
        "cutoff_units": "angstrom",
        "recipe": recipe,
        "counts": {name: counts[name] for name in ("read", "stored", "failed", "duplicate")},
        "inputs_sha256": inputs_digest(plan.inputs),
        "inputs": [list(item) for item in plan.inputs[:LISTED_INPUTS]],
        "software": {name: version(name) for name in _SOFTWARE},
    }


def _nothing_stored(staging: Staging, receipts: Mapping[int, Receipt]) -> SourceError | None:
    if any(receipt.counts["stored"] for receipt in receipts.values()):
        return None
    for table in failures(staging, receipts):
        for row in table.slice(0, 1).to_pylist():
            return SourceError(
                f"{row['source']}: not one structure could be stored; record {row['source_index']}: {row['reason']}"
            )
    return SourceError(f"{staging.out}: the sources hold no structures")
