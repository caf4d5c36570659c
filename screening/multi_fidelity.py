"""Cascade of two models: the accurate one evaluates what the fast one keeps and a sample of what it rejects."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..export.runtime.dispersion import Dispersion
from ..export.runtime.onnx_potential import OnnxPotential
from ..pipeline.energy_schemes import NO_DISPERSION, plus_dispersion
from ..pipeline.errors import ConfigError, StoreError
from ..pipeline.provenance import recorded_path
from ..pipeline.runs.cluster import jobs_kept
from ..pipeline.runs.options import RunOptions
from ..pipeline.runs.steps_folder import StepsFolder
from ..pipeline.runs.target import ROOT_FILE
from ..pipeline.sources.discovery import Paths, path_names
from ..pipeline.store.checksums import write_root_attributes
from ..pipeline.store.graph_store import GraphStore, open_root
from .candidate_graphs import prepare_graphs
from .convex_hull.energies import check_without_dispersion
from .convex_hull.hull import hull
from .convex_hull.reference_files import content_version, is_dataset
from .dataset.paths import graphs_path
from .dataset.reader import ScoresReader
from .dataset.scores import SCORES_SCHEMA, open_scores
from .dataset.subset import write_graph_subset
from .relaxation.batched import RelaxSettings
from .relaxation.relax import relax
from .relaxation.relax_files import candidates_path
from .scoring.screen import screen

FAST, FAST_HULL, CHOSEN, ACCURATE, RESULT = "fast.zarr", "fast.hull.zarr", "chosen.zarr", "accurate.zarr", "result.zarr"
_FOLDER = StepsFolder(
    noun="cascade",
    differences={
        "store_hash": "other structures",
        "models": "other models",
        "references": "other references",
        "equiscreen": "another version of equiscreen",
    },
    outputs=(
        *(FAST, FAST_HULL, CHOSEN, "chosen.parts", "chosen.partial"),
        *(ACCURATE, graphs_path(ACCURATE), "accurate.trajectories", RESULT, "*.report.html"),
    ),
    first_use={
        **dict.fromkeys(("dispersion", "device"), (FAST,)),
        **dict.fromkeys(("references", "scheme"), (FAST_HULL, RESULT)),
        "settings": (CHOSEN, ACCURATE, RESULT),
        "relaxation": (ACCURATE,),
    },
)
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class CascadeSettings:
    """Settings of a cascade: which structures the accurate model evaluates, and which are hits.

    Example:
        >>> from equiscreen.screening import CascadeSettings
        >>> CascadeSettings(keep_below=0.1, audit=500).target
        0.05

    Attributes:
        keep_below: Largest energy above hull, predicted by the fast model, at which a structure is kept, eV/atom.
        target: Largest energy above hull, predicted by the accurate model, at which a structure is a hit, eV/atom.
        audit: Number of rejected structures that the accurate model evaluates too.
        seed: Random seed of the choice of rejected structures.
        relax: Whether to relax structures with the accurate model; otherwise, it only scores them.
    """

    keep_below: float = 0.2
    target: float = 0.05
    audit: int = 1000
    seed: int = 0
    relax: bool = True


@dataclass(frozen=True, slots=True)
class Recall:
    """Fraction of all hits that a cascade keeps, estimated from a random sample of the rejected structures.

    Attributes:
        value: Estimate of the fraction; NaN if there are no hits.
        low, high: Ends of the confidence interval.
        confidence: Confidence level of the interval.
        audited: Number of structures in the sample.
        missed: Number of hits in the sample.
    """

    value: float
    low: float
    high: float
    confidence: float
    audited: int
    missed: int


@jobs_kept()
def cascade(
    sources: Paths,
    fast: str | Path,
    accurate: str | Path,
    out: str | Path,
    references: Paths,
    settings: CascadeSettings | None = None,
    *,
    fast_references: Paths | None = None,
    relaxation: RelaxSettings | None = None,
    scheme: str | None = None,
    dispersion: str = NO_DISPERSION,
    device: str = "cpu",
    allow_mixed_devices: bool = False,
    scheduler: str | None = None,
    budget: float | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    announce: Callable[[str], object] | None = None,
) -> xr.Dataset:
    """Screen with a fast model, and evaluate what it keeps with an accurate one.

    Structures that the fast model predicts to be close to the hull, or cannot evaluate, are kept. The accurate model
    also evaluates a random sample of the rejected structures; the hits in the sample show how many the cascade misses.
    The sample is at the end of the result, after the kept structures; `select` treats both in the same way.

    The folder holds the dataset of each step. To resume an interrupted run, call the function again with the same
    arguments.

    Example:
        >>> from equiscreen.screening import CascadeSettings, cascade
        >>> settings = CascadeSettings(keep_below=0.1, audit=2, relax=False)
        >>> models = ("fast.onnx", "model.onnx")
        >>> found = cascade("candidates.zarr", *models, "cascade", "known.csv", settings, scheduler="threads")
        >>> found.attrs["cascade"]["kept"], found.attrs["cascade"]["rejected"]
        (4, 0)

    Args:
        sources: Structure files, as for `equiscreen.pipeline.featurize`, which are featurized first into
            ``OUT.candidates.graphs.zarr``; or one graph store, whose cutoff is at least the larger one of the two
            models; or a scores dataset, whose graph store is used.
        fast: ONNX file of the fast model, which screens all structures.
        accurate: ONNX file of the accurate model, which evaluates the kept structures.
        out: Folder to write.
        references: References of the convex hull, as for `convex_hull.hull.hull`. Their energies must follow the energy
            scheme of the accurate model and, without `fast_references`, of the fast model too.
        settings: Which structures are kept, and which are hits; None for the defaults.
        fast_references: References for the fast model, if its energies follow a different scheme.
        relaxation: Settings of the relaxation with the accurate model; None for the defaults.
        scheme: Energy scheme of references that do not state one.
        dispersion: Dispersion correction that is added to both models: ``none``, ``d3`` or ``d3-atm``. References must
            then be datasets that include the same correction.
        device: Device of the workers; see `export.runtime.providers`.
        allow_mixed_devices: Accept workers, and parts of earlier runs, with other kinds of devices or instruction sets;
            results then differ by rounding (`export.runtime.model_workers`).
        scheduler: See `pipeline.runs.cluster.connect`.
        budget: Hours after which the relaxation starts no more parts; None sets no limit.
        overwrite: Delete the cascade in the folder and start again.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.
        announce: Called before the screen begins, with a one-line summary of the featurization.

    Returns:
        The last dataset, ``result.zarr``; ``attrs["cascade"]`` holds counts and the recall.

    Raises:
        ConfigError: The sources, settings or references cannot be used.
        SourceError: A file does not exist, or none of the structures could be stored.
        StoreError: A store cannot be read, none of its structures can be scored, or the fast model keeps none.
        ModelFileError: A model cannot be used.
        DeviceError: The device does not exist here, or on a worker.
        OutputExistsError: The folder holds something else, or another run is using it.
        EquiscreenError: The budget was spent before all kept structures were relaxed.
    """
    chosen = settings or CascadeSettings()
    if chosen.audit < 1 or chosen.keep_below < chosen.target:
        raise ConfigError(
            "--audit must be at least 1, and --keep-below at least as large as --target so that the cascade does not "
            "discard hits"
        )
    models = [OnnxPotential.load(path, threads=1) for path in (fast, accurate)]
    larger = fast if models[0].cutoff > models[1].cutoff else accurate
    if overwrite:
        _FOLDER.check_removable(Path(out))  # before the graphs, which lie beside the folder, are replaced
    _check_dispersion(dispersion, dict(zip((fast, accurate), models, strict=True)), [references, fast_references or ()])
    options = RunOptions(scheduler=scheduler, overwrite=overwrite, progress=progress)
    prepared = prepare_graphs(sources, larger, candidates_path(out), options)
    if announce is not None and prepared.summary:
        announce(prepared.summary)
    store, graphs = prepared.path, GraphStore(prepared.path)
    folder = Path(out)
    plan = {
        "store_hash": graphs.store_hash,
        "models": [model.sha256 for model in models],
        "references": [_versions(given, folder) for given in (references, fast_references)],
        "settings": asdict(chosen),
        "relaxation": asdict(relaxation or RelaxSettings()) if chosen.relax else None,
        "scheme": scheme,
        "dispersion": dispersion,
        "device": device,
        "equiscreen": version("equiscreen"),
    }
    common: dict[str, Any] = {
        "dispersion": dispersion,
        "device": device,
        "allow_mixed_devices": allow_mixed_devices,
        "scheduler": scheduler,
        "progress": progress,
    }
    inputs = [store, fast, accurate, *path_names(references), *path_names(fast_references or ())]
    with _FOLDER.opened(folder, plan, inputs, overwrite=overwrite):
        if not (folder / FAST).exists():
            screen(store, fast, folder / FAST, **common)
        if not (folder / FAST_HULL).exists():
            first = references if fast_references is None else fast_references
            hull(folder / FAST, first, folder / FAST_HULL, scheme=scheme, store=store, progress=progress)
        kept, rejected = _divided(ScoresReader(folder / FAST_HULL, store), chosen.keep_below)
        if not (folder / CHOSEN).exists():
            write_graph_subset(folder / CHOSEN, graphs, np.concatenate([kept, _audited(rejected, chosen)]))
        if not (folder / ACCURATE).exists():
            if chosen.relax:
                relax(folder / CHOSEN, accurate, folder / ACCURATE, relaxation, budget=budget, **common)
            else:
                screen(folder / CHOSEN, accurate, folder / ACCURATE, **common)
        if not (folder / RESULT).exists():
            hull(folder / ACCURATE, references, folder / RESULT, scheme=scheme, progress=progress)
        _annotate(folder / RESULT, len(graphs), len(kept), len(rejected), chosen)
    return open_scores(folder / RESULT)


def _check_dispersion(dispersion: str, models: Mapping[str | Path, OnnxPotential], references: Sequence[Paths]) -> None:
    """Check that a dispersion correction fits the models and the references of a cascade.

    Raises:
        ConfigError: The correction cannot be added to a model, or references cannot include it.
    """
    for path, model in models.items():
        Dispersion.of(dispersion, {str(path): model.metadata})
        scheme = plus_dispersion(model.metadata.energy_scheme, dispersion)
        for name in (name for given in references for name in path_names(given) if not is_dataset(name)):
            check_without_dispersion(scheme, name)


def summary(found: xr.Dataset, out: str | Path) -> str:
    """Return a summary of a finished cascade, as two lines of text."""
    about = found.attrs["cascade"]
    recall = about["recall"]
    line = (
        f"no hits among {about['kept']:,} kept and {recall['audited']:,} audited structures"
        if recall["value"] is None
        else f"recall {recall['value']:.1%}, {recall['confidence']:.0%} interval {recall['low']:.1%} to "
        f"{recall['high']:.1%} (Clopper-Pearson; {recall['missed']:,} hits among {recall['audited']:,} audited)"
    )
    return (
        f"{Path(out) / RESULT}: of {about['screened']:,} structures, {about['kept']:,} were kept and "
        f"{about['rejected']:,} rejected by the fast model; {about['hits']:,} of those kept are within "
        f"{about['settings']['target']} eV/atom of the hull\n"
        f"{line}"
    )


def recall_of(hits: int, rejected: int, audited: int, missed: int, confidence: float = CONFIDENCE) -> Recall:
    """Estimate the fraction of all hits that are among the kept structures.

    The interval is the Clopper-Pearson interval (Biometrika 26, 404 (1934)) for the fraction of hits among the rejected
    structures. It is exact for a sample drawn with replacement, and too wide for a sample drawn without replacement. If
    all rejected structures were audited, the recall is known exactly, and the interval has zero width.

    Args:
        hits: Number of hits among the kept structures.
        rejected: Number of rejected structures.
        audited: Number of structures drawn from the rejected ones at random.
        missed: Number of hits among the audited structures.
        confidence: Confidence level of the interval.
    """
    if audited == rejected:
        low = high = missed / max(1, audited)
    else:
        low, high = clopper_pearson(missed, audited, confidence)

    def share(rate: float) -> float:
        total = hits + rate * rejected
        return hits / total if total > 0 else float("nan")

    estimate = share(missed / max(1, audited))
    return Recall(estimate, share(high), share(low), confidence, audited, missed)


def clopper_pearson(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a probability, from the number of successes in a number of trials."""
    from scipy.stats import beta  # noqa: PLC0415 - part of the extra that hulls need

    half = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(half, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.ppf(1 - half, successes + 1, trials - successes))
    return low, high


