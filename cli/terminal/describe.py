"""Descriptions of the files and folders that equiscreen writes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import zarr

from ...export.runtime.onnx_potential import OnnxPotential
from ...pipeline.errors import EquiscreenError, StoreError
from ...pipeline.redaction import redact_urls
from ...pipeline.store.graph_store import GraphStore, open_root
from ...pipeline.store.schema import GRAPH_SCHEMA
from ...screening.dataset.paths import dataset_in
from ...screening.dataset.scores import SCORES_SCHEMA


def describe(path: str | Path) -> dict[str, Any]:
    """Describe a graph store, scores dataset, results folder, run folder, checkpoint or ONNX model.

    Args:
        path: Path of the file or folder; graph stores and scores datasets may also be URLs.

    Returns:
        The stored metadata, ready for JSON.

    Raises:
        EquiscreenError: There is no such file, or it was not written by equiscreen.
    """
    if "://" in str(path):
        return _describe_store(path)
    target = Path(path)
    if not target.exists() and not target.with_name(f"{target.name}.partial").exists():
        raise EquiscreenError(f"{path}: no such file or folder")
    if target.suffix == ".onnx":
        return _describe_model(target)
    if target.suffix == ".ckpt" or any((target / name).exists() for name in ("run.json", "ensemble.json")):
        return _describe_checkpoint(target)
    if target.is_file():
        raise EquiscreenError(
            f"{path} is not a store, .ckpt or .onnx file; `equiscreen featurize` makes a store from structure files"
        )
    return _describe_store(dataset_in(target))


def verify_store(path: str | Path) -> str:
    """Recompute the checksums of a graph store and compare them with the stored ones.

    Returns:
        A line stating that all checksums match.

    Raises:
        StoreError: The path is not a graph store, or some checksums do not match; the message names the damaged parts.
    """
    damaged = GraphStore(path).verify()
    if damaged:
        raise StoreError(
            f"{path}: the store is damaged ({', '.join(damaged)}); repeat the command that wrote it, with --overwrite"
        )
    return f"{redact_urls(str(path))}: all checksums match"


def _describe_store(path: str | Path) -> dict[str, Any]:
    root = open_root(path, GRAPH_SCHEMA, SCORES_SCHEMA)
    arrays = {
        name: {
            "shape": list(array.shape),
            "units": array.attrs.get("units", ""),
            "description": array.attrs.get("description", ""),
        }
        for name, array in sorted(root.arrays())
        if isinstance(array, zarr.Array)
    }
    return {"path": redact_urls(str(path)), **dict(root.attrs), "arrays": arrays}


def _describe_model(path: Path) -> dict[str, Any]:
    potential = OnnxPotential.load(path, threads=1)
    facts = asdict(potential.metadata)
    batch = facts.pop("probe_batch") or {"structures": []}
    return {"path": str(path), "sha256": potential.sha256, **facts, "probe_batch_structures": len(batch["structures"])}


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    from ...model.checkpoint import describe_checkpoint  # needs PyTorch, which scoring does not

    return describe_checkpoint(path)
