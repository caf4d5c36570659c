"""Scores as parquet files, which pandas can read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...pipeline.atomic import atomic_path
from ...pipeline.errors import ConfigError, OutputExistsError
from ...pipeline.runs.staging import PARQUET, check_file
from ...pipeline.store.schema import TEXT, ArraySpec
from ...pipeline.suggestions import unknown_name
from .reader import ScoresReader, flag_meanings

METADATA_KEY = b"equiscreen"


class ParquetFile:
    """A parquet file that is written chunk by chunk.

    Flags become words; several values per structure become lists. Units and descriptions are stored in the metadata of
    the fields, and the attributes of the dataset in the metadata of the file, under `METADATA_KEY`.

    Args:
        path: Path of the file to write.
        specs: Columns of the file.
        attrs: Attributes of the dataset.
    """

    def __init__(self, path: Path, specs: Sequence[ArraySpec], attrs: Mapping[str, Any]) -> None:
        self._specs = tuple(specs)
        self.schema = pa.schema(
            [_field(spec) for spec in specs], metadata={METADATA_KEY: json.dumps(dict(attrs), sort_keys=True)}
        )
        self._writer = pq.ParquetWriter(path, self.schema, compression="zstd")

    def write(self, table: Mapping[str, NDArray[Any]]) -> None:
        """Append rows.

        Args:
            table: Values of all columns by name, all with the same number of rows, with the dims and dtypes of the
                dataset.
        """
        self._writer.write_table(arrow_table(table, self._specs).replace_schema_metadata(self.schema.metadata))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


def to_parquet(
    scores: str | Path, path: str | Path, *, columns: Sequence[str] | None = None, overwrite: bool = False
) -> Path:
    """Write a scores dataset as a parquet file; only one chunk of rows is in memory at once.

    Example:
        >>> import pandas
        >>> from equiscreen.screening import to_parquet
        >>> pandas.read_parquet(to_parquet("scores.zarr", "scores.parquet"))["formula"].tolist()
        ['Al', 'Cu', 'AlCu', 'AlCu3']

    Args:
        scores: Path or URL of the dataset of a screen, relaxation, hull or selection.
        path: Path of the file to write.
        columns: Variables to write; all by default.
        overwrite: Replace an existing file.

    Returns:
        Path of the file.

    Raises:
        StoreError: The scores cannot be read.
        ConfigError: A variable is unknown.
        OutputExistsError: The file exists or lies in the dataset, or its folder does not exist.
    """
    rows = ScoresReader(scores)
    out = check_file(path, [scores], overwrite=overwrite, begins=PARQUET)
    names = list(rows.specs) if columns is None else list(columns)
    for name in names:
        if name not in rows.specs:
            raise ConfigError(f"{scores}: {unknown_name('column', name, rows.specs)}")
    try:
        with atomic_path(out) as scratch:
            file = ParquetFile(scratch, [rows.specs[name] for name in names], rows.attrs)
            for start, stop in rows.chunks():
                file.write({name: rows.column(name, start, stop) for name in names})
            file.close()
    except FileNotFoundError as error:
        raise OutputExistsError(
            f"{out} cannot be written ({error.strerror}); create its folder, or choose another path"
        ) from error
    return out


def arrow_table(table: Mapping[str, NDArray[Any]], specs: Sequence[ArraySpec]) -> pa.Table:
    """Return rows as an Arrow table, with flags as words.

    Args:
        table: Rows of every column, as in the dataset.
        specs: The columns.
    """
    arrays = [_arrow(table[spec.name], spec) for spec in specs]
    return pa.Table.from_arrays(arrays, schema=pa.schema([_field(spec) for spec in specs]))


def as_words(values: NDArray[Any], meanings: Mapping[str, int]) -> NDArray[Any]:
    """Convert the values of a flag to words; a value without a word becomes an empty text."""
    words = np.full(256, "", dtype=np.dtypes.StringDType())
    for word, value in meanings.items():
        words[value] = word
    return np.asarray(words[values.astype(np.uint8)])


def _field(spec: ArraySpec) -> pa.Field:
    notes = {key: str(spec.attrs[key]) for key in ("units", "description") if spec.attrs.get(key)}
    return pa.field(spec.name, _type(spec), metadata=notes or None)


def _type(spec: ArraySpec) -> pa.DataType:
    if flag_meanings(spec.attrs):
        return pa.dictionary(pa.int8(), pa.string())
    found = pa.string() if spec.dtype == TEXT else pa.from_numpy_dtype(np.dtype(spec.dtype))
    for size in reversed(spec.inner):
        found = pa.list_(found, size)
    return found


def _arrow(values: NDArray[Any], spec: ArraySpec) -> pa.Array:
    meanings = flag_meanings(spec.attrs)
    if meanings:
        places = np.full(256, -1, dtype=np.int8)
        places[list(meanings.values())] = np.arange(len(meanings))
        found = places[values.astype(np.uint8)]
        return pa.DictionaryArray.from_arrays(
            pa.array(found, mask=found < 0), pa.array(list(meanings), type=pa.string())
        )
    if spec.dtype == TEXT:
        return pa.array(values.tolist(), type=pa.string())
    found = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(spec.inner):
        found = pa.FixedSizeListArray.from_arrays(found, size)
    return found
