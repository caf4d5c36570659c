"""Energies above hull of the structures of a screen or relaxation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr

from ...pipeline.energy_schemes import CORRECTED, SCHEMES, UNCORRECTED
from ...pipeline.errors import ConfigError
from ...pipeline.provenance import recorded_path
from ...pipeline.redaction import redact_urls
from ...pipeline.runs.options import RunOptions
from ...pipeline.runs.parts import PartManifest
from ...pipeline.sources.discovery import Paths, path_names
from ...pipeline.store.schema import GRAPH_SCHEMA, STRUCTURE, ArraySpec
from ...pipeline.store.writer import InputFile, InputStore, StoreWriter
from ..chemistry.composition import Compositions
from ..dataset.labels import LABELLED, graph_store_at
from ..dataset.paths import hull_path
from ..dataset.reader import ScoresReader, place_of_graphs
from ..dataset.scores import SCORES_SCHEMA, open_scores
from .columns import HULL_STATUSES, MISSING_REFERENCE, HullOptions, hull_arrays, kept_arrays
from .energies import ScoredEnergies
from .energy_above_hull import (
    CandidateEnergies,
    ConvexHull,
    find_hull,
    read_energies,
    with_free_energies,
    write_distances,
)
from .mp2020 import MP2020
from .reference_files import content_version, is_dataset, read_references

# Structures at most this far above the hull (eV/atom) count as near the hull.
NEAR = 0.05
# Maximum number of elements that a message names.
_NAMED = 10
# Names of references in messages, and how to judge structures with elements that these references lack.
_REFERENCES = "the references", "add these elements to --references"
_MODEL_REFERENCES = (
    "--model-references",
    "relax crystals of these elements with the model of the candidates, and add the result to --model-references",
)
_MODEL_REFERENCES_AT_TEMPERATURE = (
    "--model-references",
    "compute the phonons of crystals of these elements with the model of the candidates (`equiscreen properties --what "
    "phonons`), and add the result to --model-references",
)


def hull(
    scores: str | Path,
    references: Paths = (),
    out: str | Path | None = None,
    *,
    scheme: str | None = None,
    store: str | Path | None = None,
    model_references: Paths = (),
    unrelaxed_references: bool = False,
    exclude_self: bool = False,
    within: float = NEAR,
    error: float | None = None,
    temperature: float | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> xr.Dataset:
    """Compute the energy above hull of each structure.

    The result has all columns of the scores. For each structure it adds the corrected energy, the formation energy, the
    energy above the hull of the references (negative below that hull), the energy above the hull of references and all
    candidates together, and the decomposition products. If the structures were not relaxed, the names of these energies
    end in ``_unrelaxed``.

    All references span the hull of the references, as in pymatgen's `get_e_above_hull`: a structure with the same
    energy as the stable reference of its composition has an energy above hull of 0, and the energy above hull of a
    known phase is wrong by the model's error, which can have either sign. With `exclude_self`, a reference that is the
    structure itself is left out for that structure, so that a stable known phase gets the (negative) energy above the
    hull of all other phases. Phases are recognised by structure alone, never by name. Elements are always measured
    against their own references.

    With `model_references`, the result also has the energy above a second hull. It is built from reference structures
    (elements included) that were relaxed with the model of the candidates; all its energies are computed by this model.
    Errors that the model makes for all similar crystals then cancel.

    With a `temperature`, the result also has the free energy above a third hull. A free energy is the energy plus the
    free energy of the harmonic vibrations at this temperature, which `compute_properties` computes with phonons. A
    reference without a free energy is an error; a candidate without one gets NaN.

    With the energies of several models (`energy_members`), or a known `error` of the model, the result also has the
    probabilities that the structure is below the hull and that it is at most `within` above it.

    Energies of the scheme ``mp-uncorrected`` get the MP2020 corrections, candidates and references alike. References
    are left out, and counted by reason, if the functional or energy scheme that they state (by run type, functional,
    VASP tags or POTCARs) differs from the candidates', if they contradict themselves, or if they have no usable energy
    or composition. Elements without a reference get the tabulated energies of the candidates' scheme
    (`chemistry.elemental_energies`), so formation energies need no references.

    Example:
        >>> from equiscreen.screening import hull
        >>> found = hull("relaxed.zarr", ["known.csv"], "hull.zarr")
        >>> found["structure_id"].values[found["energy_above_hull"].values < 0.05].tolist()
        ['Al', 'Cu']

    Args:
        scores: Dataset of a screen or relaxation; or of a hull, whose columns are recomputed; or a graph store with
            energies as labels, such as the results of DFT calculations.
        references: Files of pymatgen entries (.json, .json.gz), scores datasets, or tables (CSV, parquet) with the
            columns ``formula`` and ``energy_per_atom`` or ``formation_energy_per_atom``. Without references the
            candidates compete with each other and with the elements; this hull is too high where phases are missing,
            so that energies above hull are lower bounds.
        out: Dataset to write; ``S.hull.zarr`` for ``S.zarr`` by default.
        scheme: Energy scheme of table rows and entries that do not state one, and of the energies of a graph store.
        store: Graph store of the candidates, if it is not at the path recorded in the scores.
        model_references: Datasets of references relaxed with the model of the candidates, for a hull with all energies
            computed by the model.
        unrelaxed_references: Accept datasets of unrelaxed structures as references for relaxed candidates.
        exclude_self: For each structure, leave its own phase out of the references; every reference must then have a
            structure.
        within: Structures at most this far above the hull (eV/atom) count as near the hull.
        error: Standard deviation of the model's errors in energies above hull, eV/atom; None if it is unknown. With
            several models, their spread is used instead.
        temperature: Temperature of a further hull of free energies, K; needs `model_references`.
        overwrite: Replace an existing dataset.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.

    Returns:
        The dataset, opened.

    Raises:
        ConfigError: An argument is out of range, `exclude_self` is set without references, the candidates are a graph
            store from a relaxation or one without a `scheme`, references follow a different energy scheme or cannot be
            used, model references lack elements of every structure, free energies are missing, or an extra is not
            installed.
        SourceError: A file of references cannot be read, or has no structures although `exclude_self` needs them.
        StoreError: The scores, their graph store or a dataset of references cannot be read, or have no energies.
        OutputExistsError: The output exists, or another run is writing it.
    """
    begin = time.monotonic()
    if within < 0 or (error is not None and error <= 0):
        raise ConfigError("within must not be negative, and error must be positive (eV/atom)")
    candidates = _candidates(scores, store, scheme)
    paths, of_model = path_names(references), path_names(model_references)
    if exclude_self and not paths:
        raise ConfigError(
            f"--exclude-self needs --references; to measure candidates against each other, use --references {scores}"
        )
    if temperature is not None and not of_model:
        raise ConfigError(
            "--temperature needs --model-references: datasets of `equiscreen properties --what phonons` with the "
            f"references and the elements, computed with the model of the candidates; if {scores} itself holds them, "
            f"use --model-references {scores}"
        )
    target = hull_path(scores) if out is None else str(out)
    # Record the files before their content is hashed.
    files = [InputFile.of(Path(path)) if Path(path).is_file() else path for path in (*paths, *of_model)]
    versions = [content_version(path) for path in (*paths, *of_model)]
    recorded = [[recorded_path(path, target), *version] for path, *version in versions]
    identity = {
        "schema": SCORES_SCHEMA,
        "kind": "hull",
        "scores_hash": candidates.attrs.get("store_hash"),
        "references": recorded[: len(paths)],
        "scheme": scheme,
        "model_references": recorded[len(paths) :],
        "unrelaxed_references": unrelaxed_references,
        "exclude_self": exclude_self,
        "within": within,
        "error": error,
        "temperature": temperature,
        "equiscreen": version("equiscreen"),
    }
    options = HullOptions(
        lower_bound=not paths,
        exclude_self=exclude_self,
        model_hull=bool(of_model),
        within=within,
        error=error,
        temperature=temperature,
    )
    inputs = [
        InputStore(scores, candidates.hash, GRAPH_SCHEMA if candidates.labelled else SCORES_SCHEMA),
        *(InputStore(path, store_hash, SCORES_SCHEMA) for path, store_hash, *_ in versions if is_dataset(path)),
        *(_graphs_of_references(path) for path in paths if exclude_self and is_dataset(path)),
    ]
    graphs = place_of_graphs(scores, candidates.attrs, store)
    writer = StoreWriter(
        "hull",
        target,
        identity,
        RunOptions(overwrite=overwrite, progress=progress),
        inputs=inputs,
        files=[*files, *filter(None, [graphs])],
    )
    if writer.resume_publication() is not None:
        return open_scores(target)
    with writer.run(2 * len(candidates), "steps", on_workers=False) as run, run.staging.discarded_if_new():
        corrections = MP2020() if candidates.scheme in (UNCORRECTED, CORRECTED) else None
        compositions = Compositions()
        given = read_references(
            paths,
            candidates,
            compositions,
            corrections,
            scheme=scheme,
            allow_unrelaxed=unrelaxed_references,
            with_structures=exclude_self,
        )
        read_own = partial(
            read_references,
            of_model,
            candidates,
            compositions,
            corrections,
            allow_unrelaxed=unrelaxed_references,
            own_energies=True,
        )
        own = read_own() if of_model else None
        at_temperature = None if temperature is None else read_own(temperature=temperature)
        energies = read_energies(candidates, compositions, corrections, run.staging.work, run.bar)
        found = find_hull(energies, given, run.bar, lower_bound=not paths, exclude_self=exclude_self)
        model_hull = None if own is None else find_hull(energies, own, run.bar)
        if model_hull is not None:
            _check_judged(scores, model_hull, *_MODEL_REFERENCES)
        free = None
        if at_temperature is not None and temperature is not None:
            free_energies = with_free_energies(energies, temperature, run.staging.work)
            free = free_energies, find_hull(free_energies, at_temperature, run.bar)
            _check_judged(scores, free[1], *_MODEL_REFERENCES_AT_TEMPERATURE)
        manifests = write_distances(energies, found, model_hull, free, options, run.staging, run.bar)
        digests = run.concatenate(_specs(candidates, options), manifests)
        candidates.check_unchanged()
        run.publish(
            digests, _attrs(target, candidates, found, model_hull, free, corrections, manifests, options, begin=begin)
        )
    return open_scores(target)


def _candidates(scores: str | Path, store: str | Path | None, scheme: str | None) -> ScoredEnergies:
    """Open the energies of the candidates.

    Raises:
        ConfigError: The candidates are a graph store from a relaxation, or one whose energy scheme is not given.
        StoreError: The scores or their graph store cannot be read, or have no energies.
    """
    graphs = graph_store_at(scores)
    if graphs is None:
        return ScoredEnergies(scores, store)
    if graphs.attrs.get("relaxed_from"):
        raise ConfigError(
            f"{scores}: the energies in this graph store come from a relaxation; use the scores next to it"
        )
    if scheme not in SCHEMES:
        raise ConfigError(
            f"{scores}: a graph store states no energy scheme; set the scheme of its energies with --scheme: "
            f"{', '.join(SCHEMES)}"
        )
    return ScoredEnergies(scores, labelled=graphs, labels=scheme)


def _check_judged(scores: str | Path, hull: ConvexHull, references: str, cure: str) -> None:
    """Check that at least one structure can be compared with a hull.

    Raises:
        ConfigError: All structures with an energy contain elements without a reference.
    """
    if hull.unjudged and not hull.judged:
        raise ConfigError(
            f"{scores}: no structure can be compared with {references}, which lack {_named(hull.missing)}; {cure}"
        )


def _graphs_of_references(path: str) -> InputStore:
    """Return the graph store of a dataset of references, whose structures are read."""
    rows = ScoresReader(path)
    return InputStore(place_of_graphs(path, rows.attrs, None), str(rows.attrs["graph_store"]["store_hash"]))


def summary(found: xr.Dataset, path: str | Path) -> str:
    """Return a summary of a finished hull: one line, and a warning for each hull that lacks references."""
    attrs = found.attrs["hull"]
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in attrs["status_counts"].items() if count)
    timing = attrs["timing"]
    return (
        f"{redact_urls(str(path))}: {found.sizes[STRUCTURE]:,} structures ({counts}), "
        f"{_compared(found.attrs)}{_elements(attrs)}{_model_hull(attrs)}{_free_energy_hull(attrs)}"
        f"{_uncorrectable(attrs)}{_not_competing(attrs)}{_left_out(attrs)}{_without_compounds(attrs)}; "
        f"{timing['seconds']:.1f} s without start-up, {timing['structures_per_second']:,.0f} structures/s"
        f"{_lacking(found)}"
    )


def _lacking(found: xr.Dataset) -> str:
    """Return a warning for each hull that lacks elements of some structures: how many, which, and the cure."""
    attrs, size = found.attrs["hull"], found.sizes[STRUCTURE]
    free = attrs.get("free_energies") or {}
    return "".join(
        f"\nwarning: {count:,} of {size:,} structures have no {column}: no reference for {_named(missing or ())} in "
        f"{references}; {cure}"
        for column, count, missing, (references, cure) in (
            (
                "energy_above_hull",
                attrs["status_counts"][HULL_STATUSES[MISSING_REFERENCE]],
                attrs["missing_references"],
                _REFERENCES,
            ),
            (
                "energy_above_model_hull",
                attrs.get("without_model_hull"),
                attrs.get("missing_model_references"),
                _MODEL_REFERENCES,
            ),
            (
                "free_energy_above_hull",
                free.get("without_hull"),
                free.get("missing_references"),
                _MODEL_REFERENCES_AT_TEMPERATURE,
            ),
        )
        if count
    )


def _named(elements: Iterable[str]) -> str:
    """Return the first ten of some elements, as text."""
    symbols = list(elements)
    more = f" and {len(symbols) - _NAMED:,} more" if len(symbols) > _NAMED else ""
    return f"{', '.join(symbols[:_NAMED])}{more}"


def _compared(dataset_attrs: Mapping[str, Any]) -> str:
    """Return a note on the phases with which the structures were compared."""
    attrs = dataset_attrs["hull"]
    phases = f"{attrs['reference_entries']:,} references"
    if attrs["lower_bound"]:
        return (
            "no references, so energies above hull are lower bounds: candidates compete only with each other and the "
            "elements"
        )
    if attrs["exclude_self"]:
        return (
            f"{attrs['below_hull']:,} below the hull of {phases}, without their own phases "
            f"({attrs['own_phases_left_out']:,} recognised by structure)"
        )
    error = "" if dataset_attrs.get("kind") == LABELLED else " (may include known phases, owing to model error)"
    return f"{attrs['below_hull']:,} below the hull of {phases}{error}"


def _elements(attrs: Mapping[str, Any]) -> str:
    """Return a note on the elements whose reference energies come from equiscreen's tables."""
    added = attrs["elemental_references"]
    symbols = added.get("elements", ())
    return f"; elements from {added['source']}: {_named(symbols)}" if symbols else ""


