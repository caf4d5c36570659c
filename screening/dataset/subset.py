"""Some rows of a dataset as a dataset of its own: of scores, and of the graph store that they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.runs.parts import PartArray, PartKey, PartManifest, write_part
from ...pipeline.store.compaction import START_ARRAYS, finish_store, write_shards
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.schema import ATOM, EDGE, STRUCTURE, TEXT, ArraySpec
from ...pipeline.store.tables import (
    write_empty_tables,
)
from ...pipeline.store.writer import concatenation
from .reader import read_structures

_DIM_COUNTS = {ATOM: "n_atoms", EDGE: "n_edges"}


class Subset:
    """A store that is written some rows at a time.

    Args:
        folder: For its parts; to be made.
        store: To be made.
        specs: Its arrays.
    """

    def __init__(self, folder: Path, store: Path, specs: Sequence[ArraySpec]) -> None:
        self._folder, self.store, self.specs = folder, store, tuple(specs)
        self._manifests: list[PartManifest] = []
        folder.mkdir(parents=True)

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Add rows.

        Args:
            arrays: Of every spec, but for those that say where the atoms and edges of a structure begin.
        """
        size = len(arrays["structure_id"])
        dims = {spec.dims[0] for spec in self.specs} - {STRUCTURE}
        counts = {"read": size, **{dim: int(arrays[_DIM_COUNTS[dim]].sum(dtype=np.int64)) for dim in dims}}
        packed: dict[str, PartArray] = {}
        for spec in self.specs:
            if spec.name not in START_ARRAYS:
                values = arrays[spec.name]
                packed[spec.name] = values.tolist() if spec.dtype == TEXT else values
        key = PartKey(len(self._manifests), 0, size)
        self._manifests.append(write_part(self._folder, key, packed, counts, {}))

    def finish(self, attrs: Mapping[str, Any]) -> str:
        """Put the parts together.

        Returns:
            The store's hash.
        """
        compaction = concatenation(self.store, self._folder, self.specs, self._manifests)
        return finish_store(self.store, write_shards(compaction), attrs)


class GraphSubset:
    """Some structures of a graph store, with their graphs, labels and columns.

    Args:
        folder: For its parts.
        store: To be made.
        graphs: The store that they are of.
    """

    def __init__(self, folder: Path, store: Path, graphs: GraphStore) -> None:
        self._graphs = graphs
        self._subset = Subset(folder, store, list(graphs.specs.values()))

    def write(self, rows: NDArray[np.int64]) -> None:
        """Add structures."""
        names = [name for name in self._graphs.specs if name not in START_ARRAYS]
        self._subset.write(read_structures(self._graphs, rows, names))

    def finish(self, size: int) -> str:
        """Put the parts together.

        Returns:
            The store's hash.
        """
        kept = ("schema", "cutoff", "cutoff_units", "software")
        attrs = {name: self._graphs.attrs[name] for name in kept if name in self._graphs.attrs}
        source = {"path": str(self._graphs.path), "store_hash": self._graphs.store_hash}
        counts = {"read": size, "stored": size, "failed": 0, "duplicate": 0}
        recipe = {"selected": size}
        found = self._subset.finish({**attrs, "recipe": recipe, "selected_from": source, "counts": counts})
        write_empty_tables(self._subset.store)
        return found
