"""Structures to a graph store: read, validate, find neighbours, hash, write; every structure accounted for."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .cluster import IN_PROCESS, connect, dashboard
from .compaction import Compaction, finish_store, offsets_of
from .errors import InvalidStructureError, LabelError, SourceError
from .labels import ASE_DEFAULTS, FORCES, LabelMapping, key_paths
from .neighbors import MIN_DISTANCE, neighbor_list
from .parts import Receipt, read_part, text_array, write_part
from .progress import ProgressReport
from .readers import RawRecord, ReadOptions, read_partition
from .schema import ATOM, EDGE, GRAPH_SCHEMA, STATUS_OTHER_LABELS, STRUCTURE, ArraySpec, empty_rows, graph_schema
from .sources import Format, Partition, Plan, find_files, inputs_digest, make_plan
from .staging import Staging, compact, make_parts, staged
from .structure import HASH_BYTES, Structure

DEFAULT_CUTOFF = 5.0
ID_FIELDS = ("material_id", "mat_id", "entry_id", "structure_id", "id")
# A mapped label that none of so many first records has is taken for a mistake.
PEEK_RECORDS = 50
ESTIMATE_RECORDS = 500
LISTED_INPUTS = 100
FAILURES_FILE, DUPLICATES_FILE = "failures.parquet", "duplicates.parquet"
_FAILURE_FIELDS = ("failure_source", "failure_index", "failure_id", "failure_reason")
_SOFTWARE = ("numpy", "zarr", "vesin", "gemmi", "ase")


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


@dataclass(frozen=True, slots=True)
class FeaturizeSettings:
    """What every task is told.

    Attributes:
        cutoff: Angstrom.
        mapping: Labels and columns; None takes energy, forces and stress of extended XYZ and nothing elsewhere.
        options: How files are read.
        id_field: Field that names a structure; None tries `ID_FIELDS`.
    """

    cutoff: float
    mapping: LabelMapping
    options: ReadOptions
    id_field: str | None


@dataclass(frozen=True, slots=True)
class FeaturizeTask:
    """One partition, and where its part goes."""

    partition: Partition
    settings: FeaturizeSettings
    folder: Path


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
        labels: Where labels stand in the records. None takes what ASE finds in extended XYZ, and nothing elsewhere.
        options: How files are read.
        id_field: Field of a record that names its structure.
        scheduler: See `cluster.connect`.
        limit: Read only so many records.
        overwrite: Replace an existing store.
        progress: Show progress on standard error.

    Raises:
        SourceError: No such file, or none of its structures could be stored.
        LabelError: A mapped label is nowhere in the data.
        OutputExistsError: The output exists, or is being written by another run.
    """
    begin = time.monotonic()
    if not cutoff > MIN_DISTANCE:
        raise SourceError(f"a cutoff of {cutoff} angstrom; it has to be above {MIN_DISTANCE}")
    files = find_files([sources] if isinstance(sources, str | Path) else sources)
    mapping = labels if labels is not None else _default_mapping([file.format for file in files])
    mapping.check_units()
    settings = FeaturizeSettings(float(cutoff), mapping, options or ReadOptions(), id_field)
    plan = make_plan(files, limit)
    _check_labels_exist(plan, settings)
    target = Path(out)
    with staged(target, _identity(settings, plan, limit), overwrite=overwrite) as staging:
        tasks = {p.number: FeaturizeTask(p, settings, staging.parts.resolve()) for p in plan.partitions}
        with connect(scheduler) as client:
            with ProgressReport("featurize", plan.n_records, enabled=progress) as bar:
                bar.note(f"Dask dashboard: {dashboard(client)}")
                receipts = make_parts(client, staging, featurize_partition, tasks, bar)
            counts, reasons = _totals(receipts)
            if counts["stored"] == 0:
                raise SourceError(_nothing_stored(staging, receipts))
            _check_labels_found(settings.mapping, receipts)
            keep, first = _dedup(staging, receipts)
            counts["duplicate"] = int((~keep).sum())
            counts["stored"] = int(keep.sum())
            compaction = _compaction(staging, receipts, graph_schema(mapping), keep)
            digests = compact(client, compaction)
        _write_failures(staging, receipts)
        _write_duplicates(staging, compaction, keep, first)
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
        records: How many there are to read; a JSON file counts as one until it is read.
        seconds: On the cores of this machine, without the start of the workers.
        bytes_on_disk: Of the store.
    """

    records: int
    seconds: float
    bytes_on_disk: int

    def __str__(self) -> str:
        return (
            f"about {self.records:,} records: {self.seconds:,.0f} s of work for one core, "
            f"{self.bytes_on_disk / 1e6:,.1f} MB on disk"
        )


def estimate(sources: Sequence[str | Path], **settings: Any) -> FeaturizeEstimate:
    """Featurize the first records into a scratch store and scale up.

    Args:
        sources: As for `featurize`.
        **settings: As for `featurize`; `limit` is the size of the run that is asked about.
    """
    wanted = settings.pop("limit", None)
    n_records = make_plan(find_files(sources), wanted).n_records
    sample = min(ESTIMATE_RECORDS, wanted or ESTIMATE_RECORDS)
    with tempfile.TemporaryDirectory() as scratch:
        report = featurize(sources, Path(scratch) / "sample.zarr", limit=sample, scheduler=IN_PROCESS, **settings)
    total = max(n_records, report.read)
    scale = total / report.read
    return FeaturizeEstimate(total, report.seconds * scale, round(report.bytes_on_disk * scale))


def featurize_partition(task: FeaturizeTask) -> Receipt:
    """Read one partition and write its part; the body of a Dask task."""
    rows = _Rows(task.settings)
    try:
        for record in read_partition(task.partition, task.settings.options):
            rows.add(record)
    except SourceError as error:  # the rest of this partition is lost, and says so
        name = task.partition.files[0].name
        rows.add(RawRecord(name, task.partition.first + rows.read, None, reason=str(error).removeprefix(f"{name}: ")))
    arrays = rows.arrays()
    counts = {
        "read": rows.read,
        "failed": len(rows.failures),
        "stored": len(rows.structures),
        ATOM: int(arrays["n_atoms"].sum()),
        EDGE: int(arrays["n_edges"].sum()),
    }
    reasons = Counter(reason.split(" (")[0].split(":")[0] for *_, reason in rows.failures)
    return write_part(
        task.folder,
        task.partition.number,
        arrays,
        counts,
        {"reasons": dict(reasons), "labels": dict(rows.labels_found)},
    )


@dataclass
class _Rows:
    """Collects what one partition yields, and lays it out as arrays."""

    settings: FeaturizeSettings
    read: int = 0
    structures: list[Structure] = field(default_factory=list)
    neighbors: list[Any] = field(default_factory=list)
    labels: list[dict[str, NDArray[np.float64]]] = field(default_factory=list)
    origins: list[tuple[str, int, str]] = field(default_factory=list)
    columns: list[tuple[str, ...]] = field(default_factory=list)
    failures: list[tuple[str, int, str, str]] = field(default_factory=list)
    labels_found: Counter[str] = field(default_factory=Counter)

    def add(self, record: RawRecord) -> None:
        self.read += 1
        origin = (record.source, record.index, self._structure_id(record))
        if record.structure is None:
            self.failures.append((*origin, record.reason))
            return
        try:
            neighbors = neighbor_list(record.structure, self.settings.cutoff)
            labels = self.settings.mapping.extract(record.fields, len(record.structure))
        except (InvalidStructureError, LabelError) as error:
            self.failures.append((*origin, str(error)))
            return
        self.structures.append(record.structure)
        self.neighbors.append(neighbors)
        self.labels.append(labels)
        self.labels_found.update(labels.keys())
        self.origins.append(origin)
        self.columns.append(tuple(str(record.fields.get(name, "")) for name in self.settings.mapping.columns))

    def _structure_id(self, record: RawRecord) -> str:
        names = (self.settings.id_field,) if self.settings.id_field else ID_FIELDS
        for name in names:
            value = record.fields.get(name)
            if isinstance(value, str | int) and value != "":
                return str(value)
        stem = Path(record.source).name.split(".")[0]
        alone = Path(record.source).suffix == ".cif" and record.index == 0
        return stem if alone else f"{stem}:{record.index}"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays of the part, by the names of the store's schema, with the failures beside them."""
        specs = {spec.name: spec for spec in graph_schema(self.settings.mapping)}
        n = len(self.structures)
        n_atoms = np.array([len(s) for s in self.structures], dtype=np.int32)
        out: dict[str, NDArray[Any]] = {
            "n_atoms": n_atoms,
            "n_edges": np.array([len(x.neighbor) for x in self.neighbors], dtype=np.int32),
            "cell": _stacked([s.cell for s in self.structures], specs["cell"]),
            "pbc": _stacked([s.pbc for s in self.structures], specs["pbc"]),
            "structure_hash": np.frombuffer(
                b"".join(s.content_hash() for s in self.structures), dtype=np.uint8
            ).reshape(n, HASH_BYTES),
            "atomic_number": _joined([s.atomic_number for s in self.structures], specs["atomic_number"]),
            "frac_coord": _joined([s.frac_coord for s in self.structures], specs["frac_coord"]),
            "n_neighbors": _joined([x.n_neighbors for x in self.neighbors], specs["n_neighbors"]),
            "neighbor": _joined([x.neighbor for x in self.neighbors], specs["neighbor"]),
            "image": _joined([x.image for x in self.neighbors], specs["image"]),
            "source": text_array([origin[0] for origin in self.origins]),
            "source_index": np.array([origin[1] for origin in self.origins], dtype=np.int64),
            "structure_id": text_array([origin[2] for origin in self.origins]),
        }
        for name in self.settings.mapping.labels:
            out[name] = _label_rows(specs[name], [labels.get(name) for labels in self.labels], n_atoms)
        for place, name in enumerate(self.settings.mapping.columns):
            out[name] = text_array([values[place] for values in self.columns])
        out["label_digest"] = self._label_digests()
        for place, name in enumerate(_FAILURE_FIELDS):
            values = [failure[place] for failure in self.failures]
            out[name] = np.array(values, dtype=np.int64) if name == "failure_index" else text_array(values)
        return out

    def _label_digests(self) -> NDArray[np.uint64]:
        """uint64[n, 2], equal where all labels are; zero where there is none."""
        digests = np.zeros((len(self.labels), 2), dtype=np.uint64)
        for row, labels in enumerate(self.labels):
            if labels:
                content = b"".join(name.encode() + values.tobytes() for name, values in sorted(labels.items()))
                digests[row] = np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), dtype=np.uint64)
        return digests


