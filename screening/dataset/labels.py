"""A graph store with labelled energies, such as DFT results, read as if it were a scores dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import StoreError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.provenance import recorded_path
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.schema import CHUNK_ROWS, STRUCTURE, ArraySpec
from ..chemistry.composition import formulas
from .parts import carried_columns
from .scores import ENERGY_ARRAYS, NOT_FINITE, OK, SCORES_SCHEMA, STRUCTURE_ARRAYS

ENERGY = "energy"
# Name of this kind of dataset in the attributes of datasets that are made from it.
LABELLED = "labelled"
_SPECS = {spec.name: spec for spec in (*ENERGY_ARRAYS, *STRUCTURE_ARRAYS)}


class _ComputedArray:
    """An array whose rows are computed from a graph store when they are read."""

    chunks = (CHUNK_ROWS[STRUCTURE],)

    def __init__(self, size: int, rows: Callable[[int, int], NDArray[Any]]) -> None:
        self.shape = (size,)
        self._rows = rows

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(self.shape[0])
        return self._rows(start, stop)


def label_arrays(graphs: GraphStore, scheme: str) -> tuple[Mapping[str, Any], dict[str, Any], dict[str, ArraySpec]]:
    """Return the arrays of a graph store with energies, under their names in a scores dataset.

    Args:
        graphs: The graph store.
        scheme: Energy scheme of the labels.

    Returns:
        Attributes as in a scores dataset; arrays, to be read in slices; and the definitions of the arrays.

    Raises:
        StoreError: The store has no energies.
    """
    path = graphs.path
    if ENERGY not in graphs.specs:
        raise StoreError(
            f"{path} has no energies; repeat `equiscreen featurize` with --label energy=FIELD[eV], or score the store "
            "first"
        )
    computed: dict[str, Callable[[int, int], NDArray[Any]]] = {
        "energy_per_atom": lambda start, stop: _energy(graphs, start, stop) / graphs.column("n_atoms", start, stop),
        "formula": lambda start, stop: formulas(_block(graphs, start, stop)),
        "volume": lambda start, stop: _volumes(_block(graphs, start, stop)),
        "status": lambda start, stop: np.where(np.isfinite(_energy(graphs, start, stop)), OK, NOT_FINITE).astype("u1"),
    }
    stored = [name for name in (ENERGY, "structure_id", "source", "source_index", "n_atoms") if name in graphs.specs]
    columns = carried_columns(graphs, _SPECS.values())
    size = len(graphs)
    arrays = {name: _ComputedArray(size, rows) for name, rows in computed.items()} | {
        name: _ComputedArray(size, _reader(graphs, name)) for name in (*stored, *columns)
    }
    specs = {name: _SPECS.get(name) or graphs.specs[name] for name in arrays}
    attrs = {
        "schema": SCORES_SCHEMA,
        "kind": LABELLED,
        "store_hash": graphs.store_hash,
        "graph_store": {"path": recorded_path(path, path), "store_hash": graphs.store_hash},
        "model": {"energy_scheme": scheme},
        "software": graphs.attrs.get("software", {}),
    }
    return attrs, arrays, specs


def graph_store_at(path: str | Path) -> GraphStore | None:
    """Return the graph store at a path or URL; None if there is no readable, finished graph store."""
    try:
        return GraphStore(path)
    except StoreError:
        return None


def _reader(graphs: GraphStore, name: str) -> Callable[[int, int], NDArray[Any]]:
    return lambda start, stop: graphs.column(name, start, stop)


def _energy(graphs: GraphStore, start: int, stop: int) -> NDArray[np.float64]:
    return np.asarray(graphs.column(ENERGY, start, stop), dtype=np.float64)


def _block(graphs: GraphStore, start: int, stop: int) -> GraphBlock:
    return graphs.block(start, stop, labels=False)


def _volumes(block: GraphBlock) -> NDArray[np.float64]:
    """Return volumes: float64[n], angstrom^3; NaN for structures that are not periodic in three directions."""
    return np.where(block.pbc.all(axis=1), np.abs(np.linalg.det(block.cell)), np.nan)