def _model_hull(attrs: Mapping[str, Any]) -> str:
    """Return a note on how many structures are below the hull of energies computed by the model."""
    account = attrs.get("model_references")
    if not account:
        return ""
    entries, left_out = (sum(entry[name] for entry in account) for name in ("entries", "left_out"))
    lost = f" ({left_out:,} left out: no reliable energy)" if left_out else ""
    return f"; {attrs['below_model_hull']:,} below the model's own hull of {entries:,} phases{lost}"


def _free_energy_hull(attrs: Mapping[str, Any]) -> str:
    """Return the note on the hull of free energies."""
    found = attrs.get("free_energies")
    if not found:
        return ""
    return (
        f"; {found['below_hull']:,} of {found['with_free_energy']:,} with a free energy below the hull of free "
        f"energies at {found['temperature']:g} K"
    )


def _not_competing(attrs: Mapping[str, Any]) -> str:
    """Return a note on structures whose energy is not part of any hull, by status."""
    counts = [f"{count:,} {name.replace('_', ' ')}" for name, count in attrs.get("not_competing", {}).items()]
    return f"; not part of any hull: {', '.join(counts)}" if counts else ""


def _uncorrectable(attrs: Mapping[str, Any]) -> str:
    """Return a note on labelled energies that MP2020 rejects, by reason."""
    counts = [f"{count:,} {reason}" for reason, count in attrs.get("uncorrectable", {}).items()]
    return f"; energies without MP2020 corrections, which are not used: {', '.join(counts)}" if counts else ""


