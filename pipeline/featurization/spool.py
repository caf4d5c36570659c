"""Spool files: Arrow files with the records that the client has cut from a stream for one task to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import detail
from ..readers.splitting import Document
from ..sources.formats import Format

_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
_DOCUMENTS = pa.schema(
    [
        ("source", _DICTIONARY),
        ("index", pa.int64()),
        ("format", _DICTIONARY),
        ("content", pa.large_binary()),
        ("name", pa.string()),
        ("header", pa.dictionary(pa.int32(), pa.binary())),
        ("reason", pa.string()),
    ]
)
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")
_SOURCE, _FIRST = b"equiscreen.source", b"equiscreen.first"


def write_documents(path: Path, items: Sequence[Document]) -> None:
    """Write documents to a spool file."""
    columns = [pa.array([getattr(item, name) for item in items], kind) for name, kind in _column_types()]
    _write(path, pa.table(columns, schema=_DOCUMENTS))


def write_rows(path: Path, rows: pa.Table, source: str, first: int) -> None:
    """Write rows of a table to a spool file.

    Args:
        path: Spool file to write.
        rows: Rows, unchanged from the source.
        source: Name of the source file.
        first: Index of the first row in the source.
    """
    _write(path, rows.replace_schema_metadata({_SOURCE: source.encode(), _FIRST: str(first).encode()}))


def read_spooled(
    spooled: Path | bytes, begin: int, end: int
) -> Iterator[Document | tuple[str, int, Mapping[str, Any]]]:
    """Yield documents, or rows with their source and index, from `begin` up to `end` (exclusive).

    Args:
        spooled: Path or content of a spool file.
        begin: First item.
        end: Item after the last one.
    """
    with pa.BufferReader(spooled) if isinstance(spooled, bytes) else pa.memory_map(str(spooled)) as file:
        table = pa.ipc.open_file(file).read_all().slice(begin, end - begin)
    if table.schema.names == _DOCUMENTS.names:
        columns = [table.column(name).to_pylist() for name in _DOCUMENTS.names]
        for source, index, form, content, name, header, reason in zip(*columns, strict=True):
            yield Document(source, index, Format(form), content, name, header, reason)
        return
    source, first = table.schema.metadata[_SOURCE].decode(), int(table.schema.metadata[_FIRST]) + begin
    for index, row in enumerate(_python_rows(table), start=first):
        if isinstance(row, str):
            yield Document(source, index, Format.PARQUET, b"", reason=row)
        else:
            yield source, index, row


def _python_rows(table: pa.Table) -> Iterator[Mapping[str, Any] | str]:
    """Yield each row or, if Python cannot represent it (for example, its text is not UTF-8), the reason."""
    try:
        yield from table.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        for row in range(table.num_rows):
            try:
                yield table.slice(row, 1).to_pylist()[0]
            except (ValueError, OverflowError, pa.ArrowException) as error:
                yield f"row does not parse: {detail(error)}"


def _column_types() -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in _DOCUMENTS]


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table)
