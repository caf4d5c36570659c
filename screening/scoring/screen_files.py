"""Screening structure files: they become a graph store beside the scores, which is then screened."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import xarray as xr
from fsspec.core import url_to_fs

from ...export.runtime.ensemble import Ensemble, Models
from ...export.runtime.providers import CPU
from ...pipeline.errors import ConfigError, OutputExistsError, StoreError
from ...pipeline.featurization.estimate import ESTIMATE_RECORDS
from ...pipeline.featurization.estimate import estimate as estimate_featurization
from ...pipeline.featurization.featurize import featurize
from ...pipeline.graphs.neighbor_list import MAX_EDGES, MIN_DISTANCE
from ...pipeline.labels.mapping import LabelMapping
from ...pipeline.readers.records import ReadOptions
from ...pipeline.runs.cluster import IN_PROCESS
from ...pipeline.runs.options import DEFAULT_SLOTS
from ...pipeline.runs.target import ROOT_FILE, Target
from ...pipeline.sources.discovery import OPTIMADE_PREFIX, find_files, inputs_digest, inputs_of
from ...pipeline.sources.formats import holds_structures
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.schema import Dedup
from ...pipeline.store.tables import FAILURES_FILE
from ...pipeline.structures.structure import MAX_ATOMS
from ..dataset.paths import graphs_path
from .score import MAX_SCORED_EDGES
from .screen import estimate as estimate_screen
from .screen import screen

Sources = Sequence[str | Path] | str | Path


@dataclass(frozen=True, slots=True)
class PreparedGraphs:
    """What there is to screen.

    Attributes:
        path: The graph store.
        summary: One line on how files became it; empty for a store that was given.
    """

    path: str
    summary: str


def screen_files(
    sources: Sources,
    model: Models,
    out: str | Path,
    *,
    slots: int = DEFAULT_SLOTS,
    max_edges: int = MAX_SCORED_EDGES,
    min_distance: float | None = None,
    device: str = CPU,
    scheduler: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Score the structures of files.

    Their graphs, with the model's cutoff, go into a store beside the scores (see `graphs_path`) that stays there, with
    what could not be read in its failures table. A run that was killed is taken up where it was, in either half, by
    calling it again with the same arguments.

    Example:
        >>> scores = screen_files("candidates/*.cif", "model.onnx", "scores.zarr")  # doctest: +SKIP
        >>> GraphStore("scores.graphs.zarr").table("failures.parquet").to_pandas()  # doctest: +SKIP

    Args:
        sources: As for `pipeline.featurize`; or one graph store, which is screened as it stands.
        model: ONNX file made by `export_onnx`, or several, see `screening.screen`.
        out: Scores dataset to write.
        slots: Neighbour slots evaluated at once.
        max_edges: Structures with more edges are too large.
        min_distance: Angstrom, see `screening.screen`.
        device: What workers compute with, see `devices.providers`.
        scheduler: See `pipeline.cluster.connect`.
        limit: Read only so many records.
        overwrite: Replace existing scores, and a graph store beside them that is damaged or of other graphs.
        progress: Show progress on standard error.

    Returns:
        The scores, opened; `scores.score_arrays` lists their variables.

    Raises:
        ConfigError: Several graph stores, or one among files.
        SourceError: No such file, or none of the structures could be stored.
        StoreError: Nothing could be scored.
        ModelFileError: The model cannot be used.
        OutputExistsError: The scores exist, or a graph store of other sources or another cutoff stands beside them.
    """
    graphs = prepare_graphs(
        sources, model, out, scheduler=scheduler, limit=limit, overwrite=overwrite, progress=progress
    )
    return screen(
        graphs.path,
        model,
        out,
        slots=slots,
        max_edges=max_edges,
        min_distance=min_distance,
        device=device,
        scheduler=scheduler,
        limit=limit,
        overwrite=overwrite,
        progress=progress,
    )


