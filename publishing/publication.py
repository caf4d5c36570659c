"""Publishing: scores, structures and a report as files that a web server or an object store can serve."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..pipeline.errors import OutputExistsError
from ..pipeline.redaction import redact_urls, without_query
from ..pipeline.runs.progress import ProgressReport
from ..pipeline.runs.staging import check_place
from ..pipeline.runs.target import ROOT_FILE
from ..pipeline.store.checksums import SEAL
from ..pipeline.store.graph_store import open_root
from ..pipeline.store.schema import GRAPH_SCHEMA
from ..screening.dataset.default_ranking import default_ranking
from ..screening.dataset.paths import dataset_in
from ..screening.dataset.reader import ScoresReader
from ..screening.dataset.scores import SCORES_SCHEMA
from ..screening.reporting.report import report as write_report
from ..screening.selection.ranking import Measure
from .catalogue import (
    CATALOGUE_FILE,
    CATALOGUE_SCHEMA,
    CHECKSUMS_FILE,
    GRAPHS,
    PAGE_FILE,
    RANKING,
    REPORT_FILE,
    SCORES,
    Catalogue,
    Column,
    PublishedStore,
)
from .catalogue_page import catalogue_page
from .crate_metadata import CRATE_FILE, Credits, crate_metadata
from .place import Place
from .public_attributes import public_attributes
from .ranked_store import ranked_rows, write_ranked_store
from .store_files import StoreFiles

# File that holds the identity of a publication until the publication is complete.
MARK_FILE = ".equiscreen-publishing.json"
_OWN = frozenset(
    {SCORES, RANKING, GRAPHS, REPORT_FILE, PAGE_FILE, CRATE_FILE, CHECKSUMS_FILE, CATALOGUE_FILE, MARK_FILE}
)
# Number of files that are copied at the same time, and the largest mark that is read, bytes.
_COPIES, _MOST = 8, 1 << 20
# Candidates in the table of the report: more make a page that is slow to load.
_REPORTED = 1_000


@dataclass(frozen=True)
class Publication:
    """A finished publication.

    Attributes:
        place: Path or URL of the folder.
        rows: Number of structures.
        ranked_by: Description of the order of the ranked list; empty if there is none.
        files: Number of files.
        copied: Number of files that this run copied; an interrupted run had copied the others.
        size: Size of all files, bytes.
        seconds: Duration of this run.
        states_license: Whether the licence of the data is stated.
    """

    place: str
    rows: int
    ranked_by: str
    files: int
    copied: int
    size: int
    seconds: float
    states_license: bool

    def __str__(self) -> str:
        kept = self.files - self.copied
        return (
            f"{self.place}: {self.rows:,} structures, {self.files:,} files, {self.size / 1e6:,.1f} MB"
            + (f" ({kept:,} files were there already)" if kept else "")
            + f"; {self.seconds:.1f} s without start-up\n"
            + (f"{RANKING}: {self.ranked_by}" if self.ranked_by else "no ranked list: run `equiscreen hull` first")
            + (
                ""
                if self.states_license
                else "\nno licence is stated, so others may not reuse the data; state one with --license URL"
            )
        )


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the publication.

    Attributes:
        name: Name relative to the folder of the publication.
        store: Store or folder that holds the file.
        source: Name of the file in this store or folder.
        steady: Whether an earlier run with the same identity wrote the same bytes.
    """

    name: str
    store: StoreFiles
    source: str
    steady: bool = True


@dataclass(frozen=True, slots=True)
class _Copied:
    """Result of copying a file.

    Attributes:
        digest: SHA-256 of the file.
        size: Its size, bytes.
        new: Whether this run copied it, rather than an earlier one.
    """

    digest: str
    size: int
    new: bool


