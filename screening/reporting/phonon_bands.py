"""Phonon bands of the best candidates, from the tables of a dataset of properties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import StoreError
from ...pipeline.provenance import resolved_path
from ...pipeline.store.graph_store import open_root
from ..dataset.reader import ScoresReader
from ..dataset.scores import SCORES_SCHEMA
from .candidate_table import CandidateTable

# Candidates whose bands are drawn, and the largest number of frequencies of one of them.
BEST, MOST_FREQUENCIES = 6, 20_000
# Columns with the numbers of rows of a structure in the tables.
_POINTS, _MODES = "n_band_point", "n_band_mode"
# A selection of a hull of properties is two steps away from the tables.
_MOST_STEPS = 4


@dataclass(frozen=True, slots=True)
class PhononBands:
    """Phonon bands along a path.

    Attributes:
        distance: Distance along the path: float64[n], 1/angstrom.
        labels: Name of each wave vector at an end of a segment; empty for all others.
        frequency: float64[n, n_bands], THz; negative for imaginary modes.
    """

    distance: NDArray[np.float64]
    labels: tuple[str, ...]
    frequency: NDArray[np.float64]

    @property
    def segments(self) -> list[slice]:
        """The parts of the path between two labels."""
        ends = [place for place, label in enumerate(self.labels) if label]
        return [slice(start, stop + 1) for start, stop in zip(ends[::2], ends[1::2], strict=True)]

    def ticks(self) -> dict[float, str]:
        """Return the names of the ends of segments by distance; where the path jumps, both names stand at one place."""
        names: dict[float, list[str]] = {}
        for distance, label in zip(self.distance.tolist(), self.labels, strict=True):
            here = names.setdefault(round(distance, 6), [])
            if label and label not in here:
                here.append(label)
        return {place: "|".join(found).replace("GAMMA", "Γ") for place, found in names.items() if found}


def phonon_bands(rows: ScoresReader, table: CandidateTable) -> dict[int, PhononBands]:
    """Read the bands of the best distinct candidates.

    A hull or a selection has no tables; the tables are read from the dataset of properties that it was made from.

    Args:
        rows: Reader of the dataset.
        table: The candidates.

    Returns:
        Bands by place in the table; empty if there are none, or if the dataset of properties cannot be found.

    Raises:
        StoreError: The dataset is damaged.
    """
    if _POINTS not in rows.specs:
        return {}
    has_bands = rows.column(_POINTS, 0, len(rows)) > 0
    places = [place for place in table.distinct.tolist() if has_bands[table.rows[place]]][:BEST]
    tables = _tables(rows.path, table.rows[places])
    if tables is None:
        return {}
    arrays, found = tables
    ends = {name: np.cumsum(arrays[name][:], dtype=np.int64) for name in (_POINTS, _MODES)}
    bands = {}
    for place, row in zip(places, found.tolist(), strict=True):
        points, modes = (slice(int(end[row - 1]) if row else 0, int(end[row])) for end in ends.values())
        if modes.stop - modes.start > MOST_FREQUENCIES:
            continue
        bands[place] = PhononBands(
            np.asarray(arrays["band_distance"][points]),
            tuple(str(label) for label in arrays["band_label"][points].tolist()),
            np.asarray(arrays["band_frequency"][modes]).reshape(points.stop - points.start, -1),
        )
    return bands


def _tables(path: str | Path, rows: NDArray[np.int64]) -> tuple[Mapping[str, Any], NDArray[np.int64]] | None:
    """Return arrays of the dataset that has tables of bands, and the rows in it; None if it cannot be found.

    Args:
        path: A dataset.
        rows: int64[n], rows of this dataset.
    """
    place, wanted = str(path), ""
    for _ in range(_MOST_STEPS):
        try:
            root = open_root(place, SCORES_SCHEMA)
        except StoreError:
            return None
        arrays: dict[str, Any] = dict(root.arrays())
        attrs: dict[str, Any] = dict(root.attrs)
        if wanted not in ("", attrs.get("store_hash")):
            return None  # the dataset at this path is another one by now
        if "band_frequency" in arrays:
            return arrays, rows
        if "scores_row" in arrays:
            rows, parent = np.asarray(arrays["scores_row"][:])[rows], attrs["selection"]["scores"]
        elif "hull" in attrs:
            parent = attrs["hull"]["input"]
        else:
            return None
        place, wanted = resolved_path(str(parent["path"]), place), str(parent["store_hash"])
    return None
