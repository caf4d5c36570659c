"""Splitting of a stream into documents, each the text of one record, without loading the whole stream into memory.

Splitting is cheap, and `records` parses the documents. Outputs of VASP are the exception: ASE parses each as a whole,
and every ionic step becomes a document.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from ..errors import detail
from ..memory import MACHINE_ERRORS
from ..sources.files import Stream
from ..sources.formats import Format
from .cif import SYMMETRY_ELSEWHERE
from .split_csv import cut_csv
from .split_json import MAX_DOCUMENT_BYTES, RawDocument, cut_json, cut_lines, unreadable

_LONGEST_LINE = 1 << 20
_HEADER_LINES = 7  # of a POSCAR: comment, scale, three lattice vectors, symbols, numbers of atoms
_LINE_OF_A_BLOCK = re.compile(rb"^data_", re.IGNORECASE | re.MULTILINE)
_LINE_OF_A_BLOCK_OR_TEXT = re.compile(rb"^(?:data_|;)", re.IGNORECASE | re.MULTILINE)
# The tag of a space group or operation with a known value, outside comments; the crystal system alone is not a
# symmetry.
_SYMMETRY = re.compile(
    rb"^[^#\n]*?(?<!\S)_(?:symmetry|space_group)[_.](?!cell_setting|crystal_system)\S+\s+(?!['\";]?[?.]['\"]?(?:\s|$))",
    re.IGNORECASE | re.MULTILINE,
)
_CRYSTAL_TAG = re.compile(rb"_cell_length_a|_atom_site_", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Document:
    """The text of one record.

    Attributes:
        source: Name of the file.
        index: Position in the file, from 0.
        format: Format of the content.
        content: The bytes of the record, unchanged.
        name: Key of the record, if the file is an object of records.
        header: The line of column names, for a row of a table.
        reason: Why the record cannot be read, in which case there is no content.
    """

    source: str
    index: int
    format: Format
    content: bytes
    name: str | None = None
    header: bytes = b""
    reason: str = ""


def documents(stream: Stream, form: Format) -> Iterator[Document]:
    """Split a stream of text into documents.

    Args:
        stream: The stream, at its beginning.
        form: A text format.
    """
    for index, document in enumerate(_CUTTERS[form](stream)):
        fields = document if isinstance(document, dict) else {"content": document}
        size = len(fields.get("content", b""))
        if size > MAX_DOCUMENT_BYTES:
            fields = {"content": b"", "reason": f"record too large (more than {MAX_DOCUMENT_BYTES >> 20} MiB)"}
        yield Document(stream.source, index, **{"format": form, **fields})


def _cut_cif(stream: Stream) -> Iterator[RawDocument]:
    """Split a CIF into data blocks with a cell or atoms; if there are none, yield the first block.

    A crystal without symmetry, and all crystals after it, are held back until it is known whether a block without a
    crystal gives a symmetry.
    """
    first, any_crystal, shared = b"", False, False
    waiting: list[bytes] = []
    size = 0
    for block in _cif_blocks(stream):
        symmetry = _SYMMETRY.search(block) is not None
        first = first or block
        if not _CRYSTAL_TAG.search(block):
            shared = shared or symmetry
            continue
        any_crystal = True
        waiting.append(block)
        size += len(block)
        if shared or size > MAX_DOCUMENT_BYTES or (symmetry and len(waiting) == 1):
            yield from _with_own_symmetry(waiting, shared=shared)
            waiting, size = [], 0
    yield from _with_own_symmetry(waiting, shared=shared)
    if not any_crystal and first:
        yield first


def _with_own_symmetry(blocks: Sequence[bytes], *, shared: bool) -> Iterator[RawDocument]:
    """Yield crystals; if another block gives a symmetry, reject crystals without a symmetry of their own."""
    for block in blocks:
        yield unreadable(SYMMETRY_ELSEWHERE) if shared and not _SYMMETRY.search(block) else block


def _cif_blocks(stream: Stream) -> Iterator[bytes]:
    """Iterate over data blocks; the first includes any text before it."""
    rest = b""
    for chunk in iter(stream.chunk, b""):
        content = rest + chunk
        starts, _ = _block_starts(content)
        bounds = [0, *starts[1:]]
        for begin, end in pairwise(bounds):
            yield content[begin:end]
        rest = content[bounds[-1] :]
        if (
            len(rest) > MAX_DOCUMENT_BYTES
        ):  # it is rejected for its size, so only a possible beginning of the next block has to be kept
            rest = rest[: MAX_DOCUMENT_BYTES + 1] + rest[-len(b"\ndata_") :]
    starts, in_text = _block_starts(rest)
    if in_text:  # an unclosed text field may have hidden the blocks after it
        starts = [match.start() for match in _LINE_OF_A_BLOCK.finditer(rest)]
    for begin, end in pairwise([0, *starts[1:], len(rest)]):
        yield rest[begin:end]


def _block_starts(content: bytes) -> tuple[list[int], bool]:
    """Find the beginnings of blocks outside text fields, and whether the content ends within a text field."""
    starts, in_text = [], False
    for match in _LINE_OF_A_BLOCK_OR_TEXT.finditer(content):
        if match[0] == b";":
            in_text = not in_text
        elif not in_text:
            starts.append(match.start())
    return starts, in_text


def _cut_extxyz(stream: Stream) -> Iterator[RawDocument]:
    """Split into frames, which begin with their atom counts; consecutive lines outside frames become one failure."""
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
    """Read a frame, and the line after it. A line with only a number, instead of an atom, begins the next frame."""
    frame = io.BytesIO()
    frame.write(head)
    for place in range(n_atoms + 1):
        line = stream.readline(_LONGEST_LINE)
        if not line or (place and _number_alone(line)):
            return frame.getvalue(), line
        if frame.tell() <= MAX_DOCUMENT_BYTES:  # larger records are rejected, so they need not be kept
            frame.write(line)
    return frame.getvalue(), stream.readline(_LONGEST_LINE)


def _number_alone(line: bytes) -> int:
    """Return the number on a line with nothing else, or 0."""
    return int(line) if len(line) < 20 and line.strip().isdigit() else 0


def _no_frame(junk: bytes) -> RawDocument:
    line = junk.decode("utf-8", errors="replace")[:40]
    return unreadable(f"no atom count where a frame should begin: {line!r}")


_CONFIGURATION = re.compile(rb"^\s*(Direct|Cartesian)\s+configuration\s*=", re.IGNORECASE)


def _cut_poscar(stream: Stream) -> Iterator[RawDocument]:
    """Yield a POSCAR, or the frames of an XDATCAR, each as a POSCAR."""
    head = [stream.readline(_LONGEST_LINE) for _ in range(_HEADER_LINES)]
    line = stream.readline(_LONGEST_LINE)
    if _CONFIGURATION.match(line) is None:
        yield b"".join([*head, line]) + stream.read(MAX_DOCUMENT_BYTES + 1)
        return
    while line:
        mode = b"Cartesian\n" if line.strip()[:1] in b"Cc" else b"Direct\n"
        n_atoms = sum(int(word) for word in head[-1].split() if word.isdigit())
        if not 0 < n_atoms < _LONGEST_LINE:
            yield unreadable("no atom counts before a configuration")
            return
        yield b"".join([*head, mode, *(stream.readline(_LONGEST_LINE) for _ in range(n_atoms))])
        line = stream.readline(_LONGEST_LINE)
        if line and _CONFIGURATION.match(line) is None:  # a run at constant pressure repeats the header
            head = [line, *(stream.readline(_LONGEST_LINE) for _ in range(_HEADER_LINES - 1))]
            line = stream.readline(_LONGEST_LINE)


class _NamedText(io.StringIO):
    """Text for ASE's reader of OUTCAR, which looks for a CONTCAR beside the file; there is none beside this path."""

    name = str(Path(os.devnull) / "OUTCAR")


