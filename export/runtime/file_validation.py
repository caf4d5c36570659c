"""Validation of an ONNX file before anything runs it, without the onnx package.

The file is a Protocol Buffers message. It is searched only for what must be refused: tensors stored in other files, and
operators from other domains. Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from collections.abc import Iterator

from ...pipeline.errors import ModelFileError

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})

_MODEL_GRAPH, _MODEL_OPSET, _MODEL_FUNCTIONS = 7, 8, 25
_OPSET_DOMAIN = 1
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_ATTRIBUTE, _NODE_DOMAIN = 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_model_bytes(data: bytes, name: str) -> None:
    """Refuse a file unless it is one self-contained model of standard operators.

    Args:
        data: Content of the file.
        name: Name of the file, for messages.

    Raises:
        ModelFileError: The file is damaged, refers to external data, or holds operators from other domains.
    """
    try:
        _check_model(memoryview(data), name)
    except (IndexError, UnicodeDecodeError, _DamagedError) as error:
        raise ModelFileError(f"{name}: damaged, or not an ONNX file; export the model again") from error


class _DamagedError(Exception):
    pass


def _check_model(model: memoryview, name: str) -> None:
    graphs = 0
    for field, value in _fields(model):
        if field == _MODEL_GRAPH and isinstance(value, memoryview):
            graphs += 1
            _check_graph(value, name)
        elif field == _MODEL_OPSET and isinstance(value, memoryview):
            _check_domain(_text(value, _OPSET_DOMAIN), name)
        elif field == _MODEL_FUNCTIONS:
            raise ModelFileError(f"{name}: refused: it defines its own functions")
    if graphs != 1:
        raise _DamagedError


def _check_graph(graph: memoryview, name: str) -> None:
    for field, value in _fields(graph):
        if not isinstance(value, memoryview):
            continue
        if field == _GRAPH_INITIALIZER:
            _check_tensor(value, name)
        elif field == _GRAPH_SPARSE:
            raise ModelFileError(f"{name}: refused: it contains sparse tensors")
        elif field == _GRAPH_NODE:
            _check_domain(_text(value, _NODE_DOMAIN), name)
            for inner, attribute in _fields(value):
                if inner == _NODE_ATTRIBUTE and isinstance(attribute, memoryview):
                    _check_attribute(attribute, name)


def _check_attribute(attribute: memoryview, name: str) -> None:
    for field, value in _fields(attribute):
        if isinstance(value, memoryview):
            if field in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                _check_tensor(value, name)
            elif field in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                _check_graph(value, name)


def _check_tensor(tensor: memoryview, name: str) -> None:
    for field, value in _fields(tensor):
        if field == _TENSOR_EXTERNAL_DATA or (field == _TENSOR_DATA_LOCATION and value != 0):
            raise ModelFileError(f"{name}: refused: it stores tensors in other files")


def _check_domain(domain: str, name: str) -> None:
    if domain not in STANDARD_DOMAINS:
        raise ModelFileError(f"{name}: refused: it uses operators from the domain {domain!r}")


def _text(message: memoryview, wanted: int) -> str:
    for field, value in _fields(message):
        if field == wanted and isinstance(value, memoryview):
            return bytes(value).decode()
    return ""


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message, each as (number, integer or bytes)."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == _VARINT:
            value, place = _varint(message, place)
            yield key >> 3, value
        elif kind == _BYTES:
            length, place = _varint(message, place)
            if place + length > len(message):
                raise _DamagedError
            yield key >> 3, message[place : place + length]
            place += length
        elif kind in (_FIXED32, _FIXED64):
            place += 4 if kind == _FIXED32 else 8
        else:
            raise _DamagedError


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if not byte & 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise _DamagedError
