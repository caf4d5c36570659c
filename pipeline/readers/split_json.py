"""Splitting of JSON into the text of its records by brackets, commas and strings, one record at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..jit import compiled
from ..sources.files import Stream
from .pymatgen_dict import holds_structure, structure_keys

# Any real record is smaller; a crystal of 65,535 atoms takes some 10 MB of JSON.
MAX_DOCUMENT_BYTES = 64 << 20
# The content of a document, or a dictionary of the fields of a `Document` that has more than its content.
RawDocument = bytes | dict[str, Any]
# Keys of the list of records in JSON files from Alexandria, OPTIMADE and the API of the Materials Project.
_LIST_KEYS = ("entries", "data", "structures", "results", "docs", "response")
_OPEN_LIST, _OPEN_OBJECT = re.compile(rb"\["), re.compile(rb"\{")
_LIST_MEMBER = re.compile(rb'\s*"(' + "|".join(_LIST_KEYS).encode() + rb')"\s*:\s*\[(?=\s*\{)')
_KEY = re.compile(rb'\s*("(?:[^"\\\x00-\x1f]|\\.)*")\s*:\s*')
_OBJECT_MEMBER = re.compile(_KEY.pattern + rb"\{")
# First line of OPTIMADE JSON Lines; lines that describe the kinds of entries follow it.
_OPTIMADE_HEADER = re.compile(rb'\s*\{\s*"x-optimade"\s*:')
_SPACE = b" \t\r\n"
_LOOK_AHEAD = 4096
_ENDS_EARLY = "not valid JSON: ends early"


def unreadable(reason: str) -> RawDocument:
    """Make a document without content that reports a reason."""
    return {"content": b"", "reason": reason}


def cut_json(stream: Stream) -> Iterator[RawDocument]:
    """Split JSON text into records.

    The records are the elements of an array; for an object, they are the elements of an array in it, its values if
    these are records, or otherwise the object itself. Text after the first value is split too: the file may be JSON
    lines whose first line is too long for detection, or a sequence of values.
    """
    scanner = _JsonScanner(stream)
    scanner.skip_space()
    scanner.mark()
    if scanner.match(_OPEN_LIST):
        yield from scanner.elements()
    elif scanner.match(_OPEN_OBJECT):
        yield from _cut_object(scanner)
    else:
        yield unreadable("not valid JSON: neither an array nor an object")
        return
    on_one_line = scanner.on_one_line()
    if scanner.skip_space() and on_one_line and scanner.sees(_OPEN_OBJECT):
        yield from cut_lines(scanner)
    else:
        yield from _cut_values(scanner)


def _cut_values(scanner: _JsonScanner) -> Iterator[RawDocument]:
    """Split further values; consecutive lines that do not begin a value become one document without content."""
    junk = b""
    while scanner.skip_space():
        is_list = scanner.match(_OPEN_LIST)
        if not is_list and not scanner.match(_OPEN_OBJECT):
            line = scanner.readline(_LOOK_AHEAD).strip()
            junk = junk or line
            continue
        if junk:
            yield _text_after_the_end(junk)
            junk = b""
        if is_list:
            yield from scanner.elements()
        else:
            yield _rest_of_object(scanner, [], b",")
    if junk:
        yield _text_after_the_end(junk)


def _text_after_the_end(junk: bytes) -> RawDocument:
    return unreadable(f"not valid JSON: text after the end: {junk.decode('utf-8', errors='replace')[:40]!r}")


def cut_lines(stream: Stream | _JsonScanner) -> Iterator[RawDocument]:
    """Iterate over the lines that are not empty, without the header and the descriptions of OPTIMADE JSON Lines."""
    described = False
    for line in iter(lambda: stream.readline(MAX_DOCUMENT_BYTES + 1), b""):
        described = _OPTIMADE_HEADER.match(line) is not None or (described and _is_description(line))
        if line.strip() and not described:
            yield line
        if len(line) > MAX_DOCUMENT_BYTES:
            while line and not line.endswith(b"\n"):
                line = stream.readline(1 << 20)  # noqa: PLW2901 - the rest of the same line


def _is_description(line: bytes) -> bool:
    """Whether a line of OPTIMADE JSON Lines describes a kind of entries; before v1.2 it has no `type`."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("type", "info") == "info" and "properties" in found


def _cut_object(scanner: _JsonScanner) -> Iterator[RawDocument]:
    members: list[bytes] = []
    size, end = 0, b","
    has_list = all_records = False
    while end == b",":
        if scanner.sees(_LIST_MEMBER) and not any(map(_is_structure, members)):
            has_list = scanner.match(_LIST_MEMBER)
            yield from scanner.elements()
            _, end = scanner.run()
            continue
        member, end = scanner.run()
        if size <= MAX_DOCUMENT_BYTES:
            members.append(member)
        size += len(member)
        if all_records:
            yield _named(members.pop())
            size = 0
        elif size > MAX_DOCUMENT_BYTES and not has_list:  # too large for one record; check whether it holds many
            all_records = _are_records(members)
            if not all_records:
                break
            yield from map(_named, members)
            members, size = [], 0
    if has_list:
        members = members if any(map(_is_structure, members)) else []  # other members only describe the list
    whole = members[:-1] if scanner.torn else members
    if not has_list and end != b"," and _are_records(whole) and not scanner.skip_space():
        # If another value follows, this object is one line of JSON lines.
        yield from map(_named, members)
    elif members:
        yield _rest_of_object(scanner, members, end)