def _left_out(attrs: Mapping[str, Any]) -> str:
    """Return a note on references that were left out, by reason."""
    counts: Counter[str] = Counter()
    for entry in attrs["references"]:
        counts.update(entry.get("left_out_by_reason", {}))
    if not counts:
        return ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    return f"; {counts.total():,} references left out ({reasons})"


def _without_compounds(attrs: Mapping[str, Any]) -> str:
    """Return a warning about structures whose only competitors are the elements; empty if there are none."""
    count = attrs["without_compounds"]
    if not count or attrs["lower_bound"]:
        return ""
    return (
        f"; warning: for {count:,} structures, no reference is a compound of their elements, so their energy above "
        "hull is a formation energy"
    )


def _specs(candidates: ScoredEnergies, options: HullOptions) -> tuple[ArraySpec, ...]:
    """Return all arrays of the output."""
    added = hull_arrays(options, relaxed=candidates.relaxed, members=candidates.n_members > 0)
    return (*kept_arrays(candidates.specs), *added)


def _attrs(
    out: str,
    candidates: ScoredEnergies,
    found: ConvexHull,
    model_hull: ConvexHull | None,
    free: tuple[CandidateEnergies, ConvexHull] | None,
    corrections: MP2020 | None,
    manifests: Sequence[PartManifest],
    options: HullOptions,
    *,
    begin: float,
) -> Mapping[str, Any]:
    """Return the attributes of the dataset: the attributes of the scores and the provenance of the hull."""
    counts = [sum(manifest.notes["status"][place] for manifest in manifests) for place in range(len(HULL_STATUSES))]
    seconds = time.monotonic() - begin
    kept = {name: value for name, value in candidates.attrs_for(out).items() if name not in ("complete", "store_hash")}
    corrected = candidates.scheme == UNCORRECTED
    return {
        **kept,
        "hull": {
            "input": {"path": recorded_path(candidates.path, out), "store_hash": candidates.hash},
            "references": _account(found, out),
            "model_references": None if model_hull is None else _account(model_hull, out),
            "reference_entries": len(found.references.energy) - len(found.references.elements.get("elements", ())),
            "elemental_references": dict(found.elements),
            "lower_bound": options.lower_bound,
            "exclude_self": options.exclude_self,
            "within": options.within,
            "error": options.error,
            "free_energies": _free_energies(options, manifests, None if free is None else free[1]),
            "own_phases_left_out": len(found.own),
            "without_compounds": found.without_compounds,
            "phases": dict(found.phases),
            "energy_scheme": candidates.scheme,
            "corrections": "MP2020" if corrected else "none",
            "pymatgen": corrections.version if corrected and corrections is not None else None,
            "status_counts": dict(zip(HULL_STATUSES, counts, strict=True)),
            "not_competing": candidates.not_competing(),
            "uncorrectable": dict(candidates.uncorrectable.most_common()),
            "missing_references": found.missing,
            "missing_model_references": None if model_hull is None else model_hull.missing,
            "without_model_hull": None if model_hull is None else model_hull.unjudged,
            "below_hull": sum(manifest.notes["below"] for manifest in manifests),
            "below_model_hull": None
            if model_hull is None
            else sum(manifest.notes["below_model"] for manifest in manifests),
            "members": "own hull of each" if found.levels.members is not None else "one hull for all",
            "equiscreen": version("equiscreen"),
            "timing": {
                "seconds": round(seconds, 3),
                "structures_per_second": round(len(candidates) / max(seconds, 1e-9), 1),
            },
        },
    }


def _free_energies(
    options: HullOptions, manifests: Sequence[PartManifest], hull: ConvexHull | None
) -> Mapping[str, Any] | None:
    """Return the record of the hull of free energies; None without one."""
    if hull is None:
        return None
    below, known = (sum(manifest.notes[name] for manifest in manifests) for name in ("below_free", "with_free_energy"))
    return {
        "temperature": options.temperature,
        "below_hull": below,
        "with_free_energy": known,
        "missing_references": hull.missing,
        "without_hull": hull.unjudged,
    }


def _account(hull: ConvexHull, out: str) -> list[Mapping[str, Any]]:
    """Return a summary of each file of references, for the attributes of the dataset `out`."""
    return [{**entry, "path": recorded_path(entry["path"], out)} for entry in hull.references.account]
