"""Tasks of a featurization on a Dask worker: the records of one partition become the arrays of one part."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidStructureError, LabelError
from ..field_path import lookup
from ..graphs.neighbor_list import MAX_EDGES, NeighborList, neighbor_list
from ..labels.mapping import WEAK_STRESS, LabelMapping
from ..labels.quantities import STRESS
from ..readers.records import RawRecord, ReadOptions
from ..runs.parts import PartKey, PartManifest, write_part
from ..sources.discovery import file_name
from ..sources.formats import Format
from ..store.dedup import Dedup
from ..store.schema import (
    ATOM,
    EDGE,
    STATUS_FORBIDDEN_TENSOR,
    STATUS_ISOLATED_ATOMS,
    STATUS_NAMED_ISOLATED,
    STRUCTURE,
    ArraySpec,
    empty_rows,
    graph_schema,
)
from ..structures.matching import composition_key, crystal_vector
from ..structures.structure import HASH_BYTES, MAX_ATOMS, Structure
from .partitions import Partition, read_partition

# Fields in which the id of a structure is looked for, in order, if the user names no field.
ID_FIELDS = ("material_id", "mat_id", "entry_id", "structure_id", "immutable_id", "id", "data.mat_id", "unique_id")
FAILURE_ARRAYS = ("failure_source", "failure_index", "failure_id", "failure_reason")
# ASE's readers return ASE's units, so labels in these formats need no mapping.
ASE_FORMATS = frozenset({Format.EXTXYZ, Format.ASE_DB})
# Relative asymmetry of a stress above which it cannot come from the rounding of printed digits.
_ROUNDING = 1e-3
# How MACE data sets mark isolated atoms, in the field `config_type`.
_ISOLATED_ATOM = re.compile(r"isolated_?atom", re.IGNORECASE)
_SINGLE_FORMATS = (Format.CIF, Format.POSCAR)
_SINGLE_NAME = re.compile(r"\.(m?cif|vasp|poscar)(\.(gz|bz2|xz|zst))?$|^(POSCAR|CONTCAR)", re.IGNORECASE)
_SUFFIXES = re.compile(
    r"(\.(m?cif|csv|tsv|xyz|extxyz|jsonl?|ndjson|vasp|poscar|parquet|db|aselmdb))?(\.(gz|bz2|xz|zst))?$"
)


@dataclass(frozen=True, slots=True)
class FeaturizeSettings:
    """Settings of a featurization, the same for every task.

    Attributes:
        cutoff: Cutoff of the neighbour graph, angstrom.
        mapping: Labels and columns to read, including ASE's defaults, which apply to `ASE_FORMATS` only.
        options: How files are read.
        id_field: Field with the id of a structure; None tries `ID_FIELDS`.
        max_atoms: Structures with more atoms than this are recorded as failures.
        max_edges: Structures with more edges than this are recorded as failures.
        dedup: Which structures count as duplicates.
    """

    cutoff: float
    mapping: LabelMapping
    options: ReadOptions
    id_field: str | None
    max_atoms: int = MAX_ATOMS
    max_edges: int = MAX_EDGES
    dedup: Dedup = Dedup.EXACT


@dataclass(frozen=True, slots=True)
class FeaturizeTask:
    """Featurization of one partition.

    Attributes:
        partition: Records to read.
        settings: Settings of the run.
        folder: Folder of the parts.
        skip: Whether the only record, which killed its workers, is recorded as a failure without being read.
    """

    partition: Partition
    settings: FeaturizeSettings
    folder: Path
    skip: bool = False

    @property
    def key(self) -> PartKey:
        """Key of the part."""
        return self.partition.key

    def split(self) -> list[FeaturizeTask]:
        """Divide the records into two tasks; return none for a single record."""
        return [replace(self, partition=half) for half in self.partition.halves()]

    def skipped(self) -> FeaturizeTask:
        """Return the same task, set to record a failure without reading its record."""
        return replace(self, skip=True)


def featurize_partition(task: FeaturizeTask) -> PartManifest:
    """Read one partition, write its part, and return the manifest; this is the body of a Dask task."""
    rows = _Rows(task.settings)
    if task.skip:
        for record in task.partition.unread("the process that read this record died (out of memory, or a crash)"):
            rows.add(record)
    else:
        for record in read_partition(task.partition, task.settings.options):
            rows.add(record)
    arrays = rows.arrays()
    counts = {
        "read": rows.read,
        "failed": len(rows.failures),
        STRUCTURE: len(rows.structures),
        ATOM: int(arrays["n_atoms"].sum()),
        EDGE: int(arrays["n_edges"].sum()),
    }
    reasons = Counter(reason.split(" (")[0].split(":")[0] for *_, reason in rows.failures)
    unread = [[*item, count] for item, count in rows.unread.items()]
    notes: dict[str, Any] = {"reasons": dict(reasons), "labels": dict(rows.labels_found), "unread": unread}
    notes |= {"without_volume": rows.without_volume, "asymmetric": rows.asymmetric, "unnamed": dict(rows.unnamed)}
    return write_part(task.folder, task.key, arrays, counts, notes)


@dataclass
class _Rows:
    """The structures and failures of one partition, collected record by record and then laid out as arrays."""

    settings: FeaturizeSettings
    read: int = 0
    structures: list[Structure] = field(default_factory=list)
    neighbors: list[NeighborList] = field(default_factory=list)
    labels: list[dict[str, NDArray[np.float64]]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    origins: list[tuple[str, int, str]] = field(default_factory=list)
    columns: list[tuple[str, ...]] = field(default_factory=list)
    failures: list[tuple[str, int, str, str]] = field(default_factory=list)
    labels_found: Counter[str] = field(default_factory=Counter)
    unread: Counter[tuple[str, str]] = field(default_factory=Counter)
    without_volume: int = 0
    asymmetric: int = 0
    unnamed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.mapping_elsewhere = self.settings.mapping.without_ase_defaults()

    def add(self, record: RawRecord) -> None:
        """Add a record: a structure with its graph and labels, or a failure with its reason."""
        self.read += 1
        origin = (record.source, record.index, self._structure_id(record))
        if record.structure is None:
            self.failures.append((*origin, record.reason))
            return
        mapping = self.settings.mapping if record.format in ASE_FORMATS else self.mapping_elsewhere
        try:
            status, neighbors, labels = self._featurize(record.structure, record.fields, mapping)
        except (InvalidStructureError, LabelError) as error:
            self.failures.append((*origin, str(error)))
            return
        except (ArithmeticError, ValueError, TypeError, RecursionError) as error:  # must not end the run
            self.failures.append((*origin, f"malformed record ({type(error).__name__}: {str(error)[:200]})"))
            return
        self.structures.append(record.structure)
        self.neighbors.append(neighbors)
        self.labels.append(labels)
        self.statuses.append(status)
        self.labels_found.update(labels.keys())
        if record.format in ASE_FORMATS:
            unread = mapping.unread(record.fields, len(record.structure), labels, _volume(record.structure))
            self.unread.update(unread.items())
        self.origins.append(origin)
        self.columns.append(tuple(_as_text(record.fields, name) for name in self.settings.mapping.columns))

    def _featurize(
        self, structure: Structure, fields: Mapping[str, Any], mapping: LabelMapping
    ) -> tuple[int, NeighborList, dict[str, NDArray[np.float64]]]:
        """Return status flags, neighbour list and labels of a structure."""
        neighbors = self._neighbors(structure)
        labels = mapping.extract(fields, len(structure), _volume(structure)) if mapping.labels else {}
        if not structure.pbc.all():
            # Stress is per volume, which is undefined here.
            self.without_volume += labels.pop(STRESS, None) is not None
        elif (stress := labels.get(STRESS)) is not None:
            difference, size = np.abs(stress - stress.T).max(), np.abs(stress).max()
            self.asymmetric += bool(difference > _ROUNDING * max(size, WEAK_STRESS))
            labels[STRESS] = (stress + stress.T) / 2
        status = self._status(structure, neighbors, labels)
        if len(structure) == 1 and _ISOLATED_ATOM.fullmatch(str(fields.get("config_type", ""))):
            status |= STATUS_NAMED_ISOLATED
        return status, neighbors, labels

    def _neighbors(self, structure: Structure) -> NeighborList:
        if len(structure) > self.settings.max_atoms:
            raise InvalidStructureError(f"too many atoms ({len(structure)}, more than {self.settings.max_atoms})")
        return neighbor_list(structure, self.settings.cutoff, max_edges=self.settings.max_edges)

    def _status(self, structure: Structure, neighbors: NeighborList, labels: Mapping[str, NDArray[np.float64]]) -> int:
        status = 0
        if not neighbors.n_neighbors.all():
            status |= STATUS_ISOLATED_ATOMS
        if labels and self.settings.mapping.breaks_symmetry(structure, labels):
            status |= STATUS_FORBIDDEN_TENSOR
        return status

    def _structure_id(self, record: RawRecord) -> str:
        if record.name is not None and self.settings.id_field is None:
            return record.name
        names = (self.settings.id_field,) if self.settings.id_field else ID_FIELDS
        unusable = []
        for name in names:
            value = lookup(record.fields, name)
            if isinstance(value, str | int | np.integer) and value != "":
                return str(value)
            if value is not None or self.settings.id_field is not None:
                unusable.append(name)
        if unusable:
            self.unnamed[unusable[0]] += 1
        file = file_name(record.source)
        # The format of an unreadable file is the one that its name suggests.
        single = record.format in _SINGLE_FORMATS or (record.structure is None and _SINGLE_NAME.search(file))
        stem = _SUFFIXES.sub("", file)
        return stem if single and record.index == 0 else f"{stem}:{record.index}"

    def arrays(self) -> dict[str, Any]:
        """Return all arrays of the part by name: rows of the store, failures, and what deduplication compares."""
        specs = {spec.name: spec for spec in graph_schema(self.settings.mapping)}
        n = len(self.structures)
        n_atoms = np.array([len(s) for s in self.structures], dtype=np.int32)
        out: dict[str, Any] = {
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
            "status": np.array(self.statuses, dtype=np.uint8),
            "source": [origin[0] for origin in self.origins],
            "source_index": np.array([origin[1] for origin in self.origins], dtype=np.int64),
            "structure_id": [origin[2] for origin in self.origins],
        }
        for name in self.labels_found:  # a label that no structure in this part has needs no rows of NaN
            out[name] = _label_rows(specs[name], [labels.get(name) for labels in self.labels], n_atoms)
        for place, name in enumerate(self.settings.mapping.columns):
            out[name] = [values[place] for values in self.columns]
        out["label_digest"] = label_digests(self.labels)
        out["id_digest"] = id_digests(out["structure_id"])
        for place, name in enumerate(FAILURE_ARRAYS):
            values = [failure[place] for failure in self.failures]
            out[name] = np.array(values, dtype=np.int64) if name == "failure_index" else list(map(str, values))
        if self.settings.dedup is Dedup.CRYSTAL:
            out["crystal_key"] = np.array([composition_key(s) for s in self.structures], dtype=np.uint64)
            vectors = [crystal_vector(s) for s in self.structures]
            out["crystal_vector"] = np.array(vectors, dtype=np.float64).reshape(n, -1 if n else 0)
        return out


def _volume(structure: Structure) -> float:
    """Return the volume of a structure, angstrom^3; NaN unless all three directions are periodic."""
    return structure.volume if structure.pbc.all() else math.nan


def label_digests(labels: Sequence[Mapping[str, NDArray[np.float64]]]) -> NDArray[np.uint64]:
    """Return digests of the labels of structures: uint64[n, 2], equal if all labels are equal; zero without labels."""
    digests = np.zeros((len(labels), 2), dtype=np.uint64)
    for row, found in enumerate(labels):
        if found:
            content = b"".join(name.encode() + values.tobytes() for name, values in sorted(found.items()))
            digests[row] = np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), dtype=np.uint64)
    return digests


def id_digests(ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return digests of structure ids: uint64[n], equal if two ids are equal."""
    content = b"".join(hashlib.blake2b(name.encode("utf-8", errors="replace"), digest_size=8).digest() for name in ids)
    return np.frombuffer(content, dtype=np.uint64)


def _as_text(fields: Mapping[str, Any], name: str) -> str:
    value = lookup(fields, name)
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


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
