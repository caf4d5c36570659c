"""Graphs of the structures given to a command: a graph store is used directly, and files are featurized first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from fsspec.core import url_to_fs

from ..export.runtime.ensemble import Ensemble, Models
from ..pipeline.errors import ConfigError, OutputExistsError, StoreError
from ..pipeline.featurization.estimate import ESTIMATE_RECORDS, FeaturizeEstimate
from ..pipeline.featurization.estimate import estimate as estimate_featurization
from ..pipeline.featurization.featurize import featurize
from ..pipeline.graphs.neighbor_list import MAX_EDGES, MIN_DISTANCE
from ..pipeline.labels.mapping import LabelMapping
from ..pipeline.readers.records import ReadOptions
from ..pipeline.redaction import redact_urls, without_query
from ..pipeline.runs.cluster import IN_PROCESS
from ..pipeline.runs.options import RunOptions
from ..pipeline.runs.target import ROOT_FILE, Target
from ..pipeline.sources.discovery import (
    OPTIMADE_PREFIX,
    Paths,
    file_name,
    find_files,
    inputs_digest,
    inputs_of,
    is_server,
    path_names,
    server_name,
)
from ..pipeline.sources.formats import holds_structures
from ..pipeline.store.dedup import Dedup
from ..pipeline.store.graph_store import GraphStore, open_root
from ..pipeline.store.schema import GRAPH_SCHEMA
from ..pipeline.store.tables import FAILURES_FILE
from ..pipeline.structures.structure import MAX_ATOMS
from .dataset.paths import graphs_path
from .dataset.reader import place_of_graphs
from .dataset.scores import SCORES_SCHEMA


@dataclass(frozen=True, slots=True)
class StepsEstimate:
    """Estimated cost of several steps; as text, one line per step.

    Attributes:
        steps: Estimate of each step, by the command that runs it; if the graph store already exists, a line of text
            about the store.
    """

    steps: Mapping[str, object]

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps.values()))


@dataclass(frozen=True, slots=True)
class PreparedGraphs:
    """A graph store that is ready to be screened.

    Attributes:
        path: Path or URL of the graph store.
        summary: Counts of the featurization, as one line of text; empty if the user gave a store.
    """

    path: str
    summary: str


def prepare_graphs(
    sources: Paths, model: Models, out: str | Path, options: RunOptions, *, append: bool = False
) -> PreparedGraphs:
    """Featurize the sources into a graph store beside the scores: the first step of `scoring.screen_files`.

    An existing graph store beside the scores is reused if it equals the one that this function would write. If the
    source is a graph store, or a scores dataset with its own graph store, that store is used directly.

    Args:
        sources: Sources, as for `screen_files`.
        model: ONNX file, or several; the largest cutoff is used.
        out: Scores dataset that will be written.
        options: How the run is carried out; `limit` counts records, and `overwrite` also replaces a graph store that is
            damaged or holds other graphs.
        append: Whether the screen will append to existing scores; the source must then be a store.

    Raises:
        ConfigError: As for `screen_files`; or the screen appends and the source is not a store.
        SourceError: As for `screen_files`.
        StoreError: The source is a store that is missing, unfinished or damaged.
        ModelFileError: As for `screen_files`.
        OutputExistsError: As for `screen_files`.
    """
    named = path_names(sources)
    store = graph_store_of(named)
    if store is not None:
        return PreparedGraphs(store, "")
    if append:
        raise ConfigError(
            "--append works only with a graph store; add the files to one with `equiscreen featurize --append`, then "
            "screen it"
        )
    cutoff = Ensemble.load(model, threads=1).cutoff
    scores, path = Target.of(out), graphs_path(out)
    # Check before doing any work. If a run was killed while it published the scores, `screen` finishes that run.
    if not options.overwrite and scores.exists() and not scores.working_folder.exists():
        raise OutputExistsError(f"{scores} already exists; choose another --out, or use --overwrite")
    limit = options.limit
    run = partial(
        featurize, named, path, cutoff=cutoff, scheduler=options.scheduler, limit=limit, progress=options.progress
    )
    place = Target.of(path)
    if place.exists():
        differences = differences_of(path, named, cutoff, limit, verify=options.overwrite)
        if not differences:
            if place.working_folder.exists():
                with suppress(OutputExistsError):  # raised unless there is a clean-up to finish
                    run()
            return PreparedGraphs(path, reused_summary(GraphStore(path)))
        if not options.overwrite:
            raise OutputExistsError(
                f"{path} cannot be reused ({'; '.join(differences)}); choose another --out, or use --overwrite"
            )
    report = run(overwrite=options.overwrite)
    return PreparedGraphs(path, f"{report}{_failures_note(path, report.failed)}")


@contextmanager
def sampled_graphs(
    named: Sequence[str], cutoff: float, limit: int | None
) -> Iterator[tuple[FeaturizeEstimate, Path, int]]:
    """Make a graph store of the first records of some files, to estimate the cost of all records.

    Args:
        named: Sources, as text.
        cutoff: Cutoff of the model, angstrom.
        limit: Number of records that would be read; None reads all.

    Yields:
        The cost of featurizing all records; the graph store; and the expected number of structures in all records.

    Raises:
        ConfigError: The limit is out of range.
        SourceError: A source cannot be read or is a server, or none of the sampled structures could be stored.
    """
    whole = estimate_featurization(named, cutoff=cutoff, limit=limit)
    with TemporaryDirectory() as scratch:
        sample, size = Path(scratch) / "sample.zarr", min(ESTIMATE_RECORDS, whole.records)
        report = featurize(named, sample, cutoff=cutoff, limit=size, scheduler=IN_PROCESS)
        yield whole, sample, round(report.stored * whole.records / report.read)


def graph_store_of(named: Sequence[str]) -> str | None:
    """Return the graph store to screen: the source itself, or the graph store of a scores dataset; None for files.

    Raises:
        ConfigError: The sources are several stores, or a store among files.
        StoreError: The store is missing, unfinished or damaged.
    """
    stores = [source for source in named if _is_store(source)]
    if stores and len(named) > 1:
        if len(stores) == len(named):
            raise ConfigError(
                f"{len(stores)} stores were given, but only one can be used; use each on its own, or combine graph "
                "stores with `equiscreen merge`"
            )
        raise ConfigError(
            f"{stores[0]} is a store among structure files; use it on its own, or run `equiscreen featurize` on the "
            "files and combine the graph stores with `equiscreen merge`"
        )
    return _graphs_of(stores[0]) if stores else None


def _graphs_of(path: str) -> str:
    """Return the path of a graph store, or of the graph store that a scores dataset records."""
    attrs = dict(open_root(path, GRAPH_SCHEMA, SCORES_SCHEMA).attrs)
    return path if attrs["schema"] == GRAPH_SCHEMA else place_of_graphs(path, attrs, None)


def _is_store(source: str) -> bool:
    """Return whether a source is a store of graphs or scores, even a missing or unfinished one."""
    if source.startswith(OPTIMADE_PREFIX):  # a server, or a file named like one
        return False
    if without_query(source.split("::", maxsplit=1)[0]).rstrip("/").endswith(".zarr"):
        return True
    if "://" not in source:
        unfinished = Target.of(source).working_folder
        return (Path(source) / ROOT_FILE).exists() or (unfinished.is_dir() and not Path(source).exists())
    if "*" in source or without_query(source) != source or holds_structures(file_name(source)):
        return False
    try:
        fs, path = url_to_fs(source)
        return bool(fs.exists(f"{path}/{ROOT_FILE}"))
    except Exception:  # noqa: BLE001 - each file system raises its own errors; reading the source reports them
        return False


def differences_of(
    path: str, named: Sequence[str], cutoff: float, limit: int | None, *, verify: bool = False
) -> list[str]:
    """List how a graph store differs from the one that featurizing the sources would write.

    Args:
        path: Path or URL of the graph store.
        named: Sources, as given by the user.
        cutoff: Cutoff of the model, angstrom.
        limit: Number of records to read; None reads all.
        verify: Whether to verify the store's checksums as well.

    Returns:
        Each difference, as text; empty if there is none.

    Raises:
        SourceError: A source cannot be found.
    """
    try:
        store = GraphStore(path)
    except StoreError as error:
        return [str(error).removeprefix(f"{redact_urls(path)}: ")]
    recipe = dict(store.attrs.get("recipe", {}))
    differences = []
    if store.cutoff != cutoff:
        differences.append(f"its cutoff is {store.cutoff} angstrom, but the model's cutoff is {cutoff}")
    if store.attrs.get("inputs_sha256") != inputs_digest(_inputs_now(named, store)):
        differences.append("different or changed sources")
    if recipe.pop("limit", None) != limit:
        differences.append("different limit")
    if recipe != _recipe_of(store) or {"appended_to", "merged_from"} & set(store.attrs):
        differences.append("different settings")
    if store.attrs.get("software", {}).get("equiscreen") != version("equiscreen"):
        differences.append("different version of equiscreen")
    return differences or (["damaged"] if verify and store.verify() else [])


def _inputs_now(named: Sequence[str], store: GraphStore) -> list[tuple[str, int, str]]:
    """Return the name, size and version of every source; for servers, whose answers may change, as recorded."""
    live = [name for name in named if is_server(name)]
    kept = [name for name in named if name not in live]
    known = {str(name): (str(name), int(size), str(token)) for name, size, token in store.attrs.get("inputs", ())}
    return [
        *inputs_of(find_files(kept) if kept else []),
        *(known.get(server_name(name), (name, 0, "live")) for name in live),
    ]


def _recipe_of(store: GraphStore) -> dict[str, object]:
    """Return the recipe of a store that was featurized with default settings except for cutoff and limit.

    Of ASE's labels, a recipe lists only those that the data contain.
    """
    found = {name for names in store.label_names for name in names}
    return {
        "min_distance": MIN_DISTANCE,
        "labels": LabelMapping().with_ase_defaults().only(found).model_dump(mode="json"),
        "options": asdict(ReadOptions()),
        "id_field": None,
        "max_atoms": MAX_ATOMS,
        "max_edges": MAX_EDGES,
        "dedup": Dedup.EXACT.value,
    }


def reused_summary(store: GraphStore) -> str:
    """Return the counts of an existing store that is reused, as one line of text."""
    counts = store.attrs["counts"]
    return (
        f"{redact_urls(str(store.path))}: the existing store is reused: read {counts['read']:,} = stored "
        f"{counts['stored']:,} + failed {counts['failed']:,} + duplicate "
        f"{counts['duplicate']:,}{_failures_note(store.path, counts['failed'])}"
    )


def _failures_note(store: str | Path, failed: int) -> str:
    """Return a note on how to find the structures that failed; empty if none failed."""
    if not failed:
        return ""
    named = redact_urls(str(store))
    return (
        f"; `equiscreen info {named}` names some of those that failed, and {FAILURES_FILE} in the store lists them all"
    )
