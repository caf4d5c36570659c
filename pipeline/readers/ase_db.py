"""Reading of ASE databases, SQLite (.db) and LMDB (.aselmdb), by row id."""

from __future__ import annotations

import importlib
import json
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import InvalidStructureError, SourceError, detail
from ..sources.formats import Format, detect_binary
from ..structures.structure import Structure
from .records import RawRecord, fields_of_atoms

_SQLITE_MAGIC = b"SQLite format 3\0"
_LMDB_PAGE_SIZE_AT, _LMDB_LAST_PAGE_AT = 40, 136
_LMDB_SPARE_PAGES = 16  # the last pages may never have been written if they were freed at once


def row_ids(path: Path, name: str) -> list[int]:
    """List the ids of all rows, in ascending order.

    Raises:
        SourceError: The file is not an ASE database or is damaged, or the package that reads LMDB is not installed.
    """
    try:
        _check_whole(path)
        if _is_sqlite(path):
            with closing(_read_only(path)) as connection:
                return [int(row[0]) for row in connection.execute("SELECT id FROM systems ORDER BY id")]
        with _connected(path) as database:
            return sorted(map(int, database.ids))
    except Exception as error:  # sqlite3, lmdb and ASE raise their own errors
        reason = detail(error).replace(str(path), name)
        raise SourceError(
            f"{name}: the file cannot be read as an ASE database ({reason}); copy or download it again or, for an LMDB "
            "file, install equiscreen[lmdb]"
        ) from error


def read_rows(path: Path, source: str, ids: Sequence[int], first: int) -> Iterator[RawRecord]:
    """Read rows by their ids; a row that cannot be read does not stop the others.

    Args:
        path: Path of the database.
        source: Name of the source, for the records.
        ids: Ids of the rows.
        first: Position of the first of these rows in the database.
    """
    with ExitStack() as stack:
        try:
            database = stack.enter_context(_connected(path))
        except Exception as error:  # noqa: BLE001 - sqlite3, lmdb and ASE raise their own errors
            for index, row_id in enumerate(ids, start=first):
                yield RawRecord(source, index, None, {"id": row_id}, _reason(error, path, source), Format.ASE_DB)
            return
        for index, row_id in enumerate(ids, start=first):
            fields: dict[str, Any] = {"id": row_id}
            try:
                row = database.get(id=int(row_id))
                fields |= {"unique_id": row.unique_id, **row.key_value_pairs}
                fields = {**row.data, **fields}
                atoms = row.toatoms()
                fields = {"id": row.id, "unique_id": row.unique_id, **row.data, **fields_of_atoms(atoms)}
                fields.update(row.key_value_pairs)
            except Exception as error:  # noqa: BLE001 - a damaged row can make ASE raise anything
                yield RawRecord(source, index, None, fields, _reason(error, path, source), Format.ASE_DB)
                continue
            try:
                yield RawRecord(source, index, Structure.from_ase(atoms), fields, format=Format.ASE_DB)
            except InvalidStructureError as error:
                yield RawRecord(source, index, None, fields, str(error), Format.ASE_DB)


def unread_rows(path: Path, source: str, ids: Sequence[int], first: int, reason: str) -> Iterator[RawRecord]:
    """Yield a record for each of the given rows without reading its structure, with the fields that identify it.

    Args:
        path: Path of the database.
        source: Name of the source, for the records.
        ids: Ids of the rows.
        first: Position of the first of these rows in the database.
        reason: Why the structures are not read.
    """
    for index, row_id in enumerate(ids, start=first):
        fields: dict[str, Any] = {"id": row_id}
        if _is_sqlite(path):  # reading LMDB may be what killed the process
            with suppress(sqlite3.Error, ValueError, TypeError), closing(_read_only(path)) as connection:
                found = connection.execute("SELECT unique_id, key_value_pairs FROM systems WHERE id = ?", (row_id,))
                unique_id, pairs = found.fetchone()
                fields |= {"unique_id": unique_id, **json.loads(pairs)}
        yield RawRecord(source, index, None, fields, reason, Format.ASE_DB)


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _reason(error: Exception, path: Path, source: str) -> str:
    """Return the reason for a failure, with the path of the database replaced by the name of the source."""
    return f"row does not parse: {detail(error).replace(str(path), source)}"


def _check_whole(path: Path) -> None:
    """Reject files that are not databases, and truncated LMDB files, which would crash the process when read.

    The offsets are taken from the structs `MDB_page` and `MDB_meta` in LMDB's source (mdb.c) on 64-bit machines.
    """
    with path.open("rb") as file:
        head = file.read(4096)
        if detect_binary(head) is not Format.ASE_DB:
            raise ValueError("neither SQLite nor LMDB")
        if head.startswith(_SQLITE_MAGIC):
            return
        (page_size,) = struct.unpack_from("<I", head, _LMDB_PAGE_SIZE_AT)
        file.seek(page_size)
        metas = [head, file.read(4096)]
    # Of the two meta pages, the one with the later transaction is valid.
    pairs = [struct.unpack_from("<QQ", meta, _LMDB_LAST_PAGE_AT) for meta in metas]
    last = max(pairs, key=lambda pair: int(pair[1]))[0]
    if path.stat().st_size < (last + 1 - _LMDB_SPARE_PAGES) * page_size:
        raise ValueError("truncated")


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC


@contextmanager
def _connected(path: Path) -> Iterator[Any]:
    import ase.db  # noqa: PLC0415 - ASE takes 0.3 s to import

    if _is_sqlite(path):
        # The context manager keeps one connection open; without it, ASE opens one per row.
        with ase.db.connect(path, type="db", use_lock_file=False) as database:
            yield database
        return
    _check_opens(path)
    database = ase.db.connect(path, type="aselmdb", use_lock_file=False, readonly=True)
    try:
        yield database
    finally:
        database.close()


def _check_opens(path: Path) -> None:
    """Open an LMDB file, and close it.

    If this fails in the constructor of `ase_db_backends`, its destructor tries again and prints a traceback.
    """
    lmdb = importlib.import_module("lmdb")  # comes with ase_db_backends
    lmdb.open(str(path), subdir=False, readonly=True, lock=False).close()