def _stacked(rows: list[NDArray[Any]], spec: ArraySpec) -> NDArray[Any]:
    return np.stack(rows).astype(spec.dtype) if rows else empty_rows(spec, 0)


def _joined(rows: list[NDArray[Any]], spec: ArraySpec) -> NDArray[Any]:
    return np.concatenate(rows).astype(spec.dtype, copy=False) if rows else empty_rows(spec, 0)


def _label_rows(
    spec: ArraySpec, values: list[NDArray[np.float64] | None], n_atoms: NDArray[np.int32]
) -> NDArray[np.float64]:
    per_atom = spec.dims[0] == ATOM
    lengths = n_atoms if per_atom else np.ones(len(values), dtype=np.int32)
    rows = [
        empty_rows(spec, int(length)) if value is None else np.reshape(value, spec.shape(int(length)))
        for value, length in zip(values, lengths, strict=True)
    ]
    return np.concatenate(rows) if rows else empty_rows(spec, 0)


def _default_mapping(formats: Sequence[Format]) -> LabelMapping:
    return ASE_DEFAULTS if Format.EXTXYZ in formats else LabelMapping()


def _check_labels_exist(plan: Plan, settings: FeaturizeSettings) -> None:
    """Fail on a label that is nowhere in the first records, before the long work begins."""
    required = {
        name: rules for name, rules in settings.mapping.labels.items() if not all(rule.optional for rule in rules)
    }
    if not required and not settings.mapping.columns:
        return
    try:
        records = list(islice(read_partition(plan.partitions[0], settings.options), PEEK_RECORDS))
    except SourceError:
        return  # becomes a row of the failures table
    readable = [record for record in records if record.structure is not None]
    if not readable:
        return
    where = f"the first {len(readable)} structures of {readable[0].source}"
    keys = ", ".join(key_paths(readable[0].fields)[:30])
    for name, rules in required.items():
        mapping = LabelMapping(labels={name: rules})
        if not any(mapping.extract(record.fields, len(record.structure or ())) for record in readable):
            paths = " or ".join(sorted({rule.path for rule in rules}))
            raise LabelError(f"label {name!r}: none of {where} has {paths!r}; keys there: {keys}")
    for column in settings.mapping.columns:
        if not any(column in record.fields for record in readable):
            raise LabelError(f"column {column!r}: none of {where} has it; keys there: {keys}")


