"""Writing of a store by a resumable run, which makes parts on workers, combines them and publishes the result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from ..errors import input_changed
from ..graphs.offsets import offsets_of
from ..runs.cluster import connect, dashboard, works_elsewhere
from ..runs.failure_policy import FailurePolicy, run_tasks
from ..runs.options import RunOptions
from ..runs.parts import FOLDER, PartManifest, received_part, send_part
from ..runs.progress import ProgressReport
from ..runs.staging import Staging, missing_items, resume_publication, staged_run, whole_parts
from ..sources.files import SHA256, SourceFile, stamp_of
from .compaction import Compaction, compact, finish_store, write_shards
from .graph_store import GraphStore, check_unchanged
from .row_sources import PartRows
from .schema import GRAPH_SCHEMA, STRUCTURE, ArraySpec

Task = TypeVar("Task")


@dataclass(frozen=True, slots=True)
class InputStore:
    """A store that a run reads, as it was when the run began.

    Attributes:
        path: Path or URL of the store.
        store_hash: Hash of its content.
        schema: Schema of the store.
    """

    path: Path | str
    store_hash: str
    schema: str = GRAPH_SCHEMA

    @classmethod
    def of(cls, graphs: GraphStore) -> Self:
        """Make an input from a graph store."""
        return cls(graphs.path, graphs.store_hash)

    def check_unchanged(self) -> None:
        """Check that the store still has the content that the run began with.

        Raises:
            StoreError: The store was replaced, appended to or removed.
        """
        check_unchanged(self.path, self.schema, self.store_hash)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A local file that a run reads, as it was when the run began.

    Attributes:
        path: Path of the file.
        stamp: Result of `stamp_of`.
        sha256: Digest of its content; empty if it is unknown.
    """

    path: Path
    stamp: tuple[int, ...]
    sha256: str = ""

    @classmethod
    def of(cls, path: Path) -> Self:
        """Make an input from a file, as it is now."""
        return cls(path, stamp_of(path))

    @classmethod
    def of_sources(cls, files: Iterable[SourceFile]) -> list[Self]:
        """Make inputs from the local files among some sources, as they were when their versions were computed."""
        known = [file for file in files if file.local and file.stamp]
        return [cls(Path(file.path), file.stamp, file.version.removeprefix(SHA256)) for file in known]

    def check_unchanged(self) -> None:
        """Check that the file is as it was when the run began.

        Raises:
            StoreError: The file was changed, replaced or removed.
        """
        try:
            now = stamp_of(self.path)
            same = now == self.stamp or (now[:-1] == self.stamp[:-1] and self._has_content())
        except OSError:
            same = False
        if not same:
            raise input_changed(self.path)

    def _has_content(self) -> bool:
        """Whether the content is unchanged: times and permissions of a file may change without its content."""
        if not self.sha256:
            return True
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


