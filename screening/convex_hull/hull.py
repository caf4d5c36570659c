"""The convex hull: how far each structure of a screen or relaxation is above the phases that compete with it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr

from ...pipeline.graphs.offsets import offsets_of
from ...pipeline.runs.parts import PartManifest
from ...pipeline.runs.progress import ProgressReport
from ...pipeline.runs.staging import Staging, resume_publication, staged_run
from ...pipeline.runs.target import ROOT_FILE
from ...pipeline.sources.discovery import find_files
from ...pipeline.store.compaction import Compaction, finish_store, write_shards
from ...pipeline.store.graph_store import open_root
from ...pipeline.store.row_sources import PartRows
from ...pipeline.store.schema import STRUCTURE, ArraySpec
from ..dataset.paths import hull_path
from ..dataset.scores import SCORES_SCHEMA, open_scores
from .distances import HULL_STATUSES, HullRun
from .energies import CORRECTED, UNCORRECTED, ScoredEnergies
from .mp2020 import MP2020
from .references import read_references


def hull(
    scores: str | Path,
    references: Sequence[str | Path] | str | Path = (),
    out: str | Path | None = None,
    *,
    scheme: str | None = None,
    store: str | Path | None = None,
    unrelaxed_references: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Distances of structures from the convex hull.

    The result holds all that the scores hold, and for each structure its corrected energy and formation energy, its
    distance above the hull of the references (negative: a new corner of it), above that of references and all
    candidates together, and the products of its decomposition. Where the structures were not relaxed the names of
    these energies end in ``_unrelaxed``.

    Energies of scheme ``mp-uncorrected`` are given the MP2020 corrections, candidates and references alike. A reference
    that is the structure itself (same composition, and the same id or an energy within 1e-6 eV/atom) does not count for
    it; elements are measured against their own references.

    Example:
        >>> found = hull("relaxed.zarr", ["entries.json.gz", "known.zarr"])  # doctest: +SKIP
        >>> float((found["energy_above_hull"] < 0).mean())  # doctest: +SKIP

    Args:
        scores: Dataset of a screen or relaxation; of a hull, whose columns are made anew.
        references: Files of pymatgen's entries (.json, .json.gz), datasets of ours, or tables (CSV, parquet) with
            formula and energy_per_atom or formation_energy_per_atom. None: the candidates alone, whose hull lies too
            high where phases are missing, so that the distances are lower bounds.
        out: Dataset to write; ``S.hull.zarr`` for ``S.zarr``.
        scheme: Which energies tables of references hold.
        store: Graph store of the candidates, if it is not where the scores say.
        unrelaxed_references: Take unrelaxed datasets as references of relaxed candidates.
        overwrite: Replace an existing dataset.
        progress: Show progress on standard error.

    Returns:
        The dataset, opened.

    Raises:
        ConfigError: References of another energy scheme, or that cannot be used; an extra is not installed.
        SourceError: A file of references cannot be read.
        StoreError: The scores or their graph store cannot be read, or hold no energies.
        OutputExistsError: The output exists, or is being written by another run.
    """
    begin = time.monotonic()
    candidates = ScoredEnergies(scores, store)
    paths = [references] if isinstance(references, str | Path) else list(references)
    target = hull_path(scores) if out is None else str(out)
    identity = {
        "schema": SCORES_SCHEMA,
        "kind": "hull",
        "scores_hash": candidates.attrs.get("store_hash"),
        "references": [_version_of(str(path)) for path in paths],
        "scheme": scheme,
        "unrelaxed_references": unrelaxed_references,
        "equiscreen": version("equiscreen"),
    }
    if resume_publication(target, identity) is not None:
        return open_scores(target)
    inputs = [Path(path) for path in (scores, *paths) if "://" not in str(path)]
    with staged_run(target, identity, inputs, overwrite=overwrite) as staging, staging.discarded_if_new():
        corrections = MP2020() if candidates.scheme in (UNCORRECTED, CORRECTED) else None
        run = HullRun(candidates, corrections)
        given = (
            read_references(
                paths, candidates, run.compositions, corrections, scheme=scheme, allow_unrelaxed=unrelaxed_references
            )
            if paths
            else None
        )
        with ProgressReport("hull", 2 * len(candidates), "steps", enabled=progress) as bar:
            run.read(staging.work, bar)
            run.find_levels(given, bar)
            manifests = run.write_parts(staging, bar)
        digests = _compact(staging, manifests, run.specs)
        finish_store(staging.store, digests, _attrs(candidates, run, manifests, given is None, begin))
        staging.publish({})
    return open_scores(target)


