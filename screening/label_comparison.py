"""Predictions beside the labels of their graph store, for parity and calibration plots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..pipeline.errors import ConfigError, StoreError
from ..pipeline.store.graph_store import GraphStore
from ..pipeline.store.schema import STRUCTURE
from .dataset.reader import ROWS_AT_ONCE, flag_meanings, place_of_graphs
from .dataset.scores import RELIABLE_STATUSES

ENERGY_PER_ATOM = "energy_per_atom"
# Kind of datasets whose graph store holds their own energies, and no labels.
_PROPERTIES = "properties"

Column = NDArray[np.float64]


def labels_and_predictions(
    scores: xr.Dataset, name: str = ENERGY_PER_ATOM, *, store: str | Path | None = None
) -> tuple[Column, Column]:
    """Return labels and predictions of the structures that have both and whose status is ok.

    Energies are compared without any correction: if the labels follow a different energy scheme, the error includes the
    difference between the schemes.

    Example:
        >>> from equiscreen.screening import labels_and_predictions, open_scores
        >>> labels, predictions = labels_and_predictions(open_scores("scores.zarr"))
        >>> bool(abs(predictions - labels).mean() < 0.1)
        True

    Args:
        scores: Scores from `open_scores`.
        name: ``energy_per_atom``, or an output with one number per structure for which the store has a label.
        store: Path of the graph store; by default the one recorded in the scores or, if both were moved together, the
            store of the same name beside the scores.

    Returns:
        float64[n], float64[n]: labels and predictions; energies in eV/atom. Empty if the store has no such label.

    Raises:
        ConfigError: The scores have no such variable, it has more than one number per structure, or the scores are a
            subset of a dataset.
        StoreError: The store is missing or damaged, or not the one that the scores were computed from.
    """
    label, prediction, _ = _rows(scores, name, store)
    return label, prediction


def calibration(
    scores: xr.Dataset, name: str = ENERGY_PER_ATOM, *, store: str | Path | None = None
) -> tuple[Column, Column]:
    """Return errors and predicted standard deviations of the structures that have a label and whose status is ok.

    Example:
        >>> from equiscreen.screening import calibration, screen
        >>> scores = screen("candidates.zarr", ["model.onnx", "fast.onnx"], "both.zarr", scheduler="threads")
        >>> errors, spreads = calibration(scores)
        >>> len(errors), bool((spreads > 0).all())
        (4, True)

    Args:
        scores: Scores of an ensemble, from `open_scores`.
        name: See `labels_and_predictions`.
        store: See `labels_and_predictions`.

    Returns:
        float64[n], float64[n]: prediction minus label, and standard deviation among the members of the ensemble;
        energies in eV/atom.

    Raises:
        ConfigError: The scores have no standard deviation; also as for `labels_and_predictions`.
        StoreError: As for `labels_and_predictions`.
    """
    if _spread_of(name) not in scores:
        raise ConfigError(f"the scores have no {_spread_of(name)}; screen with several models or an ensemble")
    label, prediction, spread = _rows(scores, name, store)
    return prediction - label, spread


def _spread_of(name: str) -> str:
    return "energy_std" if name == ENERGY_PER_ATOM else f"{name}_std"


def _rows(scores: xr.Dataset, name: str, store: str | Path | None) -> tuple[Column, Column, Column]:
    """Return labels, predictions and their standard deviations (NaN if absent) of rows with label and prediction.

    Returns:
        float64[n] each; energies in eV/atom.
    """
    if name not in scores or scores[name].dims != (STRUCTURE,) or scores[name].dtype.kind != "f":
        raise ConfigError(f"the scores have no variable {name!r} with one number per structure; choose another output")
    nothing = np.zeros(0)
    if scores.attrs.get("kind") == _PROPERTIES:
        return nothing, nothing.copy(), nothing.copy()
    graphs = _graphs_of(scores, store)
    label = "energy" if name == ENERGY_PER_ATOM else name
    if label not in graphs.label_names[0] or graphs.label_shape(label)[0] != ():
        return nothing, nothing.copy(), nothing.copy()
    pieces = list(_chunks(scores, graphs, name, label))
    graphs.check_unchanged()
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
    """Check that the scores and the graph store have the same rows; a subset of a dataset lacks some.

    Raises:
        ConfigError: The rows differ.
    """
    names = scores["structure_id"][rows].to_numpy().tolist()
    if graphs.column("structure_id", rows.start, rows.stop).tolist() != names:
        raise ConfigError(
            "the scores are a subset of a dataset, or in a different order; use the whole dataset as it was written"
        )


def _graphs_of(scores: xr.Dataset, store: str | Path | None) -> GraphStore:
    """Open the graph store that holds the labels of the scores.

    Raises:
        StoreError: The store is missing, or not the one that the scores were computed from.
    """
    # The store of a relaxation holds energies of the model as labels; the original labels are in its source store.
    recorded = scores.attrs.get("relaxed_from", scores.attrs["graph_store"])
    source = scores.encoding.get("source")  # xarray keeps the path of the dataset here
    if store is None:
        store = recorded["path"] if source is None else place_of_graphs(source, {"graph_store": recorded}, None)
    graphs = GraphStore(store)
    if graphs.store_hash != recorded["store_hash"]:
        raise StoreError(
            f"{graphs.path} is not the store that the scores were computed from; give the path of that store"
        )
    return graphs
