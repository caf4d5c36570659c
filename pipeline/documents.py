"""Documents: a stream is cut into the text of single records, without reading more than it must into memory.

To cut is cheap and cannot fail on what a record says; to understand a document is the work of `readers`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from .files import Stream
from .formats import Format
from .pymatgen_json import holds_structure

# One record, however it is written, is smaller; a crystal of 65,535 atoms takes some 10 MB of JSON.
MAX_DOCUMENT_BYTES = 64 << 20
READ_BYTES = 1 << 20
# Keys under which a JSON file keeps the list of its records: Alexandria, OPTIMADE, the Materials Project's API.
_LIST_KEYS = ("entries", "data", "structures", "results", "docs", "response")
_LINE_OF_A_BLOCK = re.compile(rb"^data_", re.IGNORECASE | re.MULTILINE)
_CELL_TAG = b"_cell_length_a"


@dataclass(frozen=True, slots=True)
class Document:
    """The text of one record.

    Attributes:
        source: Name of its file.
        index: Place in the file, from 0.
        format: How it is read.
        content: As it stands in the file.
        name: Its key, where the file is a dictionary of records.
        header: The line with the names of columns, for a row of a table.
        reason: Why it cannot be read; then there is no content.
    """

    source: str
    index: int
    format: Format
    content: bytes
    name: str | None = None
    header: bytes = b""
    reason: str = ""


def documents(stream: Stream, form: Format) -> Iterator[Document]:
    """Cut a stream of text.

    Args:
        stream: At its beginning.
        form: A format of text.
    """
    index = 0
    for piece in _CUTTERS[form](stream):
        fields = piece if isinstance(piece, dict) else {"content": piece}
        size = len(fields.get("content", b""))
        if size > MAX_DOCUMENT_BYTES:
            fields = {"content": b"", "reason": f"record too large (more than {MAX_DOCUMENT_BYTES >> 20} MB)"}
        yield Document(stream.source, index, form, **fields)
        index += 1


Piece = bytes | dict[str, Any]


def _cut_whole(stream: Stream) -> Iterator[Piece]:
    yield stream.read(MAX_DOCUMENT_BYTES + 1)


def _cut_cif(stream: Stream) -> Iterator[Piece]:
    """Data blocks with a cell; the first block where none has one."""
    content = stream.read(MAX_DOCUMENT_BYTES + 1)
    blocks: list[bytes] = []
    any_cell = False
    while content:
        starts = [match.start() for match in _LINE_OF_A_BLOCK.finditer(content)]
        rest = stream.read(MAX_DOCUMENT_BYTES) if len(content) > MAX_DOCUMENT_BYTES and len(starts) > 1 else b""
        ends = [*starts[1:], len(content)]
        if rest:
            ends.pop()
        begin = 0
        for end in ends:
            block = content[begin:end]
            if _CELL_TAG in block:
                any_cell = True
                yield block
            elif not any_cell and not blocks:
                blocks.append(block)
            begin = end
        content = content[begin:] + rest if rest else b""
    if not any_cell:
        yield from blocks


def _cut_lines(stream: Stream) -> Iterator[Piece]:
    for line in iter(lambda: stream.readline(MAX_DOCUMENT_BYTES + 1), b""):
        if line.strip():
            yield line
        if len(line) > MAX_DOCUMENT_BYTES:
            while line and not line.endswith(b"\n"):
                line = stream.readline(READ_BYTES)  # noqa: PLW2901 - the rest of the same line


def _cut_csv(stream: Stream) -> Iterator[Piece]:
    """Rows of a table with the line of its column names; comments may stand before that."""
    rows = _rows(stream)
    header = next((row for row in rows if row.strip() and not row.startswith(b"#")), b"")
    for row in rows:
        if row.strip():
            yield {"content": row, "header": header.removeprefix(b"\xef\xbb\xbf")}


def _cut_extxyz(stream: Stream) -> Iterator[Piece]:
    """Frames. Lines where one should begin, but none that holds a number of atoms, are one document without content."""
    junk = b""
    for head in iter(lambda: stream.readline(READ_BYTES), b""):
        n_atoms = int(head) if head.strip().isdigit() and len(head) < 20 else 0
        if n_atoms < 1:
            junk = junk or head.strip()
            continue
        if junk:
            yield _no_frame(junk)
            junk = b""
        frame = io.BytesIO()
        frame.write(head)
        for _ in range(n_atoms + 1):
            line = stream.readline(READ_BYTES)
            if not line:
                break
            if frame.tell() <= MAX_DOCUMENT_BYTES:  # what is larger is refused, so it need not be kept
                frame.write(line)
        yield frame.getvalue()
    if junk:
        yield _no_frame(junk)


def _no_frame(junk: bytes) -> Piece:
    line = junk.decode("utf-8", errors="replace")[:40]
    return {"content": b"", "reason": f"no number of atoms where a frame should begin: {line!r}"}


def _cut_json(stream: Stream) -> Iterator[Piece]:
    """The elements of a list; of a dictionary the list in it, or its values if all are records, or itself."""
    scanner = _JsonScanner(stream)
    if scanner.match(_OPEN_LIST):
        yield from scanner.elements()
    elif scanner.match(_OPEN_OBJECT):
        yield from _cut_object(scanner)
    else:
        yield {"content": b"", "reason": "not valid JSON: neither a list nor a dictionary"}


def _cut_object(scanner: _JsonScanner) -> Iterator[Piece]:
    members: list[bytes] = []
    size, end = 0, b","
    has_list = all_records = False
    while end == b",":
        if scanner.match(_LIST_MEMBER):
            has_list = True
            yield from scanner.elements()
            _, end = scanner.run()
            continue
        member, end = scanner.run()
        members.append(member)
        size += len(member)
        if all_records:
            yield _named(members.pop())
        elif size > MAX_DOCUMENT_BYTES and not has_list:  # too large for one record: are they many?
            all_records = all(map(_is_record, members))
            if not all_records:
                break
            yield from map(_named, members)
            members = []
    if has_list or all_records:
        return
    if len(members) > 1 and all(map(_is_record, members)):
        yield from map(_named, members)
    else:
        yield b"{" + b",".join(members) + (b"}" if end == b"}" else b"")


def _is_record(member: bytes) -> bool:
    try:
        return all(holds_structure(value) for value in json.loads(b"{" + member + b"}").values())
    except ValueError:
        return False


def _named(member: bytes) -> Piece:
    """A member of a dictionary of records, with its key apart."""
    match = _KEY.match(member)
    if match is None:
        return {"content": b"", "reason": "not valid JSON: a member of a dictionary without a key"}
    return {"content": member[match.end() :], "name": str(json.loads(match[1]))}


_OPEN_LIST, _OPEN_OBJECT = re.compile(rb"(\xef\xbb\xbf)?\s*\["), re.compile(rb"(\xef\xbb\xbf)?\s*\{")
_LIST_MEMBER = re.compile(rb'\s*"(' + "|".join(_LIST_KEYS).encode() + rb')"\s*:\s*\[(?=\s*\{)')
_KEY = re.compile(rb'\s*("(?:[^"\\\x00-\x1f]|\\.)*")\s*:\s*')
_LOOK_AHEAD = 4096


class _JsonScanner:
    """Walks through JSON text by its brackets, commas and strings, and understands nothing else of it."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._data, self._at = stream, b"", 0

    def match(self, pattern: re.Pattern[bytes]) -> bool:
        """Step over what a pattern matches here."""
        if len(self._data) - self._at < _LOOK_AHEAD:
            self._data = self._data[self._at :] + self._stream.read(READ_BYTES)
            self._at = 0
        match = pattern.match(self._data, self._at)
        if match:
            self._at = match.end()
        return match is not None

    def elements(self) -> Iterator[Piece]:
        """The elements of the list that was just opened."""
        end = b","
        while end == b",":
            content, end = self.run()
            if content.strip():
                yield content.strip()
            elif end != b"]":
                yield {"content": b"", "reason": "not valid JSON: ends early, or has a comma too many"}

    def run(self) -> tuple[bytes, bytes]:
        """The text up to the comma or bracket that ends this member, and that byte; no byte where the text ends."""
        state = np.zeros(3, dtype=np.int64)
        kept, seen = b"", self._at
        while True:
            end = int(_end_of_member(np.frombuffer(self._data, dtype=np.uint8), seen, state))
            if end >= 0:
                content, byte = kept + self._data[self._at : end], self._data[end : end + 1]
                self._at = end + 1
                return content, byte
            kept = (kept + self._data[self._at :])[: MAX_DOCUMENT_BYTES + 1]
            self._data, self._at, seen = self._stream.read(READ_BYTES), 0, 0
            if not self._data:
                return kept, b""


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _end_of_member(data, begin, state):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """Place of the comma or bracket that ends a member, or -1. `state`: depth, in a string, after a backslash."""
    depth, in_string, escaped = state
    for at in range(begin, data.shape[0]):
        byte = data[at]
        if in_string:
            if escaped:
                escaped = 0
            elif byte == 92:  # backslash
                escaped = 1
            elif byte == 34:  # quote
                in_string = 0
        elif byte == 34:
            in_string = 1
        elif byte in (91, 123):  # [ {
            depth += 1
        elif byte in (93, 125):  # ] }
            if depth == 0:
                return at
            depth -= 1
        elif byte == 44 and depth == 0:  # comma
            return at
    state[0], state[1], state[2] = depth, in_string, escaped
    return -1


