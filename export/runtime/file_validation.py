"""Validation of an ONNX file before anything runs it, without the onnx package.

The file is a Protocol Buffers message. Readers of that format skip fields that they do not know, differ in how they
read a field that is given twice, and truncate numbers to their own width, so a file may mean one thing to a check and
another to the runtime. Here every message must follow the schema of onnx.proto
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto): known fields only, in their own encoding, none repeated unless
it is a list, and numbers in their shortest form. Such files have only one meaning. Tensors in other files, sparse
tensors, functions and operators of other domains are not allowed.

The last entry of a file is the SHA-256 of all bytes before it, so that a flipped bit is detected. Files rewritten by
other tools do not end with this entry and are read without this check.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...pipeline.errors import ModelFileError

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_FIELD = (1 << 29) - 1
_MAX_DEPTH = 32
_CHECKSUM_KEY = b"equiscreen-checksum"


@dataclass(frozen=True)
class _Field:
    """A field that a message may have.

    Attributes:
        kinds: Wire types in which the field may be encoded.
        repeated: Whether the field may be given more than once.
        message: Message that the bytes of the field hold; None for text, numbers, and messages that hold only text and
            numbers.
        refusal: Why a file with this field is rejected; empty for allowed fields.
        domain: Whether the field names a domain of operators.
    """

    kinds: tuple[int, ...]
    repeated: bool = False
    message: str | None = None
    refusal: str = ""
    domain: bool = False


_INTEGER, _TEXT, _FLOAT = _Field((_VARINT,)), _Field((_BYTES,)), _Field((_FIXED32,))
_TEXTS = _Field((_BYTES,), repeated=True)
_INTEGERS = _Field((_VARINT, _BYTES), repeated=True)  # packed or not
_FLOATS, _DOUBLES = _Field((_FIXED32, _BYTES), repeated=True), _Field((_FIXED64, _BYTES), repeated=True)
_DOMAIN = _Field((_BYTES,), domain=True)


def _one(message: str) -> _Field:
    return _Field((_BYTES,), message=message)


def _many(message: str) -> _Field:
    return _Field((_BYTES,), repeated=True, message=message)


def _refused(why: str) -> _Field:
    return _Field((_VARINT, _FIXED64, _BYTES, _FIXED32), repeated=True, refusal=why)


_OTHER_FILES = _refused("it stores tensors in other files")
_SPARSE = _refused("it contains sparse tensors")
_SCHEMA: Mapping[str, Mapping[int, _Field]] = {
    "model": {
        1: _INTEGER,
        2: _TEXT,
        3: _TEXT,
        4: _TEXT,
        5: _INTEGER,
        6: _TEXT,
        7: _one("graph"),
        8: _one("opset"),  # of the only domain that is allowed
        14: _many("pair"),
        20: _refused("it contains training graphs"),
        25: _refused("it defines its own functions"),
        26: _refused("it describes several devices"),
    },
    "opset": {1: _DOMAIN, 2: _INTEGER},
    "pair": {1: _TEXT, 2: _TEXT},
    "graph": {
        1: _many("node"),
        2: _TEXT,
        5: _many("tensor"),
        10: _TEXT,
        11: _many("value"),
        12: _many("value"),
        13: _many("value"),
        14: _refused("it is quantised"),
        15: _SPARSE,
        16: _many("pair"),
    },
    "node": {
        1: _TEXTS,
        2: _TEXTS,
        3: _TEXT,
        4: _TEXT,
        5: _many("attribute"),
        6: _TEXT,
        7: _DOMAIN,
        8: _TEXT,
        9: _many("pair"),
        10: _refused("it describes several devices"),
    },
    "attribute": {
        1: _TEXT,
        2: _FLOAT,
        3: _INTEGER,
        4: _TEXT,
        5: _one("tensor"),
        6: _one("graph"),
        7: _FLOATS,
        8: _INTEGERS,
        9: _TEXTS,
        10: _many("tensor"),
        11: _many("graph"),
        13: _TEXT,
        20: _INTEGER,
        21: _TEXT,
        14: _refused("it contains types as attributes"),
        15: _refused("it contains types as attributes"),
        22: _SPARSE,
        23: _SPARSE,
    },
    "tensor": {
        1: _INTEGERS,
        2: _INTEGER,
        3: _refused("it contains parts of tensors"),
        4: _FLOATS,
        5: _INTEGERS,
        6: _TEXTS,
        7: _INTEGERS,
        8: _TEXT,
        9: _TEXT,
        10: _DOUBLES,
        11: _INTEGERS,
        12: _TEXT,
        13: _OTHER_FILES,
        14: _OTHER_FILES,
        16: _many("pair"),
    },
    "value": {1: _TEXT, 2: _TEXT, 3: _TEXT, 4: _many("pair")},
}


def check_model_bytes(data: bytes, name: str) -> None:
    """Reject a file unless it is one self-contained ONNX model of standard operators.

    Args:
        data: Content of the file.
        name: Name of the file, for messages.

    Raises:
        ModelFileError: The file is damaged or not an ONNX file, or contains something that is not allowed, such as
            references to other files or operators from other domains.
    """
    entry = _checksum_entry(data)
    if entry and data[-len(entry) :] != entry:
        raise ModelFileError(f"{name} is damaged: its checksum does not match; copy or export the model again")
    try:
        fields = _check(memoryview(data), "model", name, depth=0)
    except (IndexError, UnicodeDecodeError, _DamagedError) as error:
        raise ModelFileError(f"{name} is damaged or not an ONNX file; export the model again") from error
    if 7 not in fields:
        raise ModelFileError(f"{name} is damaged or not an ONNX file; export the model again")


def has_valid_checksum(data: bytes) -> bool:
    """Whether a file ends with the checksum of the bytes before it."""
    entry = _checksum_entry(data)
    return bool(entry) and data.endswith(entry)


def with_checksum(data: bytes) -> bytes:
    """Return the content of a model file with its checksum, as the last of its metadata properties.

    Args:
        data: A serialised model without checksum.
    """
    digest = hashlib.sha256(data).hexdigest().encode()
    pair = b"\x0a" + bytes([len(_CHECKSUM_KEY)]) + _CHECKSUM_KEY + b"\x12" + bytes([len(digest)]) + digest
    return data + b"\x72" + bytes([len(pair)]) + pair


def _checksum_entry(data: bytes) -> bytes:
    """Return the checksum that the end of a file should hold; empty if the file does not end with a checksum."""
    length = len(with_checksum(b""))
    at = data.rfind(_CHECKSUM_KEY, -length)
    return with_checksum(data[:-length])[-length:] if at >= 0 else b""


class _DamagedError(Exception):
    pass


def _check(message: memoryview, kind: str, name: str, depth: int) -> set[int]:
    """Check a message and all messages in it; return the numbers of its fields.

    Raises:
        ModelFileError: The message holds a field that is not allowed.
        _DamagedError: The message does not follow the schema.
    """
    if depth > _MAX_DEPTH:
        raise _DamagedError
    schema, seen = _SCHEMA[kind], set[int]()
    for number, encoding, value in _fields(message):
        known = schema.get(number)
        if known is None:
            raise _DamagedError
        if known.refusal:
            raise ModelFileError(
                f"{name} cannot be used: {known.refusal}; use the file as `equiscreen export` wrote it"
            )
        if encoding not in known.kinds:
            raise _DamagedError
        if known.message is not None:
            _check(value, known.message, name, depth + 1)  # first, since its content gives the more precise error
        elif known.domain and (domain := bytes(value).decode()) not in STANDARD_DOMAINS:
            raise ModelFileError(
                f"{name} cannot be used: it contains operators from the domain {domain!r}; use the file as `equiscreen "
                "export` wrote it"
            )
        if number in seen and not known.repeated:
            raise _DamagedError
        seen.add(number)
    return seen


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield the fields of a message: number, wire type, and bytes (empty for numbers).

    Raises:
        _DamagedError: A field has no valid number, wire type or length.
    """
    place = 0
    empty = message[:0]
    while place < len(message):
        key, place = _varint(message, place)
        number, encoding = key >> 3, key & 7
        if not 0 < number <= _MAX_FIELD:
            raise _DamagedError
        if encoding == _VARINT:
            _, place = _varint(message, place)
            yield number, encoding, empty
            continue
        if encoding == _BYTES:
            length, place = _varint(message, place)
        elif encoding in (_FIXED32, _FIXED64):
            length = 4 if encoding == _FIXED32 else 8
        else:
            raise _DamagedError
        if place + length > len(message):
            raise _DamagedError
        yield number, encoding, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Read a number; return it and the position after it.

    Raises:
        IndexError: The message ends within the number.
        _DamagedError: The number has more than 64 bits, or is not in its shortest form.
    """
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if not byte & 0x80:
            if value >> 64 or (shift and not byte):
                raise _DamagedError
            return value, place
        shift += 7
        if shift > 63:
            raise _DamagedError