def prepare_graphs(
    sources: Sources,
    model: Models,
    out: str | Path,
    *,
    scheduler: str | None = None,
    limit: int | None = None,
    append: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> PreparedGraphs:
    """The first half of `screen_files`: a graph store of the sources, which may be one already.

    A finished store that is equal to what would be made is taken as it is.

    Args:
        sources: As for `screen_files`, like all others.
        model: ONNX file, or several, the widest of whose cutoffs counts.
        out: Where the scores will be.
        scheduler: See `pipeline.cluster.connect`.
        limit: Read only so many records.
        append: Whether scores are appended to, which is for stores alone.
        overwrite: Replace a store that is damaged or of other graphs.
        progress: Show progress on standard error.

    Raises:
        ConfigError: As for `screen_files`.
        SourceError: As for `screen_files`.
        ModelFileError: As for `screen_files`.
        OutputExistsError: As for `screen_files`.
    """
    named = _named(sources)
    given = _given_store(named)
    if given is not None:
        return PreparedGraphs(given, "")
    if append:
        raise ConfigError(
            "append is for a graph store: `equiscreen featurize --append` the files to it, then screen it"
        )
    cutoff = Ensemble.load(model, threads=1).cutoff
    scores, path = Target.of(out), graphs_path(out)
    # Before the work, not after it; a run that was killed as it gave the scores their name is for `screen` to finish.
    if not overwrite and scores.exists() and not scores.working_folder.exists():
        raise OutputExistsError(f"{scores}: exists; choose another --out, or say --overwrite")
    run = partial(featurize, named, path, cutoff=cutoff, scheduler=scheduler, limit=limit, progress=progress)
    place = Target.of(path)
    if place.exists():
        wrong = _wrong_with(path, named, cutoff, limit, verify=overwrite)
        if not wrong:
            if place.working_folder.exists():
                with suppress(OutputExistsError):
                    run()  # one that was killed while it cleaned up does so now; any other finds its output there
            return PreparedGraphs(path, _account(GraphStore(path)))
        if not overwrite:
            raise OutputExistsError(
                f"{path}: holds other graphs ({'; '.join(wrong)}); choose another --out, or say --overwrite"
            )
    report = run(overwrite=overwrite)
    return PreparedGraphs(path, f"{report}{_where_failures_are(report.failed)}")


def estimate(sources: Sources, model: Models, out: str | Path, limit: int | None = None) -> str:
    """What both halves of `screen_files` would take, from a sample: a line each.

    Raises:
        ConfigError: As for `screen_files`.
        SourceError: As for `screen_files`.
        ModelFileError: As for `screen_files`.
    """
    named = _named(sources)
    given = _given_store(named)
    if given is not None:
        return estimate_screen(given, model, limit)
    cutoff = Ensemble.load(model, threads=1).cutoff
    path = graphs_path(out)
    if Target.of(path).exists() and not _wrong_with(path, named, cutoff, limit):
        return f"{_account(GraphStore(path))}\n{estimate_screen(path, model, limit)}"
    whole = estimate_featurization(named, cutoff=cutoff, limit=limit)
    with TemporaryDirectory() as scratch:
        sample, size = Path(scratch) / "sample.zarr", min(ESTIMATE_RECORDS, whole.records)
        report = featurize(named, sample, cutoff=cutoff, limit=size, scheduler=IN_PROCESS)
        expected = round(report.stored * whole.records / report.read)
        return f"{whole}\n{estimate_screen(sample, model, sample_of=expected)}"


def _named(sources: Sources) -> list[str]:
    return [str(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]


def _given_store(named: Sequence[str]) -> str | None:
    """The graph store, if it is one that is to be screened.

    Raises:
        ConfigError: Several, or one among files.
    """
    stores = [source for source in named if _is_store(source)]
    if stores and len(named) > 1:
        if len(stores) == len(named):
            raise ConfigError(f"{len(stores)} stores; screen each by itself, or join them with `equiscreen merge`")
        raise ConfigError(
            f"{stores[0]}: a store among files; screen it by itself, or `equiscreen featurize` the files and "
            "`equiscreen merge` the two"
        )
    return stores[0] if stores else None


def _is_store(source: str) -> bool:
    """Whether a store is meant, be it missing or unfinished."""
    if source.startswith(OPTIMADE_PREFIX):
        return False
    if source.split("::", maxsplit=1)[0].rstrip("/").endswith(".zarr"):
        return True
    if "://" not in source:
        unfinished = Target.of(source).working_folder
        return (Path(source) / ROOT_FILE).exists() or (unfinished.is_dir() and not Path(source).exists())
    if "*" in source or holds_structures(source):
        return False
    try:
        fs, path = url_to_fs(source)
        return bool(fs.exists(f"{path}/{ROOT_FILE}"))
    except Exception:  # noqa: BLE001 - each file system has errors of its own; reading the source tells them
        return False


def _wrong_with(
    path: str, named: Sequence[str], cutoff: float, limit: int | None, *, verify: bool = False
) -> list[str]:
    """In what a store is not the one that featurizing these sources would make; empty if it is.

    Args:
        path: Of the store.
        named: The sources.
        cutoff: Of the model, angstrom.
        limit: On records.
        verify: Compute its checksums too.
    """
    try:
        store = GraphStore(path)
    except StoreError as error:
        return [str(error).removeprefix(f"{path}: ")]
    recipe = dict(store.attrs.get("recipe", {}))
    wrong = []
    if store.cutoff != cutoff:
        wrong.append(f"a cutoff of {store.cutoff} angstrom, the model's is {cutoff}")
    if store.attrs.get("inputs_sha256") != inputs_digest(_inputs_now(named, store)):
        wrong.append("other sources, or they have changed")
    if recipe.pop("limit", None) != limit:
        wrong.append("another limit")
    if recipe != _recipe_of(store) or {"appended_to", "merged_from"} & set(store.attrs):
        wrong.append("other settings")
    if store.attrs.get("software", {}).get("equiscreen") != version("equiscreen"):
        wrong.append("another version of equiscreen")
    return wrong or (["damaged"] if verify and store.verify() else [])


def _inputs_now(named: Sequence[str], store: GraphStore) -> list[tuple[str, int, str]]:
    """Name, bytes and version of every source; of a server, which may answer otherwise today, as the store has it."""
    live = [name for name in named if name.startswith(OPTIMADE_PREFIX)]
    kept = [name for name in named if name not in live]
    known = {str(name): (str(name), int(size), str(token)) for name, size, token in store.attrs.get("inputs", ())}
    return [*inputs_of(find_files(kept) if kept else []), *(known.get(name, (name, 0, "live")) for name in live)]


def _recipe_of(store: GraphStore) -> dict[str, object]:
    """What the root of a store says of its settings if nothing but cutoff and limit was said.

    Of the labels that ASE delivers it names those that were there.
    """
    there = {name for names in store.label_names for name in names}
    return {
        "min_distance": MIN_DISTANCE,
        "labels": LabelMapping().with_ase_defaults().only(there).model_dump(mode="json"),
        "options": asdict(ReadOptions()),
        "id_field": None,
        "max_atoms": MAX_ATOMS,
        "max_edges": MAX_EDGES,
        "dedup": Dedup.EXACT.value,
    }


def _account(store: GraphStore) -> str:
    """One line on a store that is there already."""
    counts = store.attrs["counts"]
    return (
        f"{store.path}: taken as it is: read {counts['read']:,} = stored {counts['stored']:,} + failed "
        f"{counts['failed']:,} + duplicate {counts['duplicate']:,}{_where_failures_are(counts['failed'])}"
    )


def _where_failures_are(failed: int) -> str:
    return f"; {FAILURES_FILE} in it names what failed" if failed else ""
