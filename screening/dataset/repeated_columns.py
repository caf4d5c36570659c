"""Check for columns that appear twice in a table, so that it is unclear which one is meant."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...pipeline.errors import SourceError

# pandas appends a number like this to a column name that appears several times.
_NUMBERED = re.compile(r"\.\d+$")


def check_columns(path: str | Path, used: Sequence[str], names: Sequence[str]) -> None:
    """Check that each column of a table that is used appears only once.

    Args:
        path: File of the table.
        used: Names of the columns that are used.
        names: Names of all columns.

    Raises:
        SourceError: A used column appears several times, under its own name or with a number appended.
    """
    counts = Counter(names) + Counter(_NUMBERED.sub("", name) for name in names if _NUMBERED.search(name))
    for name in used:
        if counts[name] > 1:
            raise SourceError(f"{path}: the column {name} appears {counts[name]} times; keep only one")
