"""Names under which stores record the user's files, so that a published store reveals no paths of their machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from .redaction import redact_urls

_FILE = "file://"


def unrecorded_folders(sources: Sequence[str]) -> list[str]:
    """The part of each source that a store does not record.

    A relative path and a URL are recorded as given. An absolute path is recorded relative to the working folder if it
    lies inside; otherwise relative to the folder that holds all such sources, so that different files keep different
    names.

    Args:
        sources: Paths, globs and URLs as given by the user.

    Returns:
        For each source, the leading folder with a slash at its end; empty if the source is recorded as given.
    """
    here = Path.cwd()
    paths = [PurePath(_local_part(source)) for source in sources]
    outside = [path for path in paths if path.is_absolute() and not path.is_relative_to(here)]
    common = os.path.commonpath([str(path.parent) for path in outside]) if outside else ""
    folders = []
    for source, path in zip(sources, paths, strict=True):
        folder = "" if not path.is_absolute() else common if path in outside else str(here)
        scheme = _FILE if folder and source.startswith(_FILE) else ""
        folders.append(f"{scheme}{folder.rstrip('/')}/" if folder else "")
    return folders


def _local_part(source: str) -> str:
    """The local path that a source is or ends with (``zip://*.cif::/folder/file.zip``); empty for another URL."""
    path = source.rsplit("::", maxsplit=1)[-1].removeprefix(_FILE)
    return "" if "://" in path else path


def recorded_path(path: str | Path, dataset: str | Path) -> str:
    """Path under which a dataset records a store that it depends on.

    A URL is recorded without its secrets. A path is recorded relative to the folder of the dataset, so that the two can
    be moved together; if they have no folder in common but the root, only the name of the store is recorded.

    Args:
        path: Path or URL of the store.
        dataset: Path or URL of the dataset.
    """
    text = str(path).removeprefix(_FILE)
    if "://" in text:
        return redact_urls(text)
    place = Path(text).resolve()
    if "://" in str(dataset):
        return place.name
    folder = Path(dataset).resolve().parent
    shared = os.path.commonpath([place, folder])
    return place.name if shared == place.anchor else PurePath(os.path.relpath(place, folder)).as_posix()


def resolved_path(recorded: str, dataset: str | Path) -> str:
    """The path or URL that `recorded_path` recorded.

    Args:
        recorded: Path as recorded in the attributes of the dataset.
        dataset: Path or URL of the dataset.
    """
    if not recorded or "://" in recorded or PurePath(recorded).is_absolute():
        return recorded
    if "://" in str(dataset):
        return f"{str(dataset).rstrip('/').rpartition('/')[0]}/{recorded}"
    return os.path.normpath(Path(dataset).parent / recorded)
