"""A publication as one ZIP file: an RO-Crate, which archives of research data accept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

from ..pipeline.atomic import atomic_path
from ..pipeline.redaction import redact_urls, without_query
from ..pipeline.runs.staging import ZIP, check_file
from ..screening.dataset.paths import dataset_in
from .publication import Publication, publish


def crate(
    scores: str | Path,
    out: str | Path | None = None,
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
    """Write scores, with their structures and a report, as an RO-Crate in one ZIP file.

    The file holds what `publish` writes. It follows RO-Crate 1.1 and the profile Process Run Crate 0.5. An interrupted
    run resumes when `crate` is called again with the same arguments.

    Example:
        >>> from equiscreen.publishing import crate
        >>> crate("relaxed.hull.zarr", report=False).place
        'relaxed.hull.crate.zip'

    Args:
        scores: Path or URL of the dataset, or path of a results folder that holds it.
        out: ZIP file to write; by default ``S.crate.zip`` for ``S.zarr``.
        title: Title of the dataset.
        license_url: URL of the licence of the data.
        authors: Names of the persons who made the data.
        publisher: Name of the organisation that publishes the data.
        by: Column to rank by; see `publish`.
        graphs: Whether to include the graph store, which holds the structures.
        report: Whether to include a report of the best 1,000 candidates.
        store: Graph store of the scores, if it was moved.
        overwrite: Replace an existing file.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.

    Raises:
        ConfigError: The column is unknown.
        StoreError: The scores or the graph store cannot be read, or changed during the run.
        OutputExistsError: The file exists or cannot be written.
    """
    begin = time.monotonic()
    scores = dataset_in(scores)
    out = crate_path(scores) if out is None else out
    inputs = [scores, *(one for one in (store,) if one is not None)]
    target = check_file(out, inputs, overwrite=overwrite, begins=ZIP)
    folder = target.with_name(f"{target.name}.partial")
    made = publish(
        scores,
        folder,
        title=title,
        license_url=license_url,
        authors=authors,
        publisher=publisher,
        by=by,
        graphs=graphs,
        report=report,
        store=store,
        overwrite=True,
        progress=progress,
    )
    # The chunks are compressed already.
    with atomic_path(target) as scratch, ZipFile(scratch, "w", ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    shutil.rmtree(folder)
    return replace(made, place=str(out), size=target.stat().st_size, seconds=round(time.monotonic() - begin, 3))


def crate_path(scores: str | Path) -> str:
    """Return the default path: ``S.crate.zip`` for ``S.zarr``; in the current folder if the scores are at a URL."""
    path = without_query(redact_urls(str(scores))).rstrip("/").removesuffix(".zarr")
    return f"{path.rsplit('/', 1)[-1] if '://' in path else path}.crate.zip"