def _rest_of_object(scanner: _JsonScanner, members: list[bytes], end: bytes) -> bytes:
    """Read the rest of an object whose first members have been read; if the object is too large, discard the rest."""
    size = sum(map(len, members))
    while end == b",":
        member, end = scanner.run()
        size += len(member)
        if size <= 2 * MAX_DOCUMENT_BYTES:
            members.append(member)
    return b"{" + b",".join(members) + (b"}" if end else b"")


def _parsed(member: bytes) -> Any:
    try:
        return json.loads(b"{" + member + b"}")
    except (ValueError, RecursionError):
        return None


def _is_structure(member: bytes) -> bool:
    """Whether the value of a member is a structure, which makes the enclosing object a record."""
    return bool(structure_keys(_parsed(member)))


def _are_records(members: list[bytes]) -> bool:
    """Whether the members of an object are records: all of them are objects, and at least half hold structures."""
    if len(members) < 2 or not all(map(_OBJECT_MEMBER.match, members)):
        return False
    found = [_parsed(member) for member in members]
    values = [value for item in found if isinstance(item, dict) for value in item.values()]
    return 2 * sum(map(holds_structure, values)) >= len(members)


def _named(member: bytes) -> RawDocument:
    """Make a document from one member of an object of records, with its key as the name."""
    match = _KEY.match(member)
    try:
        name = json.loads(match[1]) if match else None
    except ValueError:
        name = None
    if match is None or name is None:
        return unreadable("not valid JSON: object member without a key")
    return {"content": member[match.end() :], "name": str(name)}


class _JsonScanner:
    """Scans JSON text for brackets, commas and strings, without parsing anything else.

    Attributes:
        torn: Whether the text ended within a value.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream, self._data, self._at = stream, b"", 0
        self._begin, self._lines_passed = 0, False
        self.torn = False

    def _more(self) -> bool:
        """Read more data, keeping what has not been consumed."""
        self._lines_passed = not self.on_one_line()
        more = self._stream.chunk()
        self._data, self._at, self._begin = self._data[self._at :] + more, 0, 0
        return bool(more)

    def mark(self) -> None:
        """Remember this position for `on_one_line`."""
        self._begin, self._lines_passed = self._at, False

    def on_one_line(self) -> bool:
        """Whether no line break has been consumed since the mark."""
        return not self._lines_passed and b"\n" not in self._data[self._begin : self._at]

    def sees(self, pattern: re.Pattern[bytes]) -> bool:
        """Whether a pattern matches at this position."""
        while len(self._data) - self._at < _LOOK_AHEAD and self._more():
            pass
        return pattern.match(self._data, self._at) is not None

    def match(self, pattern: re.Pattern[bytes]) -> bool:
        """Consume the match of a pattern at this position, and return whether there is one."""
        if not self.sees(pattern):
            return False
        match = pattern.match(self._data, self._at)
        self._at = match.end() if match else self._at
        return True

    def skip_space(self) -> bool:
        """Consume white space, and return whether anything follows it."""
        while True:
            rest = len(self._data) - self._at
            left = len(self._data[self._at : self._at + _LOOK_AHEAD].lstrip(_SPACE))
            if left:
                self._at += min(rest, _LOOK_AHEAD) - left
                return True
            self._at += min(rest, _LOOK_AHEAD)
            if self._at == len(self._data) and not self._more():
                return False

    def readline(self, size: int) -> bytes:
        """Read the rest of the line, or its first `size` bytes."""
        while (end := self._data.find(b"\n", self._at, self._at + size)) < 0:
            if len(self._data) - self._at >= size or not self._more():
                end = min(len(self._data), self._at + size) - 1
                break
        line, self._at = self._data[self._at : end + 1], end + 1
        return line

    def elements(self) -> Iterator[RawDocument]:
        """Iterate over the elements of the array that was just opened."""
        end = b","
        while end == b",":
            content, end = self.run()
            if content.strip():
                yield content.strip()
            if (not end and not self.torn) or (end != b"]" and not content.strip()):
                yield unreadable(_ENDS_EARLY if not end else f"{_ENDS_EARLY}, or has an extra comma")

    def run(self) -> tuple[bytes, bytes]:
        """Read up to the comma or bracket that ends this member; return the text and that byte (empty at the end)."""
        state = np.zeros(3, dtype=np.int64)
        kept: list[bytes] = []
        size, seen = 0, self._at
        while True:
            end = _end_of_member(np.frombuffer(self._data, dtype=np.uint8), seen, state)
            if end >= 0:
                kept.append(self._data[self._at : end])
                byte = self._data[end : end + 1]
                self._at = end + 1
                return b"".join(kept), byte
            if size <= MAX_DOCUMENT_BYTES:  # larger records are rejected, so they need not be kept
                kept.append(self._data[self._at :])
            size += len(self._data) - self._at
            self._at = len(self._data)
            if not self._more():
                self.torn = bool(state.any())
                return b"".join(kept), b""
            seen = 0


@compiled
def _end_of_member(data: NDArray[np.uint8], begin: int, state: NDArray[np.int64]) -> int:  # noqa: C901 - states
    """Find the comma or bracket that ends a member; return its position, or -1 if it is not in `data`.

    `state` holds the depth, whether the position is in a string, and whether it follows a backslash; it is updated if
    the end is not found.
    """
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
