"""Answers of the server: rows as JSON, CSV or Arrow, and a structure as CIF."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.store.schema import TEXT
from ...pipeline.structures.cif_text import cif_text
from ...screening.dataset.parquet import arrow_table, as_words
from ...screening.dataset.reader import flag_meanings
from ...screening.selection.structure_files import file_names
from .queries import Found, Query, ServedScores

ROW = "row"
MEDIA_TYPES = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "arrow": "application/vnd.apache.arrow.stream",
}


def answer(served: ServedScores, query: Query) -> bytes:
    """Return the rows that meet a query, encoded in the format that it requests.

    Raises:
        ConfigError: A condition or column is invalid, or the format cannot hold a column.
        StoreError: The dataset cannot be read.
    """
    named = [name.strip() for name in query.columns.split(",") if name.strip()]
    columns = list(dict.fromkeys(named)) or served.shown
    found = served.find(query, query.page_size)
    table = _table(served, found, columns)
    if query.format == "json":
        return _json(served, query, found, table)
    if query.format == "csv":
        wide = [name for name in columns if len(served.reader.specs[name].dims) > 1]
        if wide:
            raise ConfigError(
                f"{wide[0]} holds several numbers per structure, which CSV cannot hold; use format=json or format=arrow"
            )
        file = io.BytesIO()
        pyarrow.csv.write_csv(pa.table([*map(_plain, table.columns)], names=table.column_names), file)
        return file.getvalue()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def shown_rows(served: ServedScores, rows: NDArray[np.int64], columns: Sequence[str]) -> list[list[Any]]:
    """Return the cells of some rows for a page, with flags as words."""
    cells = []
    for name in columns:
        values, spec = served.column(name)[rows], served.reader.specs[name]
        meanings = flag_meanings(spec.attrs)
        cells.append((as_words(values, meanings) if meanings else values).tolist())
    return [list(row) for row in zip(*cells, strict=True)]


def structure_cif(served: ServedScores, row: int) -> tuple[str, str]:
    """Return the CIF of a structure, with the values in its row, and a name for the file.

    Raises:
        ConfigError: There is no such row, or the structure is not periodic in three directions.
        StoreError: The graph store cannot be read.
    """
    if not 0 <= row < len(served):
        raise ConfigError(f"there is no row {row}; the last is {len(served) - 1}")
    rows = np.array([row], dtype=np.int64)
    structure = served.reader.structures(rows)[0]
    if not structure.pbc.all():
        raise ConfigError(f"the structure in row {row} is not periodic in three directions, so it has no CIF")
    facts: dict[str, Any] = {}
    for name in served.shown:
        spec = served.reader.specs[name]
        value = shown_rows(served, rows, [name])[0][0]
        missing = value == "" if spec.dtype == TEXT else isinstance(value, float) and not math.isfinite(value)
        if not missing:
            facts[name] = value
    name = file_names([str(facts.get("structure_id", ""))], row, 1)[0]
    return cif_text(structure, name, facts), name


def _table(served: ServedScores, found: Found, columns: Sequence[str]) -> pa.Table:
    """Return the rows of an answer as a table; the first column is the row in the dataset."""
    values = {name: served.column(name)[found.rows] for name in columns}
    table = arrow_table(values, [served.reader.specs[name] for name in columns])
    return table.add_column(0, ROW, pa.array(found.rows))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column for CSV: flags as text, and missing numbers as empty cells."""
    if pa.types.is_dictionary(column.type):
        return column.cast(pa.string())
    if pa.types.is_floating(column.type):
        return pyarrow.compute.if_else(pyarrow.compute.is_nan(column), None, column)
    return column


def _json(served: ServedScores, query: Query, found: Found, table: pa.Table) -> bytes:
    specs = served.reader.specs
    units = {name: str(specs[name].attrs["units"]) for name in table.column_names[1:] if specs[name].attrs.get("units")}
    content = {
        "total": found.total,
        "page": query.page,
        "page_size": query.page_size,
        "pages": -(-found.total // query.page_size),
        "sorted_by": found.sorted_by,
        "units": units,
        "rows": table.to_pylist(),
    }
    return orjson.dumps(content)  # missing numbers become null