def _check_labels_found(mapping: LabelMapping, receipts: Mapping[int, Receipt]) -> None:
    found = {name for receipt in receipts.values() for name in receipt.notes["labels"]}
    for name, rules in mapping.labels.items():
        if name not in found and not all(rule.optional for rule in rules):
            raise LabelError(f"label {name!r}: not one structure has it")


def _identity(settings: FeaturizeSettings, plan: Plan, limit: int | None) -> dict[str, Any]:
    return {**_recipe(settings, limit), "inputs": inputs_digest(plan.inputs)}


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


def _root_attrs(settings: FeaturizeSettings, plan: Plan, counts: Mapping[str, int], limit: int | None) -> dict[str, Any]:
    recipe = _recipe(settings, limit)
    return {
        "schema": recipe.pop("schema"),
        "cutoff": recipe.pop("cutoff"),
        "cutoff_units": "angstrom",
        "recipe": recipe,
        "counts": {name: counts[name] for name in ("read", "stored", "failed", "duplicate")},
        "inputs_sha256": inputs_digest(plan.inputs),
        "inputs": [list(item) for item in plan.inputs[:LISTED_INPUTS]],
        "software": {"equiscreen": version("equiscreen"), **{name: version(name) for name in _SOFTWARE}},
    }


def _totals(receipts: Mapping[int, Receipt]) -> tuple[dict[str, int], dict[str, int]]:
    counts: Counter[str] = Counter(read=0, stored=0, failed=0)
    reasons: Counter[str] = Counter()
    for receipt in receipts.values():
        counts.update({name: receipt.counts[name] for name in ("read", "stored", "failed")})
        reasons.update(receipt.notes["reasons"])
    return dict(counts), dict(reasons)