def _cut_vasp_run(stream: Stream, kind: str) -> Iterator[RawDocument]:
    """Yield the ionic steps of a VASP run, each as a frame of extended XYZ with its energy, forces and stress."""
    import ase.io  # noqa: PLC0415 - takes 0.3 s

    content = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        yield unreadable(f"output too large (more than {MAX_DOCUMENT_BYTES >> 20} MiB)")
        return
    text = content.decode("utf-8", errors="replace")
    steps = 0
    try:
        for atoms in ase.io.iread(_NamedText(text), index=":", format=kind):
            frame = io.StringIO()
            ase.io.write(frame, atoms, format="extxyz")
            yield {"content": frame.getvalue().encode(), "format": Format.EXTXYZ}
            steps += 1
    except MACHINE_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001 - an output that was cut off can make a parser raise anything
        yield unreadable(
            f"VASP output does not parse: step {steps + 1} is incomplete or damaged ({type(error).__name__}: "
            f"{detail(error)}); did the calculation finish?"
        )
        return
    if not steps:
        yield unreadable("the VASP output contains no complete ionic step; did the calculation finish?")


_CUTTERS: dict[Format, Callable[[Stream], Iterator[RawDocument]]] = {
    Format.CIF: _cut_cif,
    Format.POSCAR: _cut_poscar,
    Format.VASPRUN: partial(_cut_vasp_run, kind="vasp-xml"),
    Format.OUTCAR: partial(_cut_vasp_run, kind="vasp-out"),
    Format.EXTXYZ: _cut_extxyz,
    Format.CSV: cut_csv,
    Format.JSON: cut_json,
    Format.JSONL: cut_lines,
}