def _rows(stream: Stream) -> Iterator[bytes]:
    """Rows of a table: a line break within quotes does not end one."""
    rest = b""
    for chunk in iter(lambda: stream.read(READ_BYTES), b""):
        data = rest + chunk
        begin = 0
        for end in _ends_of_rows(np.frombuffer(data, dtype=np.uint8)).tolist():
            yield data[begin:end]
            begin = end
        rest = data[begin:]
        if len(rest) > MAX_DOCUMENT_BYTES:
            # A quote that is never closed makes one row of all that follows.
            yield rest
            rest = b""
    if rest:
        yield rest


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _ends_of_rows(data):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """int64[n], places behind the line breaks that do not stand within quotes."""
    ends = np.empty(data.shape[0] // 64 + 1, dtype=np.int64)
    count, in_quotes = 0, False
    for at in range(data.shape[0]):
        if data[at] == 34:
            in_quotes = not in_quotes
        elif data[at] == 10 and not in_quotes:
            if count == ends.shape[0]:
                more = np.empty(2 * count, dtype=np.int64)
                more[:count] = ends
                ends = more
            ends[count] = at + 1
            count += 1
    return ends[:count].copy()


_CUTTERS: dict[Format, Callable[[Stream], Iterator[Piece]]] = {
    Format.CIF: _cut_cif,
    Format.POSCAR: _cut_whole,
    Format.EXTXYZ: _cut_extxyz,
    Format.CSV: _cut_csv,
    Format.JSON: _cut_json,
    Format.JSONL: _cut_lines,
}