def _divided(rows: ScoresReader, keep_below: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the kept and the rejected rows, int64[n] each; structures without an energy above hull are kept."""
    above = _above(rows)
    rejected = above > keep_below  # False for NaN
    if rejected.all():
        raise StoreError(
            f"{rows.path}: the fast model predicts no structure within {keep_below} eV/atom of the hull; choose a "
            "larger --keep-below"
        )
    return np.flatnonzero(~rejected), np.flatnonzero(rejected)


def _audited(rejected: NDArray[np.int64], settings: CascadeSettings) -> NDArray[np.int64]:
    """Return a random sample of the rejected rows, ascending: int64[n]."""
    return np.sort(np.random.default_rng(settings.seed).permutation(rejected)[: settings.audit])


def _above(rows: ScoresReader) -> NDArray[np.float64]:
    """Return energies above hull: float64[n], eV/atom, NaN where missing or where the status is not ok."""
    name = next(name for name in ("energy_above_hull", "energy_above_hull_unrelaxed") if name in rows.specs)
    ok = rows.meanings("status")["ok"]
    out = [
        np.where(rows.column("status", start, stop) == ok, rows.column(name, start, stop), np.nan)
        for start, stop in rows.chunks()
    ]
    return np.concatenate(out).astype(np.float64)


def _annotate(path: Path, screened: int, kept: int, rejected: int, settings: CascadeSettings) -> None:
    """Write the counts and the recall to the attributes of the result."""
    hits = _above(ScoresReader(path)) <= settings.target
    found = recall_of(int(hits[:kept].sum()), rejected, len(hits) - kept, int(hits[kept:].sum()))
    recall = {name: None if value != value else value for name, value in asdict(found).items()}  # noqa: PLR0124 - NaN
    about = {
        "screened": screened,
        "kept": kept,
        "rejected": rejected,
        "hits": int(hits[:kept].sum()),
        "settings": asdict(settings),
        "recall": recall,
    }
    if open_root(path, SCORES_SCHEMA).attrs.get("cascade") != json.loads(json.dumps(about)):
        write_root_attributes(path / ROOT_FILE, {"cascade": about})


def _versions(references: Paths | None, folder: Path) -> list[list[str]]:
    """Return the name and content version of each file of references, as the folder of a cascade records them."""
    found = [content_version(path) for path in path_names(references or ())]
    return [[recorded_path(path, folder / _FOLDER.plan_file), *version] for path, *version in found]
