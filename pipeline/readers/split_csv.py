"""Splitting of CSV tables into rows; a malformed row does not affect the rows after it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..jit import compiled
from ..sources.files import Stream
from .split_json import MAX_DOCUMENT_BYTES, RawDocument, unreadable

SEPARATORS = ",;\t"
_UNCLOSED = "not valid CSV: unclosed quote"
_NO_NAMES = "the table has no line of column names (add one at the beginning)"
_STRUCTURE_TEXT = re.compile(r"_cell_length_a\s|\{\s*[\"']|\[\s*\[|(?:\n[^\n]*){3}")  # CIF, JSON, text of several lines
_TEXT_OF_LINES = re.compile(rb"(^|[,;\t])\"[^\"]*$")  # a quoted field that continues on the next line


def separator_of(header: str) -> str:
    """Determine the column separator of a table from its line of column names."""
    return max(SEPARATORS, key=header.count)


def cut_csv(stream: Stream) -> Iterator[RawDocument]:
    """Split a table into rows, each with the line of column names; comments may precede that line.

    If a row of data follows the comments directly, the last comment, such as `#id,cif`, is the line of column names. If
    a table has no line of column names, its first row is recorded as a failure with this reason, and the columns are
    numbered.
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
                if (
                    len(values) == len(names) + 1 and values[-1].strip()
                ):  # otherwise the rows merely end with a separator
                    header = separator.encode() + header  # R and pandas write row names in a column without a name
            first = False
            yield {"content": row, "header": header}


def _first_row(rows: Iterator[tuple[bytes, bool]]) -> tuple[bytes, bytes, int]:
    """Return the last comment before the first valid row, that row, and the number of malformed rows before it."""
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
    """Determine the column separator of a table from its first bytes."""
    comment = line = b""
    for line in head.split(b"\n"):
        if line.startswith(b"#"):
            comment = line
        elif line.strip():
            break
    text = _TEXT_OF_LINES.search(line)  # a match means that this is not a line of column names
    likely = (line,) if text is None else (line[: text.end(1)], comment, line)
    found = (part for part in (item.decode("latin-1") for item in likely) if any(map(part.count, SEPARATORS)))
    return separator_of(next(found, ""))


def _fields(row: bytes, separator: str) -> list[str]:
    """Return the fields of a row; none if the row is malformed."""
    try:
        return next(csv.reader([row.decode("latin-1")], delimiter=separator))
    except (csv.Error, StopIteration):
        return []


def _rows(stream: Stream, separator: int) -> Iterator[tuple[bytes, bool]]:
    """Yield each row, and whether its quotes are closed."""
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
            yield rest, True  # rejected later because of its size
            rest, in_quotes = b"", False
    if rest:
        yield rest, not in_quotes


_START, _PLAIN, _QUOTED, _CLOSED = range(4)  # position: before a field, in it, in its quotes, after them


@compiled
def _ends_of_rows(data: NDArray[np.uint8], separator: int) -> tuple[NDArray[np.int64], bool]:  # noqa: C901, PLR0912 - states
    """Find the end positions of the rows, int64[n], and whether the unfinished last row stops within quotes.

    As in Python's `csv`, only a quote at the beginning of a field opens a quoted field. If text follows a quote that
    seemed to close a field of several lines, the earlier quote was never closed, and this quote opens a field of a
    later row. The row with the unclosed quote then ends with the line before this one, and its end is returned as a
    negative number.
    """
    ends = np.empty(data.shape[0] // 64 + 1, dtype=np.int64)
    count, at, state, opened = 0, 0, _START, 0
    while at < data.shape[0]:
        end = 0
        if state == _QUOTED:
            while at < data.shape[0] and data[at] != 34:  # skips nearly all of the data
                at += 1
            if at == data.shape[0]:
                break
            state = _CLOSED
        elif data[at] == 34 and state == _START:
            state, opened = _QUOTED, at
        elif data[at] == 34 and state == _CLOSED:  # a doubled quote stands for one quote
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
