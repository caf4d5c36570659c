"""Tables of text (CSV) cut into rows; a row that is broken does not take the ones behind it along."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..jit import compiled
from ..sources.files import Stream
from .split_json import MAX_DOCUMENT_BYTES, SpooledRecords, unreadable

SEPARATORS = ",;\t"
_UNCLOSED = "not valid CSV: a quote that is never closed"
_NO_NAMES = "no line with the names of columns"
_STRUCTURE_TEXT = re.compile(r"_cell_length_a\s|\{\s*[\"']|\[\s*\[|(?:\n[^\n]*){3}")  # CIF, JSON, text of many lines
_TEXT_OF_LINES = re.compile(rb"(^|[,;\t])\"[^\"]*$")  # one that goes on in the next line


def separator_of(header: str) -> str:
    """What separates the columns of a table, by the line with their names."""
    return max(SEPARATORS, key=header.count)


def cut_csv(stream: Stream) -> Iterator[SpooledRecords]:
    """Rows of a table with the line of its column names; comments may stand before that.

    The last comment is that line where what stands in its place is a row already: `#id,cif`. A table without such a
    line has its first row as a failure, to say so, and numbers as the names of its columns.
    """
    separator = _separator(stream.head())
    rows = _rows(stream, ord(separator))
    comment, header, n_broken = _first_row(rows)
    yield from (unreadable(_UNCLOSED) for _ in range(n_broken))
    names = _fields(header, separator)
    first = not any(map(_STRUCTURE_TEXT.search, names or [header.decode("latin-1")]))
    if not first:
        row, header = header, comment.lstrip(b"# ")
        if len(names) == len(_fields(header, separator)) > 1:
            yield {"content": row, "header": header}
        else:
            header = separator.join(str(place) for place in range(1, len(names) + 1)).encode()
            yield unreadable(_NO_NAMES)
    for row, closed in rows:
        if not closed:
            yield unreadable(_UNCLOSED)
        elif row.strip():
            if first:
                values = _fields(row, separator)
                if len(values) == len(names) + 1 and values[-1].strip():  # else they but end with a separator
                    header = separator.encode() + header  # R and pandas write names of rows under no name
            first = False
            yield {"content": row, "header": header}


def _first_row(rows: Iterator[tuple[bytes, bool]]) -> tuple[bytes, bytes, int]:
    """The last comment before the first row that is none, that row, and how many broken ones stand before it."""
    comment, n_broken = b"", 0
    for row, whole in rows:
        if row.startswith(b"#"):
            comment = row
        elif row.strip():
            if whole:
                return comment, row, n_broken
            n_broken += 1
    return comment, b"", n_broken


def _separator(head: bytes) -> str:
    """What separates the columns of a table, by its first bytes."""
    comment = line = b""
    for line in head.split(b"\n"):
        if line.startswith(b"#"):
            comment = line
        elif line.strip():
            break
    text = _TEXT_OF_LINES.search(line)  # then it is no line of names
    likely = (line,) if text is None else (line[: text.end(1)], comment, line)
    found = (part for part in (item.decode("latin-1") for item in likely) if any(map(part.count, SEPARATORS)))
    return separator_of(next(found, ""))


def _fields(row: bytes, separator: str) -> list[str]:
    """The fields of a row; none where it is broken."""
    try:
        return next(csv.reader([row.decode("latin-1")], delimiter=separator))
    except (csv.Error, StopIteration):
        return []


def _rows(stream: Stream, separator: int) -> Iterator[tuple[bytes, bool]]:
    """Rows, and whether their quotes are closed."""
    rest, in_quotes = b"", False
    for chunk in iter(stream.chunk, b""):
        data = rest + chunk
        begin = 0
        ends, in_quotes = _ends_of_rows(np.frombuffer(data, dtype=np.uint8), separator)
        for end in ends.tolist():
            yield data[begin : abs(end)], end > 0
            begin = abs(end)
        rest = data[begin:]
        if len(rest) > MAX_DOCUMENT_BYTES:
            yield rest, True  # too large, which is what will be said of it
            rest, in_quotes = b"", False
    if rest:
        yield rest, not in_quotes


_START, _PLAIN, _QUOTED, _CLOSED = range(4)  # of a field: before it, in it, in its quotes, behind them


@compiled
def _ends_of_rows(data: NDArray[np.uint8], separator: int) -> tuple[NDArray[np.int64], bool]:  # noqa: C901, PLR0912 - states
    """int64[n], places behind the rows, and whether the last one, which has no end, stops within quotes.

    Only a quote at the begin of a field opens one, as for Python's `csv`. Text behind a quote that seemed to close a
    field of several lines shows that the one before it was never closed, and that this one opens a field of another
    row: the row in between ends with the line before, and its end is given as a negative number.
    """
    ends = np.empty(data.shape[0] // 64 + 1, dtype=np.int64)
    count, at, state, opened = 0, 0, _START, 0
    while at < data.shape[0]:
        end = 0
        if state == _QUOTED:
            while at < data.shape[0] and data[at] != 34:  # nearly all that there is
                at += 1
            if at == data.shape[0]:
                break
            state = _CLOSED
        elif data[at] == 34 and state == _START:
            state, opened = _QUOTED, at
        elif data[at] == 34 and state == _CLOSED:  # two of them are one of the text
            state = _QUOTED
        elif data[at] == 10:
            end = at + 1
        elif data[at] == separator:
            state = _START
        elif state == _START:
            state = _PLAIN
        elif state == _CLOSED and data[at] not in (13, 32):
            state, line_end = _PLAIN, at
            while line_end > opened and data[line_end] != 10:
                line_end -= 1
            if line_end > opened:
                at = line_end
                end = -(at + 1)
        if end != 0:
            if count == ends.shape[0]:
                more = np.empty(2 * count, dtype=np.int64)
                more[:count] = ends
                ends = more
            ends[count] = end
            count += 1
            state = _START
        at += 1
    return ends[:count].copy(), state == _QUOTED
