"""The ranked list of a publication: columns of the scores, best row first, in chunks that suit remote reading.

In the scores themselves the best rows are scattered, so that the first page of a ranked list would need every chunk of
every column. Here it needs one chunk of each column that it shows. Each chunk is a file of its own, which even a web
server without range requests can serve.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from ..pipeline.store.checksums import rows_digest
from ..pipeline.store.compaction import finish_store
from ..pipeline.store.schema import CHUNK_ROWS, STRUCTURE, TEXT, ArraySpec, structure_array
from ..screening.dataset.reader import ScoresReader
from ..screening.dataset.scores import SCORES_SCHEMA
from ..screening.dataset.ties import best_first
from ..screening.selection.ranking import Measure

# Text columns of the ranked list. Others, such as the columns a user kept, may be long.
_TEXTS = ("structure_id", "formula", "chemical_system", "decomposition", "prototype_label", "known_as")
# A column has at most about this many chunks, until its chunks reach the largest size.
_CHUNKS, _LARGEST_CHUNK = 128, 8 * CHUNK_ROWS[STRUCTURE]
_ROW = structure_array("scores_row", "int64", "row of the structure in scores.zarr, from 0", units="1")
_RANK = structure_array("rank", "int64", "rank of the structure, from 1", units="1")


def ranked_rows(scores: ScoresReader, measure: Measure) -> NDArray[np.int64]:
    """Return all rows of a dataset, best first: int64[n].

    Rows whose status marks their values as unreliable come after all others, and rows without a value last.
    """
    values, last = [np.empty(0)], [np.empty(0, dtype=np.bool_)]
    for start, stop in scores.chunks():
        columns = {name: scores.column(name, start, stop) for name in {"status", *measure.columns}}
        values.append(measure.values(columns))
        last.append(~scores.is_ranked(columns["status"]))
    rows = np.arange(len(scores))
    return rows[best_first(scores, rows, np.concatenate(last), np.nan_to_num(np.concatenate(values), nan=np.inf))]


def write_ranked_store(scores: ScoresReader, rows: NDArray[np.int64], store: Path, attrs: Mapping[str, Any]) -> str:
    """Write the columns that a ranked list shows, in the order of the rows.

    Args:
        scores: The dataset.
        rows: int64[n], rows of the dataset, best first.
        store: Folder to create.
        attrs: Root attributes.

    Returns:
        Hash of the store.
    """
    root = zarr.open_group(store, mode="w", zarr_format=3)
    digests: dict[str, str] = {}
    own = {"rank": np.arange(1, len(rows) + 1), "scores_row": rows}
    for spec in (_RANK, *filter(_is_shown, scores.specs.values()), _ROW):
        # Only one column is in memory at a time.
        values = own[spec.name] if spec.name in own else scores.column(spec.name, 0, len(scores))[rows]
        digests |= _write(root, spec, values)
    return finish_store(store, digests, {**attrs, "schema": SCORES_SCHEMA})


def _is_shown(spec: ArraySpec) -> bool:
    """Whether a column is part of the ranked list."""
    return (
        len(spec.dims) == 1
        and spec.name not in (_RANK.name, _ROW.name)
        and (spec.name in _TEXTS if spec.dtype == TEXT else True)
    )


def chunk_rows(length: int) -> int:
    """Return the number of rows per chunk of a list of a given length."""
    rows = CHUNK_ROWS[STRUCTURE]
    while rows < _LARGEST_CHUNK and length > _CHUNKS * rows:
        rows *= 2
    return rows


def _write(root: zarr.Group, spec: ArraySpec, values: NDArray[Any]) -> dict[str, str]:
    """Write a column, and return the SHA-256 of each of its chunks."""
    rows = chunk_rows(len(values))
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = root.create_array(
            spec.name,
            shape=(len(values),),
            dtype="string" if spec.dtype == TEXT else spec.dtype,
            chunks=(min(rows, max(1, len(values))),),
            dimension_names=spec.dims,
            compressors=(BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"), Crc32cCodec()),
            fill_value=np.nan if spec.dtype.startswith("float") else None,
            attributes=dict(spec.attrs),
        )
        array[:] = values
    return {
        f"{spec.name}/{chunk}": rows_digest(values[chunk * rows : (chunk + 1) * rows])
        for chunk in range(-(-len(values) // rows))
    }
