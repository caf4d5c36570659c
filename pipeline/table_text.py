"""Tables of text (CSV) cut into rows; a row that is broken does not take the ones behind it along."""

from __future__ import annotations

import csv
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .files import Stream
from .json_text import MAX_DOCUMENT_BYTES, Piece, unreadable

SEPARATORS = ",;\t"
_UNCLOSED = "not valid CSV: a quote that is never closed"


def separator_of(header: str) -> str:
    """What separates the columns of a table, by the line with their names."""
    return max(SEPARATORS, key=header.count)


def cut_csv(stream: Stream) -> Iterator[Piece]:
    """Rows of a table with the line of its column names; comments may stand before that."""
    lines = (line for line in stream.head().split(b"\n") if line.strip() and not line.startswith(b"#"))
    separator = separator_of(next(lines, b"").decode("latin-1"))
    rows = _rows(stream, ord(separator))
    header = next((row for row, _ in rows if row.strip() and not row.startswith(b"#")), b"")
    first = True
    for row, whole in rows:
        if not whole:
            yield unreadable(_UNCLOSED)
        elif row.strip():
            if first and _fields(row, separator) == _fields(header, separator) + 1:
                header = separator.encode() + header  # R and pandas write names of rows under no name
            first = False
            yield {"content": row, "header": header}


def _fields(row: bytes, separator: str) -> int:
    """How many fields a row has."""
    try:
        return len(next(csv.reader([row.decode("latin-1")], delimiter=separator)))
    except (csv.Error, StopIteration):
        return 0


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
