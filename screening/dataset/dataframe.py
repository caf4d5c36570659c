"""Scores as a pandas DataFrame."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ...pipeline.store.schema import STRUCTURE
from .parquet import as_words
from .reader import flag_meanings
from .scores import open_scores

if TYPE_CHECKING:
    import pandas as pd

_ID = "structure_id"
# Labels of the components along a dimension of a tensor; other dimensions are numbered from 0.
_PLACES = {"cartesian": "xyz", "voigt": ("xx", "yy", "zz", "yz", "xz", "xy")}


def to_dataframe(scores: xr.Dataset | str | Path) -> pd.DataFrame:
    """Return scores as a table in memory, with one row per structure.

    The index is the `structure_id`. Flags such as `status` are categorical columns of words. Each component of a vector
    or tensor is a column of its own: ``stress_xx``, ``stress_xy`` and so on, and ``energy_members_0`` for the members
    of an ensemble. Units are in ``attrs["units"]`` and descriptions in ``attrs["descriptions"]``, by column.

    Example:
        >>> from equiscreen.screening import to_dataframe
        >>> table = to_dataframe("scores.zarr")
        >>> table.loc["AlCu", "status"], table.attrs["units"]["energy_per_atom"]
        ('ok', 'eV/atom')

    Args:
        scores: Dataset of a screen, relaxation, hull or selection, or its path or URL.

    Returns:
        The table.

    Raises:
        StoreError: The scores cannot be read.
    """
    import pandas as pd  # noqa: PLC0415 - takes 0.3 s

    dataset = scores if isinstance(scores, xr.Dataset) else open_scores(scores)
    columns = {}
    units, descriptions = {}, {}
    for name, array in dataset.variables.items():
        if name == _ID or array.dims[:1] != (STRUCTURE,):
            continue
        values: Any = np.asarray(array)
        meanings = flag_meanings(array.attrs)
        if meanings:
            values = pd.Categorical(as_words(values, meanings).tolist(), categories=list(meanings))
        elif values.dtype.kind in "TUO":
            values = values.astype(object)
        for place in product(*map(range, array.shape[1:])):
            label = _component(str(name), [str(dim) for dim in array.dims[1:]], place)
            columns[label] = values[(slice(None), *place)] if place else values
            units[label] = array.attrs.get("units")
            descriptions[label] = array.attrs.get("description")
    table = pd.DataFrame(columns, index=pd.Index(np.asarray(dataset[_ID].values, dtype=object), name=_ID))
    table.attrs["units"] = {label: unit for label, unit in units.items() if unit}
    table.attrs["descriptions"] = {label: text for label, text in descriptions.items() if text}
    return table


def _component(name: str, dims: list[str], place: tuple[int, ...]) -> str:
    """Return the name of the column of a component; a scalar keeps the name of its array."""
    if not place:
        return name
    texts = [
        _PLACES[dim.partition("_")[0]][index] if dim.partition("_")[0] in _PLACES else f"_{index}"
        for dim, index in zip(dims, place, strict=True)
    ]
    return f"{name}_{''.join(texts).lstrip('_')}"