def publish(
    scores: str | Path,
    place: str | Path,
    *,
    title: str | None = None,
    license_url: str | None = None,
    authors: Sequence[str] = (),
    publisher: str = "",
    by: str | None = None,
    graphs: bool = True,
    report: bool = True,
    store: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Publication:
    """Copy scores, with their structures and a report, to a folder or an object store from which others read them.

    The folder holds ``scores.zarr``, the ranked list ``ranking.zarr`` in chunks that suit remote reading, the graph
    store ``scores.graphs.zarr``, ``report.html``, a page about all of it (``index.html``), a catalogue for programs
    (``catalogue.json``), metadata for archives (``ro-crate-metadata.json``) and the SHA-256 of all other files except
    the catalogue (``checksums.sha256``). Attributes hold no local paths, and no secrets from URLs. The catalogue is
    written last: without it, the publication is incomplete. An interrupted run resumes when `publish` is called again
    with the same arguments.

    Example:
        >>> from equiscreen.publishing import publish
        >>> publish("relaxed.hull.zarr", "published", report=False).rows
        4

    Args:
        scores: Path or URL of the dataset, or path of a results folder that holds it.
        place: Folder to write, or its URL (``s3://bucket/name``).
        title: Title of the page.
        license_url: URL of the licence of the data, for the RO-Crate.
        authors: Names of the persons who made the data, for the RO-Crate.
        publisher: Name of the organisation that publishes the data, for the RO-Crate.
        by: Column to rank by, lowest first, or highest first if preceded by a minus; by default the first that exists
            of the energy above hull, the formation energy and (for a single composition) the energy per atom. If there
            is none of these, the publication has no ranked list.
        graphs: Whether to publish the graph store, which holds the structures.
        report: Whether to write a report of the best 1,000 candidates.
        store: Graph store of the scores, if it was moved.
        overwrite: Replace an earlier publication, complete or not.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.

    Returns:
        A summary of the publication.

    Raises:
        ConfigError: The column is unknown.
        StoreError: The scores or the graph store cannot be read, or changed during the run.
        OutputExistsError: The place holds other files, or another publication that `overwrite` does not allow to be
            replaced; or it cannot be written.
    """
    begin = time.monotonic()
    credited = Credits(license_url, tuple(authors), publisher)
    scores = dataset_in(scores)
    rows = ScoresReader(scores, store)
    target = Place(place)
    inputs = [StoreFiles(scores), *([StoreFiles(rows.graphs.path)] if graphs else [])]
    _check_apart(target, [one.path for one in inputs])
    name = by or default_ranking(rows)
    measure = None if name is None else Measure.of(rows, name)
    identity = {
        "schema": CATALOGUE_SCHEMA,
        "scores": rows.hash,
        "graphs": rows.graphs.store_hash if graphs else None,
        "ranked_by": measure.text if measure else None,
        "report": report,
    }
    there = _prepared(target, identity, overwrite=overwrite)
    with TemporaryDirectory(prefix="equiscreen-publish-") as scratch:
        work = Path(scratch)
        files = list(_stores(rows, inputs, measure, work))
        if report:
            write_report(scores, work / REPORT_FILE, title=title, top=_REPORTED, by=by, store=store)
            files.append(_File(REPORT_FILE, StoreFiles(work), REPORT_FILE, steady=False))
        copied = _copy(target, files, there, progress)
        rows.check_unchanged()
        catalogue = _catalogue(rows, measure, title or f"Screen of {_name(scores)}", copied, inputs, work)
        attrs = public_attributes(rows.attrs)
        pages = {
            PAGE_FILE: catalogue_page(catalogue, _best(work / RANKING, measure), report=report).encode(),
            CRATE_FILE: crate_metadata(catalogue, attrs, _date(inputs[0].written()), credited, report=report),
        }
        sums = {name: one.digest for name, one in copied.items()}
        sums |= {name: hashlib.sha256(content).hexdigest() for name, content in pages.items()}
        listed = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode()
        catalogue = catalogue.model_copy(update={"checksums_sha256": hashlib.sha256(listed).hexdigest()})
        last = {
            **pages,
            CHECKSUMS_FILE: listed,
            CATALOGUE_FILE: catalogue.model_dump_json(indent=1).encode() + b"\n",
        }
        for name, content in last.items():
            target.write(name, content)
        target.remove([MARK_FILE])
    return Publication(
        str(target),
        len(rows),
        catalogue.ranked_by,
        len(files) + len(last),
        sum(one.new for one in copied.values()) + len(last),
        sum(one.size for one in copied.values()) + sum(map(len, last.values())),
        round(time.monotonic() - begin, 3),
        license_url is not None,
    )


def _prepared(target: Place, identity: Mapping[str, Any], *, overwrite: bool) -> Mapping[str, int]:
    """Make the place ready for this publication, and return the sizes of the files that it may keep.

    Raises:
        OutputExistsError: The place holds other files, or another publication and `overwrite` is not set.
    """
    there = target.sizes()
    mark = target.read(MARK_FILE, _MOST) if MARK_FILE in there else None
    same = mark is not None and mark == _mark(identity)
    own = [name for name in there if name.split("/", maxsplit=1)[0] in _OWN]
    if there and not {CATALOGUE_FILE, MARK_FILE} & there.keys():
        raise OutputExistsError(f"{target} already holds other files; choose an empty folder")
    if there and not same:
        if not overwrite:
            state = (
                "is already published" if CATALOGUE_FILE in there else "holds an unfinished publication of other data"
            )
            raise OutputExistsError(f"{target} {state}; choose another folder, or use `--overwrite`")
        # The catalogue is removed first, so that nobody reads one that does not describe its data. A mark that matches
        # no publication stays until the end, so that the files left by an interrupted removal are recognised.
        target.write(MARK_FILE, _mark({}))
        target.remove([name for name in own if name == CATALOGUE_FILE])
        target.remove([name for name in own if name not in (CATALOGUE_FILE, MARK_FILE)])
        there = {}
    if not same:
        target.write(MARK_FILE, _mark(identity))
    return there


def _mark(identity: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(identity), sort_keys=True).encode()


def _check_apart(target: Place, inputs: Sequence[Path | str]) -> None:
    """Check that the publication does not overlap any store that it is made from.

    Raises:
        OutputExistsError: The place is such a store, contains one, or lies inside one.
    """
    if target.path is not None:
        check_place(target.path, inputs)
        return
    for url in (one.rstrip("/") for one in inputs if isinstance(one, str)):
        if f"{target.secret_url}/".startswith(f"{url}/") or f"{url}/".startswith(f"{target.secret_url}/"):
            raise OutputExistsError(
                f"{target} cannot be the output, because {redact_urls(url)} is read by this run; choose another output"
            )


def _name(scores: str | Path) -> str:
    """Return the name of a dataset, the last part of its path or URL."""
    return without_query(redact_urls(str(scores))).rstrip("/").rsplit("/", maxsplit=1)[-1]


def _stores(rows: ScoresReader, inputs: Sequence[StoreFiles], measure: Measure | None, work: Path) -> Iterator[_File]:
    """Yield the files of all stores; the root of each store comes after its data."""
    scores, *graphs = inputs
    attrs: dict[str, Any] = {"graph_store": {**dict(rows.attrs.get("graph_store") or {}), "path": GRAPHS}}
    if not graphs:
        attrs["graph_store"]["path"] = ""
    yield from _store_files(scores, SCORES, SCORES_SCHEMA, attrs, work)
    if graphs:
        yield from _store_files(graphs[0], GRAPHS, GRAPH_SCHEMA, {}, work)
    if measure is not None:
        kept = {key: value for key, value in rows.attrs.items() if key not in (SEAL, "store_hash", "complete")}
        facts = {**public_attributes(kept), **attrs, "ranked_by": measure.text, "ranked_from": SCORES}
        write_ranked_store(rows, ranked_rows(rows, measure), work / RANKING, facts)
        yield from _store_files(StoreFiles(work / RANKING), RANKING, SCORES_SCHEMA, {}, work)


def _store_files(store: StoreFiles, name: str, schema: str, changes: Mapping[str, Any], work: Path) -> Iterator[_File]:
    for file in store.names(dict(open_root(store.path, schema).arrays())):
        yield _File(f"{name}/{file}", store, file)
    (work / _root(name)).write_bytes(store.root(changes))
    yield _File(f"{name}/{ROOT_FILE}", StoreFiles(work), _root(name), steady=False)


def _root(name: str) -> str:
    """Return the name of the public root file of a store in the working folder."""
    return f"{name}.root"


def _copy(target: Place, files: Sequence[_File], there: Mapping[str, int], progress: bool | None) -> dict[str, _Copied]:
    """Copy files that are not there yet; those that may differ from an earlier run are always copied, at the end."""

    def copy(file: _File) -> _Copied:
        with file.store.file(file.source) as path:
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            size = path.stat().st_size
            new = not file.steady or there.get(file.name) != size
            if new:
                target.copy(path, file.name)
        return _Copied(digest, size, new)

    copied = {}
    # Roots come last: a store without its root cannot be opened.
    groups = [[one for one in files if one.steady], [one for one in files if not one.steady]]
    with ProgressReport("publish", len(files), "files", enabled=progress) as bar, ThreadPoolExecutor(_COPIES) as pool:
        for group in groups:
            for file, found in zip(group, pool.map(copy, group), strict=True):
                copied[file.name] = found
                bar.advance(1)
    return copied


def _catalogue(
    rows: ScoresReader,
    measure: Measure | None,
    title: str,
    copied: Mapping[str, _Copied],
    inputs: Sequence[StoreFiles],
    work: Path,
) -> Catalogue:
    hashes = {SCORES: rows.hash}
    if len(inputs) > 1:
        hashes[GRAPHS] = rows.graphs.store_hash
    if measure is not None:
        hashes[RANKING] = json.loads((work / _root(RANKING)).read_bytes())["attributes"]["store_hash"]
    stores = {}
    for name, found in hashes.items():
        sizes = [one.size for file, one in copied.items() if file.startswith(f"{name}/")]
        stores[name] = PublishedStore(store_hash=found, files=len(sizes), size=sum(sizes))
    attrs = public_attributes(rows.attrs)
    return Catalogue(
        schema_version=CATALOGUE_SCHEMA,
        title=title,
        created=_date(time.time()),
        rows=len(rows),
        kind=str(attrs.get("kind", "screened")),
        status_counts={str(word): int(count) for word, count in dict(attrs.get("status_counts") or {}).items()},
        ranked_by=measure.text if measure else "",
        model=attrs.get("model"),
        columns=tuple(
            Column(
                name=name,
                units=str(spec.attrs.get("units", "")),
                description=str(spec.attrs.get("description", "")),
                dtype=spec.dtype,
                shape=spec.inner,
            )
            for name, spec in rows.specs.items()
        ),
        stores=stores,
        checksums_sha256="",
        software=f"equiscreen {version('equiscreen')}",
    )


def _date(seconds: float | None) -> str:
    """Return the date and time in UTC, ISO 8601; empty if unknown."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _best(store: Path, measure: Measure | None) -> ScoresReader | None:
    """Return a reader of the ranked list, for the table of the page; None if there is no ranked list."""
    return None if measure is None else ScoresReader(store)