@dataclass(frozen=True, slots=True)
class StoreWriter:
    """A store to be written, and everything that its content depends on.

    A run that was killed resumes when it is started again with the same identity: parts that it had finished are not
    made again, and the store appears under its name only when it is complete.

    Example:
        >>> writer = StoreWriter("screen", out, identity, options, inputs=[InputStore.of(graphs)])  # doctest: +SKIP
        >>> if writer.resume_publication() is None:  # doctest: +SKIP
        ...     with writer.run(total=len(graphs)) as run:
        ...         manifests = run.make_parts(screen_part, tasks(run))
        ...         run.publish(run.concatenate(specs, manifests), attrs)

    Attributes:
        verb: Name of the command in progress reports, such as "screen".
        out: Path or URL of the store.
        identity: Everything that the result depends on, as JSON. Only a run with the same identity can be resumed.
        options: Options of the run.
        inputs: Stores that are read; the run fails if one of them changes before the run is complete.
        files: Other files that are read and must not change either. A path refers to the file as it is when the run
            begins, an `InputFile` to the file as it was when the `InputFile` was made. The output may neither replace
            nor contain an input.
        extend: Whether the new store contains the rows of the existing one, and takes its place.
    """

    verb: str
    out: str | Path
    identity: Mapping[str, Any]
    options: RunOptions
    inputs: Sequence[InputStore] = ()
    files: Sequence[str | Path | InputFile] = ()
    extend: bool = False

    def resume_publication(self) -> Mapping[str, Any] | None:
        """Finish an earlier run that was killed while it moved the store to its final path.

        Returns:
            The report of that run; None if there is none with this identity.

        Raises:
            OutputExistsError: Another run is at work, or something else now exists at the output.
        """
        return resume_publication(self.out, self.identity)

    @contextmanager
    def run(self, total: int, unit: str = "structures", *, on_workers: bool = True) -> Iterator[StoreRun]:
        """Start the run, or resume it; its lock is held until the end of the block.

        Args:
            total: Number of items, for the progress report.
            unit: Plural name of an item, for the progress report.
            on_workers: Whether to connect to Dask workers; without them, everything is done in this process.

        Raises:
            OutputExistsError: The output exists, cannot be written or overlaps an input; another run is writing it; or
                an unfinished run has different settings.
            EquiscreenError: No cluster answers, or none can be started.
        """
        known = [file for file in self.files if isinstance(file, InputFile)]
        others = [file for file in self.files if not isinstance(file, InputFile)]
        named = [str(path).removeprefix("file://") for path in (*(store.path for store in self.inputs), *others)]
        read = [Path(path) for path in named if "://" not in path]
        with ExitStack() as stack:
            staging = stack.enter_context(
                staged_run(
                    self.out,
                    self.identity,
                    [*read, *(file.path for file in known)],
                    overwrite=self.options.overwrite,
                    extend=self.extend,
                )
            )
            client = None
            if on_workers:
                with staging.discarded_if_new():
                    client = stack.enter_context(connect(self.options.scheduler, self.options.gpus))
            bar = stack.enter_context(ProgressReport(self.verb, total, unit, enabled=self.options.progress))
            if client is not None and (link := dashboard(client)) is not None:
                bar.note(f"Dask dashboard: {link}")
            files = [*known, *(InputFile.of(path) for path in read if path.is_file())]
            yield StoreRun(staging, client, bar, self.options, tuple(self.inputs), tuple(files))


