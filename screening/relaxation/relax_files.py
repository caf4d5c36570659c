"""Relaxation of structure files: featurize them into a graph store beside the result, then relax the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr

from ...export.runtime.ensemble import Ensemble
from ...pipeline.energy_schemes import NO_DISPERSION
from ...pipeline.errors import OutputExistsError
from ...pipeline.runs.cluster import jobs_kept
from ...pipeline.runs.options import RunOptions
from ...pipeline.runs.target import Target
from ...pipeline.sources.discovery import Paths, path_names
from ..candidate_graphs import StepsEstimate, graph_store_of, prepare_graphs, sampled_graphs
from .batched import RelaxSettings
from .relax import estimate as estimate_relaxation
from .relax import relax


def candidates_path(out: str | Path) -> str:
    """Return the path from which `graphs_path` derives the graph store of the files: ``R.candidates.zarr``.

    For ``R.zarr``, that store is ``R.candidates.graphs.zarr``, since ``R.graphs.zarr`` holds the relaxed structures.

    Args:
        out: Scores dataset of the relaxation, such as ``R.zarr``.
    """
    return f"{str(out).rstrip('/').removesuffix('.zarr')}.candidates.zarr"


@jobs_kept()
def relax_files(
    sources: Paths,
    model: str | Path,
    out: str | Path,
    settings: RelaxSettings | None = None,
    *,
    scheduler: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    announce: Callable[[str], object] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Relax the structures in files.

    The files are featurized with the model's cutoff into a graph store that is kept: ``R.candidates.graphs.zarr`` for
    ``R.zarr``.

    Example:
        >>> from equiscreen.screening import relax_files
        >>> relaxed = relax_files("crystals.extxyz", "model.onnx", "r.zarr", scheduler="threads")
        >>> bool((relaxed["energy"] <= relaxed["initial_energy"]).all())
        True

    Args:
        sources: Sources, as for `equiscreen.pipeline.featurize`; or one graph store, or one scores dataset, whose graph
            store is used.
        model: ONNX file with energy, forces and stress.
        out: Scores dataset to write: a path or a URL.
        settings: Settings of the relaxation; None uses the defaults.
        scheduler: Dask cluster to work on; see `pipeline.runs.cluster.connect`.
        limit: Read only the first `limit` records or, from a store, structures.
        overwrite: Replace existing outputs, and a graph store of the files that is damaged or holds other graphs.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.
        announce: Called before the relaxation begins, with a one-line summary of the featurization.
        options: Other arguments of `equiscreen.screening.relax`.

    Returns:
        The opened scores, as from `equiscreen.screening.relax`.

    Raises:
        ConfigError: The sources are several stores, or a store among files.
        SourceError: A file does not exist, or none of the structures could be stored.
        EquiscreenError: As for `equiscreen.screening.relax`.
    """
    target = Target.of(out)
    if not overwrite and target.exists() and not target.working_folder.exists():
        raise OutputExistsError(f"{out} already exists; choose another --out, or use --overwrite")
    run = RunOptions(scheduler=scheduler, limit=limit, overwrite=overwrite, progress=progress)
    graphs = prepare_graphs(sources, model, candidates_path(out), run)
    if announce is not None and graphs.summary:
        announce(graphs.summary)
    return relax(
        graphs.path,
        model,
        out,
        settings,
        scheduler=scheduler,
        limit=None if graphs.summary else limit,
        overwrite=overwrite,
        progress=progress,
        **options,
    )


def estimate(
    sources: Paths,
    model: str | Path,
    settings: RelaxSettings | None = None,
    limit: int | None = None,
    *,
    dispersion: str = NO_DISPERSION,
) -> StepsEstimate:
    """Estimate the cost of `relax_files` from a sample.

    Args:
        sources: Sources, as for `relax_files`.
        model: ONNX file.
        settings: Settings of the relaxation; None uses the defaults.
        limit: Read only the first `limit` records or, from a store, structures.
        dispersion: Name of the dispersion correction, as for `equiscreen.screening.relax`.

    Returns:
        The estimate of each step.

    Raises:
        EquiscreenError: As for `relax_files`.
    """
    named = path_names(sources)
    store = graph_store_of(named)
    if store is not None:
        return StepsEstimate({"relax": estimate_relaxation(store, model, settings, limit, dispersion=dispersion)})
    cutoff = Ensemble.load(model, threads=1).cutoff
    with sampled_graphs(named, cutoff, limit) as (featurizing, sample, expected):
        cost = estimate_relaxation(sample, model, settings, dispersion=dispersion, sample_of=expected)
        return StepsEstimate({"featurize": featurizing, "relax": cost})
