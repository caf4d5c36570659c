"""The body of a featurize task: the records of one partition become the arrays of one part."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidStructureError, LabelError
from .labels import LabelMapping
from .neighbors import NeighborList, neighbor_list
from .parts import Receipt, text_array, write_part
from .readers import RawRecord, ReadOptions, read_partition
from .schema import ATOM, EDGE, ArraySpec, empty_rows, graph_schema
from .sources import Format, Partition
from .structure import HASH_BYTES, Structure

# Fields that name a structure where no other is said.
ID_FIELDS = ("material_id", "mat_id", "entry_id", "structure_id", "id")
FAILURE_ARRAYS = ("failure_source", "failure_index", "failure_id", "failure_reason")


@dataclass(frozen=True, slots=True)
class FeaturizeSettings:
    """What every task is told.

    Attributes:
        cutoff: Angstrom.
        mapping: Labels and columns, with ASE's defaults if some source is extended XYZ.
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


def featurize_partition(task: FeaturizeTask) -> Receipt:
    """Read one partition and write its part; the body of a Dask task."""
    mapping = task.settings.mapping
    if task.partition.files[0].format is not Format.EXTXYZ:
        mapping = mapping.without_ase_defaults()
    rows = _Rows(task.settings, mapping)
    for record in read_partition(task.partition, task.settings.options):
        rows.add(record)
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
    mapping: LabelMapping
    read: int = 0
    structures: list[Structure] = field(default_factory=list)
    neighbors: list[NeighborList] = field(default_factory=list)
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
            labels = self.mapping.extract(record.fields, len(record.structure))
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
            if isinstance(value, str | int | np.integer) and value != "":
                return str(value)
        stem = re.sub(r"(\.(cif|csv|xyz|extxyz|json))?(\.gz)?$", "", Path(record.source).name)
        alone = ".cif" in Path(record.source).suffixes and record.index == 0
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
        for place, name in enumerate(FAILURE_ARRAYS):
            values = [failure[place] for failure in self.failures]
            out[name] = np.array(values, dtype=np.int64) if name == "failure_index" else text_array(map(str, values))
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