def summary(found: xr.Dataset, path: str | Path) -> str:
    """One line on a finished hull."""
    attrs = found.attrs["hull"]
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in attrs["status_counts"].items() if count)
    missing = attrs["missing_references"]
    named = f"; no reference of {', '.join(list(missing)[:10])}{' ...' if len(missing) > 10 else ''}" if missing else ""
    bound = ", a lower bound, since there are no references" if attrs["lower_bound"] else ""
    timing = attrs["timing"]
    return (
        f"{path}: {found.sizes[STRUCTURE]:,} structures ({counts}{named}), {attrs['below_hull']:,} below the hull of "
        f"{attrs['reference_entries']:,} references{bound}; {timing['seconds']:.1f} s, "
        f"{timing['structures_per_second']:,.0f} structures/s"
    )


def _version_of(path: str) -> list[str]:
    """What tells references from others of their name."""
    if path.rstrip("/").endswith(".zarr") or (Path(path) / ROOT_FILE).exists():
        return [path, str(open_root(path, SCORES_SCHEMA).attrs.get("store_hash"))]
    return [path, *(file.version for file in find_files([path]))]


def _compact(staging: Staging, manifests: Iterable[PartManifest], specs: tuple[ArraySpec, ...]) -> dict[str, str]:
    """Write the arrays of all parts, one after the other."""
    done = list(manifests)
    rows = offsets_of([manifest.counts["read"] for manifest in done])
    compaction = Compaction(
        store=staging.store,
        specs=specs,
        sources=tuple(PartRows(staging.parts, manifest.key, {}) for manifest in done),
        source_rows={STRUCTURE: rows},
        keep=None,
        status=None,
        structure_offsets=rows,
    )
    return write_shards(compaction)


def _attrs(
    candidates: ScoredEnergies, run: HullRun, manifests: Sequence[PartManifest], alone: bool, begin: float
) -> Mapping[str, Any]:
    """Those of the input, and where the distances come from."""
    counts = [sum(manifest.notes["status"][place] for manifest in manifests) for place in range(len(HULL_STATUSES))]
    seconds = time.monotonic() - begin
    kept = {name: value for name, value in candidates.attrs.items() if name not in ("complete", "store_hash")}
    corrected = candidates.scheme == UNCORRECTED
    return {
        **kept,
        "hull": {
            "input": {"path": str(candidates.path), "store_hash": candidates.attrs.get("store_hash")},
            "references": list(run.references.account),
            "reference_entries": len(run.references.energy),
            "lower_bound": alone,
            "energy_scheme": candidates.scheme,
            "corrections": "MP2020" if corrected else "none",
            "pymatgen": run.corrections.version if corrected and run.corrections is not None else None,
            "status_counts": dict(zip(HULL_STATUSES, counts, strict=True)),
            "missing_references": run.missing,
            "below_hull": sum(manifest.notes["below"] for manifest in manifests),
            "members": "own hull of each" if run.levels.members is not None else "one hull for all",
            "equiscreen": version("equiscreen"),
            "timing": {
                "seconds": round(seconds, 3),
                "structures_per_second": round(len(candidates) / max(seconds, 1e-9), 1),
            },
        },
    }
