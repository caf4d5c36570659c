"""Scores beside the labels that their graph store has: for plots of parity and of calibration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..pipeline.errors import ConfigError, StoreError
from ..pipeline.store.graph_store import GraphStore
from ..pipeline.store.schema import STRUCTURE
from .dataset.reader import ROWS_AT_ONCE, flag_meanings
from .dataset.scores import RELIABLE_STATUSES

ENERGY_PER_ATOM = "energy_per_atom"

Column = NDArray[np.float64]


def labels_and_predictions(
    scores: xr.Dataset, name: str = ENERGY_PER_ATOM, *, store: str | Path | None = None
) -> tuple[Column, Column]:
    """Labels and predictions, where there are both.

    Energies are compared as they are: whoever screens with a model of one scheme a store with labels of another
    sees how the two differ.

    Args:
        scores: As `open_scores` gives them.
        name: ``energy_per_atom``, or an output of one number per structure that the store has a label of.
        store: The graph store, if it is not where the scores say.

    Returns:
        float64[n], float64[n]: labels and predictions; of energies in eV/atom. Empty if the store has no such label.

    Raises:
        ConfigError: The scores have no such variable, it is not one number per structure, or they are some rows of a
            dataset alone.
        StoreError: The store is missing, or another one by now.
    """
    label, prediction, _ = _rows(scores, name, store)
    return label, prediction


def calibration(
    scores: xr.Dataset, name: str = ENERGY_PER_ATOM, *, store: str | Path | None = None
) -> tuple[Column, Column]:
    """Errors and the standard deviations that the members of an ensemble predict them with, where there are both.

    Args:
        scores: As for `labels_and_predictions`, with a spread.
        name: As for `labels_and_predictions`.
        store: As for `labels_and_predictions`.

    Returns:
        float64[n], float64[n]: prediction less label, and standard deviation; of energies in eV/atom.

    Raises:
        ConfigError: As for `labels_and_predictions`; or the scores have no spread.
        StoreError: As for `labels_and_predictions`.
    """
    if _spread_of(name) not in scores:
        raise ConfigError(f"the scores have no {_spread_of(name)}: screen with several models, or with an ensemble")
    label, prediction, spread = _rows(scores, name, store)
    return prediction - label, spread


def _spread_of(name: str) -> str:
    return "energy_std" if name == ENERGY_PER_ATOM else f"{name}_std"


def _rows(scores: xr.Dataset, name: str, store: str | Path | None) -> tuple[Column, Column, Column]:
    """Labels, predictions and their spread (NaN without one), of all rows that have the first two."""
    if name not in scores or scores[name].dims != (STRUCTURE,) or scores[name].dtype.kind != "f":
        raise ConfigError(f"the scores have no {name!r} of one number per structure")
    graphs = _graphs_of(scores, store)
    label = "energy" if name == ENERGY_PER_ATOM else name
    if label not in graphs.label_names[0] or graphs.label_shape(label)[0] != ():
        nothing = np.zeros(0)
        return nothing, nothing.copy(), nothing.copy()
    pieces = list(_chunks(scores, graphs, name, label))
    return (
        np.concatenate([piece[0] for piece in pieces]),
        np.concatenate([piece[1] for piece in pieces]),
        np.concatenate([piece[2] for piece in pieces]),
    )


def _chunks(scores: xr.Dataset, graphs: GraphStore, name: str, label: str) -> Iterator[tuple[Column, Column, Column]]:
    status = scores["status"]
    reliable = [value for word, value in flag_meanings(status.attrs).items() if word in RELIABLE_STATUSES]
    spread = scores.get(_spread_of(name))
    size = scores.sizes[STRUCTURE]
    for start in range(0, size, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, size))
        _check_rows(scores, graphs, rows)
        predicted = scores[name][rows].to_numpy()
        known = graphs.column(label, rows.start, rows.stop)
        widths = np.full(len(predicted), np.nan) if spread is None else spread[rows].to_numpy()
        if name == ENERGY_PER_ATOM:
            counts = scores["n_atoms"][rows].to_numpy()
            known, widths = known / counts, widths / counts
        both = np.isfinite(known) & np.isfinite(predicted) & np.isin(status[rows].to_numpy(), reliable)
        yield known[both], predicted[both], widths[both]


def _check_rows(scores: xr.Dataset, graphs: GraphStore, rows: slice) -> None:
    """See that rows of the scores are those of the store: of a part of a dataset they are not.

    Raises:
        ConfigError: They are not.
    """
    names = scores["structure_id"][rows].to_numpy().tolist()
    if graphs.column("structure_id", rows.start, rows.stop).tolist() != names:
        raise ConfigError(
            "these rows are some of a dataset, or in another order; take the scores as `screen` wrote them"
        )


def _graphs_of(scores: xr.Dataset, store: str | Path | None) -> GraphStore:
    """The store that the scores are of.

    Raises:
        StoreError: Missing, or another one.
    """
    # The store of a relaxation holds energies of the model itself as labels; true ones are in that which was relaxed.
    said = scores.attrs.get("relaxed_from", scores.attrs["graph_store"])
    graphs = GraphStore(store or said["path"])
    if graphs.store_hash != said["store_hash"]:
        raise StoreError(f"{graphs.path}: is another store than the scores were made from; name the right one")
    return graphs
