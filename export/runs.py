"""What all runs of a model over a graph store have in common: how it is divided, what is said of store and model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pipeline.errors import ModelFileError
from ..pipeline.schema import STRUCTURE
from ..pipeline.store import GraphStore
from .runtime import OnnxPotential


def cut(n_edges: NDArray[np.int32], part_edges: int, part_structures: int) -> list[tuple[int, int]]:
    """Divide structures into parts: (start, stop) of each. Workers play no role in it.

    Args:
        n_edges: int32[n_structures].
        part_edges: A part ends when it has so many edges,
        part_structures: or so many structures.
    """
    ends = np.cumsum(n_edges, dtype=np.int64)
    spans: list[tuple[int, int]] = []
    start = before = 0
    while start < len(ends):
        full = int(np.searchsorted(ends, before + part_edges)) + 1
        stop = min(full, start + part_structures, len(ends))
        spans.append((start, stop))
        start, before = stop, int(ends[stop - 1])
    return spans


def column_names(graphs: GraphStore) -> tuple[str, ...]:
    """Input columns that the store carries along."""
    return tuple(
        name for name, spec in graphs.specs.items() if spec.attrs.get("role") == "column" and spec.dims[0] == STRUCTURE
    )


def check_cutoff(graphs: GraphStore, potential: OnnxPotential, model: str | Path) -> None:
    """Refuse a model that looks further than the graphs of a store.

    Raises:
        ModelFileError: It does.
    """
    if graphs.cutoff < potential.cutoff:
        raise ModelFileError(
            f"{graphs.path}: its graphs end at {graphs.cutoff} angstrom, the model looks {potential.cutoff} far; "
            f"run `equiscreen featurize SOURCE... --out NEW.zarr --model {model}`"
        )


def model_provenance(model: str | Path, potential: OnnxPotential) -> dict[str, Any]:
    """Which model the results come from."""
    return {
        "path": str(model),
        "sha256": potential.sha256,
        "weights_sha256": potential.metadata.weights_sha256,
        "energy_scheme": potential.metadata.energy_scheme,
        "symmetry": potential.metadata.symmetry,
        "members": potential.metadata.members,
        "cutoff": potential.cutoff,
    }


def listed(statuses: Mapping[str, int]) -> str:
    """Statuses that there are, in words."""
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in statuses.items() if count)
