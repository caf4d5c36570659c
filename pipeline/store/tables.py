"""Schemas of the failures and duplicates tables."""

from __future__ import annotations

import pyarrow as pa

FAILURES_FILE, DUPLICATES_FILE = "failures.parquet", "duplicates.parquet"
_ORIGIN = [("source", pa.string()), ("source_index", pa.int64()), ("structure_id", pa.string())]
FAILURE_SCHEMA = pa.schema([*_ORIGIN, ("reason", pa.string())])
DUPLICATE_SCHEMA = pa.schema([*_ORIGIN, ("duplicate_of", pa.string())])