def _nothing_stored(staging: Staging, receipts: Mapping[int, Receipt]) -> str:
    for source, index, _, reason in _failure_rows(staging, receipts):
        return f"{source}: not one structure could be stored; record {index}: {reason}"
    return f"{staging.out}: the sources hold no structures"


def _failure_rows(staging: Staging, receipts: Mapping[int, Receipt]) -> Iterator[tuple[str, int, str, str]]:
    for number in receipts:
        part = read_part(staging.parts, number)
        yield from zip(*(part[name].tolist() for name in _FAILURE_FIELDS), strict=True)


def _dedup(staging: Staging, receipts: Mapping[int, Receipt]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which structures to keep, and for each the first one with the same content; writes keep.npy and status.npy."""
    parts = [read_part(staging.parts, number) for number in receipts]
    hashes = np.concatenate([np.ascontiguousarray(part["structure_hash"]).view(np.uint64) for part in parts])
    labels = np.concatenate([part["label_digest"] for part in parts])
    first = first_equal(hashes)
    first_with_labels = first_equal(np.concatenate([hashes, labels], axis=1))
    here = np.arange(len(hashes))
    other_labels = (first != here) & (first_with_labels == here) & labels.any(axis=1)
    keep = (first == here) | other_labels
    np.save(staging.folder / "keep.npy", keep)
    np.save(staging.folder / "status.npy", np.where(other_labels, STATUS_OTHER_LABELS, 0).astype(np.uint8))
    return keep, first


def first_equal(rows: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each row the index of the first row equal to it: int64[n] from uint64[n, k]."""
    order = np.lexsort((np.arange(len(rows)), *rows.T))
    ordered = rows[order]
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    out = np.empty(len(rows), dtype=np.int64)
    out[order] = order[new][np.cumsum(new) - 1]
    return out


def _compaction(
    staging: Staging, receipts: Mapping[int, Receipt], specs: tuple[ArraySpec, ...], keep: NDArray[np.bool_]
) -> Compaction:
    structure_offsets = offsets_of([receipt.counts["stored"] for receipt in receipts.values()])
    rows: dict[str, list[int]] = {STRUCTURE: [], ATOM: [], EDGE: []}
    for place, receipt in enumerate(receipts.values()):
        kept = keep[structure_offsets[place] : structure_offsets[place + 1]]
        rows[STRUCTURE].append(int(kept.sum()))
        if kept.all():
            rows[ATOM].append(receipt.counts[ATOM])
            rows[EDGE].append(receipt.counts[EDGE])
        else:
            part = read_part(staging.parts, receipt.number)
            rows[ATOM].append(int(part["n_atoms"][kept].sum()))
            rows[EDGE].append(int(part["n_edges"][kept].sum()))
    return Compaction(
        parts=staging.parts.resolve(),
        store=staging.store.resolve(),
        specs=specs,
        numbers=tuple(receipts),
        part_rows={dim: offsets_of(counts) for dim, counts in rows.items()},
        keep=(staging.folder / "keep.npy").resolve(),
        status=(staging.folder / "status.npy").resolve(),
        structure_offsets=structure_offsets,
    )


def _write_failures(staging: Staging, receipts: Mapping[int, Receipt]) -> None:
    schema = pa.schema(
        [("source", pa.string()), ("source_index", pa.int64()), ("structure_id", pa.string()), ("reason", pa.string())]
    )
    with pq.ParquetWriter(staging.store / FAILURES_FILE, schema) as writer:
        for number in receipts:
            part = read_part(staging.parts, number)
            columns = [part[name].tolist() for name in _FAILURE_FIELDS]
            writer.write_table(pa.table(columns, schema=schema))


def _write_duplicates(
    staging: Staging, compaction: Compaction, keep: NDArray[np.bool_], first: NDArray[np.int64]
) -> None:
    """List the structures that were left out, and which stored one each of them equals."""
    dropped = np.flatnonzero(~keep)
    fields = partial(_origins_of, compaction)
    source, index, name = fields(dropped)
    _, _, original = fields(first[dropped])
    table = pa.table({"source": source, "source_index": pa.array(index, pa.int64()), "structure_id": name,
                      "duplicate_of": original})
    pq.write_table(table, staging.store / DUPLICATES_FILE)


def _origins_of(compaction: Compaction, rows: NDArray[np.int64]) -> tuple[pa.Array, list[int], pa.Array]:
    """source, source_index and structure_id of structures, counted through all parts."""
    source, index, name = [""] * len(rows), [0] * len(rows), [""] * len(rows)
    place = np.searchsorted(compaction.structure_offsets, rows, side="right") - 1
    for part_place in np.unique(place):
        part = read_part(compaction.parts, compaction.numbers[int(part_place)])
        sources, indices, names = part["source"], part["source_index"], part["structure_id"]
        for out in np.flatnonzero(place == part_place):
            row = int(rows[out] - compaction.structure_offsets[part_place])
            source[out], index[out], name[out] = str(sources[row]), int(indices[row]), str(names[row])
    return pa.array(source, pa.string()), index, pa.array(name, pa.string())

