"""Dotted paths into the nested fields of a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def lookup(fields: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, or None if there is none.

    A number in the path is the index of a list item. A key of `fields` that equals the whole path, dots included, takes
    precedence.
    """
    if path in fields:
        return fields[path]
    value: Any = fields
    for key in path.split("."):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, Sequence) and not isinstance(value, str) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def key_paths(fields: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the dotted paths of all fields that are not mappings, for messages."""
    paths: list[str] = []
    for key, value in fields.items():
        inner = key_paths(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
        paths.extend(inner)
    return paths
