"""Marks: small JSON files that record for later runs what is finished. A damaged mark counts as absent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic import write_text_atomically

_CONTENT, _DIGEST = "content", "sha256"


def write_mark(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mark, which appears under its name only when it is complete."""
    text = json.dumps(content)
    write_text_atomically(path, json.dumps({_CONTENT: content, _DIGEST: _digest(text)}, indent=1))


def read_mark(path: Path) -> dict[str, Any] | None:
    """Read a mark; None if there is none or if it is damaged."""
    try:
        found = json.loads(path.read_bytes())
        content: dict[str, Any] = found[_CONTENT]
        intact = found[_DIGEST] == _digest(json.dumps(content))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if intact else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
