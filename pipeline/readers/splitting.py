"""Documents: a stream is cut into the text of single records, without reading more than it must into memory.

To cut is cheap and cannot fail on what a record says; to understand a document is the work of `readers`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from ..sources.files import Stream
from ..sources.formats import Format
from .split_csv import cut_csv
from .split_json import MAX_DOCUMENT_BYTES, SpooledRecords, cut_json, cut_lines, unreadable

_LONGEST_LINE = 1 << 20
_LINE_OF_A_BLOCK = re.compile(rb"^data_", re.IGNORECASE | re.MULTILINE)
_LINE_OF_A_BLOCK_OR_TEXT = re.compile(rb"^(?:data_|;)", re.IGNORECASE | re.MULTILINE)
_CRYSTAL_TAG = re.compile(rb"_cell_length_a|_atom_site_", re.IGNORECASE)


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
    for index, piece in enumerate(_CUTTERS[form](stream)):
        fields = piece if isinstance(piece, dict) else {"content": piece}
        size = len(fields.get("content", b""))
        if size > MAX_DOCUMENT_BYTES:
            fields = {"content": b"", "reason": f"record too large (more than {MAX_DOCUMENT_BYTES >> 20} MB)"}
        yield Document(stream.source, index, form, **fields)


def _cut_whole(stream: Stream) -> Iterator[SpooledRecords]:
    yield stream.read(MAX_DOCUMENT_BYTES + 1)


def _cut_cif(stream: Stream) -> Iterator[SpooledRecords]:
    """Data blocks with a cell or with atoms; the first block where none has either."""
    first, any_crystal = b"", False
    for block in _cif_blocks(stream):
        if _CRYSTAL_TAG.search(block):
            any_crystal = True
            yield block
        first = first or block
    if not any_crystal and first:
        yield first


def _cif_blocks(stream: Stream) -> Iterator[bytes]:
    """Data blocks, the first one with what stands before it."""
    rest = b""
    for chunk in iter(stream.chunk, b""):
        content = rest + chunk
        starts, _ = _block_starts(content)
        bounds = [0, *starts[1:]]
        for begin, end in pairwise(bounds):
            yield content[begin:end]
        rest = content[bounds[-1] :]
        if len(rest) > MAX_DOCUMENT_BYTES:  # it is refused, so it need not be kept; but the next block may begin here
            rest = rest[: MAX_DOCUMENT_BYTES + 1] + rest[-len(b"\ndata_") :]
    starts, in_text = _block_starts(rest)
    if in_text:  # a text that is never closed: it may have hidden the blocks behind it
        starts = [match.start() for match in _LINE_OF_A_BLOCK.finditer(rest)]
    for begin, end in pairwise([0, *starts[1:], len(rest)]):
        yield rest[begin:end]


def _block_starts(content: bytes) -> tuple[list[int], bool]:
    """Where blocks begin, and whether the content ends within a text field: what looks like a block there is none."""
    starts, in_text = [], False
    for match in _LINE_OF_A_BLOCK_OR_TEXT.finditer(content):
        if match[0] == b";":
            in_text = not in_text
        elif not in_text:
            starts.append(match.start())
    return starts, in_text


def _cut_extxyz(stream: Stream) -> Iterator[SpooledRecords]:
    """Frames. Lines where one should begin, but none that holds a number of atoms, are one document without content."""
    junk, head = b"", stream.readline(_LONGEST_LINE)
    while head:
        n_atoms = _number_alone(head)
        if n_atoms < 1:
            junk, head = junk or head.strip(), stream.readline(_LONGEST_LINE)
            continue
        if junk:
            yield _no_frame(junk)
            junk = b""
        frame, head = _frame(stream, head, n_atoms)
        yield frame
    if junk:
        yield _no_frame(junk)


def _frame(stream: Stream, head: bytes, n_atoms: int) -> tuple[bytes, bytes]:
    """A frame, and the line behind it. A number alone where an atom should stand begins the next one."""
    frame = io.BytesIO()
    frame.write(head)
    for place in range(n_atoms + 1):
        line = stream.readline(_LONGEST_LINE)
        if not line or (place and _number_alone(line)):
            return frame.getvalue(), line
        if frame.tell() <= MAX_DOCUMENT_BYTES:  # what is larger is refused, so it need not be kept
            frame.write(line)
    return frame.getvalue(), stream.readline(_LONGEST_LINE)


def _number_alone(line: bytes) -> int:
    """The number that is all of a line, or 0."""
    return int(line) if len(line) < 20 and line.strip().isdigit() else 0


def _no_frame(junk: bytes) -> SpooledRecords:
    line = junk.decode("utf-8", errors="replace")[:40]
    return unreadable(f"no number of atoms where a frame should begin: {line!r}")


_CUTTERS: dict[Format, Callable[[Stream], Iterator[SpooledRecords]]] = {
    Format.CIF: _cut_cif,
    Format.POSCAR: _cut_whole,
    Format.EXTXYZ: _cut_extxyz,
    Format.CSV: cut_csv,
    Format.JSON: cut_json,
    Format.JSONL: cut_lines,
}