@dataclass
class StoreRun:
    """A run in progress.

    Attributes:
        staging: Working folders of the run.
        client: Dask client; None if everything is done in this process.
        bar: Progress report.
        options: Options of the run.
        inputs: Stores that are read.
        files: Local files that are read.
        resumed: Parts that earlier runs have finished.
    """

    staging: Staging
    client: Any
    bar: ProgressReport
    options: RunOptions
    inputs: Sequence[InputStore] = ()
    files: Sequence[InputFile] = ()
    resumed: Sequence[PartManifest] = field(init=False)

    def __post_init__(self) -> None:
        self.resumed = whole_parts(self.staging.manifests().values())
        self._by_number: dict[int, list[PartManifest]] = {}
        for manifest in self.resumed:
            self._by_number.setdefault(manifest.number, []).append(manifest)

    @property
    def sends_parts(self) -> bool:
        """Whether the workers send their parts to this process, since they may not see its working folders.

        They do if the output is a URL and they may be on other machines.
        """
        return self.client is not None and self.staging.out.path is None and works_elsewhere(self.client)

    def missing(self, number: int, count: int) -> list[tuple[int, int]]:
        """Find the items of a partition that earlier runs have not finished.

        Args:
            number: Number of the partition.
            count: Items in the partition.

        Returns:
            (begin, end) of each range of items.
        """
        return missing_items(self._by_number.get(number, ()), count)

    def make_parts(
        self,
        function: Callable[[Task], PartManifest],
        tasks: Iterable[Task],
        failure_policy: FailurePolicy[Task] | None = None,
        resource: str | None = None,
        **folders: Path,
    ) -> list[PartManifest]:
        """Run tasks on the workers; each task writes one part.

        Args:
            function: Makes one part.
            tasks: Tasks of the parts that are missing.
            failure_policy: What to do about tasks that kill their workers; see `run_tasks`.
            resource: Resource that a worker must declare to get tasks; see `run_tasks`.
            folders: Further folders that a task writes to, by the name of the field that holds them; the field `folder`
                holds the folder of the parts.

        Returns:
            The manifests of all parts in order, including parts of earlier runs.

        Raises:
            EquiscreenError: As for `run_tasks`.
        """
        done = {manifest.key: manifest for manifest in self.resumed}
        self.bar.resume(sum(manifest.counts["read"] for manifest in self.resumed))
        written = {FOLDER: self.staging.parts, **folders}
        for manifest in self.run_tasks(function, tasks, failure_policy, written, resource):
            done[manifest.key] = manifest
            self.bar.advance(manifest.counts["read"])
        return whole_parts(done.values())

    def run_tasks(
        self,
        function: Callable[[Task], PartManifest],
        tasks: Iterable[Task],
        failure_policy: FailurePolicy[Task] | None,
        folders: Mapping[str, Path],
        resource: str | None = None,
    ) -> Iterator[PartManifest]:
        """Run tasks that write to working folders, and yield the manifests of their parts as they finish.

        If `sends_parts`, the tasks write to scratch folders of their workers, and the files are sent to this process;
        the tasks must then carry everything that they read from a working folder.

        Args:
            function: Makes one part.
            tasks: The tasks.
            failure_policy: What to do about tasks that kill their workers; see `run_tasks`.
            folders: Folders that a task writes to, by the name of the field that holds them.
            resource: Resource that a worker must declare to get tasks; see `run_tasks`.

        Raises:
            EquiscreenError: As for `run_tasks`.
        """
        shared: list[str | Path] = [store.path.absolute() for store in self.inputs if isinstance(store.path, Path)]
        if works_elsewhere(self.client):
            shared += [store.path for store in self.inputs if not isinstance(store.path, Path)]
        if not self.sends_parts:
            shared.append(self.staging.plan)
            yield from run_tasks(self.client, function, tasks, failure_policy, self.bar.note, shared, resource)
            return
        send = partial(send_part, function, tuple(folders))
        for part in run_tasks(self.client, send, tasks, failure_policy, self.bar.note, shared, resource):
            yield received_part(folders, part)

    def concatenate(
        self,
        specs: Sequence[ArraySpec],
        manifests: Sequence[PartManifest],
        *,
        store: Path | None = None,
        parts: Path | None = None,
    ) -> dict[str, str]:
        """Write all rows of all parts, in order, as the arrays of a store.

        Args:
            specs: Arrays of the store.
            manifests: Parts, in order.
            store: Folder to write; the run's own store if None.
            parts: Folder of the parts; the run's own if None.

        Returns:
            SHA-256 of the rows of every shard, by ``name/shard``.
        """
        compaction = concatenation(store or self.staging.store, parts or self.staging.parts, specs, manifests)
        return self.compact(compaction)

    def compact(self, compaction: Compaction) -> dict[str, str]:
        """Write the shards of a store, on the workers if they see the parts; see `concatenate` for the result."""
        here = self.client is None or self.sends_parts
        return write_shards(compaction) if here else compact(self.client, compaction)

    def check_inputs(self) -> None:
        """Check that no input has changed since the run began.

        Raises:
            StoreError: An input was changed, replaced or removed.
        """
        for store in self.inputs:
            store.check_unchanged()
        for file in self.files:
            file.check_unchanged()

    def publish(
        self,
        digests: Mapping[str, str],
        attrs: Mapping[str, Any],
        report: Mapping[str, Any] | None = None,
        *,
        publish_others: Callable[[], None] | None = None,
    ) -> None:
        """Check the inputs, write the root attributes of the store, and move it to its final path.

        Args:
            digests: SHA-256 of every shard.
            attrs: Root attributes.
            report: Returned by `StoreWriter.resume_publication` if the run is killed during its last steps.
            publish_others: Publishes further outputs of the run; called once the store is complete, before it is moved
                to its final path.

        Raises:
            StoreError: An input has changed; nothing is published.
            OutputExistsError: The upload to a URL failed.
        """
        self.check_inputs()
        finish_store(self.staging.store, digests, attrs)
        if publish_others is not None:
            publish_others()
        self.staging.publish(report or {})


def concatenation(
    store: Path, parts: Path, specs: Sequence[ArraySpec], manifests: Sequence[PartManifest]
) -> Compaction:
    """Plan the compaction that writes all rows of all parts, in order, as one store.

    Args:
        store: Folder to write.
        parts: Folder of the parts.
        specs: Arrays of the store.
        manifests: Parts, in order. Their counts hold ``read``, the number of structures, and the rows along every other
            dim of `specs`.
    """
    rows = {STRUCTURE: offsets_of([manifest.counts["read"] for manifest in manifests])}
    for dim in {spec.dims[0] for spec in specs} - {STRUCTURE}:
        rows[dim] = offsets_of([manifest.counts[dim] for manifest in manifests])
    return Compaction(
        store=store,
        specs=tuple(specs),
        sources=tuple(PartRows(parts, manifest.key, {}) for manifest in manifests),
        source_rows=rows,
        keep=None,
        status=None,
        structure_offsets=rows[STRUCTURE],
    )
