"""Subsets: selected rows of a scores dataset, and of its graph store, written as separate stores."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.provenance import recorded_path
from ...pipeline.runs.parts import PartArray, PartKey, PartManifest, write_part
from ...pipeline.store.compaction import START_ARRAYS, finish_store, write_shards
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.schema import ATOM, EDGE, STRUCTURE, TEXT, ArraySpec
from ...pipeline.store.tables import write_empty_tables
from ...pipeline.store.writer import concatenation
from .reader import read_structures

_BATCH = 512  # structures read at a time
_DIM_COUNTS = {ATOM: "n_atoms", EDGE: "n_edges"}


class Subset:
    """A store that is written chunk by chunk.

    Args:
        folder: Folder to create for its parts.
        store: Path of the store to write.
        specs: Arrays of the store.
    """

    def __init__(self, folder: Path, store: Path, specs: Sequence[ArraySpec]) -> None:
        self._folder, self.store, self.specs = folder, store, tuple(specs)
        self._manifests: list[PartManifest] = []
        folder.mkdir(parents=True)

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Append rows.

        Args:
            arrays: Rows of every array, except for those with the first atom and edge of each structure.
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
        """Assemble the store from its parts.

        Returns:
            Hash of the store.
        """
        compaction = concatenation(self.store, self._folder, self.specs, self._manifests)
        return finish_store(self.store, write_shards(compaction), attrs)


class GraphSubset:
    """Selected structures of a graph store, with their graphs, labels and columns.

    Args:
        folder: Folder to create for the parts.
        store: Path of the store to write.
        graphs: Graph store that the structures come from.
        out: Final path of the store.
    """

    def __init__(self, folder: Path, store: Path, graphs: GraphStore, out: Path) -> None:
        self._graphs, self._out = graphs, out
        self._subset = Subset(folder, store, list(graphs.specs.values()))

    def write(self, rows: NDArray[np.int64]) -> None:
        """Append structures.

        Args:
            rows: int64[n], rows of the structures in the graph store, in any order.
        """
        names = [name for name in self._graphs.specs if name not in START_ARRAYS]
        self._subset.write(read_structures(self._graphs, rows, names))

    def finish(self, size: int) -> str:
        """Assemble the store from its parts.

        Args:
            size: Number of structures.

        Returns:
            Hash of the store.
        """
        kept = ("schema", "cutoff", "cutoff_units", "software")
        attrs = {name: self._graphs.attrs[name] for name in kept if name in self._graphs.attrs}
        source = {"path": recorded_path(self._graphs.path, self._out), "store_hash": self._graphs.store_hash}
        counts = {"read": size, "stored": size, "failed": 0, "duplicate": 0}
        recipe = {"selected": size}
        found = self._subset.finish({**attrs, "recipe": recipe, "selected_from": source, "counts": counts})
        write_empty_tables(self._subset.store)
        return found


def write_graph_subset(out: Path, graphs: GraphStore, rows: NDArray[np.int64]) -> None:
    """Write selected structures of a graph store as a graph store, which appears under its name when it is complete.

    Args:
        out: Graph store to write, such as ``chosen.zarr``; ``chosen.parts`` and ``chosen.partial`` beside it are
            scratch folders.
        graphs: Graph store that the structures come from.
        rows: int64[n], rows of the structures, in any order.

    Raises:
        StoreError: The graph store is damaged, or changed while it was read.
    """
    parts, scratch = out.with_suffix(".parts"), out.with_suffix(".partial")
    for place in (parts, scratch):
        shutil.rmtree(place, ignore_errors=True)
    subset = GraphSubset(parts, scratch, graphs, out)
    for start in range(0, len(rows), _BATCH):
        subset.write(rows[start : start + _BATCH])
    subset.finish(len(rows))
    graphs.check_unchanged()
    scratch.rename(out)
    shutil.rmtree(parts)
