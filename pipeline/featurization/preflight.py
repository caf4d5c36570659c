"""Checks on the first records, before the run begins."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import LabelError
from ..field_path import key_paths, lookup
from ..readers.records import RawRecord, ReadOptions
from ..runs.cluster import check_seen
from ..sources.files import SourceFile
from .partitions import Plan, read_partition
from .task import FeaturizeSettings

# Numbers of records of a source, and of sources, to check first. If none of these records has a mapped label, the
# mapping is considered wrong.
PEEK_RECORDS = 50
PEEK_SOURCES = 20


def check_fields_exist(client: Any, files: Sequence[SourceFile], settings: FeaturizeSettings) -> None:
    """Check that the first records hold the mapped labels (at least one of them), every column, and the id field.

    A field counts as present if one of these records has it. Optional labels are not checked.

    Args:
        client: Dask client.
        files: Files to read.
        settings: Settings of the run.

    Raises:
        LabelError: None of the first records has any mapped label, or none has a requested column or the id field.
    """
    from distributed import KilledWorker  # noqa: PLC0415 - see cluster.connect

    wanted = {
        f"label {name!r}": [rule.path for rule in rules]
        for name, rules in settings.mapping.labels.items()
        if not all(rule.optional for rule in rules)
    }
    wanted |= {f"column {name!r}": [name] for name in settings.mapping.columns}
    if settings.id_field is not None:
        wanted["--id-field"] = [settings.id_field]
    if not wanted:
        return
    try:
        # On a worker: the first records may crash the process that reads them.
        source, absent, keys = client.submit(_fields_absent, files[:PEEK_SOURCES], settings.options, wanted).result()
    except KilledWorker:
        return
    some = any(what.startswith("label ") and what not in absent for what in wanted)
    for what, paths in absent.items():
        if some and what.startswith("label "):
            continue  # other labels were found; the report lists the missing ones
        raise LabelError(
            f"{what}: none of the first structures of {source} has {' or '.join(repr(path) for path in paths)}; "
            f"keys found: {', '.join(keys)} (for a label that only later structures have, set `optional: true` in a "
            "YAML mapping)"
        )


def _fields_absent(
    files: Sequence[SourceFile], options: ReadOptions, wanted: Mapping[str, Sequence[str]]
) -> tuple[str, dict[str, list[str]], list[str]]:
    """Find wanted fields that none of the first records has.

    Returns:
        Name of the first source, field paths of each item of `wanted` that is absent, and the keys of the record with
        the most fields.
    """
    records: list[RawRecord] = []
    with tempfile.TemporaryDirectory() as scratch:
        for file in files:
            if file.local:
                check_seen(file.path)
            for partition in Plan([file], Path(scratch), PEEK_RECORDS):
                records.extend(record for record in read_partition(partition, options) if record.structure is not None)
    if not records:
        return "", {}, []  # the reasons become rows of the failures table
    absent = {
        what: sorted(set(paths))
        for what, paths in wanted.items()
        if not any(lookup(record.fields, path) is not None for record in records for path in paths)
    }
    return records[0].source, absent, key_paths(max((record.fields for record in records), key=len))[:30]
