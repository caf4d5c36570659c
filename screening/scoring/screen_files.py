"""Screening of structure files: featurize them into a graph store beside the scores, then screen the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import xarray as xr

from ...export.runtime.ensemble import Ensemble, Models
from ...export.runtime.providers import CPU
from ...pipeline.energy_schemes import NO_DISPERSION
from ...pipeline.runs.cluster import jobs_kept
from ...pipeline.runs.options import RunOptions
from ...pipeline.runs.target import Target
from ...pipeline.sources.discovery import Paths, path_names
from ...pipeline.store.graph_store import GraphStore
from ..candidate_graphs import (
    StepsEstimate,
    differences_of,
    graph_store_of,
    prepare_graphs,
    reused_summary,
    sampled_graphs,
)
from ..dataset.paths import graphs_path
from .score import MAX_SCORED_EDGES, ScoreLimits
from .screen import estimate as estimate_screen
from .screen import screen_store


@jobs_kept()
def screen_files(
    sources: Paths,
    model: Models,
    out: str | Path,
    *,
    slots: int | None = None,
    max_edges: int = MAX_SCORED_EDGES,
    min_distance: float | None = None,
    allow_extrapolation: bool = False,
    dispersion: str = NO_DISPERSION,
    device: str = CPU,
    allow_mixed_devices: bool = False,
    scheduler: str | None = None,
    limit: int | None = None,
    append: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    command: str | None = None,
    announce: Callable[[str], object] | None = None,
) -> xr.Dataset:
    """Score the structures in files.

    The files are featurized with the model's cutoff into a graph store beside the scores (see
    `screening.dataset.paths.graphs_path`), which is kept. Its failures table lists the structures that could not be
    read. A run that was interrupted in either step resumes when the function is called again with the same arguments.

    Example:
        >>> from equiscreen.screening import screen_files
        >>> scores = screen_files("crystals.extxyz", "model.onnx", "s.zarr", scheduler="threads")
        >>> scores.sizes["structure"]
        4

    Args:
        sources: Sources, as for `equiscreen.pipeline.featurize`; or one graph store, or one scores dataset, whose graph
            store is used.
        model: ONNX file made by `export_onnx`, or several; see `equiscreen.screening.screen`.
        out: Scores dataset to write.
        slots: Neighbour slots per batch; None chooses them: 2,048 on the CPU, by memory on a GPU.
        max_edges: Structures with more edges than this are too large.
        min_distance: Shortest interatomic distance, angstrom; see `equiscreen.screening.screen`.
        allow_extrapolation: Whether implausible structures count as ok; see `equiscreen.screening.screen`.
        dispersion: Dispersion correction that is added to the model: ``none``, ``d3`` or ``d3-atm``; see
            `export.runtime.dispersion`.
        device: Device on which the model runs; see `export.runtime.providers.providers`.
        allow_mixed_devices: Accept workers, and parts of earlier runs, with other kinds of devices or instruction sets;
            results then differ by rounding (`export.runtime.model_workers`).
        scheduler: Dask cluster to work on; see `pipeline.runs.cluster.connect`.
        limit: Read only the first `limit` records or, from a store, structures.
        append: Keep the scores in `out`, and score only structures added to the store since, as in
            `equiscreen.screening.screen`; the source must be a store.
        overwrite: Replace existing scores, and the graph store beside them if it is damaged or holds other graphs.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.
        command: Command line of the user, recorded in the attributes of the dataset.
        announce: Called before scoring begins, with a one-line summary of the featurization.

    Returns:
        The opened scores; `screening.dataset.scores.score_arrays` lists their variables.

    Raises:
        ConfigError: The sources are several stores, or a store among files; or `append` is set and the source is not a
            store; other cases as for `equiscreen.screening.screen`.
        SourceError: A file does not exist, or none of the structures could be stored.
        StoreError: A store cannot be read, or none of the structures could be scored.
        ModelFileError: A model cannot be used, or the models are incompatible.
        DeviceError: The device does not exist here, or on a worker.
        OutputExistsError: The scores exist, the graph store beside them cannot be reused, or another run is writing
            either of them.
    """
    options = RunOptions(
        scheduler=scheduler,
        limit=limit,
        overwrite=overwrite,
        progress=progress,
        device=device,
        slots=slots,
        allow_mixed_devices=allow_mixed_devices,
    )
    graphs = prepare_graphs(sources, model, out, options, append=append)
    if announce is not None and graphs.summary:
        announce(graphs.summary)
    limits = ScoreLimits(max_edges, min_distance, allow_extrapolation)
    return screen_store(
        GraphStore(graphs.path), model, out, limits, options, dispersion=dispersion, append=append, command=command
    )


def estimate(
    sources: Paths,
    model: Models,
    out: str | Path,
    limit: int | None = None,
    *,
    dispersion: str = NO_DISPERSION,
) -> StepsEstimate:
    """Estimate the cost of `screen_files` from a sample.

    Graph stores need no featurization. Graphs that an earlier run made from the same sources are used again.

    Args:
        sources: Sources, as for `screen_files`.
        model: ONNX file, or several.
        out: Scores dataset that would be written.
        limit: Read only the first `limit` records or, from a store, structures.
        dispersion: Name of the dispersion correction, as for `screen_files`.

    Returns:
        The estimates of the steps that are needed.

    Raises:
        ConfigError: As for `screen_files`.
        SourceError: As for `screen_files`; or a source is a server, whose number of structures is unknown before the
            download.
        StoreError: A store cannot be read.
        ModelFileError: As for `screen_files`.
    """
    named = path_names(sources)
    store = graph_store_of(named)
    if store is not None:
        return StepsEstimate({"screen": estimate_screen(store, model, limit, dispersion=dispersion)})
    cutoff = Ensemble.load(model, threads=1).cutoff
    path = graphs_path(out)
    if Target.of(path).exists() and not differences_of(path, named, cutoff, limit):
        reused, cost = reused_summary(GraphStore(path)), estimate_screen(path, model, limit, dispersion=dispersion)
        return StepsEstimate({"featurize": reused, "screen": cost})
    with sampled_graphs(named, cutoff, limit) as (featurizing, sample, expected):
        cost = estimate_screen(sample, model, dispersion=dispersion, sample_of=expected)
        return StepsEstimate({"featurize": featurizing, "screen": cost})
