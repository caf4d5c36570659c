"""Tables in which a column is there twice, of which nobody knows which one is meant."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...pipeline.errors import SourceError

# pandas appends such numbers to the names of columns that are there several times.
_NUMBERED = re.compile(r"\.\d+$")


def check_columns(path: str | Path, used: Sequence[str], names: Sequence[str]) -> None:
    """Check that the columns of a table that are used are there once.

    Args:
        path: File of the table.
        used: Names of the columns that are used.
        names: Names of all columns.

    Raises:
        SourceError: One of them is there several times, under its own name or with a number appended.
    """
    counts = Counter(names) + Counter(_NUMBERED.sub("", name) for name in names if _NUMBERED.search(name))
    for name in used:
        if counts[name] > 1:
            raise SourceError(f"{path}: the column {name} is there {counts[name]} times; keep one of them")
