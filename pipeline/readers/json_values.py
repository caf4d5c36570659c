"""Parsing of JSON that rejects duplicate keys, of which other parsers silently keep only the last value."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import InvalidStructureError
from ..jit import compiled

_MAX_DEPTH = 1024  # the deepest that orjson reads
# The constants of FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/), and an odd factor that spreads small numbers.
_OFFSET, _PRIME, _SPREAD = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3), np.uint64(0x9E3779B97F4A7C15)


class RepeatedKeyError(InvalidStructureError):
    """A JSON object gives a key twice."""


def parse_json(content: bytes) -> Any:
    """Parse JSON; integers beyond 64 bits are accepted, and so are NaN and infinities, which the standard lacks.

    Args:
        content: Text in UTF-8 or, failing that, in Latin-1.

    Raises:
        RepeatedKeyError: An object gives a key twice.
        ValueError: The text is not JSON.
        RecursionError: The text is nested too deeply.
    """
    try:
        found = orjson.loads(content)
    except ValueError:
        return json.loads(_text(content), object_pairs_hook=_unique)
    table = np.zeros(1 << (2 * content.count(b":")).bit_length(), dtype=np.uint64)
    if _may_repeat_a_key(np.frombuffer(content, dtype=np.uint8), table):
        json.loads(content, object_pairs_hook=_unique)
    return found


def parse_leniently(content: bytes) -> Any:
    """Parse JSON as `parse_json` does, but keep the last value of a repeated key, to identify a rejected record.

    Raises:
        ValueError: The text is not JSON.
        RecursionError: The text is nested too deeply.
    """
    try:
        return orjson.loads(content)
    except ValueError:
        return json.loads(_text(content))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object from keys and values.

    Raises:
        RepeatedKeyError: A key is given twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise RepeatedKeyError(f"the key {repeated[:80]!r} is given twice")
    return found


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


@compiled
def _may_repeat_a_key(data: NDArray[np.uint8], table: NDArray[np.uint64]) -> bool:  # noqa: C901, PLR0912 - states
    """Whether valid JSON may give a key twice in one object; escapes or equal digests can cause a false alarm.

    Args:
        data: The text.
        table: uint64[n], zeros, to hold the digests of the keys; n is a power of two and larger than the number of
            keys.
    """
    objects = np.zeros(_MAX_DEPTH, dtype=np.uint64)
    mask = len(table) - 1
    depth, count = 0, 0
    in_string = escaped = has_escape = False
    digest = _OFFSET
    for byte in data:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 92:  # backslash
                escaped = has_escape = True
            elif byte == 34:  # quote
                in_string = False
            digest = (digest ^ np.uint64(byte)) * _PRIME
        elif byte == 34:
            in_string, has_escape, digest = True, False, _OFFSET
        elif byte in (91, 123):  # [ {
            if depth == _MAX_DEPTH:
                return True
            count += 1
            objects[depth] = np.uint64(count)
            depth += 1
        elif byte in (93, 125):  # ] }
            depth -= 1
        elif byte == 58:  # a colon, after a key
            if has_escape:
                return True
            key = (digest ^ (objects[depth - 1] * _SPREAD)) * _PRIME | np.uint64(1)
            place = np.int64(key >> np.uint64(20)) & mask
            while table[place] != 0:
                if table[place] == key:
                    return True
                place = (place + 1) & mask
            table[place] = key
    return False
