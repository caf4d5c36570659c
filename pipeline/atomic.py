"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file that appears under its name only when complete."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)
