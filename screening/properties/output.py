"""Output of a computation of properties: the arrays of the dataset and their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.runs.parts import PartArray
from ...pipeline.store.schema import TEXT, ArraySpec, empty_rows, flags, structure_array
from ..dataset.scores import RELAXATION_STATUS
from ..relaxation.batched import RelaxSettings
from ..relaxation.output import relaxed_arrays
from .materials import Computed
from .protocol import OK, PROPERTY_STATUSES, SYMMETRY_CHANGED, Outcome, Property, status_array

# Columns of the graph store of structures that imaginary modes lead to: the id of the crystal, and the energy gain in
# eV/atom.
FOLLOWED_COLUMNS = ("followed_from", "energy_gain")
_STATUS = structure_array(
    "status",
    "uint8",
    "outcome of the relaxation or, if that is ok, of the first property that is not",
    **flags(PROPERTY_STATUSES),
)


def base_arrays(relaxation: RelaxSettings) -> tuple[ArraySpec, ...]:
    """Return the arrays of a relaxation, whose status is renamed: here the status has the `PROPERTY_STATUSES`."""
    arrays = relaxed_arrays(relaxation)
    status = next(spec for spec in arrays if spec.name == "status")
    return (
        *(_STATUS if spec is status else spec for spec in arrays),
        replace(
            status, name=RELAXATION_STATUS, attrs={**status.attrs, "description": "outcome of the relaxation alone"}
        ),
    )


def property_arrays(properties: Sequence[Property]) -> tuple[ArraySpec, ...]:
    """Return the arrays of some properties, with one row per structure.

    Raises:
        ConfigError: Two properties have an array or table of the same name.
    """
    own = [spec for one in properties for spec in (status_array(one), *one.arrays)]
    own += [_count_array(dim) for dim in table_dims(properties)]
    names = [spec.name for spec in (*own, *table_arrays(properties))]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"several properties have an array {min(repeated)}; compute them in separate runs")
    return tuple(own)


def table_arrays(properties: Sequence[Property]) -> tuple[ArraySpec, ...]:
    """Return the arrays of some properties, with any number of rows per structure."""
    return tuple(spec for one in properties for spec in one.tables)


def table_dims(properties: Sequence[Property]) -> tuple[str, ...]:
    """Return the first dims of the tables of some properties."""
    return tuple(dict.fromkeys(spec.dims[0] for spec in table_arrays(properties)))


def _count_array(dim: str) -> ArraySpec:
    return structure_array(
        f"n_{dim}", "int64", f"number of rows of the structure along dim {dim}; rows are in the order of the structures"
    )


def property_rows(properties: Sequence[Property], outcomes: Sequence[Mapping[str, Outcome]]) -> dict[str, PartArray]:
    """Return the rows of the arrays and tables of some properties.

    Args:
        properties: The properties.
        outcomes: Outcome of each property, by name, for each structure.

    Raises:
        ValueError: A property returned tables along one dim with different numbers of rows.
    """
    rows: dict[str, PartArray] = {}
    for one in properties:
        found = [outcome[one.name] for outcome in outcomes]
        rows[f"{one.name}_status"] = np.array([outcome.status for outcome in found], dtype=np.uint8)
        for spec in one.arrays:
            rows[spec.name] = _filled(spec, [outcome.values.get(spec.name) for outcome in found])
        for spec in one.tables:
            parts = [outcome.tables.get(spec.name, empty_rows(spec, 0)) for outcome in found]
            rows[spec.name] = _joined(spec, parts)
            counts = np.array([len(part) for part in parts], dtype=np.int64)
            name = f"n_{spec.dims[0]}"
            if not np.array_equal(np.asarray(rows.setdefault(name, counts)), counts):
                raise ValueError(f"{one.name}: tables along {spec.dims[0]} have different numbers of rows")
    return rows


def _joined(spec: ArraySpec, parts: Sequence[PartArray]) -> PartArray:
    """Return the rows of a table for several structures, one structure after another."""
    if spec.dtype == TEXT:
        return [text for part in parts for text in part]
    arrays = [np.asarray(part) for part in (empty_rows(spec, 0), *parts)]
    return np.concatenate(arrays).astype(spec.dtype, copy=False)


def _filled(spec: ArraySpec, values: Sequence[Any]) -> PartArray:
    """Return the rows of an array, with fill values where a value is None."""
    filled = empty_rows(spec, len(values))
    for place, value in enumerate(values):
        if value is not None:
            filled[place] = value
    return filled  # type: ignore[no-any-return]


def status_rows(computed: Sequence[Computed], changed: NDArray[np.bool_]) -> dict[str, PartArray]:
    """Return the rows of `status` and `status_note` for some materials.

    Args:
        computed: Results of the materials.
        changed: bool[n], whether the space group of a material has changed in its relaxation.
    """
    found = [
        SYMMETRY_CHANGED if moved and one.prepared.status == OK else overall(one.prepared.status, one.outcomes)
        for one, moved in zip(computed, changed.tolist(), strict=True)
    ]
    told = ["; ".join(dict.fromkeys(filter(None, (one.prepared.note, *notes(one.outcomes))))) for one in computed]
    return {"status": np.array(found, dtype=np.uint8), "status_note": told}


def overall(prepared: int, outcomes: Mapping[str, Outcome]) -> int:
    """Return the status of the relaxation or, if that is ok, of the first property whose status is not ok."""
    if prepared != OK:
        return prepared
    return next((outcome.status for outcome in outcomes.values() if outcome.status != OK), OK)


def notes(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Return the notes of some properties, with their names; a note that all of them share is given once."""
    told = {name: outcome.note for name, outcome in outcomes.items() if outcome.note}
    if len(told) == len(outcomes) and len(set(told.values())) == 1:
        return [next(iter(told.values()))]
    return [f"{name}: {note}" for name, note in told.items()]


def table_counts(properties: Sequence[Property], rows: Mapping[str, PartArray]) -> dict[str, int]:
    """Return the number of rows along the first dim of the tables of some properties."""
    return {dim: int(np.asarray(rows[f"n_{dim}"]).sum()) for dim in table_dims(properties)}
