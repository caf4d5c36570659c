"""Screening: score every structure of a graph store with an exported model, on Dask workers."""

from __future__ import annotations

import hashlib
import math
import resource
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..pipeline.cluster import IN_PROCESS, connect, dashboard
from ..pipeline.compaction import Compaction, finish_store, offsets_of
from ..pipeline.errors import ConfigError, ModelFileError, StoreError
from ..pipeline.parts import Receipt
from ..pipeline.progress import ProgressReport
from ..pipeline.rows import PartRows, absolute
from ..pipeline.schema import STRUCTURE, TEXT, ArraySpec
from ..pipeline.staging import Staging, compact, make_parts, staged, taken_up
from ..pipeline.store import GraphStore
from .devices import CPU, providers
from .runtime import DEFAULT_SLOTS, OnnxPotential
from .scores import COORDINATES, OK, SCORES_SCHEMA, STATUS_MEANINGS, open_scores, score_arrays, score_block

# A part ends at whichever comes first; a killed worker loses at most one.
PART_EDGES = 250_000
PART_STRUCTURES = 4_096
ESTIMATE_STRUCTURES = 500


def screen(
    store: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    slots: int = DEFAULT_SLOTS,
    device: str = CPU,
    scheduler: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Score every structure of a graph store.

    A run that was killed is taken up where it was by calling it again with the same arguments. Structures that cannot
    be scored have a `status` that says why, and NaN scores.

    Args:
        store: Graph store.
        model: ONNX file made by `export_onnx`.
        out: Scores dataset to write.
        slots: Neighbour slots evaluated at once.
        device: What workers compute with, see `devices.providers`.
        scheduler: See `pipeline.cluster.connect`.
        limit: Score only the first structures.
        overwrite: Replace an existing dataset.
        progress: Show progress on standard error.

    Returns:
        The scores, opened; `scores.score_arrays` lists its variables.

    Raises:
        StoreError: The store cannot be read, or nothing in it could be scored.
        ModelFileError: The model cannot be used, or looks further than the store's graphs.
        DeviceError: No such device here, or on a worker.
        OutputExistsError: The output exists, or is being written by another run.
    """
    from .worker import ModelPlugin, ScreenTask, screen_part  # noqa: PLC0415 - imports distributed, which takes 0.7 s

    begin = time.monotonic()
    graphs = GraphStore(store)
    potential = OnnxPotential.load(model, threads=1)
    _check_cutoff(graphs, potential, model)
    if scheduler in (None, IN_PROCESS):
        providers(device)  # workers elsewhere have other devices
    size = len(graphs) if limit is None else min(limit, len(graphs))
    if size < 1:
        raise ConfigError("a limit below one structure")
    spans = cut(graphs.n_edges[:size])
    identity = {
        "schema": SCORES_SCHEMA,
        "store_hash": graphs.store_hash,
        "model_sha256": potential.sha256,
        "limit": limit,
        "slots": slots,
        "device": device,
        "parts": hashlib.sha256(repr(spans).encode()).hexdigest(),
        "equiscreen": version("equiscreen"),
    }
    arrays = score_arrays(potential.outputs)
    outputs = {spec.name for spec in arrays}
    columns = tuple(name for name in column_names(graphs) if name not in outputs)
    if taken_up(out, identity) is not None:
        return open_scores(out)
    inputs = [Path(path) for path in (graphs.path, model) if "://" not in str(path)]
    with staged(out, identity, inputs, overwrite=overwrite) as staging:
        tasks = [
            ScreenTask(number, start, stop, absolute(graphs.path), columns, potential.sha256, staging.parts)
            for number, (start, stop) in enumerate(spans)
        ]
        done = staging.receipts()
        with connect(scheduler) as client, ProgressReport("screen", size, enabled=progress) as bar:
            bar.note(f"Dask dashboard: {dashboard(client)}")
            client.register_plugin(ModelPlugin(Path(model).resolve(), potential.sha256, slots, device))
            receipts = make_parts(client, staging, screen_part, [task for task in tasks if task.key not in done], bar)
            digests = compact(client, _compaction(staging, receipts, arrays, columns))
        counts = np.sum([receipt.notes["status"] for receipt in receipts], axis=0)
        statuses = dict(zip(STATUS_MEANINGS, counts.tolist(), strict=True))
        if counts[OK] == 0:
            staging.discard()
            raise StoreError(f"{store}: not one of {size} structures could be scored: {_listed(statuses)}")
        seconds = time.monotonic() - begin
        attrs = {
            "coordinates": " ".join((*COORDINATES, *columns)),
            **_provenance(graphs, model, potential),
            "settings": {"slots": slots, "limit": limit, "device": device},
            "status_counts": statuses,
            "timing": {"seconds": round(seconds, 3), "structures_per_second": round(size / seconds, 1)},
        }
        finish_store(staging.store, digests, attrs)
        staging.publish({})
    return open_scores(out)


def _compaction(
    staging: Staging, receipts: Sequence[Receipt], arrays: tuple[ArraySpec, ...], columns: tuple[str, ...]
) -> Compaction:
    """All rows of all parts, one after the other."""
    rows = offsets_of([receipt.counts["read"] for receipt in receipts])
    return Compaction(
        store=staging.store,
        specs=(*arrays, *(ArraySpec(name, (STRUCTURE,), TEXT) for name in columns)),
        sources=tuple(PartRows(staging.parts, receipt.key, {}) for receipt in receipts),
        source_rows={STRUCTURE: rows},
        keep=None,
        status=None,
        structure_offsets=rows,
    )


def _provenance(graphs: GraphStore, model: str | Path, potential: OnnxPotential) -> dict[str, Any]:
    """Which data and which model the scores come from."""
    return {
        "schema": SCORES_SCHEMA,
        "graph_store": {"path": str(graphs.path), "store_hash": graphs.store_hash},
        "model": {
            "path": str(model),
            "sha256": potential.sha256,
            "weights_sha256": potential.metadata.weights_sha256,
            "energy_scheme": potential.metadata.energy_scheme,
            "symmetry": potential.metadata.symmetry,
            "members": potential.metadata.members,
            "cutoff": potential.cutoff,
        },
        "software": {name: version(name) for name in ("equiscreen", "onnxruntime", "numpy")},
    }


def account(scores: xr.Dataset, path: str | Path) -> str:
    """One line on a finished screen."""
    timing = scores.attrs["timing"]
    return (
        f"{path}: {scores.sizes[STRUCTURE]:,} structures ({_listed(scores.attrs['status_counts'])}); "
        f"{timing['seconds']:.1f} s, {timing['structures_per_second']:,.0f} structures/s"
    )


def estimate(store: str | Path, model: str | Path, limit: int | None = None, *, sample_of: int | None = None) -> str:
    """Score the first structures in this process and scale up to the store, by edges.

    Args:
        store: As for `screen`, like the model and the limit.
        model: ONNX file.
        limit: Score only the first structures.
        sample_of: The store is a sample of so many structures, to which to scale up.

    Raises:
        StoreError: As for `screen`.
        ModelFileError: As for `screen`.
    """
    graphs = GraphStore(store)
    potential = OnnxPotential.load(model, threads=1)
    _check_cutoff(graphs, potential, model)
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


def cut(n_edges: np.ndarray[Any, np.dtype[np.int32]]) -> list[tuple[int, int]]:
    """Divide structures into parts by their edges: (start, stop) of each. Workers play no role in it."""
    spans, start, edges = [], 0, 0
    for index, count in enumerate(n_edges.tolist()):
        edges += count
        if edges >= PART_EDGES or index + 1 - start >= PART_STRUCTURES:
            spans.append((start, index + 1))
            start, edges = index + 1, 0
    if start < len(n_edges):
        spans.append((start, len(n_edges)))
    return spans


def column_names(graphs: GraphStore) -> tuple[str, ...]:
    """Input columns that the store carries along."""
    return tuple(name for name, spec in graphs.specs.items() if spec.attrs.get("role") == "column")


def _check_cutoff(graphs: GraphStore, potential: OnnxPotential, model: str | Path) -> None:
    if graphs.cutoff < potential.cutoff:
        raise ModelFileError(
            f"{graphs.path}: its graphs end at {graphs.cutoff} angstrom, the model looks {potential.cutoff} far; "
            f"run `equiscreen featurize SOURCE... --out NEW.zarr --model {model}`"
        )


def _listed(statuses: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in statuses.items() if count)
