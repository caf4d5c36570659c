"""Schemas of the failures and duplicates tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FAILURES_FILE, DUPLICATES_FILE = "failures.parquet", "duplicates.parquet"
_ORIGIN = [("source", pa.string()), ("source_index", pa.int64()), ("structure_id", pa.string())]
FAILURE_SCHEMA = pa.schema([*_ORIGIN, ("reason", pa.string())])
DUPLICATE_SCHEMA = pa.schema([*_ORIGIN, ("duplicate_of", pa.string())])


def write_empty_tables(store: Path) -> None:
    """Write both tables without rows into a graph store that is derived from another one."""
    for file, schema in ((FAILURES_FILE, FAILURE_SCHEMA), (DUPLICATES_FILE, DUPLICATE_SCHEMA)):
        pq.write_table(schema.empty_table(), store / file)
