"""The structures whose properties are computed: rows of a scores dataset or graph store."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError, SourceError, StoreError, input_changed
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.runs.parts import PartArray
from ...pipeline.store.graph_store import GraphStore, open_root
from ...pipeline.store.row_sources import absolute, opened
from ...pipeline.store.schema import GRAPH_SCHEMA, STRUCTURE, ArraySpec
from ...pipeline.store.writer import InputStore
from ..dataset.paths import dataset_in
from ..dataset.reader import ScoresReader, read_structures
from ..dataset.scores import CARRIED, SCORES_SCHEMA
from ..selection.filter_expression import parse_filter
from ..selection.variables import variables_of


@dataclass(frozen=True, slots=True)
class Candidates:
    """Chosen structures of a dataset.

    Attributes:
        graphs: Graph store of the structures.
        scores: Scores dataset of the structures; None if the source is a graph store.
        rows: int64[n], rows of the structures, ascending.
        left_out: Number of rows that the filter or the limit leaves out.
    """

    graphs: GraphStore
    scores: ScoresReader | None
    rows: NDArray[np.int64]
    left_out: int

    @classmethod
    def of(
        cls, source: str | Path, where: str | None = None, limit: int | None = None, store: str | Path | None = None
    ) -> Self:
        """Choose structures.

        Args:
            source: Path or URL of a scores dataset or graph store, or a folder of results that holds a dataset.
            where: Filter expression on the columns of the dataset; see `selection.filter_expression`.
            limit: Choose only the first structures, at most this many.
            store: Graph store of the dataset, if it was moved.

        Raises:
            SourceError: The source is a file of structures.
            StoreError: The source or its graph store cannot be read, or no structure meets the filter.
            ConfigError: The filter is invalid, or is given for a graph store; or the limit is below 1.
        """
        if limit is not None and limit < 1:
            raise ConfigError(f"the limit is {limit} structures; it must be at least 1")
        path = _store_in(source)
        if open_root(path, SCORES_SCHEMA, GRAPH_SCHEMA).attrs["schema"] == GRAPH_SCHEMA:
            if where is not None:
                raise ConfigError(
                    f"{path} is a graph store, which --where cannot filter; give the dataset of "
                    "`equiscreen relax`, `hull` or `select` instead"
                )
            graphs, scores = GraphStore(path), None
            rows = np.arange(len(graphs), dtype=np.int64)
        else:
            scores = ScoresReader(path, store)
            graphs, rows = scores.graphs, _rows(scores, where)
        chosen = rows[:limit]
        if len(chosen) == 0:
            raise StoreError(f"{path}: no structure meets --where; loosen it")
        return cls(graphs, scores, chosen, (len(graphs) if scores is None else len(scores)) - len(chosen))

    def columns(self, taken: Collection[str]) -> tuple[ArraySpec, ...]:
        """Return the columns of the source that are copied to the new dataset.

        Args:
            taken: Names of arrays that are computed for the new dataset.
        """
        if self.scores is not None:
            given = list(self.scores.specs.values())
        else:
            given = [spec for spec in self.graphs.specs.values() if spec.attrs.get("role") == "column"]
        return tuple(spec for spec in given if spec.dims[0] == STRUCTURE and spec.name not in taken)

    def inputs(self) -> list[InputStore]:
        """Return the stores that are read."""
        graphs = [InputStore.of(self.graphs)]
        if self.scores is None:
            return graphs
        path = self.scores.path if "://" in str(self.scores.path) else Path(self.scores.path)
        return [*graphs, InputStore(path, self.scores.hash, SCORES_SCHEMA)]

    def place(self) -> RowsOnDisk:
        """Return the paths and hashes with which workers open the structures."""
        scores = None
        if self.scores is not None:
            scores = str(absolute(Path(self.scores.path))) if "://" not in str(self.scores.path) else self.scores.path
        return RowsOnDisk(
            str(absolute(self.graphs.path)),
            self.graphs.store_hash,
            None if scores is None else str(scores),
            "" if self.scores is None else self.scores.hash,
        )


@dataclass(frozen=True, slots=True)
class RowsOnDisk:
    """A graph store and its scores dataset, as workers open them.

    Attributes:
        graphs: Path or URL of the graph store.
        graphs_hash: Hash of the graph store when the run began.
        scores: Path or URL of the scores dataset; None if there is none.
        scores_hash: Hash of the scores dataset when the run began.
    """

    graphs: str
    graphs_hash: str
    scores: str | None
    scores_hash: str

    @property
    def graph_store(self) -> GraphStore:
        """The graph store.

        Raises:
            StoreError: The store cannot be read, or has changed.
        """
        return opened(self.graphs, self.graphs_hash)

    def block(self, rows: NDArray[np.int64]) -> GraphBlock:
        """Return the graphs of some structures."""
        graphs = self.graph_store
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        return GraphBlock.concatenate([graphs.block(int(run[0]), int(run[-1]) + 1, labels=False) for run in runs])

    def graph_columns(self, names: Collection[str], rows: NDArray[np.int64]) -> dict[str, PartArray]:
        """Return the ids and sources of some structures, and further columns of the graph store."""
        found = read_structures(self.graph_store, rows, (*CARRIED, *names))
        return {name: _listed(values) for name, values in found.items()}

    def columns(self, names: Collection[str], rows: NDArray[np.int64]) -> dict[str, PartArray]:
        """Return the ids and sources of some structures, and columns to copy.

        Raises:
            StoreError: A store cannot be read, or has changed.
        """
        if self.scores is None:
            return self.graph_columns(names, rows)
        scores = _scores(self.scores, self.scores_hash)
        return self.graph_columns((), rows) | {name: _listed(scores.rows(name, rows)) for name in names}


def _listed(values: NDArray[Any]) -> PartArray:
    return values.tolist() if values.dtype.kind in "TO" else values


@lru_cache(maxsize=2)
def _scores(path: str, store_hash: str) -> ScoresReader:
    scores = ScoresReader(path)
    if scores.hash != store_hash:
        raise input_changed(path)
    return scores


def _store_in(source: str | Path) -> str | Path:
    """Return the path of the store at a path, or of the dataset in a folder of results.

    Raises:
        SourceError: The path is a file of structures.
    """
    path = dataset_in(source)
    if "://" not in str(path) and Path(path).is_file():
        raise SourceError(
            f"{path} is a file; relax its structures first (`equiscreen relax {path} --model NAME --out R.zarr`), "
            "and compute the properties of R.zarr"
        )
    return path


def _rows(scores: ScoresReader, where: str | None) -> NDArray[np.int64]:
    """Return the rows that meet a filter: int64[n]; all rows without a filter."""
    if where is None:
        return np.arange(len(scores), dtype=np.int64)
    condition = parse_filter(where, variables_of(scores))
    found = [np.empty(0, dtype=np.int64)]
    for start, stop in scores.chunks():
        columns = {name: scores.column(name, start, stop) for name in condition.names}
        found.append(start + np.flatnonzero(condition.holds(columns, stop - start)))
    return np.concatenate(found)
